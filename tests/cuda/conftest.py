"""The CUDA sources compiled for the CPU against shim/, and loaded in the place of oldrestore._cuda.

One build is plain; one has AddressSanitizer and UndefinedBehaviorSanitizer, which only a process of
its own can load. Both are kept in pytest's cache until a source changes.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from oldrestore.ops import _cuda_native

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc" / "cuda"
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w")
SANITIZE = (
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=shim_shared",  # margins round every __shared__ variable too
)
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"}


def find_compiler() -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the CUDA sources for the CPU")
    if sys.platform != "linux":
        pytest.skip("the shim needs ucontext and the sections of ELF, as Linux has them")
    return compiler


class Build:
    """Compile into a folder of the cache that is named after all that goes in."""

    def __init__(self, cache: Path, compiler: str) -> None:
        self.cache = cache
        self.compiler = compiler
        version = subprocess.run([compiler, "-v"], capture_output=True, check=True).stderr
        files = sorted([*SOURCES.iterdir(), *HERE.glob("shim/*"), *HERE.glob("*.cu")])
        content = [version, repr((FLAGS, SANITIZE, sys.version)).encode()]
        content += [path.read_bytes() for path in files]
        self.folder = cache / hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
        for old in set(cache.iterdir()) - {self.folder}:
            shutil.rmtree(old)
        self.folder.mkdir(exist_ok=True)

    def __call__(self, name: str, sources: list[Path], *flags: str) -> Path:
        target = self.folder / name
        if target.exists():
            return target
        work = self.folder / f"{name}.objects"
        work.mkdir(exist_ok=True)

        def compile_one(source: Path) -> Path:
            object_file = work / f"{source.name}.o"
            # the module holds no device code, and most of its compilation is optimisation
            level = "-O0" if source.suffix == ".cpp" else "-O1"
            command = [self.compiler, *FLAGS, level, *flags, "-c", "-x", "c++", str(source)]
            self._run([*command, "-o", str(object_file)])
            return object_file

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [str(path) for path in pool.map(compile_one, sources)]
        link = [f for f in flags if f.startswith(("-fsanitize", "-shared"))]
        finished = target.with_suffix(".part")
        self._run([self.compiler, *link, *objects, "-o", str(finished)])
        return finished.rename(target)

    @staticmethod
    def _run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def module(self, name: str, *flags: str) -> Path:
        """The extension from the unmodified sources of csrc/cuda, as a shared library."""
        pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
        includes = [HERE / "shim", pybind11.get_include(), sysconfig.get_path("include")]
        sources = [SOURCES / "module.cpp", *sorted(SOURCES.glob("*.cu"))]
        return self(name, sources, "-shared", *(f"-I{path}" for path in includes), *flags)

    def program(self, source: Path, name: str, *flags: str) -> Path:
        """A program of one source that launches kernels."""
        return self(name, [source], f"-I{HERE / 'shim'}", *flags)


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Build:
    assert request.config.cache is not None
    return Build(request.config.cache.mkdir("cuda_shim"), find_compiler())


@pytest.fixture(scope="session")
def native(build: Build) -> ModuleType:
    """oldrestore._cuda, for the CPU."""
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(build.module("_cuda.so")))
    spec = importlib.util.spec_from_loader("_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def sanitize() -> tuple[str, ...]:
    """The flags of a build that sanitizers watch."""
    return SANITIZE


@pytest.fixture
def sanitized_environment(build: Build) -> dict[str, str]:
    """For a process that loads what was compiled with SANITIZE."""
    command = [build.compiler, "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no AddressSanitizer")
    return {**os.environ, **SANITIZER_OPTIONS, "LD_PRELOAD": library}


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """Where the kernels run: on the CPU through the shim, or on a CUDA device.

    Every torch.empty is full of NaN, so that what a kernel does not write fails.
    """
    if request.param == "cuda":
        missing = _cuda_native.cuda_missing(torch.device("cuda"))
        if missing is not None:
            pytest.skip(missing)
    else:
        module = request.getfixturevalue("native")
        monkeypatch.setattr(_cuda_native, "extension", lambda: module)
        monkeypatch.setattr(_cuda_native, "stream", lambda _: 0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield torch.device("cpu" if request.param == "shim" else "cuda")
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_schedule(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """In which order the shim runs threads and blocks: 0 up, 1 down, else random."""
    return lambda n: monkeypatch.setenv("OLDRESTORE_SHIM_SCHEDULE", str(n))
