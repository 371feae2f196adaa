// Index lists: which of N cells a mask selects, in ascending order, counted on the device.
#pragma once

#include "element.cuh"

namespace oldrestore {
namespace index_list {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;

template <class T>
struct Arguments {
  const T* mask;  // (B, N)
  index_t n;
  bool damaged;  // list mask > 0, else mask < 1
  int* list;     // (B, N), of which the first count are written
  int* count;    // (B,)
  float* bias;   // (B, N): log(1 - mask) of the listed, or null
};

// One block a sample.
template <class T>
__global__ void __launch_bounds__(kThreads) index_list_kernel(Arguments<T> a) {
  __shared__ int of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const index_t start = blockIdx.x * a.n;
  int listed = 0;
  for (index_t first = 0; first < a.n; first += kThreads) {
    const index_t i = first + threadIdx.x;
    const float mask = i < a.n ? to_float(a.mask[start + i]) : 0.0f;
    const bool selected = i < a.n && (a.damaged ? mask > 0.0f : mask < 1.0f);
    const unsigned in_warp = __ballot_sync(~0u, selected);
    if (lane == 0) of_warp[warp] = __popc(in_warp);
    __syncthreads();
    int at = listed + __popc(in_warp & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += of_warp[w];
      listed += of_warp[w];
    }
    if (selected) {
      a.list[start + at] = static_cast<int>(i);
      if (a.bias) a.bias[start + at] = log1pf(-mask);
    }
    __syncthreads();  // before of_warp is written again
  }
  if (threadIdx.x == 0) a.count[blockIdx.x] = listed;
}

}  // namespace index_list
}  // namespace oldrestore
