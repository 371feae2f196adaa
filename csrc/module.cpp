// oldrestore._C: NumPy arrays in, NumPy arrays out. Python's side of every operation is in
// oldrestore/ops; what is checked here is what the kernels rely on.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bottleneck.hpp"
#include "cpu/conv_norm_act.hpp"
#include "cpu/instance_norm_act.hpp"
#include "cpu/residual_block.hpp"

namespace py = pybind11;
using oldrestore::LayerGradient;
using oldrestore::Map;
using oldrestore::PackedWeights;
using oldrestore::Workspace;
using Array = std::optional<py::array>;

namespace {

std::string shape_of(const py::array& array) {
  return py::str(array.attr("shape"));
}

void require(bool holds, const std::string& name, const std::string& expected,
             const py::array& got) {
  if (holds) return;
  throw std::invalid_argument(name + ": expected " + expected + ", got " +
                              std::string(py::str(py::dtype(got.dtype()))) + " " + shape_of(got));
}

// The data of a contiguous float32 array of this shape.
const float* contiguous(const py::array& array, const std::string& name,
                        const std::vector<int64_t>& shape) {
  std::string expected = "contiguous float32 (";
  for (size_t i = 0; i < shape.size(); ++i) {
    expected += (i ? ", " : "") + std::to_string(shape[i]);
  }
  bool holds = py::isinstance<py::array_t<float>>(array) &&
               (array.flags() & py::array::c_style) != 0 &&
               array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; holds && i < shape.size(); ++i) holds = array.shape(i) == shape[i];
  require(holds, name, expected + ")", array);
  return static_cast<const float*>(array.data());
}

// A (B, C, H, W) float32 array, NCHW or NHWC in memory.
Map map_of(const py::array& array, const std::string& name) {
  const char* expected = "float32 (B, C, H, W), contiguous or channels_last";
  require(py::isinstance<py::array_t<float>>(array) && array.ndim() == 4, name, expected, array);
  const int64_t b = array.shape(0), c = array.shape(1), h = array.shape(2), w = array.shape(3);
  const int64_t layouts[2][4] = {{c * h * w, h * w, w, 1}, {c * h * w, 1, w * c, c}};
  for (const auto& strides : layouts) {
    bool holds = true;
    for (int i = 0; i < 4; ++i) {
      const int64_t bytes = strides[i] * static_cast<int64_t>(sizeof(float));
      holds = holds && (array.shape(i) <= 1 || array.strides(i) == bytes);
    }
    if (!holds && array.size() != 0) continue;
    float* data = const_cast<float*>(static_cast<const float*>(array.data()));
    return {data, b, c, h, w, strides[0], strides[1], strides[2], strides[3], c};
  }
  require(false, name, expected, array);
  return {};
}

const float* bias_of(const Array& bias, const std::string& name, int64_t channels) {
  return bias ? contiguous(*bias, name, {channels}) : nullptr;
}

// Where to write: a contiguous array of this shape, or null for None.
float* target_of(const Array& array, const std::string& name, const std::vector<int64_t>& shape) {
  if (!array) return nullptr;
  require(array->writeable(), name, "a writable array", *array);
  return const_cast<float*>(contiguous(*array, name, shape));
}

// A map of this many channels that is otherwise like x; if `same_layout`, in memory too.
Map map_like(const py::array& array, const std::string& name, const py::array& x, int64_t channels,
             bool same_layout) {
  const Map map = map_of(array, name), like = map_of(x, "x");
  const bool holds = map.batch == like.batch && map.channels == channels &&
                     map.height == like.height && map.width == like.width && array.writeable() &&
                     (!same_layout || map.channel_stride == like.channel_stride);
  require(holds, name, "a writable array, shaped and laid out like x", array);
  return map;
}

Map optional_like(const Array& array, const std::string& name, const py::array& x) {
  return array ? map_like(*array, name, x, x.shape(1), true) : Map{};
}

std::unique_ptr<PackedWeights> pack(const py::array& weight, bool is_rotated,
                                    const std::string& instruction_set) {
  const int64_t out = weight.ndim() > 0 ? weight.shape(0) : 0;
  const int64_t in = weight.ndim() > 1 ? weight.shape(1) : 0;
  const float* data = contiguous(weight, "weight", {out, in, 3, 3});
  require(out > 0 && in > 0, "weight", "at least one channel", weight);
  return std::make_unique<PackedWeights>(data, out, in, is_rotated, instruction_set);
}

bool matches(const PackedWeights& packed, const py::array& weight) {
  const int64_t out = packed.is_rotated() ? packed.in() : packed.out();
  const int64_t in = packed.is_rotated() ? packed.out() : packed.in();
  return packed.matches(contiguous(weight, "weight", {out, in, 3, 3}));
}

// The checks that every operation shares, and x.
Map source_of(const py::array& x, bool reflect, int threads) {
  const Map map = map_of(x, "x");
  const int64_t smallest = reflect ? 2 : 1;
  require(map.height >= smallest && map.width >= smallest, "x",
          "H and W of at least " + std::to_string(smallest), x);
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1");
  return map;
}

oldrestore::Layer layer_of(const PackedWeights& weight, const std::string& name, int64_t in,
                           int64_t out, bool is_rotated, const float* bias, bool instance_norm,
                           bool reflect, float slope) {
  if (weight.is_rotated() != is_rotated) {
    throw std::invalid_argument(name + ": packed for the other direction");
  }
  if (weight.in() != in || weight.out() != out) {
    throw std::invalid_argument(name + ": expected weights from " + std::to_string(in) + " to " +
                                std::to_string(out) + " channels, like x");
  }
  return {&weight, bias, instance_norm, reflect, slope};
}

oldrestore::ResidualBlock block_of(const py::array& x, const PackedWeights& weight1,
                                   const Array& bias1, const PackedWeights& weight2,
                                   const Array& bias2, bool is_rotated, bool instance_norm,
                                   bool reflect, int threads) {
  oldrestore::ResidualBlock block{};
  block.x = source_of(x, reflect, threads);
  const int64_t c = block.x.channels;
  block.first = layer_of(weight1, "weight1", c, c, is_rotated, bias_of(bias1, "bias1", c),
                         instance_norm, reflect, 0.0f);
  block.second = layer_of(weight2, "weight2", c, c, is_rotated, bias_of(bias2, "bias2", c),
                          instance_norm, reflect, 1.0f);
  if (&weight1.kernels() != &weight2.kernels()) {
    throw std::invalid_argument("weight2: packed for another instruction set than weight1");
  }
  block.threads = threads;
  return block;
}

oldrestore::ResidualBlockSaved saved_of(const Map& x, const Array& inner, const Array& outer,
                                        const Array& norms) {
  const int64_t padded = oldrestore::padded_channels(x.channels);
  const std::vector<int64_t> shape = {x.batch, x.height, x.width, padded};
  return {target_of(inner, "inner", shape), target_of(outer, "outer", shape),
          target_of(norms, "norms", {4, x.batch, padded})};
}

void residual_block(const py::array& x, const PackedWeights& weight1, const Array& bias1,
                    const PackedWeights& weight2, const Array& bias2, const py::array& out,
                    const Array& inner, const Array& outer, const Array& norms, bool instance_norm,
                    bool reflect, int threads) {
  const auto block =
      block_of(x, weight1, bias1, weight2, bias2, false, instance_norm, reflect, threads);
  const Map target = map_like(out, "out", x, block.x.channels, true);
  const auto saved = saved_of(block.x, inner, outer, norms);
  py::gil_scoped_release released;
  if (x.size() != 0) oldrestore::residual_block(block, target, saved);
}

void residual_block_gradient(const py::array& x, const PackedWeights& weight1,
                             const PackedWeights& weight2, const py::array& inner,
                             const Array& outer, const Array& norms, const py::array& grad_out,
                             const Array& grad_x, const Array& grad_weight1,
                             const Array& grad_bias1, const Array& grad_weight2,
                             const Array& grad_bias2, bool instance_norm, bool reflect,
                             int threads) {
  const auto block = block_of(x, weight1, {}, weight2, {}, true, instance_norm, reflect, threads);
  const int64_t c = block.x.channels;
  const Map gradient = map_like(grad_out, "grad_out", x, c, true);
  const Map target = optional_like(grad_x, "grad_x", x);
  const auto saved = saved_of(block.x, inner, outer, norms);
  if (instance_norm && (saved.outer == nullptr || saved.norms == nullptr)) {
    throw std::invalid_argument("outer, norms: expected arrays, as there is a normalisation");
  }
  const LayerGradient first{target_of(grad_weight1, "grad_weight1", {c, c, 3, 3}),
                            target_of(grad_bias1, "grad_bias1", {c})};
  const LayerGradient second{target_of(grad_weight2, "grad_weight2", {c, c, 3, 3}),
                             target_of(grad_bias2, "grad_bias2", {c})};
  py::gil_scoped_release released;
  oldrestore::residual_block_gradient(block, saved, gradient, target, first, second);
}

oldrestore::ConvNormActSaved conv_saved_of(const Map& out, const Array& raw, const Array& norm) {
  const int64_t padded = oldrestore::padded_channels(out.channels);
  return {target_of(raw, "raw", {out.batch, out.height, out.width, padded}),
          target_of(norm, "norm", {2, out.batch, padded})};
}

void conv_norm_act(const py::array& x, const PackedWeights& weight, const Array& bias,
                   const py::array& out, const Array& raw, const Array& norm, bool instance_norm,
                   bool reflect, float slope, int threads) {
  const Map source = source_of(x, reflect, threads);
  const Map target = map_like(out, "out", x, weight.out(), false);
  const auto layer = layer_of(weight, "weight", source.channels, weight.out(), false,
                              bias_of(bias, "bias", weight.out()), instance_norm, reflect, slope);
  const auto saved = conv_saved_of(target, raw, norm);
  py::gil_scoped_release released;
  if (x.size() != 0) oldrestore::conv_norm_act(layer, source, target, saved, threads);
}

void conv_rows(const py::array& x, const PackedWeights& weight, const Array& bias,
               const Array& residual, const py::array& out, bool reflect, float slope,
               int threads) {
  const Map source = source_of(x, false, threads), target = map_of(out, "out");
  require(target.batch == source.batch && target.channels == weight.out() &&
              target.height == source.height - 2 && target.width == source.width &&
              target.width >= (reflect ? 2 : 1) && out.writeable(),
          "out", "a writable array, of two rows less than x", out);
  Map added{};
  if (residual) added = map_like(*residual, "residual", out, target.channels, true);
  const auto layer = layer_of(weight, "weight", source.channels, weight.out(), false,
                              bias_of(bias, "bias", weight.out()), false, reflect, slope);
  py::gil_scoped_release released;
  if (out.size() == 0) return;
  oldrestore::convolve(layer, source, {}, target, residual ? &added : nullptr, {}, threads);
}

void conv_norm_act_gradient(const py::array& x, const PackedWeights& weight, const py::array& out,
                            const Array& raw, const Array& norm, const py::array& grad_out,
                            const Array& grad_x, const Array& grad_weight, const Array& grad_bias,
                            bool instance_norm, bool reflect, float slope, int threads) {
  const Map source = source_of(x, reflect, threads);
  const int64_t in = source.channels, channels = weight.in();
  const Map target = map_like(out, "out", x, channels, false);
  const Map gradient = map_like(grad_out, "grad_out", x, channels, false);
  const auto layer =
      layer_of(weight, "weight", channels, in, true, nullptr, instance_norm, reflect, slope);
  const auto saved = conv_saved_of(target, raw, norm);
  if (instance_norm && (saved.raw == nullptr || saved.norm == nullptr)) {
    throw std::invalid_argument("raw, norm: expected arrays, as there is a normalisation");
  }
  const LayerGradient wanted{target_of(grad_weight, "grad_weight", {channels, in, 3, 3}),
                             target_of(grad_bias, "grad_bias", {channels})};
  const Map to = optional_like(grad_x, "grad_x", x);
  py::gil_scoped_release released;
  oldrestore::conv_norm_act_gradient(layer, source, target, saved, gradient, to, wanted, threads);
}

void bottleneck(const py::array& x, const std::optional<py::array>& widen, const Array& widen_bias,
                const py::array& filters, const Array& filter_bias, const py::array& narrow,
                const Array& narrow_bias, const py::array& out, int stride, int above, int below,
                bool is_residual, int threads, const std::string& instruction_set) {
  oldrestore::Bottleneck block{};
  block.source = source_of(x, false, threads);
  block.target = map_of(out, "out");
  block.width = filters.ndim() > 0 ? filters.shape(0) : 0;
  block.stride = stride;
  block.above = above;
  block.is_residual = is_residual;
  const int64_t in = block.source.channels, width = block.width, channels = block.target.channels;
  const int64_t rows = block.source.height - above - below;
  if (stride != 1 && stride != 2) throw std::invalid_argument("stride: expected 1 or 2");
  if (above < 0 || above > 1 || below < 0 || below > 1) {
    throw std::invalid_argument("above, below: expected 0 or 1");
  }
  require(block.target.batch == block.source.batch && rows > 0 && rows % stride == 0 &&
              block.source.width % stride == 0 && block.target.height == rows / stride &&
              block.target.width == block.source.width / stride && out.writeable(),
          "out", "a writable array of x's rows and columns, over the stride", out);
  require(!is_residual || (stride == 1 && channels == in), "out", "x's channels and sides", out);
  require(widen || width == in, "filters", "as many as x has channels", filters);
  oldrestore::BottleneckWeights weights{};
  if (widen) weights.widen = contiguous(*widen, "widen", {width, in});
  weights.widen_bias = bias_of(widen_bias, "widen_bias", width);
  weights.filters = contiguous(filters, "filters", {width, 3, 3});
  weights.filter_bias = bias_of(filter_bias, "filter_bias", width);
  weights.narrow = contiguous(narrow, "narrow", {channels, width});
  weights.narrow_bias = bias_of(narrow_bias, "narrow_bias", channels);
  const auto& kernels = oldrestore::find_kernels(instruction_set);
  py::gil_scoped_release released;
  if (x.size() != 0) oldrestore::bottleneck(block, weights, kernels, threads);
}

oldrestore::Planes planes_of(const py::array& x) {
  const int64_t count = x.ndim() > 0 ? x.shape(0) : 0, size = x.ndim() > 1 ? x.shape(1) : 0;
  return {contiguous(x, "x", {count, size}), count, size};
}

oldrestore::InstanceNorm plane_norm_of(const py::array& norm, const oldrestore::Planes& x) {
  float* data = target_of(norm, "norm", {2, x.count});
  return {data, data + x.count};
}

void instance_norm_act(const py::array& x, const py::array& out, const py::array& norm, float slope,
                       int threads, const std::string& instruction_set) {
  const auto planes = planes_of(x);
  float* target = target_of(out, "out", {planes.count, planes.size});
  const auto by = plane_norm_of(norm, planes);
  const auto& kernels = oldrestore::find_kernels(instruction_set);
  py::gil_scoped_release released;
  oldrestore::instance_norm_act(planes, slope, target, by, kernels, threads);
}

void instance_norm_act_gradient(const py::array& x, const py::array& norm,
                                const py::array& grad_out, const py::array& grad_x, float slope,
                                int threads, const std::string& instruction_set) {
  const auto planes = planes_of(x);
  const float* gradient = contiguous(grad_out, "grad_out", {planes.count, planes.size});
  float* target = target_of(grad_x, "grad_x", {planes.count, planes.size});
  const auto by = plane_norm_of(norm, planes);
  const auto& kernels = oldrestore::find_kernels(instruction_set);
  py::gil_scoped_release released;
  oldrestore::instance_norm_act_gradient(planes, gradient, slope, by, target, kernels, threads);
}

py::array empty(int64_t size) {
  if (size < 0) throw std::invalid_argument("size: expected at least 0");
  auto owner = std::make_unique<Workspace>(size);
  float* data = owner->data();
  py::capsule base(owner.get(), [](void* owned) { delete static_cast<Workspace*>(owned); });
  owner.release();
  return py::array_t<float>(size, data, base);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const oldrestore::Kernels* kernels : oldrestore::supported_kernels()) {
    names.emplace_back(kernels->name);
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native CPU kernels of oldrestore. Float32 arrays; the caller keeps them alive.";
  m.def("instruction_sets", &instruction_sets, "What this processor can run, best first.");
#if defined(_OPENMP)
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
  m.def("empty", &empty, py::arg("size"),
        "Uninitialised floats, whose memory is kept for later ones when they are freed.");
  m.def("keep_freed_memory", &Workspace::keep_more,
        "96 MB of it instead of 64, until as many return_freed_memory.");
  m.def("return_freed_memory", &Workspace::keep_less, "What is kept above 64 MB is given back.");
  py::class_<PackedWeights>(m, "PackedWeights", "The transformed weights of a 3x3 convolution.")
      .def(py::init(&pack), py::arg("weight").noconvert(), py::arg("is_rotated") = false,
           py::arg("instruction_set") = "",
           "Rotated: for the convolution that gives the gradient of the source.")
      .def("matches", &matches, py::arg("weight").noconvert(),
           "Whether this was made from these weights.");
  const auto none = py::none();
  m.def("residual_block", &residual_block, py::arg("x").noconvert(), py::arg("weight1"),
        py::arg("bias1").noconvert(), py::arg("weight2"), py::arg("bias2").noconvert(),
        py::arg("out").noconvert(), py::arg("inner").noconvert() = none,
        py::arg("outer").noconvert() = none, py::arg("norms").noconvert() = none, py::kw_only(),
        py::arg("instance_norm"), py::arg("reflect"), py::arg("threads"),
        "out = x + norm(conv2(relu(norm(conv1(x))))); inner, outer, norms: kept for the gradient");
  m.def("residual_block_gradient", &residual_block_gradient, py::arg("x").noconvert(),
        py::arg("weight1"), py::arg("weight2"), py::arg("inner").noconvert(),
        py::arg("outer").noconvert(), py::arg("norms").noconvert(), py::arg("grad_out").noconvert(),
        py::arg("grad_x").noconvert(), py::arg("grad_weight1").noconvert(),
        py::arg("grad_bias1").noconvert(), py::arg("grad_weight2").noconvert(),
        py::arg("grad_bias2").noconvert(), py::kw_only(), py::arg("instance_norm"),
        py::arg("reflect"), py::arg("threads"),
        "From grad_out to the gradients that are not None; the weights are packed rotated.");
  m.def("conv_norm_act", &conv_norm_act, py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias").noconvert(), py::arg("out").noconvert(), py::arg("raw").noconvert() = none,
        py::arg("norm").noconvert() = none, py::kw_only(), py::arg("instance_norm"),
        py::arg("reflect"), py::arg("slope"), py::arg("threads"),
        "out = leaky_relu(norm(conv(x))); raw, norm: kept for the gradient");
  m.def("conv_rows", &conv_rows, py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias").noconvert(), py::arg("residual").noconvert(), py::arg("out").noconvert(),
        py::kw_only(), py::arg("reflect"), py::arg("slope"), py::arg("threads"),
        "out = leaky_relu(conv(x)) + residual, without the first and the last row of x");
  m.def("conv_norm_act_gradient", &conv_norm_act_gradient, py::arg("x").noconvert(),
        py::arg("weight"), py::arg("out").noconvert(), py::arg("raw").noconvert(),
        py::arg("norm").noconvert(), py::arg("grad_out").noconvert(), py::arg("grad_x").noconvert(),
        py::arg("grad_weight").noconvert(), py::arg("grad_bias").noconvert(), py::kw_only(),
        py::arg("instance_norm"), py::arg("reflect"), py::arg("slope"), py::arg("threads"),
        "From grad_out to the gradients that are not None; the weight is packed rotated.");
  m.def("bottleneck", &bottleneck, py::arg("x").noconvert(), py::arg("widen").noconvert(),
        py::arg("widen_bias").noconvert(), py::arg("filters").noconvert(),
        py::arg("filter_bias").noconvert(), py::arg("narrow").noconvert(),
        py::arg("narrow_bias").noconvert(), py::arg("out").noconvert(), py::kw_only(),
        py::arg("stride"), py::arg("above"), py::arg("below"), py::arg("residual"),
        py::arg("threads"), py::arg("instruction_set") = "",
        "out = narrow(relu6(filter(relu6(widen(x))))) [+ x], of x without its neighbours' rows");
  m.def("instance_norm_act", &instance_norm_act, py::arg("x").noconvert(),
        py::arg("out").noconvert(), py::arg("norm").noconvert(), py::kw_only(), py::arg("slope"),
        py::arg("threads"), py::arg("instruction_set") = "",
        "out = leaky_relu(norm(x)) of each row of x; norm (2, rows) gets means and scales");
  m.def("instance_norm_act_gradient", &instance_norm_act_gradient, py::arg("x").noconvert(),
        py::arg("norm").noconvert(), py::arg("grad_out").noconvert(),
        py::arg("grad_x").noconvert(), py::kw_only(), py::arg("slope"), py::arg("threads"),
        py::arg("instruction_set") = "", "From grad_out to grad_x.");
}
