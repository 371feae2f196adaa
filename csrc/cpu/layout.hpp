// Pixels between the picture, NCHW or NHWC, and NHWC blocks with padded channels.
#pragma once

#include "vector.hpp"

namespace oldrestore {
namespace {

inline int64_t reflected(int64_t i, int64_t size) {
  // a tile may reach past the reflected pixel too; what it computes there is never stored
  if (i < 0) i = -i;
  if (i >= size) i = 2 * (size - 1) - i;
  return i < 0 ? 0 : i;
}

// `count` pixels of one row, all inside the picture, to consecutive pixels of `channels` floats.
void load_pixels(const View& view, const Shape& shape, int64_t channels, const float* source,
                 int64_t count, float* target) {
  int64_t x = 0;
  if (view.pixel_stride == 1) {
    const int64_t whole = shape.channels / kLanes * kLanes;
    for (; x + kLanes <= count; x += kLanes) {
      for (int64_t c = 0; c < whole; c += kLanes) {
        transpose_block(source + c * view.channel_stride + x, view.channel_stride, nullptr,
                        target + x * channels + c, channels);
      }
      for (int64_t c = whole; c < shape.channels; ++c) {
        for (int64_t i = x; i < x + kLanes; ++i) {
          target[i * channels + c] = source[c * view.channel_stride + i];
        }
      }
    }
  }
  for (; x < count; ++x) {
    const float* pixel = source + x * view.pixel_stride;
    for (int64_t c = 0; c < shape.channels; ++c) {
      target[x * channels + c] = pixel[c * view.channel_stride];
    }
  }
}

// The other way, adding `residual`, which is laid out as the target is.
void store_pixels(const View& view, const Shape& shape, int64_t channels, const float* source,
                  int64_t count, const float* residual, float* target) {
  int64_t x = 0;
  if (view.pixel_stride == 1) {
    const int64_t whole = shape.channels / kLanes * kLanes;
    for (; x + kLanes <= count; x += kLanes) {
      for (int64_t c = 0; c < whole; c += kLanes) {
        const int64_t position = c * view.channel_stride + x;
        transpose_block(source + x * channels + c, channels,
                        residual != nullptr ? residual + position : nullptr, target + position,
                        view.channel_stride);
      }
      for (int64_t c = whole; c < shape.channels; ++c) {
        for (int64_t i = x; i < x + kLanes; ++i) {
          const int64_t position = c * view.channel_stride + i;
          const float sum = residual != nullptr ? residual[position] : 0.0f;
          target[position] = source[i * channels + c] + sum;
        }
      }
    }
  }
  for (; x < count; ++x) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      const int64_t position = x * view.pixel_stride + c * view.channel_stride;
      const float sum = residual != nullptr ? residual[position] : 0.0f;
      target[position] = source[x * channels + c] + sum;
    }
  }
}

void standardise_pixels(float* pixels, int64_t count, int64_t channels, int64_t b,
                        const Standardise& by, bool with_relu) {
  const float* mean = by.mean + b * channels;
  const float* scale = by.scale + b * channels;
  for (int64_t x = 0; x < count; ++x) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      float* p = pixels + x * channels + c;
      const Vector v = (load(p) - load(mean + c)) * load(scale + c);
      store(p, with_relu ? relu(v) : v);
    }
  }
}

void clear(float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = 0.0f;
}

// Pixels [y, y + rows) x [x, x + columns), which may lie outside, padded, to a block of its own.
void load_patch(const Convolution& conv, int64_t b, int64_t y, int64_t x, int64_t rows,
                int64_t columns, float* target) {
  const Shape& shape = conv.shape;
  const int64_t channels = padded_channels(shape.channels);
  const int64_t inside_from = x < 0 ? 0 : x;
  const int64_t inside_to = x + columns < shape.width ? x + columns : shape.width;
  for (int64_t row = 0; row < rows; ++row, target += columns * channels) {
    int64_t from_y = y + row;
    const bool is_outside = from_y < 0 || from_y >= shape.height;
    if (is_outside && !conv.reflect) {
      clear(target, columns * channels);
      continue;
    }
    from_y = reflected(from_y, shape.height);
    const float* line = conv.source.at(b, from_y, 0);
    const int64_t offset = conv.source.pixel_stride;
    if (inside_to > inside_from) {
      load_pixels(conv.source, shape, channels, line + inside_from * offset,
                  inside_to - inside_from, target + (inside_from - x) * channels);
    }
    for (int64_t i = x; i < x + columns; ++i) {
      if (i >= 0 && i < shape.width) continue;
      if (!conv.reflect) {
        clear(target + (i - x) * channels, channels);
        continue;
      }
      load_pixels(conv.source, shape, channels, line + reflected(i, shape.width) * offset, 1,
                  target + (i - x) * channels);
    }
    if (conv.standardise.scale == nullptr) continue;
    const int64_t from = conv.reflect ? x : inside_from, to = conv.reflect ? x + columns : inside_to;
    standardise_pixels(target + (from - x) * channels, to - from, channels, b, conv.standardise,
                       true);
  }
}

}  // namespace
}  // namespace oldrestore
