// MobileNetV2's block (Sandler et al., CVPR 2018): 1x1 to many channels, a 3x3 filter of each, 1x1
// to few. The many channels exist for three rows of a strip at a time.
#pragma once

#include "winograd.hpp"

namespace oldrestore {

// target = narrow(relu6(filter(relu6(widen(source))))) + residual. Matrices are packed by
// Kernels::pack_product; biases and filters (9, channels) are padded.
struct Bottleneck {
  Map source, target;
  int64_t stride;      // of the filters
  int64_t above;       // rows of the source that are only neighbours of the first ones meant
  bool is_residual;    // the source, but for its neighbours, is added
  int64_t width;       // channels that are filtered
  const float* widen;  // null: the source itself is filtered
  const float* widen_bias;
  const float* filters;
  const float* filter_bias;
  const float* narrow;
  const float* narrow_bias;
};

constexpr int64_t kBottleneckColumns = 64;  // of a strip, at most

// Cells [top, bottom) x [left, right) of one sample of the target.
struct BottleneckStrip {
  int64_t sample, top, bottom, left, right;

  // Columns of the source that the filters see.
  OLDRESTORE_INLINE int64_t columns_in(int64_t stride) const {
    return (right - left - 1) * stride + 3;
  }
};

// The block's parameters as they come, contiguous; null: there is none.
struct BottleneckWeights {
  const float* widen;  // (width, channels of the source)
  const float* widen_bias;
  const float* filters;  // (width, 3, 3)
  const float* filter_bias;
  const float* narrow;  // (channels of the target, width)
  const float* narrow_bias;
};

// A bottleneck whose matrices, biases and filters are still to be filled in, by these weights.
void bottleneck(Bottleneck block, const BottleneckWeights& weights, const Kernels& kernels,
                int threads);

}  // namespace oldrestore
