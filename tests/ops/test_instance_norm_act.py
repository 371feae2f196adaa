"""instance_norm_act: the definition, and the native backend held against it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oldrestore import ops
from oldrestore.ops import _dispatch
from oldrestore.ops.instance_norm_act import instance_norm_act

NATIVE = _dispatch.NATIVE
INSTRUCTION_SETS = NATIVE.instruction_sets() if NATIVE is not None else []
Check = Callable[[Tensor, Tensor, Tensor], None]
needs_native = pytest.mark.skipif(NATIVE is None, reason="oldrestore._C is not built")

# one pixel; fewer than a vector; a vector and a rest; more than a run, with a rest
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 2), (2, 3, 7, 9), (1, 5, 16, 16), (1, 2, 63, 100), (3, 2, 8, 8)]
SLOPES = [None, 0.0, 0.2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def gradient(x: Tensor, grad: Tensor, **kwargs: object) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(instance_norm_act(leaf, **kwargs), leaf, grad)[0]


@pytest.mark.parametrize("slope", SLOPES)
def test_reference_is_the_layers_built_from_torch_modules(slope: float | None) -> None:
    x = draw(2, 3, 6, 9)
    expected = nn.InstanceNorm2d(3)(x)
    expected = expected if slope is None else nn.LeakyReLU(slope)(expected)
    got = instance_norm_act(x, slope=slope, backend="reference")
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
def test_cpp_is_the_reference_forward_and_backward(
    shape: tuple[int, ...], slope: float | None, assert_accurate: Check
) -> None:
    x, kwargs = draw(*shape), {"slope": slope}
    found = instance_norm_act(x, backend="cpp", **kwargs)
    slow = instance_norm_act(x, backend="reference", **kwargs)
    assert_accurate(found, slow, instance_norm_act(x.double(), backend="reference", **kwargs))
    if shape[2] * shape[3] <= 2:
        return  # normalised over a pixel or two, gradients are all rounding
    grad = draw(*shape, seed=1)
    assert_accurate(
        gradient(x, grad, backend="cpp", **kwargs),
        gradient(x, grad, backend="reference", **kwargs),
        gradient(x.double(), grad.double(), backend="reference", **kwargs),
    )


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set_is_accurate(instruction_set: str, assert_accurate: Check) -> None:
    x, grad = draw(2, 3, 61, 67), draw(2, 3, 61, 67, seed=1)
    rows = x.reshape(6, -1)
    out, found = (torch.full_like(rows, float("nan")) for _ in range(2))
    norm = torch.full((2, 6), float("nan"))
    kind = {"slope": 0.2, "threads": 1, "instruction_set": instruction_set}
    NATIVE.instance_norm_act(rows.numpy(), out.numpy(), norm.numpy(), **kind)
    NATIVE.instance_norm_act_gradient(
        rows.numpy(), norm.numpy(), grad.reshape(6, -1).numpy(), found.numpy(), **kind
    )
    kwargs = {"slope": 0.2, "backend": "reference"}
    truth = instance_norm_act(x.double(), **kwargs)
    assert_accurate(out.view_as(x), instance_norm_act(x, **kwargs), truth)
    assert_accurate(
        found.view_as(x), gradient(x, grad, **kwargs), gradient(x.double(), grad.double(), **kwargs)
    )


@needs_native
def test_a_mean_far_above_the_deviation_costs_no_accuracy() -> None:
    x = torch.randn(1, 2, 100, 90, generator=torch.Generator().manual_seed(0)) + 3000
    found = instance_norm_act(x, backend="cpp").double()
    truth = instance_norm_act(x.double(), backend="reference")
    # the mean is known to eps * 3000 at best, and the deviation is 1
    assert (found - truth).abs().max() < 2 * torch.finfo(torch.float32).eps * 3000


@needs_native
def test_the_number_of_threads_changes_no_bit() -> None:
    x, grad = draw(2, 5, 60, 70), draw(2, 5, 60, 70, seed=1)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(
            [
                instance_norm_act(x, slope=0.2, backend="cpp"),
                gradient(x, grad, slope=0.2, backend="cpp"),
            ]
        )
    assert all(map(torch.equal, *results))


@needs_native
def test_cpp_leaves_other_layouts_and_precisions_to_the_reference() -> None:
    x = draw(1, 4, 6, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(instance_norm_act(last, slope=0.0), instance_norm_act(x, slope=0.0))
    with pytest.raises(ValueError, match="takes contiguous maps"):
        instance_norm_act(last, backend="cpp")
    with pytest.raises(ValueError, match=r"takes float32, not torch\.float64"):
        instance_norm_act(x.double(), backend="cpp")


@needs_native
def test_cpp_takes_a_gradient_of_any_layout(assert_accurate: Check) -> None:
    x = draw(2, 3, 8, 9)
    grad = draw(2, 3, 9, 8, seed=1).transpose(2, 3)
    kwargs = {"slope": 0.1}
    assert_accurate(
        gradient(x, grad, backend="cpp", **kwargs),
        gradient(x, grad, backend="reference", **kwargs),
        gradient(x.double(), grad.double(), backend="reference", **kwargs),
    )


@pytest.mark.parametrize("backend", ops.available("instance_norm_act"))
@pytest.mark.filterwarnings("error")
def test_an_empty_batch_stays_empty(backend: str) -> None:
    x = draw(1, 3, 5, 5)[:0]
    assert instance_norm_act(x, slope=0.0, backend=backend).shape == (0, 3, 5, 5)
    assert gradient(x, x, backend=backend).shape == (0, 3, 5, 5)


@needs_native
def test_cpp_passes_opcheck_and_gradients_are_those_of_differences() -> None:
    operator = torch.ops.oldrestore.instance_norm_act.default
    torch.library.opcheck(operator, (draw(1, 3, 6, 7), 0.2))
    torch.library.opcheck(operator, (draw(1, 3, 6, 7).requires_grad_(), 0.2))
    leaf = draw(1, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: instance_norm_act(x, slope=0.2, backend="reference"), leaf
    )


@pytest.mark.parametrize("backend", ops.available("instance_norm_act"))
@pytest.mark.parametrize(
    ("x", "slope", "said"),
    [
        (torch.zeros(3, 4, 4), 0.0, r"x: expected floating \(B, C, H, W\).*\(3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), 0.0, r"x: .*\(1, 3, 0, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), 0.0, "x: .*int32"),
        (torch.zeros(1, 3, 4, 4), -0.1, "slope: expected at least 0 or None, got -0.1"),
        (torch.zeros(1, 3, 4, 4), float("nan"), "slope: .*nan"),
    ],
)
def test_bad_input_is_refused_by_name(x: Tensor, slope: float, said: str, backend: str) -> None:
    with pytest.raises(ValueError, match=said):
        instance_norm_act(x, slope=slope, backend=backend)
