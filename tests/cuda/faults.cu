// Small kernels, each right or with one planted fault, to prove that the shim finds such faults.
// Prints "right", "wrong" or the error of the launch.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr int kThreads = 64;
constexpr int kRounds = 4;

enum class Fault {
  none,
  no_barrier_before_read,
  no_barrier_before_overwrite,
  no_warp_barrier,
  no_barrier_between_warps,
  divergent_barrier,
  barrier_of_two_branches,
  barrier_after_exit,
  lane_has_exited,
  lane_waits_elsewhere,
  lane_not_in_its_mask,
  unwritten_shared,
  blocks_depend,
  too_many_threads,
  shared_out_of_bounds,
  global_out_of_bounds,
  misaligned_vector,
  integer_overflow,
};

const char* const kNames[] = {
    "none",
    "no_barrier_before_read",
    "no_barrier_before_overwrite",
    "no_warp_barrier",
    "no_barrier_between_warps",
    "divergent_barrier",
    "barrier_of_two_branches",
    "barrier_after_exit",
    "lane_has_exited",
    "lane_waits_elsewhere",
    "lane_not_in_its_mask",
    "unwritten_shared",
    "blocks_depend",
    "too_many_threads",
    "shared_out_of_bounds",
    "global_out_of_bounds",
    "misaligned_vector",
    "integer_overflow",
};

// to[i] = from[n - 1 - i] + the sum of the warp's lanes, per block of kThreads; twice over.
__global__ void mirror_kernel(Fault fault, const float* from, float* to) {
  __shared__ float line[kThreads];
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  if (fault == Fault::barrier_after_exit && t == 5) return;
  float value = from[i];
  for (int round = 0; round < 2; ++round) {
    const bool writes = fault != Fault::unwritten_shared || t != 7;
    if (writes) line[t] = value;
    if (fault == Fault::divergent_barrier) {
      if (t % 2 == 0) __syncthreads();
    } else if (fault == Fault::barrier_of_two_branches) {
      if (t % 2 == 0) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if (fault != Fault::no_barrier_before_read) {
      __syncthreads();
    }
    const float* volatile mirrored = line + kThreads - 1;  // of what, the compiler forgets
    value = mirrored[fault == Fault::shared_out_of_bounds && t == 0 ? 1 : -t];
    if (fault != Fault::no_barrier_before_overwrite) __syncthreads();
  }
  if (fault == Fault::lane_has_exited && t == 40) return;
  if (fault == Fault::lane_waits_elsewhere && t == 3) __syncthreads();
  const unsigned mask = fault == Fault::lane_not_in_its_mask && t == 9 ? ~(1u << 9) : ~0u;
  for (int bits = 1; bits < 32; bits *= 2) value += __shfl_xor_sync(mask, value, bits);
  line[t] = value;
  if (fault != Fault::no_warp_barrier) __syncwarp();
  value = line[t ^ 1];
  if (fault == Fault::global_out_of_bounds && i == 0) value += from[gridDim.x * kThreads];
  if (fault == Fault::misaligned_vector) {
    value += reinterpret_cast<const float4*>(from + 1)->x - from[1];
  }
  volatile int largest = 2147483647;
  if (fault == Fault::integer_overflow && largest + t == 0) value += 1.0f;
  to[i] = value;
  if (fault == Fault::blocks_depend && blockIdx.x > 0 && t == 0) {
    to[i] += to[i - kThreads] == 0 ? 1.0f : 0.0f;
  }
}

// to[i] = the sum over rounds of 32 + round from each warp, which may not write its part again
// before all have read it; warps in step with each other hide that.
__global__ void count_kernel(Fault fault, float* to) {
  __shared__ int of_warp[kThreads / 32];
  const int t = threadIdx.x;
  int sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int all = __popc(__ballot_sync(~0u, true));
    if (t % 32 == 0) of_warp[t / 32] = all + round;
    __syncthreads();
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warp[warp];
    if (fault != Fault::no_barrier_between_warps) __syncthreads();
  }
  to[blockIdx.x * kThreads + t] = static_cast<float>(sum);
}

Fault fault_of(const char* name) {
  int i = 0;
  while (std::strcmp(kNames[i], name) != 0) ++i;
  return static_cast<Fault>(i);
}

}  // namespace

int main(int, char** arguments) {
  const Fault fault = fault_of(arguments[1]);
  constexpr int kBlocks = 3, kAll = kBlocks * kThreads;
  std::vector<float> from(kAll), sums(kAll), counts(kAll);
  for (int i = 0; i < kAll; ++i) from[i] = static_cast<float>(i + 1);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(fault == Fault::too_many_threads ? 2048 : kThreads);
  cudaError_t error = cudaLaunchKernelEx(&config, mirror_kernel, fault, from.data(), sums.data());
  if (error == cudaSuccess) {
    error = cudaLaunchKernelEx(&config, count_kernel, fault, counts.data());
  }
  if (error != cudaSuccess) {
    std::puts(cudaGetErrorString(error));
    return 0;
  }
  float count = 0;
  for (int round = 0; round < kRounds; ++round) count += (32 + round) * (kThreads / 32);
  bool right = true;
  for (int i = 0; i < kAll; ++i) {
    float sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += from[i / 32 * 32 + lane];
    right = right && sums[i] == sum && counts[i] == count;
  }
  std::puts(right ? "right" : "wrong");
  return 0;
}
