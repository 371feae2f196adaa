"""conv_rows: the convolution of some rows is that of the whole map; cpp to the bit."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oldrestore.ops import BAND_ROWS, _dispatch, conv_norm_act, conv_rows

needs_native = pytest.mark.skipif(_dispatch.NATIVE is None, reason="oldrestore._C is not built")
SHAPES = [(1, 3, 20, 12, 9), (2, 16, 48, 24, 8), (1, 20, 3, 40, 3), (1, 160, 200, 20, 13)]


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels_in, channels_out, height, width = shape
    x = torch.randn(batch, channels_in, height, width, generator=generator)
    weight = torch.randn(channels_out, channels_in, 3, 3, generator=generator) / channels_in**0.5
    return x, weight, torch.randn(channels_out, generator=generator)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_native)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
@pytest.mark.usefixtures("poisoned")
def test_bands_are_the_map(
    backend: str, shape: tuple[int, ...], padding: str, slope: float | None
) -> None:
    x, weight, bias = make_inputs(shape)
    options = {"padding": padding, "slope": slope, "backend": backend}
    whole = conv_norm_act(x, weight, bias, norm=None, **options)
    mode = "constant" if padding == "zero" else padding
    extended = F.pad(x, (0, 0, 1, 1), mode=mode)
    for top in range(0, shape[3], 2 * BAND_ROWS):
        bottom = min(shape[3], top + 2 * BAND_ROWS)
        band = conv_rows(extended[:, :, top : bottom + 2], weight, bias, **options)
        if backend == "cpp":
            assert torch.equal(band, whole[:, :, top:bottom])
        else:
            torch.testing.assert_close(band, whole[:, :, top:bottom], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_native)])
def test_a_residual_is_added_after_the_activation(backend: str) -> None:
    x, weight, _ = make_inputs(SHAPES[1])
    residual = torch.randn(2, 48, 22, 8)
    plain = conv_rows(x, weight, None, slope=0.0, backend=backend)
    found = conv_rows(x, weight, None, slope=0.0, residual=residual, backend=backend)
    assert torch.equal(found, plain + residual)


@needs_native
def test_threads_change_no_bit() -> None:
    x, weight, bias = make_inputs(SHAPES[3])
    one = conv_rows(x, weight, bias, backend="cpp")
    torch.set_num_threads(3)
    assert torch.equal(conv_rows(x, weight, bias, backend="cpp"), one)


def test_what_makes_no_band_is_refused() -> None:
    x, weight, bias = make_inputs(SHAPES[0])
    with pytest.raises(ValueError, match="3 rows or more"):
        conv_rows(x[:, :, :2], weight, bias)
    with pytest.raises(ValueError, match="padding: expected"):
        conv_rows(x, weight, bias, padding="same")
    with pytest.raises(ValueError, match="x, weight: expected"):
        conv_rows(x[:, :2], weight, bias)


@needs_native
def test_gradients_take_the_reference() -> None:
    x, weight, bias = make_inputs(SHAPES[1])
    out = conv_rows(x.requires_grad_(), weight, bias)
    out.sum().backward()
    assert x.grad is not None
    with pytest.raises(ValueError, match="has no gradient"):
        conv_rows(x, weight, bias, backend="cpp")
