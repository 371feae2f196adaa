#include "instance_norm_act.hpp"

#include <cmath>

namespace oldrestore {

void instance_norm_act(const Planes& x, float slope, float* out, const InstanceNorm& norm,
                       const Kernels& kernels, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < x.count; ++i) {
    double mean = 0.0, squares = 0.0;
    kernels.plane_statistics(x.data + i * x.size, x.size, &mean, &squares);
    const double variance = squares / static_cast<double>(x.size);
    norm.mean[i] = static_cast<float>(mean);
    norm.scale[i] = static_cast<float>(1.0 / std::sqrt(variance + kInstanceNormEps));
    kernels.finish_plane(x.data + i * x.size, x.size, norm.mean[i], norm.scale[i], slope,
                         out + i * x.size);
  }
}

void instance_norm_act_gradient(const Planes& x, const float* grad_out, float slope,
                                const InstanceNorm& norm, float* grad_x, const Kernels& kernels,
                                int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < x.count; ++i) {
    kernels.plane_gradient(grad_out + i * x.size, x.data + i * x.size, x.size, norm.mean[i],
                           norm.scale[i], slope, grad_x + i * x.size);
  }
}

}  // namespace oldrestore
