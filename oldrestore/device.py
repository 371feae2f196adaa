"""Where and how the networks run: device, precision, and CUDA graphs, one for each photo size."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from oldrestore.ops import static_control_flow

MOST_GRAPHS = 4  # kept at a time: each holds the memory of a whole pass
WARM_UP_RUNS = 3  # before capture, as CUDA libraries choose and allocate in their first calls


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that a name means; None or "auto": CUDA if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, of a name or a device it lacks
        raise ValueError(f"device: cannot use {device!r}: {error}") from error
    return torch.device(device)


def choose_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """None: float32; "auto": float16 on CUDA, where statistics stay in float32.

    Raises:
        ValueError: it is no precision that the networks can have.
    """
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype: expected float32, float16, bfloat16 or 'auto', got {dtype}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def memory_format(device: torch.device) -> torch.memory_format:
    """How maps lie in memory: on CUDA channels last, which its matrix units read directly."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class Graphs:
    """A function of tensors, replayed from CUDA graphs: one launch instead of hundreds.

    A size is captured when it is first met. The result is the graph's own memory: use it, or copy
    it, before the next call of the same size.

    Args:
        function: of CUDA tensors alone; while it is captured nothing may depend on their values.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._captured: OrderedDict[
            tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]
        ] = OrderedDict()

    def __call__(self, *operands: Tensor) -> Tensor:
        key = tuple(operand.shape for operand in operands)
        if key not in self._captured:
            self._captured[key] = self._capture(operands)
            if len(self._captured) > MOST_GRAPHS:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        graph, inputs, output = self._captured[key]
        for own, operand in zip(inputs, operands, strict=True):
            own.copy_(operand)
        graph.replay()
        return output

    def _capture(
        self, operands: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        inputs = tuple(operand.clone() for operand in operands)
        stream = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]  # torch's
        stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with static_control_flow():
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    self.function(*inputs)
            torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                output = self.function(*inputs)
        return graph, inputs, output
