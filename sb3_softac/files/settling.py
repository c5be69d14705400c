"""What is checked once a pickle has been read: that its values have an end, and its spaces and replay buffers one shape."""

from collections import OrderedDict, deque
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.files.allowed import Rebuilt
from sb3_softac.files.rebuilding import require
from sb3_softac.replay import TensorReplayBuffer

MAX_DEPTH = 50
LARGEST_SPACE = 1 << 24
LEAVES = frozenset((int, float, bool, str, bytes, type(None)))


def check_values(value: Any, created: list[Any], max_values: int) -> None:
    """Whoever looks at all values one after the other, as a comparison does, must come to an end.

    :param value: what was read
    :param created: objects in it
    :param max_values: how many values it may have, each counted as often as it appears
    :raises Damage: nested without an end, too deep, or so often that there are more
    """
    ids = {id(each) for each in created}
    open_values, n_values = [(value, 0)], 1
    while open_values:
        each, depth = open_values.pop()
        require(type(each) is not Rebuilt, "it has a function where a value is needed")
        parts = _parts(each, ids)
        if parts:
            n_values += len(parts)
            require(n_values <= max_values and depth <= MAX_DEPTH, "its values are nested without an end")
            open_values += [(part, depth + 1) for part in parts if type(part) not in LEAVES]


def _parts(value: Any, created: set[int]) -> Any:
    kind = type(value)
    if kind in (list, tuple, set, frozenset, deque):
        return value
    if kind in (dict, OrderedDict):
        return value.values()
    if kind is np.ndarray and value.dtype.hasobject:
        return value.ravel().tolist()
    if id(value) in created:
        return vars(value).values()
    return ()


def check_space(space: Any) -> None:
    """:raises Damage: the parts of a space contradict each other, or it is none"""
    kind = type(space)
    if kind is spaces.Dict:
        parts = space.spaces
        require(isinstance(parts, dict) and all(type(key) is str for key in parts), "a space of several has no names")
        for part in parts.values():
            require(type(part) is not spaces.Dict, "a space of several is inside another")
            check_space(part)
        return
    require(kind in (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary), "a space is none")
    shape = space._shape
    require(type(shape) is tuple and all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape), "a space has no shape")
    require(isinstance(space.dtype, np.dtype), "a space has no data type")
    arrays = {spaces.Box: ("low", "high", "bounded_below", "bounded_above"), spaces.MultiDiscrete: ("nvec", "start")}
    for name in arrays.get(kind, ()):
        array = getattr(space, name)
        require(type(array) is np.ndarray and array.dtype.kind in "biuf", f"`{name}` of a space is no array")
        require(array.size <= LARGEST_SPACE, f"`{name}` of a space is larger than that of any environment")
        require(array.shape == shape, f"`{name}` of a space has the shape {array.shape}, and the space {shape}")
    if kind is spaces.MultiDiscrete:
        require(bool((space.nvec > 0).all()), "a space has no values")
    if kind is spaces.Discrete:
        require(all(isinstance(n, (int, np.integer)) for n in (space.n, space.start)) and space.n > 0, "a space has no values")
    if kind is spaces.MultiBinary:
        require(shape == (space.n if type(space.n) is tuple else (space.n,)), "a space has two shapes")


def _check_rows(name: str, array: Any, n_rows: int, n_envs: int, shape: Any = None) -> None:
    require(type(array) in (np.ndarray, th.Tensor), f"`{name}` is no array")
    expected = (n_rows, n_envs, *(array.shape[2:] if shape is None else shape))
    require(array.shape == expected, f"`{name}` has the shape {array.shape}, but it must have {expected}")


def check_buffer(buffer: Any) -> None:
    """:raises Damage: it is no replay buffer, or its arrays are not those of one"""
    require(isinstance(buffer, ReplayBuffer), f"it holds a {type(buffer).__name__}, and no replay buffer")
    check_space(buffer.observation_space)
    check_space(buffer.action_space)
    n_rows, n_envs, position = buffer.buffer_size, buffer.n_envs, buffer.pos
    for name, number in (("buffer_size", n_rows), ("n_envs", n_envs), ("pos", position)):
        require(isinstance(number, (int, np.integer)) and type(number) is not bool, f"`{name}` is no number")
    require(n_rows > 0 and n_envs > 0 and 0 <= position < n_rows, "its position is outside of it")
    require(isinstance(buffer.full, (bool, np.bool_)), "`full` is neither True nor False")
    if is_known(buffer):  # a user-defined buffer may hold its data as it likes
        _check_arrays(buffer, n_rows, n_envs)


def is_known(buffer: Any) -> bool:
    """Whether a replay buffer is SB3's or ours, so that its rows are known."""
    return type(buffer).__module__.startswith("stable_baselines3.") or type(buffer) is TensorReplayBuffer


def _check_arrays(buffer: Any, n_rows: int, n_envs: int) -> None:
    of_spaces = buffer.obs_shape == get_obs_shape(buffer.observation_space)
    require(of_spaces and buffer.action_dim == get_action_dim(buffer.action_space), "its rows are not those of its spaces")
    for name in ("observations", "next_observations"):
        stored = getattr(buffer, name, None)
        if name == "next_observations" and buffer.optimize_memory_usage is True and stored is None:
            continue
        by_key = stored if isinstance(stored, dict) else {"": stored}
        shapes = buffer.obs_shape if isinstance(stored, dict) else {"": buffer.obs_shape}
        require(type(shapes) is dict and shapes.keys() == by_key.keys(), f"`{name}` has other keys")
        for key, array in by_key.items():
            _check_rows(f"{name}{key and '.'}{key}", array, n_rows, n_envs, shapes[key])
    _check_rows("actions", buffer.actions, n_rows, n_envs, (buffer.action_dim,))
    of_old_sb3 = not hasattr(buffer, "handle_timeout_termination")  # which did not know time limits
    names = ["rewards", "dones", *([] if of_old_sb3 else ["timeouts"])]
    if isinstance(buffer, HerReplayBuffer):
        names += ["ep_start", "ep_length", "infos"]
        require(np.shape(buffer._current_ep_start) == (n_envs,), "`_current_ep_start` has another shape")
    if isinstance(buffer, TensorReplayBuffer):
        names.append("skipped")
        _check_tensors(buffer)
    for name in names:
        _check_rows(name, getattr(buffer, name), n_rows, n_envs, ())
    gamma = getattr(buffer, "gamma", 1.0)
    require(isinstance(gamma, (int, float)) and gamma == gamma, "`gamma` is no number")


def _check_tensors(buffer: TensorReplayBuffer) -> None:
    """:raises Damage: the rows are of other types than their spaces, or options are none"""
    require(type(buffer.n_steps) is int and buffer.n_steps > 0, "`n_steps` is no number of steps")
    require(buffer.n_steps == 1 or type(vars(buffer).get("gamma")) in (int, float), "`gamma` is no number")
    require(0.0 <= vars(buffer).get("gamma", 1.0) <= 1.0, "`gamma` is no discount")
    require(buffer.optimize_memory_usage is False, "`optimize_memory_usage` is not False")
    require(type(buffer.handle_timeout_termination) is bool, "`handle_timeout_termination` is neither True nor False")
    for name, dtype in buffer.row_types().items():
        stored = vars(buffer)[name]
        for key, rows in stored.items() if isinstance(stored, dict) else [("", stored)]:
            wanted = dtype[key] if isinstance(dtype, dict) else dtype
            require(rows.dtype == wanted, f"`{name}{key and '.'}{key}` is of {rows.dtype}, but it must be of {wanted}")
    require(type(buffer.has_skipped) is bool, "`has_skipped` is neither True nor False")
    require(buffer.has_skipped or not bool(buffer.skipped.any()), "`has_skipped` is not what its rows say")
