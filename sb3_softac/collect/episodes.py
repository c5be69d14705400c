"""What finished episodes say of the values, the actions and the ends that the critics learn from.

Many of them may end in one step of as many environments. They are described together, from a grid of the newest rows of their
environments, (T, m): its last row is the one that was stored last.
"""

from typing import Any, NamedTuple

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
#: numbers of a grid that are copied out of a buffer at once
MOST = 1 << 22


class Rows(NamedTuple):
    """The newest rows of some environments, (T, m) each, actions (T, m, A)."""

    rewards: Array
    dones: Array
    timeouts: Array
    actions: Array


def newest_rows(buffer: Any, indices: Array, length: int) -> Rows | None:
    """The newest rows of some environments, in order.

    :param buffer: replay buffer; one that does not keep its rows as SB3's does has none
    :param indices: of the environments, (m,)
    :param length: how many; there are no more than the buffer has
    """
    if isinstance(buffer, TensorReplayBuffer):
        n_rows = min(length, buffer.size())
        rows = th.arange(buffer.pos - n_rows, buffer.pos, device=buffer.device) % buffer.buffer_size
        envs = th.from_numpy(indices).to(buffer.device)
        return Rows(*(vars(buffer)[name][rows.unsqueeze(1), envs].cpu().numpy() for name in NAMES))
    if not isinstance(buffer, ReplayBuffer) or not all(isinstance(getattr(buffer, name, None), np.ndarray) for name in NAMES):
        return None
    n_rows = min(length, buffer.size())
    places = np.arange(buffer.pos - n_rows, buffer.pos)[:, np.newaxis] % buffer.buffer_size
    return Rows(*(getattr(buffer, name)[places, indices] for name in NAMES))


def beginnings(rows: Rows, lengths: Array, is_full: bool) -> Array:
    """The row of a grid that each episode begins with, which its last row ends, (m,); T where that has been overwritten.

    :param rows: the grid
    :param lengths: steps since the last reset of each environment, (m,)
    :param is_full: whether the buffer has overwritten rows
    """
    n_rows = len(rows.rewards)
    looked_at = np.minimum(lengths, n_rows)
    number = np.arange(n_rows)[:, np.newaxis]
    ended = ((rows.dones != 0) | (rows.timeouts != 0)) & (number >= n_rows - looked_at)
    ended[-1:] = False
    behind_an_end = np.where(ended, number + 1, 0).max(axis=0, initial=0)
    is_lost = (behind_an_end == 0) & (looked_at < lengths) & is_full
    return np.where(is_lost, n_rows, np.maximum(behind_an_end, n_rows - looked_at))


def discounted_returns(rewards: Array, begin: Array, gamma: float, goes_on: Array) -> Array:
    """Mean over the T states of each episode of G_t, the discounted sum of the rewards from there, (m,).

    Reward k is in the returns of the states 0 to k: Σ_t G_t = Σ_k w_k r_k with w_k = (1 − γ^(k+1))/(1 − γ). Where the episode
    was cut off by a time limit, the states would have had further rewards. They are then taken to be, on average, those that
    were seen: Σ_k w_k r_k / ((1 − γ) Σ_k w_k).

    :param rewards: grid of float64, (n, m); an episode is a column from its beginning on
    :param begin: row that each begins with, below n, (m,)
    :param gamma: discount γ; at 1 nothing is extrapolated
    :param goes_on: whether it was cut off, (m,)
    """
    n_rows = len(rewards)
    weights = np.cumsum(gamma ** np.arange(n_rows, dtype=np.float64))
    place = np.arange(n_rows)[:, np.newaxis] - begin  # k
    totals = (np.where(place >= 0, weights[np.maximum(place, 0)], 0.0) * rewards).sum(axis=0)
    n_states = n_rows - begin
    divisors = n_states.astype(np.float64)
    if gamma < 1.0:
        divisors = np.where(goes_on, (1.0 - gamma) * np.cumsum(weights)[n_states - 1], divisors)
    result: Array = totals / divisors
    return result


def describe(
    buffer: Any,
    indices: Array,
    lengths: Array,
    gamma: float,
    action_space: spaces.Space[Any],
    vec_normalize: VecNormalize | None,
) -> list[dict[str, float]]:
    """Facts of the episodes that the newest row of a replay buffer ends, by the names in ``FACTS``, for each environment.

    They are read from what is stored, so they need no state of their own and no random numbers; they are empty where the
    beginning of the episode has been overwritten.

    :param buffer: replay buffer; one that does not keep its rows as SB3's does tells nothing
    :param indices: of the environments, (m,)
    :param lengths: steps of the episodes, as their ``Monitor`` counts them, (m,)
    :param gamma: discount
    :param action_space: saturation has a meaning for ``Box`` only
    :param vec_normalize: normalises rewards, as it does for batches
    """
    longest, width = int(lengths.max(initial=0)), int(np.prod(action_space.shape or (1,)))
    if len(indices) > 1 and longest * len(indices) * width > MOST:  # long episodes of many environments, one half at a time
        half, context = len(indices) // 2, (gamma, action_space, vec_normalize)
        parts = (slice(None, half), slice(half, None))
        return [facts for part in parts for facts in describe(buffer, indices[part], lengths[part], *context)]
    rows = newest_rows(buffer, indices, longest)
    if rows is None or len(rows.rewards) == 0:
        return [{} for _ in indices]
    begin = beginnings(rows, lengths, bool(buffer.full))
    known = begin < len(rows.rewards)
    first = np.where(known, begin, 0)
    cut_off = rows.timeouts[-1] != 0
    rewards: Array = rows.rewards.astype(np.float64)
    if vec_normalize is not None:
        rewards = vec_normalize.normalize_reward(rewards)
    facts = {"discounted_return": discounted_returns(rewards, first, gamma, cut_off), "timeout_rate": cut_off.astype(float)}
    if isinstance(action_space, spaces.Box):
        facts["saturation"] = _saturation(rows.actions, first)
    names, columns = list(facts), [values.tolist() for values in facts.values()]
    described = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [of_one if is_known else {} for of_one, is_known in zip(described, known.tolist(), strict=True)]


def _saturation(actions: Array, begin: Array) -> Array:
    """Share of the components of the actions of each episode that are saturated, (m,)."""
    n_rows, width = len(actions), int(np.prod(actions.shape[2:]))
    saturated = (np.abs(actions) >= SATURATED).reshape(n_rows, len(begin), -1).sum(axis=2)
    within = np.arange(n_rows)[:, np.newaxis] >= begin
    share: Array = np.where(within, saturated, 0).sum(axis=0) / ((n_rows - begin) * width)
    return share
