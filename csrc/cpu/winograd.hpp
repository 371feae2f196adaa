// A 3x3, stride 1, padded convolution in NHWC by Winograd's F(4x4, 3x3): what winograd.cpp, compiled
// once per instruction set, offers to the operations above it.
//
// Lavin and Gray, CVPR 2016 (arXiv:1509.09308), with the interpolation points 0, +-sqrt(1/2),
// +-sqrt(2) and infinity, which round four times better than 0, +-1, +-2 at the same cost.
#pragma once

#include <cstdint>

namespace oldrestore {

constexpr int64_t kTile = 4;                       // outputs of a tile, along each axis
constexpr int64_t kPatch = kTile + 2;              // inputs it needs
constexpr int64_t kPoints = kPatch * kPatch;       // products per tile and channel pair
constexpr int64_t kChannelBlock = 16;              // channels inside are padded to this
constexpr int64_t kPanelChannels = 48;             // output channels of one product, at most

// Inlined always: a copy left for the linker to merge could come from the file compiled for AVX-512.
#define OLDRESTORE_INLINE inline __attribute__((always_inline))

OLDRESTORE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
OLDRESTORE_INLINE int64_t padded_channels(int64_t channels) {
  return ceil_div(channels, kChannelBlock) * kChannelBlock;
}

struct Shape {
  int64_t batch, channels, height, width;
};

// Where element (b, c, y, x) lies, in floats.
struct View {
  float* data;
  int64_t batch_stride, channel_stride, row_stride, pixel_stride;
  int64_t readable;  // channels of a pixel that may be touched: all of them, or padded ones too

  // Whole vectors of channels can be loaded and stored in place.
  OLDRESTORE_INLINE bool is_vector() const { return channel_stride == 1 && readable % kChannelBlock == 0; }
  OLDRESTORE_INLINE float* at(int64_t b, int64_t y, int64_t x) const {
    return data + b * batch_stride + y * row_stride + x * pixel_stride;
  }
};

// y = (x - mean) * scale, per sample and channel: (batch, padded channels). No-op if null.
struct Standardise {
  const float* mean = nullptr;
  const float* scale = nullptr;
};

struct Convolution {
  Shape shape;
  View source;
  Standardise standardise;  // what the source goes through first, then ReLU; null: neither
  bool reflect;             // else zero padding, after those
  const float* weights;  // as `pack` leaves them
  const float* bias;     // (padded channels)
  bool relu;             // applied to the result
  View target;
  const View* residual;  // added to the result; null: nothing. Strides as `target`
  float* statistics;     // per task: pixels' mean, then summed squared deviation; null: not wanted
};

// The tiles of a picture cut into rectangles, one a task. It depends on the shape alone, never on
// the number of threads, so that neither does the result.
struct Plan {
  int64_t tile_rows, tile_columns;  // of the picture
  int64_t rows, columns;            // of a task, at most
  int64_t tasks_down, tasks_across, tasks_per_sample;
  int64_t workspace;  // floats a thread needs

  explicit Plan(const Shape& shape);
  // Of one sample's task `i`.
  int64_t pixels(const Shape& shape, int64_t i) const;
};

// What one instruction set offers.
struct Kernels {
  const char* name;
  // Transformed weights (kPoints, C out, C in) to the order in which `convolve` reads them.
  void (*pack)(const float* transformed, int64_t channels, float* packed);
  void (*convolve)(const Convolution& convolution, const Plan& plan, int64_t task, float* workspace);
  // A row of the picture: target = standardise(source) + residual, in place. The source is_vector().
  void (*finish_row)(const Shape& shape, const View& source, const Standardise& standardise,
                     const View& residual, const View& target, int64_t b, int64_t y);
};

}  // namespace oldrestore
