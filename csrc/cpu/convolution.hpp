// The threads, memory and statistics of a convolution: what the operations are made of.
#pragma once

#include <vector>

#include "winograd_plan.hpp"

namespace oldrestore {

constexpr double kInstanceNormEps = 1e-5;  // torch.nn.InstanceNorm2d's default

// What normalises each sample and channel: (batch, padded channels) each. Null: nothing does.
struct InstanceNorm {
  float* mean = nullptr;
  float* scale = nullptr;

  Standardise map() const { return {mean, scale}; }
};

// Pictures in NHWC with padded channels, as everything between two convolutions is kept.
Map inner_map(float* data, int64_t batch, int64_t channels, int64_t height, int64_t width);
inline Map inner_like(const Map& like, float* data) {
  return inner_map(data, like.batch, like.channels, like.height, like.width);
}
inline int64_t inner_size(const Map& like) {
  return like.batch * like.height * like.width * padded_channels(like.channels);
}

// One 3x3 convolution of an operation, with what stands round it.
struct Layer {
  const PackedWeights* weights;
  const float* bias;   // null: none. Not used before a normalisation, which takes it out again
  bool instance_norm;  // of the result; the caller applies it, with the activation
  bool reflect;        // else zero padding
  float slope;         // of the leaky ReLU after that; 0: ReLU, 1: none
};

// The convolution of `layer` with its activation, but without its normalisation: with one, the
// target gets the plain convolution and `norm`, which must have room, what normalises it.
// source_norm, if it has any, and ReLU are applied to the source first.
void convolve(const Layer& layer, const Map& source, const Standardise& source_norm,
              const Map& target, const Map* residual, const InstanceNorm& norm, int threads);

// target = leaky_relu(standardise(source)) + residual; the source is an inner map or the target.
void finish(const Map& source, const Standardise& standardise, float slope, const Map* residual,
            const Map& target, const Kernels& kernels, int threads);

namespace parallel {  // what convolutions and their gradients share

int64_t thread_index();

// `block` in pieces of at most `most` channels.
inline int64_t piece_count(Channels block, int64_t most) {
  return ceil_div(block.count, most);
}
inline Channels piece_of(Channels block, int64_t i, int64_t most) {
  const int64_t left = block.count - i * most;
  return {block.first + i * most, left < most ? left : most};
}

// Of `kernels`: how many panels so many padded channels have, and the channels of one.
inline int64_t panel_count(const Kernels& kernels, int64_t channels) {
  return channels < kernels.panel_channels ? 1 : channels / kernels.panel_channels;
}
inline Channels panel_of(const Kernels& kernels, int64_t channels, int64_t i) {
  const int64_t width = kernels.panel_channels, first = i * width;
  return {first, i + 1 < panel_count(kernels, channels) ? width : channels - first};
}

// Panels of one unit of work where threads share a group: few enough that none waits for long,
// many enough that few threads read the same operands.
inline int64_t unit_panels(int64_t panels, int64_t threads) {
  const int64_t units_of_thread = 8;
  const int64_t share = kPoints * panels / (threads * units_of_thread);
  return share < 1 ? 1 : share < panels ? share : panels;
}

// body(i) for each i in [0, count): by all threads, who then wait for each other, or by this one.
template <typename Body>
void each(bool is_shared, int64_t count, const Body& body) {
  if (!is_shared) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace parallel

}  // namespace oldrestore
