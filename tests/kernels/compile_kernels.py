"""Compile the Triton kernels for GPUs that need not be here, and tell what the machine code uses.

    python tests/kernels/compile_kernels.py > tests/kernels/resources.json  # all, 2 minutes
    python tests/kernels/compile_kernels.py compact norm_add/fp32/sm_80     # names that begin so
    python tests/kernels/compile_kernels.py --ones                          # where sizes are 1

Not a test: the tests run it in a process of its own, because Triton's interpreter and compiler
cannot share one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from oldrestore.kernels import architecture, compaction, partial_nonlocal, patch_attention
from oldrestore.kernels import residual_block as fused

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WARP = 32
WARPS, STAGES = 4, 3  # Triton's defaults, for kernels whose launch names none
ALIGNED = [["tt.divisibility", 16]]  # what the launcher finds of pointers and of most sizes
TENSOR_INSTRUCTIONS = {80: "HMMA", 90: "HGMMA", 100: "UTC[A-Z]*MMA", 120: "HMMA"}
BYTES = {"bf16": 2, "fp32": 4}
CHANNELS = 512  # of the published networks' latents: the widest that the kernels take
NARROW = 64  # as of the default network
# Pointers that do not have the operands' dtype.
POINTERS = {"flag": "i1", "best": "i64"} | dict.fromkeys(
    (
        *("bias", "lse", "delta", "scale", "top", "mean", "rstd", "square", "sum", "sum_x"),
        *("chunk_mean", "chunk_square"),
    ),
    "fp32",
)


class Case(NamedTuple):
    """A kernel as it is launched: its name here, dtype, architecture and constants."""

    name: str
    kernel: Any
    dtype: str
    arch: int
    constants: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.name}/{self.dtype}/sm_{self.arch}"


def cases() -> Iterator[Case]:
    for arch in architecture.ARCHITECTURES:
        yield Case("compact", compaction.compact_kernel, "i1", arch, {"BLOCK": compaction.BLOCK})
        for dtype in BYTES:
            for name, kernel, constants in (*_attention(arch, dtype), *_pointwise()):
                yield Case(name, kernel, dtype, arch, constants)
            tile = patch_attention.TILES[arch, BYTES[dtype]]
            constants = {"SPLITS": patch_attention.SPLITS, **tile.constants}
            yield Case("patch", patch_attention.patch_attention_kernel, dtype, arch, constants)


def _attention(arch: int, dtype: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    module = partial_nonlocal
    for depth in (CHANNELS, NARROW):
        tiles = [tile.fitted(depth, depth) for tile in module.TILES[arch, BYTES[dtype]]]
        whole = {"IS_WHOLE": tiles[0]["BLOCK_INNER"] >= depth}
        for is_listed, queries in ((False, "all"), (True, "damaged")):
            if is_listed and depth == NARROW:
                continue
            mode = {"IS_LISTED": is_listed, "PRECISION": module.PRECISION}
            suffix = f"_{queries}_{depth}"
            yield "fwd" + suffix, module.partial_nonlocal_fwd_kernel, tiles[0] | whole | mode
            yield "bwd_query" + suffix, module.partial_nonlocal_bwd_query_kernel, tiles[1] | mode
            yield "bwd_key" + suffix, module.partial_nonlocal_bwd_key_kernel, tiles[2] | mode
    rows = {"BLOCK_ROWS": module.DELTA_ROWS, "BLOCK": module.DELTA_COLUMNS}
    yield "delta", module.partial_nonlocal_delta_kernel, rows


def _pointwise() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    cut = fused.blocks(CHANNELS)
    chunk = {"CHUNK": fused.CHUNK_PIXELS}
    act_pad = {"SLOPE": 0.0, "PAD": 1}
    yield "chunk_statistics", fused.chunk_statistics_kernel, cut | chunk
    rows = {"BLOCK_ROWS": fused.CHUNKS}
    yield "merge_statistics", fused.merge_statistics_kernel, cut | chunk | rows
    yield "norm_act_pad_fwd", fused.norm_act_pad_fwd_kernel, cut | act_pad | {"IS_NORMED": True}
    yield "norm_act_pad_sums", fused.norm_act_pad_sums_kernel, cut | act_pad | chunk
    yield "norm_act_pad_bwd", fused.norm_act_pad_bwd_kernel, cut | act_pad | {"IS_NORMED": True}
    yield "norm_add", fused.norm_add_fwd_kernel, cut
    bare = {"IS_NORMED": False, "SLOPE": None, "PAD": 1}
    yield "pad_fwd", fused.norm_act_pad_fwd_kernel, cut | bare
    yield "pad_bwd", fused.norm_act_pad_bwd_kernel, cut | bare
    leaky = {"IS_NORMED": True, "SLOPE": 0.2, "PAD": 0}
    yield "norm_act_fwd", fused.norm_act_pad_fwd_kernel, cut | leaky
    yield "norm_act_bwd", fused.norm_act_pad_bwd_kernel, cut | leaky


def _type_of(argument: str, dtype: str) -> str:
    """A run-time argument's type, from its name."""
    if not argument.endswith("_ptr"):
        return "fp32" if argument == "eps" else "i32"
    stem = argument.removesuffix("_ptr")
    if stem.endswith(("index", "count")):
        return "*i32"
    return "*" + POINTERS.get(stem, dtype)


def with_sizes_of_one(case: Case) -> Case:
    """As the launcher compiles it where every size is 1: that makes constants of them."""
    names = [n for n in case.kernel.arg_names if n not in case.constants and not n.isupper()]
    ones = {name: 1 for name in names if _type_of(name, case.dtype) == "i32"}
    return case._replace(constants=case.constants | ones)


def compile_case(case: Case) -> dict[str, int]:
    """What the machine code of a case uses.

    Bytes of shared memory, columns of tensor memory, registers a thread, bytes of stack; numbers
    of local loads and stores, tensor-core instructions and asynchronous copies.
    """
    constants = {"num_warps": WARPS, "num_stages": STAGES, **case.constants}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    signature, attributes = {}, {}
    for place, name in enumerate(case.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = _type_of(name, case.dtype)
            if signature[name] != "fp32":
                attributes[place,] = ALIGNED
    source = ASTSource(case.kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", case.arch, WARP), options=options)
    memory = {
        "shared": binary.metadata.shared,
        "tensor_memory": getattr(binary.metadata, "tmem_size", None) or 0,
    }
    return memory | _read(binary.asm["cubin"], case.arch)


def _read(cubin: bytes, arch: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _run("cuobjdump", "--dump-resource-usage", str(file))
        code = _run("nvdisasm", "-c", str(file))
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "local": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "tensor": len(re.findall(rf"\b{TENSOR_INSTRUCTIONS[arch]}\b", code)),
        "copies": len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", code)),
    }


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def main(options: list[str]) -> None:
    are_ones = "--ones" in options
    wanted = tuple(option for option in options if option != "--ones")
    chosen = [case for case in cases() if not wanted or case.label.startswith(wanted)]
    kernels = {
        case.label: compile_case(with_sizes_of_one(case) if are_ones else case) for case in chosen
    }
    lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(kernels.items()))
    print(f'{{\n  "triton": "{triton.__version__}",\n  "kernels": {{\n{lines}\n  }}\n}}')  # noqa: T201  # its result


if __name__ == "__main__":
    main(sys.argv[1:])
