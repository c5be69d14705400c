"""Gradients and optimizer steps: PyTorch's optimizers themselves, or what they compute as operations on tensors.

An optimizer's ``step()`` can neither be compiled as part of a larger graph nor be captured with a learning rate that changes.
:class:`TensorOptimizers` does the same on the same state, so that a model may change between both at any step.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch as th

from sb3_softac.engine import torch_internals

Mode = Literal["eager", "compiled", "captured"]
Gradients: TypeAlias = Sequence[th.Tensor | None]
#: does the step of an optimizer with one gradient for each of its parameters, None where the loss did not reach it
OptimizerStep: TypeAlias = Callable[[th.optim.Optimizer, Gradients], None]

#: entries of a parameter group, besides the learning rate, that Adam's step takes under the same name
GROUP_OPTIONS = ("amsgrad", "weight_decay", "eps", "maximize", "decoupled_weight_decay", "betas")


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """All parameters of ``optimizer``, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradients_of(loss: th.Tensor, optimizer: th.optim.Optimizer) -> list[th.Tensor | None]:
    """Gradient of ``loss``, (), for each parameter of ``optimizer``, with the strides of the parameter.

    None for a parameter that is frozen (``requires_grad_(False)``) or that the loss does not reach.
    """
    parameters = parameters_of(optimizer)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained or not loss.requires_grad:
        return [None] * len(parameters)
    found = iter(th.autograd.grad(loss, trained, allow_unused=True))
    gradients = [next(found) if parameter.requires_grad else None for parameter in parameters]
    # `backward()` sees to the strides, `grad` does not, and PyTorch's fused kernels take them for granted.
    return [
        gradient if gradient is None or gradient.stride() == parameter.stride() else th.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def step(optimizer: th.optim.Optimizer, gradients: Gradients) -> None:
    """Let ``optimizer`` itself do its step with these gradients, one for each of its parameters."""
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def clip(gradients: Gradients, max_norm: float | th.Tensor | None) -> tuple[th.Tensor, Gradients]:
    """Clip to a Euclidean norm over all gradients together.

    :param gradients: of any shapes; None is skipped
    :param max_norm: largest norm, or None for no limit
    :return: the norm before clipping, (), and the gradients
    """
    present = [gradient for gradient in gradients if gradient is not None]
    if max_norm is None and len(present) == 1 and present[0].ndim == 0:
        return present[0].abs(), gradients
    # One call for all is fast in eager mode, but a compiler would not see into it.
    norm = th.nn.utils.get_total_norm(present, foreach=False if th.compiler.is_compiling() else None)
    if max_norm is not None:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        gradients = [None if gradient is None else gradient * factor for gradient in gradients]
    return norm, gradients


def can_replace(optimizer: th.optim.Optimizer) -> bool:
    """Whether it is Adam, AdamW or plain SGD, so that :class:`TensorOptimizers` does its steps, and has no hooks."""
    plain = type(optimizer) is th.optim.SGD and not any(
        group["momentum"] or group["weight_decay"] or group["maximize"] for group in optimizer.param_groups
    )
    adam = type(optimizer) in (th.optim.Adam, th.optim.AdamW) and not any(
        group["amsgrad"] or group["differentiable"] for group in optimizer.param_groups
    )
    supported = plain or (adam and torch_internals.functional_adam() is not None)
    return supported and not torch_internals.has_step_hooks(optimizer)


def can_replace_in_eager_mode(optimizer: th.optim.Optimizer) -> bool:
    """Whether the eager step of :class:`TensorOptimizers` is also bit for bit that of ``optimizer``."""
    if not can_replace(optimizer):
        return False
    return type(optimizer) is th.optim.SGD or all(group["fused"] for group in optimizer.param_groups)


def has_begun(optimizer: th.optim.Optimizer) -> bool:
    """Whether a first step has created the state that the next ones need."""
    return type(optimizer) is th.optim.SGD or len(optimizer.state) > 0


def restart(optimizer: th.optim.Optimizer) -> None:
    """Bring the state of ``optimizer`` back to before its first step; learning rate and options stay.

    All that Adam keeps is 0 there, which is written in place, so that a compiled step goes on with it. What another optimizer
    keeps is thrown away.
    """
    values = [value for state in optimizer.state.values() for value in state.values()]
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW) and all(isinstance(value, th.Tensor) for value in values):
        for value in values:
            value.zero_()
    else:
        optimizer.state.clear()


class _Group:
    """One parameter group as tensors: parameters, their states, and the learning rate."""

    def __init__(self, optimizer: th.optim.Optimizer, group: dict[str, Any], mode: Mode) -> None:
        self.group = group
        self.options = self._options_of(group)
        self.is_adam = isinstance(optimizer, th.optim.Adam)
        self.mode = mode
        self.parameters: list[th.Tensor] = list(group["params"])
        # A parameter that no loss has reached has no state.
        self.states = [optimizer.state.get(parameter) for parameter in self.parameters]
        for parameter, state in zip(self.parameters, self.states, strict=True):
            parameter.grad = None  # or it would keep the gradient of an earlier step
            if state and mode != "eager" and "step" in state:
                state["step"] = state["step"].to(parameter.device)  # kernels count there
        self.learning_rate = float(group["lr"])
        #: the learning rate as a tensor, for steps that outlive it as a number
        self.lr = th.tensor(self.learning_rate, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    @staticmethod
    def _options_of(group: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(map(group.get, GROUP_OPTIONS))

    def follow(self, present: dict[str, Any]) -> bool:
        """Take over the present learning rate; whether all else is as it was."""
        if present is not self.group or self._options_of(present) != self.options:
            return False
        learning_rate = float(present["lr"])
        if learning_rate != self.learning_rate:
            self.learning_rate = learning_rate
            self.lr.fill_(learning_rate)
        return True

    def lacks_state(self, gradients: Gradients) -> bool:
        """Whether the loss reaches a parameter for the first time."""
        pairs = zip(gradients, self.states, strict=True)
        return self.is_adam and any(gradient is not None and not state for gradient, state in pairs)

    def step(self, gradients: Gradients) -> None:
        if not self.is_adam:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None and self.mode == "eager":
                    parameter.add_(gradient, alpha=-self.learning_rate)
                elif gradient is not None:
                    parameter.addcmul_(gradient, self.lr, value=-1.0)
            return
        if self.lacks_state(gradients):
            raise RuntimeError("a loss reaches a parameter that it had not reached in the first step")
        reached = [
            (parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"])
            for parameter, gradient, state in zip(self.parameters, gradients, self.states, strict=True)
            if gradient is not None and state is not None
        ]
        if reached:
            self._adam(*map(list, zip(*reached, strict=True)))

    def _adam(
        self,
        parameters: list[th.Tensor],
        gradients: list[th.Tensor],
        exp_avgs: list[th.Tensor],
        exp_avg_sqs: list[th.Tensor],
        steps: list[th.Tensor],
    ) -> None:
        options: dict[str, Any] = {
            name: value for name, value in zip(GROUP_OPTIONS, self.options, strict=True) if value is not None
        }
        beta1, beta2 = options.pop("betas")
        if self.mode == "compiled":
            options.pop("amsgrad")  # which is off
            _compiled_adam(parameters, gradients, exp_avgs, exp_avg_sqs, steps, self.lr, beta1=beta1, beta2=beta2, **options)
            return
        adam = torch_internals.functional_adam()
        assert adam is not None, "an optimizer that `can_replace` refuses"
        adam(
            parameters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            foreach=False,
            fused=True,
            capturable=self.mode != "eager",  # the step counts stay tensors
            differentiable=False,
            has_complex=False,
            lr=self.learning_rate if self.mode == "eager" else self.lr,
            beta1=beta1,
            beta2=beta2,
            **options,
        )


def _compiled_adam(
    parameters: list[th.Tensor],
    gradients: list[th.Tensor],
    exp_avgs: list[th.Tensor],
    exp_avg_sqs: list[th.Tensor],
    steps: list[th.Tensor],
    lr: th.Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool = False,
) -> None:
    """The step of Adam (1412.6980, algorithm 1) or AdamW (1711.05101), as PyTorch's, for its compiler.

    From PyTorch's version the compiler makes, on the CPU, loops that recompute the bias corrections every few elements; on
    GPUs see :func:`torch_internals.may_update_together`.
    """
    for count in steps:
        count.add_(1.0)
    # Stacked, they are stored before the loops over the parameters begin.
    step_sizes = th.stack([lr / (1.0 - beta1**count) for count in steps]).unbind()
    roots = th.stack([(1.0 - beta2**count).sqrt() for count in steps]).unbind()
    for parameter, gradient, exp_avg, exp_avg_sq, step_size, root in zip(
        parameters, gradients, exp_avgs, exp_avg_sqs, step_sizes, roots, strict=True
    ):
        gradient = -gradient if maximize else gradient
        if weight_decay and decoupled_weight_decay:
            parameter.mul_(1.0 - lr * weight_decay)
        elif weight_decay:
            gradient = gradient + weight_decay * parameter
        exp_avg.lerp_(gradient, 1.0 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        parameter.sub_(step_size * exp_avg / (exp_avg_sq.sqrt() / root + eps))


class _Replaced:
    """What is known of one optimizer."""

    def __init__(self, optimizer: th.optim.Optimizer, mode: Mode) -> None:
        self.optimizer = optimizer
        self.groups = [_Group(optimizer, group, mode) for group in optimizer.param_groups]
        self.state = optimizer.state
        self.entries = list(optimizer.state.values())

    def follow(self) -> bool:
        optimizer = self.optimizer
        return (
            optimizer.state is self.state
            and len(self.state) == len(self.entries)
            and all(map(operator.is_, self.state.values(), self.entries))
            and len(optimizer.param_groups) == len(self.groups)
            and not torch_internals.has_step_hooks(optimizer)
            and all(group.follow(now) for group, now in zip(self.groups, optimizer.param_groups, strict=True))
        )


class TensorOptimizers:
    """Steps of several optimizers as operations on tensors alone. ``parameter.grad`` stays None.

    :param optimizers: optimizers that :func:`can_replace`
    :param mode: how the steps run
    """

    def __init__(self, optimizers: Iterable[th.optim.Optimizer], mode: Mode) -> None:
        self.mode = mode
        self._replaced = [_Replaced(optimizer, mode) for optimizer in optimizers]
        self._outdated = False

    def follow(self, optimizers: Sequence[th.optim.Optimizer]) -> bool:
        """Take over the present learning rates; whether ``optimizers`` are still these, with the same states and options."""
        return (
            not self._outdated
            and len(optimizers) == len(self._replaced)
            and all(known.optimizer is present for known, present in zip(self._replaced, optimizers, strict=True))
            and all(known.follow() for known in self._replaced)
        )

    def __call__(self, optimizer: th.optim.Optimizer, gradients: Gradients) -> None:
        """Do the step of ``optimizer`` with these gradients, one for each of its parameters."""
        for known in self._replaced:
            if known.optimizer is optimizer:
                self._step(known, gradients)
                return
        raise RuntimeError(f"this {type(optimizer).__name__} is none of the optimizers that were expected")

    def _step(self, known: _Replaced, gradients: Gradients) -> None:
        parts, first = [], 0
        for group in known.groups:
            parts.append((group, gradients[first : first + len(group.parameters)]))
            first += len(group.parameters)
        if self.mode == "eager" and any(group.lacks_state(part) for group, part in parts):
            self._outdated = True  # the optimizer creates a state that is not known here
            step(known.optimizer, gradients)
            return
        with th.no_grad():
            for group, part in parts:
                group.step(part)
