// CUDA on the CPU, for tests: a launch runs its blocks one after another, each thread of a block
// as a fiber. Fibers run in turn, from one barrier or warp operation to the next, in an order that
// OLDRESTORE_SHIM_SCHEDULE chooses: 0 ascending, 1 descending, any other number a random order of
// that seed, drawn anew for every round and for the blocks, in which one warp at a time runs ahead.
//
// What it reports (as the error of the launch): a barrier that not every thread of the block
// reaches, or at different lines; a warp operation that names a lane which has exited or waits
// elsewhere; a wrong launch configuration. What an unwritten __shared__ variable holds is NaN as a
// float and out of any range as an index. Limits: no tensor cores, no asynchronous copies, no
// memory model: a race shows only where an order of the threads changes the result.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ __attribute__((section("shim_shared"))) static

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

extern "C" __attribute__((visibility("hidden"))) uint32_t __start_shim_shared[];
extern "C" __attribute__((visibility("hidden"))) uint32_t __stop_shim_shared[];

namespace shim {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr uint32_t kPoison = 0x7fc1dead;

enum class State { ready, at_barrier, in_warp, done };

struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Fiber {
  ucontext_t context;
  uint3 thread;
  State state;
  Site site;
  unsigned mask;             // of the warp operation it waits in
  uint64_t given;            // to that operation
  uint64_t received[kWarp];  // from all lanes
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  void (*body)(const void*) = nullptr;
  const void* launch = nullptr;
};

inline Block* block = nullptr;
inline std::string message;

inline void enter() {
  block->body(block->launch);
  block->running->state = State::done;
}

inline void wait(State state, Site site) {
  Fiber* self = block->running;
  self->state = state;
  self->site = site;
  swapcontext(&self->context, &block->scheduler);
}

inline const uint64_t* exchange(unsigned mask, uint64_t value, Site site) {
  Fiber* self = block->running;
  self->mask = mask;
  self->given = value;
  wait(State::in_warp, site);
  return self->received;
}

inline int lane_of_running() {
  return static_cast<int>((block->running - block->fibers.data()) % kWarp);
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* received = exchange(mask, bits, site);
  if (source >= 0 && source < kWarp && (mask >> source & 1)) bits = received[source];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned ballot(unsigned mask, bool flag, Site site) {
  const uint64_t* received = exchange(mask, flag, site);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) && received[lane]) bits |= 1u << lane;
  }
  return bits;
}

// Let the warps go on whose lanes have all arrived at the same operation.
inline bool release_warps() {
  bool released = false;
  const int n = static_cast<int>(block->fibers.size());
  for (int i = 0; i < n; ++i) {
    Fiber& first = block->fibers[i];
    if (first.state != State::in_warp) continue;
    const int base = i / kWarp * kWarp;
    if (!(first.mask >> (i - base) & 1)) {
      throw std::runtime_error(first.site.text() + ": a lane is not in its own mask");
    }
    bool complete = true;
    uint64_t values[kWarp] = {};
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(first.mask >> lane & 1)) continue;
      const bool exists = base + lane < n;
      if (!exists || block->fibers[base + lane].state == State::done) {
        throw std::runtime_error(first.site.text() + ": the mask names a lane that has exited");
      }
      const Fiber& other = block->fibers[base + lane];
      complete = complete && other.state == State::in_warp && other.site == first.site &&
                 other.mask == first.mask;
      values[lane] = other.given;
    }
    if (!complete) continue;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(first.mask >> lane & 1)) continue;
      Fiber& other = block->fibers[base + lane];
      std::copy(values, values + kWarp, other.received);
      other.state = State::ready;
    }
    released = true;
  }
  return released;
}

// Let the block go on if all of it is at one barrier. True too if nothing is left to run.
inline bool release_barrier() {
  const auto count = [](State state) {
    return std::count_if(block->fibers.begin(), block->fibers.end(),
                         [=](const Fiber& f) { return f.state == state; });
  };
  const auto waiting = count(State::at_barrier), done = count(State::done);
  const auto all = static_cast<long>(block->fibers.size());
  if (waiting + done != all) return false;
  if (waiting == 0) return true;
  const Fiber& first = *std::find_if(block->fibers.begin(), block->fibers.end(),
                                     [](const Fiber& f) { return f.state == State::at_barrier; });
  if (done > 0) {
    throw std::runtime_error(first.site.text() + ": divergent barrier: " + std::to_string(done) +
                             " threads have exited");
  }
  for (Fiber& fiber : block->fibers) {
    if (!(fiber.site == first.site)) {
      throw std::runtime_error(first.site.text() + ": divergent barrier: others wait at " +
                               fiber.site.text());
    }
    fiber.state = State::ready;
  }
  return true;
}

class Schedule {
 public:
  Schedule() {
    const char* chosen = std::getenv("OLDRESTORE_SHIM_SCHEDULE");
    number_ = chosen ? std::strtoul(chosen, nullptr, 10) : 0;
    random_.seed(number_);
  }
  std::vector<unsigned> order(size_t n) {
    std::vector<unsigned> order(n);
    std::iota(order.begin(), order.end(), 0u);
    if (number_ == 1) std::reverse(order.begin(), order.end());
    if (number_ > 1) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }
  // Who runs next: all threads that can, or in a random order those of one warp, which so gets as
  // far ahead of the others as the barriers let it.
  std::vector<unsigned> round() {
    std::vector<unsigned> ready;
    for (const unsigned i : order(block->fibers.size())) {
      if (block->fibers[i].state == State::ready) ready.push_back(i);
    }
    if (number_ <= 1 || ready.empty()) return ready;
    const auto is_ahead = [this](unsigned i) { return i / kWarp == warp_; };
    if (std::none_of(ready.begin(), ready.end(), is_ahead)) warp_ = ready[0] / kWarp;
    ready.erase(std::partition(ready.begin(), ready.end(), is_ahead), ready.end());
    return ready;
  }

 private:
  unsigned warp_ = 0;  // that runs ahead
  unsigned long number_;
  std::mt19937 random_;
};

// Not instrumented: the sanitizer's margins between the variables are overwritten as well.
__attribute__((no_sanitize("address"))) inline void poison_shared() {
  for (volatile uint32_t* word = __start_shim_shared; word < __stop_shim_shared; ++word) {
    *word = kPoison;
  }
}

inline void run_block(char* stacks, Schedule& schedule) {
  poison_shared();
  for (size_t i = 0; i < block->fibers.size(); ++i) {
    Fiber& fiber = block->fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + i * kStackBytes;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &block->scheduler;
    makecontext(&fiber.context, enter, 0);
    const unsigned t = static_cast<unsigned>(i), row = t / blockDim.x;
    fiber.thread = {t % blockDim.x, row % blockDim.y, row / blockDim.y};
    fiber.state = State::ready;
  }
  const auto is_done = [](const Fiber& fiber) { return fiber.state == State::done; };
  while (!std::all_of(block->fibers.begin(), block->fibers.end(), is_done)) {
    const std::vector<unsigned> round = schedule.round();
    for (const unsigned i : round) {
      Fiber& fiber = block->fibers[i];
      block->running = &fiber;
      threadIdx = fiber.thread;
      swapcontext(&block->scheduler, &fiber.context);
    }
    const bool released = release_warps() || release_barrier();
    if (round.empty() && !released) {
      const auto stuck = std::find_if(block->fibers.begin(), block->fibers.end(),
                                      [](const Fiber& f) { return f.state == State::in_warp; });
      throw std::runtime_error(stuck->site.text() + ": the lanes of the mask never all arrive");
    }
  }
}

inline void run_grid(const cudaLaunchConfig_t& config, void (*body)(const void*),
                     const void* launch) {
  Block running;
  const dim3 threads = config.blockDim, blocks = config.gridDim;
  running.fibers.resize(static_cast<size_t>(threads.x) * threads.y * threads.z);
  running.body = body;
  running.launch = launch;
  block = &running;
  blockDim = threads;
  gridDim = blocks;
  const std::unique_ptr<char[]> stacks(new char[running.fibers.size() * kStackBytes]);
  Schedule schedule;
  for (const unsigned b : schedule.order(static_cast<size_t>(blocks.x) * blocks.y * blocks.z)) {
    blockIdx = {b % blocks.x, b / blocks.x % blocks.y, b / blocks.x / blocks.y};
    run_block(stacks.get(), schedule);
  }
}

}  // namespace shim

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 t = config->blockDim, g = config->gridDim;
  const uint64_t threads = uint64_t{t.x} * t.y * t.z, blocks = uint64_t{g.x} * g.y * g.z;
  if (threads == 0 || threads > shim::kMaxThreads || blocks == 0 || g.x > INT32_MAX ||
      g.y > UINT16_MAX || g.z > UINT16_MAX) {
    shim::message = "invalid configuration: " + std::to_string(blocks) + " blocks of " +
                    std::to_string(threads) + " threads";
    return cudaErrorInvalidConfiguration;
  }
  const auto launch = [&] { kernel(static_cast<Parameters>(arguments)...); };
  using Launch = decltype(launch);
  try {
    shim::run_grid(*config, [](const void* call) { (*static_cast<Launch*>(call))(); }, &launch);
  } catch (const std::runtime_error& error) {
    shim::message = error.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t) {
  return shim::message.c_str();
}

#define SHIM_SITE      \
  ::shim::Site {       \
    __FILE__, __LINE__ \
  }
#define __syncthreads() ::shim::wait(::shim::State::at_barrier, SHIM_SITE)
#define __syncwarp() ((void)::shim::exchange(~0u, 0, SHIM_SITE))
#define __ballot_sync(mask, flag) ::shim::ballot(mask, flag, SHIM_SITE)
#define __shfl_xor_sync(mask, value, bits) \
  ::shim::shuffle(mask, value, ::shim::lane_of_running() ^ (bits), SHIM_SITE)
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
