"""kernels/ is installed as oldrestore.kernels, which imports torch and triton alone."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import oldrestore
from oldrestore.ops import _triton

REPOSITORY = Path(__file__).parents[2]
MODULES = sorted((REPOSITORY / "kernels").glob("*.py"))
ALLOWED = {"__future__", "dataclasses", "torch", "triton", "oldrestore.kernels"}


def imported(module: Path) -> set[str]:
    """The packages that the file imports; of our own their full name."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names.add(node.module or "")
    own = re.compile(r"(oldrestore\.\w+|\w+).*")
    return {own.sub(r"\1", name) for name in names}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_the_kernels_import_torch_and_triton_alone(module: Path) -> None:
    assert imported(module) <= ALLOWED
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_kernels_are_installed_as_a_part_of_the_package() -> None:
    spec = importlib.util.find_spec("oldrestore.kernels")
    assert spec is not None
    installed = {file.name for file in Path(str(spec.origin)).parent.glob("*.py")}
    assert installed == {file.name for file in MODULES}


def test_the_list_of_packages_is_complete() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]", text, flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    sources = Path(oldrestore.__file__).parent
    found = {
        ".".join(file.parent.relative_to(sources.parent).parts)
        for file in sources.rglob("__init__.py")
    }
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == found | {"oldrestore.kernels"}


def test_a_device_that_is_not_cuda_is_refused_with_the_reason() -> None:
    assert _triton.missing(torch.device("cpu")) == "runs on CUDA only, not on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_reason_says_so() -> None:
    assert _triton.missing(torch.device("cuda")) == "torch finds no CUDA device"


def test_what_the_kernels_cannot_take_is_refused_with_the_reason() -> None:
    wide, mask = torch.zeros(1, 2, 513), torch.zeros(1, 2)
    assert _triton.unsupported(wide) is None
    assert _triton.unsupported(wide, None, wide.double()) == (
        "takes float32, float16 and bfloat16, not torch.float64"
    )
    assert _triton.unsupported(wide[:0]) == "an operand is empty"
    narrow = wide[..., :512]
    assert _triton.unsupported_attention(narrow, narrow, narrow, mask) is None
    refusal = "takes depths to 512, not 513"
    assert _triton.unsupported_attention(wide, wide, narrow, mask) == refusal
    assert _triton.unsupported_attention(narrow, narrow, wide, mask) == refusal


def test_a_dry_run_on_a_cuda_device_needs_none() -> None:
    with FakeTensorMode(), torch.no_grad():  # autograd's engine would want the device
        half = {"device": "cuda", "dtype": torch.float16}
        query, key = torch.empty(2, 9, 8, **half), torch.empty(2, 7, 8, **half)
        value, mask = torch.empty(2, 7, 5, **half), torch.empty(2, 7, **half)
        out = _triton.partial_nonlocal(query, key, value, mask, queries="all")
        assert (out.shape, out.dtype, out.device.type) == ((2, 9, 5), torch.float16, "cuda")
        x = torch.empty(2, 4, 5, 6, **half).to(memory_format=torch.channels_last)
        weight, bias = torch.empty(4, 4, 3, 3, **half), torch.empty(4, **half)
        for norm, padding in itertools.product(("instance", None), ("reflect", "zero")):
            how = {"norm": norm, "padding": padding}
            block = _triton.residual_block(x, weight, bias, weight, None, **how)
            for out in (block, _triton.conv_norm_act(x, weight, bias, slope=0.0, **how)):
                assert (out.shape, out.dtype, out.device.type) == (x.shape, x.dtype, "cuda")
                assert out.is_contiguous(memory_format=torch.channels_last)
        out = _triton.instance_norm_act(x, slope=0.0)
        assert (out.shape, out.dtype, out.device.type) == (x.shape, x.dtype, "cuda")
        kinds = torch.empty(2, 9, dtype=torch.bool, device="cuda")
        found = _triton.search_patches(query, kinds, kinds)
        assert (found.shape, found.dtype) == ((2, 9), torch.int64)
