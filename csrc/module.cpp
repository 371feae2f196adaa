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

#include "cpu/residual_block.hpp"

namespace py = pybind11;
using oldrestore::PackedWeights;

namespace {

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

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
oldrestore::View view_of(const py::array& array, const std::string& name) {
  const char* expected = "float32 (B, C, H, W), contiguous or channels_last";
  require(py::isinstance<py::array_t<float>>(array) && array.ndim() == 4, name, expected, array);
  const int64_t c = array.shape(1), h = array.shape(2), w = array.shape(3);
  const int64_t layouts[2][4] = {{c * h * w, h * w, w, 1}, {c * h * w, 1, w * c, c}};
  for (const auto& strides : layouts) {
    bool holds = true;
    for (int i = 0; i < 4; ++i) {
      const int64_t bytes = strides[i] * static_cast<int64_t>(sizeof(float));
      holds = holds && (array.shape(i) <= 1 || array.strides(i) == bytes);
    }
    if (!holds && array.size() != 0) continue;
    float* data = const_cast<float*>(static_cast<const float*>(array.data()));
    return {data, strides[0], strides[1], strides[2], strides[3], c};
  }
  require(false, name, expected, array);
  return {};
}

const float* bias_of(const std::optional<py::array>& bias, const std::string& name,
                     int64_t channels) {
  return bias ? contiguous(*bias, name, {channels}) : nullptr;
}

std::unique_ptr<PackedWeights> pack(const py::array& weight, const std::string& instruction_set) {
  const int64_t channels = weight.ndim() > 0 ? weight.shape(0) : 0;
  const float* data = contiguous(weight, "weight", {channels, channels, 3, 3});
  require(channels > 0, "weight", "at least one channel", weight);
  return std::make_unique<PackedWeights>(data, channels, instruction_set);
}

bool matches(const PackedWeights& packed, const py::array& weight) {
  const int64_t c = packed.channels();
  return packed.matches(contiguous(weight, "weight", {c, c, 3, 3}));
}

void residual_block(const py::array& x, const PackedWeights& weight1,
                    const std::optional<py::array>& bias1, const PackedWeights& weight2,
                    const std::optional<py::array>& bias2, py::array& out, bool instance_norm,
                    bool reflect, int threads) {
  oldrestore::ResidualBlock block{};
  block.x = view_of(x, "x");
  block.out = view_of(out, "out");
  block.shape = {x.shape(0), x.shape(1), x.shape(2), x.shape(3)};
  const int64_t channels = x.shape(1), smallest = reflect ? 2 : 1;
  require(x.shape(2) >= smallest && x.shape(3) >= smallest, "x",
          "H and W of at least " + std::to_string(smallest), x);
  bool is_like_x = block.out.channel_stride == block.x.channel_stride && out.writeable();
  for (int i = 0; i < 4; ++i) is_like_x = is_like_x && out.shape(i) == x.shape(i);
  require(is_like_x, "out", "a writable array, shaped and laid out like x", out);
  require(weight1.channels() == channels, "weight1", "the channels of x", x);
  require(weight2.channels() == channels, "weight2", "the channels of x", x);
  if (&weight1.kernels() != &weight2.kernels()) {
    throw std::invalid_argument("weight2: packed for another instruction set than weight1");
  }
  if (threads < 1) throw std::invalid_argument("threads: expected at least 1");
  block.weight1 = &weight1;
  block.bias1 = bias_of(bias1, "bias1", channels);
  block.weight2 = &weight2;
  block.bias2 = bias_of(bias2, "bias2", channels);
  block.instance_norm = instance_norm;
  block.reflect = reflect;
  block.threads = threads;
  py::gil_scoped_release released;
  oldrestore::residual_block(block);
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
  py::class_<PackedWeights>(m, "PackedWeights", "The transformed weights of a 3x3 convolution.")
      .def(py::init(&pack), py::arg("weight").noconvert(), py::arg("instruction_set") = "")
      .def("matches", &matches, py::arg("weight").noconvert(),
           "Whether this was made from exactly these weights.");
  m.def("residual_block", &residual_block, py::arg("x").noconvert(), py::arg("weight1"),
        py::arg("bias1").noconvert(), py::arg("weight2"), py::arg("bias2").noconvert(),
        py::arg("out").noconvert(), py::arg("instance_norm"), py::arg("reflect"),
        py::arg("threads"), "out = x + norm(conv2(relu(norm(conv1(x)))))");
}
