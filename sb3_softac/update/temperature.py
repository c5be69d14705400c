"""Strategies for the temperature α (SB3's ``ent_coef``): objects with a ``value`` and an ``update``.

``ent_coef`` is parsed once, in :func:`make_temperature`; the training step never asks which strategy it holds.
Reference: 1812.05905, section 5.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_softac.engine import OptimizerStep
from sb3_softac.engine.optimizers import step as plain_step
from sb3_softac.schedules import check_rate, parse_schedule, value_at, warm_up_of
from sb3_softac.update import losses

TemperatureUpdate = Literal["dual", "log", "exp"]


class Temperature(nn.Module, ABC):
    """The temperature α, in units of reward per nat."""

    @property
    @abstractmethod
    def value(self) -> th.Tensor:
        """α, a scalar tensor without gradient."""

    def at_most(self, maximum: float | th.Tensor) -> th.Tensor:
        """α, a scalar tensor without gradient, below an upper bound that may change from step to step."""
        return self.value

    @abstractmethod
    def update(
        self,
        log_prob: th.Tensor,
        target_entropy: float | th.Tensor | None = None,
        maximum: float | th.Tensor | None = None,
        apply_gradients: OptimizerStep = plain_step,
    ) -> th.Tensor | None:
        """Adapt α to the log-probabilities of freshly drawn actions.

        :param log_prob: (B,), in nats
        :param target_entropy: H̄, in nats; None for the strategy's own
        :param maximum: upper bound of α; None for the strategy's own
        :param apply_gradients: lets a gradient enter α
        :return: the temperature loss (), or None when nothing is learned
        """

    @abstractmethod
    def set_progress(self, progress_remaining: float, num_timesteps: float = math.inf) -> None:
        """Move the schedule of the strategy.

        :param progress_remaining: from 1 to 0
        :param num_timesteps: environment steps so far, for a learning rate with a warm-up; ∞ is behind any
        """


class FixedTemperature(Temperature):
    """A constant or scheduled α. It is configuration, not state: nothing of it is saved with the weights.

    :param schedule: α as a function of the remaining progress
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("ent_coef", th.tensor(float(schedule(1.0))), persistent=False)
        self.ent_coef: th.Tensor

    @property
    def value(self) -> th.Tensor:
        return self.ent_coef

    def update(
        self,
        log_prob: th.Tensor,
        target_entropy: float | th.Tensor | None = None,
        maximum: float | th.Tensor | None = None,
        apply_gradients: OptimizerStep = plain_step,
    ) -> None:
        return None

    def set_progress(self, progress_remaining: float, num_timesteps: float = math.inf) -> None:
        self.ent_coef.fill_(check_rate("ent_coef", float(self.schedule(progress_remaining))))


@dataclass
class _Numbers:
    """What may change while α is learned."""

    target_entropy: float
    schedule: Schedule
    maximum: float = math.inf


class LearnedTemperature(Temperature):
    """An α that drives the entropy Ĥ = −mean log π towards a target H̄: it grows while Ĥ is below H̄.

    :param maximum: upper bound of α, or None
    :param target_entropy: H̄, in nats
    :param schedule: learning rate as a function of the remaining progress
    """

    optimizer: th.optim.Optimizer

    def __init__(self, maximum: float | None, target_entropy: float, schedule: Schedule) -> None:
        super().__init__()
        # Kept in an object of their own: an attribute that is replaced would make an engine build its step again.
        self._numbers = _Numbers(target_entropy, schedule)
        self.set_maximum(maximum)

    def set_maximum(self, maximum: float | None) -> None:
        """Bound α, or None for no bound; it takes effect with the next value that is read."""
        self._numbers.maximum = math.inf if maximum is None else _round_down(maximum)

    @property
    def maximum(self) -> float:
        """Upper bound of α, ∞ for none."""
        return self._numbers.maximum

    @property
    def target_entropy(self) -> float:
        """H̄, in nats; setting it takes effect at the next gradient step."""
        return self._numbers.target_entropy

    @target_entropy.setter
    def target_entropy(self, value: float) -> None:
        self._numbers.target_entropy = value

    @property
    def schedule(self) -> Schedule:
        """Learning rate as a function of the remaining progress."""
        return self._numbers.schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self._numbers.schedule = value

    @abstractmethod
    def unbounded(self) -> th.Tensor:
        """α as its parameter has it, a scalar tensor without gradient."""

    @property
    def value(self) -> th.Tensor:
        return self.at_most(self.maximum)

    def at_most(self, maximum: float | th.Tensor) -> th.Tensor:
        # The parameter is in its bounds, but for a bound that has changed since, and for exp(log x), which may round up.
        value = self.unbounded()
        return value if not isinstance(maximum, th.Tensor) and maximum == math.inf else value.clamp(max=maximum)

    @abstractmethod
    def loss(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        """The loss whose gradient the update follows, () for (B,) log-probabilities."""

    @abstractmethod
    def gradient(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        """Derivative of the loss by the learned scalar, (): too little for automatic differentiation."""

    @abstractmethod
    def set_value(self, value: float) -> None:
        """Set α, within its bounds."""

    @abstractmethod
    def project(self, maximum: float | th.Tensor) -> None:
        """Bring the parameter back into its bounds, in place."""

    @th.no_grad()
    def update(
        self,
        log_prob: th.Tensor,
        target_entropy: float | th.Tensor | None = None,
        maximum: float | th.Tensor | None = None,
        apply_gradients: OptimizerStep = plain_step,
    ) -> th.Tensor:
        target_entropy = self.target_entropy if target_entropy is None else target_entropy
        log_prob = log_prob.to(self.unbounded().dtype)  # under autocast it has another one
        loss = self.loss(log_prob, target_entropy)
        trained = next(self.parameters()).requires_grad  # a user may freeze it, as any other parameter
        apply_gradients(self.optimizer, [self.gradient(log_prob, target_entropy) if trained else None])
        self.project(self.maximum if maximum is None else maximum)
        return loss

    def set_progress(self, progress_remaining: float, num_timesteps: float = math.inf) -> None:
        learning_rate = check_rate("ent_coef_learning_rate", float(value_at(self.schedule, progress_remaining, num_timesteps)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


class DualTemperature(LearnedTemperature):
    """Dual ascent on α itself, projected: α ← min(α_max, max(0, α − λ(Ĥ − H̄))).

    A plain gradient step, without momentum or normalisation: α is a Lagrange multiplier (1812.05905, eqs. 17 and 18). It
    may sit at exactly 0, and leaves it as soon as Ĥ falls below H̄.
    """

    def __init__(self, initial: float, maximum: float | None, target_entropy: float, schedule: Schedule) -> None:
        super().__init__(maximum, target_entropy, schedule)
        self.ent_coef = nn.Parameter(th.tensor(float(initial)))
        self.optimizer = th.optim.SGD(self.parameters(), lr=float(schedule(1.0)))

    def unbounded(self) -> th.Tensor:
        return self.ent_coef.detach()

    def loss(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return losses.dual_temperature_loss(self.ent_coef, log_prob, target_entropy)

    def gradient(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return losses.entropy_gap(log_prob, target_entropy)

    def set_value(self, value: float) -> None:
        with th.no_grad():
            self.ent_coef.fill_(value)
            self.project(self.maximum)

    def project(self, maximum: float | th.Tensor) -> None:
        self.ent_coef.clamp_(min=0.0).clamp_(max=maximum)


class LogTemperature(LearnedTemperature):
    """Adam on log α with the loss −log α · mean(log π + H̄), as in SB3 and SBX."""

    def __init__(self, initial: float, maximum: float | None, target_entropy: float, schedule: Schedule) -> None:
        super().__init__(maximum, target_entropy, schedule)
        self.log_ent_coef = nn.Parameter(th.tensor(math.log(initial)))
        self.optimizer = th.optim.Adam(self.parameters(), lr=float(schedule(1.0)), fused=True)

    def unbounded(self) -> th.Tensor:
        return self.log_ent_coef.detach().exp()

    def loss(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return losses.log_temperature_loss(self.log_ent_coef, log_prob, target_entropy)

    def gradient(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return losses.entropy_gap(log_prob, target_entropy)

    def set_value(self, value: float) -> None:
        with th.no_grad():
            self.log_ent_coef.fill_(math.log(value))
            self.project(self.maximum)

    def project(self, maximum: float | th.Tensor) -> None:
        self.log_ent_coef.clamp_(max=maximum.log() if isinstance(maximum, th.Tensor) else math.log(maximum))


class ExpTemperature(LogTemperature):
    """Adam on log α with the loss −α · mean(log π + H̄), as in softlearning and CleanRL."""

    def loss(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return losses.exp_temperature_loss(self.log_ent_coef, log_prob, target_entropy)

    def gradient(self, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
        return self.loss(log_prob, target_entropy)  # d/dlog α of α·x is α·x


#: (initial α, maximum, H̄, schedule) → temperature
LEARNED: dict[TemperatureUpdate, Callable[[float, float | None, float, Schedule], LearnedTemperature]] = {
    "dual": DualTemperature,
    "log": LogTemperature,
    "exp": ExpTemperature,
}


def _round_down(value: float) -> float:
    """The largest float32 that is not above ``value``, so that a bound holds for the stored α as well."""
    rounded = np.float32(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(0.0)))


def initial_value(ent_coef: str, update: TemperatureUpdate) -> float:
    """The x of "auto_x", 1 for "auto".

    :raises ValueError: none that α can start from
    """
    prefix, _, text = ent_coef.partition("_")
    try:
        initial = 1.0 if ent_coef == "auto" else float(text)
    except ValueError:
        initial = math.nan
    # Only dual ascent can leave 0: log α would start at −∞.
    lowest_allowed = initial >= 0.0 if update == "dual" else initial > 0.0
    # float() would take "1_2" for 12.
    if prefix != "auto" or "_" in text or not (math.isfinite(initial) and lowest_allowed):
        raise ValueError(
            f"`ent_coef` is {ent_coef!r}, but it must be a number, a schedule, 'auto', or 'auto_x' with an initial value x "
            f"{'of at least' if update == 'dual' else 'above'} 0 (`ent_coef_update` is {update!r})."
        )
    return initial


def make_temperature(
    ent_coef: float | str | Schedule,
    update: TemperatureUpdate,
    maximum: float | None,
    target_entropy: float,
    schedule: Schedule,
    clip_initial: bool = False,
) -> Temperature:
    """Build the strategy that ``ent_coef`` asks for.

    :param ent_coef: ``"auto"`` or ``"auto_x"`` to learn α from 1 or x; a number, schedule string or callable to fix it
    :param update: ``"dual"``, ``"log"`` or ``"exp"``; used when α is learned
    :param maximum: upper bound of a learned α, or None
    :param target_entropy: H̄ of a learned α, in nats
    :param schedule: learning rate of a learned α
    :param clip_initial: lower an initial value above ``maximum`` to it: another α follows
    :raises ValueError: malformed ``ent_coef``, one with a warm-up, or an initial value above ``maximum``
    """
    if not (isinstance(ent_coef, str) and ent_coef.startswith("auto")):
        try:
            fixed = parse_schedule("ent_coef", ent_coef)
        except ValueError as error:
            raise ValueError(f"{error} To learn it, pass 'auto' or 'auto_x' with an initial value x.") from error
        if warm_up_of(fixed) is not None:
            raise ValueError(
                f"`ent_coef` is {ent_coef!r}, but it must be without a warm-up, which is for learning rates: a temperature of "
                "0 at the start would let the policy explore least when it knows nothing."
            )
        return FixedTemperature(fixed)
    initial = initial_value(ent_coef, update)
    if maximum is not None and initial > maximum and clip_initial:
        initial = maximum
    if maximum is not None and initial > maximum:
        raise ValueError(f"`ent_coef` is {ent_coef!r}, but it starts above `ent_coef_max`={maximum}.")
    return LEARNED[update](initial, maximum, target_entropy, schedule)
