"""What the operations should take on a GPU: a prediction from formulas, in Markdown.

python benchmarks/bench_gpu_roofline.py

Where there is a card, what it measured stands beside the prediction for it. Resources are those of
the machine code that `tests/kernels/compile_kernels.py` compiled ahead of time.
"""

import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import roofline
import torch
from roofline import GPUS, PATCH_SIZES, SIDES, Gpu
from torch import Tensor
from torch.nn import functional as F

from oldrestore import ops

RESOURCES = Path(__file__).parents[1] / "tests" / "kernels" / "resources.json"
KERNELS = ("fwd_all_512", "bwd_query_all_512", "bwd_key_all_512", "norm_act_pad_fwd", "norm_add")
THREADS = {"fwd_all_512": 256, "bwd_query_all_512": 256, "bwd_key_all_512": 256}  # else 4 warps
POINTWISE_THREADS = 128
REGISTERS = 65536  # of a multiprocessor (CUDA programming guide, compute capabilities)
REGISTER_BLOCK = 8  # registers a thread are given in such steps
SHARED_MEMORY = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}  # of a multiprocessor
SHARED_RESERVED = 1 << 10  # a program
RESIDENT_THREADS = 2048  # of a multiprocessor
MEASURED_MS = 200  # of repetitions
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Row: TypeAlias = tuple[str, str, list[roofline.Path]]


def rows() -> Iterator[Row]:
    """(operation and size, dtype, paths)."""
    for dtype in roofline.BYTES:
        for side in SIDES:
            size = f"{side}x{side}"
            yield f"partial_nonlocal {size}", dtype, roofline.partial_nonlocal(side, dtype)
        for side in SIDES:
            name = f"partial_nonlocal backward {side}x{side}"
            yield name, dtype, roofline.partial_nonlocal_backward(side, dtype)
        for side in SIDES:
            yield f"residual_block {side}x{side}", dtype, roofline.residual_block(side, dtype)
        for patch_size in PATCH_SIZES:
            paths = roofline.patch_attention(SIDES[-1], dtype, patch_size)
            yield f"patch_attention {SIDES[-1]}x{SIDES[-1]} p={patch_size}", dtype, paths


def card() -> Gpu | None:
    """The table's entry for the GPU of this machine."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((gpu for gpu in GPUS if gpu.name in name), None)


def print_predictions(write: Callable[[str], object]) -> None:
    here = card()
    write("### Predicted time (not measured), ms\n")
    write(
        f"Derated: tensor products to {roofline.TENSOR_DERATING:.0%} of the peak "
        f"({roofline.GEMM_DERATING:.0%} in the vendor's products, {roofline.CONV_DERATING:.0%} in "
        f"its convolutions), bandwidths to {roofline.BANDWIDTH_DERATING:.0%}. "
        f"{1 - roofline.INTACT:.0%} of the cells, {roofline.DAMAGED_PATCHES:.0%} of the patches "
        "are damaged. GFLOP and MB are those of an H100.\n"
    )
    measured = ["measured"] if torch.cuda.is_available() else []
    titles = ["operation, 512 channels", "dtype", "path", "GFLOP", "MB memory", "MB L2", "MB held"]
    titles += [f"{gpu.name} predicted" for gpu in GPUS] + measured
    write(_line(titles))
    write(_line(["---"] * len(titles)))
    reference = next(gpu for gpu in GPUS if gpu.name == "H100")
    for operation, dtype, paths in rows():
        for path in paths:
            if path.name == "triton" and importlib.util.find_spec("triton") is None:
                continue  # the tiles are in its kernels
            cells = [
                f"{path.total(reference, 'flops') / 1e9:.3g}",
                f"{path.total(reference, 'memory') / 1e6:.4g}",
                f"{path.total(reference, 'l2') / 1e6:.4g}",
                f"{path.held / 1e6:.4g}",
                *(f"{1e3 * path.seconds(gpu):.3g}" for gpu in GPUS),
            ]
            if measured:
                cells.append(measure(operation, dtype, path.name))
            write(_line([operation, dtype, path.name, *cells]))
    if measured:
        listed = here.name if here else "no card of the table"
        write(f"\nMeasured on {torch.cuda.get_device_name()} ({listed}), median.")


def print_resources(write: Callable[[str], object]) -> None:
    """What the compiled kernels use; nothing where they were not compiled."""
    if not RESOURCES.exists():
        write(f"\nNo resources of compiled kernels: {RESOURCES.name} is not there.")
        return
    kernels = json.loads(RESOURCES.read_text(encoding="utf-8"))["kernels"]
    write("\n### Resources of the compiled kernels\n")
    titles = ("kernel", "registers", "shared KiB", "stack bytes", "programs a multiprocessor")
    write(_line(titles))
    write(_line(["---"] * len(titles)))
    for label, used in sorted(kernels.items()):
        name, _, arch = label.split("/")
        capability = int(arch.removeprefix("sm_"))
        if name not in KERNELS or capability not in SHARED_MEMORY:
            continue
        threads = THREADS.get(name, POINTWISE_THREADS)
        registers = -(-used["registers"] // REGISTER_BLOCK) * REGISTER_BLOCK
        resident = min(
            REGISTERS // (registers * threads),
            SHARED_MEMORY[capability] // (used["shared"] + SHARED_RESERVED),
            RESIDENT_THREADS // threads,
        )
        shared = f"{used['shared'] / 1024:.0f}"
        write(_line([label, str(used["registers"]), shared, str(used["stack"]), str(resident)]))


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def measure(operation: str, dtype: str, path: str) -> str:
    """Median ms of a path on this card, or why there is none."""
    name, size, *rest = operation.replace(" backward", "_backward").split()
    side = int(size.split("x")[0])
    makers: dict[str, Callable[..., Callable[[], object] | None]] = {
        "partial_nonlocal": _attention,
        "partial_nonlocal_backward": _attention_backward,
        "residual_block": _block,
        "patch_attention": _patches,
    }
    numbers = [int(rest[0].removeprefix("p="))] if rest else []
    try:
        run = makers[name](path, side, DTYPES[dtype], *numbers)
        if run is None:
            return "-"
        testing: Any = importlib.import_module("triton.testing")
        return f"{testing.do_bench(run, rep=MEASURED_MS, return_mode='median'):.3g}"
    except (RuntimeError, ValueError) as error:  # out of memory; a kernel that does not fit
        return type(error).__name__
    finally:
        torch.cuda.empty_cache()


def _operands(side: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, side**2, roofline.CHANNELS)
    settings: dict[str, Any] = {"device": "cuda", "generator": generator}
    scale = roofline.CHANNELS**-0.25
    tensors = [(scale * torch.randn(shape, **settings)).to(dtype) for _ in range(3)]
    mask = torch.rand(shape[:2], **settings) > roofline.INTACT
    return tensors, mask.to(dtype)


def _attend(path: str, mask: Tensor) -> Callable[..., Tensor] | None:
    """(query, key, value) -> out; what depends on the mask alone is made before."""
    allowed = (mask == 0)[:, None, :].expand(-1, mask.shape[1], -1)

    def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, allowed, scale=1.0)

    def triton(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ops.partial_nonlocal(query, key, value, mask, backend="triton")

    match path:
        case "eager":
            return functools.partial(_eager_attention, mask)
        case "SDPA":
            return sdpa
        case "FlexAttention":
            return _flex_attention(mask)
        case "triton":
            return triton
    return None


def _eager_attention(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As the published code writes it."""
    weights = F.softmax(query @ key.transpose(1, 2) / 1.0, dim=2)
    weights = (1 - mask)[:, None].repeat(1, query.shape[1], 1) * weights
    return F.normalize(weights, p=1, dim=2) @ value


def _flex_attention(mask: Tensor) -> Callable[..., Tensor]:
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    intact = mask[0] == 0

    def is_kept(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        del batch, head, row
        return intact[column]

    n = mask.shape[1]
    blocks = flex.create_block_mask(is_kept, None, None, n, n, device="cuda")
    compiled: Any = torch.compile(flex.flex_attention)

    def attend(*operands: Tensor) -> Tensor:
        out: Tensor = compiled(*(t[:, None] for t in operands), block_mask=blocks, scale=1.0)
        return out[:, 0]

    return attend


def _attention(path: str, side: int, dtype: torch.dtype) -> Callable[[], object] | None:
    tensors, mask = _operands(side, dtype)
    attend = _attend(path, mask)

    def run() -> object:
        assert attend is not None
        with torch.no_grad():
            return attend(*tensors)

    return None if attend is None else run


def _attention_backward(path: str, side: int, dtype: torch.dtype) -> Callable[[], object] | None:
    tensors, mask = _operands(side, dtype)
    attend = _attend(path, mask)
    if attend is None:
        return None
    tensors = [t.requires_grad_() for t in tensors]
    out = attend(*tensors)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, tensors, grad, retain_graph=True)


def _block(path: str, side: int, dtype: torch.dtype) -> Callable[[], object]:
    channels = roofline.CHANNELS
    shapes = ((1, channels, side, side), *[(channels, channels, 3, 3)] * 2)
    settings: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    x, weight1, weight2 = (
        (torch.randn(shape, **settings) / channels**0.5).to(memory_format=torch.channels_last)
        for shape in shapes
    )
    backend = "reference" if path == "eager" else path
    return torch.no_grad()(
        lambda: ops.residual_block(x, weight1, None, weight2, None, backend=backend)
    )


def _patches(path: str, side: int, dtype: torch.dtype, patch_size: int) -> Callable[[], object]:
    generator = torch.Generator("cuda").manual_seed(0)
    settings: dict[str, Any] = {"device": "cuda", "generator": generator}
    x = torch.randn(1, roofline.CHANNELS, side, side, **settings).to(dtype)
    cells = torch.rand(1, 1, side // patch_size, side // patch_size, **settings)
    mask = (cells < roofline.DAMAGED_PATCHES).to(dtype)
    mask = mask.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    backend = "reference" if path == "eager" else path
    return torch.no_grad()(lambda: ops.patch_attention(x, mask, patch_size, backend=backend))


def main() -> None:
    def write(line: str) -> None:
        sys.stdout.write(line + "\n")

    print_predictions(write)
    print_resources(write)


if __name__ == "__main__":
    main()
