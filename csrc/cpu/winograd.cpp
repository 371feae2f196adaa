// The Winograd convolution, and the strip of a bottleneck, which shares its products: compiled once
// per instruction set (OLDRESTORE_ISA names it).
#include "winograd.hpp"

#include "bottleneck_strip.hpp"
#include "filters.hpp"
#include "layout.hpp"
#include "matrix_product.hpp"
#include "planes.hpp"
#include "rows.hpp"

namespace oldrestore {
namespace {

// ---- pixels to operands -------------------------------------------------------------------------

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

// The pixels a tile is made from: their lines and, within a line, their offsets; none is a zero.
struct Patch {
  const float* lines[kPatch];  // null: outside
  int64_t offsets[kPatch];     // negative: outside
  bool is_inside;
};

// kPoints operands of one tile and `count` channels; mean and scale null: pixels as they are.
template <bool kStandardise, bool kInside>
void transform_patch(const Patch& patch, const float* mean, const float* scale, int64_t count,
                     float* target, int64_t point_stride) {
  for (int64_t c = 0; c < count; c += kLanes) {
    Vector half[kPatch][kPatch];
    for (int64_t x = 0; x < kPatch; ++x) {
      Vector column[kPatch], transformed[kPatch];
      for (int64_t y = 0; y < kPatch; ++y) {
        if (!kInside && (patch.lines[y] == nullptr || patch.offsets[x] < 0)) {
          column[y] = Vector{};
          continue;
        }
        column[y] = load(patch.lines[y] + patch.offsets[x] + c);
        if (kStandardise) column[y] = relu((column[y] - load(mean + c)) * load(scale + c));
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

// The patch whose first pixel is (y, x) of the source.
Patch patch_of(const Convolution& conv, int64_t b, int64_t y, int64_t x) {
  const Map& map = conv.source;
  Patch patch;
  const bool is_inside = y >= 0 && x >= 0 && y + kPatch <= map.height && x + kPatch <= map.width;
  patch.is_inside = is_inside || conv.reflect;
  for (int64_t i = 0; i < kPatch; ++i) {
    const bool has_line = conv.reflect || (y + i >= 0 && y + i < map.height);
    const bool has_column = conv.reflect || (x + i >= 0 && x + i < map.width);
    patch.lines[i] = has_line ? map.at(b, reflected(y + i, map.height), 0) : nullptr;
    patch.offsets[i] = has_column ? reflected(x + i, map.width) * map.pixel_stride : -1;
  }
  return patch;
}

void load_tiles(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                Channels channels, float* operands, float* strip) {
  const int64_t stride = plan.operand_stride, b = group.sample;
  const int64_t y = (group.row + row) * kTile - conv.row_padding;
  const int64_t x = group.column * kTile - conv.column_padding;
  const int64_t strip_columns = group.columns * kTile + 2;
  const bool is_direct = conv.source.is_vector();
  const float* mean = conv.standardise.mean;
  const float* scale = conv.standardise.scale;
  if (mean != nullptr) {
    mean += b * plan.source_channels + channels.first;
    scale += b * plan.source_channels + channels.first;
  }
  if (!is_direct) load_strip(conv, b, y, x, strip_columns, channels, strip);
  operands += group.tiles() * channels.first + row * group.columns * channels.count;
  for (int64_t i = 0; i < group.columns; ++i, operands += channels.count) {
    Patch patch;
    if (is_direct) {
      patch = patch_of(conv, b, y, x + i * kTile);
      for (const float*& line : patch.lines) line += line != nullptr ? channels.first : 0;
    } else {
      patch.is_inside = true;
      for (int64_t k = 0; k < kPatch; ++k) {
        patch.lines[k] = strip + (k * strip_columns + i * kTile) * channels.count;
        patch.offsets[k] = k * channels.count;
      }
    }
    if (mean == nullptr && patch.is_inside) {
      transform_patch<false, true>(patch, mean, scale, channels.count, operands, stride);
    } else if (mean == nullptr) {
      transform_patch<false, false>(patch, mean, scale, channels.count, operands, stride);
    } else if (patch.is_inside) {
      transform_patch<true, true>(patch, mean, scale, channels.count, operands, stride);
    } else {
      transform_patch<true, false>(patch, mean, scale, channels.count, operands, stride);
    }
  }
}

// ---- operands to products -----------------------------------------------------------------------

void multiply(const Convolution& conv, const Plan& plan, const Group& group, int64_t point,
              int64_t panel, int64_t end, const float* operands, float* products) {
  const int64_t depth = conv.source.channels;
  Product product{};
  product.a = operands + point * plan.operand_stride;
  product.rows = group.tiles();
  product.depth = depth;
  product.c = products + point * plan.product_stride;
  for (; panel < end; ++panel) {
    const Panel at = panel_of(panel, plan.target_channels);
    product.b = conv.weights + packed_offset(at, point, depth, conv.target.channels);
    product.c_stride = at.vectors * kLanes;
    multiply_panel<false>(product, at.vectors);
    product.c += product.rows * product.c_stride;
  }
}

// ---- products to pixels -------------------------------------------------------------------------

inline void transform_output(const Vector m[6], Vector y[4]) {
  const Vector sum_small = m[1] + m[2], difference_small = m[1] - m[2];
  const Vector sum_large = m[3] + m[4], difference_large = m[3] - m[4];
  y[0] = m[0] + sum_small + sum_large;
  y[1] = kSmall * difference_small + kLarge * difference_large;
  y[2] = 0.5f * sum_small + 2.0f * sum_large;
  y[3] = 0.5f * kSmall * difference_small + 2.0f * kLarge * difference_large + m[5];
}

// One tile and vector of channels: 4x4 pixels from its products.
inline void transform_products(const float* products, int64_t point_stride, Vector pixels[4][4]) {
  Vector half[kTile][kPatch];
  for (int64_t x = 0; x < kPatch; ++x) {
    Vector column[kPatch], transformed[kTile];
    for (int64_t y = 0; y < kPatch; ++y) {
      column[y] = load(products + (y * kPatch + x) * point_stride);
    }
    transform_output(column, transformed);
    for (int64_t y = 0; y < kTile; ++y) half[y][x] = transformed[y];
  }
  for (int64_t y = 0; y < kTile; ++y) transform_output(half[y], pixels[y]);
}

// Merge a tile's pixels into the mean and summed squared deviation of the `count` pixels before it
// (Chan, Golub and LeVeque, 1983): no cancellation, however large the mean.
inline void merge_statistics(const Vector pixels[4][4], int64_t rows, int64_t columns,
                             int64_t count, float* mean, float* squares) {
  Vector sum = {}, deviations = {};
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) sum += pixels[y][x];
  }
  const float more = static_cast<float>(rows * columns), before = static_cast<float>(count);
  const Vector of_tile = sum * (1.0f / more);
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const Vector deviation = pixels[y][x] - of_tile;
      deviations += deviation * deviation;
    }
  }
  if (count == 0) {
    store(mean, of_tile);
    store(squares, deviations);
    return;
  }
  const Vector difference = of_tile - load(mean);
  store(mean, load(mean) + difference * (more / (before + more)));
  const float weight = before * more / (before + more);
  store(squares, load(squares) + deviations + difference * difference * weight);
}

// Where a tile's pixels go: `rows` x `columns` of them, fewer than 4x4 at the picture's edge.
struct TileTarget {
  float* data;
  const float* residual;  // laid out as the pixels; null: none
  int64_t row_stride, pixel_stride, rows, columns;
  float* mean;  // statistics of the first channel; null: not wanted
  float* squares;
  int64_t before;  // pixels already in them
};

// A whole tile is told apart at compile time, or its pixels would not stay in registers.
template <bool kWhole>
void store_tile(const float* products, int64_t point_stride, const float* bias, float slope,
                int64_t count, const TileTarget& to) {
  const int64_t rows = kWhole ? kTile : to.rows, columns = kWhole ? kTile : to.columns;
  for (int64_t c = 0; c < count; c += kLanes) {
    Vector pixels[kTile][kTile];
    transform_products(products + c, point_stride, pixels);
    const Vector offset = load(bias + c);
    for (int64_t v = 0; v < kTile; ++v) {
      for (int64_t u = 0; u < kTile; ++u) pixels[v][u] += offset;
    }
    if (slope != 1.0f) {
      for (int64_t v = 0; v < kTile; ++v) {
        for (int64_t u = 0; u < kTile; ++u) pixels[v][u] = leaky_relu(pixels[v][u], slope);
      }
    }
    if (to.mean != nullptr) {
      merge_statistics(pixels, rows, columns, to.before, to.mean + c, to.squares + c);
    }
    for (int64_t v = 0; v < rows; ++v) {
      for (int64_t u = 0; u < columns; ++u) {
        const int64_t position = v * to.row_stride + u * to.pixel_stride + c;
        if (to.residual != nullptr) pixels[v][u] += load(to.residual + position);
        store(to.data + position, pixels[v][u]);
      }
    }
  }
}

void store_tiles(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                 Channels channels, const float* products, float* strip) {
  const Map& map = conv.target;
  const bool is_direct = map.is_vector();
  const int64_t b = group.sample, first = channels.first;
  const int64_t y = (group.row + row) * kTile, left = group.column * kTile;
  const int64_t width =
      map.width - left < group.columns * kTile ? map.width - left : group.columns * kTile;
  TileTarget to{};
  to.rows = map.height - y < kTile ? map.height - y : kTile;
  to.row_stride = is_direct ? map.row_stride : group.columns * kTile * channels.count;
  to.pixel_stride = is_direct ? map.pixel_stride : channels.count;
  if (conv.statistics != nullptr) {
    const int64_t slot = (group.row + row) * plan.groups_across + group.column / plan.columns;
    to.mean = conv.statistics + (b * plan.slots + slot) * 2 * plan.target_channels + first;
    to.squares = to.mean + plan.target_channels;
  }
  products += row * group.columns * channels.count;
  for (int64_t x = 0; x < width; x += kTile, products += channels.count) {
    to.data = is_direct ? map.at(b, y, left + x) + first : strip + x * channels.count;
    if (is_direct && conv.residual != nullptr)
      to.residual = conv.residual->at(b, y, left + x) + first;
    to.columns = width - x < kTile ? width - x : kTile;
    to.before = x * to.rows;
    const auto store =
        to.rows == kTile && to.columns == kTile ? store_tile<true> : store_tile<false>;
    store(products, plan.product_stride, conv.bias + first, conv.slope, channels.count, to);
  }
  if (is_direct) return;
  for (int64_t v = 0; v < to.rows; ++v) {
    store_pixels(map, channels, strip + v * to.row_stride, width,
                 conv.residual != nullptr ? conv.residual->at(b, y + v, left) : nullptr,
                 map.at(b, y + v, left));
  }
}

// ---- the gradient of the weight
// ------------------------------------------------------------------

// The transpose of transform_output.
inline void transform_gradient(const Vector d[4], Vector t[6]) {
  const Vector even_small = d[0] + 0.5f * d[2], odd_small = kSmall * (d[1] + 0.5f * d[3]);
  const Vector even_large = d[0] + 2.0f * d[2], odd_large = kLarge * (d[1] + 2.0f * d[3]);
  t[0] = d[0];
  t[1] = even_small + odd_small;
  t[2] = even_small - odd_small;
  t[3] = even_large + odd_large;
  t[4] = even_large - odd_large;
  t[5] = d[3];
}

void spread_tiles(const Convolution& conv, const Plan& plan, const Group& group, int64_t row,
                  Channels channels, const Map& gradient, float* products) {
  const Map& map = conv.target;
  const int64_t y = (group.row + row) * kTile;
  products += row * group.columns * channels.count;
  for (int64_t i = 0; i < group.columns; ++i, products += channels.count) {
    const int64_t x = (group.column + i) * kTile;
    const float* pixels = gradient.at(group.sample, y, x) + channels.first;
    for (int64_t c = 0; c < channels.count; c += kLanes) {
      Vector half[kPatch][kTile];
      for (int64_t u = 0; u < kTile; ++u) {
        Vector column[kTile], transformed[kPatch];
        for (int64_t v = 0; v < kTile; ++v) {
          const bool is_inside = y + v < map.height && x + u < map.width;
          column[v] = is_inside
                          ? load(pixels + v * gradient.row_stride + u * gradient.pixel_stride + c)
                          : Vector{};
        }
        transform_gradient(column, transformed);
        for (int64_t v = 0; v < kPatch; ++v) half[v][u] = transformed[v];
      }
      float* out = products + c;
      for (int64_t v = 0; v < kPatch; ++v) {
        Vector transformed[kPatch];
        transform_gradient(half[v], transformed);
        for (int64_t u = 0; u < kPatch; ++u, out += plan.product_stride) store(out, transformed[u]);
      }
    }
  }
}

void correlate(const Convolution& conv, const Plan& plan, const Group& group, int64_t point,
               int64_t panel, int64_t end, bool is_first, const float* operands,
               const float* products, float* sums) {
  const int64_t in = conv.source.channels;
  Product product{};
  product.c_stride = plan.target_channels;
  product.depth = group.tiles();
  product.adds = !is_first;
  for (; panel < end; ++panel) {
    const Panel at = panel_of(panel, plan.target_channels);
    product.b = products + point * plan.product_stride + group.tiles() * at.first;
    for (int64_t first = 0; first < in; first += kDepth) {
      product.a = operands + point * plan.operand_stride + group.tiles() * first;
      product.a_stride = depth_of(plan.source_channels, first);
      product.rows = depth_of(in, first);
      product.c = sums + (point * in + first) * plan.target_channels + at.first;
      multiply_panel<true>(product, at.vectors);
    }
  }
}

}  // namespace

#define OLDRESTORE_STRING_(name) #name
#define OLDRESTORE_STRING(name) OLDRESTORE_STRING_(name)

namespace OLDRESTORE_ISA {
extern const Kernels kernels;
const Kernels kernels = {
    OLDRESTORE_STRING(OLDRESTORE_ISA),
    kPanelVectors * kLanes,
    pack,
    fingerprint,
    load_tiles,
    multiply,
    store_tiles,
    spread_tiles,
    correlate,
    gather_filters,
    finish_row,
    load_row,
    sum_gradient_row,
    apply_gradient_row,
    plane_statistics,
    finish_plane,
    plane_gradient,
    pack_product,
    bottleneck_scratch,
    bottleneck_strip,
};
}  // namespace OLDRESTORE_ISA

}  // namespace oldrestore
