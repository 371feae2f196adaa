// Launchers of the partial nonlocal block's attention.
#include "launch.hpp"
#include "partial_nonlocal.cuh"

namespace oldrestore {
namespace {

using namespace nonlocal;

// Columns of the result that a thread sums: narrow results leave no thread idle.
constexpr int kNarrow = 2;
constexpr int kWide = 8;

template <class Body>
void with_sums(int64_t width, Body body) {
  if (width <= kNarrow * kLanes) return body(std::integral_constant<int, kNarrow>());
  return body(std::integral_constant<int, kWide>());
}

int64_t blocks_of(const AttentionShape& shape, int64_t rows, int64_t width, int sums) {
  const int64_t columns = sums * kLanes;
  return shape.batch * ((rows + kRows - 1) / kRows) * ((width + columns - 1) / columns);
}

void check_shape(const AttentionShape& shape) {
  require(shape.batch >= 0 && shape.depth >= 0 && shape.depth_value >= 0,
          "shape: expected no negative size");
  require(shape.n_queries >= 0 && shape.n_queries <= INT32_MAX - kColumns,
          "shape: expected fewer than 2^31 - 64 queries");
  require(shape.n_keys >= 0 && shape.n_keys <= INT32_MAX - kColumns,
          "shape: expected fewer than 2^31 - 64 keys");
}

void check_lists(const AttentionLists& lists, const AttentionShape& shape) {
  require((lists.query_list == nullptr) == (lists.query_count == nullptr),
          "query_count: expected with query_list, and only then");
  require_pointer(lists.key_count, "key_count");
  if (shape.n_keys == 0) return;
  require_pointer(lists.key_list, "key_list");
  require_pointer(lists.key_bias, "key_bias");
}

Shape device_shape(const AttentionShape& s) {
  return {s.batch, s.n_queries, s.n_keys, s.depth, s.depth_value};
}

Lists device_lists(const AttentionLists& l) {
  return {l.key_list, l.key_count, l.key_bias, l.query_list, l.query_count};
}

template <Wanted kWanted, class T>
void launch_gradient(const Backward<T>& arguments, const AttentionShape& shape,
                     CUstream_st* stream) {
  const int64_t rows = kWanted == Wanted::grad_query ? shape.n_queries : shape.n_keys;
  const int64_t width = kWanted == Wanted::grad_value ? shape.depth_value : shape.depth;
  with_sums(width, [&](auto sums) {
    launch("partial_nonlocal_backward", partial_nonlocal_bwd_kernel<kWanted, sums.value, T>,
           blocks_of(shape, rows, width, sums.value), dim3(kThreads), stream, arguments);
  });
}

}  // namespace

void partial_nonlocal_forward(const AttentionForward& a, const AttentionLists& lists,
                              AttentionShape shape, Element element, CUstream_st* stream) {
  check_shape(shape);
  if (shape.batch == 0 || shape.n_queries == 0 || shape.depth_value == 0) return;
  check_lists(lists, shape);
  require_pointer(a.out, "out");
  require_pointer(a.lse, "lse");
  if (shape.depth > 0) require_pointer(a.query, "query");
  if (shape.depth > 0 && shape.n_keys > 0) require_pointer(a.key, "key");
  if (shape.n_keys > 0) require_pointer(a.value, "value");
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Forward<T> arguments = {
        device_shape(shape),
        device_lists(lists),
        static_cast<const T*>(a.query),
        static_cast<const T*>(a.key),
        static_cast<const T*>(a.value),
        static_cast<T*>(a.out),
        a.lse,
    };
    with_sums(shape.depth_value, [&](auto sums) {
      launch("partial_nonlocal_forward", partial_nonlocal_fwd_kernel<sums.value, T>,
             blocks_of(shape, shape.n_queries, shape.depth_value, sums.value), dim3(kThreads),
             stream, arguments);
    });
  });
}

void partial_nonlocal_backward(const AttentionBackward& a, const AttentionLists& lists,
                               AttentionShape shape, Element element, CUstream_st* stream) {
  check_shape(shape);
  if (shape.batch == 0 || shape.n_queries == 0 || shape.n_keys == 0) return;
  if (shape.depth_value == 0) return;  // nothing depends on anything
  check_lists(lists, shape);
  require_pointer(a.lse, "lse");
  require_pointer(a.delta, "delta");
  if (shape.depth > 0) {
    require_pointer(a.query, "query");
    require_pointer(a.key, "key");
  }
  require_pointer(a.value, "value");
  require_pointer(a.out, "out");
  require_pointer(a.grad, "grad");
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Backward<T> arguments = {
        device_shape(shape),
        device_lists(lists),
        static_cast<const T*>(a.query),
        static_cast<const T*>(a.key),
        static_cast<const T*>(a.value),
        static_cast<const T*>(a.out),
        static_cast<const T*>(a.grad),
        a.lse,
        a.delta,
        static_cast<T*>(a.grad_query),
        static_cast<T*>(a.grad_key),
        static_cast<T*>(a.grad_value),
    };
    constexpr int kWarps = kThreads / kWarp;
    launch("partial_nonlocal_backward", partial_nonlocal_delta_kernel<T>,
           (shape.batch * shape.n_queries + kWarps - 1) / kWarps, dim3(kThreads), stream,
           arguments);
    if (a.grad_query) launch_gradient<Wanted::grad_query>(arguments, shape, stream);
    if (a.grad_key) launch_gradient<Wanted::grad_key>(arguments, shape, stream);
    if (a.grad_value) launch_gradient<Wanted::grad_value>(arguments, shape, stream);
  });
}

}  // namespace oldrestore
