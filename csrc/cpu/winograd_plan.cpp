#include "winograd_plan.hpp"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace oldrestore {

// One per compilation of winograd.cpp.
#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

namespace {

// Tiles of a thread's own group; measured on 2 MB of second-level cache.
constexpr int64_t kOwnTiles = 32;
// Operands and products of a shared group: they go through the last-level cache, and bound the
// memory that a convolution needs.
constexpr int64_t kSharedFloats = int64_t{3} << 20;

// In all buffers between calls: usually, and while a photo is worked on. A map of 512 channels at
// 128 x 128 has 8 M, and a block frees two of them and works in a third.
constexpr int64_t kKeptFloats = int64_t{16} << 20;
constexpr int64_t kMostKeptFloats = int64_t{24} << 20;
constexpr int64_t kMostSpare = 2;  // times the floats asked for: a buffer may be so large

struct Buffer {
  int64_t size;
  std::unique_ptr<AlignedBuffer> memory;
};

struct Kept {
  std::mutex mutex;
  std::vector<Buffer> buffers;  // freed first to last
  int64_t total = 0;
  int users_of_more = 0;

  // The smallest that holds `size` floats without waste; none: its memory is null.
  Buffer take(int64_t size) {
    auto best = buffers.end();
    for (auto i = buffers.begin(); i != buffers.end(); ++i) {
      const bool fits = i->size >= size && i->size <= kMostSpare * size;
      if (fits && (best == buffers.end() || i->size <= best->size)) best = i;
    }
    if (best == buffers.end()) return {size, nullptr};
    Buffer taken = std::move(*best);
    buffers.erase(best);
    total -= taken.size;
    return taken;
  }

  void trim() {
    const int64_t most = users_of_more > 0 ? kMostKeptFloats : kKeptFloats;
    while (total > most) {
      total -= buffers.front().size;
      buffers.erase(buffers.begin());
    }
  }
};
Kept& kept() {
  static auto* const instance = new Kept;  // never destroyed: tensors may outlive the module
  return *instance;
}

}  // namespace

Workspace::Workspace(int64_t size) {
  {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    Buffer taken = kept().take(size);
    size_ = taken.size;
    buffer_ = std::move(taken.memory);
  }
  if (buffer_ == nullptr) buffer_ = std::make_unique<AlignedBuffer>(size);
}

Workspace::~Workspace() {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  kept().buffers.push_back({size_, std::move(buffer_)});
  kept().total += size_;
  kept().trim();
}

void Workspace::keep_more() {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  ++kept().users_of_more;
}

void Workspace::keep_less() {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  --kept().users_of_more;
  kept().trim();
}

const std::vector<const Kernels*>& supported_kernels() {
  static const std::vector<const Kernels*> supported = [] {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
      found.push_back(&avx512::kernels);
    }
    if (has_fma) found.push_back(&avx2::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
  }();
  return supported;
}

const Kernels& find_kernels(const std::string& name) {
  if (name.empty()) return *supported_kernels().front();
  for (const Kernels* kernels : supported_kernels()) {
    if (name == kernels->name) return *kernels;
  }
  throw std::invalid_argument("instruction_set: this processor cannot run " + name);
}

Plan::Plan(const Convolution& convolution, bool is_shared) : is_shared(is_shared) {
  const Map& target = convolution.target;
  source_channels = padded_channels(convolution.source.channels);
  target_channels = padded_channels(target.channels);
  tile_rows = ceil_div(target.height, kTile);
  tile_columns = ceil_div(target.width, kTile);
  int64_t most = kOwnTiles;
  if (is_shared) {
    most = std::max(kOwnTiles, kSharedFloats / (kPoints * (source_channels + target_channels)));
  }
  columns = ceil_div(tile_columns, ceil_div(tile_columns, most));
  rows = std::min(tile_rows, std::max<int64_t>(1, most / columns));
  rows = ceil_div(tile_rows, ceil_div(tile_rows, rows));  // even shares
  groups_down = ceil_div(tile_rows, rows);
  groups_across = ceil_div(tile_columns, columns);
  groups = target.batch * groups_down * groups_across;
  slots = tile_rows * groups_across;
  // one line more than needed, or all points of a tile would fall into the same cache set
  operand_stride = rows * columns * source_channels + kChannelBlock;
  product_stride = rows * columns * (is_shared ? target_channels : kPanelChannels) + kChannelBlock;
  strip = kPatch * (columns * kTile + 2) * kStripChannels;
}

int64_t Plan::pixels(const Map& target, int64_t i) const {
  const int64_t y = i / groups_across * kTile, x = i % groups_across * columns * kTile;
  return std::min(kTile, target.height - y) * std::min(columns * kTile, target.width - x);
}

PackedWeights::PackedWeights(const float* weight, int64_t out, int64_t in, bool is_rotated,
                             const std::string& instruction_set)
    : out_(is_rotated ? in : out),
      in_(is_rotated ? out : in),
      is_rotated_(is_rotated),
      kernels_(&find_kernels(instruction_set)),
      fingerprint_(kernels_->fingerprint(weight, out * in * 9)),
      packed_(kPoints * in_ * padded_channels(out_)) {
  kernels_->pack(weight, out_, in_, is_rotated, packed_.data());
}

bool PackedWeights::matches(const float* weight) const {
  const Fingerprint other = kernels_->fingerprint(weight, out_ * in_ * 9);
  return std::equal(std::begin(other.words), std::end(other.words), fingerprint_.words);
}

}  // namespace oldrestore
