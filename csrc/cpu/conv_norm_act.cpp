#include "conv_norm_act.hpp"

namespace oldrestore {
namespace {

InstanceNorm norm_of(const Layer& layer, float* norm, const Map& out) {
  if (!layer.instance_norm) return {};
  return {norm, norm + out.batch * padded_channels(out.channels)};
}

}  // namespace

void conv_norm_act(const Layer& layer, const Map& x, const Map& out, const ConvNormActSaved& saved,
                   int threads) {
  if (!layer.instance_norm) {
    convolve(layer, x, {}, out, nullptr, {}, threads);
    return;
  }
  Workspace own_norm(2 * out.batch * padded_channels(out.channels));
  const InstanceNorm norm =
      norm_of(layer, saved.norm == nullptr ? own_norm.data() : saved.norm, out);
  const bool in_place = saved.raw == nullptr && out.is_vector();
  Workspace own_raw(saved.raw == nullptr && !in_place ? inner_size(out) : 0);
  Map raw = inner_like(out, saved.raw == nullptr ? own_raw.data() : saved.raw);
  if (in_place) raw = out;
  convolve(layer, x, {}, raw, nullptr, norm, threads);
  finish(raw, norm.map(), layer.slope, nullptr, out, layer.weights->kernels(), threads);
}

void conv_norm_act_gradient(const Layer& layer, const Map& x, const Map& out,
                            const ConvNormActSaved& saved, const Map& grad_out, const Map& grad_x,
                            const LayerGradient& gradient, int threads) {
  const Kernels& kernels = layer.weights->kernels();
  Workspace buffer(inner_size(out)), other(layer.instance_norm ? 0 : inner_size(out));
  const Map at_out = inner_like(out, buffer.data());
  load(grad_out, at_out, kernels, threads);
  const Map map = inner_like(out, layer.instance_norm ? saved.raw : other.data());
  if (!layer.instance_norm) load(out, map, kernels, threads);
  activation_gradient(layer, at_out, map, norm_of(layer, saved.norm, out), gradient, threads);
  weight_gradient(layer, x, {}, at_out, gradient, threads);
  if (grad_x.data == nullptr) return;
  const PaddedMap at_x(x, layer.reflect);
  source_gradient(layer, at_out, at_x, threads);
  finish(at_x.inside, {}, 1.0f, nullptr, grad_x, kernels, threads);
}

}  // namespace oldrestore
