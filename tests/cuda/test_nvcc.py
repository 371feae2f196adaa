"""The CUDA sources compile for every architecture, and no kernel spills or uses local memory."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
ARCHITECTURES = (80, 90, 100, 120)

# indexed by what is known at run time alone, so that it cannot stay in registers
SPILLING = """
__global__ void spilling_kernel(const int* at, float* to) {
  float line[64];
  for (int i = 0; i < 64; ++i) line[i] = to[i];
  for (int i = 0; i < 64; ++i) line[at[i]] += 1.0f;
  for (int i = 0; i < 64; ++i) to[i] = line[63 - at[i]];
}
"""


def compile_strictly(
    source: Path, architecture: int, target: Path
) -> subprocess.CompletedProcess[str]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to compile the CUDA sources")
    command = [nvcc, "-cubin", "-std=c++17", f"-arch=sm_{architecture}", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-warn-spills,-warn-lmem-usage", str(source), "-o", str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda path: path.stem)
def test_no_kernel_spills(source: Path, architecture: int, tmp_path: Path) -> None:
    target = tmp_path / "kernel.cubin"
    done = compile_strictly(source, architecture, target)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_that_uses_local_memory_is_refused(architecture: int, tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING, encoding="utf-8")
    done = compile_strictly(source, architecture, tmp_path / "spilling.cubin")
    assert done.returncode != 0
    assert "Local memory used" in done.stderr


def test_every_source_is_built_and_every_architecture_named() -> None:
    cmake = (SOURCES.parent / "CMakeLists.txt").read_text(encoding="utf-8")
    for source in SOURCES.glob("*.c[up]*"):
        assert source.suffix == ".cuh" or f"cuda/{source.name}" in cmake
    for architecture in ARCHITECTURES:
        assert f" {architecture}" in cmake


def test_device_code_includes_nothing_but_cuda_and_itself() -> None:
    headers = list(SOURCES.glob("*.cuh"))
    own = {f'"{path.name}"' for path in headers}
    for header in headers:
        lines = header.read_text(encoding="utf-8").splitlines()
        included = {line.split()[1] for line in lines if line.startswith("#include")}
        assert included - own <= {"<cuda_bf16.h>", "<cuda_fp16.h>", "<cuda_runtime.h>"}, header.name
