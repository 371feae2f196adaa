"""Run the benchmarks and print their tables in Markdown.

python benchmarks/run_all.py >> benchmarks/RESULTS.md     # all; more than an hour on two cores
python benchmarks/run_all.py bench_paper.py -k 256px      # some files; what follows is pytest's

One table per group: the median, how many times as fast as eager PyTorch, GFLOP/s counted as direct
convolutions, the fraction of what the machine's multiply-adds reach (above 1: Winograd computes
less), peak memory of the process, and the distance from float64 in eager PyTorch's.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import pytest

FOLDER = Path(__file__).parent
FILES = (
    "bench_residual_block.py",
    "bench_conv_norm_act.py",
    "bench_bottleneck.py",
    "bench_instance_norm_act.py",
    "bench_partial_nonlocal.py",
    "bench_patch_attention.py",
    "bench_training_step.py",
    "bench_paper.py",
    "bench_restore.py",
)
NAMES = ("way", "method", "backend", "name", "layout")  # parameters that name a row
BASELINES = ("eager", "reference")  # first of these that a group has is 1.00
COLUMNS = ("median s", "least s", "times as fast", "GFLOP/s", "of FMA peak", "peak MB", "errors")


def main(arguments: list[str]) -> int:
    files = [a for a in arguments if a in FILES]
    options = [a for a in arguments if a not in FILES]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        paths = [str(FOLDER / name) for name in files or FILES]
        # pytest's own table goes to stderr: stdout is for ours
        sys.stdout, stdout = sys.stderr, sys.stdout
        status = pytest.main([*paths, *options, "-q", "-rs", f"--benchmark-json={report}"])
        sys.stdout = stdout
        if report.exists() and report.stat().st_size:
            results = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
            print_tables(results, lambda line: sys.stdout.write(line + "\n"))
    return int(status)


def print_tables(results: list[dict[str, Any]], write: Callable[[str], object]) -> None:
    """The machine, then one table per group."""
    write(f"\n## Measured on {machine.processor()}, {machine.all_threads()} cores\n")
    write(f"`{' '.join(['python', *sys.argv])}`\n")
    write(", ".join(f"{name} {version}" for name, version in machine.versions().items()) + "\n")
    peaks = {threads: machine.fma_gflops(threads) for threads in machine.thread_counts()}
    for threads, peak in peaks.items():
        rate = f"{peak:.0f} GFLOP/s" if peak else "no C compiler to measure with"
        write(f"- multiply-adds in float32, {threads} threads: {rate}")
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["group"], []).append(result)
    for group, members in groups.items():
        write(f"\n### {group}\n")
        write(_line(["", *COLUMNS]))
        write(_line(["---"] * (len(COLUMNS) + 1)))
        found = re.search(r"(?:threads=)?(\d+) threads|threads=(\d+)", group)
        threads = int(found.group(1) or found.group(2)) if found else machine.all_threads()
        base = _baseline(members)
        for member in sorted(members, key=lambda m: float(m["stats"]["median"])):
            write(_line([_label(member), *_cells(member, base, peaks.get(threads))]))


def _cells(member: dict[str, Any], base: float | None, peak: float | None) -> list[str]:
    stats, extra = member["stats"], member["extra_info"]
    rate, memory = extra.get("gflop_per_s"), extra.get("peak_mb")
    errors = extra.get("eager_errors")
    return [
        f"{stats['median']:.4g}",
        f"{stats['min']:.4g}",
        f"{base / stats['median']:.2f}" if base else "-",
        f"{rate:.0f}" if rate else "-",
        f"{rate / peak:.2f}" if rate and peak else "-",
        f"{memory:.0f}" if memory else "-",
        f"{errors:.2f}" if errors is not None else "-",
    ]


def _baseline(members: list[dict[str, Any]]) -> float | None:
    """The eager median of a group; of several memory formats the fastest."""
    for name in BASELINES:
        found = [float(m["stats"]["median"]) for m in members if _label(m).split()[:1] == [name]]
        if found:
            return min(found)
    return None


def _label(member: dict[str, Any]) -> str:
    params = member["params"] or {}
    return " ".join(str(params[name]) for name in NAMES if name in params) or member["name"]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
