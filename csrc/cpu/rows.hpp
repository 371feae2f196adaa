// Passes over rows of pixels, between convolutions and in their gradients.
#pragma once

#include "layout.hpp"

namespace oldrestore {
namespace {

// The first channel's mean and scale; no-op if there is none.
struct Normaliser {
  const float* mean;
  const float* scale;

  Normaliser(const Standardise& by, const Map& map, int64_t b, int64_t first)
      : mean(by.mean), scale(by.scale) {
    if (mean == nullptr) return;
    mean += b * padded_channels(map.channels) + first;
    scale += b * padded_channels(map.channels) + first;
  }
  Vector operator()(Vector v, int64_t c) const {
    return mean != nullptr ? (v - load(mean + c)) * load(scale + c) : v;
  }
};

void finish_row(const Map& source, const Standardise& standardise, float slope, const Map* residual,
                const Map& target, int64_t b, int64_t y, Channels channels, float* strip) {
  const Normaliser normalise(standardise, source, b, channels.first);
  const bool is_direct = target.is_vector();
  const bool adds = is_direct && residual != nullptr;
  const float* added = adds ? residual->at(b, y, 0) + channels.first : nullptr;
  float* to = is_direct ? target.at(b, y, 0) + channels.first : strip;
  const float* from = source.at(b, y, 0) + channels.first;
  for (int64_t x = 0; x < source.width; ++x) {
    for (int64_t c = 0; c < channels.count; c += kLanes) {
      const Vector v = leaky_relu(normalise(load(from + c), c), slope);
      store(to + c, adds ? v + load(added + c) : v);
    }
    from += source.pixel_stride;
    to += is_direct ? target.pixel_stride : channels.count;
    if (adds) added += residual->pixel_stride;
  }
  if (is_direct) return;
  store_pixels(target, channels, strip, source.width,
               residual != nullptr ? residual->at(b, y, 0) : nullptr, target.at(b, y, 0));
}

void load_row(const Map& source, const Map& target, int64_t b, int64_t y, Channels channels) {
  float* to = target.at(b, y, 0) + channels.first;
  load_pixels(source, channels, source.at(b, y, 0), source.width, to, target.pixel_stride);
  const int64_t n = present(source, channels);
  for (int64_t x = 0; n < channels.count && x < source.width; ++x) {
    clear(to + x * target.pixel_stride + n, channels.count - n);
  }
}

// The gradient before the activation whose argument was n.
inline Vector before(Vector gradient, Vector n, float slope) {
  return n > 0.0f ? gradient : slope * gradient;
}

void sum_gradient_row(const Map& gradient, const Map& map, const Standardise& standardise,
                      float slope, int64_t b, int64_t y, float* sums) {
  const int64_t channels = padded_channels(map.channels);
  const Normaliser normalise(standardise, map, b, 0);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const float* from = gradient.at(b, y, 0) + c;
    const float* at = map.at(b, y, 0) + c;
    Vector sum = {}, weighted = {};
    for (int64_t x = 0; x < map.width; ++x) {
      const Vector n = normalise(load(at), c), g = before(load(from), n, slope);
      sum += g;
      weighted += g * n;
      from += gradient.pixel_stride;
      at += map.pixel_stride;
    }
    store(sums + c, sum);
    store(sums + channels + c, weighted);
  }
}

void apply_gradient_row(const Map& gradient, const Map& map, const Standardise& standardise,
                        float slope, const float* means, const Map& target, int64_t b, int64_t y) {
  const int64_t channels = padded_channels(map.channels);
  const Normaliser normalise(standardise, map, b, 0);
  const float* from = gradient.at(b, y, 0);
  const float* at = map.at(b, y, 0);
  float* to = target.at(b, y, 0);
  for (int64_t x = 0; x < map.width; ++x) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vector n = normalise(load(at + c), c);
      Vector g = before(load(from + c), n, slope);
      if (normalise.scale != nullptr) {
        g = (g - load(means + c) - n * load(means + channels + c)) * load(normalise.scale + c);
      }
      store(to + c, g);
    }
    from += gradient.pixel_stride;
    at += map.pixel_stride;
    to += target.pixel_stride;
  }
}

}  // namespace
}  // namespace oldrestore
