"""What an environment returns is looked at before it is stored, and nothing is stored across a stop."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC
from tests.helpers import DICT, CountingEnv, RandomEnv, SpaceEnv, make_model, quick_model


class BadEnv(RandomEnv):
    """Returns one non-finite value at step 17 (the second step of an episode), or at an episode's end (step 20)."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__()
        self.what, self.value, self.total = what, value, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == 17 and self.what == "reward":
            reward = self.value
        if (self.total, self.what) in {(17, "observation"), (20, "terminal observation")}:
            observation[1] = self.value
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("what", "step"), [("reward", 17), ("observation", 17), ("terminal observation", 20)])
@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_values_stop_the_training(what: str, step: int, value: float, normalize: bool) -> None:
    if normalize and what == "terminal observation" and np.isinf(value):
        pytest.skip("VecNormalize clips an infinite terminal observation to a finite one before SoftAC sees it")
    env: Any = make_vec_env(lambda: BadEnv(what, value), n_envs=1, seed=0)
    model = make_model(env=VecNormalize(env) if normalize else env, learning_starts=5)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=rf"stopped at step {step}: the environment returned a non-finite {what} \({value} at"),
    ):
        model.learn(100)
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.pos == step - 1
    for stored in (buffer.observations, buffer.next_observations, buffer.rewards):
        assert np.isfinite(stored).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_values_that_overflow_float32_are_not_finite_either() -> None:
    class Huge(RandomEnv):
        def step(self, action: Any) -> Any:
            return self._observe(), 1e39, False, False, {}

    with pytest.raises(ValueError, match=r"stopped at step 1: the environment returned a non-finite reward"):
        make_model(env=Huge()).learn(10)


def test_the_environment_that_returned_it_is_named() -> None:
    env = make_vec_env(RandomEnv, n_envs=3)
    step_wait = env.step_wait

    def broken() -> Any:
        observations, rewards, dones, infos = step_wait()
        rewards[2] = np.nan
        return observations, rewards, dones, infos

    env.step_wait = broken  # type: ignore[method-assign]  # one of three environments fails
    with pytest.raises(ValueError, match=r"reward \(nan at index \[2\]\)"):
        make_model(env=env).learn(10)


def test_training_goes_on_with_a_new_episode_after_a_stop() -> None:
    """The transition that was refused must not be bridged by the next one."""

    class Counter(RandomEnv):
        def _observe(self) -> Any:
            return np.full(4, 0.1 * self.step_count, np.float32)

        def step(self, action: Any) -> Any:
            self.step_count += 1
            return self._observe(), np.nan if self.step_count == 3 else 0.0, False, False, {}

    model = make_model(env=Counter())
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(10)
    model.learn(2, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer is not None
    np.testing.assert_allclose(buffer.observations[: buffer.pos, 0, 0], [0.0, 0.1, 0.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(buffer.next_observations[: buffer.pos, 0, 0], [0.1, 0.2, 0.1, 0.2], atol=1e-6)


class FailsOnce(RandomEnv):
    """Steps without an end, and one NaN reward at step 30."""

    total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        return self._observe(), np.nan if self.total == 30 else 1.0, False, False, {}


@pytest.mark.parametrize("kwargs", [{"n_steps": 3}, {"n_steps": 3, "buffer_size": 29}])
def test_n_step_returns_do_not_reach_across_a_stop(kwargs: dict[str, Any]) -> None:
    model = make_model(env=FailsOnce(), gamma=0.9, **kwargs)
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    samples = model.replay_buffer._get_samples(np.array([26, 27, 28]))
    assert samples.discounts is not None
    np.testing.assert_allclose(samples.discounts.squeeze(1), [0.9**3, 0.9**2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(samples.dones.squeeze(1), 0.0)  # cut, not terminated: the target bootstraps


@pytest.mark.parametrize("terminates", [False, True])
def test_an_episode_that_ended_by_itself_before_a_stop_keeps_its_end(terminates: bool) -> None:
    """A time-out still bootstraps, a termination still does not."""

    class FailsAfterTheEnd(RandomEnv):
        total = 0

        def step(self, action: Any) -> Any:
            self.total += 1
            observation, reward, *rest = super().step(action)
            return observation, np.nan if self.total == 6 else reward, *rest

    model = make_model(env=FailsAfterTheEnd(terminates=terminates))
    with pytest.raises(ValueError, match="stopped at step 6"):
        model.learn(50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 5
    assert model.replay_buffer._get_samples(np.array([4])).dones.item() == float(terminates)


def test_a_memory_efficient_buffer_does_not_join_episodes_at_a_stop() -> None:
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(env=FailsOnce(), **kwargs)
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.dones[28, 0] == 1.0


def test_hindsight_goals_do_not_reach_across_a_stop() -> None:
    class FailsOnceHer(BitFlippingEnv):
        total = 0

        def step(self, action: Any) -> Any:
            self.total += 1
            observation, reward, *_ = super().step(action)
            return observation, np.nan if self.total == 30 else reward, False, False, {}

    env = FailsOnceHer(n_bits=4, continuous=True)
    model = SoftAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=200, device="cpu")
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    model.learn(10, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    assert buffer.ep_length[:29, 0].tolist() == [29] * 29
    assert set(buffer.ep_start[29 : buffer.pos, 0].tolist()) == {29}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_spoilt_statistics_are_named_as_the_cause(what: str) -> None:
    """VecNormalize sees the values before SoftAC does."""
    env = VecNormalize(make_vec_env(lambda: BadEnv(what, np.nan), n_envs=1, seed=0))
    model = make_model(env=env, learning_starts=5)
    with pytest.raises(ValueError, match="VecNormalize has counted it in its statistics: reload those"):
        model.learn(100)
    with pytest.raises(ValueError, match="The statistics of VecNormalize are not finite"):
        model.learn(100)


def test_a_non_finite_first_observation() -> None:
    class BadReset(RandomEnv):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return observation * np.nan, info

    with pytest.raises(ValueError, match="stopped at step 0: the environment returned a non-finite observation"):
        make_model(env=BadReset()).learn(10)


def test_terminal_observations_may_be_plain_python() -> None:
    """SB3's DummyVecEnv passes on what the environment returned: a number or a list."""

    class Plain(SpaceEnv):
        def _observe(self) -> Any:
            return 2

    assert SoftAC("MlpPolicy", Plain(observation_space=spaces.Discrete(4)), device="cpu").learn(12).num_timesteps == 12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # 1e300 where the test makes it
def test_what_float32_cannot_hold_is_refused_in_any_precision(dtype: Any, value: float) -> None:
    space = spaces.Box(dtype(-1.0), dtype(1.0), (3,), dtype)

    class Bad(SpaceEnv):
        def _observe(self) -> Any:
            return np.array([0.5, value, 0.5], dtype)

    with pytest.raises(ValueError, match="non-finite observation"):
        SoftAC("MlpPolicy", Bad(observation_space=space), device="cpu").learn(10)


def test_non_finite_dict_observations_are_named() -> None:
    class BadDict(SpaceEnv):
        def _observe(self) -> Any:
            return {"a": np.full(2, np.inf, np.float32)}

    with pytest.raises(ValueError, match=r"non-finite observation 'a' \(inf at index \[0, 0\]\)"):
        SoftAC("MultiInputPolicy", BadDict(observation_space=DICT)).learn(10)


def test_a_normaliser_below_a_frame_stack_is_refused_with_the_order_that_works() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([lambda: CountingEnv(5)])), 2)
    with pytest.raises(ValueError, match=r"the other way round.*VecNormalize\(VecFrameStack\(DummyVecEnv"):
        quick_model(env)
