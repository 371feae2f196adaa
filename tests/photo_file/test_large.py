"""Large files go through by windows in little memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("copy_windows.py")
# the cache of decoded tiles, a row of windows and one of tiles that wait, and what a window takes
ALLOWED_MB = 128 + (1024 + 512) * 15_000 * 6 / 1e6 + 100


def peak_mb(folder: Path, height: int, width: int, layout: dict[str, Any]) -> float:
    arguments = [str(height), str(width), "--layout", json.dumps(layout)]
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["peak_mb"])


def test_a_gradient_comes_through_by_windows(tmp_path: Path) -> None:
    assert peak_mb(tmp_path, 1500, 2100, {"tile": [256, 256]}) < 150


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"tile": [512, 512], "compression": 5},
        {"rows": 16},
        {"compression": 1, "rows": 14_000, "is_big": True},
    ],
    ids=str,
)
def test_210_megapixels_of_16_bits_in_little_memory(layout: dict[str, Any], tmp_path: Path) -> None:
    assert peak_mb(tmp_path, 14_000, 15_000, layout) < ALLOWED_MB
