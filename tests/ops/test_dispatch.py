"""The choice of a backend, and what happens without the native extension."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from oldrestore import ops
from oldrestore.ops import _dispatch


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backend: str | None = None


def test_the_reference_is_always_available_and_last() -> None:
    for name in ("partial_nonlocal", "patch_attention", "residual_block"):
        for device in ("cpu", "cuda", "meta"):
            assert ops.available(name, device)[-1] == "reference"


def test_cpp_is_offered_on_the_cpu_alone() -> None:
    built = _dispatch.NATIVE is not None
    assert ("cpp" in ops.available("residual_block", "cpu")) == built
    assert "cpp" not in ops.available("residual_block", torch.device("cuda"))


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(ValueError, match=r"^name: expected one of .*residual_block.*'blur'"):
        ops.available("blur", "cpu")


def test_describe_says_why_a_backend_is_missing() -> None:
    rows = {(row["operation"], row["backend"]): row["missing"] for row in ops.describe("cuda")}
    assert rows["residual_block", "cpp"] == "runs on the CPU only, not on cuda"
    assert rows["residual_block", "reference"] is None
    assert rows["partial_nonlocal", "sdpa"] is None


def test_without_the_extension_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "NATIVE", None)
    assert ops.available("residual_block", "cpu") == ["reference"]
    x, weight = torch.rand(1, 8, 5, 5), torch.rand(8, 8, 3, 3)
    slow = ops.residual_block(x, weight, None, weight, None, backend="reference")
    assert torch.equal(ops.residual_block(x, weight, None, weight, None), slow)
    with pytest.raises(ValueError, match=r"cannot use 'cpp': .*oldrestore\._C is not built"):
        ops.residual_block(x, weight, None, weight, None, backend="cpp")
    missing = {row["backend"]: row["missing"] for row in ops.describe("cpu") if row["missing"]}
    assert missing.keys() == {"cpp", "cuda", "triton"}
    assert missing["cpp"] == "the native extension oldrestore._C is not built"


def test_a_missing_extension_is_none_and_a_broken_one_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _dispatch.load_native("oldrestore_native_for_a_test") is None
    suffix = next(s for s in _extension_suffixes() if "abi" not in s)
    (tmp_path / f"oldrestore_native_for_a_test{suffix}").write_bytes(b"not a shared library")
    with pytest.raises(ImportError, match="oldrestore_native_for_a_test"):
        _dispatch.load_native("oldrestore_native_for_a_test")


def _extension_suffixes() -> list[str]:
    from importlib.machinery import EXTENSION_SUFFIXES

    sys.path_importer_cache.clear()
    return EXTENSION_SUFFIXES


def test_set_backend_reaches_every_submodule_that_has_one() -> None:
    model = nn.Sequential(Block(), nn.Conv2d(1, 1, 1), nn.Sequential(Block()))
    ops.set_backend(model, "reference")
    assert [m.backend for m in model.modules() if isinstance(m, Block)] == ["reference"] * 2
    assert not hasattr(model[1], "backend")
    ops.set_backend(model, None)
    assert [m.backend for m in model.modules() if isinstance(m, Block)] == [None] * 2
