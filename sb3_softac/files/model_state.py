"""What a checkpoint says of a model, looked at before the model gets it."""

import copy
import math
import operator
import pathlib
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.files.allowed import derives_from
from sb3_softac.files.checking import is_finite, is_in
from sb3_softac.files.fields import NUMBERS, check_fields, check_sizes
from sb3_softac.files.rebuilding import require
from sb3_softac.files.unpickling import printable

COUNTERS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates")
#: networks of so many bytes may be described that are not in the files
SLACK = 32 << 20
#: rows of a replay buffer that has Python objects for each, which take memory when it is made
OBJECTS = 1_000_000
#: settings of optimizers that are chosen for a device
OF_DEVICE = ("foreach", "fused", "capturable")
#: averages of squares
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
NEEDED = frozenset(("step", "exp_avg", "exp_avg_sq"))


def check_values_of(algorithm: type[Any], values: dict[str, Any], env: VecEnv, n_bytes: int, n_steps: int) -> None:
    """Attributes that a model of this algorithm can have in this environment.

    :param n_bytes: of all arrays of the checkpoint
    :param n_steps: of the checkpoint
    :raises Damage: one that it cannot have
    """
    check_fields(algorithm, values)
    with_spaces = {**values, "observation_space": env.observation_space, "action_space": env.action_space}
    check_sizes(with_spaces, n_bytes, SLACK)
    for name in NUMBERS:
        if name in values:
            require(not isinstance(values[name], int) or abs(values[name]) < 1 << 63, f"`{name}` is too large")
    for name in COUNTERS:
        require(type(values.get(name)) is int and values[name] >= 0, f"`{name}` is no number of steps")
    require(values["num_timesteps"] == n_steps, "`num_timesteps` is that of another checkpoint")
    progress = values.get("_current_progress_remaining")
    require(isinstance(progress, (int, float)) and math.isfinite(progress), "`_current_progress_remaining` is none")
    for name in ("_last_obs", "_last_original_obs"):
        require(_is_observation(values.get(name), env.observation_space, env.num_envs), f"`{name}` is no observation")
    starts = values.get("_last_episode_starts")
    fits = starts is None or (starts.shape == (env.num_envs,) and starts.dtype == np.bool_)
    require(fits, "`_last_episode_starts` are none")
    running = values.get("_running_returns")
    require(running is None or running.shape == (env.num_envs,), "`_running_returns` are those of other environments")
    _check_kept_noise(values.get("_kept_noise"), values.get("_kept_steps"), env)
    window, seed = values.get("_stats_window_size"), values.get("seed")
    require(type(window) is int and window > 0, "`_stats_window_size` is no number of episodes")
    require(seed is None or (isinstance(seed, (int, np.integer)) and 0 <= int(seed) < 1 << 63), "`seed` is none")
    _check_statistics(values)


def _is_observation(value: Any, space: spaces.Space[Any], n_envs: int) -> bool:
    if value is None:
        return True
    if isinstance(space, spaces.Dict):
        parts = isinstance(value, dict) and value.keys() == space.spaces.keys()
        return parts and all(_is_observation(value[key], part, n_envs) for key, part in space.spaces.items())
    fits = type(value) is np.ndarray and value.shape == (n_envs, *(space.shape or ())) and value.dtype.kind in "biuf"
    return fits and is_in(space, value)


def _check_kept_noise(noise: Any, steps_left: Any, env: VecEnv) -> None:
    if noise is None and steps_left is None:
        return
    require(noise is not None and steps_left is not None, "of `_kept_noise` and `_kept_steps` one is missing")
    shape = (env.num_envs, math.prod(env.action_space.shape or ()))
    require(noise.shape == shape and noise.dtype == np.float32 and is_finite(noise), "`_kept_noise` is none")
    fits = steps_left.shape == shape[:1] and steps_left.dtype == np.int64 and bool((steps_left >= 0).all())
    require(fits, "`_kept_steps` are no numbers of steps")


def _check_statistics(values: Mapping[str, Any]) -> None:
    for name in ("ep_info_buffer", "ep_success_buffer"):
        buffer: Any = values.get(name)
        require(type(buffer) is deque, f"`{name}` is none")
        for part in buffer:
            if name == "ep_info_buffer":
                require(isinstance(part, dict) and all(_is_number(part.get(key)) for key in ("r", "l")), f"`{name}` is none")
            else:
                require(_is_number(part), f"`{name}` is none")


def _is_number(value: Any) -> bool:
    return np.ndim(value) == 0 and isinstance(value, (bool, int, float, np.number, np.bool_, np.ndarray))


def check_rows(values: Mapping[str, Any], expected: Mapping[str, Any], n_transitions: int) -> None:
    """:raises ValueError: a replay buffer with Python objects in each row has far more rows than transitions"""
    rows = values.get("buffer_size")
    if not derives_from(values.get("replay_buffer_class"), (HerReplayBuffer,)) or "buffer_size" in expected:
        return
    if isinstance(rows, (int, float)) and rows > max(OBJECTS, 20 * n_transitions):
        raise ValueError(
            f"`buffer_size` of the run is {rows}, and each row of a HerReplayBuffer takes memory, but the checkpoint has only "
            f"{n_transitions} transitions: `buffer_size={rows}` says that this is meant."
        )


def kept_logs(values: dict[str, Any], expected: Mapping[str, Any]) -> Any:
    """Where TensorBoard's logs go on: only where there are some, or where the caller says; None elsewhere."""
    folder = values.get("tensorboard_log")
    if folder is None or "tensorboard_log" in expected or any(pathlib.Path(folder).glob("*/events.out.tfevents.*")):
        return folder
    warnings.warn(
        f"TensorBoard's logs of the run were in {str(folder)[:200]!a}, where there are none now: nothing is logged there. "
        f"`resume(..., tensorboard_log={str(folder)[:200]!a})` logs there again.",
        stacklevel=6,
    )
    return None


def check_noise(noise: Any, n_envs: int, n_actions: int) -> None:
    """:raises Damage: what should be action noise makes none for the actions of these environments"""
    require(isinstance(noise, ActionNoise), "the action noise is none")
    drawn = copy.deepcopy(noise)()
    require(np.shape(drawn) in ((), (n_actions,), (n_envs, n_actions)) and is_finite(drawn), "the action noise is none")


def check_logged(logged: Any) -> None:
    """:raises Damage: values of a logger that it could not write"""
    names = ("name_to_value", "name_to_count", "name_to_excluded")
    require(type(logged) is dict and logged.keys() == set(names), "the logger has no values")
    require(all(type(part) is dict and all(type(key) is str for key in part) for part in logged.values()), "a log has no name")
    values, counts, excluded = (logged[name].values() for name in names)
    require(all(is_logged(value) for value in values), "a log is neither a number nor a text")
    require(all(type(count) is int and 0 <= count < 1 << 62 for count in counts), "a log has no count")
    for outputs in excluded:
        parts = outputs if type(outputs) in (tuple, list) else [outputs or ""]
        require(all(type(part) is str for part in parts), "a log is excluded from nothing")


def is_logged(value: Any) -> bool:
    """Whether a value of a logger is in a checkpoint; figures and videos are not."""
    return isinstance(value, str) or _is_number(value)


# --- weights -----------------------------------------------------------------------------------------------------------


def check_parameters(model: Any, parameters: Any) -> None:
    """Weights and averages that a model may get.

    :raises ValueError: they are those of other networks, as where the code of one has changed
    :raises Damage: they are not finite, or none
    """
    names, _ = model._get_torch_save_params()
    require(type(parameters) is dict and parameters.keys() == set(names), "it has the weights of another model")
    for name, state in parameters.items():
        owner = operator.attrgetter(name)(model)
        require(isinstance(state, dict), f"`{name}` has no state")
        if isinstance(owner, th.optim.Optimizer):
            _check_optimizer(name, owner, state)
        else:
            _check_weights(name, owner, state)


def _check_weights(name: str, owner: Any, state: dict[Any, Any]) -> None:
    own, trained = owner.state_dict(), dict(owner.named_parameters())
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items() if isinstance(tensor, th.Tensor)}
    theirs = {key: tuple(tensor.shape) for key, tensor in state.items() if isinstance(tensor, th.Tensor)}
    if shapes != theirs:
        first = next(key for key in [*shapes, *theirs] if shapes.get(key) != theirs.get(key))
        here, there = (f"of the shape {found[first]}" if first in found else "missing" for found in (shapes, theirs))
        raise ValueError(
            f"The networks are not those of the run: `{printable(first)}` of `{name}` is {here} here, and {there} in the "
            "checkpoint: build them as they were. A new model can `warm_start` from a file of the old one."
        )
    for key, tensor in own.items():
        given = state[key]
        if not isinstance(tensor, th.Tensor):
            continue
        require(given.dtype == tensor.dtype, f"`{key}` of `{name}` has another type")
        finite = bool(th.isfinite(given).all()) if key in trained else not bool(th.isnan(given).any())
        require(finite, f"`{key}` of `{name}` is not finite")
        if key.startswith("normalizer."):
            sound = bool(th.isfinite(given).all()) and (key.endswith("mean") or bool((given >= 0).all()))
            require(sound, f"`{key}` of `{name}` is none of the statistics of observations")


def _check_optimizer(name: str, optimizer: th.optim.Optimizer, state: dict[Any, Any]) -> None:
    own = optimizer.state_dict()["param_groups"]
    groups: Any = state.get("param_groups")
    averages: Any = state.get("state")
    require(type(groups) is list and len(groups) == len(own), f"`{name}` has other groups")
    require(state.keys() == {"param_groups", "state"} and isinstance(averages, dict), f"`{name}` has no state")
    for group, own_group in zip(groups, own, strict=True):
        require(isinstance(group, dict) and group.keys() <= own_group.keys(), f"`{name}` has other settings")
        require(group.get("params") == own_group["params"], f"`{name}` has other weights")
        for key, value in group.items():
            require(key == "params" or _is_setting(key, own_group[key], value), f"`{key}` of `{name}` is none")
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parts in averages.items():
        require(type(index) is int and 0 <= index < len(trained) and isinstance(parts, dict), f"`{name}` has other weights")
        require(not isinstance(optimizer, th.optim.Adam) or not parts or parts.keys() >= NEEDED, f"`{name}` has no averages")
        for key, value in parts.items():
            require(_is_average(key, value, trained[index]), f"`{key}` of `{name}` is none")


def _is_setting(name: str, own: Any, value: Any) -> bool:
    if name in OF_DEVICE:
        return value in (None, True, False)
    if isinstance(own, (tuple, list)):
        return type(value) is type(own) and len(value) == len(own) and all(_is_setting("", 0.0, n) and n < 1 for n in value)
    if isinstance(own, (bool, str, type(None))):
        return type(value) is type(own) and bool(value == own)
    if isinstance(value, th.Tensor):
        return value.ndim == 0 and bool(th.isfinite(value)) and bool(value >= 0)
    return isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value) and value >= 0


def _is_average(name: Any, value: Any, parameter: th.Tensor) -> bool:
    if name == "step" or not isinstance(value, th.Tensor):
        number = value.item() if isinstance(value, th.Tensor) and value.numel() == 1 else value
        is_number = isinstance(number, (int, float)) and math.isfinite(number) and number >= 0
        return type(name) is str and (is_number or (value is None and name != "step"))
    fits = type(name) is str and value.shape == parameter.shape and value.dtype == parameter.dtype
    return fits and bool(th.isfinite(value).all()) and (name not in SQUARES or bool((value >= 0).all()))
