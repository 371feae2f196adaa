"""Build the native core with CMake and Ninja. All else is in pyproject.toml.

It is two extensions: oldrestore._C for the CPU, and oldrestore._cuda where a CUDA compiler is
found, whether or not there is a CUDA device. OLDRESTORE_BUILD chooses: "auto" (the default) builds
what there are compilers for and installs pure Python where there is none; "cpu" demands
oldrestore._C and builds nothing else; "cuda" demands both; "none" builds neither.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# OLDRESTORE_BUILD -> OLDRESTORE_CUDA of csrc/CMakeLists.txt
CHOICES = {"auto": "auto", "cpu": "off", "cuda": "on", "none": "off"}
SOURCE = Path(__file__).resolve().parent / "csrc"
CUDA_FOLDERS = (
    "/usr/local/cuda",
    "/opt/cuda",
)  # where CUDA's own and the distributions' packages go


def build_choice() -> str:
    choice = os.environ.get("OLDRESTORE_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"OLDRESTORE_BUILD: expected one of {', '.join(CHOICES)}; got {choice!r}")
    return choice


def find_compiler() -> str | None:
    """A C++ compiler with vector extensions (GCC or Clang), or None."""
    named = os.environ.get("CXX")
    candidates = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, candidates)), None)


def find_cuda_compiler() -> str | None:
    """nvcc: $CUDACXX, on the path, or where CUDA is usually installed; or None."""
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    folders = filter(None, (os.environ.get("CUDA_HOME"), *CUDA_FOLDERS))
    candidates = ["nvcc", *(str(Path(folder) / "bin" / "nvcc") for folder in folders)]
    return next(filter(None, map(shutil.which, candidates)), None)


def find_tool(name: str) -> str:
    """The command of the build requirement ``name``, which pip installs beside Python."""
    beside_python = Path(sys.executable).parent
    found = shutil.which(name) or shutil.which(name, path=str(beside_python))
    if found is None:
        raise SystemExit(f"{name}: not found; install it with pip install {name}")
    return found


def wanted_extensions() -> list[Extension]:
    choice = build_choice()
    if choice == "none":
        return []
    if find_compiler() is None:
        if choice != "auto":
            raise SystemExit(
                f"OLDRESTORE_BUILD={choice}: no C++ compiler (c++, g++, clang++ or $CXX)"
            )
        notice = "oldrestore: no C++ compiler found: installing without the native core (slower)"
        print(notice, file=sys.stderr)  # noqa: T201  # pip -v shows it
        return []
    if choice == "cuda" and find_cuda_compiler() is None:
        raise SystemExit("OLDRESTORE_BUILD=cuda: no CUDA compiler (nvcc, $CUDACXX or $CUDA_HOME)")
    names = ["oldrestore._C"]
    if CHOICES[choice] != "off" and find_cuda_compiler() is not None:
        names.append("oldrestore._cuda")
    return [Extension(name, sources=[]) for name in names]


class CMakeBuild(build_ext):
    """Build what CMake finds compilers for; a compile error ends the installation."""

    def build_extensions(self) -> None:
        # not in `run`: around this call setuptools decides where the results go
        self.work = Path(self.build_temp).resolve() / "cmake"
        self.work.mkdir(parents=True, exist_ok=True)
        self.configure()
        built = (self.work / "extensions.txt").read_text(encoding="utf-8").split(";")
        self.extensions = [e for e in self.extensions if e.name.rpartition(".")[2] in built]
        subprocess.run([find_tool("cmake"), "--build", str(self.work)], check=True)
        super().build_extensions()

    def configure(self) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath("oldrestore._C")).resolve()
        command = [
            find_tool("cmake"),
            *("-S", str(SOURCE), "-B", str(self.work), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DOLDRESTORE_CUDA={CHOICES[build_choice()]}",
        ]
        environment = dict(os.environ)
        nvcc = find_cuda_compiler()
        if nvcc is not None:
            environment["CUDACXX"] = nvcc  # not a -D, with which CMake would not try it out
        subprocess.run(command, check=True, env=environment)

    def build_extension(self, ext: Extension) -> None:
        """Nothing is left to do for one extension: all of them were built at once."""
        if not Path(self.get_ext_fullpath(ext.name)).exists():
            raise SystemExit(f"{ext.name}: CMake did not build it where setuptools looks")


setup(ext_modules=wanted_extensions(), cmdclass={"build_ext": CMakeBuild})
