"""Acting without ``predict``: the same actions from the same random numbers, and what falls back to ``predict``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_softac import SoftAC, SoftACPolicy
from sb3_softac.collect import DirectActor
from tests.helpers import SMALL, MatrixEnv, RandomDiscreteEnv, RandomEnv, fill_buffer, make_model, quick_model

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "no hidden layer": {"policy_kwargs": {"net_arch": []}},
    "tanh": {"policy_kwargs": {**SMALL, "activation_fn": th.nn.Tanh}},
    "free log std": {"policy_kwargs": {**SMALL, "log_std_mode": "free"}},
    "bounded log std": {"policy_kwargs": {**SMALL, "log_std_bounding": "tanh", "log_std_bounds": (-3.0, 1.0)}},
    "clamped log std": {"policy_kwargs": {**SMALL, "log_std_bounds": (-0.05, 0.05)}},
    "noise": {"action_noise": NormalActionNoise(np.zeros(2), np.zeros(2) + 1e-6)},
    "matrix": {"env": MatrixEnv()},
    "several": {"env": make_vec_env(RandomEnv, 3)},
    "discrete": {"env": RandomDiscreteEnv(4)},
    "discrete from 2": {"env": RandomDiscreteEnv(4, start=2)},
    "several discrete": {"env": make_vec_env(RandomDiscreteEnv, 3)},
    "layer normalisation": {"policy_kwargs": {**SMALL, "normalization": "layer"}},
    "batch renormalisation": {"policy_kwargs": {**SMALL, "normalization": "batch_renorm"}, "bootstrap": "joint"},
    "SimBa, normalised": {"policy_kwargs": {"net_arch": [8, 8], "encoder": "simba"}, "normalize_observations": True},
    "BRO, discrete": {"policy_kwargs": {"net_arch": [8], "encoder": "bro"}, "env": RandomDiscreteEnv(4)},
    "SimbaV2": {"policy_kwargs": {"net_arch": [8, 8], "encoder": "simba_v2"}},
    "FlashSAC, several": {"policy_kwargs": {"net_arch": [8], "encoder": "flash"}, "env": make_vec_env(RandomEnv, 3)},
    "FlashSAC, repeated noise": {"policy_kwargs": {"net_arch": [8], "encoder": "flash"}, "noise_repeat": 4},
}


def sample_both_ways(model: SoftAC) -> list[tuple[Any, Any]]:
    """The action for the environment and the one for the buffer: directly, and by SB3's method."""
    results = []
    for method in (SoftAC._sample_action, OffPolicyAlgorithm._sample_action):
        th.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # the generator of SB3's action noise
        results.append(method(model, 0, model.action_noise, model.n_envs))
    return results


@pytest.mark.parametrize("case", CASES)
def test_the_actions_are_those_of_predict(case: str) -> None:
    """Also after training, which changes the weights in place."""
    model = make_model(learning_starts=5, batch_size=8, **CASES[case])
    model.learn(5 * model.n_envs)
    assert model._runtime.actor is not None
    for _ in range(3):
        direct, usual = sample_both_ways(model)
        for ours, theirs in zip(direct, usual, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
        assert all(model.action_space.contains(action) for action in direct[0])
        if model.replay_buffer is not None and model.n_envs == 1:
            fill_buffer(model, 50)
        model.train(5, batch_size=8)


def test_observations_that_are_views_or_read_only() -> None:
    """What a wrapper may return; a warning would fail the test."""
    model = make_model(learning_starts=5, batch_size=8).learn(10)
    actor = model._runtime.actor
    assert isinstance(actor, DirectActor)
    plain = np.arange(4, dtype=np.float32).reshape(1, 4)
    frozen, reversed_view = plain.copy(), plain[:, ::-1].copy()[:, ::-1]
    frozen.flags.writeable = False
    actions = []
    for observations in (plain, frozen, reversed_view):
        th.manual_seed(0)
        actions.append(actor(observations))
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])
    np.testing.assert_array_equal(plain, [[0.0, 1.0, 2.0, 3.0]])


def test_learning_calls_it_and_not_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = make_model(learning_starts=10, batch_size=8), DirectActor.__call__
    calls: list[int] = []

    def spy(self: DirectActor, observations: Any) -> Any:
        calls.append(len(observations))
        return original(self, observations)

    monkeypatch.setattr(DirectActor, "__call__", spy)
    monkeypatch.setattr(SoftACPolicy, "predict", lambda *_, **__: pytest.fail("predict was called"))
    model.learn(30)
    assert calls == [1] * 20  # after the random steps


def test_weights_that_were_loaded_act(tmp_path: Path) -> None:
    other = make_model(seed=5)
    other.save(tmp_path / "other")
    model = make_model(learning_starts=5).learn(6)
    for name, weight in model.policy.state_dict().items():
        assert not th.equal(weight, other.policy.state_dict()[name]) or weight.abs().max() == 0, name
    model.set_parameters(str(tmp_path / "other"))
    direct, usual = sample_both_ways(model)
    np.testing.assert_allclose(direct[0], usual[0], atol=2e-6)


class UserPolicy(SoftACPolicy):
    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return th.zeros(len(observation), 2)


class UserPredict(SoftAC):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return np.ones((1, 2), np.float32), None


def test_what_falls_back_to_predict() -> None:
    image: Any = FakeImageEnv(36, 36, discrete=False)
    models: dict[str, SoftAC] = {
        "gSDE": make_model(use_sde=True),
        "images": SoftAC("CnnPolicy", image, buffer_size=100, policy_kwargs=dict(SMALL), device="cpu"),
        "dict": SoftAC("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), buffer_size=100, device="cpu"),
        "another activation": make_model(policy_kwargs={**SMALL, "activation_fn": th.nn.LeakyReLU}),
        "a user-defined policy": SoftAC(UserPolicy, RandomEnv(), buffer_size=100, device="cpu"),
        "a user-defined predict": UserPredict("MlpPolicy", RandomEnv(), buffer_size=100, device="cpu"),
        "one-hot observations": SoftAC("MlpPolicy", "FrozenLake-v1", buffer_size=100, device="cpu"),
    }
    for name, model in models.items():
        model.learning_starts, model.random_steps = 1000, 0
        model.learn(3)
        assert model._runtime.actor is None, name
    model = make_model(learning_starts=1000, random_steps=0)
    model.actor.mu.register_forward_hook(lambda *_: None)
    assert model.learn(3)._runtime.actor is None


def test_a_policy_that_is_exchanged_meanwhile() -> None:
    model = make_model(learning_starts=5).learn(6)
    model.policy = make_model(seed=9).policy
    model.policy.set_training_mode(False)
    direct, usual = sample_both_ways(model)
    np.testing.assert_allclose(direct[0], usual[0], atol=2e-6)


def test_several_environments_get_different_actions() -> None:
    model = make_model(env=DummyVecEnv([RandomEnv] * 3), learning_starts=3).learn(6)
    action, buffer_action = model._sample_action(0, n_envs=3)
    assert action.shape == buffer_action.shape == (3, 2)
    assert len(np.unique(buffer_action[:, 0])) == 3


CHANGES: dict[str, Any] = {
    "parametrisation": lambda actor: nn.utils.parametrizations.spectral_norm(actor.mu),
    "forward of a layer": lambda actor: setattr(actor.mu, "forward", lambda x: th.full((len(x), 1), 0.25)),
    "forward of the actor": lambda actor: setattr(
        actor, "forward", lambda obs, deterministic=False: th.full((len(obs), 1), 0.25)
    ),
    "hidden layers": lambda actor: setattr(actor, "latent_pi", nn.Sequential(nn.Linear(3, 8), nn.Tanh())),
    "features extractor": lambda actor: setattr(actor.features_extractor, "forward", lambda obs: 2 * obs),
    "hook": lambda actor: actor.mu.register_forward_hook(lambda module, inputs, output: output * 0 + 0.25),
}


@pytest.mark.parametrize("change", CHANGES)
def test_learning_acts_as_predict_does_after_a_change(change: str) -> None:
    policy_kwargs = {"net_arch": [8], "log_std_init": -19.0}
    model = quick_model(learning_starts=0, random_steps=0, policy_kwargs=policy_kwargs).learn(5)
    CHANGES[change](model.actor)
    model.policy.set_training_mode(False)
    th.manual_seed(1)
    acted = model._sample_action(0, None, 1)[0]
    th.manual_seed(1)
    last_observation: Any = model._last_obs
    np.testing.assert_allclose(acted, model.predict(last_observation)[0], atol=1e-6)
