"""What a finished episode says of the values, the actions and the ends that the critics learn from."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac.replay import TensorReplayBuffer

Array = npt.NDArray[Any]

#: an action component counts as saturated above this share of its bound
SATURATED = 0.99
#: what :func:`describe` may tell, by the names of the logger, all below ``rollout/``
FACTS = ("discounted_return", "saturation", "timeout_rate")
#: what they are read from
NAMES = ("rewards", "dones", "timeouts", "actions")


def newest_rows(buffer: Any, index: int, length: int) -> Array | None:
    """Rows of the episode that the newest row of a buffer ends, in order, (T,).

    :param buffer: replay buffer
    :param index: of the environment
    :param length: steps since its last reset
    :return: the rows, or None where its beginning has been overwritten
    """
    n = min(length, buffer.size())
    rows: Array = np.arange(buffer.pos - n, buffer.pos) % buffer.buffer_size
    ended = np.logical_or(buffer.dones[rows[:-1], index], buffer.timeouts[rows[:-1], index])
    earlier = np.flatnonzero(ended)
    if len(earlier) > 0:
        return rows[earlier[-1] + 1 :]
    return None if n < length and bool(buffer.full) else rows


class NewestRows:
    """The newest rows of some environments, copied out of a buffer of tensors at once.

    :param buffer: the buffer
    :param indices: of the environments, (m,)
    :param length: how many rows
    """

    def __init__(self, buffer: TensorReplayBuffer, indices: Array, length: int) -> None:
        self.n_rows = min(length, buffer.size())
        rows = th.arange(buffer.pos - self.n_rows, buffer.pos, device=buffer.device) % buffer.buffer_size
        envs = th.from_numpy(indices).to(buffer.device)
        self.rewards, self.dones, self.timeouts, self.actions = (
            vars(buffer)[name][rows.unsqueeze(1), envs].cpu().numpy() for name in NAMES
        )
        self.buffer_size, self.pos, self.full = max(self.n_rows, 1), 0, buffer.full

    def size(self) -> int:
        """How many there are."""
        return self.n_rows


def discounted_return(rewards: Array, gamma: float, goes_on: bool) -> float:
    """Mean over the T states of an episode of G_t, the discounted sum of the rewards from there.

    Reward k is in the returns of the states 0 to k: Σ_t G_t = Σ_k w_k r_k with w_k = (1 − γ^(k+1))/(1 − γ). Where the episode
    was cut off by a time limit, the states would have had further rewards. They are then taken to be, on average, those that
    were seen: Σ_k w_k r_k / ((1 − γ) Σ_k w_k).

    :param rewards: (T,)
    :param gamma: discount γ; at 1 nothing is extrapolated
    :param goes_on: whether it was cut off
    """
    weights = np.cumsum(gamma ** np.arange(len(rewards), dtype=np.float64))
    total = float(weights @ rewards)
    return total / float((1.0 - gamma) * weights.sum()) if goes_on and gamma < 1.0 else total / len(rewards)


def describe(
    buffer: Any, index: int, length: int, gamma: float, action_space: spaces.Space[Any], vec_normalize: VecNormalize | None
) -> dict[str, float]:
    """Facts of the episode that the newest row of a replay buffer ends, by the names in ``FACTS``.

    They are read from what is stored, so they need no state of their own and no random numbers.

    :param buffer: replay buffer, or its newest rows; one that does not keep its rows as SB3's does tells nothing
    :param index: of the environment
    :param length: steps of the episode, as its ``Monitor`` counts them
    :param gamma: discount
    :param action_space: saturation has a meaning for ``Box`` only
    :param vec_normalize: normalises rewards, as it does for batches
    """
    if not isinstance(buffer, ReplayBuffer | NewestRows) or not all(
        isinstance(getattr(buffer, name, None), np.ndarray) for name in NAMES
    ):
        return {}
    rows = newest_rows(buffer, index, length)
    if rows is None or len(rows) == 0:
        return {}
    cut_off = bool(buffer.timeouts[rows[-1], index])
    rewards = buffer.rewards[rows, index].astype(np.float64)
    if vec_normalize is not None:
        rewards = vec_normalize.normalize_reward(rewards)
    facts = {"discounted_return": discounted_return(rewards, gamma, cut_off), "timeout_rate": float(cut_off)}
    if isinstance(action_space, spaces.Box):
        facts["saturation"] = float(np.mean(np.abs(buffer.actions[rows, index]) >= SATURATED))
    return facts
