"""OLDRESTORE_BUILD: what setup.py builds, and how it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ask_setup(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the part of setup.py that decides, without building."""
    code = (
        "import setuptools; setuptools.setup = lambda **k: None; import runpy;"
        f"module = runpy.run_path({str(ROOT / 'setup.py')!r});"
        "print([e.name for e in module['wanted_extensions']()])"
    )
    names = ("CXX", "CUDACXX", "CUDA_HOME", "OLDRESTORE_BUILD")
    kept = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with a C++ and a CUDA compiler; what setup.py looks for is that they are there."""
    for name in ("c++", "nvcc"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("choice", "built"),
    [
        ("auto", "['oldrestore._C', 'oldrestore._cuda']"),
        ("cuda", "['oldrestore._C', 'oldrestore._cuda']"),
        ("cpu", "['oldrestore._C']"),
        ("none", "[]"),
    ],
)
def test_the_choice_decides_what_is_built(choice: str, built: str, tools: Path) -> None:
    compilers = {"CXX": str(tools / "c++"), "CUDACXX": str(tools / "nvcc")}
    done = ask_setup(tools, OLDRESTORE_BUILD=choice, **compilers)
    assert (done.returncode, done.stdout.strip()) == (0, built), done.stderr


def test_without_compilers_auto_is_pure_python_and_the_others_refuse(tools: Path) -> None:
    nowhere = str(tools / "nowhere")
    done = ask_setup(tools, CXX=nowhere)
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
    assert "no C++ compiler found: installing without the native core" in done.stderr
    for choice in ("cpu", "cuda"):
        done = ask_setup(tools, CXX=nowhere, OLDRESTORE_BUILD=choice)
        assert done.returncode != 0
        assert f"OLDRESTORE_BUILD={choice}: no C++ compiler" in done.stderr
    compilers = {"CXX": str(tools / "c++"), "CUDACXX": nowhere}
    done = ask_setup(tools, OLDRESTORE_BUILD="cuda", **compilers)
    assert done.returncode != 0
    assert "OLDRESTORE_BUILD=cuda: no CUDA compiler" in done.stderr
    assert ask_setup(tools, **compilers).stdout.strip() == "['oldrestore._C']"


def test_an_unknown_choice_is_named(tools: Path) -> None:
    done = ask_setup(tools, OLDRESTORE_BUILD="gpu")
    assert done.returncode != 0
    assert "OLDRESTORE_BUILD: expected one of auto, cpu, cuda, none; got 'gpu'" in done.stderr
