"""Vectorised environments, which step all at once, as a ``VecEnv`` of SB3, without Python for each of them.

SB3 asks of a vector of environments that one whose episode has ended is reset in the same step, and tells its last
observation, and whether it was cut off, in a dict of its own. Vectors of Gymnasium (1.1 or newer) reset in the same step, in
the next one, or never. Here all come to SB3's contract; what it has to say is kept in arrays, from which dicts are made only
if asked for.
"""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_softac.collect.step_infos import StepInfos, each, rows_at

Array = npt.NDArray[Any]
MODES = tuple(mode.value for mode in AutoresetMode)


class VectorEnvAdapter(VecEnv):
    """A ``VecEnv`` of a ``gymnasium.vector.VectorEnv``, or of anything with its methods that returns arrays or tensors.

    Tensors, as simulators on a GPU hand them out, stay where they are: observations go to policy and ``TensorReplayBuffer``,
    actions come back as tensors. Rewards and ends of episodes are copied to the host, once a step.

    An environment that resets only in the next step, and by itself, spends a step on it, which is no transition. Such steps
    are marked in the infos, and only ``TensorReplayBuffer`` can leave them out.

    :param env: with ``num_envs``, ``single_observation_space``, ``single_action_space``, ``reset`` and ``step``
    :param autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``; None for ``env.metadata["autoreset_mode"]``
    :param copy: copy observations, which many simulators write over in the next step; False if they are new in each step
    :raises ValueError: ``env`` has no such methods, or does not say when it resets
    """

    def __init__(self, env: Any, autoreset_mode: str | AutoresetMode | None = None, copy: bool = True) -> None:
        for name in ("num_envs", "single_observation_space", "single_action_space", "reset", "step"):
            if not hasattr(env, name):
                raise ValueError(f"`env` is a {type(env).__name__} without `{name}`, but it must be a vectorised environment.")
        if not isinstance(copy, bool):
            raise ValueError(f"`copy` is {copy!r}, but it must be True or False.")
        self.env, self.copy = env, copy
        self.mode = _mode_of(env, autoreset_mode)
        inner = getattr(env, "unwrapped", env)
        #: whether single environments can be reset by ``reset(options={"reset_mask": ...})``
        self.resets_some = self.mode is AutoresetMode.DISABLED or isinstance(inner, SyncVectorEnv | AsyncVectorEnv)
        if self.mode is AutoresetMode.SAME_STEP:
            self.resets_some = False
        #: whether some steps are no transitions
        self.skips_steps = self.mode is AutoresetMode.NEXT_STEP and not self.resets_some
        self.steps_in_this_process = not isinstance(env, AsyncVectorEnv)
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self._resets_next = np.zeros(env.num_envs, dtype=bool)
        self._start = time.time()
        self._actions: Any = None
        self._device: th.device | None = None
        self._is_known = False
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    # --- reset and step -------------------------------------------------------------------------------------------------

    def reset(self) -> Any:
        options = {"options": self._options[0]} if self._options[0] else {}
        obs, info = self.env.reset(seed=self._seeds[0], **options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_infos_of(info, i) for i in range(self.num_envs)] if info else [{} for _ in range(self.num_envs)]
        self._returns[:], self._lengths[:], self._resets_next[:] = 0.0, 0, False
        self._look_at(obs)
        return self._taken(obs)

    def _look_at(self, obs: Any) -> None:
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        self._device = first.device if isinstance(first, th.Tensor) else None
        self._is_known = True

    def hands_out_tensors(self) -> bool:
        """Whether observations are tensors; the environment is reset where that is not known yet."""
        if not self._is_known:
            self._look_at(self.env.reset()[0])
        return self._device is not None

    def _taken(self, obs: Any) -> Any:
        """Observations that nobody writes over."""
        if not self.copy:
            return obs
        return each(obs, lambda part: part.clone() if isinstance(part, th.Tensor) else np.array(part))

    def step_async(self, actions: Any) -> None:
        if self._device is not None:
            actions = th.as_tensor(actions, device=self._device)
        elif isinstance(actions, th.Tensor):
            actions = actions.cpu().numpy()
        self._actions = actions
        if isinstance(self.env, AsyncVectorEnv):
            self.env.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        answer = self.env.step_wait() if isinstance(self.env, AsyncVectorEnv) else self.env.step(self._actions)
        obs, reward, terminated, truncated, info = answer
        rewards, terminations, truncations = _on_host(reward, terminated, truncated)
        dones = terminations | truncations
        ended = np.flatnonzero(dones)
        final = None
        if len(ended) > 0 and self.mode is AutoresetMode.SAME_STEP:
            final = _final_observations(info, ended)
        elif len(ended) > 0 and self.resets_some:
            final = rows_at(obs, ended)
            mask: Any = dones if self._device is None else th.as_tensor(dones, device=self._device)
            obs, _ = self.env.reset(options={"reset_mask": mask})
        skipped = self._resets_next if self.skips_steps and self._resets_next.any() else None
        infos = StepInfos(dones, truncations & ~terminations, final, skipped, info)
        self._count_episodes(rewards, skipped, infos)
        if self.skips_steps:
            self._resets_next = dones.copy()
        return self._taken(obs), rewards, dones, infos  # type: ignore[return-value]  # a sequence, of which SB3 needs no more

    def _count_episodes(self, rewards: Array, skipped: Array | None, infos: StepInfos) -> None:
        """What ``Monitor`` would say of the episodes that have ended."""
        self._returns += rewards
        self._lengths += 1
        if skipped is not None:
            self._returns[skipped], self._lengths[skipped] = 0.0, 0
        ended = infos.ended
        if len(ended) > 0:
            infos.set_episodes(self._returns[ended], self._lengths[ended], time.time() - self._start)
            self._returns[ended], self._lengths[ended] = 0.0, 0

    # --- the rest of a VecEnv -------------------------------------------------------------------------------------------

    def close(self) -> None:
        close = getattr(self.env, "close", None)
        if close is not None:
            close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self.env, attr_name, None) if attr_name == "render_mode" else getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if indices is not None:
            raise ValueError(
                f"`indices` is {indices!r}, but it must be None: the environments have their attributes together."
            )
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if indices is not None:
            raise ValueError(f"`indices` is {indices!r}, but it must be None: the environments are called together.")
        answer = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [answer for _ in range(self.num_envs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices


def _mode_of(env: Any, given: str | AutoresetMode | None) -> AutoresetMode:
    said = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    mode = said if given is None else given
    if mode is None:
        raise ValueError(
            f"`autoreset_mode` is None, but it must be one of {', '.join(map(repr, MODES))}: the metadata of "
            f"{type(env).__name__} do not say when it resets."
        )
    try:
        mode = AutoresetMode(mode)
    except ValueError:
        raise ValueError(f"`autoreset_mode` is {mode!r}, but it must be one of {', '.join(map(repr, MODES))}.") from None
    if said is not None and mode is not AutoresetMode(said):
        raise ValueError(
            f"`autoreset_mode` is {mode.value!r}, but it must be {AutoresetMode(said).value!r}, which the metadata of "
            f"{type(env).__name__} have, or left out."
        )
    return mode


def _on_host(reward: Any, terminated: Any, truncated: Any) -> tuple[Array, Array, Array]:
    """Rewards as float32 and ends as bool; one copy where they are tensors on another device."""
    if isinstance(reward, th.Tensor):
        packed = th.stack([reward.float(), terminated.float(), truncated.float()]).cpu().numpy()
        return packed[0], packed[1] != 0, packed[2] != 0
    return np.array(reward, np.float32), np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)


def _final_observations(info: Any, ended: Array) -> Any:
    """The last observations of the episodes that have ended, stacked."""
    final = info.get("final_obs")
    if final is None:
        raise RuntimeError(
            "Episodes have ended, but the environment, which resets in the same step, has no `info['final_obs']` with their "
            "last observations."
        )
    if not isinstance(final, np.ndarray) or final.dtype != object:
        return rows_at(final, ended)
    chosen = list(final[ended])
    if isinstance(chosen[0], dict):
        return {key: np.stack([obs[key] for obs in chosen]) for key in chosen[0]}
    return np.stack(chosen)


def _infos_of(info: dict[str, Any], index: int) -> dict[str, Any]:
    """What a reset says of one environment."""
    found = {}
    for name, value in info.items():
        mask = info.get(f"_{name}")
        if mask is not None and mask[index]:
            found[name] = value[index]
    return found
