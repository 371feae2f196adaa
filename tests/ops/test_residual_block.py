"""residual_block: the definition, and the native backend held against it."""

import gc
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore import ops
from oldrestore.ops import _dispatch
from oldrestore.ops.residual_block import _packed_weights, residual_block

NATIVE = _dispatch.NATIVE
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE is not None else []
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
]


def winograd_growth() -> float:
    """How much larger the rounding errors of F(4x4, 3x3) are than direct convolution's, in rms.

    An output of the one-dimensional algorithm is sum_i A[j, i] (G g)[i] (B d)[i]. For random g and
    d a product, and with it its rounding, is of the size |G[i]| |B[i]|; the direct sum has three
    products of size 1. The worst output counts, and two dimensions square the factor.
    """
    points = np.array([0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5)])
    squares = np.zeros(4)
    for p in points:
        others = points[points != p]
        g = np.linalg.norm([1, p, p * p]) / np.prod(p - others)
        squares += (p ** np.arange(4) * g * np.linalg.norm(np.poly(others))) ** 2
    squares[3] += np.linalg.norm(np.poly(points)) ** 2  # the point at infinity
    return float((squares / 3).max())


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


def assert_accurate(fast: Tensor, inputs: tuple[Tensor | None, ...], **kwargs: object) -> None:
    """``fast`` errs at most twice as much as Winograd's rounding makes of the reference's error."""
    doubles = [None if t is None else t.double() for t in inputs]
    truth = residual_block(*doubles, backend="reference", **kwargs)
    slow = residual_block(*inputs, backend="reference", **kwargs)
    eps = torch.finfo(torch.float32).eps
    allowed = 2 * winograd_growth() * ((slow - truth).abs().max() + eps * truth.abs().max())
    error = (fast - truth).abs().max()
    assert error <= allowed  # False for NaN too
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every torch.empty is full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def test_growth_of_the_interpolation_points_is_the_published_order() -> None:
    assert winograd_growth() == pytest.approx(7.125)


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
    shape: tuple[int, ...], norm: str | None, padding: str, layout: str
) -> None:
    if padding == "reflect" and min(shape[2:]) < 2:
        pytest.skip("reflection needs two pixels")
    x, *weights = make_inputs(shape)
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    x = x.contiguous(memory_format=memory_format)
    out = residual_block(x, *weights, norm=norm, padding=padding, backend="cpp")
    assert_accurate(out, (x, *weights), norm=norm, padding=padding)
    assert out.is_contiguous(memory_format=memory_format)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(2, 7, 7, 9), (1, 48, 33, 140), (1, 80, 13, 21)], ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_instruction_set_is_accurate(
    instruction_set: str, shape: tuple[int, ...], norm: str | None, layout: str
) -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs(shape)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    out = torch.full_like(x, float("nan"))
    NATIVE.residual_block(
        x.numpy(),
        NATIVE.PackedWeights(weight1.numpy(), instruction_set),
        bias1.numpy(),
        NATIVE.PackedWeights(weight2.numpy(), instruction_set),
        bias2.numpy(),
        out.numpy(),
        instance_norm=norm == "instance",
        reflect=True,
        threads=1,
    )
    inputs = (x, weight1, bias1, weight2, bias2)
    assert_accurate(out, inputs, norm=norm, padding="reflect")


@needs_native
def test_cpp_takes_no_biases() -> None:
    inputs = make_inputs((1, 32, 9, 9), bias=False)
    out = residual_block(*inputs, norm=None, padding="zero", backend="cpp")
    assert_accurate(out, inputs, norm=None, padding="zero")


@needs_native
@pytest.mark.usefixtures("poisoned")
def test_cpp_takes_non_contiguous_tensors() -> None:
    wide, *weights = make_inputs((1, 16, 20, 30))
    x = wide[:, :, ::2, 3:20].transpose(2, 3)
    weights[0] = weights[0].transpose(0, 1)
    out = residual_block(x, *weights, norm=None, backend="cpp")
    assert_accurate(out, (x, *weights), norm=None)


@pytest.mark.parametrize("backend", ops.available("residual_block"))
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.filterwarnings("error")
def test_an_empty_batch_stays_empty(backend: str, norm: str | None) -> None:
    x, *weights = make_inputs((1, 8, 5, 5))
    assert residual_block(x[:0], *weights, norm=norm, backend=backend).shape == (0, 8, 5, 5)


@needs_native
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("shape", [(1, 32, 40, 150), (3, 16, 9, 9)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], norm: str | None) -> None:
    inputs = make_inputs(shape)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(residual_block(*inputs, norm=norm, backend="cpp"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["instance", None])
def test_cpp_has_the_gradient_of_the_reference(norm: str | None, bias: bool) -> None:
    found = {}
    for backend in ("reference", "cpp"):
        inputs = [
            None if t is None else t.requires_grad_() for t in make_inputs((2, 8, 6, 7), bias=bias)
        ]
        out = residual_block(*inputs, norm=norm, backend=backend)
        wanted = [t for t in inputs if t is not None]
        found[backend] = torch.autograd.grad(out, wanted, torch.ones_like(out))
    for expected, got in zip(found["reference"], found["cpp"], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@needs_native
def test_cpp_leaves_out_the_gradients_nobody_wants() -> None:
    x, weight1, bias1, weight2, bias2 = make_inputs((1, 8, 6, 7))
    weight2.requires_grad_()
    residual_block(x, weight1, bias1, weight2, bias2, backend="cpp").sum().backward()
    assert weight2.grad is not None
    assert x.grad is None
    assert weight1.grad is None


# a bias before the normalisation has the gradient 0: what comes out is rounding, not comparable
@needs_native
@pytest.mark.parametrize(("norm", "bias"), [("instance", False), (None, False), (None, True)])
def test_cpp_passes_opcheck(norm: str | None, bias: bool) -> None:
    x, *weights = make_inputs((1, 8, 6, 7), bias=bias)
    tensors = [None if t is None else t.requires_grad_() for t in (x, *weights)]
    operator = torch.ops.oldrestore.residual_block.default
    torch.library.opcheck(operator, (*tensors, norm, "reflect"))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operator, (last, *weights, norm, "zero"))


@needs_native
def test_a_compiled_block_equals_the_eager_one() -> None:
    inputs = make_inputs((1, 16, 10, 11))
    compiled = torch.compile(residual_block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs, norm=None), residual_block(*inputs, norm=None))


@needs_native
@pytest.mark.parametrize("how", ["no_grad", "data", "inference_mode"])
def test_weights_changed_in_place_take_effect(how: str) -> None:
    x, *weights = make_inputs((1, 16, 9, 9))
    with torch.inference_mode(how == "inference_mode"):
        weights = [w.clone() for w in weights]
        residual_block(x, *weights, norm=None, backend="cpp")
        target = weights[0].data if how == "data" else weights[0]
        with torch.no_grad():
            target[3, 5, 1, 2] += 1.0
        out = residual_block(x, *weights, norm=None, backend="cpp")
        assert_accurate(out, (x, *weights), norm=None)


@needs_native
def test_packed_weights_are_kept_while_the_weights_live_and_no_longer() -> None:
    gc.collect()
    before = len(_packed_weights)
    inputs = make_inputs((1, 16, 9, 9))
    residual_block(*inputs, backend="cpp")
    packed = _packed_weights.of(inputs[1])
    residual_block(*inputs, backend="cpp")
    assert _packed_weights.of(inputs[1]) is packed
    assert len(_packed_weights) == before + 2
    del inputs
    gc.collect()
    assert len(_packed_weights) == before


@needs_native
def test_the_choice_is_cpp_for_inference_and_the_reference_for_gradients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inputs = make_inputs((1, 32, 9, 9))
    fast = residual_block(*inputs, backend="cpp")
    slow = residual_block(*inputs, backend="reference")
    assert not torch.equal(fast, slow)
    assert torch.equal(residual_block(*inputs), fast)
    inputs[1].requires_grad_()
    with caplog.at_level(logging.DEBUG, logger="oldrestore.ops"):
        assert torch.equal(residual_block(*inputs).detach(), slow)
    assert "residual_block: not cpp: gradients are needed" in caplog.text
    with torch.no_grad():
        assert torch.equal(residual_block(*inputs), fast)


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
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    bad = {
        "x": [x.astype(np.float64), x[..., ::2], x[0], x[:, :, :1]],
        "out": [read_only, np.empty((1, 8, 5, 6), np.float32), x.transpose(0, 1, 3, 2)],
        "bias1": [np.zeros(7, np.float32), np.zeros(8), np.zeros(16, np.float32)[::2]],
        "weight2": [NATIVE.PackedWeights(np.zeros((4, 4, 3, 3), np.float32))],
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
        NATIVE.PackedWeights(np.zeros((8, 8, 3, 3), np.float32), "mmx")
