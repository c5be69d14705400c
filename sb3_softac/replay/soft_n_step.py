"""The states inside an n-step return, whose entropies a soft return counts."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize


def later_states(
    buffer: NStepReplayBuffer, batch_size: int, vec_normalize: VecNormalize | None
) -> tuple[Any, th.Tensor, th.Tensor]:
    """A sample of ``buffer``, and the n − 1 states between the first and the last of each return.

    :param buffer: SB3's buffer of n-step returns
    :param batch_size: B
    :param vec_normalize: normalises observations and rewards
    :return: what ``buffer.sample`` returns, observations (B·(n − 1), ...), and their discounts γ^k (B, n − 1), 0 where the
        trajectory has ended before
    """
    random = np.random  # SB3's own generator
    first = random.randint(0, buffer.size(), size=batch_size)  # as `buffer.sample` draws them
    state = random.get_state()
    samples = buffer._get_samples(first, vec_normalize)
    # It draws the environments by itself: from the same state come the same ones, and the same state afterwards.
    random.set_state(state)
    envs = random.randint(0, buffer.n_envs, size=first.shape)
    steps = np.arange(buffer.n_steps - 1)
    indices = (first[:, None] + steps) % buffer.buffer_size  # (B, n − 1): transitions that lead to a state in between
    columns = envs[:, None]
    ends = (
        (buffer.dones[indices, columns] != 0)
        | (buffer.timeouts[indices, columns] != 0)
        | (indices == (buffer.pos - 1) % buffer.buffer_size)
    )
    alive = np.cumsum(ends, axis=1) == 0
    discounts = np.where(alive, np.float32(buffer.gamma) ** (steps + 1), 0.0).astype(np.float32)
    following = (indices + 1) % buffer.buffer_size
    shape = (-1, *buffer.obs_shape)
    observations = buffer._normalize_obs(buffer.observations[following, columns].reshape(shape), vec_normalize)
    return samples, buffer.to_torch(np.asarray(observations)), buffer.to_torch(discounts)
