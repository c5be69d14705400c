"""A replay buffer in tensors, on the device of the networks.

With many environments a step brings as many transitions as several gradient steps need, and with a simulator on the GPU they
are there already. So rows are written, drawn and gathered without leaving the device. Rows mean what they mean in SB3's
``ReplayBuffer`` and ``NStepReplayBuffer``.
"""

import copy
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac.replay.normalizing import normalize_obs, normalize_reward

Rows: TypeAlias = Any  # a tensor (rows, environments, ...), or a dict of them

#: what has a row for each transition
FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "skipped")
#: candidates for each transition of a batch where some rows must not be drawn
CANDIDATES = 8


def tensor_dtype(dtype: Any) -> th.dtype:
    """What PyTorch calls a dtype of NumPy."""
    return th.from_numpy(np.zeros(0, dtype)).dtype


def each(rows: Rows, change: Any) -> Rows:
    """``change`` of a tensor, or of each in a dict."""
    return {key: change(part) for key, part in rows.items()} if isinstance(rows, dict) else change(rows)


class TensorReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, with n-step returns and Dict observations, in tensors: ``replay_buffer_class=TensorReplayBuffer``.

    ``add`` takes arrays and tensors. Batches are drawn by PyTorch's generator of the device; for the same indices they equal
    SB3's. Rows that a vectorised environment marks as skipped, since it has only reset there, are never drawn.

    :param buffer_size: capacity, in transitions
    :param observation_space: of the environment
    :param action_space: of the environment
    :param device: where the rows are; set later, they move there
    :param n_envs: number of environments
    :param optimize_memory_usage: must be False
    :param handle_timeout_termination: an episode that was cut off has not terminated
    :param n_steps: steps of the returns
    :param gamma: their discount; must be the model's. It has no meaning for one step
    :raises ValueError: a value out of range, or ``optimize_memory_usage``
    """

    #: rows that are no transitions, (rows, environments)
    skipped: th.Tensor

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError(
                "`optimize_memory_usage` is True, but it must be False with TensorReplayBuffer, which keeps both observations "
                "of a transition: a smaller `buffer_size` saves memory."
            )
        if isinstance(n_steps, bool) or not isinstance(n_steps, int | np.integer) or n_steps < 1:
            raise ValueError(f"`n_steps` is {n_steps!r}, but it must be an integer of at least 1.")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"`gamma` is {gamma!r}, but it must be a number in [0, 1].")
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = int(n_steps)
        if n_steps > 1:
            self.gamma = gamma
        #: whether any row is marked as skipped
        self.has_skipped = False
        self._allocate()

    def row_types(self) -> dict[str, Any]:
        """Types of the rows, by field; of Dict observations by key."""
        space = self.observation_space
        of_observations: Any = tensor_dtype(space.dtype) if not isinstance(space, spaces.Dict) else None
        if isinstance(space, spaces.Dict):
            of_observations = {key: tensor_dtype(part.dtype) for key, part in space.spaces.items()}
        types = {name: of_observations for name in ("observations", "next_observations")}
        types["actions"] = tensor_dtype(self._maybe_cast_dtype(self.action_space.dtype))
        return types | {name: th.float32 for name in ("rewards", "dones", "timeouts")} | {"skipped": th.bool}

    def _allocate(self) -> None:
        size, shapes = (self.buffer_size, self.n_envs), {"actions": (self.action_dim,)}
        for name, dtype in self.row_types().items():
            shape: Any = self.obs_shape if "observations" in name else shapes.get(name, ())
            vars(self)[name] = (
                {key: th.zeros((*size, *shape[key]), dtype=part, device=self.device) for key, part in dtype.items()}
                if isinstance(dtype, dict)
                else th.zeros((*size, *shape), dtype=dtype, device=self.device)
            )

    # --- where it is ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> th.device:
        """Where the rows are. SB3 sets it once a buffer is loaded."""
        device: th.device = vars(self)["device"]
        return device

    @device.setter
    def device(self, device: th.device | str) -> None:
        fields = vars(self)
        fields["device"] = th.device(device)
        for name in FIELDS:
            if name in fields:
                fields[name] = each(fields[name], lambda rows: rows.to(device))

    def host_rows(self) -> dict[str, Any]:
        """All rows as arrays, by field: the memory itself on the CPU, else a copy."""
        return {name: each(vars(self)[name], lambda rows: rows.cpu().numpy()) for name in FIELDS}

    def put_rows(self, rows: dict[str, Any]) -> None:
        """Write what :meth:`host_rows` has given, and was changed, back where that was a copy."""
        if self.device.type != "cpu":
            for name, values in rows.items():
                _write(vars(self)[name], values)
        self.has_skipped = self.has_skipped or bool(self.skipped.any())

    def __deepcopy__(self, memo: dict[int, Any]) -> "TensorReplayBuffer":
        """A copy on the same device."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Arrays, which any machine can read."""
        return {name: value for name, value in vars(self).items() if name != "device"} | self.host_rows()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        vars(self)["device"] = th.device("cpu")
        for name in FIELDS:
            vars(self)[name] = each(state[name], lambda rows: th.from_numpy(np.array(rows, order="C")))

    # --- add ------------------------------------------------------------------------------------------------------------

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """As in SB3; ``infos`` may also be an object with arrays ``timeouts`` and ``skipped``, one flag per environment."""
        row = self.pos
        fields = vars(self)
        for name, value in (
            *(("observations", obs), ("next_observations", next_obs)),
            *(("actions", action), ("rewards", reward), ("dones", done)),
        ):
            _write(each(fields[name], lambda rows: rows[row]), value)
        if self.handle_timeout_termination:
            timeouts = getattr(infos, "timeouts", None)
            if timeouts is None:
                timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos])
            _write(self.timeouts[row], timeouts)
        self._mark_skipped(row, infos)
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def _mark_skipped(self, row: int, infos: Any) -> None:
        skipped = infos.skipped if hasattr(infos, "skipped") else np.array([info.get("skipped", False) for info in infos])
        any_skipped = skipped is not None and bool(skipped.any())
        if any_skipped or self.has_skipped:
            self.has_skipped = True
            if any_skipped:
                _write(self.skipped[row], skipped)
            else:
                self.skipped[row] = False

    # --- sample ---------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions with replacement.

        :param batch_size: B
        :param env: normalises observations and rewards
        """
        n_filled = self.size() * self.n_envs
        if self.has_skipped:
            drawn = th.randint(n_filled, (CANDIDATES, batch_size), device=self.device)
            usable = ~self.skipped.view(-1)[drawn]
            # The first that may be drawn, without asking the device how many there are. Where there is none, which is one
            # in n^8, it is the transition before: the end of the same episode.
            first = usable.to(th.uint8).argmax(dim=0)
            index = drawn.gather(0, first.unsqueeze(0)).squeeze(0)
            before = (index - self.n_envs) % (self.buffer_size * self.n_envs)
            index = th.where(usable.any(dim=0), index, before)
        else:
            index = th.randint(n_filled, (batch_size,), device=self.device)
        rows = th.div(index, self.n_envs, rounding_mode="floor")
        return self._get_samples(rows, env, index - rows * self.n_envs)

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None, env_indices: Any = None) -> ReplayBufferSamples:
        """The transitions of these rows.

        :param batch_inds: rows, (B,)
        :param env: normalises observations and rewards
        :param env_indices: environments, (B,); None to draw them
        """
        rows = th.as_tensor(batch_inds, device=self.device)
        if env_indices is None:
            env_indices = th.randint(self.n_envs, rows.shape, device=self.device)
        envs = th.as_tensor(env_indices, device=self.device)
        index = rows * self.n_envs + envs
        ends, rewards, discounts = index, self._take(self.rewards, index).unsqueeze(1), None
        if self.n_steps > 1:
            ends, rewards, discounts = self._returns(rows, envs, env)
        elif env is not None:
            rewards = normalize_reward(rewards, env)
        dones = self._take(self.dones, ends) * (1.0 - self._take(self.timeouts, ends))
        observations, next_observations = self._observations(index, ends, env)
        actions = self._take(self.actions, index)
        return ReplayBufferSamples(observations, actions, next_observations, dones.unsqueeze(1), rewards, discounts)

    @staticmethod
    def _take(rows: Any, index: th.Tensor) -> th.Tensor:
        flat: th.Tensor = rows.flatten(0, 1)
        return flat.index_select(0, index)

    def _observations(self, first: th.Tensor, last: th.Tensor, env: VecNormalize | None) -> tuple[Any, Any]:
        taken = (
            each(self.observations, lambda rows: self._take(rows, first)),
            each(self.next_observations, lambda rows: self._take(rows, last)),
        )
        return taken if env is None else (normalize_obs(taken[0], env), normalize_obs(taken[1], env))

    def _returns(self, rows: th.Tensor, envs: th.Tensor, env: VecNormalize | None) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Where the n-step return of each transition ends, the return, and γ to the number of its steps.

        It ends where the episode does, or the newest row is reached.
        """
        steps = th.arange(self.n_steps, device=self.device)
        sequence = (rows.unsqueeze(1) + steps) % self.buffer_size  # (B, n)
        index = sequence * self.n_envs + envs.unsqueeze(1)
        flat = index.flatten()
        dones, timeouts = (self._take(part, flat).view(index.shape) for part in (self.dones, self.timeouts))
        ended = (dones != 0) | (timeouts != 0) | (sequence == (self.pos - 1) % self.buffer_size)
        ended[:, -1] = True
        length = ended.to(th.uint8).argmax(dim=1, keepdim=True) + 1
        rewards = self._take(self.rewards, flat).view(index.shape)
        if env is not None:
            rewards = normalize_reward(rewards, env)
        weights = self.gamma ** steps.to(th.float32)
        returns = (rewards * weights * (steps < length)).sum(dim=1, keepdim=True)
        return index.gather(1, length - 1).squeeze(1), returns, self.gamma ** length.to(th.float32)


def _write(rows: Rows, values: Any) -> None:
    """Copy arrays or tensors of the same number of elements into ``rows``."""
    if isinstance(rows, dict):
        for key, part in rows.items():
            _write(part, values[key])
        return
    if not isinstance(values, th.Tensor):
        values = th.from_numpy(np.array(values, order="C"))  # a copy: PyTorch takes no reversed views
    if values.data_ptr() != rows.data_ptr():
        rows.copy_(values.view(rows.shape) if values.is_contiguous() else values.reshape(rows.shape))
