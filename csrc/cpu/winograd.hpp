// A 3x3, stride 1, padded convolution by Winograd's F(4x4, 3x3): what winograd.cpp, compiled once
// per instruction set, offers to the operations above it.
//
// Lavin and Gray, CVPR 2016 (arXiv:1509.09308), with the interpolation points 0, +-sqrt(1/2),
// +-sqrt(2) and infinity, which round four times better than 0, +-1, +-2 at the same cost.
//
// A convolution goes in three stages: tiles of 6x6 pixels to operands, at each of the 36 points a
// matrix product with that point's weights, products to tiles of 4x4 pixels.
#pragma once

#include <cstdint>

namespace oldrestore {

constexpr int64_t kTile = 4;                  // outputs of a tile, along each axis
constexpr int64_t kPatch = kTile + 2;         // inputs it needs
constexpr int64_t kPoints = kPatch * kPatch;  // products per tile and channel pair
constexpr int64_t kChannelBlock = 16;         // channels inside are padded to this
constexpr int64_t kPanelChannels = 48;        // output channels of one product, at most
constexpr int64_t kStripChannels = 64;        // channels of a strip, at most
constexpr int64_t kDepth = 64;                // channels of operands that lie together, at most
static_assert(kDepth <= kStripChannels && kPanelChannels <= kStripChannels,
              "a strip is too narrow");

// Inlined always: a copy left for the linker to merge could come from the file compiled for
// AVX-512.
#define OLDRESTORE_INLINE inline __attribute__((always_inline))

OLDRESTORE_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
OLDRESTORE_INLINE int64_t padded_channels(int64_t channels) {
  return ceil_div(channels, kChannelBlock) * kChannelBlock;
}

// Up to so many transformed weights each thread works on groups of tiles of its own, whose operands
// and products stay in its second-level cache while the weights stream past. With more, reading the
// weights again for every group costs more than that saves: all threads share one large group.
constexpr int64_t kOwnWeights = int64_t{1} << 20;

OLDRESTORE_INLINE bool is_shared(int64_t in, int64_t out) {
  return kPoints * padded_channels(in) * padded_channels(out) > kOwnWeights;
}

// Pictures in memory: element (b, c, y, x) lies at data + b * batch_stride + c * channel_stride +
// ..
struct Map {
  float* data;
  int64_t batch, channels, height, width;
  int64_t batch_stride, channel_stride, row_stride, pixel_stride;
  int64_t readable;  // channels of a pixel that may be touched: all of them, or padded ones too

  // Whole vectors of channels can be loaded and stored in place.
  OLDRESTORE_INLINE bool is_vector() const {
    return channel_stride == 1 && readable % kChannelBlock == 0;
  }
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
  Map source;
  Standardise standardise;  // what the source, then is_vector(), goes through before ReLU
  // 1; 2, with zeros: the target is larger than the source then; 0: the source has its neighbours
  int64_t row_padding, column_padding;
  bool reflect;             // else zeros, after standardise and ReLU
  const float* weights;     // as `pack` leaves them
  const float* bias;        // (padded channels of the target)
  float slope;              // of the leaky ReLU on the result; 0: ReLU, 1: none
  Map target;
  const Map* residual;  // added to the result; null: nothing. Strides as `target`
  float* statistics;    // (sample, Plan::slots, 2, padded channels of the target); null: not wanted
};

// The tiles of the target cut into groups. It depends on shapes alone, never on the number of
// threads, so that neither does the result.
struct Plan {
  bool is_shared;                   // all threads work on one group; else each on one of its own
  int64_t tile_rows, tile_columns;  // of a picture
  int64_t rows, columns;            // of a group, at most
  int64_t groups_down, groups_across, groups;
  int64_t slots;  // partial statistics of a sample: one per tile row and column of groups
  int64_t source_channels, target_channels;       // padded
  int64_t operand_stride, product_stride, strip;  // floats: of a point, of a point, of a thread

  Plan(const Convolution& convolution, bool is_shared);
  OLDRESTORE_INLINE int64_t operands() const { return kPoints * operand_stride; }
  OLDRESTORE_INLINE int64_t products() const { return kPoints * product_stride; }
  // Pixels of the target that slot `i` counts.
  int64_t pixels(const Map& target, int64_t i) const;
};

// Tiles [row, row + rows) x [column, column + columns) of one sample.
struct Group {
  int64_t sample, row, column, rows, columns;

  OLDRESTORE_INLINE Group(const Plan& plan, int64_t i) {
    const int64_t per_sample = plan.groups_down * plan.groups_across, within = i % per_sample;
    sample = i / per_sample;
    row = within / plan.groups_across * plan.rows;
    column = within % plan.groups_across * plan.columns;
    rows = plan.tile_rows - row < plan.rows ? plan.tile_rows - row : plan.rows;
    columns = plan.tile_columns - column < plan.columns ? plan.tile_columns - column : plan.columns;
  }
  OLDRESTORE_INLINE int64_t tiles() const { return rows * columns; }
};

// Channels [first, first + count), count padded.
struct Channels {
  int64_t first, count;
};

// Tells weights apart: two that differ in one place always, any others but for one chance in 2^32.
struct Fingerprint {
  uint32_t words[64];
};

struct Bottleneck;  // see bottleneck.hpp
struct BottleneckStrip;

// What one instruction set offers. A `row` is a row of tiles, counted within the group, or of
// pixels; an inner map is one that is_vector().
struct Kernels {
  const char* name;
  int64_t panel_channels;  // output channels of every panel but the last, which takes the rest

  // Filters (in, 3, 3) of `out` channels to the order in which `multiply` reads them. Rotated: of
  // the convolution whose gradient with respect to its source this is, (out, 3, 3) of `in`.
  void (*pack)(const float* weight, int64_t out, int64_t in, bool is_rotated, float* packed);
  Fingerprint (*fingerprint)(const float* weight, int64_t count);

  // First stage: pixels of the source to operands (point, piece of kDepth channels, tile, channel).
  void (*load_tiles)(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                     Channels channels, float* operands, float* strip);
  // Second: products (point, panel, tile, channel) of panels [panel, end), into `products` from its
  // start on.
  void (*multiply)(const Convolution& conv, const Plan& plan, const Group& group, int64_t point,
                   int64_t panel, int64_t end, const float* operands, float* products);
  // Third: products of one panel's channels to pixels of the target.
  void (*store_tiles)(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                      Channels channels, const float* products, float* strip);

  // The weight's gradient is the transpose of these three in the weight. First, besides load_tiles:
  // gradient of the target, an inner map, to one panel's products.
  void (*spread_tiles)(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                       Channels channels, const Map& gradient, float* products);
  // Second: to sums (point, in, padded out), added to what is there, unless this `is_first`.
  void (*correlate)(const Convolution& conv, const Plan& plan, const Group& group, int64_t point,
                    int64_t panel, int64_t end, bool is_first, const float* operands,
                    const float* products, float* sums);
  // Third: for one input channel, to gradient (out, in, 3, 3).
  void (*gather_filters)(const float* sums, int64_t out, int64_t in, int64_t channel,
                         float* gradient);

  // target = leaky_relu(standardise(source)) + residual; of an inner map, which may be the target.
  void (*finish_row)(const Map& source, const Standardise& standardise, float slope,
                     const Map* residual, const Map& target, int64_t b, int64_t y,
                     Channels channels, float* strip);
  // Of any map to an inner one.
  void (*load_row)(const Map& source, const Map& target, int64_t b, int64_t y, Channels channels);
  // With n = standardise(map) and g = gradient * leaky_relu'(n), inner maps: sums of g and g * n.
  void (*sum_gradient_row)(const Map& gradient, const Map& map, const Standardise& standardise,
                           float slope, int64_t b, int64_t y, float* sums);
  // target = (g - means[0] - n * means[1]) * scale; without standardise: g. May be in place.
  void (*apply_gradient_row)(const Map& gradient, const Map& map, const Standardise& standardise,
                             float slope, const float* means, const Map& target, int64_t b,
                             int64_t y);

  // See planes.hpp, which is all that they need.
  void (*plane_statistics)(const float* x, int64_t count, double* mean, double* squares);
  void (*finish_plane)(const float* x, int64_t count, float mean, float scale, float slope,
                       float* out);
  void (*plane_gradient)(const float* gradient, const float* x, int64_t count, float mean,
                         float scale, float slope, float* out);

  // See bottleneck_strip.hpp: a matrix (out, in) to padded out x in floats, the floats that a strip
  // needs to work in, and the strip.
  void (*pack_product)(const float* weight, int64_t out, int64_t in, float* packed);
  int64_t (*bottleneck_scratch)(const Bottleneck& block);
  void (*bottleneck_strip)(const Bottleneck& block, const BottleneckStrip& at, float* scratch);
};

}  // namespace oldrestore
