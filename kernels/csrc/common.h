// What every kernel file shares: types of elements, the launch macro, and the same source for device and host.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(dynamic_shared_bytes)
static inline cudaError_t last_error() { return cudaGetLastError(); }
// Makes what a lane wrote visible to its warp, where warp operations follow that order no memory. The fibres of host.h do
// order it, so they cannot show that such a fence is missing; __syncwarp() itself stands only where they can.
#define WARP_FENCE() __syncwarp()

// Lets a kernel have more than 48 KB of dynamic shared memory.
template <class Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}
#else
#include "host.h"
#define WARP_FENCE() static_cast<void>(0)
template <class Kernel>
cudaError_t allow_shared(Kernel, size_t) { return cudaSuccess; }
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// Codes of element types, as mmmoe/kernels/backend.py sends them.
enum class Type : int { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int kBadArgument = -1;  // refused by a launcher; every other code is a cudaError_t

__host__ __device__ inline float to_float(float v) { return v; }
__host__ __device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__host__ __device__ inline float to_float(__half v) { return __half2float(v); }

template <class T>
__host__ __device__ inline T from_float(float v);
template <>
__host__ __device__ inline float from_float<float>(float v) { return v; }
template <>
__host__ __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16(v); }
template <>
__host__ __device__ inline __half from_float<__half>(float v) { return __float2half(v); }

constexpr unsigned kAll = ~0u;

// Sum and maximum over a warp, in every lane; the order of adding is fixed.
__device__ inline float warp_sum(float v) {
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(kAll, v, m);
  return v;
}
__device__ inline float warp_max(float v) {
  for (int m = 16; m; m >>= 1) v = fmaxf(v, __shfl_xor_sync(kAll, v, m));
  return v;
}

// Calls `run` with a value of the type that mmmoe/kernels/backend.py gave this code.
template <class Run>
int by_type(int64_t code, Run run) {
  switch (static_cast<Type>(code)) {
    case Type::float32: return run(float{});
    case Type::bfloat16: return run(__nv_bfloat16{});
    case Type::float16: return run(__half{});
    default: return kBadArgument;
  }
}
