"""What may enter a replay buffer: finite data of one trajectory."""

import warnings
from typing import Any, NoReturn

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.collect.vector import VectorEnvAdapter
from sb3_softac.replay import TensorReplayBuffer

LARGEST_FLOAT32 = np.finfo(np.float32).max  # not a float: NumPy would round it to the type of what it is compared with


def find_non_finite(cause: str, values: Any) -> str | None:
    """Where ``values`` are not finite once they are float32, in words; None if all are.

    :param cause: name of the values
    :param values: array, what an environment returned for one, or a dict of them
    """
    if isinstance(values, dict):
        found = (find_non_finite(f"{cause} {key!r}", part) for key, part in values.items())
        return next(filter(None, found), None)
    if isinstance(values, th.Tensor):
        if not values.is_floating_point() or bool((values.abs() <= float(LARGEST_FLOAT32)).all()):
            return None
        values = values.cpu().numpy()
    values = np.asarray(values)  # a terminal observation is whatever the environment returned
    if values.dtype.kind != "f" or (np.abs(values) <= LARGEST_FLOAT32).all():
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False))  # as the networks will see them
    if finite.all():
        return None
    first = tuple(np.argwhere(~finite)[0])
    return f"{cause} ({values[first]} at index {list(map(int, first))})"


def check_statistics(vec_normalize: VecNormalize | None) -> None:
    """After one NaN, VecNormalize would turn everything into NaN, and the environment would be blamed for it.

    :raises ValueError: statistics that are not finite
    """
    if vec_normalize is None:
        return
    statistics = getattr(vec_normalize, "obs_rms", {})
    each = statistics.values() if isinstance(statistics, dict) else [statistics]
    if not all(np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() for rms in [*each, vec_normalize.ret_rms]):
        raise ValueError(
            "The statistics of VecNormalize are not finite, as after a NaN in an observation or reward: "
            "reload them with VecNormalize.load, or start with a new VecNormalize."
        )


def check_normalizers(env: VecEnv | None, observations: bool, rewards: bool) -> None:
    """What the model normalises must come to it as it is.

    :param env: environment as the model has it, or None
    :param observations: whether the model normalises them
    :param rewards: likewise
    :raises ValueError: VecNormalize does, too
    """
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize):
            for name, both in (("observations", observations and layer.norm_obs), ("rewards", rewards and layer.norm_reward)):
                if both:
                    theirs = "norm_obs" if name == "observations" else "norm_reward"
                    raise ValueError(
                        f"`normalize_{name}` is on, but VecNormalize in `env` normalises {name}, too: leave it out, or pass "
                        f"VecNormalize(..., {theirs}=False)."
                    )
        layer = layer.venv


def check_wrappers(env: VecEnv) -> None:
    """VecNormalize gives back original observations: they must have the shape of the ones that the model sees.

    :param env: environment as the model has it
    :raises ValueError: VecNormalize below a wrapper that changes observations
    """
    above: list[str] = []
    layer: Any = env
    while isinstance(layer, VecEnvWrapper):
        if isinstance(layer, VecNormalize) and above and not _same_shapes(env.observation_space, layer.observation_space):
            order = " and ".join(dict.fromkeys(above))
            right = f"{above[-1]}(DummyVecEnv([...]){', n_stack' if issubclass(type(env), VecFrameStack) else ''})"
            raise ValueError(
                f"`env` has VecNormalize below {order}, but it must be the other way round, because the replay buffer stores "
                f"unnormalised observations of the shape that the model sees: VecNormalize({right})."
            )
        above.append(type(layer).__name__)
        layer = layer.venv


def check_vector(env: VecEnv, buffer: ReplayBuffer | None) -> None:
    """What vectorised environments hand out must have a place in the replay buffer.

    :param env: environment as the model has it
    :param buffer: its replay buffer
    :raises ValueError: tensors, or steps that are no transitions, and something that does not know them
    """
    inner: Any = env.unwrapped
    if not isinstance(inner, VectorEnvAdapter):
        return
    has_place = isinstance(buffer, TensorReplayBuffer)
    if inner.skips_steps and not has_place:
        _refuse_buffer(buffer, "spends a step on each reset, which is no transition")
    if (env is inner and has_place) or not inner.hands_out_tensors():
        return
    if not has_place:
        _refuse_buffer(buffer, "hands out tensors")
    raise ValueError(
        f"`env` hands out tensors, but a {type(env).__name__} around it takes arrays: it must be left out. "
        "`normalize_observations=True` normalises tensors, and episodes are counted anyway."
    )


def _refuse_buffer(buffer: ReplayBuffer | None, reason: str) -> NoReturn:
    raise ValueError(
        f"`replay_buffer_class` is {type(buffer).__name__}, but it must be TensorReplayBuffer here: the environment {reason}."
    )


def _same_shapes(left: spaces.Space[Any], right: spaces.Space[Any]) -> bool:
    if isinstance(left, spaces.Dict) and isinstance(right, spaces.Dict):
        return left.spaces.keys() == right.spaces.keys() and all(
            _same_shapes(left.spaces[key], right.spaces[key]) for key in left.spaces
        )
    return left.shape == right.shape


def check_compatible_buffer(
    buffer: ReplayBuffer, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int
) -> None:
    """Only a replay buffer of the same environments can be continued.

    :param buffer: the buffer
    :param observation_space: of the model
    :param action_space: of the model
    :param n_envs: number of environments of the model
    :raises ValueError: another number of environments, or other spaces
    """
    if buffer.n_envs != n_envs:
        raise ValueError(
            f"The replay buffer is for {buffer.n_envs} environments, but the model has {n_envs}: `set_env` one with "
            f"{buffer.n_envs}, or start with an empty buffer."
        )
    for name, theirs, ours in (
        ("observation", buffer.observation_space, observation_space),
        ("action", buffer.action_space, action_space),
    ):
        if theirs != ours:
            raise ValueError(f"The replay buffer is for the {name} space {theirs}, but the model has {ours}.")


def close_trajectory(buffer: ReplayBuffer | None) -> None:
    """Let no n-step return, hindsight goal or next observation reach from the newest transition into what is stored next.

    :param buffer: replay buffer, or None
    """
    if buffer is None or not (buffer.full or buffer.pos > 0):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the trajectory is truncated is what is wanted here
            buffer.truncate_last_trajectory()
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    if buffer.optimize_memory_usage:
        buffer.dones[last] = True  # as SB3 does: the next observation will be overwritten
    elif hasattr(buffer, "timeouts"):
        buffer.timeouts[last] = (buffer.timeouts[last] != 0) | (buffer.dones[last] == 0)  # arrays or tensors


class StoredUpTo:
    """The end of a replay buffer, and the observation that would go on from there."""

    def __init__(self, buffer: ReplayBuffer | None, next_obs: Any) -> None:
        self.buffer, self.next_obs = buffer, next_obs
        self.position = None if buffer is None else (buffer.pos, buffer.full)

    def continues(self, buffer: ReplayBuffer | None, next_obs: Any) -> bool:
        """Whether a transition that starts at ``next_obs`` may be stored into ``buffer`` as the next one."""
        return (
            buffer is not None
            and buffer is self.buffer
            and next_obs is self.next_obs
            and self.position == (buffer.pos, buffer.full)
        )
