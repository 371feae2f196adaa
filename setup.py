"""Build the native core, oldrestore._C, with CMake and Ninja. All else is in pyproject.toml.

OLDRESTORE_BUILD chooses: "auto" (the default) builds where there is a C++ compiler and installs
pure Python where there is none; "cpu" demands the native core; "none" leaves it out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CHOICES = ("auto", "cpu", "none")
SOURCE = Path(__file__).resolve().parent / "csrc"


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
        if choice == "cpu":
            raise SystemExit("OLDRESTORE_BUILD=cpu: no C++ compiler (c++, g++, clang++ or $CXX)")
        notice = "oldrestore: no C++ compiler found: installing without the native core (slower)"
        print(notice, file=sys.stderr)  # noqa: T201  # pip -v shows it
        return []
    return [Extension("oldrestore._C", sources=[])]


class CMakeBuild(build_ext):
    """Build one extension with CMake; a compile error ends the installation."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake")
        configure = [
            cmake,
            *("-S", str(SOURCE), "-B", str(work), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(work)], check=True)


setup(ext_modules=wanted_extensions(), cmdclass={"build_ext": CMakeBuild})
