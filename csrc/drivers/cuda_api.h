// Stage: drivers. The few functions and constants of libcuda that we use, declared by ourselves so
// that one build runs with and without CUDA, and nothing of a CUDA toolkit is needed to build it.
// A table of plain C functions, filled by dlopen (cuda.h). Thread: as libcuda, any.
// What always holds: a signature here is that of the driver API; tests/test_cuda_driver.py compares
// them with cuda.h where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

// The driver's opaque types, under its names.
struct CUctx_st;
struct CUstream_st;
struct CUevent_st;
struct CUmod_st;
struct CUfunc_st;

namespace tent {

using CudaResult = int;
using CudaDevice = int;
using CudaAddress = unsigned long long;
using CudaContext = CUctx_st*;
using CudaStream = CUstream_st*;
using CudaEvent = CUevent_st*;
using CudaModule = CUmod_st*;
using CudaFunction = CUfunc_st*;
struct CudaUuid {
  char bytes[16];
};
struct CudaIpcName {  // CUipcMemHandle; passed by value
  char bytes[64];
};

inline constexpr CudaResult kCudaSuccess = 0, kCudaOutOfMemory = 2, kCudaNoDevice = 100,
                            kCudaNotReady = 600, kCudaCaptureImplicit = 906;
inline constexpr unsigned kCudaStreamNonBlocking = 1, kCudaEventDisableTiming = 2,
                          kCudaHostRegisterPortable = 1;
inline constexpr int kCudaPointerMemoryType = 2, kCudaPointerBufferId = 7,
                     kCudaPointerDeviceOrdinal = 9, kCudaPointerIpcCapable = 10;
inline constexpr unsigned kCudaIpcLazyPeerAccess = 1;
// Attributes of devices, and what they say of writes by RDMA devices.
inline constexpr int kCudaHostPointerIsDevices = 91, kCudaRdmaFlushOptions = 117,
                     kCudaRdmaWritesOrdering = 118;
inline constexpr int kCudaRdmaFlushByHost = 1, kCudaRdmaOrderedForOwner = 100;
inline constexpr int kCudaFlushCurrentContext = 0, kCudaFlushToOwner = 100;
inline constexpr int kCudaRangeDmaBuf = 1;
inline constexpr unsigned kCudaMemoryTypeDevice = 2;
inline constexpr int kCudaCaptureNone = 0, kCudaCaptureModeRelaxed = 2;

struct CudaApi {
  CudaResult (*init)(unsigned flags);
  CudaResult (*error_string)(CudaResult, const char** text);
  CudaResult (*device_count)(int* count);
  CudaResult (*device_get)(CudaDevice* device, int ordinal);
  CudaResult (*device_attribute)(int* value, int attribute, CudaDevice device);
  CudaResult (*device_pci)(char* text, int bytes, CudaDevice device);
  CudaResult (*device_uuid)(CudaUuid* uuid, CudaDevice device);
  CudaResult (*primary_retain)(CudaContext* context, CudaDevice device);
  CudaResult (*primary_release)(CudaDevice device);
  CudaResult (*push_current)(CudaContext context);
  CudaResult (*pop_current)(CudaContext* context);
  CudaResult (*capture_mode)(int* mode);  // exchanges the thread's mode
  CudaResult (*stream_priorities)(int* least, int* greatest);
  CudaResult (*stream_create)(CudaStream* stream, unsigned flags, int priority);
  CudaResult (*stream_destroy)(CudaStream stream);
  CudaResult (*stream_synchronize)(CudaStream stream);
  CudaResult (*stream_query)(CudaStream stream);
  CudaResult (*stream_capturing)(CudaStream stream, int* status);
  CudaResult (*event_create)(CudaEvent* event, unsigned flags);
  CudaResult (*event_record)(CudaEvent event, CudaStream stream);
  CudaResult (*event_query)(CudaEvent event);
  CudaResult (*event_destroy)(CudaEvent event);
  CudaResult (*copy_in)(CudaAddress to, const void* from, std::size_t bytes, CudaStream stream);
  CudaResult (*copy_out)(void* to, CudaAddress from, std::size_t bytes, CudaStream stream);
  CudaResult (*copy_across)(CudaAddress to, CudaAddress from, std::size_t bytes, CudaStream stream);
  CudaResult (*module_load)(CudaModule* module, const void* code);
  CudaResult (*module_unload)(CudaModule module);
  CudaResult (*module_function)(CudaFunction* function, CudaModule module, const char* name);
  CudaResult (*launch)(CudaFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                       CudaStream stream, void** parameters, void** extra);
  CudaResult (*mem_alloc)(CudaAddress* address, std::size_t bytes);
  CudaResult (*mem_free)(CudaAddress address);
  CudaResult (*address_range)(CudaAddress* base, std::size_t* bytes, CudaAddress address);
  CudaResult (*ipc_export)(CudaIpcName* name, CudaAddress address);
  CudaResult (*ipc_open)(CudaAddress* address, CudaIpcName name, unsigned flags);
  CudaResult (*ipc_close)(CudaAddress address);
  CudaResult (*can_access_peer)(int* can, CudaDevice device, CudaDevice peer);
  CudaResult (*host_register)(void* memory, std::size_t bytes, unsigned flags);
  CudaResult (*host_unregister)(void* memory);
  CudaResult (*pointer_attribute)(void* value, int attribute, CudaAddress address);
  // Null in drivers before 11.7 and 11.3.
  CudaResult (*memory_fd)(void* fd, CudaAddress address, std::size_t bytes, int kind,
                          unsigned long long flags);
  CudaResult (*flush_rdma_writes)(int target, int scope);
};

// Calls `each(member, name)` for every function, with the name that libcuda exports it under.
template <class Api, class Each>
void each_cuda_function(Api& api, Each each) {
  each(api.init, "cuInit");
  each(api.error_string, "cuGetErrorString");
  each(api.device_count, "cuDeviceGetCount");
  each(api.device_get, "cuDeviceGet");
  each(api.device_attribute, "cuDeviceGetAttribute");
  each(api.device_pci, "cuDeviceGetPCIBusId");
  each(api.device_uuid, "cuDeviceGetUuid_v2");
  each(api.primary_retain, "cuDevicePrimaryCtxRetain");
  each(api.primary_release, "cuDevicePrimaryCtxRelease_v2");
  each(api.push_current, "cuCtxPushCurrent_v2");
  each(api.pop_current, "cuCtxPopCurrent_v2");
  each(api.capture_mode, "cuThreadExchangeStreamCaptureMode");
  each(api.stream_priorities, "cuCtxGetStreamPriorityRange");
  each(api.stream_create, "cuStreamCreateWithPriority");
  each(api.stream_destroy, "cuStreamDestroy_v2");
  each(api.stream_synchronize, "cuStreamSynchronize");
  each(api.stream_query, "cuStreamQuery");
  each(api.stream_capturing, "cuStreamIsCapturing");
  each(api.event_create, "cuEventCreate");
  each(api.event_record, "cuEventRecord");
  each(api.event_query, "cuEventQuery");
  each(api.event_destroy, "cuEventDestroy_v2");
  each(api.copy_in, "cuMemcpyHtoDAsync_v2");
  each(api.copy_out, "cuMemcpyDtoHAsync_v2");
  each(api.copy_across, "cuMemcpyDtoDAsync_v2");
  each(api.module_load, "cuModuleLoadData");
  each(api.module_unload, "cuModuleUnload");
  each(api.module_function, "cuModuleGetFunction");
  each(api.launch, "cuLaunchKernel");
  each(api.mem_alloc, "cuMemAlloc_v2");
  each(api.mem_free, "cuMemFree_v2");
  each(api.address_range, "cuMemGetAddressRange_v2");
  each(api.ipc_export, "cuIpcGetMemHandle");
  each(api.ipc_open, "cuIpcOpenMemHandle_v2");
  each(api.ipc_close, "cuIpcCloseMemHandle");
  each(api.can_access_peer, "cuDeviceCanAccessPeer");
  each(api.host_register, "cuMemHostRegister_v2");
  each(api.host_unregister, "cuMemHostUnregister");
  each(api.pointer_attribute, "cuPointerGetAttribute");
}

// Those that may be missing.
template <class Api, class Each>
void each_newer_cuda_function(Api& api, Each each) {
  each(api.memory_fd, "cuMemGetHandleForAddressRange");
  each(api.flush_rdma_writes, "cuFlushGPUDirectRDMAWrites");
}

}  // namespace tent
