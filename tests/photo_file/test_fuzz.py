"""Damaged files are refused with a reason, or read and written back; nothing else happens."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

CRASHES_AND_HANGS = """
import json, os, signal, sys
start, stop = map(int, sys.argv[2:4])
for index in range(start, stop):
    print(json.dumps({"index": index}), flush=True)
    if index == 1:
        os.abort()
    if index == 3:
        signal.alarm(1)
        while True:
            pass
    print(json.dumps({"index": index, "outcome": "read", "reason": ""}), flush=True)
"""


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(fuzz: ModuleType, seed: int, count: int) -> None:
    records = list(fuzz.run(seed, count))
    assert [record["index"] for record in records] == list(range(count))
    failed = [record for record in records if record["outcome"] == "failed"]
    assert failed == []
    for suffix in (".tif", ".png", ".jpg"):  # of each kind some are still read, and some refused
        outcomes = Counter(r["outcome"] for r in records if r["suffix"] == suffix)
        assert set(outcomes) == {"read", "refused"}, (suffix, outcomes)
    for record in records:
        if record["outcome"] == "refused":
            assert record["reason"].startswith(f"in{record['suffix']}: "), record
            assert len(record["reason"]) > len(f"in{record['suffix']}: "), record


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory and alarms are POSIX's")
def test_damaged_files_never_crash_hang_or_leave_halves(fuzz: ModuleType) -> None:
    check(fuzz, seed=1, count=150)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory and alarms are POSIX's")
def test_2000_damaged_files_never_crash_hang_or_leave_halves(fuzz: ModuleType) -> None:
    check(fuzz, seed=0, count=2000)


def test_crashes_and_hangs_are_seen(fuzz: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(CRASHES_AND_HANGS)
    records = list(fuzz.run(0, 5, str(tmp_path / "worker.py")))
    outcomes = [record["outcome"] for record in records]
    assert outcomes == ["read", "failed", "read", "failed", "read"]
    assert "died" in records[1]["reason"]
    assert "took over 10 s" in records[3]["reason"]


def test_what_goes_wrong_is_seen(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, data = fuzz.seeds()[0]
    assert fuzz.outcome(suffix, data, tmp_path)["outcome"] == "read"
    assert fuzz.outcome(suffix, data[:99], tmp_path)["outcome"] == "refused"
    (tmp_path / "half.part").touch()
    with pytest.raises(AssertionError, match="left something behind"):
        fuzz.outcome(suffix, data[:99], tmp_path)
