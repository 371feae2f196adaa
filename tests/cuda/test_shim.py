"""The shim itself finds planted faults, and under sanitizers the kernels have none."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
SCHEDULES = (0, 1, 2, 3)

# what the launch reports, under every schedule
REPORTED = {
    "divergent_barrier": r"faults.cu:\d+: divergent barrier",
    "barrier_of_two_branches": r"faults.cu:\d+: divergent barrier: others wait at .*faults.cu:\d+",
    "barrier_after_exit": r"faults.cu:\d+: divergent barrier: 1 threads have exited",
    "lane_has_exited": r"faults.cu:\d+: the mask names a lane that has exited",
    "lane_waits_elsewhere": r"faults.cu:\d+: the lanes of the mask never all arrive",
    "lane_not_in_its_mask": r"faults.cu:\d+: a lane is not in its own mask",
    "too_many_threads": r"invalid configuration: 3 blocks of 2048 threads",
}
# what makes the result wrong, under some schedule at least
WRONG = [
    "no_barrier_before_read",
    "no_barrier_before_overwrite",
    "no_warp_barrier",
    "no_barrier_between_warps",
    "unwritten_shared",
    "blocks_depend",
]
SANITIZED = {
    "shared_out_of_bounds": r"AddressSanitizer: global-buffer-overflow",
    "global_out_of_bounds": r"AddressSanitizer: heap-buffer-overflow",
    "misaligned_vector": r"faults.cu:\d+:\d+: runtime error: .*misaligned address",
    "integer_overflow": r"faults.cu:\d+:\d+: runtime error: signed integer overflow",
}


@pytest.fixture
def run_fault(build: Any) -> Callable[[str, int], str]:
    program = build.program(HERE / "faults.cu", "faults")

    def run(fault: str, schedule: int) -> str:
        environment = {**os.environ, "OLDRESTORE_SHIM_SCHEDULE": str(schedule)}
        done = subprocess.run(
            [program, fault], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_right_kernel_is_right_under_every_schedule(
    schedule: int, run_fault: Callable[[str, int], str]
) -> None:
    assert run_fault("none", schedule) == "right"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fault", REPORTED)
def test_a_fault_of_the_threads_paths_is_reported(
    fault: str, schedule: int, run_fault: Callable[[str, int], str]
) -> None:
    assert re.search(REPORTED[fault], run_fault(fault, schedule))


@pytest.mark.parametrize("fault", WRONG)
def test_a_missing_barrier_or_write_shows_under_some_schedule(
    fault: str, run_fault: Callable[[str, int], str]
) -> None:
    assert "wrong" in {run_fault(fault, schedule) for schedule in SCHEDULES}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SANITIZED)
def test_a_fault_of_memory_or_arithmetic_stops_the_sanitized_program(
    fault: str, build: Any, sanitize: tuple[str, ...]
) -> None:
    program = build.program(HERE / "faults.cu", "faults_sanitized", *sanitize)

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, name], capture_output=True, text=True, check=False)

    right, faulty = run("none"), run(fault)
    assert (right.stdout, right.returncode) == ("right\n", 0), right.stderr
    assert faulty.returncode != 0
    assert re.search(SANITIZED[fault], faulty.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_kernels_run_clean_under_the_sanitizers_and_give_the_same(
    schedule: int,
    native: ModuleType,
    build: Any,
    sanitize: tuple[str, ...],
    sanitized_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    module, output = build.module("_cuda_sanitized.so", *sanitize), tmp_path / "results.npz"
    environment = {**sanitized_environment, "OLDRESTORE_SHIM_SCHEDULE": str(schedule)}
    script = HERE / "sanitized.py"
    done = subprocess.run(
        [sys.executable, script, module, output],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("sanitized", script)
    assert spec is not None
    assert spec.loader is not None
    in_this_process = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(in_this_process)
    expected = in_this_process.run(native)
    found = np.load(output)
    assert set(found) == set(expected)
    assert len(expected) > 20
    for name, array in expected.items():
        assert np.isfinite(array).all(), name
        assert np.array_equal(array, found[name]), name
