// oldrestore._cuda: device addresses and a stream in, results in the memory they point to. The
// module knows no torch and wakes no device when it is imported. An address is an integer, 0 for
// none; the caller keeps the memory alive until the stream has passed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "operations.hpp"

namespace py = pybind11;
using namespace oldrestore;  // NOLINT: a module of nothing but their bindings

namespace {

using Address = uintptr_t;
using Map = std::array<int64_t, 4>;    // B, H, W, C
using Pairs = std::array<int64_t, 5>;  // B, M, N, D, E

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

CUstream_st* stream_of(Address address) {
  return pointer<CUstream_st>(address);
}

MapShape map_of(const Map& s) {
  return {s[0], s[1], s[2], s[3]};
}

AttentionShape pairs_of(const Pairs& s) {
  return {s[0], s[1], s[2], s[3], s[4]};
}

Element element_of(const std::string& name) {
  if (name == "float32") return Element::float32;
  if (name == "float16") return Element::float16;
  if (name == "bfloat16") return Element::bfloat16;
  throw std::invalid_argument("dtype: expected float32, float16 or bfloat16, got " + name);
}

void bind_residual_block(py::module_& m) {
  m.def(
      "residual_block_workspace",
      [](const Map& shape) { return residual_block_workspace(map_of(shape)); }, py::arg("shape"),
      "Floats of workspace for a map (B, H, W, C).");
  m.def(
      "residual_block_statistics",
      [](Address y, const Map& shape, const std::string& dtype, float eps, Address workspace,
         Address mean, Address rstd, Address stream) {
        residual_block_statistics(pointer(y), map_of(shape), element_of(dtype), eps,
                                  pointer<float>(workspace), pointer<float>(mean),
                                  pointer<float>(rstd), stream_of(stream));
      },
      py::kw_only(), py::arg("y"), py::arg("shape"), py::arg("dtype"), py::arg("eps"),
      py::arg("workspace"), py::arg("mean"), py::arg("rstd"), py::arg("stream"));
  m.def(
      "residual_block_forward",
      [](Address y, Address mean, Address rstd, Address residual, Address out, int pad,
         std::optional<float> slope, const Map& shape, const std::string& dtype, Address stream) {
        const ResidualBlockForward arguments = {
            pointer(y), pointer<float>(mean), pointer<float>(rstd), pointer(residual), pointer(out),
            pad,        slope.has_value(),    slope.value_or(0.0f),
        };
        residual_block_forward(arguments, map_of(shape), element_of(dtype), stream_of(stream));
      },
      py::kw_only(), py::arg("y"), py::arg("mean"), py::arg("rstd"), py::arg("residual"),
      py::arg("out"), py::arg("pad"), py::arg("slope"), py::arg("shape"), py::arg("dtype"),
      py::arg("stream"), "out = pad(leaky_relu((y - mean) * rstd)) + residual");
  m.def(
      "residual_block_backward",
      [](Address y, Address mean, Address rstd, Address grad, Address out, Address workspace,
         int pad, std::optional<float> slope, const Map& shape, const std::string& dtype,
         Address stream) {
        const ResidualBlockBackward arguments = {
            pointer(y),    pointer<float>(mean), pointer<float>(rstd),
            pointer(grad), pointer(out),         pointer<float>(workspace),
            pad,           slope.has_value(),    slope.value_or(0.0f),
        };
        residual_block_backward(arguments, map_of(shape), element_of(dtype), stream_of(stream));
      },
      py::kw_only(), py::arg("y"), py::arg("mean"), py::arg("rstd"), py::arg("grad"),
      py::arg("out"), py::arg("workspace"), py::arg("pad"), py::arg("slope"), py::arg("shape"),
      py::arg("dtype"), py::arg("stream"),
      "out = the gradient of y, from that of pad(leaky_relu((y - mean) * rstd))");
}

void bind_lists(py::module_& m) {
  m.def(
      "list_undamaged",
      [](Address mask, int64_t batch, int64_t n, const std::string& dtype, Address list,
         Address count, Address bias, Address stream) {
        list_undamaged(pointer(mask), batch, n, element_of(dtype), pointer<int>(list),
                       pointer<int>(count), pointer<float>(bias), stream_of(stream));
      },
      py::kw_only(), py::arg("mask"), py::arg("batch"), py::arg("n"), py::arg("dtype"),
      py::arg("list"), py::arg("count"), py::arg("bias"), py::arg("stream"),
      "Per sample: which cells have mask < 1, how many, and log(1 - mask) of them.");
  m.def(
      "list_damaged",
      [](Address mask, int64_t batch, int64_t n, const std::string& dtype, Address list,
         Address count, Address stream) {
        list_damaged(pointer(mask), batch, n, element_of(dtype), pointer<int>(list),
                     pointer<int>(count), stream_of(stream));
      },
      py::kw_only(), py::arg("mask"), py::arg("batch"), py::arg("n"), py::arg("dtype"),
      py::arg("list"), py::arg("count"), py::arg("stream"),
      "Per sample: which cells have mask > 0, and how many.");
}

void bind_partial_nonlocal(py::module_& m) {
  py::class_<AttentionLists>(m, "AttentionLists", py::module_local(),
                             "Which queries and keys take part.")
      .def(py::init([](Address key_list, Address key_count, Address key_bias, Address query_list,
                       Address query_count) {
             return AttentionLists{pointer<int>(key_list), pointer<int>(key_count),
                                   pointer<float>(key_bias), pointer<int>(query_list),
                                   pointer<int>(query_count)};
           }),
           py::kw_only(), py::arg("key_list"), py::arg("key_count"), py::arg("key_bias"),
           py::arg("query_list"), py::arg("query_count"));
  m.def(
      "partial_nonlocal_forward",
      [](Address query, Address key, Address value, Address out, Address lse,
         const AttentionLists& lists, const Pairs& shape, const std::string& dtype,
         Address stream) {
        const AttentionForward arguments = {pointer(query), pointer(key), pointer(value),
                                            pointer(out), pointer<float>(lse)};
        partial_nonlocal_forward(arguments, lists, pairs_of(shape), element_of(dtype),
                                 stream_of(stream));
      },
      py::kw_only(), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"),
      py::arg("lse"), py::arg("lists"), py::arg("shape"), py::arg("dtype"), py::arg("stream"),
      "out (B, M, E) and lse (B, M); shape is (B, M, N, D, E).");
  m.def(
      "partial_nonlocal_backward",
      [](Address query, Address key, Address value, Address out, Address grad, Address lse,
         Address delta, Address grad_query, Address grad_key, Address grad_value,
         const AttentionLists& lists, const Pairs& shape, const std::string& dtype,
         Address stream) {
        const AttentionBackward arguments = {
            pointer(query),    pointer(key),        pointer(value),        pointer(out),
            pointer(grad),     pointer<float>(lse), pointer<float>(delta), pointer(grad_query),
            pointer(grad_key), pointer(grad_value),
        };
        partial_nonlocal_backward(arguments, lists, pairs_of(shape), element_of(dtype),
                                  stream_of(stream));
      },
      py::kw_only(), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"),
      py::arg("grad"), py::arg("lse"), py::arg("delta"), py::arg("grad_query"), py::arg("grad_key"),
      py::arg("grad_value"), py::arg("lists"), py::arg("shape"), py::arg("dtype"),
      py::arg("stream"), "The gradients whose address is not 0.");
}

void bind_patch_attention(py::module_& m) {
  m.def("patch_attention_splits", &patch_attention_splits, py::arg("n"),
        "Parts of the search's workspace for n patches.");
  m.def(
      "patch_attention_search",
      [](Address patches, Address query_list, Address query_count, Address key_list,
         Address key_count, Address best_score, Address best_index, Address source, int64_t batch,
         int64_t n, int64_t depth, Address stream) {
        const PatchSearch arguments = {
            pointer<float>(patches),  pointer<int>(query_list), pointer<int>(query_count),
            pointer<int>(key_list),   pointer<int>(key_count),  pointer<float>(best_score),
            pointer<int>(best_index), pointer<int64_t>(source),
        };
        patch_attention_search(arguments, batch, n, depth, stream_of(stream));
      },
      py::kw_only(), py::arg("patches"), py::arg("query_list"), py::arg("query_count"),
      py::arg("key_list"), py::arg("key_count"), py::arg("best_score"), py::arg("best_index"),
      py::arg("source"), py::arg("batch"), py::arg("n"), py::arg("depth"), py::arg("stream"),
      "source (B, N) int64: of each listed query the most similar listed key, -1 without one.");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of oldrestore. Every function returns before the device is done.";
  bind_residual_block(m);
  bind_lists(m);
  bind_partial_nonlocal(m);
  bind_patch_attention(m);
}
