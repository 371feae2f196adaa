"""The Triton passes between convolutions, against the definition of the residual block."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oldrestore.ops import _triton
from oldrestore.ops.residual_block import _reference, normalise

Accurate = Callable[[Tensor, Tensor, Tensor], None]

SHAPES = [(1, 1, 2, 2), (2, 7, 3, 2), (1, 5, 40, 13), (1, 130, 3, 7), (2, 3, 1, 1), (1, 2, 63, 20)]
HALVES = [torch.float16, torch.bfloat16]
ACTIVATIONS = [None, 0.0, 0.2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """float64."""
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def norm_act_pad(x: Tensor, is_normed: bool, slope: float | None, pad: int) -> Tensor:
    """What the kernel of that name means."""
    x = normalise(x, "instance" if is_normed else None)
    if slope is not None:
        x = F.leaky_relu(x, slope)
    return F.pad(x, (pad,) * 4, mode="reflect")


def differentiate(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The result, and the gradient of each input under a fixed one of the result."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = run(*leaves)
    grad = draw(*out.shape, seed=1).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_agrees(
    fast: Callable[..., Tensor],
    slow: Callable[..., Tensor],
    inputs: list[Tensor],
    accurate: Accurate,
) -> None:
    truth = differentiate(slow, [t.double() for t in inputs])
    results = differentiate(fast, inputs), differentiate(slow, inputs)
    for of_fast, of_slow, of_truth in zip(*results, truth, strict=True):
        accurate(of_fast, of_slow, of_truth)


@pytest.mark.parametrize(
    ("shape", "is_normed", "slope"),
    [(shape, True, 0.0) for shape in SHAPES]
    + [((2, 7, 3, 2), *how) for how in itertools.product((True, False), ACTIVATIONS)],
    ids=str,
)
def test_norm_activation_and_padding_are_one_pass(
    shape: tuple[int, ...],
    is_normed: bool,
    slope: float | None,
    device: torch.device,
    assert_as_accurate: Accurate,
) -> None:
    x = (draw(*shape) + 1).float().to(device)
    for pad in (0, 1) if min(shape[2:]) > 1 else (0,):
        assert_agrees(
            lambda x, pad=pad: _triton._norm_act_pad(x, None, is_normed, slope, pad)[0],
            lambda x, pad=pad: norm_act_pad(x, is_normed, slope, pad),
            [x],
            assert_as_accurate,
        )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in SHAPES] + [((2, 7, 3, 2), dtype) for dtype in HALVES],
    ids=str,
)
def test_norm_and_addition_are_one_pass(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, assert_as_accurate: Accurate
) -> None:
    assert_agrees(
        lambda y, x: _triton._norm_add(y, None, x)[0],
        lambda y, x: x + normalise(y, "instance"),
        [draw(*shape).to(device, dtype), draw(*shape, seed=2).to(device, dtype)],
        assert_as_accurate,
    )


@pytest.mark.parametrize(
    ("norm", "padding", "dtype"),
    [
        *itertools.product(("instance", None), ("reflect", "zero"), [torch.float32]),
        *itertools.product(["instance"], ["reflect"], HALVES),
    ],
    ids=str,
)
def test_the_residual_block_agrees_with_the_reference(
    dtype: torch.dtype,
    norm: str | None,
    padding: str,
    device: torch.device,
    assert_as_accurate: Accurate,
) -> None:
    weights = [draw(6, 6, 3, 3, seed=seed) / 7 for seed in (0, 1)]
    inputs = [draw(2, 6, 7, 5), weights[0], draw(6), weights[1], draw(6, seed=1)]
    assert_agrees(
        lambda *args: _triton.residual_block(*args, norm=norm, padding=padding),
        lambda *args: _reference(*args, norm=norm, padding=padding),
        [t.to(device, dtype) for t in inputs],
        assert_as_accurate,
    )


@pytest.mark.parametrize(
    ("norm", "padding", "slope"),
    [("instance", "reflect", 0.2), ("instance", "zero", None), (None, "reflect", 0.0)],
    ids=str,
)
def test_a_convolution_with_norm_and_activation_agrees_with_its_equation(
    norm: str | None,
    padding: str,
    slope: float | None,
    device: torch.device,
    assert_as_accurate: Accurate,
) -> None:
    mode = {"reflect": "reflect", "zero": "constant"}[padding]

    def slow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv2d(F.pad(x, (1,) * 4, mode=mode), weight, bias)
        return norm_act_pad(out, norm == "instance", slope, 0)

    assert_agrees(
        lambda *args: _triton.conv_norm_act(*args, norm=norm, padding=padding, slope=slope),
        slow,
        [t.float().to(device) for t in (draw(2, 3, 5, 6), draw(4, 3, 3, 3), draw(4))],
        assert_as_accurate,
    )


@pytest.mark.parametrize("slope", [0.2, None])
def test_norm_and_activation_alone_agree_with_their_equation(
    slope: float | None, device: torch.device, assert_as_accurate: Accurate
) -> None:
    assert_agrees(
        lambda x: _triton.instance_norm_act(x, slope=slope),
        lambda x: norm_act_pad(x, True, slope, 0),
        [(draw(2, 5, 7, 6) + 1).float().to(device)],
        assert_as_accurate,
    )


def test_a_mean_far_above_the_deviation_costs_no_accuracy(device: torch.device) -> None:
    x = (draw(2, 3, 40, 50) + 1e4).float().to(device)
    out, statistics = _triton._norm_act_pad(x, None, True, None, 0)
    variance, mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(statistics[0].double(), mean, rtol=2 * eps, atol=0)
    # the mean of a tile is rounded, which moves a value by at most this many deviations
    moved = eps * 1e4
    torch.testing.assert_close(statistics[1].double(), variance.rsqrt(), rtol=moved, atol=0)
    expected = normalise(x.double(), "instance")
    torch.testing.assert_close(out.double(), expected, rtol=4 * moved, atol=2 * moved)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_memory_order_is_kept(order: torch.memory_format, device: torch.device) -> None:
    x = draw(1, 4, 5, 6).float().to(device, memory_format=order)
    weight = draw(4, 4, 3, 3).float().to(device)
    out = _triton.residual_block(x, weight, None, weight, None, norm="instance", padding="zero")
    assert out.is_contiguous(memory_format=order)


def test_torch_accepts_the_registration(device: torch.device) -> None:
    x, y = (draw(2, 3, 4, 5, seed=seed).float().to(device).requires_grad_() for seed in (0, 1))
    bias = draw(3).float().to(device).requires_grad_()
    for arguments in ((x, bias, True, 0.0, 1), (x, None, False, None, 1)):
        torch.library.opcheck(_triton._norm_act_pad, arguments)
    torch.library.opcheck(_triton._norm_add, (x, bias, y))
    weight = draw(3, 3, 3, 3).float().to(device)

    def run(x: Tensor) -> Tensor:
        return _triton.residual_block(
            x, weight, bias, weight, None, norm="instance", padding="reflect"
        )

    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x))
