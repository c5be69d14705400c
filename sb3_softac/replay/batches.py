"""Batches for the gradient steps, drawn from SB3's replay buffers.

``ReplayBuffer.sample`` costs a dozen small copies per batch. Where a buffer is SB3's plain one with float observations, the
batches of several gradient steps are gathered at once into one block of float32, with the same random numbers.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac.replay.soft_n_step import later_states

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
    # With soft n-step returns, the n − 1 states in between:
    later_observations: th.Tensor | None = None  # (B·(n − 1), ...), those of the first transition first
    later_discounts: th.Tensor | None = None  # (B, n − 1), gamma^k, 0 where the trajectory has ended before


def sample(
    buffer: ReplayBuffer,
    batch_size: int,
    gamma: float,
    vec_normalize: VecNormalize | None = None,
    soft_n_step: bool = False,
) -> Batch:
    """One batch from any of SB3's replay buffers.

    :param buffer: the buffer
    :param batch_size: B
    :param gamma: discount where the buffer does not give one for each transition
    :param vec_normalize: normalises observations and rewards
    :param soft_n_step: add the states inside an n-step return, of an ``NStepReplayBuffer``
    """
    later: tuple[th.Tensor | None, th.Tensor | None] = (None, None)
    if soft_n_step:
        assert isinstance(buffer, NStepReplayBuffer), "checked at construction"
        data, *later_tensors = later_states(buffer, batch_size, vec_normalize)
        later = (later_tensors[0], later_tensors[1])
    else:
        data = buffer.sample(batch_size, env=vec_normalize)
    rewards = data.rewards.squeeze(1)
    discounts = th.full_like(rewards, gamma) if data.discounts is None else data.discounts.squeeze(1)
    actions = data.actions
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = actions.squeeze(1).long() - int(buffer.action_space.start)
    return Batch(data.observations, actions, data.next_observations, data.dones.squeeze(1), rewards, discounts, *later)


class _Block:
    """Memory for the batches of several gradient steps: where they are gathered, and where the networks read them.

    :param widths: numbers per transition, by field
    :param obs_shape: shape of an observation
    :param n_batches: K
    :param batch_size: B
    :param device: where the networks are
    """

    def __init__(
        self, widths: dict[str, int], obs_shape: tuple[int, ...], n_batches: int, batch_size: int, device: th.device
    ) -> None:
        sizes = [n_batches * batch_size * width for width in widths.values()]
        on_gpu = device.type == "cuda"
        #: written in turns: while one is on its way to the device, the next can be filled
        self.hosts = [th.empty(sum(sizes), dtype=th.float32, device="cpu", pin_memory=on_gpu) for _ in range(1 + on_gpu)]
        self.columns = [
            {
                name: part.view(-1, width).numpy()
                for (name, width), part in zip(widths.items(), th.split(host, sizes), strict=True)
            }
            for host in self.hosts
        ]
        make_event: Any = th.cuda.Event  # torch ships it without annotations
        #: when the copies of the hosts have arrived; empty where nothing is copied
        self.arrived = [make_event() for _ in self.hosts] if on_gpu else []
        self.turn = 0
        self.on_device = th.empty(sum(sizes), dtype=th.float32, device=device) if on_gpu else self.hosts[0]
        parts = dict(zip(widths, th.split(self.on_device, sizes), strict=True))
        self.fields = [
            parts["observations"].view(n_batches, batch_size, *obs_shape).unbind(),
            parts["actions"].view(n_batches, batch_size, -1).unbind(),
            parts["next_observations"].view(n_batches, batch_size, *obs_shape).unbind(),
            parts["dones"].view(n_batches, batch_size).unbind(),
            parts["rewards"].view(n_batches, batch_size).unbind(),
        ]

    def next_host(self) -> dict[str, npt.NDArray[np.float32]]:
        """The memory to fill, one (K·B, width) for each field."""
        self.turn = (self.turn + 1) % len(self.hosts)
        if self.arrived:
            self.arrived[self.turn].synchronize()
        return self.columns[self.turn]

    def send(self) -> None:
        """Start the copy to the device."""
        if self.arrived:
            self.on_device.copy_(self.hosts[self.turn], non_blocking=True)
            self.arrived[self.turn].record(th.cuda.current_stream(self.on_device.device))


class BlockSampler:
    """Draws the batches of several gradient steps together, as ``sample`` would one after the other.

    :param buffer: one that :meth:`can_sample`
    :param gamma: discount
    """

    def __init__(self, buffer: ReplayBuffer, gamma: float) -> None:
        self.buffer = buffer
        self.gamma = gamma
        self.device = th.device(buffer.device)
        self.start = int(buffer.action_space.start) if isinstance(buffer.action_space, spaces.Discrete) else None
        obs_dim = math.prod(buffer.obs_shape)
        self.widths = {"observations": obs_dim, "next_observations": obs_dim, "actions": buffer.actions.shape[-1]}
        self.widths |= {"rewards": 1, "dones": 1}
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._discounts: dict[int, th.Tensor] = {}

    def __reduce__(self) -> tuple[type["BlockSampler"], tuple[ReplayBuffer, float]]:
        """Copies and pickles have no blocks: in copied ones, what is filled and what is read would no longer be one."""
        return BlockSampler, (self.buffer, self.gamma)

    @staticmethod
    def can_sample(buffer: ReplayBuffer, vec_normalize: VecNormalize | None) -> bool:
        """Whether ``buffer`` is SB3's plain one, for a CPU or CUDA device, with floats, all unchanged."""
        space = buffer.observation_space
        return (
            type(buffer) is ReplayBuffer
            and not {"sample", "_get_samples", "to_torch"} & vars(buffer).keys()
            and not buffer.optimize_memory_usage
            and th.device(buffer.device).type in ("cpu", "cuda")
            and vec_normalize is None
            and isinstance(space, spaces.Box)
            and np.issubdtype(space.dtype, np.floating)  # SB3 takes none of these for an image
        )

    def __call__(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        """``n_batches`` batches of ``batch_size`` transitions. Their memory is used again after the last one."""
        at_once = max(1, min(n_batches, BLOCK_BYTES // (4 * batch_size * sum(self.widths.values()))))
        for first in range(0, n_batches, at_once):
            yield from self._draw(min(at_once, n_batches - first), batch_size)

    def _draw(self, n_batches: int, batch_size: int) -> list[Batch]:
        block = self._blocks.get((n_batches, batch_size))
        if block is None:
            if len(self._blocks) > 3:  # another batch size, or episodes of many lengths
                self._blocks.clear()
            block = _Block(self.widths, self.buffer.obs_shape, n_batches, batch_size, self.device)
            self._blocks[n_batches, batch_size] = block
        self._fill(block.next_host(), self._rows(n_batches, batch_size))
        block.send()
        discounts = self._discounts.get(batch_size)
        if discounts is None:
            discounts = self._discounts[batch_size] = th.full((batch_size,), self.gamma, dtype=th.float32, device=self.device)
        batches = [Batch(*fields) for fields in zip(*block.fields, [discounts] * n_batches, strict=True)]
        if self.start is not None:
            batches = [batch._replace(actions=batch.actions.squeeze(1).long()) for batch in batches]
        return batches

    def _rows(self, n_batches: int, batch_size: int) -> npt.NDArray[np.int64]:
        """Random transitions, in the order in which SB3 would draw them."""
        newest, n_envs = self.buffer.size(), self.buffer.n_envs
        draw, rows = np.random.randint, []  # SB3's own generator
        for _ in range(n_batches):
            row = draw(0, newest, size=batch_size)
            if n_envs > 1:  # a choice out of one takes no random number
                row = row * n_envs + draw(0, n_envs, size=batch_size)
            rows.append(row)
        return rows[0] if n_batches == 1 else np.concatenate(rows)

    def _fill(self, columns: dict[str, npt.NDArray[np.float32]], rows: npt.NDArray[np.int64]) -> None:
        buffer = self.buffer
        for name, column in columns.items():
            _gather(getattr(buffer, name), rows, column, self.start or 0 if name == "actions" else 0)
        columns["dones"] *= 1.0 - buffer.timeouts.reshape(-1, 1)[rows]


def _gather(array: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: npt.NDArray[np.float32], subtracted: int = 0) -> None:
    """Write the chosen rows of a buffer's (capacity, environments, ...) into ``out``, as float32."""
    flat = array.reshape(-1, out.shape[1])
    if flat.dtype == out.dtype:
        flat.take(rows, axis=0, out=out, mode="clip")  # the other modes would copy once more
    else:
        out[...] = flat[rows] - subtracted  # as integers: float32 does not hold large ones
