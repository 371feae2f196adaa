"""When the CUDA extension can run, what its launchers refuse, and a dry run without a device."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oldrestore.ops import (
    _cuda_native,
    _cuda_partial_nonlocal,
    _cuda_patch_attention,
    _cuda_residual_block,
)

CUDA = torch.device("cuda")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the extension is built and torch finds a device."""
    monkeypatch.setattr(_cuda_native, "_IS_BUILT", True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)


@pytest.mark.usefixtures("built")
def test_nothing_is_missing_on_a_card_of_capability_8_0() -> None:
    assert _cuda_native.cuda_missing(CUDA) is None


@pytest.mark.usefixtures("built")
def test_each_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = _cuda_native.cuda_missing
    assert missing(torch.device("cpu")) == "runs on CUDA devices only, not on cpu"
    old = SimpleNamespace(major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: old)
    assert missing(CUDA) == "needs compute capability 8.0 or newer, not 7"
    monkeypatch.setattr(torch.version, "cuda", None)  # as torch for ROCm has it
    assert missing(CUDA) == "torch finds no CUDA device"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing(CUDA) == "torch finds no CUDA device"
    monkeypatch.setattr(_cuda_native, "_IS_BUILT", False)
    assert missing(CUDA) == "the native extension oldrestore._cuda is not built"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_question_can_be_asked_while_compiling(device: str) -> None:
    def count_reasons(x: torch.Tensor) -> torch.Tensor:
        return x + (_cuda_native.cuda_missing(torch.device(device)) is not None)

    compiled = torch.compile(count_reasons, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(1)), count_reasons(torch.zeros(1)))


def test_an_unsupported_dtype_is_named() -> None:
    x = torch.zeros(1)
    assert _cuda_native.dtype_unsupported(x.half(), x) is None
    reason = "takes float32, float16 and bfloat16, not torch.float64"
    assert _cuda_native.dtype_unsupported(x.double(), x) == reason


def test_fake_cuda_tensors_pass_through_every_operation() -> None:
    # without gradients: the autograd of a torch built for CPUs refuses even fake CUDA tensors
    with FakeTensorMode(), torch.no_grad():
        x, weight = (
            torch.empty(
                size, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last
            )
            for size in ((2, 8, 6, 7), (8, 8, 3, 3))
        )
        out = _cuda_residual_block.residual_block(
            x, weight, None, weight, None, norm="instance", padding="reflect"
        )
        assert (out.shape, out.device.type, out.dtype) == (x.shape, "cuda", x.dtype)

        query = torch.empty(2, 5, 4, device="cuda")
        value, mask = torch.empty(2, 5, 3, device="cuda"), torch.empty(2, 5, device="cuda")
        out = _cuda_partial_nonlocal.partial_nonlocal(query, query, value, mask, queries="damaged")
        assert (out.shape, out.device.type) == ((2, 5, 3), "cuda")

        is_query = torch.empty(2, 5, device="cuda", dtype=torch.bool)
        source = _cuda_patch_attention.search_patches(value, is_query, is_query)
        assert (source.shape, source.dtype) == ((2, 5), torch.int64)


SOMEWHERE = 64  # an address that is never looked at
MAP = {"shape": (1, 2, 2, 3), "dtype": "float32", "stream": 0}
GOOD: dict[str, dict[str, Any]] = {
    "residual_block_statistics": {
        **dict.fromkeys(("y", "workspace", "mean", "rstd"), SOMEWHERE),
        **MAP,
        "eps": 1e-5,
    },
    "residual_block_forward": {
        **dict.fromkeys(("y", "mean", "rstd", "out"), SOMEWHERE),
        **MAP,
        "residual": 0,
        "pad": 1,
        "slope": None,
    },
    "residual_block_backward": {
        **dict.fromkeys(("y", "mean", "rstd", "grad", "out", "workspace"), SOMEWHERE),
        **MAP,
        "pad": 1,
        "slope": 0.0,
    },
    "list_undamaged": {
        **dict.fromkeys(("mask", "list", "count"), SOMEWHERE),
        "bias": 0,
        "batch": 1,
        "n": 3,
        "dtype": "float32",
        "stream": 0,
    },
    "list_damaged": {
        **dict.fromkeys(("mask", "list", "count"), SOMEWHERE),
        "batch": 1,
        "n": 3,
        "dtype": "float32",
        "stream": 0,
    },
    "partial_nonlocal_forward": {
        **dict.fromkeys(("query", "key", "value", "out", "lse"), SOMEWHERE),
        "shape": (1, 2, 3, 4, 5),
        "dtype": "float32",
        "stream": 0,
    },
    "partial_nonlocal_backward": {
        **dict.fromkeys(("query", "key", "value", "out", "grad", "lse", "delta"), SOMEWHERE),
        **dict.fromkeys(("grad_query", "grad_key", "grad_value"), 0),
        "shape": (1, 2, 3, 4, 5),
        "dtype": "float32",
        "stream": 0,
    },
    "patch_attention_search": {
        **dict.fromkeys(("patches", "query_list", "query_count", "key_list"), SOMEWHERE),
        **dict.fromkeys(("key_count", "best_score", "best_index", "source"), SOMEWHERE),
        "batch": 1,
        "n": 3,
        "depth": 4,
        "stream": 0,
    },
}
OPTIONAL = ("mean", "residual", "bias", "grad_query", "grad_key", "grad_value", "stream")
LISTS = dict.fromkeys(("key_list", "key_count", "key_bias", "query_list", "query_count"), SOMEWHERE)


def call(native: ModuleType, name: str, **changed: Any) -> None:
    arguments = {**GOOD[name], **changed}
    if name.startswith("partial_nonlocal"):
        lists = {**LISTS, **arguments.pop("lists", {})}
        arguments["lists"] = native.AttentionLists(**lists)
    getattr(native, name)(**arguments)


@pytest.mark.parametrize("name", GOOD)
def test_a_null_pointer_is_named(name: str, native: ModuleType) -> None:
    pointers = [k for k, v in GOOD[name].items() if v == SOMEWHERE and k not in OPTIONAL]
    assert len(pointers) > 1
    for pointer in pointers:
        with pytest.raises(ValueError, match=f"^{pointer}: "):
            call(native, name, **{pointer: 0})
    if name.startswith("partial_nonlocal"):
        for pointer in LISTS:
            with pytest.raises(ValueError, match=r"^(query|key)_(list|count|bias): "):
                call(native, name, lists={pointer: 0})


@pytest.mark.parametrize("name", [name for name, good in GOOD.items() if "dtype" in good])
def test_an_unknown_dtype_is_named(name: str, native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected float32.*, got float64"):
        call(native, name, dtype="float64")


BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("shape", "residual_block_forward", {"shape": (1, -2, 2, 3)}),
    ("shape", "residual_block_forward", {"shape": (1, 1, 2, 3)}),
    ("shape", "residual_block_backward", {"shape": (1, 2, 1, 3)}),
    ("pad", "residual_block_forward", {"pad": 2}),
    ("residual", "residual_block_forward", {"residual": SOMEWHERE}),
    ("residual_block_forward", "residual_block_forward", {"shape": (2**40, 2, 2, 3)}),
    ("residual_block_statistics", "residual_block_statistics", {"shape": (1, 2**20, 2**20, 3)}),
    ("batch", "list_damaged", {"batch": -1}),
    ("n", "list_undamaged", {"n": 2**31}),
    ("shape", "partial_nonlocal_forward", {"shape": (1, 2, 2**31, 4, 5)}),
    ("shape", "partial_nonlocal_backward", {"shape": (1, 2**31, 2, 4, 5)}),
    ("shape", "partial_nonlocal_forward", {"shape": (1, 2, 3, -4, 5)}),
    ("partial_nonlocal_forward", "partial_nonlocal_forward", {"shape": (2**31, 2, 3, 4, 5)}),
    ("shape", "patch_attention_search", {"n": 2**31}),
    ("shape", "patch_attention_search", {"depth": -1}),
]


@pytest.mark.parametrize(("message", "name", "changed"), BAD)
def test_a_bad_size_is_named_before_any_launch(
    message: str, name: str, changed: dict[str, Any], native: ModuleType
) -> None:
    with pytest.raises(ValueError, match=f"^{message}: "):
        call(native, name, **changed)


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_launched_for_an_empty_batch(name: str, native: ModuleType) -> None:
    changed: dict[str, Any] = {"batch": 0}
    if "shape" in GOOD[name]:
        changed = {"shape": (0, *GOOD[name]["shape"][1:])}
    call(native, name, **changed)
