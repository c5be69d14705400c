"""Gradient steps while the environments step.

Environments in other processes leave the learner idle between ``step_async`` and ``step_wait``. There it does the gradient
steps that belong to the rollout before; the policy that acts then lags by one rollout. All of it happens in one thread, so
the order of random numbers, callbacks and updates is the same in every run.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from sb3_softac.replay import TensorReplayBuffer

#: buffers that ask no environment for anything when they are sampled; HER lets it compute rewards
INDEPENDENT = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, TensorReplayBuffer)


class Overlapped(VecEnvWrapper):
    """Environments that step while something else is done.

    :param venv: the environments
    :param before: called in front of each step, while the environments can still be asked
    :param meanwhile: called while they step
    """

    def __init__(self, venv: VecEnv, before: Callable[[], None], meanwhile: Callable[[], None]) -> None:
        super().__init__(venv)
        self._before, self._meanwhile = before, meanwhile

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self._before()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        try:
            self._meanwhile()
        except BaseException:
            with contextlib.suppress(Exception):
                self.venv.step_wait()  # what is under way would be taken for the answer to the next question
            raise
        return self.venv.step_wait()


def asks_no_environment(buffer: ReplayBuffer | None) -> bool:
    """Whether a buffer can be sampled while the environments step."""
    return type(buffer) in INDEPENDENT


def share(total: int, part: int, n_parts: int) -> int:
    """How much of ``total`` falls to a part (from 0) if it is spread over all; what is beyond them gets nothing."""
    done, todo = min(part, n_parts), min(part + 1, n_parts)
    return total * todo // n_parts - total * done // n_parts


def refuse_own_train(algorithm: Any) -> None:
    """Behind a rollout SB3 calls ``train``, which puts its gradient steps off: one of somebody's own would not.

    :raises ValueError: the algorithm has one
    """
    module = getattr(type(algorithm).train, "__module__", "") or ""
    if "train" in vars(algorithm) or not module.startswith("sb3_softac."):
        raise ValueError(
            f"`overlap` is True, but it must be False with a {type(algorithm).__name__} that has a `train` of its own: its "
            "gradient steps would not run while the environments step. An update of your own (`update_class`) does."
        )


def refuse_own_step(env: VecEnv | None) -> None:
    """Environments must take a step in two halves.

    :raises ValueError: a layer has a ``step`` of its own, whose halves nobody knows
    """
    layer: Any = env
    while isinstance(layer, VecEnv):
        if type(layer).step is not VecEnv.step or "step" in vars(layer):
            raise ValueError(
                f"`overlap` is True, but it must be False with a {type(layer).__name__}: it has a `step` of its own, and "
                "gradient steps run between `step_async` and `step_wait`."
            )
        layer = getattr(layer, "venv", None) if isinstance(layer, VecEnvWrapper) else None


def warn_of_no_overlap(env: VecEnv) -> None:
    """Say where nothing happens between the two halves of a step."""
    inner: Any = env.unwrapped
    if isinstance(inner, DummyVecEnv) or getattr(inner, "steps_in_this_process", False):
        warnings.warn(
            f"`overlap` is True, but a {type(inner).__name__} steps its environments in this process: nothing overlaps, and "
            "the policy that acts lags by one rollout all the same. SubprocVecEnv steps them meanwhile.",
            stacklevel=4,
        )
