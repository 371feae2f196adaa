// Launchers of the index lists.
#include "index_list.cuh"
#include "launch.hpp"

namespace oldrestore {
namespace {

void list_cells(const void* mask, int64_t batch, int64_t n, Element element, bool damaged,
                int* list, int* count, float* bias, CUstream_st* stream) {
  require(batch >= 0, "batch: expected no negative size");
  require(n >= 0 && n <= INT32_MAX, "n: expected 0 to 2147483647 cells");
  if (batch == 0) return;
  require_pointer(count, "count");
  if (n > 0) {
    require_pointer(mask, "mask");
    require_pointer(list, "list");
  }
  with_element(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const index_list::Arguments<T> arguments = {
        static_cast<const T*>(mask), n, damaged, list, count, bias,
    };
    launch("index_list", index_list::index_list_kernel<T>, batch, dim3(index_list::kThreads),
           stream, arguments);
  });
}

}  // namespace

void list_undamaged(const void* mask, int64_t batch, int64_t n, Element element, int* list,
                    int* count, float* bias, CUstream_st* stream) {
  list_cells(mask, batch, n, element, false, list, count, bias, stream);
}

void list_damaged(const void* mask, int64_t batch, int64_t n, Element element, int* list,
                  int* count, CUstream_st* stream) {
  list_cells(mask, batch, n, element, true, list, count, nullptr, stream);
}

}  // namespace oldrestore
