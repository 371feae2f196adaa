// Masked softmax attention from listed queries to listed keys, without a matrix of all pairs:
// forward as in Milakov and Gimelshein (arXiv:1805.02867), backward as in Dao et al.
// (arXiv:2205.14135), each result written by one block, so without atomic operations.
#pragma once

#include "pair_tile.cuh"

namespace oldrestore {
namespace nonlocal {

using namespace pairs;

struct Shape {
  index_t batch, n_queries, n_keys, depth, depth_value;
};

struct Lists {
  const int* key_list;
  const int* key_count;
  const float* key_bias;
  const int* query_list;  // null: all queries
  const int* query_count;
};

template <class T>
struct Forward {
  Shape shape;
  Lists lists;
  const T* query;
  const T* key;
  const T* value;
  T* out;
  float* lse;
};

__device__ inline const int* list_of(const int* list, index_t sample, index_t n) {
  return list ? list + sample * n : nullptr;
}

// The largest, or the sum, over the kSharers threads of a row.
__device__ inline float largest_of_row(float x) {
#pragma unroll
  for (int bits = 1; bits < kSharers; bits *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, bits));
  return x;
}
__device__ inline float sum_of_row(float x) {
#pragma unroll
  for (int bits = 1; bits < kSharers; bits *= 2) x += __shfl_xor_sync(kAllLanes, x, bits);
  return x;
}

// Softmax seen so far of the row that this thread shares.
struct Softmax {
  float largest = -INFINITY, sum = 0.0f;

  // Turn the row's scores into weights relative to the largest score so far; returns by how much
  // what was summed before shrinks. At least one column of the tile must exist.
  __device__ float take(Tile& tile, const float* bias, int columns) {
    const int row = threadIdx.x / kSharers, first = threadIdx.x % kSharers;
    float score[kColumns / kSharers], top = largest;
#pragma unroll
    for (int i = 0; i < kColumns / kSharers; ++i) {
      const int c = first + i * kSharers;
      score[i] = c < columns ? tile.at[c][row] + bias[c] : -INFINITY;
      top = fmaxf(top, score[i]);
    }
    top = largest_of_row(top);
    const float shrink = expf(largest - top);
    float weights = 0.0f;
#pragma unroll
    for (int i = 0; i < kColumns / kSharers; ++i) {
      const float weight = expf(score[i] - top);
      tile.at[first + i * kSharers][row] = weight;
      weights += weight;
    }
    sum = sum * shrink + sum_of_row(weights);
    largest = top;
    return shrink;
  }
};

template <int kSums, class T>
__global__ void __launch_bounds__(kThreads, 1) partial_nonlocal_fwd_kernel(Forward<T> a) {
  __shared__ Vectors vectors;
  __shared__ Tile tile;
  __shared__ Members members;
  __shared__ float factor[kRows];
  const Shape& shape = a.shape;
  const BlockPlace at = place_of_block(shape.n_queries, shape.depth_value, kSums * kLanes);
  const int queries = count_of(a.lists.query_count, at.sample, shape.n_queries);
  if (at.first_row >= queries) return;
  const int keys = a.lists.key_count[at.sample];
  const T* query = a.query + at.sample * shape.n_queries * shape.depth;
  const T* key = a.key + at.sample * shape.n_keys * shape.depth;
  const T* value = a.value + at.sample * shape.n_keys * shape.depth_value;
  const int* query_list = list_of(a.lists.query_list, at.sample, shape.n_queries);
  const int* key_list = list_of(a.lists.key_list, at.sample, shape.n_keys);
  const float* bias = a.lists.key_bias + at.sample * shape.n_keys;
  const int row = threadIdx.x / kSharers;

  find_members(members.row, query_list, at.first_row, queries);
  WeightedSum<kSums> out;
  Softmax softmax;
  for (int first = 0; first < keys; first += kColumns) {
    const int columns = min(kColumns, keys - first);
    find_members(members.column, key_list, first, keys);
    __syncthreads();
    multiply(tile, vectors, members, query, key, shape.depth);
    __syncthreads();
    const float shrink = softmax.take(tile, bias + first, columns);
    if (threadIdx.x % kSharers == 0) factor[row] = shrink;
    __syncthreads();
    out.scale(factor);
    out.add(tile, members, columns, value, shape.depth_value, at.first_column);
    __syncthreads();  // before tile, members and factor are overwritten
  }
  if (threadIdx.x % kSharers == 0) factor[row] = keys > 0 ? 1.0f / softmax.sum : 0.0f;
  __syncthreads();
  out.scale(factor);
  out.write(members, a.out + at.sample * shape.n_queries * shape.depth_value, shape.depth_value,
            at.first_column);
  if (at.first_column == 0 && threadIdx.x % kSharers == 0 && members.row[row] >= 0) {
    const float lse = keys > 0 ? softmax.largest + logf(softmax.sum) : 0.0f;
    a.lse[at.sample * shape.n_queries + members.row[row]] = lse;
  }
}

template <class T>
struct Backward {
  Shape shape;
  Lists lists;
  const T* query;
  const T* key;
  const T* value;
  const T* out;
  const T* grad;
  const float* lse;
  float* delta;  // (B, M): sum of out * grad
  T* grad_query;
  T* grad_key;
  T* grad_value;
};

constexpr int kWarp = 32;

// delta of one query a warp.
template <class T>
__global__ void __launch_bounds__(kThreads) partial_nonlocal_delta_kernel(Backward<T> a) {
  const index_t query = blockIdx.x * static_cast<index_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const index_t width = a.shape.depth_value, n = a.shape.batch * a.shape.n_queries;
  float sum = 0.0f;
  if (query < n) {
    for (index_t e = lane; e < width; e += kWarp) {
      sum += to_float(a.out[query * width + e]) * to_float(a.grad[query * width + e]);
    }
  }
#pragma unroll
  for (int bits = 1; bits < kWarp; bits *= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
  if (query < n && lane == 0) a.delta[query] = sum;
}

enum class Wanted { grad_query, grad_key, grad_value };

// Turn the scores in tile, and of grad_query and grad_key the products grad . value in products,
// into the weights of the wanted sum: the softmax weight, or its gradient before the softmax.
template <Wanted kWanted>
__device__ inline void weigh(Tile& tile, const Tile& products, const Members& members, int columns,
                             const float* bias, const float* lse, const float* delta) {
  const int row = threadIdx.x / kSharers;
#pragma unroll
  for (int i = 0; i < kColumns / kSharers; ++i) {
    const int c = threadIdx.x % kSharers + i * kSharers;
    float weight = 0.0f;
    if (c < columns && members.row[row] >= 0) {
      const bool row_is_query = kWanted == Wanted::grad_query;
      const int query = row_is_query ? members.row[row] : members.column[c];
      weight = expf(tile.at[c][row] + bias[row_is_query ? c : row] - lse[query]);
      if (kWanted != Wanted::grad_value) weight *= products.at[c][row] - delta[query];
    }
    tile.at[c][row] = weight;
  }
}

// One of the three gradients. Its rows are queries and its columns keys, or the other way round.
template <Wanted kWanted, int kSums, class T>
__global__ void __launch_bounds__(kThreads, 1) partial_nonlocal_bwd_kernel(Backward<T> a) {
  __shared__ Vectors vectors;
  __shared__ Tile tile;
  __shared__ Tile products;
  __shared__ Members members;
  constexpr bool kRowIsQuery = kWanted == Wanted::grad_query;
  const Shape& shape = a.shape;
  const index_t width = kWanted == Wanted::grad_value ? shape.depth_value : shape.depth;
  const index_t n_rows = kRowIsQuery ? shape.n_queries : shape.n_keys;
  const BlockPlace at = place_of_block(n_rows, width, kSums * kLanes);
  const int queries = count_of(a.lists.query_count, at.sample, shape.n_queries);
  const int keys = a.lists.key_count[at.sample];
  const int rows = kRowIsQuery ? queries : keys, all_columns = kRowIsQuery ? keys : queries;
  if (at.first_row >= rows) return;
  const T* query = a.query + at.sample * shape.n_queries * shape.depth;
  const T* key = a.key + at.sample * shape.n_keys * shape.depth;
  const T* value = a.value + at.sample * shape.n_keys * shape.depth_value;
  const T* grad = a.grad + at.sample * shape.n_queries * shape.depth_value;
  const int* query_list = list_of(a.lists.query_list, at.sample, shape.n_queries);
  const int* key_list = list_of(a.lists.key_list, at.sample, shape.n_keys);
  const float* bias = a.lists.key_bias + at.sample * shape.n_keys;
  const float* lse = a.lse + at.sample * shape.n_queries;
  const float* delta = a.delta + at.sample * shape.n_queries;
  const T* source = kWanted == Wanted::grad_query ? key
                    : kWanted == Wanted::grad_key ? query
                                                  : grad;

  find_members(members.row, kRowIsQuery ? query_list : key_list, at.first_row, rows);
  __syncthreads();  // without a column to sum over there is no other barrier
  WeightedSum<kSums> sum;
  for (int first = 0; first < all_columns; first += kColumns) {
    const int columns = min(kColumns, all_columns - first);
    find_members(members.column, kRowIsQuery ? key_list : query_list, first, all_columns);
    __syncthreads();
    multiply(tile, vectors, members, kRowIsQuery ? query : key, kRowIsQuery ? key : query,
             shape.depth);
    if (kWanted != Wanted::grad_value) {
      multiply(products, vectors, members, kRowIsQuery ? grad : value, kRowIsQuery ? value : grad,
               shape.depth_value);
    }
    __syncthreads();
    weigh<kWanted>(tile, products, members, columns, bias + (kRowIsQuery ? first : at.first_row),
                   lse, delta);
    __syncthreads();
    sum.add(tile, members, columns, source, width, at.first_column);
    __syncthreads();  // before tile and members are overwritten
  }
  T* to = kWanted == Wanted::grad_query ? a.grad_query
          : kWanted == Wanted::grad_key ? a.grad_key
                                        : a.grad_value;
  sum.write(members, to + at.sample * n_rows * width, width, at.first_column);
}

}  // namespace nonlocal
}  // namespace oldrestore
