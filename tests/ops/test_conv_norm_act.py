"""conv_norm_act: the definition, and the native backend held against it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore import ops
from oldrestore.ops import _dispatch
from oldrestore.ops.conv_norm_act import OPERATION, conv_norm_act

NATIVE = _dispatch.NATIVE
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE is not None else []
Check = Callable[[Tensor, Tensor, Tensor], None]
needs_native = pytest.mark.skipif(NATIVE is None, reason="oldrestore._C is not built")

# batch, channels in and out, height, width
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 20, 7, 9),
    (1, 20, 3, 63, 2),
    (2, 16, 48, 8, 8),
    (1, 64, 33, 7, 100),
    (1, 160, 200, 9, 13),  # threads share its groups of tiles
]
KINDS = [("instance", 0.0), ("instance", None), ("instance", 0.2), (None, 0.2), (None, None)]


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels_in, channels_out, height, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    weight = draw(channels_out, channels_in, 3, 3) / (3 * channels_in**0.5)
    return draw(batch, channels_in, height, width), weight, draw(channels_out)


def gradients(
    inputs: tuple[Tensor | None, ...], grad: Tensor, **kwargs: object
) -> tuple[Tensor, ...]:
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = conv_norm_act(*inputs, **kwargs)
    return torch.autograd.grad(out, [t for t in inputs if t is not None], grad)


def doubled(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.double() for t in inputs)


@pytest.mark.parametrize(("norm", "slope"), KINDS)
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_reference_is_the_layer_built_from_torch_modules(
    norm: str | None, slope: float | None, padding: str
) -> None:
    x, weight, bias = make_inputs((2, 3, 5, 6, 9))
    mode = {"reflect": "reflect", "zero": "zeros"}[padding]
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode=mode)
    conv.load_state_dict({"weight": weight, "bias": bias})
    expected = nn.InstanceNorm2d(5)(conv(x)) if norm else conv(x)
    expected = expected if slope is None else nn.LeakyReLU(slope)(expected)
    kwargs = {"norm": norm, "padding": padding, "slope": slope}
    got = conv_norm_act(x, weight, bias, backend="reference", **kwargs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("norm", "slope"), KINDS)
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_cpp_is_the_reference_forward_and_backward(
    shape: tuple[int, ...],
    norm: str | None,
    slope: float | None,
    padding: str,
    layout: str,
    assert_accurate: Check,
) -> None:
    if padding == "reflect" and min(shape[3:]) < 2:
        pytest.skip("reflection needs two pixels")
    x, *weights = make_inputs(shape)
    memory_format = getattr(torch, f"{layout}_format" if layout == "contiguous" else layout)
    inputs = (x.contiguous(memory_format=memory_format), *weights)
    kwargs = {"norm": norm, "padding": padding, "slope": slope}
    out = conv_norm_act(*inputs, backend="cpp", **kwargs)
    slow = conv_norm_act(*inputs, backend="reference", **kwargs)
    truth = conv_norm_act(*doubled(inputs), backend="reference", **kwargs)
    assert_accurate(out, slow, truth)
    assert out.is_contiguous(memory_format=memory_format)
    if norm is not None and shape[3] * shape[4] == 1:
        return  # normalised over one pixel, gradients are all rounding
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = gradients(inputs, grad, backend="cpp", **kwargs)
    slow_grads = gradients(inputs, grad, backend="reference", **kwargs)
    truth_grads = gradients(doubled(inputs), grad.double(), backend="reference", **kwargs)
    for results in zip(found, slow_grads, truth_grads, strict=True):
        assert_accurate(*results)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("shape", [(2, 7, 20, 7, 9), (1, 48, 80, 13, 21)], ids=str)
def test_every_instruction_set_is_accurate(
    instruction_set: str, norm: str | None, shape: tuple[int, ...], assert_accurate: Check
) -> None:
    x, weight, bias = make_inputs(shape)
    batch, _, channels_out, height, width = shape
    padded = -(-channels_out // 16) * 16

    def poison(*size: int) -> Tensor:
        return torch.full(size, float("nan"))

    out = poison(batch, channels_out, height, width)
    raw, statistics = poison(batch, height, width, padded), poison(2, batch, padded)
    kept = (raw.numpy(), statistics.numpy()) if norm else (None, None)
    kind = {"instance_norm": norm is not None, "reflect": True, "slope": 0.2, "threads": 1}
    packed = NATIVE.PackedWeights(weight.numpy(), False, instruction_set)
    NATIVE.conv_norm_act(x.numpy(), packed, bias.numpy(), out.numpy(), *kept, **kind)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = poison(*x.shape), poison(*weight.shape), poison(*bias.shape)
    packed = NATIVE.PackedWeights(weight.numpy(), True, instruction_set)
    arrays = [t.numpy() for t in found]
    NATIVE.conv_norm_act_gradient(
        x.numpy(), packed, out.numpy(), *kept, grad.numpy(), *arrays, **kind
    )

    inputs, kwargs = (x, weight, bias), {"norm": norm, "slope": 0.2, "backend": "reference"}
    assert_accurate(
        out, conv_norm_act(*inputs, **kwargs), conv_norm_act(*doubled(inputs), **kwargs)
    )
    slow = gradients(inputs, grad, **kwargs)
    truth = gradients(doubled(inputs), grad.double(), **kwargs)
    for results in zip(found, slow, truth, strict=True):
        assert_accurate(*results)


@needs_native
@pytest.mark.parametrize("shape", [(1, 16, 32, 40, 150), (1, 160, 200, 9, 13)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape)
    grad = torch.ones(shape[0], *shape[2:])
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = conv_norm_act(*inputs, slope=0.0, backend="cpp")
        results.append([out, *gradients(inputs, grad, slope=0.0, backend="cpp")])
    assert all(map(torch.equal, *results))


@needs_native
def test_cpp_takes_tensors_of_any_layout_and_no_bias(assert_accurate: Check) -> None:
    wide, weight, _ = make_inputs((2, 12, 12, 20, 30))
    inputs = (wide[:, :, ::2, 3:20].transpose(2, 3), weight.transpose(0, 1), None)
    grad = torch.randn(2, 12, 10, 17, generator=torch.Generator().manual_seed(1)).transpose(2, 3)
    kwargs = {"norm": None, "slope": 0.0}
    truth = gradients(doubled(inputs), grad.double(), backend="reference", **kwargs)
    slow = gradients(inputs, grad, backend="reference", **kwargs)
    fast = gradients(inputs, grad, backend="cpp", **kwargs)
    for results in zip(fast, slow, truth, strict=True):
        assert_accurate(*results)


@needs_native
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_cpp_gives_one_gradient_alone(wanted: int) -> None:
    inputs = list(make_inputs((1, 8, 12, 6, 7)))
    whole = gradients(tuple(inputs), torch.ones(1, 12, 6, 7), norm=None, backend="cpp")
    inputs[wanted].requires_grad_()
    conv_norm_act(*inputs, norm=None, backend="cpp").sum().backward()
    assert torch.equal(inputs[wanted].grad, whole[wanted])
    assert all(t.grad is None for i, t in enumerate(inputs) if i != wanted)


@pytest.mark.parametrize("backend", ops.available("conv_norm_act"))
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.filterwarnings("error")
def test_an_empty_batch_stays_empty(backend: str, norm: str | None) -> None:
    x, weight, bias = make_inputs((1, 8, 12, 5, 5))
    out = conv_norm_act(x[:0], weight, bias, norm=norm, slope=0.0, backend=backend)
    assert out.shape == (0, 12, 5, 5)
    found = gradients((x[:0], weight, bias), out, norm=norm, backend=backend)
    assert all(bool((g == 0).all()) for g in found)


@needs_native
@pytest.mark.parametrize("norm", ["instance", None])
def test_cpp_passes_opcheck(norm: str | None) -> None:
    inputs = make_inputs((1, 8, 12, 6, 7))
    operator = torch.ops.oldrestore.conv_norm_act.default
    torch.library.opcheck(operator, (*inputs, norm, "zero", None, False))
    leaves = [t.requires_grad_() for t in inputs]
    torch.library.opcheck(operator, (*leaves, norm, "reflect", 0.2, True))


@needs_native
def test_a_compiled_layer_equals_the_eager_one() -> None:
    inputs = make_inputs((1, 8, 12, 6, 7))
    compiled = torch.compile(conv_norm_act, backend="aot_eager", fullgraph=True)
    grads = []
    for run in (compiled, conv_norm_act):
        leaves = [t.detach().requires_grad_() for t in inputs]
        run(*leaves, slope=0.0, backend="cpp").square().sum().backward()
        grads.append([t.grad for t in leaves])
    assert all(map(torch.equal, *grads))


@needs_native
def test_the_choice_is_cpp_where_it_is_faster() -> None:
    def chosen(channels_in: int, channels_out: int, side: int, norm: str | None) -> str:
        inputs = make_inputs((1, channels_in, channels_out, side, side))
        return OPERATION.choose(None, inputs[0].device, *inputs, norm=norm).name

    assert chosen(64, 3, 64, None) == "cpp"
    assert chosen(3, 64, 64, None) == "reference"
    assert chosen(3, 64, 64, "instance") == "cpp"
    assert chosen(16, 16, 16, "instance") == "reference"


@needs_native
def test_cpp_refuses_other_dtypes() -> None:
    inputs = doubled(make_inputs((1, 8, 12, 5, 5)))
    with pytest.raises(ValueError, match=r"cannot use 'cpp': takes float32, not torch\.float64"):
        conv_norm_act(*inputs, backend="cpp")
    assert conv_norm_act(*inputs).dtype == torch.float64


BAD = {
    "norm": {"norm": "batch"},
    "padding": {"padding": "same"},
    "slope": {"slope": -0.1},
    "x": {"x": torch.zeros(8, 5, 5)},
    "x: expected C >= 1, H and W >= 2": {"x": torch.zeros(1, 8, 1, 5)},
    r"weight: expected \(C, 8, 3, 3\)": {"weight": torch.zeros(12, 7, 3, 3)},
    "weight: expected torch.float32": {"weight": torch.zeros(12, 8, 3, 3, dtype=torch.float64)},
    "bias": {"bias": torch.zeros(8)},
    "backend": {"backend": "fastest"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name: str) -> None:
    names = ("x", "weight", "bias")
    arguments = dict(zip(names, make_inputs((1, 8, 12, 5, 5)), strict=True)) | BAD[name]
    with pytest.raises(ValueError, match=f"^{name}"):
        conv_norm_act(**arguments)


@needs_native
def test_the_extension_names_the_array_it_refuses() -> None:
    x, out = np.zeros((1, 8, 5, 5), np.float32), np.zeros((1, 12, 5, 5), np.float32)
    weight = np.zeros((12, 8, 3, 3), np.float32)
    kind = {"instance_norm": True, "reflect": True, "slope": 0.0, "threads": 1}
    forward = {"x": x, "weight": NATIVE.PackedWeights(weight), "bias": None, "out": out} | kind
    NATIVE.conv_norm_act(**forward)
    for name, value in (("out", x), ("bias", out), ("x", x[:, :4]), ("threads", 0)):
        with pytest.raises(ValueError, match=f"^{'weight' if name == 'x' else name}: "):
            NATIVE.conv_norm_act(**forward | {name: value})
    raw, norm = np.zeros((1, 5, 5, 16), np.float32), np.zeros((2, 1, 16), np.float32)
    packed = NATIVE.PackedWeights(weight, is_rotated=True)
    backward = {"x": x, "weight": packed, "out": out, "raw": raw, "norm": norm, "grad_out": out}
    backward |= {"grad_x": None, "grad_weight": None, "grad_bias": None} | kind
    NATIVE.conv_norm_act_gradient(**backward)
    for name, value in (("grad_x", out), ("grad_weight", x), ("grad_out", x), ("raw", None)):
        with pytest.raises(ValueError, match=f"^{name}"):
            NATIVE.conv_norm_act_gradient(**backward | {name: value})
