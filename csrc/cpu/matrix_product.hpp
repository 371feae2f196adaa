// The product of operand rows with one panel of packed weights, in registers.
#pragma once

#include <utility>

#include "vector.hpp"

namespace oldrestore {
namespace {

// Register tile of the matrix product, by vectors of output channels (1 to kMaxPanel): rows such
// that accumulators, one operand row and one broadcast fit the register file.
#if OLDRESTORE_LANES == 16
constexpr int kMaxPanel = 3;
constexpr int kRows[] = {0, 14, 14, 9};
#elif defined(__aarch64__)
constexpr int kMaxPanel = 2;
constexpr int kRows[] = {0, 12, 12};
#else
constexpr int kMaxPanel = 2;
constexpr int kRows[] = {0, 6, 6};
#endif
static_assert(kMaxPanel * kLanes <= kPanelChannels, "the product buffer is too narrow");

// Vectors in the panel that starts at output vector `first` of `count`: never a lone last one if
// three fit, because a panel of one reads its operand rows too often.
inline int panel_vectors(int64_t first, int64_t count) {
  const int64_t left = count - first;
  if (left <= kMaxPanel) return static_cast<int>(left);
  return 2;
}

// c (kRowCount, vectors) = a (kRowCount, depth) b (depth, vectors), in registers.
template <int kRowCount, int kVectors>
void multiply_rows(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride,
                   int64_t depth) {
  Vector sum[kRowCount][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector factor[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) factor[n] = load(b + (k * kVectors + n) * kLanes);
#pragma GCC unroll 14
    for (int m = 0; m < kRowCount; ++m) {
      const float scalar = a[m * a_stride + k];
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) sum[m][n] += factor[n] * scalar;
    }
  }
#pragma GCC unroll 14
  for (int m = 0; m < kRowCount; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) store(c + m * c_stride + n * kLanes, sum[m][n]);
  }
}

using MultiplyRows = void (*)(const float*, int64_t, const float*, float*, int64_t, int64_t);

template <int kVectors, int... kCounts>
MultiplyRows multiply_for(int64_t rows, std::integer_sequence<int, kCounts...>) {
  static constexpr MultiplyRows table[] = {&multiply_rows<kCounts + 1, kVectors>...};
  return table[rows - 1];
}

template <int kVectors>
void multiply_panel(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride,
                    int64_t rows, int64_t depth) {
  constexpr int most = kRows[kVectors];
  const int64_t step = ceil_div(rows, ceil_div(rows, most));  // even shares: no thin last one
  for (int64_t m = 0; m < rows; m += step) {
    const int64_t count = rows - m < step ? rows - m : step;
    multiply_for<kVectors>(count, std::make_integer_sequence<int, most>())(
        a + m * a_stride, a_stride, b, c + m * c_stride, c_stride, depth);
  }
}

void multiply(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride,
              int64_t rows, int64_t depth, int vectors) {
  switch (vectors) {
    case 1: return multiply_panel<1>(a, a_stride, b, c, c_stride, rows, depth);
    case 2: return multiply_panel<2>(a, a_stride, b, c, c_stride, rows, depth);
    default: return multiply_panel<kMaxPanel>(a, a_stride, b, c, c_stride, rows, depth);
  }
}

}  // namespace
}  // namespace oldrestore
