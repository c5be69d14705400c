"""Batches for the gradient steps, drawn from SB3's replay buffers.

``ReplayBuffer.sample`` costs a dozen small copies per batch. Where a buffer is SB3's plain one with flat observations, the
batches of several gradient steps are gathered at once into one block of float32, with the same random numbers.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

#: how many bytes are gathered at once: more would leave the processor's cache, and cost memory
BLOCK_BYTES = 2**21


class Batch(NamedTuple):
    """Transitions of one gradient step; B is the batch size."""

    observations: PyTorchObs  # (B, ...)
    actions: th.Tensor  # (B, A), scaled to [-1, 1]; discrete ones (B,), counted from 0
    next_observations: PyTorchObs  # (B, ...)
    dones: th.Tensor  # (B,), 1 for a true termination only
    rewards: th.Tensor  # (B,)
    discounts: th.Tensor  # (B,), gamma to the number of steps behind the reward


def sample(buffer: ReplayBuffer, batch_size: int, gamma: float, vec_normalize: VecNormalize | None = None) -> Batch:
    """One batch from any of SB3's replay buffers.

    :param buffer: the buffer
    :param batch_size: B
    :param gamma: discount where the buffer does not give one for each transition
    :param vec_normalize: normalises observations and rewards
    """
    data = buffer.sample(batch_size, env=vec_normalize)
    rewards = data.rewards.squeeze(1)
    discounts = th.full_like(rewards, gamma) if data.discounts is None else data.discounts.squeeze(1)
    actions = data.actions
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = actions.squeeze(1).long() - int(buffer.action_space.start)
    return Batch(data.observations, actions, data.next_observations, data.dones.squeeze(1), rewards, discounts)


class BlockSampler:
    """Draws the batches of several gradient steps together, as ``sample`` would one after the other.

    :param buffer: one that :meth:`can_sample`
    :param gamma: discount
    """

    def __init__(self, buffer: ReplayBuffer, gamma: float) -> None:
        self.buffer = buffer
        self.gamma = gamma
        self.device = th.device(buffer.device)
        self.obs_dim = math.prod(buffer.obs_shape)
        self.action_dim = buffer.actions.shape[-1]
        #: pinned memory is written again only once its copy has arrived
        self._pinned: list[tuple[th.Tensor, th.cuda.Event]] = []

    @staticmethod
    def can_sample(buffer: ReplayBuffer, vec_normalize: VecNormalize | None) -> bool:
        """Whether ``buffer`` is SB3's plain one with float observations, and nothing changes what it returns."""
        space = buffer.observation_space
        return (
            type(buffer) is ReplayBuffer
            and not {"sample", "_get_samples", "to_torch"} & set(vars(buffer))
            and not buffer.optimize_memory_usage
            and vec_normalize is None
            and isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)
            and not is_image_space(space)
        )

    def __call__(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        """``n_batches`` batches of ``batch_size`` transitions."""
        per_batch = 4 * batch_size * (2 * self.obs_dim + self.action_dim + 2)
        at_once = max(1, min(n_batches, BLOCK_BYTES // per_batch))
        for first in range(0, n_batches, at_once):
            yield from self._block(min(at_once, n_batches - first), batch_size)

    def _rows(self, n_batches: int, batch_size: int) -> npt.NDArray[np.int64]:
        """Random transitions, in the order in which SB3 would draw them."""
        buffer, draw = self.buffer, np.random.randint
        newest, n_envs = buffer.buffer_size if buffer.full else buffer.pos, buffer.n_envs
        rows = [draw(0, newest, size=batch_size) * n_envs + draw(0, n_envs, size=batch_size) for _ in range(n_batches)]
        return rows[0] if n_batches == 1 else np.concatenate(rows)

    def _block(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        buffer, rows = self.buffer, self._rows(n_batches, batch_size)
        widths = {"observations": self.obs_dim, "next_observations": self.obs_dim, "actions": self.action_dim}
        widths |= {"rewards": 1, "dones": 1}
        staging, arrived = self._staging(len(rows) * sum(widths.values()))
        block, start, host = staging.numpy(), 0, {}
        for name, width in widths.items():
            part = host[name] = block[start : start + len(rows) * width].reshape(len(rows), width)
            _gather(getattr(buffer, name), rows, part)
            start += len(rows) * width
        host["dones"] *= 1.0 - buffer.timeouts.reshape(-1, 1)[rows]
        if isinstance(buffer.action_space, spaces.Discrete):
            host["actions"] -= float(buffer.action_space.start)
        if arrived is not None:
            staging = staging.to(self.device, non_blocking=True)
            arrived.record()
        parts = th.split(staging, [len(rows) * width for width in widths.values()])
        columns = {
            name: part.view(n_batches, batch_size, width) for (name, width), part in zip(widths.items(), parts, strict=True)
        }
        shape = (n_batches, batch_size, *buffer.obs_shape)
        actions = columns["actions"]
        if isinstance(buffer.action_space, spaces.Discrete):
            actions = actions.squeeze(2).long()
        discounts = th.full((batch_size,), self.gamma, device=self.device)
        yield from (
            Batch(*fields, discounts)
            for fields in zip(
                columns["observations"].view(shape).unbind(),
                actions.unbind(),
                columns["next_observations"].view(shape).unbind(),
                columns["dones"].squeeze(2).unbind(),
                columns["rewards"].squeeze(2).unbind(),
                strict=True,
            )
        )

    def _staging(self, size: int) -> tuple[th.Tensor, Any]:
        """Memory for ``size`` numbers; for a GPU pinned, with an event to record after the copy."""
        if self.device.type != "cuda":
            return th.empty(size), None
        if len(self._pinned) < 2 or any(len(memory) < size for memory, _ in self._pinned):
            th.cuda.synchronize(self.device)
            make_event: Any = th.cuda.Event  # torch ships it without annotations
            self._pinned = [(th.empty(size, pin_memory=True), make_event()) for _ in range(2)]
        memory, arrived = self._pinned.pop(0)
        arrived.synchronize()
        self._pinned.append((memory, arrived))
        return memory[:size], arrived


def _gather(array: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
    """Write the chosen rows of a buffer's (capacity, environments, ...) into ``out``, as float32."""
    flat = array.reshape(array.shape[0] * array.shape[1], -1)
    if flat.dtype == out.dtype:
        np.take(flat, rows, axis=0, out=out, mode="clip")  # the other modes would copy once more
    else:
        out[...] = flat[rows]
