"""What users write for memory, and what the system says is free."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oldrestore.ops import _dispatch
from oldrestore.pipeline import Restorer
from oldrestore.tiling import plan
from oldrestore.tiling.memory import (
    FREE_SHARE,
    Guard,
    free_memory,
    read_memory,
    resident_memory,
    text_of,
    trimmed_memory,
)
from oldrestore.tiling.restoring import Bands
from oldrestore.tiling.sources import tensor_source

MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1000 kB\nMemAvailable: 8000000 kB\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("1.5G", int(1.5 * 2**30)),
        ("800MB", 800 * 10**6),
        (" 512 mib ", 512 * 2**20),
        ("4096", 4096),
        ("4096B", 4096),
        ("1TB", 10**12),
        (12345, 12345),
    ],
)
def test_amounts_are_read(text: str | int, size: int) -> None:
    assert read_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-2GiB", "2 GB GB", "2XB", "1e9", "iB", 2.5, True])
def test_what_is_no_amount_is_refused_by_name(text: object) -> None:
    with pytest.raises(ValueError, match="--max-memory: expected bytes such as"):
        read_memory(text, "--max-memory")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "0GiB", 0, -1])
def test_nothing_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="max_memory: expected more than nothing"):
        read_memory(text)


def test_by_default_three_quarters_of_what_is_free() -> None:
    free = free_memory()
    assert read_memory(None) == pytest.approx(FREE_SHARE * free, rel=0.2)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_system_says_what_is_free(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    assert free_memory(tmp_path) == 8_000_000 * 1024


def test_a_container_may_have_less(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs/mine"
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/jobs/mine\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "1000\n",
            "sys/fs/cgroup/jobs/memory.max": "3000000\n",
            "sys/fs/cgroup/jobs/memory.current": "2000000\n",
            "sys/fs/cgroup/jobs/memory.stat": "anon 5\ninactive_file 500000\n",
        },
    )
    assert free_memory(tmp_path) == 1_500_000


def test_older_control_groups_are_read_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/a"
    write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/b\n4:memory:/a\n",
            f"{group}/memory.limit_in_bytes": "4000000\n",
            f"{group}/memory.usage_in_bytes": "1000000\n",
        },
    )
    assert free_memory(tmp_path) == 3_000_000


def test_bytes_are_written_as_they_are_read() -> None:
    assert text_of(2**30) == "1 GiB"
    assert text_of(1_200_000_000) == "1.12 GiB"
    assert text_of(300 * 2**20) == "300 MiB"
    for size in (123_456_789, 5_000_000_000):
        assert size <= read_memory(text_of(size).replace(" ", "")) <= 1.01 * size + 2**20


def test_freed_memory_is_given_back_above_the_limit() -> None:
    if resident_memory() is None:
        pytest.skip("the system does not say what is resident")
    before = trimmed_memory()
    guard = Guard(before + 2**20)
    pieces = [torch.ones(2**15) for _ in range(1024)]  # 128 KiB each, from the heap
    kept = pieces[-1]  # at the heap's end, so that nothing is given back by itself
    held = resident_memory()
    assert held >= before + 2**26
    del pieces
    guard.look()
    assert resident_memory() <= held - 2**26
    assert kept.sum() == 2**15


def test_large_photos_are_worked_on_whole_on_gpus_alone() -> None:
    class Networks:
        config = None
        device = torch.device("cpu")

    networks = Networks()
    assert plan.is_best_whole(networks, (1000, 1000), 2**30)  # type: ignore[arg-type]
    assert not plan.is_best_whole(networks, (1000, 1000), 2**28)  # type: ignore[arg-type]
    assert not plan.is_best_whole(networks, (4000, 6000), 2**40)  # type: ignore[arg-type]
    networks.device = torch.device("cuda")
    assert plan.is_best_whole(networks, (4000, 6000), 2**40)  # type: ignore[arg-type]


@pytest.mark.skipif(resident_memory() is None, reason="the system does not say what is resident")
@pytest.mark.skipif(_dispatch.NATIVE is None, reason="the plan is that of the native core")
def test_what_is_planned_is_what_is_taken() -> None:
    """By a process of its own, so that nothing that was freed before is used again."""
    program = str(Path(__file__).with_name("measure_peak.py"))
    command = [sys.executable, program, "320", "2400", "1GiB"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["planned"] <= 2**30
    assert found["taken"] <= 1.1 * found["planned"]
    assert found["taken"] >= 0.4 * found["planned"]  # else large photos would get small bands


@pytest.mark.parametrize("mask", ["auto", None])
def test_a_rehearsal_foresees_any_taller_photo(mask: str | None) -> None:
    restorer = Restorer.load(device="cpu")
    tall = torch.zeros(3, 4000, plan.REHEARSED_COLUMNS, dtype=torch.uint8)
    wishes = restorer._wishes(
        threshold=None, denoise=None, outside_mask="restore", tone=0.0, strength=1.0
    )
    bands = Bands(restorer, tensor_source(tall), mask, wishes, plan.BANDS[-1])
    foreseen = plan.rehearse(bands)
    bands.survey()
    if mask == "auto":  # without, the second pass takes more
        assert bands.ledger.peak >= 0.9 * foreseen
    assert bands.ledger.peak <= foreseen
