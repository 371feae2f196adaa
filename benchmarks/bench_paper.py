"""The whole published network, holes included, beside what a user could run instead.

pytest benchmarks/bench_paper.py                     # 256 and 512 px, one and all threads
pytest benchmarks/bench_paper.py -k "256 and ncnn"   # a part
python benchmarks/bench_paper.py ours 1024 2         # WAY SIDE THREADS [ROUNDS]: JSON

Every way runs in a process of its own. `ours` is the package as it is, `reference` its networks in
plain PyTorch, `eager` the published structure; the others get an equal graph that suits them best
(`paper_network.Graph`), exported once per size with the same weights.

Before the timing each output is held to float64: random weights make the attention multiply
rounding a thousandfold, so what may differ is a multiple of what eager float32 itself differs.
Above 512 px nothing is checked: the float64 result would not fit.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import alone
import machine
import paper_network
import pytest
import rivals
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

WAYS = ("ours", "reference", "eager", "torch.compile", *rivals.RUNTIMES)
SIDES_PX = (256, 512)
LARGEST_CHECKED_PX = max(SIDES_PX)  # above, eager and float64 need tens of gigabytes
ROUNDS = {256: 7, 512: 3}
# Runtimes sum in other orders, and the largest of 200,000 differences is no steady figure; a wrong
# graph is off by a thousand times.
MOST_EAGER_ERRORS = 8.0
TRUTH = "truth.pt"


def prepare(way: str, side_px: int, folder: str) -> None:
    """Write the float64 result, eager's distance from it, and what the runtime of ``way`` reads."""
    truth_file = Path(folder) / TRUTH
    image, mask = paper_network.photo(side_px)
    if side_px <= LARGEST_CHECKED_PX and not truth_file.exists():
        with torch.inference_mode():
            eager = paper_network.Eager(paper_network.restorer())(image, mask)
            exact = paper_network.Exact(paper_network.restorer()).double()
            truth = exact(*(x.double() for x in paper_network.graph_inputs(image, mask)))
        error = float((eager - truth).abs().max())
        torch.save({"truth": truth, "eager_error": error}, truth_file)
    if way in rivals.RUNTIMES:
        graph = paper_network.Graph(paper_network.restorer()).eval().requires_grad_(False)
        inputs = paper_network.graph_inputs(image, mask)
        rivals.RUNTIMES[way].export(graph, inputs, Path(folder))


def load(way: str, side_px: int, threads: int, folder: str) -> alone.Loaded:
    """A way to restore the photo, after its result was found right."""
    torch.set_num_threads(threads)
    run, inputs = _runner(way, threads, Path(folder)), paper_network.photo(side_px)
    if side_px > LARGEST_CHECKED_PX:
        return lambda: run(*inputs), {}
    known = torch.load(Path(folder) / TRUTH)
    error = float((run(*inputs) - known["truth"]).abs().max()) / known["eager_error"]
    if not error <= MOST_EAGER_ERRORS:  # NaN too
        raise AssertionError(f"{way}: {error:.1f} times as far from float64 as eager")
    return lambda: run(*inputs), {"eager_errors": error, "eager_error": known["eager_error"]}


def _runner(way: str, threads: int, folder: Path) -> rivals.Run:
    """(image, mask) -> restored."""
    if way in ("ours", "reference"):
        backend = None if way == "ours" else "reference"
        return paper_network.restorer(backend).restore_tensor
    if way == "eager":
        return torch.inference_mode()(paper_network.Eager(paper_network.restorer()))
    if way == "torch.compile":
        run = rivals.compiled(paper_network.Graph(paper_network.restorer()))
    else:
        run = rivals.RUNTIMES[way].load(folder, threads)

    def restore(image: Tensor, mask: Tensor) -> Tensor:
        return run(*paper_network.graph_inputs(image, mask))

    return restore


@functools.cache
def gflop(side_px: int) -> float:
    """Direct convolutions and products of the network, the attention counted dense."""
    graph = paper_network.Graph(paper_network.restorer()).to("meta")
    inputs = paper_network.graph_inputs(*paper_network.photo(side_px))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(*(x.to("meta") for x in inputs))
    return float(counter.get_total_flops()) / 1e9


@pytest.fixture(scope="module", params=SIDES_PX, ids=lambda side: f"{side}px")
def exported(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A size, and where its exported graphs lie."""
    with tempfile.TemporaryDirectory() as folder:
        yield request.param, folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", machine.thread_counts())
def bench_paper(
    benchmark: BenchmarkFixture, exported: tuple[int, str], threads: int, way: str
) -> None:
    reason = rivals.RUNTIMES[way].missing() if way in rivals.RUNTIMES else None
    if reason is not None:
        pytest.skip(reason)
    side_px, folder = exported
    with alone.process() as call:
        call(prepare, way, side_px, folder)
    benchmark.group = f"published scratch network, {side_px} x {side_px}, {threads} threads"
    alone.bench(benchmark, load, (way, side_px, threads, folder), ROUNDS[side_px])
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = gflop(side_px) / benchmark.stats.stats.median
        benchmark.extra_info.update(gflop_per_s=rate, device=machine.processor())


def main(way: str, side_px: int, threads: int, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with alone.process() as call:
            call(prepare, way, side_px, folder)
        result = alone.measure(load, (way, side_px, threads, folder), rounds)
    result["gflop_per_s"] = gflop(side_px) / result["seconds"]
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [way, *numbers] if way in WAYS and len(numbers) in (2, 3):
            main(way, *map(int, numbers))
        case _:
            sys.exit(f"usage: python bench_paper.py {'|'.join(WAYS)} SIDE THREADS [ROUNDS]")
