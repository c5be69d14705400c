"""What a checkpoint has put into an object is compared with what was there: the same kinds of values, of the same shapes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.files.rebuilding import require
from sb3_softac.files.settling import check_buffer, is_known

SCALARS = (bool, int, float, np.generic)
#: what the constructor of a replay buffer has made of the options of the model
OF_OPTIONS = (
    *("buffer_size", "n_envs", "obs_shape", "action_dim", "optimize_memory_usage", "handle_timeout_termination"),
    *("n_steps", "gamma", "copy_info_dict", "goal_selection_strategy", "n_sampled_goal", "her_ratio"),
)
#: rows are looked at in pieces of about so many bytes
PIECE = 16 << 20


def is_finite(values: Any) -> bool:
    """Whether an array, or a number, is made of finite numbers."""
    array = np.asarray(values)
    return array.dtype.kind in "biu" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def is_like(was: Any, value: Any) -> bool:
    """Whether ``value`` can be where ``was`` is; a container may have become longer, and None may have become anything."""
    if was is None or was is value:
        return True
    if isinstance(was, np.ndarray) and was.ndim:
        fits = isinstance(value, np.ndarray) and (was.size == 0 or (value.shape == was.shape and value.dtype == was.dtype))
        return bool(fits)
    if isinstance(was, (bool, np.bool_)):
        return isinstance(value, (bool, np.bool_))
    if isinstance(was, (int, np.integer)):
        return isinstance(value, (int, np.integer)) and type(value) is not bool and abs(int(value)) < 1 << 63
    if isinstance(was, (float, np.floating, np.ndarray)):
        return np.ndim(value) == 0 and isinstance(value, (*SCALARS, np.ndarray))
    if isinstance(was, Mapping) and isinstance(value, Mapping):
        of_arrays = any(isinstance(part, np.ndarray) for part in was.values())
        keys_fit = not of_arrays or was.keys() == value.keys()
        return keys_fit and all(is_like(part, value[key]) for key, part in was.items() if key in value)
    return type(value) is type(was)


def check_alike(whose: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """:raises Damage: an attribute has become something else"""
    for name, before in was.items():
        require(is_like(before, now[name]), f"`{name}` of {whose} was a {type(before).__name__}, and is another thing now")


def check_vector(layer: Any) -> None:
    """:raises Damage: no layer of a vector of environments can be in this state"""
    if isinstance(layer, VecEnv):
        seeds, options = layer._seeds, layer._options
        right = len(seeds) == len(options) == layer.num_envs and all(type(part) is dict for part in options)
        right = right and all(seed is None or (type(seed) is int and 0 <= seed < 1 << 63) for seed in seeds)
        require(right, "the environments have no seeds and options")
    if isinstance(layer, VecNormalize):
        _check_statistics(layer)


def _check_statistics(layer: VecNormalize) -> None:
    of_observations = getattr(layer, "obs_rms", {})
    by_key = of_observations if isinstance(of_observations, dict) else {None: of_observations}
    shapes = {key: (space[key] if key is not None else space).shape for key in by_key for space in [layer.observation_space]}  # type: ignore[index]
    for key, statistics in [*by_key.items(), ("returns", layer.ret_rms)]:
        require(isinstance(statistics, RunningMeanStd), "VecNormalize has no statistics")
        shape = () if statistics is layer.ret_rms else shapes[key]
        right = np.shape(statistics.mean) == np.shape(statistics.var) == shape and np.ndim(statistics.count) == 0
        finite = is_finite(statistics.mean) and is_finite(statistics.var) and is_finite(statistics.count)
        require(right and finite, "the statistics of VecNormalize are none")
        require(bool(np.all(statistics.var >= 0)) and statistics.count > 0, "the statistics of VecNormalize are none")


def check_attributes_of_buffer(buffer: Any, was: Mapping[str, Any]) -> None:
    """:raises Damage: a replay buffer is no longer what its constructor has made of the options, but for where it ends"""
    if is_known(buffer):
        check_alike("the replay buffer", was, vars(buffer))
        for name in OF_OPTIONS:
            require(name not in was or was[name] == getattr(buffer, name), f"`{name}` of the replay buffer is another one")
    check_buffer(buffer)


def is_in(space: Any, values: Any) -> bool:
    """Whether rows of observations or actions are numbers that a network can read."""
    if isinstance(space, spaces.Discrete):
        return bool(((values >= space.start) & (values < space.start + space.n)).all())
    if isinstance(space, spaces.MultiDiscrete):
        return bool(((values >= space.start) & (values < space.start + space.nvec)).all())
    if isinstance(space, spaces.MultiBinary):
        return bool(((values == 0) | (values == 1)).all())
    return is_finite(values)


def check_transitions(buffer: ReplayBuffer, rows: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """:raises Damage: numbers in the filled part of a replay buffer that no environment has given"""
    if not is_known(buffer):
        return
    n_filled = buffer.size()
    for name, part in rows.items():
        own, _, key = name.partition(".")
        space = buffer.action_space if own == "actions" else buffer.observation_space if "observations" in own else None
        space = space[key] if key and isinstance(space, spaces.Dict) else space
        step = max(1, PIECE // max(part[:1].nbytes, 1))
        for start in range(0, n_filled, step):
            values = part[start : min(start + step, n_filled)]
            right = bool(((values == 0) | (values == 1)).all()) if own in ("dones", "timeouts") else is_in(space, values)
            require(right, f"`{name}` of the replay buffer holds what no environment gives")
    if isinstance(buffer, HerReplayBuffer):
        _check_episodes(buffer, n_filled)


def _check_episodes(buffer: HerReplayBuffer, n_filled: int) -> None:
    n_rows, start, length = buffer.buffer_size, buffer.ep_start[:n_filled], buffer.ep_length[:n_filled]
    inside = ((start >= 0) & (start < n_rows) & (length >= 0) & (length <= n_rows)).all()
    at = (np.arange(n_filled)[:, None] - start) % n_rows
    current = buffer._current_ep_start
    right = bool(inside) and bool((at < length)[length > 0].all()) and bool(((current >= 0) & (current < n_rows)).all())
    require(right, "the episodes of the replay buffer are none")
