"""The machine a benchmark runs on: its name, its threads, and how fast it can compute at best."""

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types

PACKAGES = ("torch", "onnxruntime", "openvino", "ncnn", "pnnx", "numpy")
FMA_ROUNDS = 20_000_000  # of twelve multiply-adds each: a tenth of a second or so
FMA_REPEATS = 5


def all_threads() -> int:
    """Physical cores that this process may use."""
    cores = psutil.cpu_count(logical=False) or 1
    return min(cores, len(psutil.Process().cpu_affinity()))


def thread_counts() -> list[int]:
    """What is measured: one thread, and all."""
    return sorted({1, all_threads()})


def processor() -> str:
    """The processor's name and its vector instructions."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
    lines = {key.strip(): value.strip() for key, _, value in pairs}
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    vectors = [name for name in ("avx2", "fma", "avx512f", "amx_tile", "asimd") if name in flags]
    return f"{lines.get('model name', platform.machine())} ({', '.join(vectors)})"


def versions() -> dict[str, str]:
    """Versions of what is compared, of those installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def fma_gflops(threads: int) -> float | None:
    """The most GFLOP/s that ``threads`` threads reach in float32; None without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        source = Path(__file__).with_name("fma_peak.c")
        options = ("-O3", "-march=native", "-shared", "-fPIC")
        subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
        run_chains = ctypes.CDLL(str(library)).run_chains
    run_chains.argtypes = (ctypes.c_long, ctypes.POINTER(ctypes.c_float))
    run_chains.restype = ctypes.c_long

    def run(_: int) -> int:
        return int(run_chains(FMA_ROUNDS, ctypes.byref(ctypes.c_float(0.5))))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(FMA_REPEATS):
            start = time.perf_counter()
            operations = sum(pool.map(run, range(threads)))
            best = max(best, operations / (time.perf_counter() - start) / 1e9)
    return best
