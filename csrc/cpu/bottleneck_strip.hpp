// One strip of a bottleneck: rows are widened as the filters come to need them, and three are kept.
#pragma once

#include "bottleneck.hpp"
#include "filters.hpp"
#include "layout.hpp"
#include "matrix_product.hpp"

namespace oldrestore {
namespace {

inline Vector relu6(Vector v) {
  const Vector six = Vector{} + 6.0f;
  v = relu(v);
  return v > six ? six : v;  // NaN stays
}

// A matrix (out, in) to panels of output channels, zeros where the last one is padded.
void pack_product(const float* weight, int64_t out, int64_t in, float* packed) {
  const int64_t channels = padded_channels(out);
  for (int64_t i = 0; i < panel_count(channels); ++i) {
    const Panel panel = panel_of(i, channels);
    const int64_t width = panel.vectors * kLanes;
    float* to = packed + panel.first * in;
    for (int64_t c = 0; c < in; ++c) {
      for (int64_t lane = 0; lane < width; ++lane) {
        const int64_t channel = panel.first + lane;
        to[c * width + lane] = channel < out ? weight[channel * in + c] : 0.0f;
      }
    }
  }
}

// target (pixels, padded out) = operands (pixels, depth) times packed weights.
void multiply_pixels(const float* operands, int64_t pixels, int64_t depth, const float* packed,
                     int64_t out, float* target) {
  const int64_t channels = padded_channels(out);
  Product product{};
  product.a = operands;
  product.c_stride = channels;
  product.rows = pixels;
  product.depth = depth;
  for (int64_t i = 0; i < panel_count(channels); ++i) {
    const Panel panel = panel_of(i, channels);
    product.b = packed + panel.first * depth;
    product.c = target + panel.first;
    multiply_panel<false>(product, panel.vectors);
  }
}

// Where channel c of `pixels` pixels lies among operands, that of the first one, and what lies
// between it and the next pixel's.
struct Place {
  int64_t offset, step;

  Place(int64_t c, int64_t pixels, int64_t channels) {
    const int64_t first = c / kDepth * kDepth;
    step = depth_of(channels, first);
    offset = first * pixels + c - first;
  }
};

class Strip {
 public:
  Strip(const Bottleneck& block, const BottleneckStrip& at, float* scratch)
      : block_(block),
        at_(at),
        width_(padded_channels(block.width)),
        columns_(at.columns_in(block.stride)),
        first_column_(at.left * block.stride - 1),
        ring_(scratch),
        operands_(ring_ + 3 * columns_ * width_),
        filtered_(operands_ + columns_ * padded_channels(block.source.channels)),
        narrowed_(filtered_ + (at.right - at.left) * width_),
        added_(narrowed_ + (at.right - at.left) * padded_channels(block.target.channels)) {}

  static int64_t scratch(const Bottleneck& block) {
    const int64_t columns = kBottleneckColumns, of_target = padded_channels(block.target.channels);
    const int64_t columns_in = BottleneckStrip{0, 0, 0, 0, columns}.columns_in(block.stride);
    return columns_in *
               (3 * padded_channels(block.width) + padded_channels(block.source.channels)) +
           columns * (padded_channels(block.width) + 2 * of_target);
  }

  void run() {
    int64_t next = at_.top * block_.stride + block_.above - 1;
    for (int64_t y = at_.top; y < at_.bottom; ++y) {
      const int64_t first = y * block_.stride + block_.above - 1;
      for (; next < first + 3; ++next) widen_row(next);
      if (block_.stride == 1) {
        filter_row<1>(first);
      } else {
        filter_row<2>(first);
      }
      narrow_row(y);
    }
  }

 private:
  float* row(int64_t y) { return ring_ + (y + 3) % 3 * columns_ * width_; }

  void widen_row(int64_t y) {
    const Map& source = block_.source;
    float* to = row(y);
    if (y < 0 || y >= source.height) {
      clear(to, columns_ * width_);
      return;
    }
    const int64_t end = first_column_ + columns_;
    const int64_t left = first_column_ < 0 ? 0 : first_column_;
    const int64_t right = end < source.width ? end : source.width;
    const float* from = source.at(at_.sample, y, left);
    clear(to, (left - first_column_) * width_);
    clear(to + (right - first_column_) * width_, (end - right) * width_);
    to += (left - first_column_) * width_;
    const int64_t pixels = right - left;
    if (block_.widen == nullptr) {
      if (source.channels < width_) clear(to, pixels * width_);
      load_pixels(source, {0, width_}, from, pixels, to, width_);
      return;
    }
    const int64_t channels = padded_channels(source.channels);
    for (int64_t c = 0; c < channels; c += kDepth) {
      const Place place(c, pixels, channels);
      load_pixels(source, {c, place.step}, from, pixels, operands_ + place.offset, place.step);
    }
    multiply_pixels(operands_, pixels, source.channels, block_.widen, block_.width, to);
    for (int64_t i = 0; i < pixels; ++i, to += width_) {
      for (int64_t c = 0; c < width_; c += kLanes) {
        store(to + c, relu6(load(to + c) + load(block_.widen_bias + c)));
      }
    }
  }

  // The filters on the three rows from `first` on, to operands.
  template <int kStride>
  void filter_row(int64_t first) {
    const int64_t columns = at_.right - at_.left;
    for (int64_t c = 0; c < width_; c += kLanes) {
      Vector weights[9];
#pragma GCC unroll 9
      for (int i = 0; i < 9; ++i) weights[i] = load(block_.filters + i * width_ + c);
      const Vector bias = load(block_.filter_bias + c);
      const float* rows[3] = {row(first) + c, row(first + 1) + c, row(first + 2) + c};
      const Place place(c, columns, width_);
      float* to = filtered_ + place.offset;
      for (int64_t x = 0; x < columns; ++x, to += place.step) {
        Vector sum = bias;
#pragma GCC unroll 3
        for (int v = 0; v < 3; ++v) {
#pragma GCC unroll 3
          for (int u = 0; u < 3; ++u) {
            sum += weights[v * 3 + u] * load(rows[v] + (x * kStride + u) * width_);
          }
        }
        store(to, relu6(sum));
      }
    }
  }

  void narrow_row(int64_t y) {
    const Map& target = block_.target;
    const int64_t columns = at_.right - at_.left, channels = padded_channels(target.channels);
    multiply_pixels(filtered_, columns, block_.width, block_.narrow, target.channels, narrowed_);
    if (block_.is_residual) {
      load_pixels(block_.source, {0, channels},
                  block_.source.at(at_.sample, y + block_.above, at_.left), columns, added_,
                  channels);
    }
    for (int64_t i = 0; i < columns * channels; i += channels) {
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vector v = load(narrowed_ + i + c) + load(block_.narrow_bias + c);
        if (block_.is_residual) v += load(added_ + i + c);
        store(narrowed_ + i + c, v);
      }
    }
    store_pixels(target, {0, channels}, narrowed_, columns, nullptr,
                 target.at(at_.sample, y, at_.left));
  }

  const Bottleneck& block_;
  const BottleneckStrip& at_;
  int64_t width_, columns_, first_column_;  // padded; of a widened row, the first of them
  float* ring_;                             // three widened rows: row y in place y mod 3
  float* operands_;
  float* filtered_;
  float* narrowed_;
  float* added_;
};

int64_t bottleneck_scratch(const Bottleneck& block) {
  return Strip::scratch(block);
}

void bottleneck_strip(const Bottleneck& block, const BottleneckStrip& at, float* scratch) {
  Strip(block, at, scratch).run();
}

}  // namespace
}  // namespace oldrestore
