// The element types of all kernels, each read and written as float, and the type of every index.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace oldrestore {

using index_t = long long;  // maps of 2^31 elements and more are indexed

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ inline void store(float* to, float x) {
  *to = x;
}
__device__ inline void store(__half* to, float x) {
  *to = __float2half_rn(x);
}
__device__ inline void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

}  // namespace oldrestore
