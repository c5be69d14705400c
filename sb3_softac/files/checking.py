"""What a checkpoint has put into an object is compared with what was there: the same kinds of values, of the same shapes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac.files.rebuilding import require

SCALARS = (bool, int, float, np.generic)


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


def check_statistics(layer: Any) -> None:
    """:raises Damage: statistics of VecNormalize that nothing can be normalised with"""
    if not isinstance(layer, VecNormalize):
        return
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
