"""Real learning, minutes long: ``pytest -m slow``."""

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_softac import SoftAC


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pendulum_is_solved_within_6000_steps(seed: int) -> None:
    """A mean deterministic return above −200 over 50 episodes; a random policy gets about −1,200."""
    model = SoftAC(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, policy_kwargs={"net_arch": [64, 64]}, seed=seed, device="cpu"
    )
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
