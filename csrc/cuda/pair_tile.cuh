// A tile of pairs: what a block of threads knows of some rows and some columns, each a row of a
// matrix. All dot products of a tile, and sums of matrix rows weighted by a tile, in float32.
#pragma once

#include "element.cuh"

namespace oldrestore {
namespace pairs {

constexpr int kThreads = 256;
constexpr int kRows = 32;     // of a tile
constexpr int kColumns = 64;  // of a tile
constexpr int kDepth = 32;    // of the vectors, in shared memory at a time
// A line of shared memory: a multiple of 4 for float4, and 9 float4 so that lines change banks.
constexpr int kPitch = 36;
static_assert(kRows <= kPitch && kDepth <= kPitch && kPitch % 4 == 0);

// A weighted sum has kLanes columns at a time; each thread sums kGroupRows rows of a tile.
constexpr int kLanes = 64;
constexpr int kGroupRows = kRows * kLanes / kThreads;
// Eight threads share the work on a row of the tile, one after the other in a warp.
constexpr int kSharers = kThreads / kRows;
constexpr unsigned kAllLanes = ~0u;

struct alignas(16) Tile {
  float at[kColumns][kPitch];  // [column][row]
};

struct alignas(16) Vectors {
  float of_row[kRows][kPitch];
  float of_column[kColumns][kPitch];
};

// The rows of the matrix that the tile is about: -1 where there is none.
struct Members {
  int row[kRows];
  int column[kColumns];
};

// count of a list, or n without a list.
__device__ inline int count_of(const int* count, index_t sample, index_t n) {
  return count ? count[sample] : static_cast<int>(n);
}

template <int N>
__device__ inline void find_members(int (&members)[N], const int* list, int first, int count) {
  const int i = threadIdx.x;
  if (i >= N) return;
  int member = -1;
  if (first + i < count) member = list ? list[first + i] : first + i;
  members[i] = member;
}

template <int N, class T>
__device__ inline void load_vectors(float (&to)[N][kPitch], const T* matrix,
                                    const int (&members)[N], index_t from, index_t depth) {
  const int d = threadIdx.x % kDepth;
#pragma unroll
  for (int i = threadIdx.x / kDepth; i < N; i += kThreads / kDepth) {
    float value = 0.0f;
    if (members[i] >= 0 && from + d < depth)
      value = to_float(matrix[members[i] * depth + from + d]);
    to[i][d] = value;
  }
}

__device__ inline float4 four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

__device__ inline float dot(float4 a, float4 b, float sum) {
  return a.x * b.x + (a.y * b.y + (a.z * b.z + (a.w * b.w + sum)));
}

// tile = rows . columns. Every thread must call it, after a barrier behind which the members are
// known; what it writes is known behind the next one. Sums of kDepth terms are summed in turn,
// which keeps the rounding error of long vectors small.
template <class T>
__device__ inline void multiply(Tile& tile, Vectors& vectors, const Members& members,
                                const T* of_row, const T* of_column, index_t depth) {
  constexpr int kSide = 16;  // threads of a row of the grid of threads over the tile
  constexpr int kMyRows = kRows * kSide / kThreads, kMyColumns = kColumns / kSide;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  float sum[kMyRows][kMyColumns] = {};
  for (index_t from = 0; from < depth; from += kDepth) {
    load_vectors(vectors.of_row, of_row, members.row, from, depth);
    load_vectors(vectors.of_column, of_column, members.column, from, depth);
    __syncthreads();
    float part[kMyRows][kMyColumns] = {};
#pragma unroll
    for (int d = 0; d < kDepth; d += 4) {
      float4 row[kMyRows];
#pragma unroll
      for (int r = 0; r < kMyRows; ++r) row[r] = four(&vectors.of_row[y * kMyRows + r][d]);
#pragma unroll
      for (int c = 0; c < kMyColumns; ++c) {
        const float4 column = four(&vectors.of_column[x + c * kSide][d]);
#pragma unroll
        for (int r = 0; r < kMyRows; ++r) part[r][c] = dot(row[r], column, part[r][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < kMyRows; ++r) {
#pragma unroll
      for (int c = 0; c < kMyColumns; ++c) sum[r][c] += part[r][c];
    }
    __syncthreads();  // before the vectors are overwritten
  }
#pragma unroll
  for (int r = 0; r < kMyRows; ++r) {
#pragma unroll
    for (int c = 0; c < kMyColumns; ++c) tile.at[x + c * kSide][y * kMyRows + r] = sum[r][c];
  }
}

// The sums of a thread: its kGroupRows rows, and of the matrix every kLanes-th column from its own.
template <int kSums>
struct WeightedSum {
  float at[kGroupRows][kSums] = {};

  __device__ static int row() { return threadIdx.x / kLanes * kGroupRows; }
  __device__ static int column(int i) { return threadIdx.x % kLanes + i * kLanes; }

  // += tile weights x rows of the matrix (columns of the tile), from column first_column on.
  template <class T>
  __device__ void add(const Tile& tile, const Members& members, int columns, const T* matrix,
                      index_t width, index_t first_column) {
#pragma unroll 2
    for (int c = 0; c < columns; ++c) {
      const float4 low = four(&tile.at[c][row()]), high = four(&tile.at[c][row() + 4]);
      const float weight[kGroupRows] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      const T* line = matrix + members.column[c] * width + first_column;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if (first_column + column(i) >= width) continue;
        const float value = to_float(line[column(i)]);
#pragma unroll
        for (int r = 0; r < kGroupRows; ++r) at[r][i] += weight[r] * value;
      }
    }
  }

  __device__ void scale(const float (&by_row)[kRows]) {
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
      const float factor = by_row[row() + r];
#pragma unroll
      for (int i = 0; i < kSums; ++i) at[r][i] *= factor;
    }
  }

  template <class T>
  __device__ void write(const Members& members, T* matrix, index_t width,
                        index_t first_column) const {
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
      const index_t member = members.row[row() + r];
      if (member < 0) continue;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const index_t c = first_column + column(i);
        if (c < width) store(matrix + member * width + c, at[r][i]);
      }
    }
  }
};

// Which sample, rows and columns of the result a block has.
struct BlockPlace {
  index_t sample;
  int first_row;
  index_t first_column;
};

__device__ inline BlockPlace place_of_block(index_t n_rows, index_t width, int columns) {
  const index_t strips = (width + columns - 1) / columns, tiles = (n_rows + kRows - 1) / kRows;
  const index_t block = blockIdx.x, rest = block / strips;
  return {rest / tiles, static_cast<int>(rest % tiles * kRows), block % strips * columns};
}

}  // namespace pairs
}  // namespace oldrestore
