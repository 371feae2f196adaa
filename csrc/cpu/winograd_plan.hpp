// What stands around the Winograd kernels: aligned memory, packed weights, the choice of the
// instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "winograd.hpp"

namespace oldrestore {

constexpr int64_t kCacheLine = 64;  // bytes

// Uninitialised floats on a cache-line boundary.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size)
      : data_(static_cast<float*>(std::aligned_alloc(
            kCacheLine, static_cast<size_t>(ceil_div(size * 4 + 1, kCacheLine) * kCacheLine)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  float* data_;
};

// The kernels this processor can run, best first.
const std::vector<const Kernels*>& supported_kernels();

// The weights of one convolution, transformed, and a copy of what they were made from.
class PackedWeights {
 public:
  // weight: (channels, channels, 3, 3), contiguous. instruction_set: one of supported_kernels(), or
  // empty for the best. Throws std::invalid_argument if there is none of that name.
  PackedWeights(const float* weight, int64_t channels, const std::string& instruction_set);

  int64_t channels() const { return channels_; }
  const float* data() const { return packed_.data(); }
  const Kernels& kernels() const { return *kernels_; }
  // Whether `weight` is bit for bit what this was made from.
  bool matches(const float* weight) const;

 private:
  int64_t channels_;
  const Kernels* kernels_;
  std::vector<float> source_;
  AlignedBuffer packed_;
};

}  // namespace oldrestore
