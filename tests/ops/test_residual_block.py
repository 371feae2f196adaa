"""residual_block: the definition, and the native backend held against it."""

import gc
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore import ops
from oldrestore.ops import _dispatch
from oldrestore.ops._native import packed_weights
from oldrestore.ops.residual_block import OPERATION, residual_block

NATIVE = _dispatch.NATIVE
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE is not None else []
Check = Callable[[Tensor, Tensor, Tensor], None]
needs_native = pytest.mark.skipif(NATIVE is None, reason="oldrestore._C is not built")

SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 2, 2),
    (2, 7, 7, 1),
    (2, 7, 7, 9),
    (1, 24, 63, 2),
    (3, 32, 8, 8),
    (1, 63, 13, 21),
    (1, 64, 7, 100),
    (1, 80, 5, 140),
    (1, 100, 12, 12),
    (2, 176, 9, 13),  # threads share its groups of tiles
]


def make_inputs(shape: tuple[int, ...], *, bias: bool = True) -> tuple[Tensor | None, ...]:
    generator = torch.Generator().manual_seed(sum(shape))
    channels = shape[1]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def weight() -> Tensor:
        return draw(channels, channels, 3, 3) / (3 * channels**0.5)

    def offset() -> Tensor | None:
        return draw(channels) if bias else None

    return draw(*shape), weight(), offset(), weight(), offset()


def references(inputs: tuple[Tensor | None, ...], **kwargs: object) -> tuple[Tensor, Tensor]:
    """In the dtype of the inputs, and in float64."""
    doubles = [None if t is None else t.double() for t in inputs]
    truth = residual_block(*doubles, backend="reference", **kwargs)
    return residual_block(*inputs, backend="reference", **kwargs), truth


def gradients(
    inputs: tuple[Tensor | None, ...], grad: Tensor, **kwargs: object
) -> tuple[Tensor, ...]:
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = residual_block(*inputs, **kwargs)
    return torch.autograd.grad(out, [t for t in inputs if t is not None], grad)


def test_growth_of_the_interpolation_points_is_the_published_order(winograd_growth: float) -> None:
    assert winograd_growth == pytest.approx(7.125)


@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_reference_is_the_block_built_from_torch_modules(norm: str | None, padding: str) -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs((2, 5, 6, 9))
    mode = {"reflect": "reflect", "zero": "zeros"}[padding]
    layers: list[nn.Module] = []
    for weight, bias in ((weight1, bias1), (weight2, bias2)):
        conv = nn.Conv2d(5, 5, 3, padding=1, padding_mode=mode)
        conv.load_state_dict({"weight": weight, "bias": bias})
        layers += [conv, nn.InstanceNorm2d(5) if norm else nn.Identity(), nn.ReLU()]
    expected = x + nn.Sequential(*layers[:-1])(x)
    got = residual_block(
        x, weight1, bias1, weight2, bias2, norm=norm, padding=padding, backend="reference"
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_cpp_is_as_accurate_as_its_algorithm_allows(
    shape: tuple[int, ...],
    norm: str | None,
    padding: str,
    layout: str,
    assert_accurate: Check,
) -> None:
    if padding == "reflect" and min(shape[2:]) < 2:
        pytest.skip("reflection needs two pixels")
    x, *weights = make_inputs(shape)
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    x = x.contiguous(memory_format=memory_format)
    out = residual_block(x, *weights, norm=norm, padding=padding, backend="cpp")
    assert_accurate(out, *references((x, *weights), norm=norm, padding=padding))
    assert out.is_contiguous(memory_format=memory_format)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(2, 7, 7, 9), (1, 48, 33, 140), (1, 184, 5, 9)], ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_instruction_set_is_accurate(
    instruction_set: str,
    shape: tuple[int, ...],
    norm: str | None,
    layout: str,
    assert_accurate: Check,
) -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs(shape)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    out = torch.full_like(x, float("nan"))
    NATIVE.residual_block(
        x.numpy(),
        NATIVE.PackedWeights(weight1.numpy(), instruction_set=instruction_set),
        bias1.numpy(),
        NATIVE.PackedWeights(weight2.numpy(), instruction_set=instruction_set),
        bias2.numpy(),
        out.numpy(),
        instance_norm=norm == "instance",
        reflect=True,
        threads=1,
    )
    inputs = (x, weight1, bias1, weight2, bias2)
    assert_accurate(out, *references(inputs, norm=norm, padding="reflect"))


@needs_native
def test_cpp_takes_no_biases(assert_accurate: Check) -> None:
    inputs = make_inputs((1, 32, 9, 9), bias=False)
    out = residual_block(*inputs, norm=None, padding="zero", backend="cpp")
    assert_accurate(out, *references(inputs, norm=None, padding="zero"))


@needs_native
@pytest.mark.usefixtures("poisoned")
def test_cpp_takes_non_contiguous_tensors(assert_accurate: Check) -> None:
    wide, *weights = make_inputs((1, 16, 20, 30))
    x = wide[:, :, ::2, 3:20].transpose(2, 3)
    weights[0] = weights[0].transpose(0, 1)
    out = residual_block(x, *weights, norm=None, backend="cpp")
    assert_accurate(out, *references((x, *weights), norm=None))


@pytest.mark.parametrize("backend", ops.available("residual_block"))
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.filterwarnings("error")
def test_an_empty_batch_stays_empty(backend: str, norm: str | None) -> None:
    x, *weights = make_inputs((1, 8, 5, 5))
    assert residual_block(x[:0], *weights, norm=norm, backend=backend).shape == (0, 8, 5, 5)


@needs_native
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("shape", [(1, 32, 40, 150), (3, 16, 9, 9), (2, 176, 9, 13)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], norm: str | None) -> None:
    inputs = make_inputs(shape)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out = residual_block(*inputs, norm=norm, backend="cpp")
        results.append([out, *gradients(inputs, grad, norm=norm, backend="cpp")])
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


@needs_native
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_a_mean_far_above_the_deviation_is_normalised_away(
    padding: str, assert_accurate: Check
) -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs((1, 16, 40, 70))
    x = 0.01 * x + 30.0
    inputs = (x, weight1, bias1, weight2, bias2)
    out = residual_block(*inputs, padding=padding, backend="cpp")
    assert_accurate(out, *references(inputs, padding=padding))


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_cpp_has_the_gradient_of_the_reference(
    shape: tuple[int, ...],
    norm: str | None,
    padding: str,
    layout: str,
    assert_accurate: Check,
) -> None:
    if padding == "reflect" and min(shape[2:]) < 2:
        pytest.skip("reflection needs two pixels")
    if norm is not None and shape[2] * shape[3] <= 4:
        pytest.skip("normalised over so few pixels, gradients are all rounding")
    x, *weights = make_inputs(shape)
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    inputs = (x.contiguous(memory_format=memory_format), *weights)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    kwargs = {"norm": norm, "padding": padding}
    doubles = tuple(t.double() for t in inputs)
    truth = gradients(doubles, grad.double(), backend="reference", **kwargs)
    slow = gradients(inputs, grad, backend="reference", **kwargs)
    fast = gradients(inputs, grad, backend="cpp", **kwargs)
    for results in zip(fast, slow, truth, strict=True):
        assert_accurate(*results)


@needs_native
def test_cpp_takes_gradients_and_weights_of_any_layout(assert_accurate: Check) -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs((2, 16, 9, 13), bias=False)
    inputs = (x, weight1.transpose(0, 1), bias1, weight2.transpose(2, 3), bias2)
    grad = torch.randn(2, 16, 13, 9, generator=torch.Generator().manual_seed(1)).transpose(2, 3)
    doubles = tuple(None if t is None else t.double() for t in inputs)
    truth = gradients(doubles, grad.double(), backend="reference")
    slow = gradients(inputs, grad, backend="reference")
    for results in zip(gradients(inputs, grad, backend="cpp"), slow, truth, strict=True):
        assert_accurate(*results)


@needs_native
def test_an_empty_batch_has_gradients_of_zero() -> None:
    x, *weights = make_inputs((1, 8, 5, 5))
    found = gradients((x[:0], *weights), x[:0], backend="cpp")
    assert [tuple(g.shape) for g in found] == [tuple(t.shape) for t in (x[:0], *weights)]
    assert all(bool((g == 0).all()) for g in found)


@needs_native
def test_cpp_leaves_out_the_gradients_nobody_wants() -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs((1, 8, 6, 7))
    weight2.requires_grad_()
    residual_block(x, weight1, bias1, weight2, bias2, backend="cpp").sum().backward()
    assert weight2.grad is not None
    assert x.grad is None
    assert weight1.grad is None


@needs_native
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("bias", [True, False])
def test_cpp_passes_opcheck(norm: str | None, bias: bool) -> None:
    x, *weights = make_inputs((1, 8, 6, 7), bias=bias)
    tensors = [None if t is None else t.requires_grad_() for t in (x, *weights)]
    operator = torch.ops.oldrestore.residual_block.default
    torch.library.opcheck(operator, (*tensors, norm, "reflect", True))
    plain = [None if t is None else t.detach() for t in tensors]
    plain[0] = plain[0].contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operator, (*plain, norm, "zero", False))


@needs_native
def test_the_operator_says_that_it_kept_nothing_for_the_gradient() -> None:
    x, *weights = make_inputs((1, 8, 6, 7))
    operator = torch.ops.oldrestore.residual_block.default
    with pytest.raises(ValueError, match=r"^keep: expected True"):
        operator(x.requires_grad_(), *weights, None, "zero", False)


@needs_native
def test_a_compiled_block_equals_the_eager_one() -> None:
    inputs = make_inputs((1, 16, 10, 11))
    compiled = torch.compile(residual_block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = residual_block(*inputs, norm=None, backend="cpp")
        assert torch.equal(compiled(*inputs, norm=None, backend="cpp"), expected)
    grads = []
    for run in (compiled, residual_block):
        leaves = [t.detach().requires_grad_() for t in inputs]
        run(*leaves, norm=None, backend="cpp").sum().backward()
        grads.append([t.grad for t in leaves])
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)


@needs_native
@pytest.mark.parametrize("how", ["no_grad", "data", "inference_mode"])
def test_weights_changed_in_place_take_effect(how: str, assert_accurate: Check) -> None:
    x, *weights = make_inputs((1, 16, 9, 9))
    with torch.inference_mode(how == "inference_mode"):
        weights = [w.clone() for w in weights]
        residual_block(x, *weights, norm=None, backend="cpp")
        target = weights[0].data if how == "data" else weights[0]
        with torch.no_grad():
            target[3, 5, 1, 2] += 1.0
        out = residual_block(x, *weights, norm=None, backend="cpp")
        assert_accurate(out, *references((x, *weights), norm=None))


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_a_large_map_needs_little_more_memory_than_two_maps(
    layout: str, peak_extra_bytes: Callable[[str, str], int]
) -> None:
    before = f"""
from oldrestore.ops import residual_block
x = torch.randn(1, 512, 256, 256).contiguous(memory_format=torch.{layout})
weight = torch.randn(512, 512, 3, 3) / 68
run = lambda x: residual_block(x, weight, None, weight, None, backend="cpp")
run(x[:, :, :8, :8])  # the transformed weights are kept, and no part of this
"""
    one_map = 4 * 512 * 256 * 256
    workspace = peak_extra_bytes(before, "out = run(x)") - one_map  # the result itself
    assert workspace < 2.2 * one_map


@needs_native
def test_packed_weights_are_kept_while_the_weights_live_and_no_longer() -> None:
    gc.collect()
    before = len(packed_weights)
    inputs = make_inputs((1, 16, 9, 9))
    residual_block(*inputs, backend="cpp")
    packed = packed_weights.of(inputs[1])
    residual_block(*inputs, backend="cpp")
    assert packed_weights.of(inputs[1]) is packed
    assert packed_weights.of(inputs[1], is_rotated=True) is not packed
    assert len(packed_weights) == before + 2
    del inputs
    gc.collect()
    assert len(packed_weights) == before


@needs_native
@pytest.mark.parametrize("change", ["one", "signs", "swap"])
def test_packed_weights_know_weights_from_changed_ones(change: str) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 12, 3, 3)).astype(np.float32)
    packed = NATIVE.PackedWeights(weight)
    assert packed.matches(weight.copy())
    changed = weight.copy()
    if change == "one":
        changed[15, 11, 2, 2] = np.nextafter(changed[15, 11, 2, 2], np.float32(1e9))
    elif change == "signs":
        changed = -changed
    else:
        changed[[0, 1]] = changed[[1, 0]]
    assert not packed.matches(changed)


@needs_native
def test_the_choice_is_cpp_where_it_is_faster(caplog: pytest.LogCaptureFixture) -> None:
    def chosen(channels: int, side: int, norm: str | None, *, training: bool) -> str:
        x, *weights = make_inputs((1, channels, side, side))
        weights[0].requires_grad_(training)
        arguments = (x, *weights)
        backend = OPERATION.choose(None, x.device, *arguments, norm=norm)
        return backend.name

    assert chosen(64, 64, None, training=False) == "cpp"
    assert chosen(64, 64, "instance", training=True) == "cpp"
    assert chosen(8, 64, "instance", training=False) == "cpp"
    with caplog.at_level(logging.DEBUG, logger="oldrestore.ops"):
        assert chosen(8, 64, None, training=False) == "reference"
        assert chosen(16, 16, "instance", training=False) == "reference"
        assert chosen(64, 16, None, training=True) == "reference"
    assert chosen(64, 16, None, training=False) == "cpp"
    for reason in ("12 channels on", "1000000 products on", "1024 pixels on"):
        assert f"faster from {reason}" in caplog.text


@needs_native
def test_cpp_refuses_what_it_cannot_run() -> None:
    inputs = [t.double() for t in make_inputs((1, 8, 5, 5))]
    with pytest.raises(ValueError, match=r"cannot use 'cpp': takes float32, not torch\.float64"):
        residual_block(*inputs, backend="cpp")
    assert residual_block(*inputs).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_and_keep_their_dtype(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in make_inputs((1, 8, 5, 5))]
    out = residual_block(*inputs)
    assert out.dtype == dtype
    assert bool(out.isfinite().all())


BAD = {
    "norm": {"norm": "batch"},
    "padding": {"padding": "same"},
    "x": {"x": torch.zeros(8, 5, 5)},
    "x: expected C >= 1, H and W >= 2": {"x": torch.zeros(1, 8, 1, 5)},
    "weight1": {"weight1": torch.zeros(8, 8, 5, 5)},
    "bias1": {"bias1": torch.zeros(7)},
    "weight2": {"weight2": torch.zeros(8, 8, 3, 3, dtype=torch.float64)},
    "bias2": {"bias2": torch.zeros(1, 8)},
    "backend": {"backend": "fastest"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name: str) -> None:
    names = ("x", "weight1", "bias1", "weight2", "bias2")
    arguments = dict(zip(names, make_inputs((1, 8, 5, 5)), strict=True)) | BAD[name]
    with pytest.raises(ValueError, match=f"^{name}"):
        residual_block(**arguments)


@needs_native
def test_the_extension_names_the_array_it_refuses() -> None:
    x = np.zeros((1, 8, 5, 5), np.float32)
    packed = NATIVE.PackedWeights(np.zeros((8, 8, 3, 3), np.float32))
    good = {
        "x": x,
        "weight1": packed,
        "bias1": None,
        "weight2": packed,
        "bias2": None,
        "out": np.empty_like(x),
        "instance_norm": False,
        "reflect": True,
        "threads": 1,
    }
    NATIVE.residual_block(**good)
    padded = np.empty((1, 5, 5, 16), np.float32)
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    bad = {
        "x": [x.astype(np.float64), x[..., ::2], x[0], x[:, :, :1]],
        "out": [read_only, np.empty((1, 8, 5, 6), np.float32), x.transpose(0, 1, 3, 2)],
        "bias1": [np.zeros(7, np.float32), np.zeros(8), np.zeros(16, np.float32)[::2]],
        "weight1": [NATIVE.PackedWeights(np.zeros((8, 4, 3, 3), np.float32))],
        "weight2": [
            NATIVE.PackedWeights(np.zeros((4, 4, 3, 3), np.float32)),
            NATIVE.PackedWeights(np.zeros((8, 8, 3, 3), np.float32), is_rotated=True),
        ],
        "inner": [padded[..., :8], padded.astype(np.float64)],
        "norms": [np.empty((4, 1, 8), np.float32)],
        "threads": [0],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: "):
                NATIVE.residual_block(**good | {name: value})
    for weight in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3, 3))):
        with pytest.raises(ValueError, match=r"^weight: "):
            NATIVE.PackedWeights(weight)
    with pytest.raises(ValueError, match=r"^instruction_set: "):
        NATIVE.PackedWeights(np.zeros((8, 8, 3, 3), np.float32), instruction_set="mmx")
