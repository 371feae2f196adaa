"""The Triton kernels compiled ahead of time for four architectures: what their code uses.

Triton does not fail where a kernel spills, or asks for more memory than the GPU has; this does.
resources.json holds what each used when it was last looked at (compile_kernels.py writes it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from oldrestore.kernels import architecture  # noqa: E402  # needs triton's package, not triton

COMPILER = Path(__file__).parent / "compile_kernels.py"
RECORDED = json.loads((Path(__file__).parent / "resources.json").read_text(encoding="utf-8"))
REGISTERS_ALLOWED = 1.1  # of those recorded: a compiler's mood, not a change of the kernel
WITH_PRODUCTS = ("fwd_", "bwd_", "patch/")
# Kernels that have no memory left for a second stage, and so copy nothing ahead.
ONE_STAGE = ("fwd_all_512/bf16/sm_120", "fwd_damaged_512/bf16/sm_120", "fwd_all_64/bf16/sm_120")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="Triton's compiler comes for Linux alone"
)


def compile_kernels(cache: Path, *names: str) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, str(COMPILER), *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def complaints(name: str, used: dict[str, int]) -> list[str]:
    """What is wrong with a kernel's code, whatever was recorded."""
    arch = int(name.rpartition("sm_")[2])
    wrong = {
        "more shared memory than there is": used["shared"] > architecture.SHARED_MEMORY[arch],
        "more tensor memory than there is": (
            used["tensor_memory"] > architecture.TENSOR_MEMORY_COLUMNS
        ),
        "registers spill": used["stack"] > 0 or used["local"] > 0,
        "no code": used["registers"] < 8,
    }
    if name.startswith(WITH_PRODUCTS):
        wrong["no tensor-core instruction"] = used["tensor"] == 0
        wrong["nothing is copied ahead"] = used["copies"] == 0 and name not in ONE_STAGE
    return [f"{name}: {complaint}: {used}" for complaint, is_so in wrong.items() if is_so]


def regressions(name: str, used: dict[str, int]) -> list[str]:
    """What got worse since it was recorded."""
    before = RECORDED["kernels"][name]
    worse = {
        "registers": used["registers"] > REGISTERS_ALLOWED * before["registers"],
        "shared": used["shared"] > before["shared"],
        "tensor": used["tensor"] < before["tensor"],
    }
    return [f"{name}: {key}: {before} before, {used}" for key, is_so in worse.items() if is_so]


def assert_clean(found: dict[str, Any]) -> None:
    kernels = found["kernels"]
    wrong = [text for name, used in kernels.items() for text in complaints(name, used)]
    # another compiler's registers are another number, and no regression of the kernels
    if found["triton"] == RECORDED["triton"]:
        wrong += [text for name, used in kernels.items() for text in regressions(name, used)]
    assert wrong == []


def test_the_record_is_clean_and_has_every_architecture() -> None:
    assert_clean(RECORDED)
    names = {name.rpartition("/")[0] for name in RECORDED["kernels"]}
    everywhere = {f"{name}/sm_{arch}" for name in names for arch in architecture.ARCHITECTURES}
    assert set(RECORDED["kernels"]) == everywhere


def test_small_kernels_compile_to_what_is_recorded(tmp_path: Path) -> None:
    names = ("compact/i1/sm_80", "norm_add/fp32/sm_80", "fwd_all_64/bf16/sm_90")
    found = compile_kernels(tmp_path, *names)
    assert set(found["kernels"]) == set(names)
    assert_clean(found)


@pytest.mark.slow
def test_every_kernel_compiles_to_what_is_recorded(tmp_path: Path) -> None:
    found = compile_kernels(tmp_path)
    assert set(found["kernels"]) == set(RECORDED["kernels"])
    assert_clean(found)


@pytest.mark.slow
def test_every_kernel_compiles_for_sizes_of_one(tmp_path: Path) -> None:
    names = [name for name in RECORDED["kernels"] if name.endswith("sm_80")]
    found = compile_kernels(tmp_path, "--ones", *names)
    assert set(found["kernels"]) == set(names)


@pytest.mark.parametrize(
    ("capability", "table"),
    [((8, 0), 80), ((8, 6), 120), ((8, 9), 120), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
    ids=str,
)
def test_a_gpu_takes_the_tiles_that_fit_it(capability: tuple[int, int], table: int) -> None:
    assert architecture.table_of(capability) == table


def test_a_gpu_without_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 8.0 or newer, got \(7, 5\)"):
        architecture.table_of((7, 5))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": 8}, "registers spill"),
        ({"local": 2}, "registers spill"),
        ({"shared": 1 << 20}, "more shared memory"),
        ({"tensor_memory": 576}, "more tensor memory"),
        ({"tensor": 0}, "no tensor-core instruction"),
        ({"copies": 0}, "nothing is copied ahead"),
        ({"registers": 4}, "no code"),
    ],
    ids=str,
)
def test_a_fault_is_named(change: dict[str, int], complaint: str) -> None:
    name = "fwd_all_512/bf16/sm_100"
    assert complaint in complaints(name, RECORDED["kernels"][name] | change)[0]


@pytest.mark.parametrize(
    "change", [{"registers": 255}, {"shared": 1 << 18}, {"tensor": 1}], ids=str
)
def test_a_regression_is_named(change: dict[str, int]) -> None:
    name = "fwd_all_512/bf16/sm_100"
    assert len(regressions(name, RECORDED["kernels"][name] | change)) == 1
    assert regressions(name, RECORDED["kernels"][name]) == []
