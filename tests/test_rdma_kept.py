"""Memory that stays registered between transfers: while its storage lives, within a bound, and
never once it has gone. On the fake devices, which count registrations and check every key."""

from __future__ import annotations

import errno
import gc
import threading

import pytest
import torch

import torch_tent as tent
from tests.fake_rdma import Fabric
from tests.pairs import until
from tests.test_rdma_rails import MIB, Two, noise
from torch_tent import storages

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("rdma_host")]


class Ready(Two):
    """Engines with one rail, which is up; all that is needed but the near end's tensor has been
    registered."""

    def __init__(self, nbytes: int = 4 * MIB, kept: int = 1 << 30) -> None:
        settings = {"rdma_kept_bytes_max": kept}
        self.near = self.engine(("fake0",), (), settings)
        self.far = self.engine(("fake1",), (), settings)
        self.memory, self.segment, self.remote = self.landing(nbytes)
        self.write(torch.zeros(nbytes, dtype=torch.uint8))

    def __exit__(self, *error: object) -> None:
        self.segment.close()
        super().__exit__(*error)

    def write(self, x: torch.Tensor) -> None:
        self.near.write(x, self.remote).wait(20)
        assert torch.equal(self.memory, x)


def test_a_tensor_is_registered_once_however_often_it_is_used(fabric: Fabric) -> None:
    with Ready() as two:
        x, y = noise(4 * MIB), torch.empty(4 * MIB, dtype=torch.uint8)
        two.write(x)
        made = fabric.registrations
        for _ in range(5):
            two.write(x)
            two.near.write(x[: 4 * MIB], two.remote, require="rdma").wait(20)  # the long way
        assert fabric.registrations == made

        def reads_without_registering() -> bool:
            before = fabric.registrations
            two.near.read(two.remote, y).wait(20)
            return fabric.registrations == before

        until(reads_without_registering)
        assert torch.equal(y, x)


def test_a_freed_tensor_is_registered_no_longer(fabric: Fabric) -> None:
    with Ready() as two:
        gc.collect()
        before = fabric.regions
        x = noise(4 * MIB)
        part = x[MIB : 2 * MIB]
        two.write(x)
        until(lambda: fabric.regions > before)
        del x
        gc.collect()
        assert fabric.regions > before  # a view keeps the storage
        del part
        assert fabric.regions == before


def test_a_range_that_was_freed_and_allocated_again_is_registered_anew(fabric: Fabric) -> None:
    """As is the memory of a storage that was resized away and back: the tensor is the same one."""
    with Ready() as two:
        places = set()
        for turn in range(20):
            x = noise(4 * MIB, seed=turn)
            known, made = x.data_ptr() in places, fabric.registrations
            places.add(x.data_ptr())
            two.write(x)
            assert fabric.registrations > made
            del x
            if known:
                break
        assert known, "the allocator never gave the same range again"
        x = noise(4 * MIB)
        place, idle = x.data_ptr(), fabric.regions
        for _ in range(20):
            two.write(x)
            assert fabric.regions > idle
            x.untyped_storage().resize_(0)
            assert fabric.regions == idle
            x.untyped_storage().resize_(4 * MIB)
            x.copy_(noise(4 * MIB, seed=3))
            if x.data_ptr() == place:
                break
        made = fabric.registrations
        two.write(x)
        assert fabric.registrations > made


def test_a_storage_that_moves_into_shared_memory_leaves_nothing(fabric: Fabric) -> None:
    with Ready() as two:
        before, x = fabric.regions, noise(4 * MIB)
        two.write(x)
        x.share_memory_()
        assert x.is_shared()
        assert fabric.regions == before
        two.write(x)  # of such memory nothing is kept
        until(lambda: fabric.regions == before)


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes_first(fabric: Fabric) -> None:
    size = 4 * MIB
    with Ready(kept=2 * size) as two:
        a, b, c = (noise(size, seed) for seed in range(3))
        empty = fabric.regions
        for x in (a, b, a, c):  # b goes
            two.write(x)
        until(lambda: fabric.regions == empty + 2)
        made = fabric.registrations
        two.write(a)
        two.write(c)
        assert fabric.registrations == made
        two.write(b)
        assert fabric.registrations == made + 1
    with Ready(kept=0) as two:
        empty = fabric.regions
        two.write(a)
        until(lambda: fabric.regions == empty)


def test_what_is_in_use_is_never_dropped(fabric: Fabric) -> None:
    """A bound of less than one tensor, and two of them under way at a time."""
    with Ready(kept=MIB) as two:
        other, second, remote = two.landing(4 * MIB)
        for turn in range(10):
            x, y = noise(4 * MIB, turn), noise(4 * MIB, turn + 100)
            both = [two.near.write(x, two.remote), two.near.write(y, remote)]
            for transfer in both:
                transfer.wait(20)
                assert transfer.report()["fences"] == 0
            assert torch.equal(two.memory, x)
            assert torch.equal(other, y)
        second.close()


def test_a_segment_takes_all_rights_back_though_its_memory_was_kept(fabric: Fabric) -> None:
    with Ready() as two:
        before, x = fabric.regions, noise(4 * MIB)
        two.write(x)
        with two.near.register(x, "read"):
            assert fabric.regions == before  # kept for transfers only
            two.write(x)
        assert fabric.regions == before


def test_where_the_device_has_no_room_what_is_kept_makes_room(fabric: Fabric) -> None:
    with Ready() as two:
        x, y = noise(4 * MIB), noise(4 * MIB, 2)
        two.write(x)
        kept = fabric.regions
        for device in range(4):
            fabric.room(device, 0)
        two.write(y)
        assert fabric.regions <= kept
        for device in range(4):
            fabric.refuse(device, errno.ENOMEM)
        two.write(x)  # in messages


def test_an_engine_that_is_closed_keeps_nothing(fabric: Fabric) -> None:
    until(lambda: fabric.pairs == 0)  # of engines before
    before, x = fabric.regions, noise(4 * MIB)
    with Ready() as two:
        two.write(x)
    until(lambda: fabric.regions == before)
    with Ready() as two:  # the tensor is known from the engine before
        two.write(x)
        made = fabric.registrations
        two.write(x)
        assert fabric.registrations == made
    until(lambda: fabric.regions == before)
    del x


def test_memory_of_which_nobody_knows_the_end_is_not_kept(fabric: Fabric) -> None:
    with Ready() as two:
        before, x = fabric.regions, noise(4 * MIB).numpy().copy()
        two.near.write(x, two.remote).wait(20)
        until(lambda: fabric.regions == before)


def test_tensors_are_freed_on_other_threads_while_transfers_run(fabric: Fabric) -> None:
    with Ready(nbytes=MIB) as two:
        gc.collect()
        before = fabric.regions
        failed: list[BaseException] = []

        def churn(seed: int) -> None:
            try:
                memory, segment, remote = two.landing(MIB)
                for turn in range(20):
                    x = noise(MIB, seed * 100 + turn)
                    two.near.write(x, remote).wait(20)
                    assert torch.equal(memory, x)
                segment.close()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        del threads
        gc.collect()
        until(lambda: fabric.regions == before)


def test_without_the_native_module_nothing_is_kept(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages.torch_native, "exists", lambda: False)
    with Ready() as two:
        before, x = fabric.regions, noise(4 * MIB)
        two.write(x)
        until(lambda: fabric.regions == before)
        assert isinstance(two.near, tent.Engine)
