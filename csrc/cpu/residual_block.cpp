#include "residual_block.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <vector>

namespace oldrestore {
namespace {

constexpr double kInstanceNormEps = 1e-5;

// Means and summed squared deviations of the tasks, merged in the order of the tasks (Chan, Golub
// and LeVeque, 1983), to the map that normalises.
struct InstanceNorm {
  std::vector<float> means, scales;  // (batch, padded channels)

  InstanceNorm(const Shape& shape, const Plan& plan, const float* statistics) {
    const int64_t channels = padded_channels(shape.channels);
    means.resize(static_cast<size_t>(shape.batch * channels));
    scales.resize(means.size());
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t c = 0; c < channels; ++c) {
        double count = 0.0, mean = 0.0, squares = 0.0;
        for (int64_t i = 0; i < plan.tasks_per_sample; ++i) {
          const float* of_task = statistics + (b * plan.tasks_per_sample + i) * 2 * channels;
          const double more = static_cast<double>(plan.pixels(shape, i));
          const double difference = of_task[c] - mean;
          squares += of_task[channels + c] + difference * difference * count * more / (count + more);
          count += more;
          mean += difference * more / count;
        }
        means[b * channels + c] = static_cast<float>(mean);
        const double scale = 1.0 / std::sqrt(squares / count + kInstanceNormEps);
        scales[b * channels + c] = static_cast<float>(scale);
      }
    }
  }
  Standardise map() const { return {means.data(), scales.data()}; }
};

std::vector<float> padded_bias(const float* bias, int64_t channels) {
  std::vector<float> padded(static_cast<size_t>(padded_channels(channels)), 0.0f);
  if (bias != nullptr) std::copy(bias, bias + channels, padded.begin());
  return padded;
}

void run(const Convolution& convolution, const Kernels& kernels, const Plan& plan, float* workspace,
         int threads) {
  const int64_t tasks = convolution.shape.batch * plan.tasks_per_sample;
  const int64_t n_workers = std::min<int64_t>(threads, tasks);
#pragma omp parallel num_threads(static_cast<int>(n_workers))
  {
#if defined(_OPENMP)
    float* own = workspace + omp_get_thread_num() * plan.workspace;
#else
    float* own = workspace;
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) kernels.convolve(convolution, plan, task, own);
  }
}

View channels_last(AlignedBuffer& buffer, const Shape& shape) {
  const int64_t channels = padded_channels(shape.channels);
  return {buffer.data(),         shape.height * shape.width * channels, 1,
          shape.width * channels, channels,                             channels};
}

}  // namespace

void residual_block(const ResidualBlock& block) {
  const Shape& shape = block.shape;
  if (shape.batch == 0) return;
  const Plan plan(shape);
  const Kernels& kernels = block.weight1->kernels();
  const int64_t channels = padded_channels(shape.channels);
  const int64_t size = shape.batch * shape.height * shape.width * channels;
  const int64_t n_statistics = shape.batch * plan.tasks_per_sample * 2 * channels;
  const std::vector<float> bias1 = padded_bias(block.bias1, shape.channels);
  const std::vector<float> bias2 = padded_bias(block.bias2, shape.channels);
  AlignedBuffer workspace(block.threads * plan.workspace);
  AlignedBuffer inner_buffer(size);
  AlignedBuffer statistics(block.instance_norm ? n_statistics : 0);
  const View inner = channels_last(inner_buffer, shape);

  Convolution first{};
  first.shape = shape;
  first.source = block.x;
  first.reflect = block.reflect;
  first.weights = block.weight1->data();
  first.bias = bias1.data();
  first.relu = !block.instance_norm;
  first.target = inner;
  first.statistics = block.instance_norm ? statistics.data() : nullptr;
  run(first, kernels, plan, workspace.data(), block.threads);

  Convolution second = first;
  second.source = inner;
  second.weights = block.weight2->data();
  second.bias = bias2.data();
  second.relu = false;
  if (!block.instance_norm) {
    second.target = block.out;
    second.residual = &block.x;
    run(second, kernels, plan, workspace.data(), block.threads);
    return;
  }
  const InstanceNorm inner_norm(shape, plan, statistics.data());
  AlignedBuffer outer_buffer(size);
  const View outer = channels_last(outer_buffer, shape);
  second.standardise = inner_norm.map();
  second.target = outer;
  run(second, kernels, plan, workspace.data(), block.threads);
  const InstanceNorm outer_norm(shape, plan, statistics.data());
#pragma omp parallel for num_threads(block.threads) collapse(2)
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t y = 0; y < shape.height; ++y) {
      kernels.finish_row(shape, outer, outer_norm.map(), block.x, block.out, b, y);
    }
  }
}

}  // namespace oldrestore
