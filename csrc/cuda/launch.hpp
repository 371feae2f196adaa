// What every launcher shares: element types by name, checks that throw, launches that are checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "element.cuh"
#include "operations.hpp"

namespace oldrestore {

// Call body with a null pointer of the element type.
template <class Body>
void with_element(Element element, Body body) {
  switch (element) {
    case Element::float32: return body(static_cast<float*>(nullptr));
    case Element::float16: return body(static_cast<__half*>(nullptr));
    case Element::bfloat16: return body(static_cast<__nv_bfloat16*>(nullptr));
  }
}

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

inline void require_pointer(const void* pointer, const char* name) {
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + ": null pointer");
}

// Run a kernel on so many blocks; none is no error.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, dim3 threads,
            cudaStream_t stream, Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) {
    throw std::invalid_argument(std::string(name) + ": expected at most 2147483647 blocks, got " +
                                std::to_string(blocks));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace oldrestore
