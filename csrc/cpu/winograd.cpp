// The Winograd convolution, compiled once per instruction set (OLDRESTORE_ISA names it).
#include "layout.hpp"
#include "matrix_product.hpp"
#include "winograd.hpp"

namespace oldrestore {
namespace {

void pack(const float* transformed, int64_t channels, float* packed) {
  const int64_t count = padded_channels(channels) / kLanes;
  for (int64_t first = 0; first < count;) {
    const int vectors = panel_vectors(first, count);
    for (int64_t point = 0; point < kPoints; ++point) {
      for (int64_t in = 0; in < channels; ++in) {
        for (int64_t lane = 0; lane < vectors * kLanes; ++lane) {
          const int64_t out = first * kLanes + lane;
          *packed++ = out < channels ? transformed[(point * channels + out) * channels + in] : 0.0f;
        }
      }
    }
    first += vectors;
  }
}

// ---- the transforms, along one axis -------------------------------------------------------------

constexpr float kSmall = 0.70710678118654752440f;  // sqrt(1/2)
constexpr float kLarge = 1.41421356237309504880f;  // sqrt(2)

inline void transform_input(const Vector d[6], Vector t[6]) {
  const Vector even_small = d[4] - 2.0f * d[2], odd_small = kSmall * (d[3] - 2.0f * d[1]);
  const Vector even_large = d[4] - 0.5f * d[2], odd_large = kLarge * (d[3] - 0.5f * d[1]);
  t[0] = d[0] - 2.5f * d[2] + d[4];
  t[1] = even_small + odd_small;
  t[2] = even_small - odd_small;
  t[3] = even_large + odd_large;
  t[4] = even_large - odd_large;
  t[5] = d[1] - 2.5f * d[3] + d[5];
}

inline void transform_output(const Vector m[6], Vector y[4]) {
  const Vector sum_small = m[1] + m[2], difference_small = m[1] - m[2];
  const Vector sum_large = m[3] + m[4], difference_large = m[3] - m[4];
  y[0] = m[0] + sum_small + sum_large;
  y[1] = kSmall * difference_small + kLarge * difference_large;
  y[2] = 0.5f * sum_small + 2.0f * sum_large;
  y[3] = 0.5f * kSmall * difference_small + 2.0f * kLarge * difference_large + m[5];
}

// One tile: 6x6 pixels of `source` to row `target` of each of the kPoints operand matrices.
void transform_patch(const float* source, int64_t row_stride, int64_t pixel_stride,
                     int64_t channels, float* target, int64_t point_stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector half[kPatch][kPatch];
    for (int64_t x = 0; x < kPatch; ++x) {
      Vector column[kPatch], transformed[kPatch];
      for (int64_t y = 0; y < kPatch; ++y) {
        column[y] = load(source + y * row_stride + x * pixel_stride + c);
      }
      transform_input(column, transformed);
      for (int64_t y = 0; y < kPatch; ++y) half[y][x] = transformed[y];
    }
    float* out = target + c;
    for (int64_t y = 0; y < kPatch; ++y) {
      Vector transformed[kPatch];
      transform_input(half[y], transformed);
      for (int64_t x = 0; x < kPatch; ++x, out += point_stride) store(out, transformed[x]);
    }
  }
}

// Where a tile's results go: `rows` x `columns` pixels, fewer than 4x4 at the picture's edge.
struct TileTarget {
  float* data;
  const float* residual;  // null: none
  int64_t row_stride, pixel_stride, rows, columns;
};

// One tile: `vectors` vectors of output channels from the products to pixels.
void transform_products(const float* products, int64_t point_stride, int vectors, const float* bias,
                        bool with_relu, const TileTarget& to) {
  for (int64_t c = 0; c < vectors * kLanes; c += kLanes) {
    Vector half[kTile][kPatch];
    for (int64_t x = 0; x < kPatch; ++x) {
      Vector column[kPatch], transformed[kTile];
      for (int64_t y = 0; y < kPatch; ++y) {
        column[y] = load(products + (y * kPatch + x) * point_stride + c);
      }
      transform_output(column, transformed);
      for (int64_t y = 0; y < kTile; ++y) half[y][x] = transformed[y];
    }
    const Vector offset = load(bias + c);
    for (int64_t y = 0; y < to.rows; ++y) {
      Vector pixels[kTile];
      transform_output(half[y], pixels);
      for (int64_t x = 0; x < to.columns; ++x) {
        const int64_t position = y * to.row_stride + x * to.pixel_stride + c;
        Vector v = pixels[x] + offset;
        if (with_relu) v = relu(v);
        if (to.residual != nullptr) v += load(to.residual + position);
        store(to.data + position, v);
      }
    }
  }
}

// ---- a task -------------------------------------------------------------------------------------

struct Rectangle {
  int64_t b, y, x;        // sample, first pixel
  int64_t rows, columns;  // tiles
  int64_t height, width;  // pixels, cut at the picture's edge
};

Rectangle rectangle(const Plan& plan, const Shape& shape, int64_t task) {
  Rectangle r;
  r.b = task / plan.tasks_per_sample;
  const int64_t within = task % plan.tasks_per_sample;
  const int64_t row = within / plan.tasks_across * plan.rows;
  const int64_t column = within % plan.tasks_across * plan.columns;
  r.y = row * kTile;
  r.x = column * kTile;
  r.rows = plan.tile_rows - row < plan.rows ? plan.tile_rows - row : plan.rows;
  r.columns = plan.tile_columns - column < plan.columns ? plan.tile_columns - column : plan.columns;
  r.height = shape.height - r.y < r.rows * kTile ? shape.height - r.y : r.rows * kTile;
  r.width = shape.width - r.x < r.columns * kTile ? shape.width - r.x : r.columns * kTile;
  return r;
}

void transform_rectangle(const Convolution& conv, const Rectangle& r, float* patch, float* operands,
                         int64_t point_stride) {
  const Shape& shape = conv.shape;
  const int64_t channels = padded_channels(shape.channels);
  const int64_t patch_columns = r.columns * kTile + 2;
  const bool is_direct = conv.source.is_vector();
  if (!is_direct) {
    load_patch(conv, r.b, r.y - 1, r.x - 1, r.rows * kTile + 2, patch_columns, patch);
  }
  for (int64_t row = 0; row < r.rows; ++row) {
    for (int64_t column = 0; column < r.columns; ++column, operands += channels) {
      const int64_t y = r.y + row * kTile - 1, x = r.x + column * kTile - 1;
      const bool is_inside = y >= 0 && x >= 0 && y + kPatch <= shape.height &&
                             x + kPatch <= shape.width && conv.standardise.scale == nullptr;
      if (!is_direct) {
        transform_patch(patch + (row * patch_columns + column) * kTile * channels,
                        patch_columns * channels, channels, channels, operands, point_stride);
      } else if (is_inside) {
        transform_patch(conv.source.at(r.b, y, x), conv.source.row_stride, conv.source.pixel_stride,
                        channels, operands, point_stride);
      } else {
        load_patch(conv, r.b, y, x, kPatch, kPatch, patch);
        transform_patch(patch, kPatch * channels, channels, channels, operands, point_stride);
      }
    }
  }
}

// Mean and summed squared deviation of each channel over the rectangle, in two passes.
void summarise(const View& view, const Rectangle& r, int64_t channels, float* statistics) {
  const float count = static_cast<float>(r.height * r.width);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector sum = {}, squares = {};
    for (int64_t y = r.y; y < r.y + r.height; ++y) {
      for (int64_t x = r.x; x < r.x + r.width; ++x) sum += load(view.at(r.b, y, x) + c);
    }
    const Vector mean = sum / count;
    for (int64_t y = r.y; y < r.y + r.height; ++y) {
      for (int64_t x = r.x; x < r.x + r.width; ++x) {
        const Vector deviation = load(view.at(r.b, y, x) + c) - mean;
        squares += deviation * deviation;
      }
    }
    store(statistics + c, mean);
    store(statistics + channels + c, squares);
  }
}

void convolve(const Convolution& conv, const Plan& plan, int64_t task, float* workspace) {
  const int64_t channels = padded_channels(conv.shape.channels);
  const Rectangle r = rectangle(plan, conv.shape, task);
  const int64_t tiles = r.rows * r.columns, most = plan.rows * plan.columns;
  // one line more than needed, or all points of a tile would fall into the same cache set
  const int64_t operand_stride = most * channels + kChannelBlock;
  const int64_t product_stride = most * kPanelChannels + kChannelBlock;
  float* operands = workspace;
  float* products = operands + kPoints * operand_stride;
  float* staged = products + kPoints * product_stride;  // results, if the target is not NHWC
  float* patch = staged + plan.rows * plan.columns * kTile * kTile * channels;
  const bool is_direct = conv.target.is_vector();

  transform_rectangle(conv, r, patch, operands, operand_stride);
  const float* weights = conv.weights;
  const int64_t count = channels / kLanes;
  for (int64_t first = 0; first < count;) {
    const int vectors = panel_vectors(first, count);
    const int64_t from = first * kLanes, width = vectors * kLanes;
    for (int64_t point = 0; point < kPoints; ++point, weights += conv.shape.channels * width) {
      multiply(operands + point * operand_stride, channels, weights,
               products + point * product_stride, width, tiles, conv.shape.channels, vectors);
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t y = tile / r.columns * kTile, x = tile % r.columns * kTile;
      TileTarget to;
      to.rows = r.height - y < kTile ? r.height - y : kTile;
      to.columns = r.width - x < kTile ? r.width - x : kTile;
      to.residual = nullptr;
      if (is_direct) {
        to.data = conv.target.at(r.b, r.y + y, r.x + x) + from;
        to.row_stride = conv.target.row_stride;
        to.pixel_stride = conv.target.pixel_stride;
        if (conv.residual != nullptr) to.residual = conv.residual->at(r.b, r.y + y, r.x + x) + from;
      } else {
        to.pixel_stride = channels;
        to.row_stride = r.columns * kTile * channels;
        to.data = staged + y * to.row_stride + x * channels + from;
      }
      transform_products(products + tile * width, product_stride, vectors, conv.bias + from,
                         conv.relu, to);
    }
    first += vectors;
  }
  if (!is_direct) {
    for (int64_t y = 0; y < r.height; ++y) {
      store_pixels(conv.target, conv.shape, channels, staged + y * r.columns * kTile * channels,
                   r.width,
                   conv.residual != nullptr ? conv.residual->at(r.b, r.y + y, r.x) : nullptr,
                   conv.target.at(r.b, r.y + y, r.x));
    }
  }
  if (conv.statistics != nullptr) {
    summarise(conv.target, r, channels, conv.statistics + task * 2 * channels);
  }
}

void finish_row(const Shape& shape, const View& source, const Standardise& standardise,
                const View& residual, const View& target, int64_t b, int64_t y) {
  const int64_t channels = padded_channels(shape.channels);
  standardise_pixels(source.at(b, y, 0), shape.width, channels, b, standardise, false);
  store_pixels(target, shape, channels, source.at(b, y, 0), shape.width, residual.at(b, y, 0),
               target.at(b, y, 0));
}

}  // namespace

#define OLDRESTORE_STRING_(name) #name
#define OLDRESTORE_STRING(name) OLDRESTORE_STRING_(name)

namespace OLDRESTORE_ISA {
extern const Kernels kernels;
const Kernels kernels = {OLDRESTORE_STRING(OLDRESTORE_ISA), pack, convolve, finish_row};
}  // namespace OLDRESTORE_ISA

}  // namespace oldrestore
