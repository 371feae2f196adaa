#include "winograd_plan.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace oldrestore {

// One per compilation of winograd.cpp.
#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

namespace {

// Tiles of a task. Measured on a processor with 2 MB of second-level cache: fewer read the weights
// too often, more push operands and products out of that cache.
constexpr int64_t kTaskTiles = 32;

// The filter transform G: row i is (1, p, p^2) / prod(p - other points), the last one infinity's.
constexpr double kSmall = 0.70710678118654752440;  // sqrt(1/2)
constexpr double kLarge = 1.41421356237309504880;  // sqrt(2)
constexpr double kAtSmall = -1.5;                  // 2 p^2 (p^2 - 2) at p = +-sqrt(1/2)
constexpr double kAtLarge = 6.0;                   // 2 p^2 (p^2 - 1/2) at p = +-sqrt(2)
constexpr double kFilter[kPatch][3] = {
    {1.0, 0.0, 0.0},
    {1.0 / kAtSmall, kSmall / kAtSmall, 0.5 / kAtSmall},
    {1.0 / kAtSmall, -kSmall / kAtSmall, 0.5 / kAtSmall},
    {1.0 / kAtLarge, kLarge / kAtLarge, 2.0 / kAtLarge},
    {1.0 / kAtLarge, -kLarge / kAtLarge, 2.0 / kAtLarge},
    {0.0, 0.0, 1.0},
};

// One 3x3 filter to kPoints values, `stride` apart; in double, so that it rounds once.
void transform_filter(const float* filter, float* target, int64_t stride) {
  double half[kPatch][3];
  for (int64_t i = 0; i < kPatch; ++i) {
    for (int64_t x = 0; x < 3; ++x) {
      half[i][x] = kFilter[i][0] * filter[x] + kFilter[i][1] * filter[3 + x] +
                   kFilter[i][2] * filter[6 + x];
    }
  }
  for (int64_t i = 0; i < kPatch; ++i) {
    for (int64_t j = 0; j < kPatch; ++j) {
      const double value = half[i][0] * kFilter[j][0] + half[i][1] * kFilter[j][1] +
                           half[i][2] * kFilter[j][2];
      target[(i * kPatch + j) * stride] = static_cast<float>(value);
    }
  }
}

const Kernels* find_kernels(const std::string& name) {
  if (name.empty()) return supported_kernels().front();
  for (const Kernels* kernels : supported_kernels()) {
    if (name == kernels->name) return kernels;
  }
  throw std::invalid_argument("instruction_set: this processor cannot run " + name);
}

}  // namespace

const std::vector<const Kernels*>& supported_kernels() {
  static const std::vector<const Kernels*> supported = [] {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
      found.push_back(&avx512::kernels);
    }
    if (has_fma) found.push_back(&avx2::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
  }();
  return supported;
}

Plan::Plan(const Shape& shape) {
  tile_rows = ceil_div(shape.height, kTile);
  tile_columns = ceil_div(shape.width, kTile);
  columns = ceil_div(tile_columns, ceil_div(tile_columns, kTaskTiles));
  rows = std::min(tile_rows, std::max<int64_t>(1, kTaskTiles / columns));
  tasks_down = ceil_div(tile_rows, rows);
  tasks_across = ceil_div(tile_columns, columns);
  tasks_per_sample = tasks_down * tasks_across;
  const int64_t channels = padded_channels(shape.channels), tiles = rows * columns;
  const int64_t operands = kPoints * (tiles * channels + kChannelBlock);
  const int64_t products = kPoints * (tiles * kPanelChannels + kChannelBlock);
  const int64_t staged = tiles * kTile * kTile * channels;
  const int64_t patch = (rows * kTile + 2) * (columns * kTile + 2) * channels;
  workspace = operands + products + staged + patch;
}

int64_t Plan::pixels(const Shape& shape, int64_t i) const {
  const int64_t y = i / tasks_across * rows * kTile, x = i % tasks_across * columns * kTile;
  return std::min(rows * kTile, shape.height - y) * std::min(columns * kTile, shape.width - x);
}

PackedWeights::PackedWeights(const float* weight, int64_t channels,
                             const std::string& instruction_set)
    : channels_(channels),
      kernels_(find_kernels(instruction_set)),
      source_(weight, weight + channels * channels * 9),
      packed_(kPoints * channels * padded_channels(channels)) {
  std::vector<float> transformed(static_cast<size_t>(kPoints * channels * channels));
  for (int64_t pair = 0; pair < channels * channels; ++pair) {
    transform_filter(weight + pair * 9, transformed.data() + pair, channels * channels);
  }
  kernels_->pack(transformed.data(), channels, packed_.data());
}

bool PackedWeights::matches(const float* weight) const {
  return std::memcmp(weight, source_.data(), source_.size() * sizeof(float)) == 0;
}

}  // namespace oldrestore
