// The CPU residual block: x + norm(conv(relu(norm(conv(x))))) with 3x3 convolutions, float32.
#pragma once

#include "winograd_plan.hpp"

namespace oldrestore {

struct ResidualBlock {
  Shape shape;
  View x;  // never written
  View out;
  const PackedWeights* weight1;
  const float* bias1;  // null: none
  const PackedWeights* weight2;
  const float* bias2;  // null: none
  bool instance_norm;
  bool reflect;  // else zero padding
  int threads;
};

void residual_block(const ResidualBlock& block);

}  // namespace oldrestore
