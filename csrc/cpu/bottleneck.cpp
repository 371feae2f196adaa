#include "bottleneck.hpp"

#include <algorithm>
#include <vector>

#include "convolution.hpp"

namespace oldrestore {
namespace {

constexpr int64_t kLeastRows = 16;      // of a strip: two more are widened for its neighbours' sake
constexpr int64_t kStripsOfThread = 4;  // so that none waits for long

// Values (channels) to padded ones; null: zeros.
std::vector<float> padded(const float* values, int64_t channels) {
  std::vector<float> out(static_cast<size_t>(padded_channels(channels)), 0.0f);
  if (values != nullptr) std::copy(values, values + channels, out.begin());
  return out;
}

std::vector<float> packed(const float* weight, int64_t out, int64_t in, const Kernels& kernels) {
  std::vector<float> to(static_cast<size_t>(padded_channels(out) * in));
  kernels.pack_product(weight, out, in, to.data());
  return to;
}

// (channels, 9) to (9, padded channels)
std::vector<float> by_tap(const float* filters, int64_t channels) {
  const int64_t step = padded_channels(channels);
  std::vector<float> out(static_cast<size_t>(9 * step), 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t tap = 0; tap < 9; ++tap) out[tap * step + c] = filters[c * 9 + tap];
  }
  return out;
}

}  // namespace

void bottleneck(Bottleneck block, const BottleneckWeights& weights, const Kernels& kernels,
                int threads) {
  const Map& target = block.target;
  std::vector<float> widen;
  if (weights.widen != nullptr) {
    widen = packed(weights.widen, block.width, block.source.channels, kernels);
    block.widen = widen.data();
  }
  const auto narrow = packed(weights.narrow, target.channels, block.width, kernels);
  const auto filters = by_tap(weights.filters, block.width);
  const auto widen_bias = padded(weights.widen_bias, block.width);
  const auto filter_bias = padded(weights.filter_bias, block.width);
  const auto narrow_bias = padded(weights.narrow_bias, target.channels);
  block.narrow = narrow.data();
  block.filters = filters.data();
  block.widen_bias = widen_bias.data();
  block.filter_bias = filter_bias.data();
  block.narrow_bias = narrow_bias.data();

  const int64_t across = ceil_div(target.width, kBottleneckColumns);
  const int64_t most = std::max<int64_t>(1, target.height / kLeastRows);
  const int64_t wanted = ceil_div(kStripsOfThread * threads, target.batch * across);
  const int64_t rows = ceil_div(target.height, std::min(most, wanted));
  const int64_t columns = ceil_div(target.width, across), down = ceil_div(target.height, rows);
  const int64_t scratch = kernels.bottleneck_scratch(block);
  Workspace workspace(threads * scratch);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < target.batch * down * across; ++i) {
    const int64_t top = i / across % down * rows, left = i % across * columns;
    const BottleneckStrip strip{i / across / down, top, std::min(top + rows, target.height), left,
                                std::min(left + columns, target.width)};
    if (strip.left >= strip.right) continue;
    kernels.bottleneck_strip(block, strip, workspace.data() + parallel::thread_index() * scratch);
  }
}

}  // namespace oldrestore
