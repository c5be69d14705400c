"""Samplers act directly on their weights, with the actions that ``predict()`` samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_softac import SoftAC, SoftQL, collect
from sb3_softac.collect import CapturedActor, DirectActor, make_actor
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.networks import GaussianSampler, Particles, Sampler, samplers
from tests import graph_standin
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
        np.testing.assert_allclose(actions, expected, atol=2e-7)  # what rescaling to the bounds and back changes
        th.manual_seed(seed)
        with th.no_grad():
            np.testing.assert_array_equal(actions, model.actor(th.as_tensor(obs)).numpy())


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


@pytest.mark.parametrize(
    "name", ["particles", "draw_noise", "forward", "extract_features", "sample_directly", "sample_on_device"]
)
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


class TestAnotherActor:
    """One of ours that ``collect`` has never seen."""

    class Fifth(Sampler):
        """Its actions are a fifth of those of its base class."""

        __module__ = samplers.__name__

        def particles(self, obs: Any, noise: th.Tensor) -> Particles:
            return Particles(super().particles(obs, noise).actions / 5)

        def sample_directly(self, *args: Any) -> th.Tensor:
            return super().sample_directly(*args) / 5

    @pytest.mark.parametrize("capture", [False, True])
    def test_it_says_itself_how_it_acts(self, capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if capture:
            graph_standin.install(monkeypatch)
        model = model_of(**net(sampler=self.Fifth))
        actor = make_actor(model.policy, 2, capture)
        assert isinstance(actor, CapturedActor if capture else DirectActor)
        obs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
        th.manual_seed(0)
        actions = actor(obs)
        th.manual_seed(0)
        with th.no_grad():
            np.testing.assert_array_equal(actions, model.actor(th.as_tensor(obs)).numpy())
        assert np.abs(actions).max() < 0.2

    def test_collect_knows_no_actor(self) -> None:
        """What a class of actors is named, and what its layers are, stays in ``networks``."""
        code = (Path(collect.__file__).parent / "acting.py").read_text()
        for name in ("CategoricalActor", "Sampler", "SquashedGaussian", "log_std", "logits", ".mu", "action_dist", "use_sde"):
            assert name not in code, name


@pytest.mark.parametrize("kwargs", [{}, net(sampler="gaussian")])
def test_samplers_act_by_a_graph(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    graph_standin.install(monkeypatch)
    model = model_of(**kwargs)
    actor = make_actor(model.policy, 3, capture=True)
    assert isinstance(actor, CapturedActor)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for seed in range(3):
        th.manual_seed(seed)
        actions = actor(obs)
        th.manual_seed(seed)
        with th.no_grad():
            np.testing.assert_array_equal(actions, model.actor(th.as_tensor(obs)).numpy())
    assert not np.array_equal(actor(obs), actions)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("env", [RandomEnv(), RandomDiscreteEnv()])
@pytest.mark.parametrize("cls", [SoftAC, SoftQL])
def test_nan_reaches_no_environment(cls: Any, env: Any, capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One among several environments is enough."""
    if capture:
        graph_standin.install(monkeypatch)
    model = cls("MlpPolicy", env, buffer_size=100, seed=0, device="cpu", **net())
    actor = make_actor(model.policy, 3, capture)
    if actor is None:
        assert cls is SoftQL and env.action_space.shape == ()  # noqa: PT018  # through predict()
        return
    obs = np.ones((3, 4), np.float32)
    actor(obs)
    obs[1, 2] = np.nan
    with pytest.raises(TrainingDivergedError, match="actions are NaN"):
        actor(obs)


def test_discrete_actions_act_through_predict() -> None:
    model = SoftQL("MlpPolicy", RandomDiscreteEnv(), buffer_size=100, device="cpu", **net())
    assert make_actor(model.policy, 1, capture=False) is None
    model.learn(3)
