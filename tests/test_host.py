"""SoftAC among SB3's own parts: callbacks, loggers, buffers, wrappers, exploration."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_softac import SoftAC
from tests.helpers import OPTIONS, SMALL, CountingEnv, RandomEnv, make_model, quick_model


class TestLearn:
    def test_steps_may_be_a_float(self) -> None:
        assert make_model().learn(1.2e2).num_timesteps == 120

    def test_from_the_name_of_an_environment(self) -> None:
        model = SoftAC("MlpPolicy", "Pendulum-v1", learning_starts=20, policy_kwargs=SMALL, device="cpu").learn(30)
        assert model.num_timesteps == 30
        assert model._n_updates == 10

    @pytest.mark.parametrize(
        ("kwargs", "n_updates"),
        [
            ({}, 20),
            ({"gradient_steps": 3}, 60),
            ({"gradient_steps": 0}, 0),
            ({"train_freq": 4, "gradient_steps": -1}, 20),
            ({"train_freq": (4, "step"), "gradient_steps": 2}, 10),
            ({"train_freq": (1, "episode"), "gradient_steps": -1}, 20),
            ({"train_freq": (2, "episode"), "gradient_steps": 5}, 10),
        ],
    )
    def test_how_often_it_updates(self, kwargs: dict[str, Any], n_updates: int) -> None:
        """From step 21 to step 40, with episodes of five steps."""
        assert make_model(learning_starts=20, batch_size=8, **kwargs).learn(40)._n_updates == n_updates

    def test_gradient_steps_of_minus_one_count_environments(self) -> None:
        model = make_model(env=make_vec_env(RandomEnv, n_envs=4), learning_starts=20, gradient_steps=-1, batch_size=8)
        assert model.learn(40)._n_updates == 20

    def test_it_continues_where_it_stopped(self) -> None:
        model = make_model(learning_starts=10, batch_size=8).learn(20)
        model.learn(10, reset_num_timesteps=False)
        assert model.num_timesteps == 30
        assert model._n_updates == 20


class TestRandomSteps:
    """Which actions come from the uniform distribution: the network is set to act at one corner."""

    def actions(self, **kwargs: Any) -> Any:
        model = make_model(batch_size=8, learning_rate=0.0, ent_coef=0.1, **kwargs)
        th.nn.init.constant_(model.actor.mu.bias, 50.0)
        model.learn(40)
        assert model.replay_buffer is not None
        at_corner: Any = (model.replay_buffer.actions[:40] > 0.999).all(axis=(1, 2))
        return at_corner

    def test_learning_starts_by_default(self) -> None:
        at_corner = self.actions(learning_starts=15)
        assert not at_corner[:15].any()
        assert at_corner[15:].all()

    @pytest.mark.parametrize("random_steps", [0, 5, 25])
    def test_a_number_of_their_own(self, random_steps: int) -> None:
        at_corner = self.actions(learning_starts=15, random_steps=random_steps)
        assert not at_corner[:random_steps].any()
        assert at_corner[random_steps:].all()

    def test_the_first_update_stays_at_learning_starts(self) -> None:
        assert make_model(learning_starts=30, random_steps=5, batch_size=8).learn(40)._n_updates == 10


class Recorder(BaseCallback):
    """Keeps every action that reached the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray[Any, Any]] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"].copy())
        return True


def test_actions_are_rescaled_for_the_environment_and_stored_scaled() -> None:
    recorder = Recorder()
    model = make_model(learning_starts=10, batch_size=8).learn(30, callback=recorder)
    sent = np.array(recorder.actions)[:, 0]
    assert model.replay_buffer is not None
    stored = model.replay_buffer.actions[:30, 0]
    low, high = RandomEnv().action_space.low, RandomEnv().action_space.high  # type: ignore[attr-defined]  # a Box
    np.testing.assert_allclose(sent, low + 0.5 * (stored + 1.0) * (high - low), atol=1e-5)
    assert np.abs(stored).max() <= 1.0


class TestEvaluation:
    def test_deterministic_actions_are_the_rescaled_mean(self) -> None:
        model = make_model()
        observations = np.random.default_rng(0).uniform(-1, 1, (10, 4)).astype(np.float32)
        mean = model.actor.get_action_dist_params(th.as_tensor(observations))[0].detach().numpy()
        space: Any = model.action_space
        expected = space.low + 0.5 * (np.tanh(mean) + 1) * (space.high - space.low)
        np.testing.assert_allclose(model.predict(observations, deterministic=True)[0], expected, atol=1e-5)
        assert not np.allclose(model.predict(observations)[0], expected, atol=1e-2)

    def test_eval_callback_acts_with_the_mean(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[bool] = []
        predict = SoftAC.predict

        def spy(self: SoftAC, *args: Any, **kwargs: Any) -> Any:
            if "state" in kwargs:  # evaluate_policy passes the state; collecting does not
                seen.append(kwargs["deterministic"])
            return predict(self, *args, **kwargs)

        monkeypatch.setattr(SoftAC, "predict", spy)
        callback = EvalCallback(
            make_vec_env(RandomEnv),
            eval_freq=20,
            n_eval_episodes=2,
            log_path=str(tmp_path),
            verbose=0,
            best_model_save_path=str(tmp_path),
        )
        make_model(learning_starts=10, batch_size=8).learn(40, callback=callback)
        assert seen == [True] * 20
        assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
        assert SoftAC.load(tmp_path / "best_model.zip").num_timesteps in (20, 40)

    def test_stop_training_on_reward_threshold(self) -> None:
        stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
        callback = EvalCallback(make_vec_env(RandomEnv), callback_on_new_best=stop, eval_freq=15, verbose=0)
        assert make_model().learn(100, callback=callback).num_timesteps == 15

    def test_checkpoints(self, tmp_path: Path) -> None:
        callback = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True)
        make_model(learning_starts=10, batch_size=8).learn(20, callback=callback)
        assert SoftAC.load(tmp_path / "rl_model_10_steps.zip").num_timesteps == 10
        loaded = SoftAC.load(tmp_path / "rl_model_20_steps.zip", env=RandomEnv())
        loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_20_steps.pkl")
        assert loaded.replay_buffer is not None
        assert loaded.replay_buffer.pos == 19  # the callback runs before the step is stored

    @pytest.mark.filterwarnings("ignore:rich is experimental")
    def test_progress_bar(self, capsys: pytest.CaptureFixture[str]) -> None:
        make_model().learn(5e1, progress_bar=True)
        captured = capsys.readouterr()
        assert "50/50" in captured.out + captured.err

    def test_evaluate_policy(self) -> None:
        model = make_model()
        returns, lengths = evaluate_policy(model, make_vec_env(RandomEnv), 3, return_episode_rewards=True)
        assert lengths == [5, 5, 5]
        assert np.isfinite(returns).all()


class TestLoggers:
    METRICS = ("train/actor_loss", "train/critic_loss", "train/ent_coef", "train/entropy", "rollout/ep_rew_mean")

    def test_csv(self, tmp_path: Path) -> None:
        model = make_model(learning_starts=10, batch_size=8)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(60)
        model.logger.close()
        with open(tmp_path / "progress.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["time/total_timesteps"] for row in rows] == ["20", "40", "60"]
        assert all(np.isfinite(float(row[name])) for row in rows for name in self.METRICS)

    def test_stdout(self, capsys: pytest.CaptureFixture[str]) -> None:
        SoftAC("MlpPolicy", RandomEnv(), learning_starts=10, batch_size=8, policy_kwargs=SMALL, verbose=1).learn(20)
        printed = capsys.readouterr().out
        for name in ("actor_loss", "critic_loss", "ent_coef", "ep_rew_mean", "Wrapping the env in a DummyVecEnv"):
            assert name in printed

    def test_tensorboard(self, tmp_path: Path) -> None:
        model = make_model(learning_starts=10, batch_size=8, tensorboard_log=str(tmp_path))
        model._custom_logger = False
        model.learn(60)
        model.logger.close()
        (run,) = tmp_path.iterdir()
        assert run.name == "SoftAC_1"
        events: Any = EventAccumulator(str(run)).Reload()
        assert set(self.METRICS) <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("train/critic_loss")] == [20, 40, 60]

    def test_log_every_n_timesteps(self, tmp_path: Path) -> None:
        model = make_model(learning_starts=5, batch_size=8)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(40, callback=LogEveryNTimesteps(n_steps=8), log_interval=None)
        model.logger.close()
        with open(tmp_path / "progress.csv") as file:
            assert [row["time/total_timesteps"] for row in csv.DictReader(file)] == ["8", "16", "24", "32", "40"]


class TestExploration:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"sde_sample_freq": 2},
            {"use_sde_at_warmup": True},
            {"policy_kwargs": {"net_arch": [8], "use_expln": True, "clip_mean": 1.0, "log_std_init": -1.0}},
        ],
    )
    def test_gsde(self, kwargs: dict[str, Any]) -> None:
        model = make_model(use_sde=True, learning_starts=10, batch_size=8, **kwargs)
        before = model.actor.log_std.clone()
        model.learn(30)
        assert model._n_updates == 20
        assert not th.equal(model.actor.log_std, before)

    def test_gsde_noise_lasts_for_a_rollout(self) -> None:
        """The same state gives the same action until the noise matrix is drawn again."""
        model = make_model(use_sde=True)
        observation = np.ones((1, 4), np.float32)
        first, second = model.predict(observation)[0], model.predict(observation)[0]
        np.testing.assert_array_equal(first, second)
        model.actor.reset_noise()
        assert not np.array_equal(model.predict(observation)[0], first)

    @pytest.mark.parametrize("use_sde", [False, True])
    @pytest.mark.parametrize("n_envs", [1, 3])
    def test_action_noise(self, n_envs: int, use_sde: bool) -> None:
        """Noise of standard deviation 0 and mean 5 drives every scaled action to its bound; as in SB3, also with gSDE."""
        noise: ActionNoise = NormalActionNoise(np.full(2, 5.0), np.zeros(2))
        env = make_vec_env(RandomEnv, n_envs=n_envs)
        model = make_model(env=env, action_noise=noise, use_sde=use_sde, learning_starts=10, batch_size=8).learn(30)
        assert model.replay_buffer is not None
        np.testing.assert_array_equal(model.replay_buffer.actions[: 30 // n_envs], 1.0)


class TestObservationsAndBuffers:
    @pytest.mark.parametrize("value_network", [False, True])
    def test_images(self, value_network: bool) -> None:
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)
        model = SoftAC(
            "CnnPolicy",
            env,
            buffer_size=100,
            learning_starts=10,
            batch_size=4,
            value_network=value_network,
            policy_kwargs={"net_arch": [8], "features_extractor_kwargs": {"features_dim": 16}},
            device="cpu",
        )
        extractor: Any = model.critic.features_extractor
        before = [p.clone() for p in extractor.parameters()]
        assert model.learn(15)._n_updates == 5
        assert not any(th.equal(x, y) for x, y in zip(before, extractor.parameters(), strict=True))
        action, _ = model.predict(env.observation_space.sample(), deterministic=True)
        assert env.action_space.contains(action)

    @pytest.mark.parametrize("value_network", [False, True])
    def test_dict_observations(self, value_network: bool) -> None:
        env = SimpleMultiObsEnv(discrete_actions=False, random_start=False)
        model = SoftAC(
            "MultiInputPolicy",
            env,
            buffer_size=100,
            learning_starts=10,
            batch_size=4,
            value_network=value_network,
            policy_kwargs={"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}},
            device="cpu",
        )
        assert model.learn(15)._n_updates == 5
        assert type(model.replay_buffer) is DictReplayBuffer

    @pytest.mark.parametrize("n_envs", [1, 2])
    @pytest.mark.parametrize("strategy", ["future", "final", "episode"])
    def test_hindsight_experience_replay(self, n_envs: int, strategy: str) -> None:
        env = make_vec_env(BitFlippingEnv, n_envs=n_envs, env_kwargs={"n_bits": 4, "continuous": True})
        model = SoftAC(
            "MultiInputPolicy",
            env,
            learning_starts=20,
            batch_size=8,
            buffer_size=1000,
            device="cpu",
            replay_buffer_class=HerReplayBuffer,
            policy_kwargs=SMALL,
            replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": strategy},
        )
        assert model.learn(40)._n_updates == 20 // n_envs
        assert isinstance(model.replay_buffer, HerReplayBuffer)

    @pytest.mark.parametrize("n_envs", [1, 3])
    def test_n_step_returns(self, n_envs: int) -> None:
        env = make_vec_env(RandomEnv, n_envs=n_envs)
        model = make_model(env=env, n_steps=3, gamma=0.9, learning_starts=15, batch_size=8).learn(30)
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 0.9)
        assert model._n_updates == 15 // n_envs

    def test_memory_efficient_buffer(self) -> None:
        kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
        model = make_model(learning_starts=10, batch_size=8, **kwargs).learn(30)
        assert type(model.replay_buffer) is ReplayBuffer
        assert model.replay_buffer.optimize_memory_usage
        assert model._n_updates == 20

    def test_vec_normalize_is_applied_to_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = VecNormalize(make_vec_env(RandomEnv, n_envs=2))
        model = make_model(env=env, learning_starts=20, batch_size=8).learn(60)
        assert model.replay_buffer is not None
        np.random.seed(0)  # noqa: NPY002  # the generator that SB3's buffers draw from
        raw = model.replay_buffer.sample(8)
        np.random.seed(0)  # noqa: NPY002
        batch = model._sample_batch(8)
        raw_observations: Any = raw.observations
        normalised: Any = env.normalize_obs(raw_observations.numpy())
        observations: Any = batch.observations
        np.testing.assert_allclose(observations.numpy(), normalised, rtol=1e-5)
        np.testing.assert_allclose(batch.rewards.numpy(), env.normalize_reward(raw.rewards.numpy()).squeeze(1), rtol=1e-5)

    def test_float64_and_discrete_observations(self) -> None:
        class Other(RandomEnv):
            def __init__(self, space: Any) -> None:
                super().__init__()
                self.observation_space = space

            def _observe(self) -> Any:
                return self.observation_space.sample()

        for space in (spaces.Box(-1.0, 1.0, (4,), np.float64), spaces.Discrete(5), spaces.Box(-1.0, 1.0, (2, 3))):
            assert make_model(env=Other(space), learning_starts=10, batch_size=8).learn(20)._n_updates == 10


@pytest.mark.parametrize("kwargs", OPTIONS)
def test_every_option_trains_all_its_networks(kwargs: dict[str, Any]) -> None:
    model = make_model(learning_starts=20, batch_size=16, **{"learning_rate": 1e-3, **kwargs})
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32)
    changed = {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    value_network = {"value_net", "value_net_target"}
    assert changed == {"actor", "critic"} | (value_network if kwargs.get("value_network") else {"critic_target"})
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_no_gradient_steps_log_nothing() -> None:
    model = make_model()
    model.train(0, batch_size=8)
    assert "train/critic_loss" not in model.logger.name_to_value


def test_training_that_ends_in_no_episode_is_logged(tmp_path: Path) -> None:
    model = quick_model(CountingEnv(10_000))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(100)
    model.logger.close()
    assert "train/n_updates" in (tmp_path / "progress.csv").read_text()
