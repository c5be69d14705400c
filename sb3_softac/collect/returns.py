"""Running discounted returns, and what rewards are divided by so that returns have about unit variance (2502.15280)."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EPSILON = 1e-8


def no_returns() -> Array:
    """What is known before any reward: number, mean and variance of the returns, and the largest magnitude of one."""
    return np.zeros(4)


def count_returns(moments: Array, running: Array, rewards: Array, dones: Array, gamma: float) -> None:
    """Move the running return of each environment by one reward, and count it: G ← γG + r.

    Both are changed in place. Where an episode has ended the return is 0 afterwards.

    :param moments: what :func:`no_returns` describes, float64
    :param running: G of each environment, float64 (n,)
    :param rewards: of each environment, (n,)
    :param dones: whether its episode has ended, terminated or truncated, (n,)
    :param gamma: discount
    """
    running *= gamma
    running += rewards
    count, mean, var, largest = moments
    n = len(running)
    delta, total = running.mean() - mean, count + n
    var = (var * count + running.var() * n + delta * delta * (count * n / total)) / total
    moments[:] = total, mean + delta * n / total, var, max(largest, np.abs(running).max())
    running[np.asarray(dones, dtype=bool)] = 0.0


def reward_divisor(moments: Array, largest_return: float) -> float:
    """max(√(Var G + ε), max|G|/G_max); 1 as long as all returns are 0, which say nothing of the scale of rewards.

    :param moments: what :func:`no_returns` describes
    :param largest_return: G_max: no return that was seen is larger than this after the division
    """
    _, _, var, largest = map(float, moments)
    return max(math.sqrt(var + EPSILON), largest / largest_return) if largest > 0.0 else 1.0
