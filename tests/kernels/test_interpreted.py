"""The checks of the Triton kernels (checks/), run in a process of their own.

Whether Triton interprets or compiles is settled when it is first imported, so that the tests of the
package cannot share a process with either.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

CHECKS = Path(__file__).parent / "checks"
FILES = sorted(CHECKS.glob("check_*.py"))


def run_checks(files: list[Path], *options: str, interpret: bool) -> int:
    """Run them; the number that passed."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", TRITON_INTERPRET=str(int(interpret)))
    command = [
        *(sys.executable, "-m", "pytest", *map(str, files), "-q", *options),
        *("-p", "no:cacheprovider", "-o", "python_files=check_*.py", "--import-mode=prepend"),
        *("--rootdir", str(CHECKS), "--confcutdir", str(CHECKS)),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert "skipped" not in done.stdout or not interpret, done.stdout
    return int(passed[1])


def test_every_kernel_has_its_checks() -> None:
    kernels = Path(__file__).parents[2] / "kernels"
    operations = {file.stem for file in kernels.glob("*.py") if "@triton.jit" in file.read_text()}
    checked = {file.stem.removeprefix("check_") for file in FILES}
    assert operations - checked == {"compaction"}  # which the attentions run


def test_the_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    assert run_checks(FILES, interpret=True) > len(FILES)


@pytest.mark.slow
def test_the_kernels_agree_at_the_widest_depth_in_the_interpreter() -> None:
    assert run_checks(FILES, "-m", "slow", interpret=True) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_kernels_agree_with_the_reference_on_the_gpu() -> None:
    assert run_checks(FILES, "-m", "slow or not slow", interpret=False) > len(FILES)
