"""Tests of csrc/drivers/cuda_api.h: our declarations are those of the driver API."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ["/usr/local/cuda/include", "/opt/cuda/include", "/usr/include"]
CHECK = r"""
#include <cuda.h>
#include <type_traits>
#include "drivers/cuda_api.h"

template <class A, class B>
constexpr bool alike = std::is_same_v<A, B> ||
                       (sizeof(A) == sizeof(B) && (std::is_enum_v<A> || std::is_enum_v<B>)) ||
                       (std::is_pointer_v<A> && std::is_pointer_v<B>) ||
                       (sizeof(A) == sizeof(B) && std::is_class_v<A> && std::is_class_v<B>);
template <class R, class... A, class S, class... B>
constexpr bool same(R (*)(A...), S (*)(B...)) {
  if constexpr (sizeof...(A) != sizeof...(B)) return false;
  else return alike<R, S> && (alike<A, B> && ...);
}
constexpr tent::CudaApi api{};
static_assert(sizeof(tent::CudaUuid) == sizeof(CUuuid));
static_assert(sizeof(tent::CudaAddress) == sizeof(CUdeviceptr));
static_assert(tent::kCudaOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(tent::kCudaNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(tent::kCudaNotReady == CUDA_ERROR_NOT_READY);
static_assert(tent::kCudaCaptureImplicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(tent::kCudaStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(tent::kCudaEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(tent::kCudaHostRegisterPortable == CU_MEMHOSTREGISTER_PORTABLE);
static_assert(tent::kCudaPointerMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(tent::kCudaPointerDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(tent::kCudaPointerBufferId == CU_POINTER_ATTRIBUTE_BUFFER_ID);
static_assert(tent::kCudaPointerIpcCapable == CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
static_assert(tent::kCudaHostPointerIsDevices ==
              CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
static_assert(tent::kCudaRdmaFlushOptions ==
              CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
static_assert(tent::kCudaRdmaWritesOrdering ==
              CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING);
static_assert(tent::kCudaRdmaFlushByHost == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST);
static_assert(tent::kCudaRdmaOrderedForOwner == CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER);
static_assert(tent::kCudaFlushCurrentContext ==
              CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX);
static_assert(tent::kCudaFlushToOwner == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER);
static_assert(tent::kCudaRangeDmaBuf == CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD);
static_assert(tent::kCudaIpcLazyPeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
static_assert(sizeof(tent::CudaIpcName) == sizeof(CUipcMemHandle));
static_assert(tent::kCudaMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
static_assert(tent::kCudaCaptureNone == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(tent::kCudaCaptureModeRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
"""


def functions() -> dict[str, str]:
    """Our member of each function that libcuda exports."""
    text = (ROOT / "csrc/drivers/cuda_api.h").read_text()
    return {name: member for member, name in re.findall(r'each\(api\.(\w+), "(\w+)"\)', text)}


def test_every_function_is_looked_up() -> None:
    text = (ROOT / "csrc/drivers/cuda_api.h").read_text()
    declared = re.findall(r"CudaResult \(\*(\w+)\)", text)
    assert sorted(declared) == sorted(functions().values())
    assert len(declared) > 20


def test_the_declarations_are_those_of_cuda_h(tmp_path: Path) -> None:
    triton = importlib.util.find_spec("triton")
    places = [*PLACES]
    if triton is not None and triton.origin is not None:  # It brings the header.
        places.append(str(Path(triton.origin).parent / "backends/nvidia/include"))
    folder = next((place for place in places if (Path(place) / "cuda.h").is_file()), None)
    if folder is None:
        pytest.skip("there is no cuda.h on this machine")
    asserts = [
        f"static_assert(same(decltype(tent::CudaApi::{member})(nullptr), "
        f"decltype(&::{name})(nullptr)));"
        for name, member in functions().items()
    ]
    source = tmp_path / "check.cpp"
    source.write_text(CHECK + "\n".join(asserts))
    command = ["g++", "-std=c++20", "-fsyntax-only", f"-I{ROOT / 'csrc'}", "-isystem", folder]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
