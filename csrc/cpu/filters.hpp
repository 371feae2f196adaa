// 3x3 filters and their transforms: weights packed for the products, fingerprints, and the way back
// for the gradient.
#pragma once

#include "vector.hpp"

namespace oldrestore {
namespace {

// Vectors of output channels in a panel of packed weights, all but the last one.
constexpr int kPanelVectors = 2;

struct Panel {
  int64_t first, vectors;  // first channel, vectors of channels
};

Panel panel_of(int64_t i, int64_t channels) {
  const int64_t all = channels / kLanes, first = i * kPanelVectors;
  const bool is_last = (i + 2) * kPanelVectors > all;
  return {first * kLanes, is_last ? all - first : kPanelVectors};
}

int64_t panel_count(int64_t channels) {
  const int64_t whole = channels / kLanes / kPanelVectors;
  return whole > 1 ? whole : 1;
}

using Doubles = double __attribute__((vector_size(kLanes * 8)));

// The filter transform G along one axis: row i is (1, p, p^2) / prod(p - other points), the last
// one infinity's. In double, so that the weights round once.
inline void transform_filter(const Doubles g[3], Doubles t[6]) {
  constexpr double small = 0.70710678118654752440, large = 1.41421356237309504880;
  constexpr double at_small = -1.5;  // 2 p^2 (p^2 - 2) at p = +-sqrt(1/2)
  constexpr double at_large = 6.0;   // 2 p^2 (p^2 - 1/2) at p = +-sqrt(2)
  const Doubles even_small = (g[0] + 0.5 * g[2]) / at_small, odd_small = small / at_small * g[1];
  const Doubles even_large = (g[0] + 2.0 * g[2]) / at_large, odd_large = large / at_large * g[1];
  t[0] = g[0];
  t[1] = even_small + odd_small;
  t[2] = even_small - odd_small;
  t[3] = even_large + odd_large;
  t[4] = even_large - odd_large;
  t[5] = g[2];
}

// Where filter (out, in) and its taps lie.
struct Filters {
  const float* data;  // of the first tap
  int64_t out_stride, in_stride, tap_stride;
};

// Filters of one input channel and kLanes output channels, zeros from `present` on, to kPoints
// vectors.
void transform_filters(const Filters& filters, int64_t out, int64_t in, int64_t present,
                       float* target, int64_t point_stride) {
  const float* first = filters.data + out * filters.out_stride + in * filters.in_stride;
  Doubles half[kPatch][3];
  for (int64_t x = 0; x < 3; ++x) {
    Doubles column[3] = {}, transformed[kPatch];
    for (int64_t y = 0; y < 3; ++y) {
      for (int64_t lane = 0; lane < kLanes && lane < present; ++lane) {
        column[y][lane] = first[lane * filters.out_stride + (y * 3 + x) * filters.tap_stride];
      }
    }
    transform_filter(column, transformed);
    for (int64_t y = 0; y < kPatch; ++y) half[y][x] = transformed[y];
  }
  for (int64_t y = 0; y < kPatch; ++y) {
    Doubles transformed[kPatch];
    transform_filter(half[y], transformed);
    for (int64_t x = 0; x < kPatch; ++x, target += point_stride) {
      store(target, __builtin_convertvector(transformed[x], Vector));
    }
  }
}

// Where the weights (in, width) of a panel and point lie: in the order of their use.
int64_t packed_offset(const Panel& panel, int64_t point, int64_t in, int64_t out) {
  if (is_shared(in, out)) return (point * padded_channels(out) + panel.first) * in;
  return (kPoints * panel.first + point * panel.vectors * kLanes) * in;
}

void pack(const float* weight, int64_t out, int64_t in, bool is_rotated, float* packed) {
  const int64_t channels = padded_channels(out);
  const Filters filters =
      is_rotated ? Filters{weight + 8, 9, out * 9, -1} : Filters{weight, in * 9, 9, 1};
  for (int64_t i = 0; i < panel_count(channels); ++i) {
    const Panel panel = panel_of(i, channels);
    const int64_t width = panel.vectors * kLanes, offset = packed_offset(panel, 0, in, out);
    const int64_t point_stride = packed_offset(panel, 1, in, out) - offset;
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        const int64_t first = panel.first + lane;
        transform_filters(filters, first, c, out - first, packed + offset + c * width + lane,
                          point_stride);
      }
    }
  }
}

// Each word by the round of xxHash32 over every 64th weight: two of its primes, one rotation.
Fingerprint fingerprint(const float* weight, int64_t count) {
  using Words = uint32_t __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
  constexpr uint32_t prime1 = 2654435761u, prime2 = 2246822519u;
  constexpr int left = 13, right = 32 - left;
  constexpr int64_t words = sizeof(Fingerprint) / sizeof(uint32_t);
  Words state[words / kLanes] = {};
  const auto add = [&state](const float* block) {
#pragma GCC unroll 16
    for (int64_t j = 0; j < words / kLanes; ++j) {
      const Words mixed = state[j] + reinterpret_cast<const Words*>(block)[j] * prime2;
      state[j] = (mixed << left | mixed >> right) * prime1;
    }
  };
  int64_t i = 0;
  for (; i + words <= count; i += words) add(weight + i);
  float rest[words] = {};
  for (int64_t j = i; j < count; ++j) rest[j - i] = weight[j];
  add(rest);
  Fingerprint print;
  __builtin_memcpy(print.words, state, sizeof(print.words));
  return print;
}

// The transpose of transform_filter.
inline void gather_filter(const Vector t[6], Vector g[3]) {
  constexpr float at_small = -1.5f, at_large = 6.0f;  // as there
  const Vector sum_small = (t[1] + t[2]) / at_small, sum_large = (t[3] + t[4]) / at_large;
  g[0] = t[0] + sum_small + sum_large;
  g[1] = kSmall / at_small * (t[1] - t[2]) + kLarge / at_large * (t[3] - t[4]);
  g[2] = 0.5f * sum_small + 2.0f * sum_large + t[5];
}

void gather_filters(const float* sums, int64_t out, int64_t in, int64_t channel, float* gradient) {
  const int64_t channels = padded_channels(out), point_stride = in * channels;
  sums += channel * channels;
  gradient += channel * 9;
  for (int64_t c = 0; c < out; c += kLanes) {
    Vector half[3][kPatch];
    for (int64_t x = 0; x < kPatch; ++x) {
      Vector column[kPatch], gathered[3];
      for (int64_t y = 0; y < kPatch; ++y) {
        column[y] = load(sums + (y * kPatch + x) * point_stride + c);
      }
      gather_filter(column, gathered);
      for (int64_t y = 0; y < 3; ++y) half[y][x] = gathered[y];
    }
    for (int64_t y = 0; y < 3; ++y) {
      Vector taps[3];
      gather_filter(half[y], taps);
      for (int64_t x = 0; x < 3; ++x) {
        for (int64_t lane = 0; lane < kLanes && c + lane < out; ++lane) {
          gradient[(c + lane) * in * 9 + y * 3 + x] = taps[x][lane];
        }
      }
    }
  }
}

}  // namespace
}  // namespace oldrestore
