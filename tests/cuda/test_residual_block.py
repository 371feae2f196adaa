"""The CUDA residual block's passes, run by the shim or a card, held against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oldrestore.ops import _cuda_residual_block as cuda
from oldrestore.ops.residual_block import INSTANCE_NORM_EPS, residual_block

# one pixel; two, three and four rows or columns; one chunk of pixels and several; several lanes
SHAPES = [(1, 1, 1, 1), (2, 3, 2, 2), (1, 7, 3, 63), (1, 33, 4, 2), (2, 40, 17, 19), (1, 3, 1, 7)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SLOPES = [None, 0.0, 0.2]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size)))


def make_inputs(shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    channels = shape[1]
    weights = [draw(channels, channels, 3, 3, seed=i) / (3 * channels**0.5) for i in range(2)]
    x, bias1, bias2 = draw(*shape), draw(channels), draw(channels, seed=1)
    return [t.to(device) for t in (x, weights[0], bias1, weights[1], bias2)]


def reference_pass(y: Tensor, norm: str | None, slope: float | None, pad: int) -> Tensor:
    if norm is not None:
        variance, mean = torch.var_mean(y, dim=(2, 3), correction=0, keepdim=True)
        y = (y - mean) * torch.rsqrt(variance + INSTANCE_NORM_EPS)
    if slope is not None:
        y = torch.nn.functional.leaky_relu(y, slope)
    return torch.nn.functional.pad(y, (pad,) * 4, mode="reflect") if pad else y


def assert_as_accurate(fast: Tensor, slow: Tensor, truth: Tensor) -> None:
    """``fast`` errs at most twice as much as the reference does in the same dtype."""
    allowed = 2 * ((slow - truth).abs().max() + torch.finfo(slow.dtype).eps * truth.abs().max())
    assert (fast - truth).abs().max() <= allowed  # False for NaN too
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = draw(*out.shape, seed=9).to(out)
    return torch.autograd.grad((out * weights).sum(), leaves)


def skip_impossible(shape: tuple[int, ...], pad: int) -> None:
    if pad and min(shape[2:]) < 2:
        pytest.skip("reflection needs two pixels")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("pad", [0, 1])
def test_a_pass_is_as_accurate_as_the_reference(
    shape: tuple[int, ...], norm: str | None, slope: float | None, pad: int, device: torch.device
) -> None:
    skip_impossible(shape, pad)
    y = draw(*shape).to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    double = y.detach().double().requires_grad_()
    fast = cuda.norm_act_pad(y, None, norm, slope=slope, pad=pad)
    slow, truth = (reference_pass(t, norm, slope, pad) for t in (y, double))
    assert_as_accurate(fast, slow, truth)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    grads = [gradients(out, [leaf])[0] for out, leaf in ((fast, y), (slow, y), (truth, double))]
    assert_as_accurate(*grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (1, 40, 17, 19)], ids=str)
def test_the_block_is_as_accurate_as_the_reference(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    norm: str | None,
    padding: str,
    layout: torch.memory_format,
    device: torch.device,
) -> None:
    inputs = [t.to(dtype) for t in make_inputs(shape, device)]
    inputs[0] = inputs[0].contiguous(memory_format=layout)
    fast = cuda.residual_block(*inputs, norm=norm, padding=padding)
    slow = residual_block(*inputs, norm=norm, padding=padding, backend="reference")
    doubles = [t.double() for t in inputs]
    truth = residual_block(*doubles, norm=norm, padding=padding, backend="reference")
    assert_as_accurate(fast, slow, truth)
    assert fast.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_the_block_has_the_gradient_of_the_reference(
    norm: str | None, padding: str, device: torch.device
) -> None:
    found = []
    for dtype in (torch.float32, torch.float32, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in make_inputs((2, 6, 5, 7), device)]
        if found:
            out = residual_block(*leaves, norm=norm, padding=padding, backend="reference")
        else:
            out = cuda.residual_block(*leaves, norm=norm, padding=padding)
        found.append(gradients(out, leaves))
    names = ("x", "weight1", "bias1", "weight2", "bias2")
    for name, fast, slow, truth in zip(names, *found, strict=True):
        if norm is not None and name.startswith("bias"):
            assert not bool(fast.any()), "a bias before a norm has no influence"
        else:
            assert_as_accurate(fast, slow, truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", ["instance", None])
def test_a_pass_has_the_gradient_of_the_reference_in_half_precision(
    dtype: torch.dtype, norm: str | None, device: torch.device
) -> None:
    y = draw(2, 40, 7, 19).to(device, dtype).requires_grad_()
    double = y.detach().double().requires_grad_()
    fast = cuda.norm_act_pad(y, None, norm, slope=0.2, pad=1)
    slow, truth = (reference_pass(t, norm, 0.2, 1) for t in (y, double))
    grads = [gradients(out, [leaf])[0] for out, leaf in ((fast, y), (slow, y), (truth, double))]
    assert_as_accurate(*grads)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, *, norm: str | None, padding: str, slope: float | None
) -> Tensor:
    """A convolution, then norm and activation, in plain torch."""
    if padding == "reflect":
        x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    y = torch.nn.functional.conv2d(x, weight, bias, padding=int(padding == "zero"))
    return reference_pass(y, norm, slope, 0)


@pytest.mark.parametrize("norm", ["instance", None])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("slope", SLOPES)
def test_one_convolution_is_as_accurate_as_plain_torch_forward_and_backward(
    norm: str | None, padding: str, slope: float | None, device: torch.device
) -> None:
    inputs = [draw(2, 5, 6, 7), draw(9, 5, 3, 3) / 7, draw(9)]
    arguments = {"norm": norm, "padding": padding, "slope": slope}
    outs, grads = [], []
    for run, dtype in (
        (cuda.conv_norm_act, torch.float32),
        (convolve, torch.float32),
        (convolve, torch.float64),
    ):
        leaves = [t.to(device, dtype).requires_grad_() for t in inputs]
        outs.append(run(*leaves, **arguments))
        # of the bias before a norm, only rounding is left of plain torch's gradient
        grads.append(gradients(outs[-1], leaves)[: 2 if norm else 3])
    assert_as_accurate(*outs)
    assert outs[0].is_contiguous()
    for found in zip(*grads, strict=True):
        assert_as_accurate(*found)


@pytest.mark.parametrize("slope", SLOPES)
def test_norm_and_activation_alone_are_as_accurate_as_plain_torch(
    slope: float | None, device: torch.device
) -> None:
    x, outs = draw(2, 5, 6, 7), []
    for run, dtype in (
        (cuda.instance_norm_act, torch.float32),
        (lambda x, slope: reference_pass(x, "instance", slope, 0), torch.float32),
        (lambda x, slope: reference_pass(x, "instance", slope, 0), torch.float64),
    ):
        outs.append(run(x.to(device, dtype), slope=slope))
    assert_as_accurate(*outs)
    assert outs[0].is_contiguous()


def test_statistics_hold_where_the_mean_is_far_above_the_deviation(device: torch.device) -> None:
    y = (draw(1, 3, 40, 41) + 3000).contiguous(memory_format=torch.channels_last).to(device)
    fast = cuda.norm_act_pad(y, None, "instance", slope=None, pad=0)
    truth = reference_pass(y.double(), "instance", None, 0)
    # the mean is known to eps * 3000 at best, and the deviation is 1
    assert (fast - truth).abs().max() < 2 * torch.finfo(torch.float32).eps * 3000


def test_half_precision_keeps_every_number_and_rounds_to_nearest_even(
    device: torch.device,
) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
        y = bits.view(dtype).reshape(1, 1, 256, 256).to(device)
        same = cuda.norm_act_pad(y, None, None, slope=None, pad=0)
        assert torch.equal(same.nan_to_num(7.0), y.nan_to_num(7.0))
        assert torch.equal(same.isnan(), y.isnan())
        # a deviation of 1e-3 in the place of the norm's makes numbers between those of the dtype
        scaled = cuda.norm_act_pad(y.nan_to_num(0.0, 0.0, 0.0), None, None, slope=1e-3, pad=0)
        expected = torch.where(y < 0, y.float() * 1e-3, y.float()).nan_to_num(0.0, 0.0, 0.0)
        assert torch.equal(scaled, expected.to(dtype))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_maps_of_more_than_2_31_elements_are_indexed(device: torch.device) -> None:
    y = torch.zeros(1, 33, 8200, 8200, dtype=torch.float16, device=device)
    y = y.contiguous(memory_format=torch.channels_last)
    assert y.numel() > 2**31
    y[..., -3:, -3:] = draw(1, 33, 3, 3).to(y)
    out = cuda.norm_act_pad(y, None, None, slope=0.0, pad=1)
    expected = torch.nn.functional.pad(y[..., -3:, -3:].relu(), (0, 1, 0, 1), mode="reflect")
    assert torch.equal(out[..., -4:, -4:], expected)


@pytest.mark.parametrize("norm", ["instance", None])
def test_an_empty_batch_stays_empty(norm: str | None, device: torch.device) -> None:
    x, *weights = make_inputs((1, 4, 5, 5), device)
    x = x[:0].requires_grad_()
    out = cuda.residual_block(x, *weights, norm=norm, padding="reflect")
    assert out.shape == (0, 4, 5, 5)
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_non_contiguous_tensors_are_taken(device: torch.device) -> None:
    wide, *weights = make_inputs((1, 6, 20, 30), device)
    x = wide[:, :, ::2, 3:20].transpose(2, 3)
    weights[0] = weights[0].transpose(0, 1)
    out = cuda.residual_block(x, *weights, norm="instance", padding="reflect")
    dense = [t.contiguous() for t in (x, *weights)]
    expected = cuda.residual_block(*dense, norm="instance", padding="reflect")
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous()


@pytest.mark.parametrize("device", ["shim"], indirect=True)
def test_the_order_of_threads_and_blocks_changes_no_bit(
    device: torch.device, set_schedule: Callable[[int], None]
) -> None:
    def run() -> tuple[Tensor, Tensor]:
        y = draw(2, 40, 17, 19).contiguous(memory_format=torch.channels_last).requires_grad_()
        out = cuda.norm_act_pad(y, None, "instance", slope=0.2, pad=1)
        return out, gradients(out, [y])[0]

    first = run()
    for schedule in (1, 2, 3):
        set_schedule(schedule)
        for got, expected in zip(run(), first, strict=True):
            assert torch.equal(got, expected)


def test_it_passes_opcheck(device: torch.device) -> None:
    y = draw(1, 3, 4, 5).to(device).contiguous(memory_format=torch.channels_last).requires_grad_()
    x, bias = torch.ones_like(y), draw(3).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.oldrestore.cuda_norm_act_pad, (y, bias, 1e-5, 0.2, 1))
    torch.library.opcheck(torch.ops.oldrestore.cuda_norm_act_pad, (y, None, None, None, 1))
    torch.library.opcheck(torch.ops.oldrestore.cuda_norm_add, (y, bias, x, 1e-5))


def test_a_compiled_block_equals_the_eager_one(device: torch.device) -> None:
    inputs = make_inputs((1, 4, 6, 7), device)
    arguments = {"norm": "instance", "padding": "reflect"}
    compiled = torch.compile(cuda.residual_block, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs, **arguments), cuda.residual_block(*inputs, **arguments))
