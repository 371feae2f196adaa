// The CPU residual block: x + norm(conv(relu(norm(conv(x))))) with 3x3 convolutions, float32.
#pragma once

#include "gradient.hpp"

namespace oldrestore {

struct ResidualBlock {
  Map x;  // never written
  Layer first, second;
  int threads;
};

// What the gradient needs of the forward pass. Inner maps; null, for forward alone: not kept.
struct ResidualBlockSaved {
  float* inner = nullptr;  // of the first convolution, after ReLU if no normalisation comes between
  float* outer = nullptr;  // of the second, if it is normalised
  float* norms = nullptr;  // (4, batch, padded channels): mean and scale of inner, then of outer
};

void residual_block(const ResidualBlock& block, const Map& out, const ResidualBlockSaved& saved);

// Here the layers' weights are the rotated ones. grad_out is laid out as grad_x, whose data may be
// null: not wanted.
void residual_block_gradient(const ResidualBlock& block, const ResidualBlockSaved& saved,
                             const Map& grad_out, const Map& grad_x,
                             const LayerGradient& grad_first, const LayerGradient& grad_second);

}  // namespace oldrestore
