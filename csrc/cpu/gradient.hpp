// The gradients of a convolution with its padding, normalisation and activation, each of them a
// pass over inner maps or a Winograd convolution itself.
#pragma once

#include "convolution.hpp"

namespace oldrestore {

// Where gradients go; null: not wanted. That of a bias before a normalisation is zero.
struct LayerGradient {
  float* weight = nullptr;  // (out, in, 3, 3)
  float* bias = nullptr;    // (out)
};

// The gradient of a source. Under reflection it is first that of the padded source, one pixel wider
// on each side, then what falls on the border is added to the pixels reflected there.
struct PaddedMap {
  Workspace buffer;
  bool reflect;
  Map whole, inside;

  PaddedMap(const Map& like, bool reflect);
};

// Any map to an inner one.
void load(const Map& source, const Map& target, const Kernels& kernels, int threads);

// From the gradient of a layer's result to that of its convolution, in place. `map` is that
// convolution's result: as it is if a normalisation follows, else after the activation, of which
// only the sign counts.
void activation_gradient(const Layer& layer, const Map& gradient, const Map& map,
                         const InstanceNorm& norm, const LayerGradient& wanted, int threads);

// From the gradient of a layer's convolution, an inner map, to that of its weight. The source goes
// through source_norm, if it has any, and ReLU first.
void weight_gradient(const Layer& layer, const Map& source, const Standardise& source_norm,
                     const Map& gradient, const LayerGradient& wanted, int threads);

// The same to the gradient of its source. The layer's weights are the rotated ones.
void source_gradient(const Layer& layer, const Map& gradient, const PaddedMap& target, int threads);

}  // namespace oldrestore
