"""What is logged of finished episodes, against sums that are written out."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, TensorReplayBuffer
from sb3_softac.collect import episodes
from sb3_softac.collect.episodes import beginnings, describe, discounted_returns, newest_rows
from tests.helpers import quick_model

BOX = spaces.Box(-1.0, 1.0, (1,))


def discounted_return(rewards: Any, gamma: float, goes_on: bool) -> float:
    """Of one episode, which fills its grid."""
    return float(discounted_returns(np.array(rewards)[:, None], np.zeros(1, int), gamma, np.array([goes_on]))[0])


def describe_one(buffer: Any, length: int, space: spaces.Space[Any] = BOX, index: int = 0) -> dict[str, float]:
    return describe(buffer, np.array([index]), np.array([length]), 0.9, space, None)[0]


def rewards_of(buffer: Any, length: int) -> list[float]:
    """Those of the newest episode; none if its beginning is lost."""
    rows = newest_rows(buffer, np.array([0]), length)
    assert rows is not None
    rewards: list[float] = rows.rewards[beginnings(rows, np.array([length]), bool(buffer.full))[0] :, 0].tolist()
    return rewards


def returns_by_hand(rewards: list[float], gamma: float) -> list[float]:
    returns: list[float] = []
    for reward in reversed(rewards):
        returns.insert(0, reward + gamma * (returns[0] if returns else 0.0))
    return returns


def test_the_return_of_an_ended_episode_is_the_mean_over_its_states() -> None:
    rewards = [1.0, -2.0, 5.0, 0.5]
    for gamma in (0.0, 0.5, 0.99, 1.0):
        expected = np.mean(returns_by_hand(rewards, gamma))
        assert discounted_return(np.array(rewards), gamma, goes_on=False) == pytest.approx(expected)


def test_an_episode_that_was_cut_off_goes_on_as_it_was() -> None:
    """With constant rewards the value of every state is known: r/(1 − γ)."""
    assert discounted_return(np.full(7, 3.0), 0.9, goes_on=True) == pytest.approx(3.0 / (1 - 0.9))
    assert discounted_return(np.full(7, 3.0), 0.9, goes_on=False) < 3.0 / (1 - 0.9)
    assert discounted_return(np.full(7, 3.0), 1.0, goes_on=True) == pytest.approx(3.0 * (1 + 7) / 2)  # nothing extrapolated


def filled(rewards: list[float], ends: dict[int, bool], size: int = 20) -> ReplayBuffer:
    """A buffer with one environment; ``ends`` says of the last steps of episodes whether a time limit was the cause."""
    buffer = ReplayBuffer(size, BOX, BOX, n_envs=1)
    for step, reward in enumerate(rewards):
        info = {"TimeLimit.truncated": ends.get(step, False)}
        action = np.array([[1.0 if step % 2 else 0.0]])
        zero = np.zeros((1, 1))
        buffer.add(zero, zero, action, np.array([reward]), np.array([step in ends]), [info])
    return buffer


def test_the_rows_of_the_newest_episode() -> None:
    buffer = filled([1.0, 2.0, 3.0, 4.0, 5.0], {1: False, 4: True})
    assert rewards_of(buffer, 3) == [3.0, 4.0, 5.0]
    assert rewards_of(buffer, 12) == [3.0, 4.0, 5.0]  # a wrapper outside of the Monitor repeats each action four times
    facts = describe_one(buffer, 3)
    weights = np.array([1.0, 1.9, 2.71])
    assert facts["discounted_return"] == pytest.approx(weights @ [3.0, 4.0, 5.0] / (0.1 * weights.sum()))
    assert facts["timeout_rate"] == 1.0
    assert facts["saturation"] == pytest.approx(1 / 3)  # actions 0, 1, 0
    assert "saturation" not in describe_one(buffer, 3, spaces.Discrete(2))
    assert describe_one(buffer, 0) == {}


def test_rows_go_around_the_end_of_the_buffer_and_may_be_overwritten() -> None:
    buffer = filled([float(i) for i in range(7)], {2: False, 6: False}, size=5)  # rows hold steps 5, 6, 2, 3, 4
    assert rewards_of(buffer, 4) == [3.0, 4.0, 5.0, 6.0]
    too_long = filled([float(i) for i in range(7)], {6: False}, size=5)
    assert rewards_of(too_long, 7) == []
    assert describe_one(too_long, 7) == {}
    assert describe_one(object(), 7) == {}


@pytest.mark.parametrize("n_steps", [7, 30, 33])  # a buffer of 16 rows: not full, full, and gone around twice
@pytest.mark.parametrize("kind", [ReplayBuffer, TensorReplayBuffer])
def test_many_episodes_are_described_as_each_by_itself(
    kind: type[ReplayBuffer], n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against lists of what was added, environment by environment; some episodes are older than the buffer."""
    n_envs, gamma, space = 7, 0.95, spaces.Box(-1.0, 1.0, (2,))
    rng, buffer = np.random.default_rng(n_steps), kind(16 * n_envs, space, space, n_envs=n_envs, device="cpu")
    lengths = np.zeros(n_envs, int)
    history: list[list[tuple[float, list[float]]]] = [[] for _ in range(n_envs)]
    for step in range(n_steps):
        rewards, actions = rng.normal(size=n_envs).astype(np.float32), rng.choice([0.2, -1.0, 0.99], (n_envs, 2))
        last = step == n_steps - 1
        dones = np.array([last or (index < 5 and rng.random() < 0.2) for index in range(n_envs)])  # two go on to the end
        infos = [{"TimeLimit.truncated": bool(done and index % 2)} for index, done in enumerate(dones)]
        zeros = np.zeros((n_envs, 2), np.float32)
        buffer.add(zeros, zeros, actions, rewards, dones, infos)
        for index in range(n_envs):
            history[index].append((float(rewards[index]), actions[index].tolist()))
            if dones[index] and not last:
                history[index] = []
    lengths = np.array([len(each) for each in history])
    assert n_steps < 17 or (lengths > 16).any()
    for most in (1 << 22, 3):  # at once, and one by one
        monkeypatch.setattr(episodes, "MOST", most)
        described = describe(buffer, np.arange(n_envs), lengths, gamma, space, None)
        for index, facts in enumerate(described):
            if lengths[index] > 16:
                assert facts == {}
                continue
            rewards_by_hand = [reward for reward, _ in history[index]]
            weights = np.array([sum(gamma**j for j in range(k + 1)) for k in range(len(rewards_by_hand))])
            expected = float(np.mean(returns_by_hand(rewards_by_hand, gamma)))
            if index % 2:
                expected = float(weights @ rewards_by_hand / ((1 - gamma) * weights.sum()))
            assert facts["discounted_return"] == pytest.approx(expected, rel=1e-12)
            assert facts["timeout_rate"] == float(index % 2)
            components = [abs(value) for _, action in history[index] for value in action]
            assert facts["saturation"] == pytest.approx(np.mean([value > 0.98 for value in components]))


class Logged(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[list[float]] = [[], []]
        self.finished: list[tuple[list[float], bool]] = []

    def _on_step(self) -> bool:
        for index, (reward, done) in enumerate(zip(self.locals["rewards"], self.locals["dones"], strict=True)):
            self.rewards[index].append(float(reward))
            if done:
                self.finished.append((self.rewards[index], self.locals["infos"][index]["TimeLimit.truncated"]))
                self.rewards[index] = []
        return True


def cart_pole() -> gym.Env[Any, Any]:
    return Monitor(TimeLimit(gym.make("CartPole-v1").unwrapped, 12))


def test_training_logs_it_for_several_environments_and_scaled_as_the_critics_see_it(tmp_path: Path) -> None:
    model = quick_model(DummyVecEnv([cart_pole, cart_pole]), gamma=0.9, reward_scale=2.0, learning_starts=10, seed=0)
    model.set_logger(configure(str(tmp_path), []))
    logged = Logged()
    model.learn(200, callback=logged, log_interval=None)
    assert len(logged.finished) > 3
    model._log_episodes()
    values = model.logger.name_to_value
    cut_off = [cut for _, cut in logged.finished]
    assert any(cut_off)
    assert not all(cut_off)
    expected = [10.0 if cut else float(np.mean(returns_by_hand(rewards, 0.9))) for rewards, cut in logged.finished]
    assert values["rollout/discounted_return"] == pytest.approx(2.0 * np.mean(expected))
    assert values["rollout/timeout_rate"] == pytest.approx(np.mean(cut_off))
    assert "rollout/saturation" not in values  # discrete actions


def test_rewards_are_normalised_as_in_batches() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1", max_episode_steps=5))]), norm_obs=False)
    model = quick_model(env, gamma=0.9, learning_starts=1000).learn(5)
    assert isinstance(model, SoftAC)
    assert model.replay_buffer is not None
    rewards = env.normalize_reward(model.replay_buffer.rewards[:5, 0])
    weights = np.cumsum(0.9 ** np.arange(5))
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer[0]["discounted_return"] == pytest.approx(weights @ rewards / (0.1 * weights.sum()))
    assert model.ep_info_buffer[0]["saturation"] == np.mean(np.abs(model.replay_buffer.actions[:5]) >= 0.99)
