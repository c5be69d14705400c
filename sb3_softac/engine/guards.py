"""What a compiled or captured gradient step, or a shortcut around modules, holds as constant although a user may change it.

The modules themselves are looked at, not a list of the options that they were built from: their attributes, children,
parameters and buffers by identity, their mode, their hooks, and which parameters want a gradient. Values that are changed in
place (weights, statistics, dropout rates) are read in every step and need no guard.
"""

import operator
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch as th
from torch import nn

from sb3_softac.engine import torch_internals

_requires_grad = operator.attrgetter("requires_grad")


class ModuleGuards:
    """Remembers the structure of modules. Looking again takes some microseconds: it is done before every ``train()``.

    :param roots: modules; all modules below them count too
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self.modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._types = list(map(type, self.modules))
        self._dicts: list[dict[str, Any]] = [vars(module) for module in self.modules]
        self._parts = [part for module in self.modules for part in (module._modules, module._parameters, module._buffers)]
        self._hooks = [hooks for module in self.modules for hooks in torch_internals.hook_dicts(module) or ()]
        self._attributes = list(self._current_attributes())
        self._contents = list(self._current_contents())
        self._parameters = [value for value in self._contents if isinstance(value, nn.Parameter)]
        self._trained = list(map(_requires_grad, self._parameters))
        self._n_hooks = sum(map(len, self._hooks))
        self._n_entries = self._count()

    def _current_attributes(self) -> Iterable[Any]:
        values: Any = dict.values
        return chain.from_iterable(map(values, self._dicts))

    def _current_contents(self) -> Iterable[Any]:
        values: Any = dict.values
        return chain.from_iterable(map(values, self._parts))

    def _count(self) -> int:
        return sum(map(len, self._dicts)) + sum(map(len, self._parts))

    def hold(self) -> bool:
        """Whether everything is as it was. Built of loops inside the interpreter, because it is asked so often."""
        return (
            self._count() == self._n_entries
            and list(map(type, self.modules)) == self._types
            and all(map(operator.is_, self._current_attributes(), self._attributes))
            and all(map(operator.is_, self._current_contents(), self._contents))
            and sum(map(len, self._hooks)) == self._n_hooks
            and list(map(_requires_grad, self._parameters)) == self._trained
            and not torch_internals.has_tensor_hooks(self._parameters)
        )


def why_not_compilable(module: nn.Module) -> str | None:
    """What ``module`` says against being compiled or captured, or None.

    A class says so with an attribute ``compilable``: True where the module computes the same in every step, by tensor
    operations alone. PyTorch's, SB3's and our own modules do; for all others the answer is no until they say yes.
    """
    says = getattr(module, "compilable", None)
    if says is None:
        says = type(module).__module__.partition(".")[0] in ("torch", "stable_baselines3", "sb3_softac")
    if says:
        return None
    return f"{type(module).__name__} does not say `compilable = True`"


def obstacle_in(modules: Iterable[nn.Module]) -> str | None:
    """What in the modules might do in every step what a graph would do only once, or None."""
    for module in modules:
        if torch_internals.has_hooks([module]):
            return f"a {type(module).__name__} has hooks"
        reason = why_not_compilable(module)
        if reason is not None:
            return reason
    return None


def tensor_hook_in(modules: Iterable[nn.Module]) -> str | None:
    """The hooks of parameters, which no graph would call; or None."""
    parameters: list[th.Tensor] = [parameter for module in modules for parameter in module.parameters(recurse=False)]
    return "a parameter has hooks" if torch_internals.has_tensor_hooks(parameters) else None
