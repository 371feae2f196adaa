// The compiler's vector type, as wide as the instruction set that this compilation is for: included
// by the files compiled once per instruction set, and by no other. OLDRESTORE_LANES is its floats.
//
// Everything is in an unnamed namespace, and no function template of the standard library is used:
// the linker keeps one copy of each, and it could be one that this processor cannot run.
#pragma once

#include <utility>

#include "winograd.hpp"

namespace oldrestore {
namespace {

constexpr int kLanes = OLDRESTORE_LANES;
constexpr float kSmall = 0.70710678118654752440f;  // sqrt(1/2), an interpolation point
constexpr float kLarge = 1.41421356237309504880f;  // sqrt(2), another
using Vector = float __attribute__((vector_size(kLanes * 4)));
using Unaligned = float __attribute__((vector_size(kLanes * 4), aligned(4)));
using Indices = int __attribute__((vector_size(kLanes * 4)));

inline Vector load(const float* p) {
  return *reinterpret_cast<const Unaligned*>(p);
}
inline void store(float* p, Vector v) {
  *reinterpret_cast<Unaligned*>(p) = v;
}
inline Vector relu(Vector v) {
  return v < 0.0f ? Vector{} : v;
}  // NaN stays
inline Vector leaky_relu(Vector v, float slope) {
  return v < 0.0f ? slope * v : v;
}

// Lane `i` of one step of Eklundh's transposition: swap blocks of kStep between two rows.
template <int kStep, bool kUpper>
constexpr int swap_lane(int i) {
  return kUpper ? ((i & kStep) ? i + kLanes : i + kStep) : ((i & kStep) ? i + kLanes - kStep : i);
}

template <int kStep, bool kUpper, int... kLane>
inline Vector swap_blocks(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, swap_lane<kStep, kUpper>(kLane)...);
#else
  return __builtin_shuffle(a, b, Indices{swap_lane<kStep, kUpper>(kLane)...});
#endif
}

template <int kStep>
inline void transpose_steps(Vector rows[kLanes]) {
  if constexpr (kStep < kLanes) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & kStep) continue;
      const Vector a = rows[i], b = rows[i + kStep];
      rows[i] = swap_blocks<kStep, false>(a, b, lanes);
      rows[i + kStep] = swap_blocks<kStep, true>(a, b, lanes);
    }
    transpose_steps<kStep * 2>(rows);
  }
}

// kLanes x kLanes block: target[j][i] = source[i][j]; with `added`, laid out as target, on top.
inline void transpose_block(const float* source, int64_t source_stride, const float* added,
                            float* target, int64_t target_stride) {
  Vector rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(source + i * source_stride);
  transpose_steps<1>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (added != nullptr) rows[i] += load(added + i * target_stride);
    store(target + i * target_stride, rows[i]);
  }
}

}  // namespace
}  // namespace oldrestore
