"""Modules that users write, freeze or replace: what trains is what they have made of them."""

import copy
import functools
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from tests.helpers import BOTH_WAYS, quick_model


class Frozen(BaseFeaturesExtractor):
    """A layer that wants no gradient."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 8)
        self.net = nn.Linear(space.shape[0], 8).requires_grad_(False)

    def forward(self, values: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.net(values)
        return features


class Late(BaseFeaturesExtractor):
    """A branch that is used from the 40th call on."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 8)
        self.first, self.second, self.calls = nn.Linear(space.shape[0], 8), nn.Linear(space.shape[0], 8), 0

    def forward(self, values: th.Tensor) -> th.Tensor:
        self.calls += 1
        features: th.Tensor = self.first(values) + (self.second(values) if self.calls > 40 else 0)
        return features


@pytest.mark.parametrize("compile", BOTH_WAYS)
def test_a_frozen_extractor_stays_and_the_rest_trains(compile: bool) -> None:
    model = quick_model(compile=compile, policy_kwargs={"net_arch": [8], "features_extractor_class": Frozen})
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(30)
    changed = {name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert not any(name.startswith(("actor.features_extractor", "critic.features_extractor")) for name in changed)
    assert {"actor.mu.weight", "critic.q_networks.output.weight"} <= changed


@pytest.mark.parametrize("compile", BOTH_WAYS)
def test_layers_frozen_between_two_trainings_stay(compile: bool) -> None:
    model = quick_model(compile=compile).learn(30)
    frozen = [model.actor.latent_pi[0].weight, next(model.critic.parameters())]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    model.learn(30)
    assert all(map(th.equal, frozen, before))


def test_a_branch_used_later_trains() -> None:
    model = quick_model(policy_kwargs={"net_arch": [8], "features_extractor_class": Late})
    before = model.actor.features_extractor.second.weight.clone()
    model.learn(100)
    assert not th.equal(before, model.actor.features_extractor.second.weight)


def test_a_replaced_target_is_followed() -> None:
    model = quick_model().learn(20)
    model.critic_target = model.policy.critic_target = copy.deepcopy(model.critic_target)
    assert model.critic_target is not None
    before = [parameter.clone() for parameter in model.critic_target.parameters()]
    model.learn(20, reset_num_timesteps=False)
    assert not any(map(th.equal, before, model.critic_target.parameters()))


def test_replaced_critics_get_an_optimizer_and_train() -> None:
    model = quick_model().learn(20)
    model.critic = model.policy.make_critic()
    before = [parameter.clone() for parameter in model.critic.parameters()]
    model.learn(20, reset_num_timesteps=False)
    assert not any(map(th.equal, before, model.critic.parameters()))


@pytest.mark.traced
def test_dropout_follows_its_rate_and_mode_compiled() -> None:
    def train(compile: bool) -> dict[str, th.Tensor]:
        model = quick_model(learning_starts=40, seed=0, compile=compile, policy_kwargs={"net_arch": [32], "dropout_rate": 0.3})
        model.learn(40)
        np.random.seed(1)  # noqa: NPY002  # the generator that SB3's buffers draw from
        th.manual_seed(1)
        model.learn(12, reset_num_timesteps=False)
        for module in model.policy.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.9
        model.learn(12, reset_num_timesteps=False)
        return model.policy.state_dict()

    eager, compiled = train(False), train(True)
    assert all(th.allclose(eager[name], compiled[name], atol=1e-5) for name in eager)


def test_targets_keep_their_dropout_after_eval() -> None:
    model = quick_model(policy_kwargs={"net_arch": [8], "dropout_rate": 0.5}).learn(20)
    model.policy.eval()
    model.learn(20, reset_num_timesteps=False)
    assert model.critic_target is not None
    first, second = (model.critic_target.q_values(th.ones(4, 3), th.zeros(4, 1)) for _ in range(2))
    assert not th.equal(first, second)


def test_activations_may_be_partials() -> None:
    """With their arguments, in every network."""
    model = quick_model(policy_kwargs={"net_arch": [8], "activation_fn": functools.partial(nn.LeakyReLU, 0.2)}).learn(20)
    slopes = [module.negative_slope for module in model.policy.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.2] * 3  # actor, critics, target critics
    assert model._n_updates == 10


@pytest.mark.traced
@pytest.mark.parametrize("space", ["image", "dict"])
def test_images_are_compiled(space: str) -> None:
    env: gym.Env[Any, Any] = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False)
    if space == "dict":
        observations = spaces.Dict({"image": env.observation_space})
        env = gym.wrappers.TransformObservation(env, lambda image: {"image": image}, observations)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = "MultiInputPolicy" if space == "dict" else "CnnPolicy"
        model = quick_model(env, policy, compile=True, buffer_size=100).learn(14)
    assert model._engine.compiles


def test_autocast_around_training_works() -> None:
    """Networks and temperature move, in float32, and stay finite."""
    model = quick_model(learning_starts=1000).learn(40)
    trained = [*model.actor.parameters(), *model.critic.parameters(), *model.temperature.parameters()]
    before = [parameter.detach().clone() for parameter in trained]
    with th.autocast("cpu", dtype=th.bfloat16):
        model.train(5, 16)
    assert not any(map(th.equal, before, trained))
    assert all(parameter.dtype == th.float32 and bool(parameter.isfinite().all()) for parameter in trained)
