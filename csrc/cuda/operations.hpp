// The launchers, as oldrestore._cuda calls them. All pointers are device pointers to contiguous
// memory; a launcher throws std::invalid_argument, naming the argument, and std::runtime_error
// where CUDA refuses a launch. Nothing waits for the device.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace oldrestore {

enum class Element { float32, float16, bfloat16 };

// ---- residual_block: maps are (B, H, W, C), statistics float32 (B, C) ----

struct MapShape {
  int64_t batch, height, width, channels;
};

// Floats of workspace that the statistics and the backward need.
int64_t residual_block_workspace(const MapShape& shape);

// mean and 1 / sqrt(variance + eps) over the pixels of y.
void residual_block_statistics(const void* y, MapShape shape, Element element, float eps,
                               float* workspace, float* mean, float* rstd, CUstream_st* stream);

struct ResidualBlockForward {
  const void* y;
  const float* mean;  // with rstd, or both null: no norm
  const float* rstd;
  const void* residual;  // or null; needs pad == 0
  void* out;             // (B, H + 2 pad, W + 2 pad, C)
  int pad;               // 0, or 1: a border of reflected pixels
  bool activate;         // with a leaky ReLU of this slope; 0 is ReLU
  float slope;
};

// out = pad(activation((y - mean) * rstd)) + residual
void residual_block_forward(const ResidualBlockForward& a, MapShape shape, Element element,
                            CUstream_st* stream);

struct ResidualBlockBackward {
  const void* y;  // as in the forward; null without norm and activation
  const float* mean;
  const float* rstd;
  const void* grad;  // (B, H + 2 pad, W + 2 pad, C), of the forward's result
  void* out;         // (B, H, W, C), the gradient of y
  float* workspace;  // null without norm
  int pad;
  bool activate;
  float slope;
};

void residual_block_backward(const ResidualBlockBackward& a, MapShape shape, Element element,
                             CUstream_st* stream);

// ---- partial_nonlocal and patch_attention: rows of matrices, chosen by lists ----

// Per sample the indices i with (mask < 1, or mask > 0), ascending: list is (B, N), count (B,).
// With bias (B, N): log(1 - mask) of the listed, in the order of the list.
void list_undamaged(const void* mask, int64_t batch, int64_t n, Element element, int* list,
                    int* count, float* bias, CUstream_st* stream);
void list_damaged(const void* mask, int64_t batch, int64_t n, Element element, int* list,
                  int* count, CUstream_st* stream);

struct AttentionShape {
  int64_t batch, n_queries, n_keys, depth, depth_value;
};

// Which rows take part: lists of list_undamaged and list_damaged.
struct AttentionLists {
  const int* key_list;    // (B, N)
  const int* key_count;   // (B,)
  const float* key_bias;  // (B, N)
  const int* query_list;  // (B, M), with query_count, or both null: all queries
  const int* query_count;
};

struct AttentionForward {
  const void* query;  // (B, M, D)
  const void* key;    // (B, N, D)
  const void* value;  // (B, N, E)
  void* out;          // (B, M, E); rows of unlisted queries are not written
  float* lse;         // (B, M): log of the sum of exponentials; 0 without keys
};

void partial_nonlocal_forward(const AttentionForward& a, const AttentionLists& lists,
                              AttentionShape shape, Element element, CUstream_st* stream);

struct AttentionBackward {
  const void* query;
  const void* key;
  const void* value;
  const void* out;
  const void* grad;  // (B, M, E)
  const float* lse;
  float* delta;      // workspace (B, M)
  void* grad_query;  // null: not wanted; zeros on entry: rows of unlisted queries stay so,
  void* grad_key;    // and rows of unlisted keys
  void* grad_value;
};

void partial_nonlocal_backward(const AttentionBackward& a, const AttentionLists& lists,
                               AttentionShape shape, Element element, CUstream_st* stream);

struct PatchSearch {
  const float* patches;   // (B, N, D), each of length 1
  const int* query_list;  // (B, N)
  const int* query_count;
  const int* key_list;  // (B, N)
  const int* key_count;
  float* best_score;  // workspace (B, N, patch_attention_splits(N))
  int* best_index;    // workspace, likewise
  int64_t* source;    // (B, N): of the listed queries the most similar key, -1 without one
};

int64_t patch_attention_splits(int64_t n);
void patch_attention_search(const PatchSearch& a, int64_t batch, int64_t n, int64_t depth,
                            CUstream_st* stream);

}  // namespace oldrestore
