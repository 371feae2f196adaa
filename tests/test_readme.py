"""What the README tells a reader to type works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oldrestore
from oldrestore.cli import app, run_command

README = Path(__file__).parent.parent / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def _commands() -> list[list[str]]:
    lines = "\n".join(_blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("oldrestore ")]


RUN_HERE = {"restore", "detect", "degrade", "info"}  # the others take minutes to hours


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for name in ("grandmother.jpg", "scan.png", "album/one.png", "photos/one.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        photo.save(path)
    photo.save(tmp_path / "master.tif")
    Image.new("L", photo.size).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_commands_are_understood(command: list[str]) -> None:
    app.parse_args(command[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    "command",
    [c for c in _commands() if c[1] in RUN_HERE and not {"--weights", "--face-weights"} & set(c)],
    ids=" ".join,
)
def test_commands_work(command: list[str], desk: Path) -> None:
    assert run_command(command[1:]) == 0


def test_python_works(desk: Path) -> None:
    blocks = _blocks("python")
    assert blocks
    photo = Image.open("scan.png")
    for block in blocks:
        names = {"oldrestore": oldrestore, "photo": photo}
        exec(block, names)


def test_every_file_it_shows_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
