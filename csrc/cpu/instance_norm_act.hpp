// Instance norm and leaky ReLU of NCHW pictures, and their gradient.
#pragma once

#include "convolution.hpp"

namespace oldrestore {

struct Planes {
  const float* data;
  int64_t count, size;  // planes, floats of each
};

// out = leaky_relu(norm(x)); `norm`, which must have room, gets what normalises each plane.
void instance_norm_act(const Planes& x, float slope, float* out, const InstanceNorm& norm,
                       const Kernels& kernels, int threads);

// From the gradient of `out` to that of x.
void instance_norm_act_gradient(const Planes& x, const float* grad_out, float slope,
                                const InstanceNorm& norm, float* grad_x, const Kernels& kernels,
                                int threads);

}  // namespace oldrestore
