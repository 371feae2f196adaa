"""What importing costs beside torch: pytest benchmarks/bench_import.py

The bracket beside each time is its ratio to the fastest.
"""

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 9


@pytest.mark.parametrize("package", ["torch", "oldrestore"])
def bench_import(benchmark: BenchmarkFixture, package: str) -> None:
    command = [sys.executable, "-c", f"import {package}"]
    benchmark.group = "import, a fresh process each"
    options = {"check": True, "timeout": 120}
    benchmark.pedantic(subprocess.run, (command,), options, rounds=ROUNDS, warmup_rounds=1)
