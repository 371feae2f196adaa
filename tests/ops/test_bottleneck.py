"""bottleneck: the definition, and the native backend held against it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oldrestore.ops import _dispatch, bottleneck

NATIVE = _dispatch.NATIVE
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE is not None else []
needs_native = pytest.mark.skipif(NATIVE is None, reason="oldrestore._C is not built")
PARAMETERS = 6

# batch, channels in, expansion, channels out, height, width: one cell; fewer channels than a
# vector; more than one strip across; more channels than lie together; two strips down on 3 threads
SHAPES = [
    (1, 3, 2, 3, 2, 2),
    (2, 5, 3, 7, 18, 22),
    (1, 24, 6, 32, 34, 130),
    (1, 96, 6, 96, 8, 34),
    (2, 16, 6, 24, 70, 64),
]
KINDS = [(1, False), (1, True), (2, False)]  # stride, is_residual


def draw(shape: tuple[int, ...], *, is_residual: bool = False) -> tuple[Tensor | None, ...]:
    """x and the parameters, such that all maps are about as large and some values are limited."""
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels_in, expansion, channels_out, height, width = shape
    wide = channels_in * expansion
    channels_out = channels_in if is_residual else channels_out

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*sizes, generator=generator) * scale

    return (
        normal(batch, channels_in, height, width, scale=2),
        normal(wide, channels_in, 1, 1, scale=2 / channels_in**0.5) if expansion > 1 else None,
        normal(wide) if expansion > 1 else None,
        normal(wide, 1, 3, 3),
        normal(wide),
        normal(channels_out, wide, 1, 1, scale=1 / wide**0.5),
        normal(channels_out),
    )


def in_double(operands: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in operands]


def assert_as_accurate(fast: Tensor, slow: Tensor, truth: Tensor) -> None:
    """Errs at most twice as much as the reference."""
    eps = torch.finfo(torch.float32).eps
    allowed = 2 * ((slow - truth).abs().max() + eps * truth.abs().max())
    assert (fast - truth).abs().max() <= allowed
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype


@pytest.mark.parametrize(("stride", "is_residual"), KINDS)
def test_reference_is_the_layers_built_from_torch_modules(stride: int, is_residual: bool) -> None:
    x, *parameters = draw(SHAPES[1], is_residual=is_residual)
    wide = len(parameters[2])
    layers = [
        nn.Conv2d(x.shape[1], wide, 1),
        nn.ReLU6(),
        nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide),
        nn.ReLU6(),
        nn.Conv2d(wide, len(parameters[4]), 1),
    ]
    with torch.no_grad():
        for layer, weight, bias in zip(layers[::2], parameters[::2], parameters[1::2], strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        expected = nn.Sequential(*layers)(x)
    options = {"stride": stride, "is_residual": is_residual, "backend": "reference"}
    found = bottleneck(x, *parameters, **options)
    assert torch.allclose(found, expected + x if is_residual else expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("stride", "is_residual"), KINDS)
def test_cpp_is_the_reference(
    shape: tuple[int, ...], stride: int, is_residual: bool, layout: torch.memory_format
) -> None:
    x, *parameters = draw(shape, is_residual=is_residual)
    options = {"stride": stride, "is_residual": is_residual}
    found = bottleneck(x.contiguous(memory_format=layout), *parameters, **options, backend="cpp")
    slow = bottleneck(x, *parameters, **options, backend="reference")
    truth = bottleneck(*in_double((x, *parameters)), **options, backend="reference")
    assert truth.std() > 0.1
    assert_as_accurate(found, slow, truth)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_left_out_is_left_out(stride: int) -> None:
    x, *parameters = draw((1, 20, 1, 6, 10, 12))
    assert parameters[0] is None
    for some in (parameters, [*parameters[:3], None, parameters[4], None]):
        found = bottleneck(x, *some, stride=stride, backend="cpp")
        slow = bottleneck(x, *some, stride=stride, backend="reference")
        truth = bottleneck(*in_double((x, *some)), stride=stride, backend="reference")
        assert_as_accurate(found, slow, truth)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("stride", "is_residual"), KINDS)
def test_every_instruction_set_is_the_reference(
    instruction_set: str, stride: int, is_residual: bool
) -> None:
    x, *parameters = draw(SHAPES[2], is_residual=is_residual)
    slow = bottleneck(x, *parameters, stride=stride, is_residual=is_residual, backend="reference")
    truth = bottleneck(
        *in_double((x, *parameters)), stride=stride, is_residual=is_residual, backend="reference"
    )
    found = torch.full_like(slow, float("nan"))
    widen, widen_bias, filters, filter_bias, narrow, narrow_bias = parameters
    matrices = (widen.flatten(1), widen_bias, filters.flatten(1, 2), filter_bias)
    NATIVE.bottleneck(
        x.numpy(),
        *(w.numpy() for w in (*matrices, narrow.flatten(1), narrow_bias)),
        found.numpy(),
        stride=stride,
        above=0,
        below=0,
        residual=is_residual,
        threads=1,
        instruction_set=instruction_set,
    )
    assert_as_accurate(found, slow, truth)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_native)])
@pytest.mark.parametrize(("stride", "is_residual"), KINDS)
def test_bands_are_the_map(backend: str, stride: int, is_residual: bool) -> None:
    x, *parameters = draw(SHAPES[2], is_residual=is_residual)
    options = {"stride": stride, "is_residual": is_residual, "backend": backend}
    whole = bottleneck(x, *parameters, **options)
    height = x.shape[2]
    for top in range(0, height, 10):
        bottom = min(height, top + 10)
        above, below = int(top > 0), int(bottom < height)
        rows = x[:, :, top - above : bottom + below]
        band = bottleneck(rows, *parameters, **options, above=above, below=below)
        expected = whole[:, :, top // stride : bottom // stride]
        if backend == "cpp":
            assert torch.equal(band, expected)
        else:
            torch.testing.assert_close(band, expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_neither_threads_nor_other_samples_change_a_bit() -> None:
    x, *parameters = draw(SHAPES[4])
    torch.set_num_threads(1)
    one = bottleneck(x, *parameters, stride=2, backend="cpp")
    torch.set_num_threads(3)
    assert torch.equal(bottleneck(x, *parameters, stride=2, backend="cpp"), one)
    assert torch.equal(bottleneck(x[1:], *parameters, stride=2, backend="cpp"), one[1:])


@needs_native
def test_nan_reaches_its_neighbours_and_nothing_else() -> None:
    x, *parameters = draw(SHAPES[2])
    x[0, 3, 10, 20] = float("nan")
    lost = bottleneck(x, *parameters, backend="cpp").isnan().all(dim=1)[0]
    expected = torch.zeros_like(lost)
    expected[9:12, 19:22] = True
    assert torch.equal(lost, expected)


@needs_native
def test_the_many_channels_are_never_all_in_memory(
    peak_extra_bytes: Callable[[str, str], int],
) -> None:
    before = """
from oldrestore.ops import bottleneck
x, widen, filters = torch.rand(1, 16, 512, 512), torch.rand(96, 16, 1, 1), torch.rand(96, 1, 3, 3)
run = lambda x: bottleneck(x, widen, None, filters, None, widen[:24, :, 0, 0].T[:, :, None, None]
                           .repeat(2, 4, 1, 1)[:24], None, stride=2, backend="cpp")
run(x[:, :, :8])
"""
    of_wide = 96 * 512 * 512 * 4
    assert peak_extra_bytes(before, "out = run(x)") < of_wide / 8


@needs_native
@pytest.mark.parametrize(
    ("options", "needs_grad", "message"),
    [
        ({"stride": 2}, False, "multiples of the stride"),
        ({}, True, "has no gradient"),
    ],
)
def test_what_cpp_cannot_run_takes_the_reference(
    options: dict[str, int], needs_grad: bool, message: str
) -> None:
    x, *parameters = draw((1, 4, 2, 5, 7, 8))
    x.requires_grad_(needs_grad)
    out = bottleneck(x, *parameters, **options)
    assert torch.equal(out, bottleneck(x, *parameters, **options, backend="reference"))
    with pytest.raises(ValueError, match=message):
        bottleneck(x, *parameters, **options, backend="cpp")


def test_gradients_are_those_of_the_definition() -> None:
    x, *parameters = in_double(draw((1, 3, 2, 3, 4, 5)))
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    assert torch.autograd.gradcheck(lambda *some: bottleneck(*some, is_residual=True), leaves)


def test_what_does_not_fit_is_refused() -> None:
    x, widen, widen_bias, filters, filter_bias, narrow, narrow_bias = draw((1, 4, 2, 5, 6, 8))
    rest = (filters, filter_bias, narrow, narrow_bias)
    with pytest.raises(ValueError, match="x: expected"):
        bottleneck(x[0], widen, widen_bias, *rest)
    with pytest.raises(ValueError, match="x: expected"):
        bottleneck(x[:, :, :1], widen, widen_bias, *rest, above=1)
    with pytest.raises(ValueError, match="stride, above, below: expected"):
        bottleneck(x, widen, widen_bias, *rest, stride=3)
    with pytest.raises(ValueError, match="widen: "):
        bottleneck(x[:, :3], widen, widen_bias, *rest)
    with pytest.raises(ValueError, match="filters: "):
        bottleneck(x, None, None, *rest)
    with pytest.raises(ValueError, match="narrow: "):
        bottleneck(x, widen, widen_bias, filters, filter_bias, narrow[:, :3], narrow_bias)
    with pytest.raises(ValueError, match="is_residual: "):
        bottleneck(x, widen, widen_bias, *rest, is_residual=True)
    for index, name in ((1, "widen_bias"), (3, "filter_bias"), (5, "narrow_bias")):
        some = [widen, widen_bias, *rest]
        some[index] = some[index][:-1]
        with pytest.raises(ValueError, match=f"{name}: "):
            bottleneck(x, *some)


@needs_native
def test_the_core_refuses_arrays_that_do_not_fit() -> None:
    x, widen, widen_bias, filters, filter_bias, narrow, narrow_bias = draw((1, 4, 2, 5, 6, 8))
    good = {
        "x": x,
        "widen": widen.flatten(1),
        "widen_bias": widen_bias,
        "filters": filters.flatten(1, 2),
        "filter_bias": filter_bias,
        "narrow": narrow.flatten(1),
        "narrow_bias": narrow_bias,
        "out": torch.empty(1, 5, 6, 8),
    }
    options = {"stride": 1, "above": 0, "below": 0, "residual": False, "threads": 1}

    def run(**changed: object) -> None:
        arrays = {k: v.numpy() for k, v in {**good, **changed}.items() if isinstance(v, Tensor)}
        settings = {k: changed.get(k, v) for k, v in options.items()}
        NATIVE.bottleneck(**arrays, **settings)

    run()
    for changed, name in (
        ({"out": torch.empty(1, 5, 5, 8)}, "out"),
        ({"out": torch.empty(1, 4, 6, 8), "residual": True}, "narrow"),
        ({"residual": True}, "out"),
        ({"widen": widen.flatten(1)[:, :3]}, "widen"),
        ({"filters": filters.flatten(1, 2)[:7]}, "widen"),
        ({"narrow": narrow.flatten(1)[:4]}, "narrow"),
        ({"stride": 3}, "stride"),
        ({"above": 2}, "above"),
        ({"threads": 0}, "threads"),
        ({"x": x.double()}, "x"),
    ):
        with pytest.raises(ValueError, match=name):
            run(**changed)
