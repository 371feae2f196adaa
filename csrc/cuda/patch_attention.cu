// Launcher of the patch attention's search.
#include "launch.hpp"
#include "patch_attention.cuh"

namespace oldrestore {

int64_t patch_attention_splits(int64_t n) {
  return patches::splits_of(n);
}

void patch_attention_search(const PatchSearch& a, int64_t batch, int64_t n, int64_t depth,
                            CUstream_st* stream) {
  require(batch >= 0 && n >= 0 && depth >= 0, "shape: expected no negative size");
  require(n <= INT32_MAX - patches::kColumns, "shape: expected fewer than 2^31 - 64 patches");
  if (batch == 0 || n == 0) return;
  if (depth > 0) require_pointer(a.patches, "patches");
  require_pointer(a.query_list, "query_list");
  require_pointer(a.query_count, "query_count");
  require_pointer(a.key_list, "key_list");
  require_pointer(a.key_count, "key_count");
  require_pointer(a.best_score, "best_score");
  require_pointer(a.best_index, "best_index");
  require_pointer(a.source, "source");
  const patches::Search arguments = {
      n,          depth,       a.patches,    a.query_list, a.query_count,
      a.key_list, a.key_count, a.best_score, a.best_index, reinterpret_cast<long long*>(a.source),
  };
  const int64_t tiles = (n + patches::kRows - 1) / patches::kRows;
  launch("patch_attention_search", patches::patch_attention_search_kernel,
         batch * tiles * patches::splits_of(n), dim3(patches::kThreads), stream, arguments);
  launch("patch_attention_search", patches::patch_attention_merge_kernel,
         batch * ((n + patches::kThreads - 1) / patches::kThreads), dim3(patches::kThreads), stream,
         arguments);
}

}  // namespace oldrestore
