// The product of operand rows with one panel of packed weights, in registers.
#pragma once

#include <utility>

#include "filters.hpp"

namespace oldrestore {
namespace {

// Register tile of the matrix product, by vectors of output channels: rows such that accumulators,
// one operand row and one broadcast fit the register file. A last panel may have three vectors,
// because a panel of one reads its operand rows too often.
#if OLDRESTORE_LANES == 16
constexpr int kRows[] = {0, 14, 14, 9};
#elif defined(__aarch64__)
constexpr int kRows[] = {0, 12, 12, 8};
#else
constexpr int kRows[] = {0, 6, 6, 4};
#endif
static_assert((kPanelVectors + 1) * kLanes <= kPanelChannels, "the product buffer is too narrow");

// Channels of the piece that starts at `first`. A product sums one piece at a time: sums of sums
// round less than one long sum (512 channels: a third of the error).
inline int64_t depth_of(int64_t channels, int64_t first) {
  return channels - first < kDepth ? channels - first : kDepth;
}

// What is multiplied next, fetched meanwhile into the second-level cache: `step` floats for each
// step in depth. Left to itself the processor waits for the weights a third of the time.
struct Ahead {
  const float* data;
  int64_t step;
};

// Matrices in rows, those of c `stride` apart. `a` is operands: pieces of kDepth channels one after
// the other, rows of padded channels in each; or, transposed, one such piece.
struct Product {
  const float* a;
  int64_t a_stride;  // transposed only
  const float* b;
  float* c;
  int64_t c_stride;
  int64_t rows, depth;
  bool adds;  // to what c holds
};

// sum (kRowCount, vectors) += a (kRowCount, depth) b (depth, vectors), in registers.
template <int kRowCount, int kVectors, int64_t kRowStep>
OLDRESTORE_INLINE void add_products(const float* a, int64_t row_step, int64_t depth_step,
                                    const float* b, int64_t depth, Ahead ahead,
                                    Vector sum[kRowCount][kVectors]) {
  if (kRowStep != 0) row_step = kRowStep;  // known here: no arithmetic for addresses
  for (int64_t k = 0; k < depth; ++k, a += depth_step, b += kVectors * kLanes) {
    __builtin_prefetch(ahead.data + k * ahead.step, 0, 2);
    Vector factor[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) factor[n] = load(b + n * kLanes);
#pragma GCC unroll 14
    for (int m = 0; m < kRowCount; ++m) {
      const float scalar = a[m * row_step];
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) sum[m][n] += factor[n] * scalar;
    }
  }
}

// c (kRowCount, vectors) = a (kRowCount, depth) b (depth, vectors).
template <int kRowCount, int kVectors, bool kTransposed>
void multiply_rows(const Product& product, int64_t row, Ahead ahead) {
  float* c = product.c + row * product.c_stride;
  for (int64_t from = 0; from < product.depth; from += kDepth) {
    const int64_t depth = depth_of(product.depth, from);
    const float* b = product.b + from * kVectors * kLanes;
    Vector sum[kRowCount][kVectors] = {};
    if (kTransposed) {
      add_products<kRowCount, kVectors, 1>(product.a + from * product.a_stride + row, 1,
                                           product.a_stride, b, depth, ahead, sum);
    } else {
      const int64_t width = depth_of(padded_channels(product.depth), from);
      const float* a = product.a + from * product.rows + row * width;
      if (width == kDepth) {
        add_products<kRowCount, kVectors, kDepth>(a, kDepth, 1, b, depth, ahead, sum);
      } else {
        add_products<kRowCount, kVectors, 0>(a, width, 1, b, depth, ahead, sum);
      }
    }
    ahead.data += depth * ahead.step;
#pragma GCC unroll 14
    for (int m = 0; m < kRowCount; ++m) {
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) {
        float* target = c + m * product.c_stride + n * kLanes;
        store(target, from > 0 || product.adds ? sum[m][n] + load(target) : sum[m][n]);
      }
    }
  }
}

using MultiplyRows = void (*)(const Product&, int64_t, Ahead);

template <int kVectors, bool kTransposed, int... kCounts>
MultiplyRows multiply_for(int64_t rows, std::integer_sequence<int, kCounts...>) {
  static constexpr MultiplyRows table[] = {&multiply_rows<kCounts + 1, kVectors, kTransposed>...};
  return table[rows - 1];
}

template <int kVectors, bool kTransposed>
void multiply_panel(const Product& product) {
  constexpr int most = kRows[kVectors];
  const int64_t blocks = ceil_div(product.rows, most);
  const int64_t step = ceil_div(product.rows, blocks);  // even shares: no thin last one
  Ahead ahead{product.b, 0};
  if (!kTransposed) {  // then b is a panel of weights, and the next one follows it
    ahead = {product.b + product.depth * kVectors * kLanes, ceil_div(kVectors * kLanes, blocks)};
  }
  for (int64_t row = 0; row < product.rows; row += step) {
    const int64_t count = product.rows - row < step ? product.rows - row : step;
    multiply_for<kVectors, kTransposed>(count, std::make_integer_sequence<int, most>())(product,
                                                                                        row, ahead);
    ahead.data += product.depth * ahead.step;
  }
}

// c (rows, vectors) = a (rows, depth) b (depth, vectors).
template <bool kTransposed>
void multiply_panel(const Product& product, int64_t vectors) {
  switch (vectors) {
    case 1: return multiply_panel<1, kTransposed>(product);
    case 2: return multiply_panel<2, kTransposed>(product);
    default: return multiply_panel<3, kTransposed>(product);
  }
}

}  // namespace
}  // namespace oldrestore
