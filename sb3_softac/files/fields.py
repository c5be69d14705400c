"""What the attributes in a model file must be, before a model is made of them."""

import itertools
import math
import pathlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy

from sb3_softac.files.allowed import check_attributes, derives_from, is_class
from sb3_softac.files.rebuilding import require
from sb3_softac.files.settling import check_buffer, check_space
from sb3_softac.update import Update

NUMBERS = (
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "n_envs", "verbose"),
    *("buffer_size", "batch_size", "learning_starts", "tau", "gamma", "gradient_steps", "n_steps", "_stats_window_size"),
    *("_current_progress_remaining", "start_time", "sde_sample_freq", "target_update_interval", "policy_delay"),
    *("reward_scale", "kernel_particles", "kernel_update_ratio", "value_particles"),
)
FLAGS = (
    *("use_sde", "use_sde_at_warmup", "optimize_memory_usage", "value_network", "soft_n_step", "_automatic_replay_buffer"),
    "normalize_observations",
)
#: what belongs to a process, and is in no file
ABSENT = ("env", "eval_env", "policy", "temperature", "_runtime", "_vec_normalize_env", "_logger", "_custom_logger")
MAPPINGS = ("policy_kwargs", "replay_buffer_kwargs")
#: a model whose weights a file does not hold would be refused in the end; this many bytes are never too many to be allocated
SLACK = 512 << 20


def refuse_nan(value: Any) -> None:
    """JSON as Python reads it has NaN, which compares as no number does.

    :raises Damage: one somewhere in ``value``
    """
    open_values = [value]
    while open_values:
        each = open_values.pop()
        require(not (isinstance(each, float) and math.isnan(each)), "a number is NaN")
        if isinstance(each, (list, dict)):
            open_values += each.values() if isinstance(each, dict) else each


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and type(value) is not bool and bool(value == value)


def _is_optional(value: Any, *types: Any) -> bool:
    return value is None or isinstance(value, types)


def _is_finite(value: Any, size: int | None = None) -> bool:
    """Whether it is a vector of numbers, as exact as Python's."""
    is_vector = type(value) is np.ndarray and value.dtype == np.float64 and value.ndim == 1
    return is_vector and size in (None, len(value)) and bool(np.isfinite(value).all())


def check_fields(algorithm: type[Any], values: dict[str, Any]) -> None:
    """Attributes of the right types, that hide no method of the algorithm.

    :raises Damage: one that is not
    """
    check_attributes(algorithm, values)
    for name, value in values.items():
        default = getattr(algorithm, name, None)
        require(default is None or is_class(default) or type(value) is type(default), f"`{name}` is {_shortened(value)}")
    checks: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(NUMBERS, _is_number),
        **dict.fromkeys(FLAGS, lambda value: isinstance(value, (bool, np.bool_))),
        **dict.fromkeys(ABSENT, lambda value: not isinstance(value, np.ndarray) and not value),
        **dict.fromkeys(MAPPINGS, lambda value: isinstance(value, dict) and all(type(key) is str for key in value)),
        "policy_class": lambda value: derives_from(value, (BasePolicy,)),
        "replay_buffer_class": lambda value: value is None or derives_from(value, (BaseBuffer,)),
        "update_class": lambda value: derives_from(value, (Update,)),
        "action_noise": lambda value: _is_optional(value, ActionNoise),
        "ep_info_buffer": lambda value: _is_optional(value, deque),
        "ep_success_buffer": lambda value: _is_optional(value, deque),
        "tensorboard_log": lambda value: _is_optional(value, str, pathlib.Path),
        "_last_obs": lambda value: _is_optional(value, np.ndarray, dict),
        "_last_original_obs": lambda value: _is_optional(value, np.ndarray, dict),
        "_last_episode_starts": lambda value: _is_optional(value, np.ndarray),
        "normalize_rewards": lambda value: value is None or _is_number(value),
        "_return_moments": lambda value: value is None or (_is_finite(value, 4) and bool((value[[0, 2, 3]] >= 0).all())),
        "_running_returns": lambda value: value is None or _is_finite(value),
        "_kept_noise": lambda value: _is_optional(value, np.ndarray),
        "_kept_steps": lambda value: _is_optional(value, np.ndarray),
        "_owed_steps": lambda value: type(value) is int and 0 <= value < 1 << 31,
        "_built_for": lambda value: _is_optional(value, dict),
    }
    for name, check in checks.items():
        if name in values:
            require(bool(check(values[name])), f"`{name}` is {_shortened(values[name])}")
    for name in ("observation_space", "action_space"):
        if name in values:
            check_space(values[name])
    if values.get("replay_buffer") is not None:
        check_buffer(values["replay_buffer"])


def check_sizes(values: dict[str, Any], n_bytes: int, slack: int = SLACK) -> None:
    """Networks are allocated before their weights are put in: the options must not describe far more than the file has.

    :param values: attributes
    :param n_bytes: of all weights in the file
    :param slack: so many bytes are allowed anyway
    :raises Damage: two layers of the described sizes would be far larger
    """
    sizes = sorted([1, 1, *_sizes(values.get("policy_kwargs"))])
    for name in ("observation_space", "action_space"):
        sizes += _sizes_of_space(values.get(name))
    options = values.get("policy_kwargs")
    n_critics = options.get("n_critics", 1) if isinstance(options, dict) else 1
    sizes.sort()
    described = 4 * sizes[-1] * sizes[-2] * (n_critics if isinstance(n_critics, int) else 1)
    described = max(described, 4 * _in_layers(options))
    require(described <= 16 * n_bytes + slack, f"layers of the sizes {sizes[-2:]} are far larger than its weights")


def _sizes(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [size for part in value.values() for size in _sizes(part)]
    if isinstance(value, (list, tuple)):
        require(len(value) <= 1000, "a network has more than 1000 layers")
        return [size for part in value for size in _sizes(part)]
    if isinstance(value, (float, np.floating)):  # 256.0 is a size, too
        magnitude = abs(float(value))
        return [int(magnitude)] if magnitude < 1e18 else []
    return [abs(int(value))] if isinstance(value, (int, np.integer)) else []


def _in_layers(value: Any) -> int:
    """Weights of all layers whose sizes stand in one list."""
    if isinstance(value, dict):
        return sum(map(_in_layers, value.values()))
    if not isinstance(value, (list, tuple)):
        return 0
    sizes = [size for part in value for size in _sizes(part)]
    return sum(one * two for one, two in itertools.pairwise(sizes))


def _sizes_of_space(space: Any) -> list[int]:
    if isinstance(space, spaces.Dict):
        return [size for part in space.spaces.values() for size in _sizes_of_space(part)]
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(space.nvec.sum())]
    return [math.prod(space.shape)] if isinstance(space, spaces.MultiBinary) else []


def _shortened(value: Any) -> str:
    return f"a {type(value).__name__}" if len(text := repr(value)) > 80 else text
