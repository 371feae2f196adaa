"""The patch attention's search on CUDA devices: csrc/cuda/patch_attention.cuh.

Only damaged patches are compared, in float32; which they are is listed on the device, without
waiting for it. Registered as ``oldrestore::cuda_patch_search`` with a fake.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _cuda_native
from oldrestore.ops._cuda_native import address


@torch.library.custom_op("oldrestore::cuda_patch_search", mutates_args=())
def search_patches(patches: Tensor, is_query: Tensor, is_key: Tensor) -> Tensor:
    """The most similar key of every query by cosine, the first of equally similar ones.

    Args:
        patches: (B, N, F) float32 or half precision.
        is_query: (B, N) bool.
        is_key: (B, N) bool.

    Returns:
        (B, N) int64; a patch that is no query, or has no key, names itself. No gradient.
    """
    native = _cuda_native.extension()
    with _cuda_native.on_device_of(patches), torch.autocast(patches.device.type, enabled=False):
        units = F.normalize(patches.float(), dim=2).contiguous()
        batch, n, depth = units.shape
        has_key = is_key.any(dim=1, keepdim=True)
        # the lists are made from masks: queries are what is damaged in one, keys what is not
        masks = torch.stack([is_query & has_key, ~is_key]).float()
        lists = torch.empty((2, batch, n), dtype=torch.int32, device=units.device)
        counts = torch.empty((2, batch), dtype=torch.int32, device=units.device)
        stream = _cuda_native.stream(units)
        common = {"batch": batch, "n": n, "dtype": "float32", "stream": stream}
        native.list_damaged(
            mask=address(masks[0]), list=address(lists[0]), count=address(counts[0]), **common
        )
        native.list_undamaged(
            mask=address(masks[1]),
            list=address(lists[1]),
            count=address(counts[1]),
            bias=0,
            **common,
        )
        parts = (batch, n, native.patch_attention_splits(n))
        best_score = torch.empty(parts, dtype=torch.float32, device=units.device)
        best_index = torch.empty(parts, dtype=torch.int32, device=units.device)
        source = torch.arange(n, device=units.device).repeat(batch, 1)
        native.patch_attention_search(
            patches=address(units),
            query_list=address(lists[0]),
            query_count=address(counts[0]),
            key_list=address(lists[1]),
            key_count=address(counts[1]),
            best_score=address(best_score),
            best_index=address(best_index),
            source=address(source),
            batch=batch,
            n=n,
            depth=depth,
            stream=stream,
        )
    return source


@search_patches.register_fake
def _(patches: Tensor, is_query: Tensor, is_key: Tensor) -> Tensor:
    del patches, is_key
    return torch.empty(is_query.shape, dtype=torch.int64, device=is_query.device)
