"""The last line of every loss: gradients move parameters, by PyTorch's optimizers or by what these compute.

An optimizer's ``step()`` can neither be compiled as part of a larger graph nor be captured with a rate that changes.
:class:`TensorOptimizers` does the same on the same state, so that a model may change between both at any step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch as th
from torch.optim.adam import adam

Mode = Literal["eager", "compiled", "captured"]
#: moves the parameters of an optimizer along their gradients; None for a parameter that the loss did not reach
Descend = Callable[[th.optim.Optimizer, Sequence[th.Tensor | None]], None]


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """All parameters of ``optimizer``, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def step(optimizer: th.optim.Optimizer, gradients: Sequence[th.Tensor | None]) -> None:
    """Let ``optimizer`` do its step with these gradients, one for each of its parameters."""
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def clip(gradients: Sequence[th.Tensor | None], max_norm: float | None) -> tuple[th.Tensor, Sequence[th.Tensor | None]]:
    """Euclidean norm of all gradients together, (), and the gradients shortened to ``max_norm`` where they are longer."""
    present = [gradient for gradient in gradients if gradient is not None]
    norm = th.nn.utils.get_total_norm(present, foreach=not th.compiler.is_compiling())
    if max_norm is not None:
        shortened = iter(th._foreach_mul(present, (max_norm / (norm + 1e-6)).clamp(max=1.0)))
        gradients = [None if gradient is None else next(shortened) for gradient in gradients]
    return norm, gradients


class _Group:
    """One parameter group as tensors: parameters, moments, counts, and the rate."""

    def __init__(self, optimizer: th.optim.Optimizer, group: dict[str, Any], mode: Mode) -> None:
        self.group = group
        self.settings = _settings(group)
        self.is_adam = isinstance(optimizer, th.optim.Adam)
        self.mode = mode
        self.parameters: list[th.Tensor] = list(group["params"])
        # A parameter that no loss reaches has no state.
        states = [optimizer.state[parameter] for parameter in self.parameters if parameter in optimizer.state]
        self.moments, self.squares, self.counts = (
            [state[name] for state in states if name in state] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        self.rate = float(group["lr"])
        #: the rate as a tensor, for steps that outlive it as a number
        self.lr = th.tensor(self.rate, device=self.parameters[0].device)

    def refresh(self) -> None:
        """Take over the optimizer's present rate."""
        rate = float(self.group["lr"])
        if rate != self.rate:
            self.rate = rate
            self.lr.fill_(rate)

    def descend(self, gradients: Sequence[th.Tensor | None]) -> None:
        reached = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        parameters, present = [p for p, _ in reached], [g for _, g in reached]
        if not self.is_adam:
            for parameter, gradient in reached:
                if self.mode == "eager":
                    parameter.add_(gradient, alpha=-self.rate)
                else:
                    parameter.addcmul_(gradient, self.lr, value=-1.0)
            return
        adam(
            parameters,
            present,
            self.moments,
            self.squares,
            [],
            self.counts,
            foreach=self.mode == "compiled",  # a compiler fuses the many kernels
            fused=self.mode != "compiled",
            capturable=self.mode != "eager",  # the counts stay tensors
            differentiable=False,
            has_complex=False,
            lr=self.rate if self.mode == "eager" else self.lr,
            **self.settings,
        )


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group that its steps have besides the rate, by the names of ``adam``."""
    names = ("amsgrad", "weight_decay", "eps", "maximize", "decoupled_weight_decay")
    settings = {name: group[name] for name in names if name in group}
    if "betas" in group:
        settings["beta1"], settings["beta2"] = group["betas"]
    return settings


class TensorOptimizers:
    """Steps of several optimizers as operations on tensors alone.

    :param optimizers: optimizers that :meth:`can_replace`, each of which has done a step
    :param mode: how the steps run
    """

    def __init__(self, optimizers: Iterable[th.optim.Optimizer], mode: Mode) -> None:
        self.optimizers = list(optimizers)
        self.states = [optimizer.state for optimizer in self.optimizers]
        self.groups = [[_Group(optimizer, group, mode) for group in optimizer.param_groups] for optimizer in self.optimizers]

    @staticmethod
    def can_replace(optimizer: th.optim.Optimizer) -> bool:
        """Whether it is Adam, AdamW or plain gradient descent, and nobody follows its steps."""
        plain = type(optimizer) is th.optim.SGD and not any(
            group["momentum"] or group["weight_decay"] or group["maximize"] for group in optimizer.param_groups
        )
        adam_ = type(optimizer) in (th.optim.Adam, th.optim.AdamW) and not any(
            group["amsgrad"] or group["differentiable"] for group in optimizer.param_groups
        )
        return (plain or adam_) and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)

    def current(self) -> bool:
        """Take over the present rates; whether nothing else has changed: no state was loaded, no other setting was written."""
        for optimizer, state, groups in zip(self.optimizers, self.states, self.groups, strict=True):
            if optimizer.state is not state or len(optimizer.param_groups) != len(groups):
                return False
            for group, present in zip(groups, optimizer.param_groups, strict=True):
                if group.group is not present or group.settings != _settings(present):
                    return False
                group.refresh()
        return True

    def __call__(self, optimizer: th.optim.Optimizer, gradients: Sequence[th.Tensor | None]) -> None:
        """Do the step of ``optimizer`` with these gradients, one for each of its parameters."""
        for candidate, groups in zip(self.optimizers, self.groups, strict=True):
            if candidate is optimizer:
                first = 0
                for group in groups:
                    with th.no_grad():
                        group.descend(gradients[first : first + len(group.parameters)])
                    first += len(group.parameters)
