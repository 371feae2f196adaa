// Launchers of the residual block's passes; the convolutions between them are the vendor's.
#include "launch.hpp"
#include "residual_block.cuh"

namespace oldrestore {
namespace {

const dim3 kThreads(residual::kLanes, residual::kRows);

residual::Shape device_shape(const MapShape& shape) {
  return {shape.batch, shape.height, shape.width, shape.channels};
}

bool is_empty(const MapShape& shape) {
  require(shape.batch >= 0 && shape.height >= 0 && shape.width >= 0 && shape.channels >= 0,
          "shape: expected no negative size");
  return shape.batch == 0 || shape.height == 0 || shape.width == 0 || shape.channels == 0;
}

int64_t tiles_of(const MapShape& shape) {
  return (shape.channels + residual::kLanes - 1) / residual::kLanes;
}

int64_t blocks_of(const MapShape& shape, int64_t pixels) {
  return shape.batch * residual::chunks_of(pixels) * tiles_of(shape);
}

int64_t chunk_floats(const MapShape& shape) {
  return shape.batch * residual::chunks_of(shape.height * shape.width) * shape.channels;
}

void require_pad(int pad, const MapShape& shape) {
  require(pad == 0 || pad == 1, "pad: expected 0 or 1");
  require(pad == 0 || (shape.height > 1 && shape.width > 1),
          "shape: expected height and width of at least 2 to reflect");
}

}  // namespace

int64_t residual_block_workspace(const MapShape& shape) {
  return 2 * (chunk_floats(shape) + shape.batch * shape.channels);
}

void residual_block_statistics(const void* y, MapShape shape, Element element, float eps,
                               float* workspace, float* mean, float* rstd, CUstream_st* stream) {
  if (is_empty(shape)) return;
  require_pointer(y, "y");
  require_pointer(workspace, "workspace");
  require_pointer(mean, "mean");
  require_pointer(rstd, "rstd");
  const residual::Shape device = device_shape(shape);
  float* squares = workspace + chunk_floats(shape);
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("residual_block_statistics", residual::residual_block_moments_kernel<T>,
           blocks_of(shape, device.pixels()), kThreads, stream, static_cast<const T*>(y), device,
           workspace, squares);
  });
  launch("residual_block_statistics", residual::residual_block_statistics_kernel,
         shape.batch * tiles_of(shape), kThreads, stream, workspace, squares, device, eps, mean,
         rstd);
}

void residual_block_forward(const ResidualBlockForward& a, MapShape shape, Element element,
                            CUstream_st* stream) {
  if (is_empty(shape)) return;
  require_pad(a.pad, shape);
  require_pointer(a.y, "y");
  require_pointer(a.out, "out");
  require((a.mean == nullptr) == (a.rstd == nullptr), "rstd: expected with mean, and only then");
  require(a.pad == 0 || a.residual == nullptr, "residual: expected none with padding");
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const residual::Forward<T> arguments = {
        device_shape(shape),
        static_cast<const T*>(a.y),
        a.mean,
        a.rstd,
        static_cast<const T*>(a.residual),
        static_cast<T*>(a.out),
        a.pad,
        {a.activate, a.slope},
    };
    const int64_t pixels = (shape.height + 2 * a.pad) * (shape.width + 2 * a.pad);
    launch("residual_block_forward", residual::residual_block_fwd_kernel<T>,
           blocks_of(shape, pixels), kThreads, stream, arguments);
  });
}

void residual_block_backward(const ResidualBlockBackward& a, MapShape shape, Element element,
                             CUstream_st* stream) {
  if (is_empty(shape)) return;
  require_pad(a.pad, shape);
  require_pointer(a.grad, "grad");
  require_pointer(a.out, "out");
  require((a.mean == nullptr) == (a.rstd == nullptr), "rstd: expected with mean, and only then");
  if (a.activate || a.mean) require_pointer(a.y, "y");
  if (a.mean) require_pointer(a.workspace, "workspace");
  const int64_t n = chunk_floats(shape), blocks = blocks_of(shape, shape.height * shape.width);
  float* mean_grad = a.mean ? a.workspace + 2 * n : nullptr;
  float* mean_grad_norm = a.mean ? mean_grad + shape.batch * shape.channels : nullptr;
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const residual::Backward<T> arguments = {
        device_shape(shape),
        static_cast<const T*>(a.y),
        a.mean,
        a.rstd,
        static_cast<const T*>(a.grad),
        mean_grad,
        mean_grad_norm,
        static_cast<T*>(a.out),
        a.pad,
        {a.activate, a.slope},
    };
    if (a.mean) {
      launch("residual_block_backward", residual::residual_block_sums_kernel<T>, blocks, kThreads,
             stream, arguments, a.workspace, a.workspace + n);
      launch("residual_block_backward", residual::residual_block_means_kernel,
             shape.batch * tiles_of(shape), kThreads, stream, a.workspace, a.workspace + n,
             arguments.shape, mean_grad, mean_grad_norm);
    }
    launch("residual_block_backward", residual::residual_block_bwd_kernel<T>, blocks, kThreads,
           stream, arguments);
  });
}

}  // namespace oldrestore
