// The CPU convolution outside blocks: leaky_relu(norm(conv(x))), 3x3, float32.
#pragma once

#include "gradient.hpp"

namespace oldrestore {

// What the gradient needs of the forward pass, if the layer has a normalisation.
struct ConvNormActSaved {
  float* raw = nullptr;   // the convolution, an inner map
  float* norm = nullptr;  // (2, batch, padded channels): its mean and scale
};

// Null in `saved`: not kept.
void conv_norm_act(const Layer& layer, const Map& x, const Map& out, const ConvNormActSaved& saved,
                   int threads);

// Here the layer's weights are the rotated ones; `out` is read only without a normalisation.
// grad_x.data null: not wanted.
void conv_norm_act_gradient(const Layer& layer, const Map& x, const Map& out,
                            const ConvNormActSaved& saved, const Map& grad_out, const Map& grad_x,
                            const LayerGradient& gradient, int threads);

}  // namespace oldrestore
