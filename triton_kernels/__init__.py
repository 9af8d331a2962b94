"""Triton kernels of the GPU paths, each beside a torch reference that defines what it computes.

`pack` gathers scattered blocks of many layers into one contiguous staging area, `unpack` scatters
them into blocks again, perhaps of another size, another rank's range of heads or another layout.
One file per kernel; `tests/test_<kernel>.py` and `benchmarks/kernels.py` go with it.
"""

from .pack import pack, pack_reference
from .paged import Packed, Paged
from .unpack import unpack, unpack_reference

__all__ = ["Packed", "Paged", "pack", "pack_reference", "unpack", "unpack_reference"]
