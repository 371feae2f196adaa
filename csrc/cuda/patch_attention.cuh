// The search of the patch attention: for each damaged patch the intact one of the highest cosine
// similarity, which of unit vectors is the dot product. The keys are shared among the blocks in
// kSplits parts at most, so that few damaged patches still fill the device.
#pragma once

#include "pair_tile.cuh"

namespace oldrestore {
namespace patches {

using namespace pairs;

constexpr index_t kMaxSplits = 32;

__host__ __device__ inline index_t splits_of(index_t n) {
  const index_t tiles = (n + kColumns - 1) / kColumns;
  return tiles < kMaxSplits ? tiles : kMaxSplits;
}

struct Search {
  index_t n, depth;
  const float* patches;  // (B, N, D), of length 1
  const int* query_list;
  const int* query_count;
  const int* key_list;
  const int* key_count;
  float* best_score;  // (B, N, splits), by place in the list of queries
  int* best_index;    // likewise; -1: no key
  long long* source;  // (B, N)
};

struct Best {
  float score;
  int index;
};

__device__ inline Best better(Best a, Best b) {
  const bool second = b.index >= 0 && (a.index < 0 || b.score > a.score ||
                                       (b.score == a.score && b.index < a.index));
  return second ? b : a;
}

// The best key of every query among one part of the keys.
__global__ void __launch_bounds__(kThreads, 1) patch_attention_search_kernel(Search a) {
  __shared__ Vectors vectors;
  __shared__ Tile tile;
  __shared__ Members members;
  const index_t splits = splits_of(a.n), tiles = (a.n + kRows - 1) / kRows;
  const index_t split = blockIdx.x % splits, sample = blockIdx.x / splits / tiles;
  const int first_row = static_cast<int>(blockIdx.x / splits % tiles * kRows);
  const int queries = a.query_count[sample], keys = a.key_count[sample];
  if (first_row >= queries) return;
  const float* of_sample = a.patches + sample * a.n * a.depth;
  find_members(members.row, a.query_list + sample * a.n, first_row, queries);
  const int row = threadIdx.x / kSharers;
  Best best = {0.0f, -1};
  for (index_t first = split * kColumns; first < keys; first += splits * kColumns) {
    find_members(members.column, a.key_list + sample * a.n, static_cast<int>(first), keys);
    __syncthreads();
    multiply(tile, vectors, members, of_sample, of_sample, a.depth);
    __syncthreads();
    for (int c = threadIdx.x % kSharers; c < kColumns; c += kSharers) {
      best = better(best, {tile.at[c][row], members.column[c]});
    }
    __syncthreads();  // before tile and members are overwritten
  }
#pragma unroll
  for (int bits = 1; bits < kSharers; bits *= 2) {
    const float score = __shfl_xor_sync(kAllLanes, best.score, bits);
    const int index = __shfl_xor_sync(kAllLanes, best.index, bits);
    best = better(best, {score, index});
  }
  if (threadIdx.x % kSharers > 0 || first_row + row >= queries) return;
  const index_t out = (sample * a.n + first_row + row) * splits + split;
  a.best_score[out] = best.score;
  a.best_index[out] = best.index;
}

// The best of all parts; one thread a query, in blocks that belong to one sample each.
__global__ void __launch_bounds__(kThreads) patch_attention_merge_kernel(Search a) {
  const index_t blocks = (a.n + kThreads - 1) / kThreads;
  const index_t sample = blockIdx.x / blocks;
  const index_t query = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (query >= a.query_count[sample]) return;
  const index_t splits = splits_of(a.n), from = (sample * a.n + query) * splits;
  Best best = {0.0f, -1};
  for (index_t s = 0; s < splits; ++s) {
    best = better(best, {a.best_score[from + s], a.best_index[from + s]});
  }
  a.source[sample * a.n + a.query_list[sample * a.n + query]] = best.index;
}

}  // namespace patches
}  // namespace oldrestore
