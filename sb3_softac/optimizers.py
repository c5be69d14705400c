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


def gradients_of(loss: th.Tensor, optimizer: th.optim.Optimizer) -> list[th.Tensor | None]:
    """Gradient of ``loss``, (), for each parameter of ``optimizer``, in memory as the parameter; None where there is none."""
    parameters = parameters_of(optimizer)
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    # `backward()` sees to the strides, `grad` does not, and PyTorch's fused kernels take them for granted.
    return [
        gradient if gradient is None or gradient.stride() == parameter.stride() else th.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def step(optimizer: th.optim.Optimizer, gradients: Sequence[th.Tensor | None]) -> None:
    """Let ``optimizer`` do its step with these gradients, one for each of its parameters."""
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def clip(gradients: Sequence[th.Tensor | None], max_norm: float | None) -> tuple[th.Tensor, Sequence[th.Tensor | None]]:
    """Euclidean norm of all gradients together, (), and the gradients shortened to ``max_norm`` where they are longer."""
    present = [gradient for gradient in gradients if gradient is not None]
    # One call for all is fast line by line, but a compiler would not see into it.
    norm = th.nn.utils.get_total_norm(present, foreach=False if th.compiler.is_compiling() else None)
    if max_norm is not None:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        gradients = [None if gradient is None else gradient * factor for gradient in gradients]
    return norm, gradients


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group that its steps have besides the rate, by the names of ``adam``."""
    names = ("amsgrad", "weight_decay", "eps", "maximize", "decoupled_weight_decay")
    settings = {name: group[name] for name in names if name in group}
    if "betas" in group:
        settings["beta1"], settings["beta2"] = group["betas"]
    return settings


class _Group:
    """One parameter group as tensors: parameters, moments, counts, and the rate."""

    def __init__(self, optimizer: th.optim.Optimizer, group: dict[str, Any], mode: Mode) -> None:
        self.group = group
        self.settings = _settings(group)
        self.is_adam = isinstance(optimizer, th.optim.Adam)
        self.mode = mode
        self.parameters: list[th.Tensor] = list(group["params"])
        # A parameter that no loss reaches has no state.
        self.states = [optimizer.state.get(parameter) for parameter in self.parameters]
        for parameter, state in zip(self.parameters, self.states, strict=True):
            parameter.grad = None  # of a step long ago
            if state and mode != "eager" and "step" in state:
                state["step"] = state["step"].to(parameter.device)  # kernels count there
        self.rate = float(group["lr"])
        #: the rate as a tensor, for steps that outlive it as a number
        self.lr = th.tensor(self.rate, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def current(self, optimizer: th.optim.Optimizer, present: dict[str, Any]) -> bool:
        """Take over the present rate; whether settings and states are still the same."""
        if present is not self.group or _settings(present) != self.settings:
            return False
        if any(optimizer.state.get(p) is not state for p, state in zip(self.parameters, self.states, strict=True)):
            return False
        rate = float(present["lr"])
        if rate != self.rate:
            self.rate = rate
            self.lr.fill_(rate)
        return True

    def descend(self, gradients: Sequence[th.Tensor | None]) -> None:
        if not self.is_adam:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None and self.mode == "eager":
                    parameter.add_(gradient, alpha=-self.rate)
                elif gradient is not None:
                    parameter.addcmul_(gradient, self.lr, value=-1.0)
            return
        parameters, reached, moments, squares, counts = [], [], [], [], []
        for parameter, gradient, state in zip(self.parameters, gradients, self.states, strict=True):
            if gradient is not None:
                if not state:
                    raise RuntimeError("a loss reaches a parameter that it had not reached in the first step")
                parameters.append(parameter)
                reached.append(gradient)
                moments.append(state["exp_avg"])
                squares.append(state["exp_avg_sq"])
                counts.append(state["step"])
        if not parameters:
            return
        if self.mode == "compiled" and parameters[0].device.type == "cpu":
            settings = {name: value for name, value in self.settings.items() if name != "amsgrad"}  # which is off
            _compiled_adam(parameters, reached, moments, squares, counts, self.lr, **settings)
            return
        adam(
            parameters,
            reached,
            moments,
            squares,
            [],
            counts,
            foreach=self.mode == "compiled",  # a compiler fuses the many kernels
            fused=self.mode != "compiled",
            capturable=self.mode != "eager",  # the counts stay tensors
            differentiable=False,
            has_complex=False,
            lr=self.rate if self.mode == "eager" else self.lr,
            **self.settings,
        )


def _compiled_adam(
    parameters: list[th.Tensor],
    gradients: list[th.Tensor],
    moments: list[th.Tensor],
    squares: list[th.Tensor],
    counts: list[th.Tensor],
    lr: th.Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool = False,
) -> None:
    """The step of Adam (1412.6980, algorithm 1) or AdamW (1711.05101), as PyTorch's, for its compiler on the CPU.

    From PyTorch's own one that makes loops which compute the corrections of the biases anew for every few elements.
    """
    th._foreach_add_(counts, 1.0)
    # Stacked, they are stored before the loops over the parameters begin.
    rates = th.stack([lr / (1.0 - beta1**count) for count in counts]).unbind()
    roots = th.stack([(1.0 - beta2**count).sqrt() for count in counts]).unbind()
    for parameter, gradient, moment, square, rate, root in zip(
        parameters, gradients, moments, squares, rates, roots, strict=True
    ):
        gradient = -gradient if maximize else gradient
        if weight_decay and decoupled_weight_decay:
            parameter.mul_(1.0 - lr * weight_decay)
        elif weight_decay:
            gradient = gradient + weight_decay * parameter
        moment.lerp_(gradient, 1.0 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        parameter.sub_(rate * moment / (square.sqrt() / root + eps))


class TensorOptimizers:
    """Steps of several optimizers as operations on tensors alone. ``parameter.grad`` stays None.

    :param optimizers: optimizers that :meth:`can_replace`
    :param mode: how the steps run
    """

    def __init__(self, optimizers: Iterable[th.optim.Optimizer], mode: Mode) -> None:
        self.optimizers = list(optimizers)
        self.mode = mode
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

    @staticmethod
    def has_begun(optimizer: th.optim.Optimizer) -> bool:
        """Whether a first step has created the state that the next ones need."""
        return type(optimizer) is th.optim.SGD or len(optimizer.state) > 0

    def current(self, optimizers: Sequence[th.optim.Optimizer]) -> bool:
        """Take over the present rates of ``optimizers``; whether they are still these, with the same state and settings."""
        if len(optimizers) != len(self.optimizers):
            return False
        for present, known, groups in zip(optimizers, self.optimizers, self.groups, strict=True):
            if present is not known or len(present.param_groups) != len(groups):
                return False
            if present._optimizer_step_pre_hooks or present._optimizer_step_post_hooks:
                return False
            if not all(group.current(present, now) for group, now in zip(groups, present.param_groups, strict=True)):
                return False
        return True

    def __call__(self, optimizer: th.optim.Optimizer, gradients: Sequence[th.Tensor | None]) -> None:
        """Do the step of ``optimizer`` with these gradients, one for each of its parameters."""
        for known, groups in zip(self.optimizers, self.groups, strict=True):
            if known is optimizer:
                first = 0
                for group in groups:
                    with th.no_grad():
                        group.descend(gradients[first : first + len(group.parameters)])
                    first += len(group.parameters)
                return
        raise RuntimeError(f"this {type(optimizer).__name__} is none of the optimizers that were expected")
