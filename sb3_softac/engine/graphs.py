"""CUDA graphs: kernels that are recorded once and then launched together, on tensors whose memory stays the same."""

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch as th

#: kinds of devices whose work can be captured
CAPTURING = {"cuda"}
#: compiling and capturing change settings of the whole process: one thread at a time
BUILD_LOCK = threading.RLock()
#: where warm-ups and captures run; one for each device, since libraries keep a workspace for each
_SIDE_STREAMS: dict[int, Any] = {}

Inputs = TypeVar("Inputs", bound=NamedTuple)


def _index(device: th.device) -> int:
    """The number of a CUDA device; ``cuda`` without one is the current device."""
    return th.cuda.current_device() if device.index is None else device.index


def _side_stream(device: th.device) -> Any:
    index = _index(device)
    if index not in _SIDE_STREAMS:
        make_stream: Any = th.cuda.Stream  # torch ships it without annotations
        _SIDE_STREAMS[index] = make_stream(index)
    return _SIDE_STREAMS[index]


class CudaGraph:
    """A function without arguments as a CUDA graph. Capturing it computes nothing.

    :param function: reads and writes tensors whose memory stays the same, never waits for the device, and returns a tensor
    :param device: where it works
    """

    def __init__(self, function: Callable[[], th.Tensor], device: th.device) -> None:
        self.device = device
        self.graph = th.cuda.CUDAGraph()
        generator = th.cuda.default_generators[_index(device)]
        state = generator.clone_state()
        try:
            with BUILD_LOCK, th.cuda.device(device), warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*CUDA Graph is empty")  # nothing would ever be computed
                with th.cuda.graph(self.graph, stream=_side_stream(device)):
                    self.result = function()
        except BaseException:
            # A capture that fails leaves the generator waiting for its end: it could not be drawn from again.
            generator.graphsafe_set_state(state)
            raise

    def replay(self) -> th.Tensor:
        """Run the function; the next replay overwrites the result."""
        with th.cuda.device(self.device):
            self.graph.replay()
        return self.result


def warm_up(device: th.device, function: Callable[[], Any]) -> Any:
    """Run ``function`` on a side stream, where libraries allocate at first use what a capture must not allocate."""
    if device.type != "cuda":
        return function()
    side, main = _side_stream(device), th.cuda.current_stream(device)
    side.wait_stream(main)
    with th.cuda.device(device), th.cuda.stream(side):
        result = function()
    main.wait_stream(side)
    return result


class MemoryAddresses:
    """Addresses of tensors: a graph goes on with that memory, whatever the tensors become.

    :param tensors: what a graph reads or writes
    """

    def __init__(self, tensors: Iterable[th.Tensor]) -> None:
        self.tensors = list(tensors)
        self.pointers = [tensor.data_ptr() for tensor in self.tensors]

    def hold(self) -> bool:
        """Whether all tensors still have them."""
        return self.pointers == [tensor.data_ptr() for tensor in self.tensors]


class AsyncMetrics:
    """Numbers on their way from the device, read without waiting for anything that came after them.

    :param values: (n,)
    """

    def __init__(self, values: th.Tensor) -> None:
        self.values = values
        self.arrived: Any = None
        if values.device.type == "cuda":
            self.values = th.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            make_event: Any = th.cuda.Event  # torch ships it without annotations
            self.arrived = make_event()
            self.arrived.record(th.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """The numbers, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.values.tolist()
        return numbers


def clone_inputs(inputs: Inputs) -> Inputs:
    """The named tuple of tensors, dicts of tensors and Nones, in memory of its own."""
    make: Any = type(inputs)
    parts = [{name: part.clone() for name, part in value.items()} if isinstance(value, dict) else value for value in inputs]
    return make(*[part.clone() if isinstance(part, th.Tensor) else part for part in parts])  # type: ignore[no-any-return]


def overwrite_inputs(target: NamedTuple, source: NamedTuple) -> None:
    """Write ``source`` into the memory of ``target``, which has the same structure."""
    for part, value in zip(target, source, strict=True):
        if isinstance(part, dict):
            for name, tensor in part.items():
                tensor.copy_(value[name])
        elif part is not None:
            part.copy_(value)
