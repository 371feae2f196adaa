// Pixels between the picture, NCHW or NHWC, and strips: NHWC rows of a few channels.
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

// How many of these channels the map really has.
inline int64_t present(const Map& map, Channels channels) {
  const int64_t left = map.channels - channels.first;
  return left < channels.count ? left : channels.count;
}

// `count` pixels of one row, all inside the picture, to pixels `step` floats apart.
void load_pixels(const Map& map, Channels channels, const float* source, int64_t count,
                 float* target, int64_t step) {
  const int64_t n = present(map, channels);
  source += channels.first * map.channel_stride;
  int64_t x = 0;
  if (map.pixel_stride == 1) {
    const int64_t whole = n / kLanes * kLanes;
    for (; x + kLanes <= count; x += kLanes) {
      for (int64_t c = 0; c < whole; c += kLanes) {
        transpose_block(source + c * map.channel_stride + x, map.channel_stride, nullptr,
                        target + x * step + c, step);
      }
      for (int64_t c = whole; c < n; ++c) {
        for (int64_t i = x; i < x + kLanes; ++i) {
          target[i * step + c] = source[c * map.channel_stride + i];
        }
      }
    }
  }
  for (; x < count; ++x) {
    const float* pixel = source + x * map.pixel_stride;
    for (int64_t c = 0; c < n; ++c) target[x * step + c] = pixel[c * map.channel_stride];
  }
}

// The other way, adding `residual`, which is laid out as the target is.
void store_pixels(const Map& map, Channels channels, const float* source, int64_t count,
                  const float* residual, float* target) {
  const int64_t n = present(map, channels), step = channels.count;
  target += channels.first * map.channel_stride;
  if (residual != nullptr) residual += channels.first * map.channel_stride;
  int64_t x = 0;
  if (map.pixel_stride == 1) {
    const int64_t whole = n / kLanes * kLanes;
    for (; x + kLanes <= count; x += kLanes) {
      for (int64_t c = 0; c < whole; c += kLanes) {
        const int64_t position = c * map.channel_stride + x;
        transpose_block(source + x * step + c, step,
                        residual != nullptr ? residual + position : nullptr, target + position,
                        map.channel_stride);
      }
      for (int64_t c = whole; c < n; ++c) {
        for (int64_t i = x; i < x + kLanes; ++i) {
          const int64_t position = c * map.channel_stride + i;
          const float sum = residual != nullptr ? residual[position] : 0.0f;
          target[position] = source[i * step + c] + sum;
        }
      }
    }
  }
  for (; x < count; ++x) {
    for (int64_t c = 0; c < n; ++c) {
      const int64_t position = x * map.pixel_stride + c * map.channel_stride;
      const float sum = residual != nullptr ? residual[position] : 0.0f;
      target[position] = source[x * step + c] + sum;
    }
  }
}

void clear(float* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) target[i] = 0.0f;
}

// kPatch rows of `columns` pixels from (y, x), which may lie outside, to a strip.
void load_strip(const Convolution& conv, int64_t b, int64_t y, int64_t x, int64_t columns,
                Channels channels, float* strip) {
  const Map& map = conv.source;
  const int64_t from = x < 0 ? 0 : x;
  const int64_t to = x + columns < map.width ? x + columns : map.width;
  for (int64_t row = y; row < y + kPatch; ++row, strip += columns * channels.count) {
    if (!conv.reflect && (row < 0 || row >= map.height)) {
      clear(strip, columns * channels.count);
      continue;
    }
    const float* line = map.at(b, reflected(row, map.height), 0);
    if (to > from) {
      load_pixels(map, channels, line + from * map.pixel_stride, to - from,
                  strip + (from - x) * channels.count, channels.count);
    }
    for (int64_t i = x; i < x + columns; ++i) {
      if (i >= 0 && i < map.width) continue;
      float* pixel = strip + (i - x) * channels.count;
      if (conv.reflect) {
        load_pixels(map, channels, line + reflected(i, map.width) * map.pixel_stride, 1, pixel,
                    channels.count);
      } else {
        clear(pixel, channels.count);
      }
    }
  }
}

}  // namespace
}  // namespace oldrestore
