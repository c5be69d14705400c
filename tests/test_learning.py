"""Real learning, a quarter of a minute or more each: ``pytest -m slow``.

How well one short run ends depends on its seed, and as much on how the processor rounds: of 30 runs on Pendulum-v1 one ended
at −557, the others between −251 and −137. So a test asks for a good policy from one of a few seeds, in turn; without learning
none of them comes near it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_softac import SoftAC, SoftQL
from tests.helpers import needs_compiler

SEEDS = range(4)


def mean_return(model: Any) -> float:
    """Of the deterministic policy, over 50 episodes that training has not seen."""
    env = model.get_env()
    assert env is not None
    env.seed(1000)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=50, return_episode_rewards=True)
    return float(np.mean(returns))


def best_return(train: Callable[[int], Any], enough: float) -> float:
    """Train with one seed after another until the return is ``enough``.

    :param train: returns a trained model for a seed
    :param enough: mean return from which on no other seed is tried
    :return: the best mean return
    """
    best = -np.inf
    for seed in SEEDS:
        if best <= enough:
            best = max(best, mean_return(train(seed)))
    return best


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_pendulum_swings_up_within_5000_steps(compile: bool) -> None:
    """The best policies get about −145, a random one −1,200, and 20 untrained ones between −1,510 and −1,140."""

    def train(seed: int) -> SoftAC:
        return SoftAC(
            "MlpPolicy",
            "Pendulum-v1",
            learning_rate="lin_2e-3",
            batch_size=128,
            tau=0.02,
            gamma=0.95,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
            compile=compile,
        ).learn(5000)

    assert best_return(train, enough=-300.0) > -300.0


@pytest.mark.slow
def test_soft_q_learning_swings_pendulum_up_within_5000_steps() -> None:
    """With fewer particles than by default, which is faster. Four seeds got between −208 and −144."""

    def train(seed: int) -> SoftQL:
        return SoftQL(
            "MlpPolicy",
            "Pendulum-v1",
            learning_rate="lin_2e-3",
            batch_size=64,
            tau=0.02,
            target_update_interval=1,
            gamma=0.95,
            kernel_particles=8,
            value_particles=8,
            policy_kwargs={"net_arch": [64, 64], "n_critics": 2},
            seed=seed,
            device="cpu",
        ).learn(5000)

    assert best_return(train, enough=-400.0) > -400.0


@pytest.mark.slow
def test_cartpole_is_learned_within_6000_steps() -> None:
    """With discrete actions: 500 is the highest, a random policy gets 21, and 20 untrained ones between 9 and 83."""

    def train(seed: int) -> SoftAC:
        return SoftAC(
            "MlpPolicy",
            "CartPole-v1",
            learning_rate="lin_2e-3",
            batch_size=128,
            tau=0.02,
            gamma=0.98,
            train_freq=4,
            gradient_steps=4,
            ent_coef="auto_0.1",
            target_entropy_scale=0.7,
            policy_kwargs={"net_arch": [64, 64]},
            seed=seed,
            device="cpu",
        ).learn(6000)

    assert best_return(train, enough=120.0) > 120.0
