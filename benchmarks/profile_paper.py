"""Where the published scratch network spends its time.

python benchmarks/profile_paper.py SIDE THREADS

A table in Markdown: each stage's least time of several rounds, and its rate, counted as direct
convolutions and dense attention.
"""

import sys
import time

import machine
import paper_network
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oldrestore.attention import GlobalNonlocal
from oldrestore.pipeline import Restorer

ROUNDS = 5


def stages(restorer: Restorer) -> dict[str, list[nn.Module]]:
    """The parts in the photo's way; the nonlocal block's own come before it."""
    mapping = restorer.mapping
    nonlocal_block, *trunk = mapping.get_submodule("trunk").children()
    assert isinstance(nonlocal_block, GlobalNonlocal)
    return {
        "encoder": [restorer.vae_old_encoder],
        "head": [mapping.get_submodule("head")],
        "nonlocal block: residual blocks": [nonlocal_block.blocks],
        "nonlocal block: attention, 1x1": [nonlocal_block],
        "residual blocks": trunk,
        "tail": [mapping.get_submodule("tail")],
        "decoder": [restorer.vae_clean_decoder],
    }


def gflop(side_px: int) -> dict[str, float]:
    """Of each stage, in the graph that the rivals get."""
    graph = paper_network.Graph(paper_network.restorer()).to("meta")
    inputs = paper_network.graph_inputs(*paper_network.photo(side_px))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph(*(x.to("meta") for x in inputs))
    counts = {name: sum(found.values()) / 1e9 for name, found in counter.get_flop_counts().items()}
    parts = {name: counts[f"Graph.{name}"] for name in ("encoder", "head", "tail", "decoder")}
    blocks, trunk = counts["Graph.block_trunk"], counts["Graph.trunk"]
    rest = counts["Global"] - sum(parts.values()) - blocks - trunk
    return {
        **parts,
        "nonlocal block: residual blocks": blocks,
        "nonlocal block: attention, 1x1": rest,
        "residual blocks": trunk,
    }


def measure(side_px: int, threads: int) -> dict[str, float]:
    """Least seconds of each stage."""
    torch.set_num_threads(threads)
    restorer, inputs = paper_network.restorer(), paper_network.photo(side_px)
    now = 0
    seconds = {name: [0.0] * (1 + ROUNDS) for name in stages(restorer)}
    for name, modules in stages(restorer).items():
        found = seconds[name]

        def start(*_: object, found: list[float] = found) -> None:
            found[now] -= time.perf_counter()

        def stop(*_: object, found: list[float] = found) -> None:
            found[now] += time.perf_counter()

        for module in modules:
            module.register_forward_pre_hook(start)
            module.register_forward_hook(stop)
    for now in range(1 + ROUNDS):  # noqa: B007 (the hooks read it)
        restorer.restore_tensor(*inputs)
    least = {name: min(found[1:]) for name, found in seconds.items()}
    least["nonlocal block: attention, 1x1"] -= least["nonlocal block: residual blocks"]
    return least


def main(side_px: int, threads: int) -> None:
    seconds, work = measure(side_px, threads), gflop(side_px)
    peak = machine.fma_gflops(threads)
    whole = sum(seconds.values())
    write = sys.stdout.write
    write(f"`python benchmarks/profile_paper.py {side_px} {threads}`\n\n")
    write("| stage | ms | share | GFLOP | GFLOP/s | of FMA peak |\n")
    write("| --- | --- | --- | --- | --- | --- |\n")
    for name, taken in [*seconds.items(), ("all", whole)]:
        count = work.get(name, sum(work.values()))
        rate = count / taken
        share = f"{rate / peak:.2f}" if peak else "-"
        cells = (f"{taken * 1e3:.1f}", f"{taken / whole:.0%}", f"{count:.1f}", f"{rate:.0f}", share)
        write(f"| {name} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [side, threads]:
            main(int(side), int(threads))
        case _:
            sys.exit("usage: python benchmarks/profile_paper.py SIDE THREADS")
