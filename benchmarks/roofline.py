"""Bytes and FLOPs of the operations on a GPU, and the time that these predict.

A prediction, not a measurement: each kernel takes as long as the slowest of its tensor products,
its main-memory traffic and its L2 traffic, at derated peaks; kernels follow each other. Launches
are free, as in a CUDA graph.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from oldrestore.ops.partial_nonlocal import CHUNK_LOGITS

BYTES = {"bf16": 2, "fp32": 4}
TENSOR_DERATING = 0.5  # of the peak: what attention kernels reach (FlashAttention-2 on A100, H100)
GEMM_DERATING = 0.7  # of large vendor products
CONV_DERATING = 0.6  # of large vendor convolutions
BANDWIDTH_DERATING = 0.8
TF32X3 = 3  # tensor products for one in float32 accuracy
INTACT = 0.92  # of the cells
DAMAGED_PATCHES = 0.05
CHANNELS = 512
SIDES = (64, 128, 256)  # of the latent, in cells: photos of 256, 512 and 1024 px
PATCH_SIZES = (8, 4, 2)
SDPA_KEYS = 64  # a block of torch's memory-efficient kernel; it keeps sums this deep in memory
FLEX_QUERIES = 64  # a tile of FlexAttention at this depth
# bytes moved for each logit of the chunked products, which is held in float32, in what they hold:
# product 4, + mask 8, softmax 8, to half precision 6, product 2 or 4
CHUNK_BYTES = {"bf16": 28, "fp32": 24}
# with a least mass: product 4, softmax 8, mass 8, weights 16; product 4, in common 8, of the
# weights 12, of the softmax 16, to half precision 12, three products 12
CHUNK_BACKWARD_BYTES = 100
EAGER_PASSES = 13  # over N x N: product 1, /T 2, softmax 2, mask 1, times 3, L1 norm 3, product 1
# backward: products 4, L1 norm 11, times 3, softmax 3, /T 2: autograd's formulas, one kernel each
EAGER_BACKWARD_PASSES = 23
EAGER_BLOCK_PASSES = 19  # over the map: pad 2, convolution 2, norm 3, ReLU 2; again; add 3
# pad 2, convolution 2, statistics 1, norm + ReLU + pad 2, convolution 2, statistics 1, norm + add 3
FUSED_BLOCK_PASSES = 13


@dataclass(frozen=True)
class Gpu:
    """Peaks for dense operands, in TFLOP/s and TB/s.

    architecture: compute capability. L2 figures are assumptions: no data sheet has them.
    """

    name: str
    architecture: int
    multiprocessors: int
    bf16: float
    tf32: float
    fp32: float
    memory: float
    l2: float


# NVIDIA A100 Tensor Core GPU data sheet (SXM 80GB); H100 Tensor Core GPU data sheet and Hopper
# architecture white paper (SXM5); H200 data sheet; HGX B200 data sheet, a GPU's share. Halved
# where a sheet counts sparse operands.
GPUS = (
    Gpu("A100", 80, 108, 312, 156, 19.5, 2.039, 4.5),
    Gpu("H100", 90, 132, 989, 494, 67, 3.35, 5.5),
    Gpu("H200", 90, 132, 989, 494, 67, 4.8, 5.5),
    Gpu("B200", 100, 148, 2250, 1125, 75, 8.0, 10),
)


@dataclass(frozen=True)
class Kernel:
    """Work of one launch; for products: on which unit, and how near its peak they come.

    programs: how many run; few, or a last wave of few, leave multiprocessors idle. None: enough.
    """

    flops: float = 0.0
    unit: str = "bf16"
    derating: float = TENSOR_DERATING
    memory: float = 0.0
    l2: float = 0.0
    programs: int | None = None

    def seconds(self, gpu: Gpu) -> float:
        """Predicted for ``gpu``."""
        busy = 1.0
        if self.programs is not None:
            waves = math.ceil(self.programs / gpu.multiprocessors)
            busy = self.programs / (waves * gpu.multiprocessors)
        peak = {"bf16": gpu.bf16, "tf32": gpu.tf32, "fp32": gpu.fp32}[self.unit] * 1e12
        return max(
            self.flops / (peak * self.derating * busy),
            self.memory / (gpu.memory * 1e12 * BANDWIDTH_DERATING),
            self.l2 / (gpu.l2 * 1e12 * BANDWIDTH_DERATING * busy),
        )


@dataclass(frozen=True)
class Path:
    """One way to compute an operation: its kernels, and what it holds beside operands and result.

    kernels: for a GPU, whose tiles decide.
    """

    name: str
    kernels: Callable[[Gpu], list[Kernel]]
    held: float

    def seconds(self, gpu: Gpu) -> float:
        """Predicted for ``gpu``."""
        return sum(kernel.seconds(gpu) for kernel in self.kernels(gpu))

    def total(self, gpu: Gpu, what: str) -> float:
        """Of "flops", "memory" or "l2", over the kernels."""
        return float(sum(getattr(kernel, what) for kernel in self.kernels(gpu)))


def vendor_unit(dtype: str) -> str:
    """What torch multiplies matrices with by default: TF32 is off for them."""
    return "bf16" if dtype == "bf16" else "fp32"


def partial_nonlocal(side: int, dtype: str) -> list[Path]:
    """Forward, all queries, depth 512, batch 1."""
    n, size, depth = side**2, BYTES[dtype], CHANNELS
    kept = round(INTACT * n)
    operands, unit = 4 * n * depth * size, vendor_unit(dtype)
    dense = 4 * n * n * depth
    sums = 2 * n * depth * 4 * (n // SDPA_KEYS)  # float32, read and written for each block of keys
    reread = n // FLEX_QUERIES * 2 * n * depth * size
    product = Kernel(dense / 2, unit, GEMM_DERATING, (2 * n * depth + n * n) * size)
    eager = [product, Kernel(memory=(EAGER_PASSES - 2) * n * n * size), product]
    products = Kernel(dense, unit, GEMM_DERATING, operands)
    chunked = [products, Kernel(l2=CHUNK_BYTES[dtype] * n * n)]  # one after the other, all in all
    return [
        Path("eager", lambda _: eager, 4 * n * n * size),
        Path("SDPA", lambda _: [Kernel(dense, unit, memory=operands + sums)], n * depth * 4),
        Path("FlexAttention", lambda _: [Kernel(dense, unit, memory=operands, l2=reread)], 0),
        Path("chunked", lambda _: chunked, 3 * CHUNK_LOGITS * 4),
        Path("triton", lambda gpu: [_fused_forward(gpu, n, kept, dtype)], 0),
    ]


def _tiles(gpu: Gpu, dtype: str, which: int) -> tuple[int, int, int, int]:
    """Queries, keys, whether queries stay on the chip, and slices of the result."""
    from oldrestore.kernels.partial_nonlocal import TILES

    tile = TILES[gpu.architecture, BYTES[dtype]][which]
    slices = math.ceil(CHANNELS / tile.columns)
    return tile.queries, tile.keys, int(tile.inner >= CHANNELS), slices


def _product_unit(dtype: str) -> tuple[str, int]:
    return ("bf16", 1) if dtype == "bf16" else ("tf32", TF32X3)


def _fused_forward(gpu: Gpu, n: int, kept: int, dtype: str) -> Kernel:
    """Every slice of the result multiplies all queries with all keys again."""
    queries, keys, is_whole, slices = _tiles(gpu, dtype, 0)
    size, (unit, times) = BYTES[dtype], _product_unit(dtype)
    tiles = math.ceil(n / queries)
    read = tiles * kept * CHANNELS * size * (slices + 1)  # keys in every slice, values once
    if not is_whole:
        read += slices * tiles * math.ceil(kept / keys) * queries * CHANNELS * size
    return Kernel(
        times * 2 * n * kept * CHANNELS * (slices + 1),
        unit,
        memory=4 * n * CHANNELS * size,
        l2=read,
        programs=tiles * slices,
    )


def partial_nonlocal_backward(side: int, dtype: str) -> list[Path]:
    """The gradients of query, key and value."""
    n, size, depth = side**2, BYTES[dtype], CHANNELS
    kept, unit = round(INTACT * n), vendor_unit(dtype)
    product = Kernel(2 * n * n * depth, unit, GEMM_DERATING, (2 * n * depth + n * n) * size)
    passes = Kernel(memory=(EAGER_BACKWARD_PASSES - 4) * n * n * size)
    paths = [
        Path("eager", lambda _: [*[product] * 4, passes], 3 * n * n * size),
        Path("triton", lambda gpu: _fused_backward(gpu, n, kept, dtype), n * 4),
    ]
    products = Kernel(12 * n * n * depth, unit, GEMM_DERATING, 7 * n * depth * size)
    chunked = [products, Kernel(l2=CHUNK_BACKWARD_BYTES * n * n)]
    return [*paths, Path("chunked", lambda _: chunked, 5 * CHUNK_LOGITS * 4)]


def _fused_backward(gpu: Gpu, n: int, kept: int, dtype: str) -> list[Kernel]:
    """Rows of delta; then programs that own queries, then programs that own keys."""
    size, (unit, times) = BYTES[dtype], _product_unit(dtype)
    kernels = [Kernel(memory=2 * n * CHANNELS * size)]
    for which, results in ((1, 1), (2, 2)):
        queries, keys, _, slices = _tiles(gpu, dtype, which)
        own, other, rows, length = (
            (queries, keys, n, kept) if which == 1 else (keys, queries, kept, n)
        )
        tiles = math.ceil(rows / own)
        # two products over the whole depth in every slice, both operands read for each
        pairs = tiles * slices * math.ceil(length / other)
        kernels.append(
            Kernel(
                times * 2 * n * kept * CHANNELS * (2 * slices + results),
                unit,
                memory=(4 + results) * n * CHANNELS * size,
                l2=pairs * (own + other) * 2 * CHANNELS * size,
                programs=tiles * slices,
            )
        )
    return kernels


def residual_block(side: int, dtype: str) -> list[Path]:
    """Forward, 512 channels, batch 1, channels_last; the convolutions are the vendor's."""
    n, size = side**2, BYTES[dtype]
    # torch lets cuDNN use TF32 for float32 by default
    unit = "bf16" if dtype == "bf16" else "tf32"
    sheet, weights = n * CHANNELS * size, 9 * CHANNELS**2 * size
    conv = Kernel(18 * CHANNELS**2 * n, unit, CONV_DERATING, 2 * sheet + weights)

    def path(name: str, passes: int, held: int) -> Path:
        return Path(name, lambda _: [conv, conv, Kernel(memory=(passes - 4) * sheet)], held * sheet)

    return [path("eager", EAGER_BLOCK_PASSES, 2), path("triton", FUSED_BLOCK_PASSES, 2)]


def patch_attention(side: int, dtype: str, patch_size: int) -> list[Path]:
    """Forward, 512 channels, batch 1."""
    size, patches = BYTES[dtype], (side // patch_size) ** 2
    features, sheet = CHANNELS * patch_size**2, side**2 * CHANNELS * size
    lost = max(1, round(DAMAGED_PATCHES * patches))
    kept = patches - lost
    matrix = patches**2 * size
    product = Kernel(
        2 * patches**2 * features, vendor_unit(dtype), GEMM_DERATING, 2 * sheet + matrix
    )
    # cut 2, normalise 3, put together 2; barring and the largest: three passes over the matrix
    eager = [product, Kernel(memory=7 * sheet + 3 * matrix)]
    return [
        Path("eager", lambda _: eager, 2 * matrix + 2 * sheet),
        Path("triton", lambda gpu: _fused_search(gpu, lost, kept, features, dtype, sheet), sheet),
    ]


def _fused_search(
    gpu: Gpu, lost: int, kept: int, features: int, dtype: str, sheet: int
) -> list[Kernel]:
    """Lengths of the patches, the search, and the copying that torch does."""
    from oldrestore.kernels.patch_attention import SPLITS, TILES

    size, (unit, times) = BYTES[dtype], _product_unit(dtype)
    tile = TILES[gpu.architecture, size]
    tiles = math.ceil(lost / tile.queries)
    pairs = tiles * math.ceil(kept / tile.keys)
    whole = tiles * tile.queries * math.ceil(kept / tile.keys) * tile.keys  # tiles are never cut
    search = Kernel(
        times * 2 * whole * features,
        unit,
        memory=(lost + kept) * features * size,
        l2=pairs * (tile.queries + tile.keys) * features * size,
        programs=tiles * min(SPLITS, math.ceil(kept / tile.keys)),
    )
    return [Kernel(memory=3 * sheet), search, Kernel(memory=4 * sheet)]
