"""What several tests share: filled replay buffers, injected noise, small models."""

from collections.abc import Collection, Iterable, Iterator
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
from sb3_softac.update import ActorCriticUpdate

OBS_DIM, ACTION_DIM = 4, 2
MISSING = missing_for_compilation(th.device("cpu"))
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=f"compiling needs {MISSING}")
#: values of `compile` for a test of what a step does, not of the code that is generated for it
BOTH_WAYS = [False, pytest.param(True, marks=pytest.mark.traced)]
SMALL: dict[str, Any] = {"net_arch": [16, 16]}


def traced_except(generated: Collection[str], cases: Iterable[str]) -> list[Any]:
    """The cases of a test of compiled steps: code is generated for some of them, and the others are traced."""
    return [case if case in generated else pytest.param(case, marks=pytest.mark.traced) for case in cases]


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
    """Standard normal noise from a generator of its own, instead of PyTorch's, for SB3's distributions and for ours.

    :param bound: draws are clipped to ±bound
    """

    def __init__(self, seed: int, bound: float = 0.6) -> None:
        self.generator = th.Generator().manual_seed(seed)
        self.bound = bound
        self.drawn: list[th.Tensor] = []

    def draw(self, shape: Any, device: Any = None) -> th.Tensor:
        noise = th.randn(tuple(shape), generator=self.generator).clamp(-self.bound, self.bound)
        self.drawn.append(noise)
        return noise.to(device)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th, "randn_like", lambda like, **_: self.draw(like.shape, like.device))
        monkeypatch.setattr(
            "torch.distributions.normal._standard_normal", lambda shape, dtype, device: self.draw(shape, device)
        )


def train_with_noise(
    model: SAC | SoftAC, n_calls: int, seed: int = 1, batch_size: int = 32, gradient_steps: int = 1
) -> InjectedNoise:
    """Call ``train()`` ``n_calls`` times, on batches and noise that only ``seed`` decides."""
    noise = InjectedNoise(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        noise.install(monkeypatch)
        np.random.seed(seed)  # noqa: NPY002  # the generator that SB3's buffers draw from
        for _ in range(n_calls):
            model.train(gradient_steps=gradient_steps, batch_size=batch_size)
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


class MatrixEnv(RandomEnv):
    """Actions (2, 3), observations in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float64)
        self.action_space = spaces.Box(-3.0, 1.0, (2, 3), np.float32)

    def _observe(self) -> np.ndarray[Any, Any]:
        return self.np_random.uniform(-1.0, 1.0, 4)


#: one model for each option, and for some that meet
def falling_rate(progress_remaining: float) -> float:
    """A schedule that a model file may name, as no lambda can be."""
    return 1e-3 * progress_remaining


OPTIONS: list[dict[str, Any]] = [
    {"value_network": True, "actor_q": "first", "target_q": "mean"},
    {"actor_q": "target_min"},
    {"actor_q": "mean", "target_q": "first"},
    {"target_subset": 2, "policy_kwargs": {"net_arch": [8], "n_critics": 5}},
    {"policy_kwargs": {"net_arch": [8], "n_critics": 1}},
    {"ent_coef_update": "log", "ent_coef_max": 1.5},
    {"ent_coef_update": "exp", "ent_coef": "auto_0.5"},
    {"ent_coef": "auto_0.2", "ent_coef_max": 0.3, "ent_coef_learning_rate": "exp_1e-2_1e-4"},
    {"ent_coef": "lin_0.3_0.1"},
    {"actor_learning_rate": "lin_1e-3", "critic_learning_rate": falling_rate},
    {"random_steps": 5, "policy_delay": 2, "target_update_interval": 3},
    {"reward_scale": -2.0, "max_grad_norm": 0.5},
    {"gradient_steps": 4, "train_freq": 2},
    {"policy_kwargs": {"net_arch": [8], "log_std_mode": "free", "log_std_init": -1.0}},
    {"policy_kwargs": {"net_arch": [8], "log_std_bounding": "tanh", "log_std_bounds": (-5.0, 2.0)}},
    {"policy_kwargs": {"net_arch": [8], "layer_norm": True, "dropout_rate": 0.1}},
    {"policy_kwargs": {"net_arch": [8], "weight_init": "orthogonal", "final_init_scale": 0.01}},
    {"policy_kwargs": {"net_arch": [8], "weight_init": "xavier"}, "value_network": True},
    {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [12], "vf": [4]}}, "value_network": True},
    {"policy_kwargs": {"net_arch": [], "share_features_extractor": True}},
    {"use_sde": True},
    {"n_steps": 3, "value_network": True},
]


class SpaceEnv(RandomEnv):
    """``RandomEnv`` that announces other spaces."""

    def __init__(self, action_space: Any = None, observation_space: Any = None) -> None:
        super().__init__()
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space


DICT = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,))})


class SampledEnv(SpaceEnv):
    """``RandomEnv`` with observations that are drawn from their space."""

    def _observe(self) -> Any:
        return self.observation_space.sample()


class CountingEnv(gym.Env[Any, np.ndarray[Any, Any]]):
    """Observations (number of the episode, time), reward 1; episodes of ``length`` steps.

    :param length: steps of an episode
    :param goals: Dict observations as hindsight experience replay needs them
    :param first: number of the first episode
    """

    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,))

    def __init__(self, length: int, goals: bool = False, first: int = 0) -> None:
        self.length, self.goals, self.episode, self.time = length, goals, first - 1, 0
        box = spaces.Box(-1e6, 1e6, (2,))
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = spaces.Dict(dict.fromkeys(names, box)) if goals else box

    def _observe(self) -> Any:
        seen = np.array([self.episode, self.time], np.float32)
        return {"observation": seen, "achieved_goal": seen, "desired_goal": 0 * seen - 1} if self.goals else seen

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -np.any(achieved != desired, axis=-1).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._observe(), 1.0, self.time >= self.length, False, {}


def quick_model(env: Any = "Pendulum-v1", policy: str = "MlpPolicy", **kwargs: Any) -> SoftAC:
    """A ``SoftAC`` of eight hidden units that learns from its 11th step on."""
    defaults: dict[str, Any] = {"buffer_size": 500, "learning_starts": 10, "batch_size": 16, "device": "cpu", "compile": False}
    kwargs.setdefault("policy_kwargs", {"net_arch": [8]})
    return SoftAC(policy, env, **(defaults | kwargs))


def logged(model: SoftAC, name: str) -> float:
    """The newest value of a metric."""
    return float(model.logger.name_to_value[f"train/{name}"])


def update_of(model: SoftAC) -> ActorCriticUpdate:
    """The model's gradient step."""
    update = model._current_update()
    assert isinstance(update, ActorCriticUpdate)
    return update


def net(**kwargs: Any) -> dict[str, Any]:
    """``policy_kwargs`` of small networks with these options."""
    return {"policy_kwargs": {**SMALL, **kwargs}}


def restart_generators() -> None:
    """Let PyTorch's and NumPy's generators begin again."""
    th.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the generator that SB3's buffers draw from


def build(compile: Any, discrete: bool = False, **kwargs: Any) -> SoftAC:
    """A model with a filled buffer, whose random generators are at the same place for all that are built."""
    model = make_model(env=RandomDiscreteEnv() if discrete else RandomEnv(), compile=compile, **kwargs)
    fill_buffer(model)
    restart_generators()
    return model


def assert_close(first: SoftAC, second: SoftAC, tolerance: float = 1e-4) -> None:
    """The same training state up to ``tolerance`` of each tensor's largest entry."""
    left, right = dict(parameters_of(first)), dict(parameters_of(second))
    assert left.keys() == right.keys()
    assert len(left) > 10
    for name, value in left.items():
        difference = (value - right[name]).abs().max().item() if value.numel() else 0.0
        assert difference <= tolerance * max(value.abs().max().item(), 1e-3), name


def assert_train_alike(models: list[SoftAC]) -> None:
    """Two models, from the same generators on, have the same state after some updates, statistics of batches included."""
    for model in models:
        restart_generators()
        model.train(12, batch_size=32)
    assert_close(models[0], models[1])
    states = [model.policy.state_dict() for model in models]
    for name, value in states[0].items():
        if "running_" in name:
            th.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
