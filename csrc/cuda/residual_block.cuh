// What the residual block does round its two convolutions, on maps (B, H, W, C), channels last:
// the statistics of the instance norm; norm + leaky ReLU + reflect padding, or norm + residual, in
// one pass; and the gradient of those. A block of threads holds 32 channels and 8 pixels at a time
// of a chunk of pixels, so that each thread keeps to one channel.
#pragma once

#include "element.cuh"

namespace oldrestore {
namespace residual {

constexpr int kLanes = 32;
constexpr int kRows = 8;
constexpr int kThreads = kLanes * kRows;
constexpr index_t kChunk = 256;  // pixels of a block: 32 a thread

struct Shape {
  index_t batch, height, width, channels;
  __host__ __device__ index_t pixels() const { return height * width; }
};

// Which sample, chunk of pixels and channel this thread has.
struct Place {
  index_t sample, chunk, channel;
};

__device__ inline Place place_of_thread(index_t chunks, index_t channels) {
  const index_t tiles = (channels + kLanes - 1) / kLanes;
  const index_t block = blockIdx.x, rest = block / tiles;
  return {rest / chunks, rest % chunks, block % tiles * kLanes + threadIdx.x};
}

__device__ inline index_t smaller(index_t a, index_t b) {
  return a < b ? a : b;
}

__host__ __device__ inline index_t chunks_of(index_t pixels) {
  return (pixels + kChunk - 1) / kChunk;
}

// Count, mean and sum of squared deviations; merged as Chan, Golub and LeVeque (1979) do, which
// stays accurate where the mean exceeds the deviation.
struct Moments {
  float count, mean, squares;
};

__device__ inline Moments merged(Moments a, Moments b) {
  const float count = a.count + b.count;
  if (count == 0.0f) return a;
  const float delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share};
}

// The moments of all rows of the block, in row 0. Every thread of the block must call it.
__device__ inline Moments merged_over_rows(Moments mine) {
  __shared__ Moments of_row[kRows][kLanes];
  of_row[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.y > 0) return mine;
  for (int row = 1; row < kRows; ++row) mine = merged(mine, of_row[row][threadIdx.x]);
  return mine;
}

// Mean and sum of squares of each chunk: chunk_mean and chunk_squares are (B, chunks, C).
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    residual_block_moments_kernel(const T* y, Shape shape, float* chunk_mean,
                                  float* chunk_squares) {
  const index_t pixels = shape.pixels(), chunks = chunks_of(pixels);
  const Place at = place_of_thread(chunks, shape.channels);
  const bool exists = at.channel < shape.channels;
  Moments sum = {0.0f, 0.0f, 0.0f};
  if (exists) {
    const index_t end = smaller((at.chunk + 1) * kChunk, pixels);
    const T* from = y + at.sample * pixels * shape.channels + at.channel;
#pragma unroll 4
    for (index_t p = at.chunk * kChunk + threadIdx.y; p < end; p += kRows) {
      const float value = to_float(from[p * shape.channels]), delta = value - sum.mean;
      sum.count += 1.0f;
      sum.mean += delta / sum.count;
      sum.squares += delta * (value - sum.mean);
    }
  }
  sum = merged_over_rows(sum);
  if (!exists || threadIdx.y > 0) return;
  const index_t out = (at.sample * chunks + at.chunk) * shape.channels + at.channel;
  chunk_mean[out] = sum.mean;
  chunk_squares[out] = sum.squares;
}

// mean and rstd (B, C) from the moments of the chunks; one block a sample and 32 channels.
__global__ void __launch_bounds__(kThreads, 1)
    residual_block_statistics_kernel(const float* chunk_mean, const float* chunk_squares,
                                     Shape shape, float eps, float* mean, float* rstd) {
  const index_t pixels = shape.pixels(), chunks = chunks_of(pixels);
  const Place at = place_of_thread(1, shape.channels);
  const bool exists = at.channel < shape.channels;
  Moments sum = {0.0f, 0.0f, 0.0f};
  for (index_t chunk = threadIdx.y; exists && chunk < chunks; chunk += kRows) {
    const index_t from = (at.sample * chunks + chunk) * shape.channels + at.channel;
    const float count = static_cast<float>(smaller(kChunk, pixels - chunk * kChunk));
    sum = merged(sum, {count, chunk_mean[from], chunk_squares[from]});
  }
  sum = merged_over_rows(sum);
  if (!exists || threadIdx.y > 0) return;
  const index_t out = at.sample * shape.channels + at.channel;
  mean[out] = sum.mean;
  rstd[out] = 1.0f / sqrtf(sum.squares / static_cast<float>(pixels) + eps);
}

// Row and column of the pixels of a chunk that a thread visits, kRows apart.
struct Walk {
  index_t row, column, width;
  __device__ Walk(index_t pixel, index_t width)
      : row(pixel / width), column(pixel % width), width(width) {}
  __device__ void step() {
    column += kRows;
    while (column >= width) {
      column -= width;
      ++row;
    }
  }
};

// The pixel that a padded position shows: -1 -> 1 and n -> n - 2.
__device__ inline index_t reflected(index_t i, index_t n) {
  if (i < 0) return -i;
  return i < n ? i : 2 * n - 2 - i;
}

// Leaky ReLU, or none.
struct Activation {
  bool exists;
  float slope;
  // exactly 0 of anything for a ReLU
  __device__ float scaled(float x) const { return slope == 0.0f ? 0.0f : x * slope; }
};

template <class T>
struct Forward {
  Shape shape;
  const T* y;         // (B, H, W, C)
  const float* mean;  // (B, C), or null: no norm
  const float* rstd;  // (B, C)
  const T* residual;  // (B, H, W, C), added, or null; needs pad == 0
  T* out;             // (B, H + 2 pad, W + 2 pad, C)
  int pad;            // 0, or 1: a border of reflected pixels
  Activation activation;
};

// out = pad(activation((y - mean) * rstd)) + residual
template <class T>
__global__ void __launch_bounds__(kThreads, 1) residual_block_fwd_kernel(Forward<T> a) {
  const Shape shape = a.shape;
  const index_t channels = shape.channels, width = shape.width + 2 * a.pad;
  const index_t pixels = (shape.height + 2 * a.pad) * width;
  const Place at = place_of_thread(chunks_of(pixels), channels);
  if (at.channel >= channels) return;
  const index_t statistic = at.sample * channels + at.channel;
  const float mean = a.mean ? a.mean[statistic] : 0.0f, rstd = a.mean ? a.rstd[statistic] : 1.0f;
  const T* from = a.y + at.sample * shape.pixels() * channels + at.channel;
  const index_t start = at.sample * pixels * channels + at.channel;
  const index_t first = at.chunk * kChunk + threadIdx.y;
  const index_t end = smaller((at.chunk + 1) * kChunk, pixels);
  Walk walk(first, width);
  for (index_t p = first; p < end; p += kRows, walk.step()) {
    const index_t row = reflected(walk.row - a.pad, shape.height);
    const index_t column = reflected(walk.column - a.pad, shape.width);
    float value = (to_float(from[(row * shape.width + column) * channels]) - mean) * rstd;
    if (a.activation.exists && value < 0.0f) value = a.activation.scaled(value);
    const index_t out = start + p * channels;
    if (a.residual) value += to_float(a.residual[out]);
    store(a.out + out, value);
  }
}

template <class T>
struct Backward {
  Shape shape;
  const T* y;                   // (B, H, W, C), as in Forward; null without norm and activation
  const float* mean;            // (B, C), or null: no norm
  const float* rstd;            // (B, C)
  const T* grad;                // (B, H + 2 pad, W + 2 pad, C): of the padded result
  const float* mean_grad;       // (B, C): over the pixels, of the gradient after the norm,
  const float* mean_grad_norm;  // (B, C): and of its product with what the norm gave
  T* out;                       // (B, H, W, C)
  int pad;
  Activation activation;
};

// The gradient of a pixel: the sum over all positions of the padded map that show it.
template <class T>
__device__ inline float folded(const T* grad, index_t row, index_t column, const Shape& shape,
                               int pad) {
  const index_t width = shape.width + 2 * pad, channels = shape.channels;
  const index_t at = ((row + pad) * width + column + pad) * channels;
  if (pad == 0) return to_float(grad[at]);
  const bool rows[3] = {row == 1, true, row == shape.height - 2};
  const bool columns[3] = {column == 1, true, column == shape.width - 2};
  const index_t from_row[3] = {0, row + 1, shape.height + 1};
  const index_t from_column[3] = {0, column + 1, shape.width + 1};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (!rows[i] || !columns[j]) continue;
      sum += to_float(grad[(from_row[i] * width + from_column[j]) * channels]);
    }
  }
  return sum;
}

// What the norm gave at a pixel, and the gradient there.
struct Gradient {
  float normed, grad;
};

template <class T>
__device__ inline Gradient gradient_at(const Backward<T>& a, const Place& at, const Walk& walk,
                                       float mean, float rstd) {
  const index_t channels = a.shape.channels, width = a.shape.width + 2 * a.pad;
  const index_t padded = (a.shape.height + 2 * a.pad) * width;
  const T* grad = a.grad + at.sample * padded * channels + at.channel;
  Gradient found = {0.0f, folded(grad, walk.row, walk.column, a.shape, a.pad)};
  if (!a.y) return found;
  const index_t pixel = at.sample * a.shape.pixels() + walk.row * a.shape.width + walk.column;
  found.normed = (to_float(a.y[pixel * channels + at.channel]) - mean) * rstd;
  if (a.activation.exists && !(found.normed > 0.0f)) found.grad = a.activation.scaled(found.grad);
  return found;
}

// Over pixels: of the gradient after the norm, and of its product with what the norm gave.
struct Sums {
  float grad, grad_norm;
};

// The sums of all rows of the block, in row 0. Every thread of the block must call it.
__device__ inline Sums summed_over_rows(Sums mine) {
  __shared__ Sums of_row[kRows][kLanes];
  of_row[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.y > 0) return mine;
  for (int row = 1; row < kRows; ++row) {
    mine.grad += of_row[row][threadIdx.x].grad;
    mine.grad_norm += of_row[row][threadIdx.x].grad_norm;
  }
  return mine;
}

// The sums of each chunk: chunk_grad and chunk_grad_norm are (B, chunks, C). Needs the norm.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    residual_block_sums_kernel(Backward<T> a, float* chunk_grad, float* chunk_grad_norm) {
  const index_t channels = a.shape.channels, pixels = a.shape.pixels();
  const index_t chunks = chunks_of(pixels);
  const Place at = place_of_thread(chunks, channels);
  const bool exists = at.channel < channels;
  Sums sum = {0.0f, 0.0f};
  if (exists) {
    const index_t statistic = at.sample * channels + at.channel;
    const float mean = a.mean[statistic], rstd = a.rstd[statistic];
    const index_t first = at.chunk * kChunk + threadIdx.y;
    const index_t end = smaller((at.chunk + 1) * kChunk, pixels);
    Walk walk(first, a.shape.width);
    for (index_t p = first; p < end; p += kRows, walk.step()) {
      const Gradient found = gradient_at(a, at, walk, mean, rstd);
      sum.grad += found.grad;
      sum.grad_norm += found.grad * found.normed;
    }
  }
  sum = summed_over_rows(sum);
  if (!exists || threadIdx.y > 0) return;
  const index_t out = (at.sample * chunks + at.chunk) * channels + at.channel;
  chunk_grad[out] = sum.grad;
  chunk_grad_norm[out] = sum.grad_norm;
}

// Their means (B, C) over all pixels; one block a sample and 32 channels.
__global__ void __launch_bounds__(kThreads, 1)
    residual_block_means_kernel(const float* chunk_grad, const float* chunk_grad_norm, Shape shape,
                                float* mean_grad, float* mean_grad_norm) {
  const index_t pixels = shape.pixels(), chunks = chunks_of(pixels);
  const Place at = place_of_thread(1, shape.channels);
  const bool exists = at.channel < shape.channels;
  Sums sum = {0.0f, 0.0f};
  for (index_t chunk = threadIdx.y; exists && chunk < chunks; chunk += kRows) {
    const index_t from = (at.sample * chunks + chunk) * shape.channels + at.channel;
    sum.grad += chunk_grad[from];
    sum.grad_norm += chunk_grad_norm[from];
  }
  sum = summed_over_rows(sum);
  if (!exists || threadIdx.y > 0) return;
  const index_t out = at.sample * shape.channels + at.channel;
  mean_grad[out] = sum.grad / static_cast<float>(pixels);
  mean_grad_norm[out] = sum.grad_norm / static_cast<float>(pixels);
}

// out = the gradient of y, from that of pad(activation((y - mean) * rstd))
template <class T>
__global__ void __launch_bounds__(kThreads, 1) residual_block_bwd_kernel(Backward<T> a) {
  const index_t channels = a.shape.channels, pixels = a.shape.pixels();
  const Place at = place_of_thread(chunks_of(pixels), channels);
  if (at.channel >= channels) return;
  const index_t statistic = at.sample * channels + at.channel;
  const float mean = a.mean ? a.mean[statistic] : 0.0f, rstd = a.mean ? a.rstd[statistic] : 1.0f;
  const float mean_grad = a.mean ? a.mean_grad[statistic] : 0.0f;
  const float mean_grad_norm = a.mean ? a.mean_grad_norm[statistic] : 0.0f;
  const index_t start = at.sample * pixels * channels + at.channel;
  const index_t first = at.chunk * kChunk + threadIdx.y;
  const index_t end = smaller((at.chunk + 1) * kChunk, pixels);
  Walk walk(first, a.shape.width);
  for (index_t p = first; p < end; p += kRows, walk.step()) {
    const Gradient found = gradient_at(a, at, walk, mean, rstd);
    store(a.out + start + p * channels,
          rstd * (found.grad - mean_grad - found.normed * mean_grad_norm));
  }
}

}  // namespace residual
}  // namespace oldrestore
