"""Real learning, minutes long: ``pytest -m slow``."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_softac import SoftAC
from tests.helpers import needs_compiler


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "compile"), [(0, False), (1, False), pytest.param(2, True, marks=needs_compiler)])
def test_pendulum_is_solved_within_6000_steps(seed: int, compile: bool) -> None:
    """A mean deterministic return above −200 over 50 episodes; a random policy gets about −1,200."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}, "device": "cpu", "compile": compile}
    model = SoftAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed, **kwargs)
    model.learn(6000)
    env = model.get_env()
    assert env is not None
    env.seed(1000 + seed)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=50, return_episode_rewards=True)
    assert np.mean(returns) > -200.0


@pytest.mark.slow
def test_cartpole_is_learned_within_10000_steps() -> None:
    """With discrete actions: far above the 20 steps of a random policy, on the way to 500."""
    model = SoftAC("MlpPolicy", "CartPole-v1", learning_rate=1e-3, policy_kwargs={"net_arch": [64, 64]}, seed=0, device="cpu")
    model.learn(10_000)
    env = model.get_env()
    assert env is not None
    env.seed(1000)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=20, return_episode_rewards=True)
    assert np.mean(returns) > 120.0
