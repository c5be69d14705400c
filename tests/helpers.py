"""What several tests share: filled replay buffers, injected noise, small models."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_softac import SoftAC
from sb3_softac.engine import missing_for_compilation

OBS_DIM, ACTION_DIM = 4, 2
MISSING = missing_for_compilation(th.device("cpu"))
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"compiling needs {MISSING}")
#: values of `compile` for a test of what is learned
BOTH_WAYS = [False, pytest.param(True, marks=needs_compiler)]
SMALL: dict[str, Any] = {"net_arch": [16, 16]}


class RandomEnv(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """Random observations and rewards, episodes of five steps: for tests that look at bookkeeping, not at learning."""

    def __init__(self, terminates: bool = True, n_steps: int = 5) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)
        self.action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
        self.terminates = terminates
        self.n_steps = n_steps
        self.step_count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.step_count = 0
        return self._observe(), {}

    def step(self, action: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self.step_count += 1
        done = self.step_count >= self.n_steps
        return self._observe(), float(self.np_random.normal()), done and self.terminates, done and not self.terminates, {}

    def _observe(self) -> np.ndarray[Any, Any]:
        return self.np_random.uniform(-1.0, 1.0, OBS_DIM).astype(np.float32)


def make_model(**kwargs: Any) -> SoftAC:
    """A small ``SoftAC`` on ``RandomEnv``, with a logger, so that ``train()`` can be called directly."""
    kwargs.setdefault("policy_kwargs", SMALL)
    kwargs.setdefault("buffer_size", 500)
    kwargs.setdefault("device", "cpu")
    kwargs.setdefault("seed", 0)
    model = SoftAC("MlpPolicy", kwargs.pop("env", None) or RandomEnv(), **kwargs)
    model.set_logger(Logger(None, []))
    return model


def fill_buffer(model: OffPolicyAlgorithm, n_transitions: int = 200, seed: int = 0) -> None:
    """Add random transitions: one in ten ends an episode, every other one of them by a time-out."""
    buffer, rng = model.replay_buffer, np.random.default_rng(seed)
    assert buffer is not None
    shape = (model.n_envs, *buffer.obs_shape)
    space = model.action_space

    def actions() -> Any:
        if isinstance(space, spaces.Discrete):
            return rng.integers(space.start, space.start + space.n, (model.n_envs, 1))
        return rng.uniform(-1, 1, (model.n_envs, buffer.action_dim))

    for step in range(n_transitions):
        done, timeout = step % 10 == 9, step % 20 == 19
        buffer.add(
            rng.uniform(-1, 1, shape).astype(np.float32),
            rng.uniform(-1, 1, shape).astype(np.float32),
            actions(),
            rng.normal(size=model.n_envs),
            np.full(model.n_envs, done),
            [{"TimeLimit.truncated": timeout}] * model.n_envs,
        )


class RandomDiscreteEnv(RandomEnv):
    """``RandomEnv`` with discrete actions, which it records."""

    def __init__(self, n_actions: int = 3, start: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = spaces.Discrete(n_actions, start=start)  # type: ignore[assignment]  # the base has a Box
        self.actions: list[int] = []

    def step(self, action: Any) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.actions.append(int(action))
        return super().step(action)


class InjectedNoise:
    """Standard normal noise from a generator of its own, in place of PyTorch's, for SB3's distributions and for ours.

    :param bound: draws are clipped to ±bound
    """

    def __init__(self, seed: int, bound: float = 0.6) -> None:
        self.generator = th.Generator().manual_seed(seed)
        self.bound = bound
        self.drawn: list[th.Tensor] = []

    def draw(self, shape: Any) -> th.Tensor:
        noise = th.randn(tuple(shape), generator=self.generator).clamp(-self.bound, self.bound)
        self.drawn.append(noise)
        return noise

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th, "randn_like", lambda like, **_: self.draw(like.shape))
        monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda shape, dtype, device: self.draw(shape))


def train_with_noise(model: SAC | SoftAC, n_updates: int, seed: int = 1, batch_size: int = 32) -> InjectedNoise:
    """Call ``train()`` with one gradient step ``n_updates`` times, on batches and noise that only ``seed`` decides."""
    noise = InjectedNoise(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        noise.install(monkeypatch)
        np.random.seed(seed)  # noqa: NPY002  # the generator that SB3's buffers draw from
        for _ in range(n_updates):
            model.train(gradient_steps=1, batch_size=batch_size)
    return noise


def parameters_of(model: SoftAC) -> Iterator[tuple[str, th.Tensor]]:
    """Everything that training changes: networks, targets, temperature and optimizer states, by name."""
    for name, state_dict in model.get_parameters().items():
        entries: dict[str, Any] = dict(state_dict)
        if "optimizer" in name:
            entries = {f"{i}.{key}": value for i, state in entries["state"].items() for key, value in state.items()}
        for key, value in entries.items():
            if isinstance(value, th.Tensor):
                yield f"{name}/{key}", value


def assert_same_parameters(first: SoftAC, second: SoftAC) -> None:
    """Bit for bit the same training state."""
    left, right = dict(parameters_of(first)), dict(parameters_of(second))
    assert left.keys() == right.keys()
    assert len(left) > 10
    for name, value in left.items():
        assert th.equal(value, right[name]), name
