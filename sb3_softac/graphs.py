"""CUDA graphs: kernels that are recorded once and then launched together, on tensors that stay where they are."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch as th

#: kinds of devices whose work can be captured
CAPTURING = {"cuda"}

Inputs = TypeVar("Inputs", bound=NamedTuple)


class CudaGraph:
    """A function without arguments as a CUDA graph. Capturing it computes nothing.

    :param function: reads and writes tensors that stay where they are, never waits for the device, and returns a tensor
    """

    def __init__(self, function: Callable[[], th.Tensor]) -> None:
        self.graph = th.cuda.CUDAGraph()
        with th.cuda.graph(self.graph):
            self.result = function()

    def replay(self) -> th.Tensor:
        """Run the function; the next replay overwrites the result."""
        self.graph.replay()
        return self.result


def warm_up(device: th.device, function: Callable[[], Any]) -> Any:
    """Run ``function`` on a side stream, where libraries allocate at first use what a capture must not allocate."""
    if device.type != "cuda":
        return function()
    side: Any = th.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch ships it without annotations
    main = th.cuda.current_stream(device)
    side.wait_stream(main)
    with th.cuda.stream(side):
        result = function()
    main.wait_stream(side)
    return result


def copied(inputs: Inputs) -> Inputs:
    """The named tuple of tensors, dicts of tensors and Nones, in memory of its own."""
    make: Any = type(inputs)
    parts = [{name: part.clone() for name, part in value.items()} if isinstance(value, dict) else value for value in inputs]
    return make(*[part.clone() if isinstance(part, th.Tensor) else part for part in parts])  # type: ignore[no-any-return]


def overwrite(target: NamedTuple, source: NamedTuple) -> None:
    """Write ``source`` into the memory of ``target``, which has the same structure."""
    for part, value in zip(target, source, strict=True):
        if isinstance(part, dict):
            for name, tensor in part.items():
                tensor.copy_(value[name])
        elif part is not None:
            part.copy_(value)
