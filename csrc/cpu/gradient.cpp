#include "gradient.hpp"

#include <algorithm>
#include <vector>

namespace oldrestore {

using parallel::each;
using parallel::panel_count;
using parallel::panel_of;
using parallel::piece_count;
using parallel::piece_of;
using parallel::unit_panels;

namespace {

// Line += another, over all channels; lines of `count` pixels, their pixels `step` floats apart.
void add_line(float* target, const float* source, int64_t count, int64_t step, int64_t channels) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < channels; ++c) target[i * step + c] += source[i * step + c];
  }
}

// Add one sample's border to the pixels that were reflected there: rows first, with their corners.
void fold(const Map& whole, int64_t b) {
  const int64_t channels = padded_channels(whole.channels);
  const int64_t bottom = whole.height - 1, right = whole.width - 1;
  const int64_t row = whole.pixel_stride, column = whole.row_stride;
  add_line(whole.at(b, 2, 0), whole.at(b, 0, 0), whole.width, row, channels);
  add_line(whole.at(b, bottom - 2, 0), whole.at(b, bottom, 0), whole.width, row, channels);
  add_line(whole.at(b, 0, 2), whole.at(b, 0, 0), whole.height, column, channels);
  add_line(whole.at(b, 0, right - 2), whole.at(b, 0, right), whole.height, column, channels);
}

// Of `rows` partial sums (rows, 2, channels), in the order of the rows.
std::vector<double> add_rows(const float* sums, int64_t rows, int64_t channels) {
  std::vector<double> total(static_cast<size_t>(2 * channels), 0.0);
  for (int64_t i = 0; i < rows * 2 * channels; ++i) total[i % (2 * channels)] += sums[i];
  return total;
}

// One group of tiles, by all threads: its share of the gradient, at every point.
void correlate_group(const Convolution& conv, const Kernels& kernels, const Plan& plan,
                     int64_t index, int threads, const Map& gradient, float* operands,
                     float* products, float* strip, float* sums) {
  const Group group(plan, index);
  const Channels source{0, plan.source_channels};
  const int64_t loads = piece_count(source, kDepth);
  const int64_t panels = panel_count(kernels, plan.target_channels);
  each(true, group.rows * loads, [&](int64_t i) {
    kernels.load_tiles(conv, plan, group, i / loads, piece_of(source, i % loads, kDepth), operands,
                       strip);
  });
  each(true, group.rows * panels, [&](int64_t i) {
    const Channels channels = panel_of(kernels, plan.target_channels, i % panels);
    kernels.spread_tiles(conv, plan, group, i / panels, channels, gradient,
                         products + group.tiles() * channels.first);
  });
  const int64_t unit = unit_panels(panels, threads), units = ceil_div(panels, unit);
  each(true, kPoints * units, [&](int64_t i) {
    const int64_t from = i % units * unit;
    kernels.correlate(conv, plan, group, i / units, from, std::min(panels, from + unit), index == 0,
                      operands, products, sums);
  });
}

}  // namespace

PaddedMap::PaddedMap(const Map& like, bool reflect)
    : buffer(like.batch * (like.height + 2) * (like.width + 2) * padded_channels(like.channels)),
      reflect(reflect) {
  const int64_t border = reflect ? 2 : 0;
  whole = inner_map(buffer.data(), like.batch, like.channels, like.height + border,
                    like.width + border);
  inside = whole;
  inside.height = like.height;
  inside.width = like.width;
  if (reflect) inside.data = whole.at(0, 1, 1);
}

void load(const Map& source, const Map& target, const Kernels& kernels, int threads) {
  const Channels all{0, padded_channels(source.channels)};
  const int64_t pieces = piece_count(all, kStripChannels);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < source.batch * source.height; ++row) {
    for (int64_t i = 0; i < pieces; ++i) {
      kernels.load_row(source, target, row / source.height, row % source.height,
                       piece_of(all, i, kStripChannels));
    }
  }
}

void activation_gradient(const Layer& layer, const Map& gradient, const Map& map,
                         const InstanceNorm& norm, const LayerGradient& wanted, int threads) {
  const Kernels& kernels = layer.weights->kernels();
  const int64_t channels = padded_channels(map.channels), rows = map.batch * map.height;
  if (wanted.bias != nullptr) std::fill_n(wanted.bias, map.channels, 0.0f);
  std::vector<float> means(static_cast<size_t>(map.batch * 2 * channels));
  if (layer.instance_norm || wanted.bias != nullptr) {
    Workspace sums(rows * 2 * channels);
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
      kernels.sum_gradient_row(gradient, map, norm.map(), layer.slope, row / map.height,
                               row % map.height, sums.data() + row * 2 * channels);
    }
    const auto pixels = static_cast<double>(map.height * map.width);
    for (int64_t b = 0; b < map.batch; ++b) {
      const std::vector<double> total =
          add_rows(sums.data() + b * map.height * 2 * channels, map.height, channels);
      for (int64_t i = 0; i < 2 * channels; ++i) {
        means[b * 2 * channels + i] = static_cast<float>(total[i] / pixels);
      }
      for (int64_t c = 0; wanted.bias != nullptr && !layer.instance_norm && c < map.channels; ++c) {
        wanted.bias[c] += static_cast<float>(total[c]);
      }
    }
  }
  if (!layer.instance_norm && layer.slope == 1.0f) return;
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / map.height;
    kernels.apply_gradient_row(gradient, map, norm.map(), layer.slope,
                               means.data() + b * 2 * channels, gradient, b, row % map.height);
  }
}

void weight_gradient(const Layer& layer, const Map& source, const Standardise& source_norm,
                     const Map& gradient, const LayerGradient& wanted, int threads) {
  if (wanted.weight == nullptr) return;
  const Kernels& kernels = layer.weights->kernels();
  Convolution conv{};
  conv.source = source;
  conv.standardise = source_norm;
  conv.row_padding = conv.column_padding = 1;
  conv.reflect = layer.reflect;
  conv.target = gradient;
  const Plan plan(conv, true);
  const int64_t sums_size = kPoints * source.channels * plan.target_channels;
  Workspace sums(sums_size);
  Workspace workspace(plan.operands() + plan.products() + threads * plan.strip);
  float* products = workspace.data() + plan.operands();
#pragma omp parallel num_threads(threads)
  {
    float* strip = products + plan.products() + parallel::thread_index() * plan.strip;
    for (int64_t i = 0; i < plan.groups; ++i) {
      correlate_group(conv, kernels, plan, i, threads, gradient, workspace.data(), products, strip,
                      sums.data());
    }
#pragma omp for
    for (int64_t c = 0; c < source.channels; ++c) {
      kernels.gather_filters(sums.data(), gradient.channels, source.channels, c, wanted.weight);
    }
  }
}

void source_gradient(const Layer& layer, const Map& gradient, const PaddedMap& target,
                     int threads) {
  const Layer transposed{layer.weights, nullptr, false, false, 1.0f};
  convolve(transposed, gradient, {}, target.whole, nullptr, {}, threads);
  if (!target.reflect) return;
#pragma omp parallel for num_threads(threads)
  for (int64_t b = 0; b < target.whole.batch; ++b) fold(target.whole, b);
}

}  // namespace oldrestore
