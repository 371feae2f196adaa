// What stands around the Winograd kernels: aligned memory, packed weights, the choice of the
// instruction set.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "winograd.hpp"

namespace oldrestore {

constexpr int64_t kCacheLine = 64;               // bytes
constexpr uintptr_t kHugePage = uintptr_t{1} << 21;  // bytes
constexpr uintptr_t kLeastOnHugePage = 4 * kHugePage;

// Uninitialised floats on a cache-line boundary; in huge pages, but for the ends, where the system
// has them. Small ones do not begin on a huge page: the allocator could not use what lies between.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size) {
    const auto bytes = static_cast<size_t>(ceil_div(size * 4 + 1, kCacheLine) * kCacheLine);
    data_ = static_cast<float*>(
        std::aligned_alloc(bytes < kLeastOnHugePage ? kCacheLine : kHugePage, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // 36 streams, one per point, are more small pages than the processor remembers
    const auto begin = reinterpret_cast<uintptr_t>(data_), end = begin + bytes;
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = end / kHugePage * kHugePage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  float* data_;
};

// A buffer whose memory is kept for later ones: up to 64 MB in all of them, or half as much again
// between keep_more and as many keep_less. The system clears the pages it hands out, which costs a
// tenth of a residual block of 512 channels, twice that on two cores.
class Workspace {
 public:
  explicit Workspace(int64_t size);
  ~Workspace();
  static void keep_more();
  static void keep_less();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* data() { return buffer_->data(); }

 private:
  int64_t size_;
  std::unique_ptr<AlignedBuffer> buffer_;
};

// The kernels this processor can run, best first.
const std::vector<const Kernels*>& supported_kernels();
// Those of this name, or the best if it is empty; throws std::invalid_argument if there are none.
const Kernels& find_kernels(const std::string& name);

// The weights of one convolution, transformed, and a fingerprint of what they were made from.
class PackedWeights {
 public:
  // weight: (out, in, 3, 3), contiguous. is_rotated: for the gradient with respect to the source,
  // which is a convolution from `out` to `in` channels. instruction_set: one of
  // supported_kernels(), or empty for the best; throws std::invalid_argument if there is none.
  PackedWeights(const float* weight, int64_t out, int64_t in, bool is_rotated,
                const std::string& instruction_set);

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  bool is_rotated() const { return is_rotated_; }
  const float* data() const { return packed_.data(); }
  const Kernels& kernels() const { return *kernels_; }
  // Whether `weight` is what this was made from, by its fingerprint.
  bool matches(const float* weight) const;

 private:
  int64_t out_, in_;
  bool is_rotated_;
  const Kernels* kernels_;
  Fingerprint fingerprint_;
  AlignedBuffer packed_;
};

}  // namespace oldrestore
