"""A CUDA graph without a GPU: it records the operations of PyTorch, with the memory that they use, and repeats them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_softac.engine import graphs

#: what reads from the device, or has an output whose size depends on what is there
WAITS = {th.ops.aten._local_scalar_dense.default, th.ops.aten.nonzero.default, th.ops.aten.masked_select.default}


def _tensors(value: Any) -> list[th.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, th.Tensor)]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch ships it without annotations
    """Writes down every operation; what it overwrites is kept, so that it can be undone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, list[th.Tensor]]] = []
        self.before: list[tuple[th.Tensor, th.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func} waits for the device")
        names = [argument.name for argument in func._schema.arguments]
        for argument, value in [*zip(func._schema.arguments, args, strict=False)]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(tensor, tensor.clone()) for tensor in _tensors(value)]
        for name, value in kwargs.items():
            info = func._schema.arguments[names.index(name)].alias_info
            if info is not None and info.is_write:
                self.before += [(tensor, tensor.clone()) for tensor in _tensors(value)]
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, _tensors(result)))
        return result


class GraphStandIn:
    """``graphs.CudaGraph`` on the CPU: a replay runs no Python of the function, and sees no tensor but the recorded ones."""

    captured = 0

    def __init__(self, function: Callable[[], th.Tensor], device: th.device) -> None:
        recorder, state = _Recorder(), th.get_rng_state()
        try:
            with recorder:
                self.result = function()
        finally:  # capturing computes nothing
            with th.no_grad():
                for tensor, value in reversed(recorder.before):
                    tensor.copy_(value)
            th.set_rng_state(state)
        self.operations = recorder.operations
        self.pointers = [[tensor.data_ptr() for tensor in _tensors((args, kwargs))] for _, args, kwargs, _ in self.operations]
        GraphStandIn.captured += 1

    @th.no_grad()
    def replay(self) -> th.Tensor:
        for (func, args, kwargs, outputs), pointers in zip(self.operations, self.pointers, strict=True):
            if [tensor.data_ptr() for tensor in _tensors((args, kwargs))] != pointers:
                raise AssertionError("the graph would use memory that its tensors have left")
            for output, value in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
                if output.data_ptr() != value.data_ptr():
                    output.copy_(value)
        return self.result


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that would be captured on a GPU be captured by the stand-in on the CPU."""
    monkeypatch.setattr(graphs, "CudaGraph", GraphStandIn)
    monkeypatch.setattr(graphs, "CAPTURING", {"cpu", "cuda"})
