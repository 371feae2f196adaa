#include "convolution.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>

namespace oldrestore {
using parallel::each;
using parallel::panel_count;
using parallel::panel_of;
using parallel::piece_count;
using parallel::piece_of;
using parallel::unit_panels;

namespace {

void run_group(const Convolution& conv, const Kernels& kernels, const Plan& plan, int64_t index,
               int threads, float* operands, float* products, float* strip) {
  const Group group(plan, index);
  const Channels source{0, plan.source_channels};
  const int64_t pieces = piece_count(source, kDepth);
  each(plan.is_shared, group.rows * pieces, [&](int64_t i) {
    kernels.load_tiles(conv, plan, group, i / pieces, piece_of(source, i % pieces, kDepth),
                       operands, strip);
  });

  // a group of one thread's own takes one panel at a time, so that its products stay in cache
  const int64_t panels = panel_count(kernels, plan.target_channels);
  const int64_t step = plan.is_shared ? panels : 1;
  for (int64_t panel = 0; panel < panels; panel += step) {
    const int64_t unit = unit_panels(step, threads), units = ceil_div(step, unit);
    const int64_t first = panel_of(kernels, plan.target_channels, panel).first;
    const auto products_of = [&](Channels channels) {
      return products + group.tiles() * (channels.first - first);
    };
    each(plan.is_shared, kPoints * units, [&](int64_t i) {
      const int64_t from = panel + i % units * unit, end = std::min(panel + step, from + unit);
      kernels.multiply(conv, plan, group, i / units, from, end, operands,
                       products_of(panel_of(kernels, plan.target_channels, from)));
    });
    each(plan.is_shared, group.rows * step, [&](int64_t i) {
      const Channels channels = panel_of(kernels, plan.target_channels, panel + i % step);
      kernels.store_tiles(conv, plan, group, i / step, channels, products_of(channels), strip);
    });
  }
}

// Means and summed squared deviations of the slots, merged in the order of the slots (Chan, Golub
// and LeVeque, 1983).
void merge(const float* statistics, const Plan& plan, const Map& target, const InstanceNorm& norm) {
  const int64_t channels = plan.target_channels;
  for (int64_t b = 0; b < target.batch; ++b) {
    std::vector<double> mean(channels, 0.0), squares(channels, 0.0);
    double count = 0.0;
    for (int64_t i = 0; i < plan.slots; ++i, statistics += 2 * channels) {
      const double more = static_cast<double>(plan.pixels(target, i));
      for (int64_t c = 0; c < channels; ++c) {
        const double difference = statistics[c] - mean[c];
        squares[c] +=
            statistics[channels + c] + difference * difference * count * more / (count + more);
        mean[c] += difference * more / (count + more);
      }
      count += more;
    }
    for (int64_t c = 0; c < channels; ++c) {
      norm.mean[b * channels + c] = static_cast<float>(mean[c]);
      const double scale = 1.0 / std::sqrt(squares[c] / count + kInstanceNormEps);
      norm.scale[b * channels + c] = static_cast<float>(scale);
    }
  }
}

}  // namespace

Map inner_map(float* data, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const int64_t step = padded_channels(channels);
  return {data, batch, channels, height, width, height * width * step, 1, width * step, step, step};
}

int64_t parallel::thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

void convolve(const Layer& layer, const Map& source, const Standardise& source_norm,
              const Map& target, const Map* residual, const InstanceNorm& norm, int threads) {
  const Kernels& kernels = layer.weights->kernels();
  Convolution conv{};
  conv.source = source;
  conv.standardise = source_norm;
  conv.row_padding = (target.height - source.height) / 2 + 1;
  conv.column_padding = (target.width - source.width) / 2 + 1;
  conv.reflect = layer.reflect;
  conv.weights = layer.weights->data();
  conv.slope = layer.instance_norm ? 1.0f : layer.slope;
  conv.target = target;
  conv.residual = residual;
  std::vector<float> bias(static_cast<size_t>(padded_channels(target.channels)), 0.0f);
  if (layer.bias != nullptr && !layer.instance_norm) {
    std::copy(layer.bias, layer.bias + target.channels, bias.begin());
  }
  conv.bias = bias.data();

  const Plan plan(conv, is_shared(source.channels, target.channels));
  const int64_t workers = plan.is_shared ? threads : std::min<int64_t>(threads, plan.groups);
  const int64_t buffers = plan.is_shared ? 1 : workers,
                own_size = plan.operands() + plan.products();
  const int64_t n_statistics = target.batch * plan.slots * 2 * plan.target_channels;
  Workspace workspace(buffers * own_size + workers * plan.strip +
                      (layer.instance_norm ? n_statistics : 0));
  float* strips = workspace.data() + buffers * own_size;
  if (layer.instance_norm) conv.statistics = strips + workers * plan.strip;
#pragma omp parallel num_threads(static_cast<int>(workers))
  {
    float* strip = strips + parallel::thread_index() * plan.strip;
    float* operands = workspace.data();
    if (!plan.is_shared) operands += parallel::thread_index() * own_size;
    float* products = operands + plan.operands();
    if (plan.is_shared) {
      for (int64_t i = 0; i < plan.groups; ++i) {
        run_group(conv, kernels, plan, i, threads, operands, products, strip);
      }
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < plan.groups; ++i) {
        run_group(conv, kernels, plan, i, threads, operands, products, strip);
      }
    }
  }
  if (layer.instance_norm) merge(conv.statistics, plan, target, norm);
}

void finish(const Map& source, const Standardise& standardise, float slope, const Map* residual,
            const Map& target, const Kernels& kernels, int threads) {
  const Channels all{0, padded_channels(source.channels)};
  const int64_t pieces = piece_count(all, kStripChannels);
  const int64_t strip = source.width * kStripChannels;
  Workspace strips(threads * strip);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < source.batch * source.height; ++row) {
    for (int64_t i = 0; i < pieces; ++i) {
      kernels.finish_row(source, standardise, slope, residual, target, row / source.height,
                         row % source.height, piece_of(all, i, kStripChannels),
                         strips.data() + parallel::thread_index() * strip);
    }
  }
}

}  // namespace oldrestore
