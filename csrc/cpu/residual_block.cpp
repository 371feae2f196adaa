#include "residual_block.hpp"

namespace oldrestore {
namespace {

// The first or second normalisation of (4, batch, padded channels); none if there is none.
InstanceNorm norm_of(const Layer& layer, float* norms, const Map& x, int64_t i) {
  if (!layer.instance_norm) return {};
  const int64_t size = x.batch * padded_channels(x.channels);
  return {norms + 2 * i * size, norms + (2 * i + 1) * size};
}

}  // namespace

void residual_block(const ResidualBlock& block, const Map& out, const ResidualBlockSaved& saved) {
  const Map& x = block.x;
  Workspace own_inner(saved.inner == nullptr ? inner_size(x) : 0);
  const Map inner = inner_like(x, saved.inner == nullptr ? own_inner.data() : saved.inner);
  if (!block.first.instance_norm) {
    convolve(block.first, x, {}, inner, nullptr, {}, block.threads);
    convolve(block.second, inner, {}, out, &x, {}, block.threads);
    return;
  }
  Workspace own_norms(4 * x.batch * padded_channels(x.channels));
  float* norms = saved.norms == nullptr ? own_norms.data() : saved.norms;
  const InstanceNorm norm1 = norm_of(block.first, norms, x, 0);
  const InstanceNorm norm2 = norm_of(block.second, norms, x, 1);
  const bool in_place = saved.outer == nullptr && out.is_vector();
  Workspace own_outer(saved.outer == nullptr && !in_place ? inner_size(x) : 0);
  Map outer = inner_like(x, saved.outer == nullptr ? own_outer.data() : saved.outer);
  if (in_place) outer = out;
  convolve(block.first, x, {}, inner, nullptr, norm1, block.threads);
  convolve(block.second, inner, norm1.map(), outer, nullptr, norm2, block.threads);
  finish(outer, norm2.map(), 1.0f, &x, out, block.second.weights->kernels(), block.threads);
}

void residual_block_gradient(const ResidualBlock& block, const ResidualBlockSaved& saved,
                             const Map& grad_out, const Map& grad_x,
                             const LayerGradient& grad_first, const LayerGradient& grad_second) {
  const Map& x = block.x;
  const int threads = block.threads;
  const Kernels& kernels = block.first.weights->kernels();
  const InstanceNorm norm1 = norm_of(block.first, saved.norms, x, 0);
  const InstanceNorm norm2 = norm_of(block.second, saved.norms, x, 1);
  const Map inner = inner_like(x, saved.inner);

  Workspace buffer(inner_size(x));
  const Map at_outer = inner_like(x, buffer.data());
  load(grad_out, at_outer, kernels, threads);
  const Map outer = block.second.instance_norm ? inner_like(x, saved.outer) : at_outer;
  activation_gradient(block.second, at_outer, outer, norm2, grad_second, threads);
  weight_gradient(block.second, inner, norm1.map(), at_outer, grad_second, threads);
  const PaddedMap at_inner(x, block.second.reflect);
  source_gradient(block.second, at_outer, at_inner, threads);

  activation_gradient(block.first, at_inner.inside, inner, norm1, grad_first, threads);
  weight_gradient(block.first, x, {}, at_inner.inside, grad_first, threads);
  if (grad_x.data == nullptr) return;
  const PaddedMap at_x(x, block.first.reflect);
  source_gradient(block.first, at_inner.inside, at_x, threads);
  finish(at_x.inside, {}, 1.0f, &grad_out, grad_x, kernels, threads);
}

}  // namespace oldrestore
