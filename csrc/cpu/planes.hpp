// Instance norm of planes, the channels of NCHW pictures: `count` floats in a row.
#pragma once

#include "vector.hpp"

namespace oldrestore {
namespace {

constexpr int64_t kRun = 2048;  // floats read twice, the second time from the first-level cache

inline Vector at(const float* p, Vector) {
  return load(p);
}
inline float at(const float* p, float) {
  return *p;
}
inline void put(float* p, Vector v) {
  store(p, v);
}
inline void put(float* p, float v) {
  *p = v;
}

// body(i, kind) for vectors of floats from i on, then one by one; `kind` has the type of both.
template <typename Body>
inline void each_value(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Vector{});
  for (; i < count; ++i) body(i, 0.0f);
}

// What each_value adds up.
struct Sum {
  Vector vectors = {};
  float rest = 0.0f;

  void operator+=(Vector v) { vectors += v; }
  void operator+=(float v) { rest += v; }
  double total() const {
    double sum = rest;
    for (int lane = 0; lane < kLanes; ++lane) sum += vectors[lane];
    return sum;
  }
};

// Mean and summed squared deviations, merged run by run (Chan, Golub and LeVeque, 1983).
void plane_statistics(const float* x, int64_t count, double* mean, double* squares) {
  *mean = *squares = 0.0;
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t n = count - first < kRun ? count - first : kRun;
    Sum sum, deviations;
    each_value(n, [&](int64_t i, auto kind) { sum += at(x + first + i, kind); });
    const double of_run = sum.total() / static_cast<double>(n);
    const float center = static_cast<float>(of_run);
    each_value(n, [&](int64_t i, auto kind) {
      const auto deviation = at(x + first + i, kind) - center;
      deviations += deviation * deviation;
    });
    const double offset = of_run - center, more = static_cast<double>(n);
    const double before = static_cast<double>(first), difference = of_run - *mean;
    *squares += deviations.total() - more * offset * offset +
                difference * difference * before * more / (before + more);
    *mean += difference * more / (before + more);
  }
}

// out = leaky_relu((x - mean) * scale)
void finish_plane(const float* x, int64_t count, float mean, float scale, float slope, float* out) {
  each_value(count, [&](int64_t i, auto kind) {
    const auto n = (at(x + i, kind) - mean) * scale;
    put(out + i, n < 0.0f ? slope * n : n);
  });
}

// With n = (x - mean) * scale and g = gradient * leaky_relu'(n): (g - mean(g) - n mean(g n)) scale
void plane_gradient(const float* gradient, const float* x, int64_t count, float mean, float scale,
                    float slope, float* out) {
  const auto before = [&](int64_t i, auto kind, auto n) {
    const auto g = at(gradient + i, kind);
    return n > 0.0f ? g : slope * g;
  };
  double sum = 0.0, weighted = 0.0;
  for (int64_t first = 0; first < count; first += kRun) {
    Sum of_run, weighted_of_run;
    each_value(count - first < kRun ? count - first : kRun, [&](int64_t i, auto kind) {
      const auto n = (at(x + first + i, kind) - mean) * scale, g = before(first + i, kind, n);
      of_run += g;
      weighted_of_run += g * n;
    });
    sum += of_run.total();
    weighted += weighted_of_run.total();
  }
  const auto mean_g = static_cast<float>(sum / static_cast<double>(count));
  const auto mean_gn = static_cast<float>(weighted / static_cast<double>(count));
  each_value(count, [&](int64_t i, auto kind) {
    const auto n = (at(x + i, kind) - mean) * scale;
    put(out + i, (before(i, kind, n) - mean_g - n * mean_gn) * scale);
  });
}

}  // namespace
}  // namespace oldrestore
