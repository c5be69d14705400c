"""Nothing that is stored reaches across a reset: no transition, no n-step return, no hindsight goal."""

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC
from tests.helpers import CountingEnv, quick_model


def crossings(buffer: Any) -> int:
    """Transitions whose two observations are of different episodes."""
    samples = buffer._get_samples(np.arange(buffer.pos))
    return int((samples.observations[:, 0] != samples.next_observations[:, 0]).sum())


def test_a_callback_that_stops_training_loses_no_step() -> None:
    model = quick_model(CountingEnv(5))
    for _ in range(4):
        model.learn(99, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 20
    assert model.replay_buffer.dones[:20].sum() == 4
    assert crossings(model.replay_buffer) == 0


def test_n_step_returns_end_at_a_reset() -> None:
    model = quick_model(CountingEnv(50), n_steps=3)
    model.learn(12)
    model.learn(8)
    model.set_env(CountingEnv(50, first=5))
    model.learn(8, reset_num_timesteps=False)
    assert crossings(model.replay_buffer) == 0


def reloaded(model: SoftAC, folder: Path) -> SoftAC:
    """The model and its buffer from files, after eight more steps in another episode."""
    model.save(folder / "model")
    model.save_replay_buffer(folder / "buffer")
    loaded = SoftAC.load(folder / "model", env=CountingEnv(50, first=6))
    loaded.load_replay_buffer(folder / "buffer")
    return loaded.learn(8, reset_num_timesteps=False)


def test_n_step_returns_end_where_a_loaded_buffer_ends(tmp_path: Path) -> None:
    model = reloaded(quick_model(CountingEnv(50), n_steps=3).learn(12), tmp_path)
    assert crossings(model.replay_buffer) == 0


def test_the_memory_efficient_buffer_knows_its_last_step_after_loading(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = reloaded(quick_model(CountingEnv(50), **kwargs).learn(12), tmp_path)
    assert model.replay_buffer is not None
    last: Any = model.replay_buffer._get_samples(np.array([11]))
    assert last.next_observations[0, 0] == 0 or last.dones[0, 0] == 1


def test_hindsight_goals_stay_in_their_episode() -> None:
    env = CountingEnv(10, goals=True)
    model = quick_model(env, "MultiInputPolicy", learning_starts=20, replay_buffer_class=HerReplayBuffer)
    model.learn(14)
    model.learn(16)
    buffer: Any = model.replay_buffer
    samples = buffer.sample(2000)
    episode, goal = samples.observations["observation"][:, 0], samples.observations["desired_goal"][:, 0]
    assert not ((goal >= 0) & (goal != episode)).any()
    assert buffer.ep_length.max() <= 10
