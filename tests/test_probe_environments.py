"""Probe environments whose soft values are known in closed form, learned with a fixed α through ``learn()``.

The tolerances are four times the largest error of five seeds, or more.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_softac import SoftAC
from tests.helpers import BOTH_WAYS

ALPHA, GAMMA = 0.5, 0.8
Reward = Callable[[float], float]


class Chain(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """Episodes of ``len(rewards)`` steps; the reward of step t depends on the first component of the action alone.

    The observation is the number of the step.
    """

    def __init__(self, *rewards: Reward, action_dim: int = 1) -> None:
        self.rewards = rewards
        self.observation_space = spaces.Box(0.0, float(len(rewards)), (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: np.ndarray[Any, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.rewards[self.t](float(action[0]))
        self.t += 1
        return np.array([self.t], np.float32), reward, self.t == len(self.rewards), False, {}


def trained(env: Chain, n_steps: int, value_network: bool, compile: bool = False) -> SoftAC:
    return SoftAC(
        "MlpPolicy",
        env,
        learning_rate="lin_5e-3_1e-4",
        batch_size=64,
        gamma=GAMMA,
        tau=0.05,
        ent_coef=ALPHA,
        policy_kwargs={"net_arch": [32, 32]},
        value_network=value_network,
        seed=0,
        device="cpu",
        compile=compile,
    ).learn(n_steps)


def entropy(model: SoftAC, step: int) -> float:
    """H(π(·|s)) in nats, from 20,000 actions."""
    with th.no_grad():
        return float(-model.actor.action_log_prob(th.full((20_000, 1), float(step)))[1].mean())


def q_of(model: SoftAC, step: int, actions: th.Tensor) -> th.Tensor:
    with th.no_grad():
        return model.critic.q_values(th.full_like(actions[:, :1], float(step)), actions).mean(dim=0)


@pytest.mark.parametrize("value_network", [False, True])
def test_one_step_bandit(value_network: bool) -> None:
    """Q(s, a) = r(a): nothing follows."""
    model = trained(Chain(lambda a: 1.0 - a * a), 1500, value_network)
    actions = th.linspace(-0.9, 0.9, 19).unsqueeze(1)
    th.testing.assert_close(q_of(model, 0, actions), 1.0 - actions.squeeze(1) ** 2, atol=0.1, rtol=0.0)


@pytest.mark.parametrize("action_dim", [1, 2])
def test_a_constant_reward_drives_the_entropy_to_its_maximum(action_dim: int) -> None:
    """The uniform distribution on [−1, 1]^A has A·log 2 nats; a squashed Gaussian comes within 0.01 A of it."""
    model = trained(Chain(lambda _: 1.0, action_dim=action_dim), 800, value_network=False)
    assert entropy(model, 0) == pytest.approx(action_dim * math.log(2.0), abs=0.05 * action_dim)


@pytest.mark.parametrize("compile", BOTH_WAYS)
@pytest.mark.parametrize("value_network", [False, True])
def test_two_steps(value_network: bool, compile: bool) -> None:
    """Q(s0, a) = r + γ(r' + αH) with H = log 2, the entropy that the last step's constant reward leads to."""
    model = trained(Chain(lambda _: 0.5, lambda _: 2.0), 2000, value_network, compile)
    expected = 0.5 + GAMMA * (2.0 + ALPHA * math.log(2.0))
    actions = th.linspace(-0.8, 0.8, 17).unsqueeze(1)
    th.testing.assert_close(q_of(model, 0, actions), th.full((17,), expected), atol=0.1, rtol=0.0)
    th.testing.assert_close(q_of(model, 1, actions), th.full((17,), 2.0), atol=0.1, rtol=0.0)
    if value_network:
        assert model.value_net is not None
        with th.no_grad():
            assert model.value_net(th.ones(1, 1)).item() == pytest.approx(2.0 + ALPHA * math.log(2.0), abs=0.1)


@pytest.mark.parametrize("compile", BOTH_WAYS)
def test_the_policy_of_a_bandit_has_the_temperature_of_its_reward(compile: bool) -> None:
    """For r(a) = −5 a² and α = 0.5 the soft optimum is π(a) ∝ exp(−10 a²), a Gaussian of variance 1/20."""
    model = trained(Chain(lambda a: -5.0 * a * a), 2000, value_network=False, compile=compile)
    with th.no_grad():
        actions = model.actor.action_log_prob(th.zeros(20_000, 1))[0]
    assert actions.mean().item() == pytest.approx(0.0, abs=0.05)
    assert actions.var().item() == pytest.approx(1.0 / 20.0, rel=0.2)
