"""Every CUDA kernel on arrays of exactly their size, as a process that sanitizers watch can run it.

python sanitized.py MODULE OUTPUT: results of the module compiled from csrc/cuda, as .npz. NumPy
alone is imported: each array is an allocation of its own, with the sanitizer's margins round it.
"""

import importlib.machinery
import importlib.util
import sys
from typing import Any

import numpy as np

F32 = np.float32


def load(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_cuda", path)
    spec = importlib.util.spec_from_loader("_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def empty(*shape: int, dtype: type = F32) -> Any:
    """Full of NaN, or of an index that is out of any range."""
    return np.full(shape, np.nan if dtype == F32 else 2**30, dtype)


def pointers(arrays: dict[str, Any]) -> dict[str, int]:
    return {name: 0 if a is None else a.ctypes.data for name, a in arrays.items()}


def run_residual_block(native: Any, shape: tuple[int, int, int, int], pad: int) -> dict[str, Any]:
    batch, height, width, channels = shape
    rng = np.random.default_rng(0)
    y = rng.standard_normal(shape).astype(F32)
    padded = (batch, height + 2 * pad, width + 2 * pad, channels)
    residual = None if pad else rng.standard_normal(shape).astype(F32)
    mean, rstd, out = empty(batch, channels), empty(batch, channels), empty(*padded)
    of_y, grad = empty(*shape), rng.standard_normal(padded).astype(F32)
    workspace = empty(native.residual_block_workspace(shape))
    common = {"shape": shape, "dtype": "float32", "stream": 0}
    statistics = {"y": y, "mean": mean, "rstd": rstd}
    native.residual_block_statistics(
        **pointers({**statistics, "workspace": workspace}), eps=1e-5, **common
    )
    native.residual_block_forward(
        **pointers({**statistics, "residual": residual, "out": out}), pad=pad, slope=0.2, **common
    )
    native.residual_block_backward(
        **pointers({**statistics, "grad": grad, "out": of_y, "workspace": workspace}),
        pad=pad,
        slope=0.2,
        **common,
    )
    return {"mean": mean, "rstd": rstd, "out": out, "of_y": of_y}


def make_lists(native: Any, mask: Any) -> dict[str, Any]:
    batch, n = mask.shape
    common = {"batch": batch, "n": n, "dtype": "float32", "stream": 0}
    lists = {
        "key_list": empty(batch, n, dtype=np.int32),
        "key_count": empty(batch, dtype=np.int32),
        "key_bias": empty(batch, n),
        "query_list": empty(batch, n, dtype=np.int32),
        "query_count": empty(batch, dtype=np.int32),
    }
    at = pointers({"mask": mask, **lists})
    native.list_undamaged(
        mask=at["mask"], list=at["key_list"], count=at["key_count"], bias=at["key_bias"], **common
    )
    native.list_damaged(mask=at["mask"], list=at["query_list"], count=at["query_count"], **common)
    return lists


def run_partial_nonlocal(native: Any, n: int, depth: int, depth_value: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    query, key = (rng.standard_normal((2, n, depth)).astype(F32) for _ in range(2))
    value, grad = (rng.standard_normal((2, n, depth_value)).astype(F32) for _ in range(2))
    mask = (2 * rng.random((2, n)) - 0.5).clip(0, 1).astype(F32)
    lists = make_lists(native, mask)
    out, lse, delta = np.zeros_like(value), np.zeros((2, n), F32), np.zeros((2, n), F32)
    common = {
        "lists": native.AttentionLists(**pointers(lists)),
        "shape": (2, n, n, depth, depth_value),
        "dtype": "float32",
        "stream": 0,
    }
    tensors = {"query": query, "key": key, "value": value, "out": out, "lse": lse}
    native.partial_nonlocal_forward(**pointers(tensors), **common)
    grads = {
        "grad_query": np.zeros_like(query),
        "grad_key": np.zeros_like(key),
        "grad_value": np.zeros_like(value),
    }
    native.partial_nonlocal_backward(
        **pointers({**tensors, "grad": grad, "delta": delta, **grads}), **common
    )
    return {"out": out, "lse": lse, **grads}


def run_patch_attention(native: Any, n: int, depth: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    patches = rng.standard_normal((2, n, depth))
    patches = (patches / np.linalg.norm(patches, axis=2, keepdims=True)).astype(F32)
    lists = make_lists(native, (rng.random((2, n)) < 0.3).astype(F32))
    del lists["key_bias"]
    parts = (2, n, native.patch_attention_splits(n))
    source = np.full((2, n), -2, np.int64)
    work = {"best_score": empty(*parts), "best_index": empty(*parts, dtype=np.int32)}
    native.patch_attention_search(
        **pointers({"patches": patches, **lists, **work, "source": source}),
        batch=2,
        n=n,
        depth=depth,
        stream=0,
    )
    return {"source": source}


def run(native: Any) -> dict[str, Any]:
    """The results of every operation at some odd sizes, by name."""
    found = {}
    for shape in [(1, 1, 1, 1), (2, 2, 2, 3), (1, 17, 19, 40)]:
        for pad in (0, 1):
            if min(shape[1:3]) > pad:
                found[f"residual_block {shape} {pad}"] = run_residual_block(native, shape, pad)
    for size in [(1, 1, 1), (70, 33, 65), (5, 3, 515)]:
        found[f"partial_nonlocal {size}"] = run_partial_nonlocal(native, *size)
    for size in [(1, 1), (70, 33)]:
        found[f"patch_attention {size}"] = run_patch_attention(native, *size)
    return {f"{case} {name}": a for case, results in found.items() for name, a in results.items()}


if __name__ == "__main__":
    np.savez(sys.argv[2], **run(load(sys.argv[1])))
