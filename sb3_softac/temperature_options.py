"""The temperature that an algorithm's options describe, and the numbers of its gradient steps."""

import math
from abc import abstractmethod
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import Schedule

from sb3_softac.arguments import DEFAULT_TARGET_ENTROPY_SCALE, target_entropy_rule
from sb3_softac.collect import reward_divisor
from sb3_softac.configuration import ConfiguredAlgorithm
from sb3_softac.update import LearnedTemperature, Temperature, TemperatureUpdate, Update, make_temperature


class TemperedAlgorithm(ConfiguredAlgorithm):
    """An algorithm with a temperature, fixed or learned towards a target entropy, and the options for both."""

    #: the target entropy that replaced "auto", so that `load` can tell it from one that was asked for
    _automatic_target_entropy: float | None = None

    # The constructor of each algorithm sets them.
    ent_coef: str | float | Schedule
    target_entropy: str | float
    target_entropy_scale: float
    ent_coef_update: TemperatureUpdate
    ent_coef_max: float | None
    reward_scale: float
    max_grad_norm: float | None

    @abstractmethod
    def _check_arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse values out of range and contradictions; return those that have one normal form in it."""

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        if self._automatic_target_entropy is not None and options["target_entropy"] == self._automatic_target_entropy:
            options["target_entropy"] = self.target_entropy = "auto"
        return self._check_arguments(options)

    def _apply_options(self, changed: Any) -> None:
        if "target_entropy" in changed and self.target_entropy != "auto":  # it is no longer a fraction of anything
            self._automatic_target_entropy = None
            if "target_entropy_scale" not in changed:
                self.target_entropy_scale = DEFAULT_TARGET_ENTROPY_SCALE
        super()._apply_options(changed)
        if {"ent_coef", "ent_coef_update"} & set(changed):
            alpha = self.temperature.value.item()
            self.temperature = self._make_temperature(clip_initial="ent_coef" not in changed).to(self.device)
            if "ent_coef" not in changed and isinstance(self.temperature, LearnedTemperature):
                self.temperature.set_value(alpha)
            self._built_for = None
            self._check_architecture()
        elif isinstance(self.temperature, LearnedTemperature):
            self._resolve_target_entropy()

    def _make_temperature(self, clip_initial: bool = False) -> Temperature:
        temperature = make_temperature(
            self.ent_coef,
            self.ent_coef_update,
            self.ent_coef_max,
            self._target_entropy(),
            self._own_learning_rates().get("ent_coef", self.lr_schedule),
            clip_initial=clip_initial or self._runtime.set_up.weights_follow,
        )
        if isinstance(temperature, LearnedTemperature):
            self._resolve_target_entropy()
        return temperature

    def _resolve_target_entropy(self) -> None:
        """Replace "auto" by its number, which users read."""
        resolved = self._target_entropy()
        self._automatic_target_entropy = resolved if self.target_entropy == "auto" else None
        self.target_entropy = resolved

    def _target_entropy(self, wanted: str | float | None = None) -> float:
        """H̄ in nats, the one that was asked for or the automatic one.

        :param wanted: what is asked for; None for the option of the model
        """
        wanted = self.target_entropy if wanted is None else wanted
        rule = target_entropy_rule(wanted)
        if not isinstance(self.action_space, spaces.Discrete):
            n_dims = float(get_action_dim(self.action_space))
            if rule is not None:
                kind, number = rule
                return -number * n_dims if kind == "auto" else 0.5 * n_dims * math.log(2.0 * math.pi * math.e * number**2)
            return -n_dims if wanted == "auto" else float(wanted)
        if rule is not None:
            raise ValueError(
                f"`target_entropy` is {wanted!r}, but it must be 'auto' or a number with discrete actions: "
                "`target_entropy_scale` is the fraction of log|A|."
            )
        highest = math.log(self.action_space.n)
        if wanted == "auto":
            return self.target_entropy_scale * highest
        if not float(wanted) < highest:
            raise ValueError(
                f"`target_entropy` is {wanted}, but it must be below log|A| = {highest:.4f}, the entropy of the "
                f"uniform policy over {self.action_space.n} actions: the temperature would grow without end."
            )
        return float(wanted)

    def _reward_divisor(self) -> float:
        """What rewards are divided by in targets, besides their factor ``reward_scale``."""
        if self.normalize_rewards is None or self._return_moments is None:
            return 1.0
        return reward_divisor(self._return_moments, self.normalize_rewards)

    def _set_numbers(self, update: Update) -> None:
        update.tau, update.reward_scale = self.tau, self.reward_scale / self._reward_divisor()
        update.max_grad_norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        if isinstance(self.temperature, LearnedTemperature):
            self.temperature.target_entropy = float(self.target_entropy)
            self.temperature.set_maximum(self.ent_coef_max)
            with th.no_grad():
                self.temperature.project(self.temperature.maximum)
