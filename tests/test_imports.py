"""Imports point one way, are absolute, and leave heavy packages for those who need them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import oldrestore

PACKAGE = Path(oldrestore.__file__).parent
NETWORKS = {"mask", "refiner", "tone", "denoise", "vae", "mapping"}
LEAVES = {
    "backbones",
    "checkpoint",
    "detection",
    "fill",
    "grain",
    "image",
    "perceptual",
    "photo_file",
}
BELOW_TRAINING = {
    *("ops", "device", "layers", "attention", "config", "degradation"),
    *NETWORKS,
    *LEAVES,
}

# What each part of the package may import of the package. A part not named here fails the test.
ALLOWED = {
    "backbones": set(),
    "checkpoint": set(),
    "detection": set(),
    "fill": set(),
    "grain": set(),
    "perceptual": {"backbones"},
    "photo_file": set(),
    "image": {"photo_file"},
    "ops": set(),
    "device": {"ops"},
    "layers": {"ops"},
    "attention": {"ops", "layers"},
    "refiner": {"backbones", "layers", "ops"},
    "mask": {"ops", "layers", "refiner"},
    "tone": {"ops", "layers"},
    "denoise": set(),
    "vae": {"ops", "layers"},
    "mapping": {"ops", "layers", "attention"},
    "config": {"checkpoint", *NETWORKS},
    "restraint": {"config", "grain"},
    "networks": {"ops", "device", "face", "layers", "checkpoint", "config", *NETWORKS},
    "restoration": {"face", "tone"},
    "tiling": {
        *("ops", "layers", "attention", "config", "networks", "restoration", "restraint"),
        *("fill", "grain", "image", "photo_file"),
        *NETWORKS,
    },
    "published": {"checkpoint", "config", "layers", "attention", *NETWORKS},
    "steps": {"ops", "denoise", "device", "config", "networks", "fill", "tone"},
    "pipeline": {"ops", "steps", "restoration", "restraint", "tiling", "image", "face"},
    "face": {"checkpoint", "device", "image", "layers", "published"},
    "files": {"photo_file", "pipeline", "restoration"},
    "degradation": {"ops", "image", "photo_file"},  # the last two for folders of photos
    "jobs": {"photo_file"},
    "batch": {
        *("", "checkpoint", "config", "image", "jobs", "networks", "photo_file", "pipeline"),
        *("face", "files", "restraint", "tiling"),
    },
    "evaluate": {
        "denoise",
        "face",
        "layers",
        "config",
        "pipeline",
        "restraint",
        "degradation",
        "train",
        "vae",
        *LEAVES,
    },
    "train": {"face", "networks", "pipeline", *BELOW_TRAINING},
    "cli": {
        "",
        "batch",
        "face",
        "files",
        "jobs",
        "pipeline",
        "restoration",
        "restraint",
        "evaluate",
        "train",
        "published",
        "tiling",
        "networks",
        *BELOW_TRAINING,
    },
    "__main__": {"cli"},
    "": {"pipeline", "image", "restoration", "restraint"},
}
HEAVY = (
    "cv2",
    "cyclopts",
    "imagecodecs",
    "fsspec",
    "jinja2",
    "onnx",
    "onnxruntime",
    "oldrestore._cuda",
    "oldrestore.batch",
    "oldrestore.degradation",
    "oldrestore.train",
    "ray",
    "rich",
    "sqlite3",
    "tensorboard",
    "tifffile",
    "torchmetrics",
    "triton",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: Path) -> str:
    """The module or folder of the package that holds this file; "" for the package's own front."""
    first = module.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported(module: Path) -> Iterator[str]:
    """Every module that the file imports, in dots; for ``from a import b`` both a and a.b."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module != "oldrestore":
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(module: Path) -> set[str]:
    """The parts of the package that the file imports, without its own."""
    parts = set()
    for name in imported(module):
        package, *rest = name.split(".")
        if package != "oldrestore":
            continue
        part = rest[0] if rest else ""
        is_part = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
        parts.add(part if is_part else "")
    return parts - {part_of(module)}


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(module: Path) -> None:
    assert own_parts(module) <= ALLOWED[part_of(module)]


def test_the_rules_name_what_exists() -> None:
    existing = {part_of(module) for module in modules()}
    assert existing == set(ALLOWED)
    for part, others in ALLOWED.items():
        assert part not in others
        assert others <= existing


def test_the_parser_sees_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import oldrestore.a\nfrom oldrestore import b, c as d\n"
        "def f():\n    from oldrestore.e.g import h\n"
    )
    names = set(imported(file))
    assert {"oldrestore.a", "oldrestore.b", "oldrestore.c", "oldrestore.e.g"} <= names
    file.write_text("from . import a\n")
    with pytest.raises(AssertionError, match="relative import"):
        list(imported(file))


def test_modules_stay_readable() -> None:
    lengths = {str(m): len(m.read_text(encoding="utf-8").splitlines()) for m in modules()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_importing_the_package_imports_nothing_heavy_and_prints_nothing() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import oldrestore;"
        f"print(sorted(set({HEAVY!r}) & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
