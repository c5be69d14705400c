"""Q and the discounted return that was obtained: measured where they are logged, else estimated and so named."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sb3_softac.report.data import LARGEST_NUMBER, Array, Run, Series, in_order, windowed
from sb3_softac.report.verdicts import Unknown

DISCOUNT = 0.99


@dataclass(frozen=True)
class Value:
    """A value over the steps.

    :param name: what it is, in words
    :param is_estimate: whether it was put together from other metrics
    """

    series: Series
    name: str
    is_estimate: bool = False


def discount(run: Run) -> float:
    """γ; that of SB3's default where it is not known."""
    gamma = run.settings.number("gamma")
    return gamma if gamma is not None and 0.0 <= gamma <= 1.0 else DISCOUNT


def critic_values(run: Run) -> Value | Unknown:
    """train/q_value; for SB3's SAC, which logs none, minus the actor loss, which is Q − α log π."""
    logged = run.metric("train/q_value")
    if logged is not None:
        return Value(logged, "train/q_value")
    loss = run.metric("train/actor_loss")
    if loss is None or not run.is_soft or run.algorithm == "SoftQL":
        return Unknown("Q was not logged")
    return Value(Series(loss.steps, -loss.values), "minus train/actor_loss, which is Q − α log π", is_estimate=True)


def discounted_returns(run: Run) -> Value | Unknown:
    """rollout/discounted_return; without it an estimate from returns and lengths, if nothing rescales rewards."""
    logged = run.metric("rollout/discounted_return")
    if logged is not None:
        return Value(logged, "rollout/discounted_return")
    if run.episodes is None or len(run.episodes) == 0:
        return Unknown("neither rollout/discounted_return nor a monitor.csv says what was obtained")
    if not run.episodes.is_whole:
        return Unknown("monitor.csv has seen a part of the training: what was obtained at which step is not known")
    wrapper, scale = run.settings.get("normalize"), run.settings.number("reward_scale")
    scaled = wrapper.get("norm_reward", True) if isinstance(wrapper, Mapping) else wrapper
    if scaled or run.settings.get("normalize_rewards") or "train/reward_divisor" in run.metrics:
        return Unknown("rewards are normalised, and rollout/discounted_return was not logged")
    factor = 1.0 if scale is None else scale
    finite = np.abs(run.episodes.returns) <= LARGEST_NUMBER
    if not finite.any():
        return Unknown("no return in monitor.csv is a number that one can calculate with")
    spread = _spread(run.episodes.returns[finite], run.episodes.lengths[finite], discount(run))
    series = in_order(run.episodes.steps[finite], factor * windowed(spread, 20)).finite()
    return Value(series, "an estimate from returns and lengths", is_estimate=True)


def _spread(returns: Array, lengths: Array, gamma: float) -> Array:
    """Mean over the states of an episode of the discounted return from there, if each step had the same reward.

    Whether an episode was cut off by a time limit is not known. For rewards above 0 it is taken to go on, which has the larger
    value, r/(1 − γ); for others to have ended: an upper estimate in both cases.
    """
    reward = returns / lengths
    if gamma >= 1.0:
        return np.asarray(reward * (lengths + 1.0) / 2.0)
    seen = 1.0 - gamma * (1.0 - gamma**lengths) / ((1.0 - gamma) * lengths)
    return np.asarray(reward / (1.0 - gamma) * np.where(reward > 0.0, 1.0, seen))


def bonus(run: Run, steps: Array) -> Array | Unknown:
    """The largest entropy bonus in Q, α Ĥ γ/(1 − γ), at given steps; 0 where there is no α, or no bound.

    Where Ĥ is not logged, as by SB3, its largest value stands for it: A log 2, of uniform actions.
    """
    alpha, entropy = run.metric("train/ent_coef"), run.metric("train/entropy")
    gamma = discount(run)
    if alpha is None or gamma >= 1.0:
        return np.zeros(len(steps))
    if entropy is not None:
        entropies: Array | float = np.interp(steps, entropy.steps, entropy.values)
    elif run.settings.n_dimensions is not None:
        entropies = run.settings.n_dimensions * np.log(2.0)
    else:
        return Unknown("the entropy was not logged, nor is the number of actions known: what it adds to Q is not known")
    return np.asarray(np.interp(steps, alpha.steps, alpha.values) * entropies * gamma / (1.0 - gamma))
