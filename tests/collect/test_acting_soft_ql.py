"""Samplers act directly on their weights, with the actions that ``predict()`` samples."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_softac import SoftQL
from sb3_softac.collect import DirectActor, make_actor
from sb3_softac.networks import GaussianSampler, Particles, Sampler
from tests.helpers import RandomDiscreteEnv, RandomEnv, net


def model_of(**kwargs: Any) -> Any:
    return SoftQL("MlpPolicy", RandomEnv(), buffer_size=100, seed=0, device="cpu", **{**net(), **kwargs})


@pytest.mark.parametrize(
    "kwargs", [{}, {"noise_dim": 5}, net(sampler="gaussian"), net(activation_fn=nn.Tanh, n_critics=2), net(net_arch=[])]
)
@pytest.mark.parametrize("n_envs", [1, 4])
def test_actions_are_those_of_predict(kwargs: dict[str, Any], n_envs: int) -> None:
    model = model_of(**kwargs)
    actor = make_actor(model.policy, n_envs, capture=False)
    assert isinstance(actor, DirectActor)
    for seed in range(5):
        obs = np.random.default_rng(seed).normal(size=(n_envs, 4)).astype(np.float32)
        th.manual_seed(seed)
        actions = actor(obs)
        th.manual_seed(seed)
        expected = model.policy.scale_action(model.predict(obs)[0])
        np.testing.assert_allclose(actions, expected, atol=2e-7)


def test_learning_acts_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], DirectActor.__call__

    def spy(actor: DirectActor, obs: Any) -> Any:
        calls.append(len(obs))
        return original(actor, obs)

    monkeypatch.setattr(DirectActor, "__call__", spy)
    model_of(random_steps=0).learn(7)
    assert calls == [1] * 7


class Shifted(Sampler):
    """Its ``predict`` samples other actions than ``Sampler``'s."""

    def particles(self, obs: Any, noise: th.Tensor) -> Particles:
        return Particles(super().particles(obs, noise).actions * 0.5)


class Halved(GaussianSampler):
    """Only its layers are others."""

    def build_outputs(self, features: int) -> None:
        self.log_std = nn.Linear(features, self.action_dim, bias=False)


@pytest.mark.parametrize("sampler", [Shifted, Halved])
def test_a_users_sampler_acts_through_predict(sampler: type[Sampler]) -> None:
    model = model_of(**net(sampler=sampler))
    assert make_actor(model.policy, 1, capture=False) is None
    model.learn(3)


@pytest.mark.parametrize("name", ["particles", "draw_noise", "forward", "extract_features"])
def test_a_method_that_is_replaced_counts(name: str) -> None:
    model = model_of()
    actor = make_actor(model.policy, 1, capture=False)
    assert actor is not None
    assert actor.holds(model.policy)
    setattr(model.actor, name, getattr(model.actor, name))
    assert not actor.holds(model.policy)
    assert make_actor(model.policy, 1, capture=False) is None


def test_a_hook_counts() -> None:
    model = model_of()
    actor = make_actor(model.policy, 1, capture=False)
    assert actor is not None
    model.actor.mu.register_forward_hook(lambda *_: None)
    assert not actor.holds(model.policy)


def test_discrete_actions_act_through_predict() -> None:
    model = SoftQL("MlpPolicy", RandomDiscreteEnv(), buffer_size=100, device="cpu", **net())
    assert make_actor(model.policy, 1, capture=False) is None
    model.learn(3)
