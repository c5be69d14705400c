"""Rewards divided by the deviation of the return: against a loop by hand, and against the same training with that factor."""

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import rl_zoo3.callbacks
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC, SoftQL, zoo
from sb3_softac.collect.returns import count_returns, no_returns, reward_divisor
from tests import graph_standin
from tests.helpers import (
    SMALL,
    CountingEnv,
    RandomDiscreteEnv,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    fill_buffer,
    logged,
    make_model,
    parameters_of,
    quick_model,
    restart_generators,
    update_of,
)


def by_hand(episodes: list[list[list[float]]], gamma: float, g_max: float) -> float:
    """The divisor after all rewards, of each environment and each of its episodes, one reward after the other."""
    returns = []
    for of_one in episodes:
        for rewards in of_one:
            value = 0.0
            for reward in rewards:
                value = gamma * value + reward
                returns.append(value)
    mean = sum(returns) / len(returns)
    variance = sum((value - mean) ** 2 for value in returns) / len(returns)
    return max(math.sqrt(variance + 1e-8), max(map(abs, returns)) / g_max)


class Paying(RandomEnv):
    """Rewards far from 1, which it remembers by episode; the lengths of episodes change."""

    def __init__(self, terminates: bool = True) -> None:
        super().__init__(terminates)
        self.episodes: list[list[float]] = []

    def reset(self, **kwargs: Any) -> Any:
        self.episodes.append([])
        self.n_steps = 2 + len(self.episodes) % 4
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        reward = float(np.float32(30.0 * reward - 10.0))  # as vectors of environments hand it over
        self.episodes[-1].append(reward)
        return obs, reward, *rest


class Free(RandomEnv):
    """No rewards."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, 0.0, *rest


def paying(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Paying(**kwargs)] * n_envs)


def episodes_of(env: DummyVecEnv) -> list[list[list[float]]]:
    return [each.episodes for each in env.envs]  # type: ignore[attr-defined]


def through_a_file(model: SoftAC, **kwargs: Any) -> SoftAC:
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    return SoftAC.load(stream, device="cpu", **kwargs)


class TestTheDivisor:
    @pytest.mark.parametrize("n_envs", [1, 3])
    @pytest.mark.parametrize("terminates", [True, False])
    @pytest.mark.parametrize(("gamma", "g_max"), [(0.9, 5.0), (0.99, 0.5), (0.0, 100.0), (1.0, 2.0)])
    def test_it_is_that_of_a_loop_by_hand(self, n_envs: int, terminates: bool, gamma: float, g_max: float) -> None:
        """Over resets by the environments, and by `learn`; an episode that goes on in the next `learn` goes on here, too."""
        env = paying(n_envs, terminates=terminates)
        model = quick_model(env, normalize_rewards=g_max, gamma=gamma, seed=0)
        for n_steps, resets in ((20, True), (13, False), (8, True)):
            model.learn(n_steps * n_envs, reset_num_timesteps=resets)
            assert model._reward_divisor() == pytest.approx(by_hand(episodes_of(env), gamma, g_max), rel=1e-9)

    def test_the_largest_return_bounds_it(self) -> None:
        moments, running = no_returns(), np.zeros(1)
        for reward in [0.0] * 99 + [100.0]:
            count_returns(moments, running, np.array([reward]), np.array([False]), 0.9)
        assert reward_divisor(moments, 5.0) == pytest.approx(20.0)  # max|G| becomes G_max; √Var G is 9.95
        assert reward_divisor(moments, 50.0) == pytest.approx(math.sqrt(99.0 + 1e-8))

    def test_where_nothing_is_known_it_is_1(self) -> None:
        moments, running = no_returns(), np.zeros(2)
        assert reward_divisor(moments, 5.0) == 1.0
        for _ in range(3):
            count_returns(moments, running, np.zeros(2), np.array([False, True]), 0.9)
            assert reward_divisor(moments, 5.0) == 1.0
        count_returns(moments, running, np.array([1e-3, 0.0]), np.array([False, True]), 0.9)
        assert 1e-4 <= reward_divisor(moments, 5.0) < 1e-3
        constant = no_returns()
        for _ in range(3):
            count_returns(constant, running * 0.0, np.array([-2.0, -2.0]), np.array([True, True]), 0.9)
        assert reward_divisor(constant, 5.0) == pytest.approx(0.4)  # no variance, but a size

    def test_equal_rewards_of_zero_train(self) -> None:
        model = quick_model(Free(), normalize_rewards=5.0).learn(30)
        model.train(1, batch_size=8)
        assert logged(model, "reward_divisor") == 1.0

    def test_a_stop_by_a_callback_loses_no_reward(self) -> None:
        env = paying()
        model = quick_model(env, normalize_rewards=5.0, gamma=0.9, train_freq=10)
        model.learn(50, callback=lambda *_: model.num_timesteps < 13)
        assert model._reward_divisor() == pytest.approx(by_hand(episodes_of(env), 0.9, 5.0), rel=1e-9)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "three steps": {"n_steps": 3},
    "value network": {"value_network": True},
    "scaled": {"reward_scale": -2.0},
    "discrete": {"env": RandomDiscreteEnv()},
    "quantiles": {"policy_kwargs": {**SMALL, "critic_head": "quantile"}},
}


class TestTheStep:
    @pytest.mark.parametrize("case", OPTIONS)
    def test_it_divides_all_rewards(self, case: str) -> None:
        """As with `reward_scale` divided by it; the replay buffer has the rewards as they were."""
        model = make_model(compile=False, **{"env": RandomEnv(), **OPTIONS[case]}, normalize_rewards=5.0)
        fill_buffer(model)
        count_returns(*self.statistics(model), np.array([37.0]), np.array([False]), 0.9)
        count_returns(*self.statistics(model), np.array([1.0]), np.array([False]), 0.9)
        factor = model.reward_scale / model._reward_divisor()
        other = make_model(compile=False, **{"env": RandomEnv(), **OPTIONS[case], "reward_scale": factor})
        fill_buffer(other)
        for each in (model, other):
            restart_generators()
            each.train(5, batch_size=16)
        assert abs(factor) < 0.3
        assert_same_parameters(model, other)
        assert model.replay_buffer is not None
        assert other.replay_buffer is not None
        np.testing.assert_array_equal(model.replay_buffer.rewards, other.replay_buffer.rewards)

    @staticmethod
    def statistics(model: SoftAC) -> tuple[Any, Any]:
        return model._return_moments, model._running_returns

    def test_before_any_reward(self) -> None:
        model, plain = make_model(normalize_rewards=5.0, compile=False), make_model(compile=False)
        for each in (model, plain):
            fill_buffer(each)
            restart_generators()
            each.train(3, batch_size=16)
        assert_same_parameters(model, plain)
        assert logged(model, "reward_divisor") == 1.0

    def test_hindsight(self) -> None:
        """Rewards of relabelled goals are divided as all others."""
        model = quick_model(
            CountingEnv(5, goals=True),
            "MultiInputPolicy",
            normalize_rewards=5.0,
            replay_buffer_class=HerReplayBuffer,
            learning_starts=100,
        ).learn(40)
        other = copy.deepcopy(model)
        other.normalize_rewards = None
        other.reward_scale = 1.0 / model._reward_divisor()
        for each in (model, other):
            restart_generators()
            each.train(5, batch_size=16)
        assert_same_parameters(model, other)

    def moving(self, model: SoftAC) -> SoftAC:
        """Gradient steps while the divisor moves."""
        fill_buffer(model)
        restart_generators()
        divisors = []
        for reward in (0.1, 30.0, -100.0):
            count_returns(*self.statistics(model), np.array([reward]), np.array([True]), 0.9)
            model.train(2, batch_size=32)
            divisors.append(logged(model, "reward_divisor"))
        assert divisors == sorted(divisors)
        assert divisors[2] > 20.0 * divisors[0]
        return model

    @pytest.mark.traced
    def test_compiled_steps_read_it(self) -> None:
        compiled, eager = (self.moving(make_model(normalize_rewards=5.0, compile=way)) for way in (True, False))
        assert compiled._engine.n_builds == 1
        assert_close(compiled, eager)

    def test_captured_steps_read_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        eager = self.moving(make_model(normalize_rewards=5.0, compile=False))
        graph_standin.install(monkeypatch)
        captured = self.moving(make_model(normalize_rewards=5.0, compile="auto"))
        assert captured._engine.captures
        assert_close(captured, eager)

    def test_both_normalisers_learn(self) -> None:
        model = quick_model(paying(3), normalize_rewards=5.0, normalize_observations=True).learn(90)
        assert model._n_updates > 0
        assert update_of(model).reward_scale == pytest.approx(1.0 / logged(model, "reward_divisor"))


class TestFiles:
    def test_statistics_stay_and_returns_begin_again(self) -> None:
        env = paying(2)
        model = quick_model(env, normalize_rewards=5.0, seed=0).learn(33)
        loaded = through_a_file(model)
        assert loaded._reward_divisor() == model._reward_divisor()
        for vec in (paying(2), paying(3)):
            again = through_a_file(model, env=vec, learning_starts=1000)
            again.learn(1, reset_num_timesteps=False)
            rewards = [episodes[-1][-1] for episodes in episodes_of(vec)]
            assert again._running_returns is not None
            np.testing.assert_allclose(again._running_returns, rewards, rtol=1e-6)
            assert again._return_moments is not None
            assert again._return_moments[0] == 34 + len(rewards)

    def test_copies_have_their_own(self) -> None:
        model = quick_model(paying(), normalize_rewards=5.0).learn(20)
        copied = copy.deepcopy(model)
        before = model._reward_divisor()
        assert copied._reward_divisor() == before
        copied.learn(20)
        assert model._reward_divisor() == before != copied._reward_divisor()

    def test_a_warm_start_takes_them_over(self) -> None:
        """The values that the critics know are in their unit."""
        model = quick_model(paying(), normalize_rewards=5.0).learn(20)
        other = quick_model(paying(), normalize_rewards=5.0).warm_start(model)
        assert other._reward_divisor() == model._reward_divisor()
        assert other._return_moments is not model._return_moments
        np.testing.assert_array_equal(other._running_returns, [0.0])
        assert quick_model(paying()).warm_start(model)._return_moments is None
        assert quick_model(paying(), normalize_rewards=5.0).warm_start(quick_model(paying()))._reward_divisor() == 1.0

    def test_numbers_of_numpy(self) -> None:
        options: dict[str, Any] = {"normalize_rewards": np.float32(5.0), "normalize_observations": np.bool_(True)}
        loaded = through_a_file(quick_model(paying(), **options).learn(20))
        assert (loaded.normalize_rewards, loaded.normalize_observations) == (5.0, True)

    def test_files_without_it(self) -> None:
        model = quick_model(paying(), seed=0).learn(20)
        assert "_return_moments" not in vars(model)
        loaded = through_a_file(model, normalize_rewards=5.0)
        assert loaded._reward_divisor() == 1.0
        switched_off = through_a_file(quick_model(paying(), normalize_rewards=5.0).learn(20), normalize_rewards=None)
        assert "_return_moments" not in vars(switched_off)

    def test_sb3(self) -> None:
        with pytest.raises(ValueError, match=r"`normalize_rewards` is 5\.0 and would have to be None"):
            quick_model(paying(), normalize_rewards=5.0, ent_coef_update="log").to_sb3()
        sac = SAC("MlpPolicy", RandomEnv(), buffer_size=50, policy_kwargs=dict(SMALL), device="cpu").learn(10)
        model = SoftAC.from_sb3(sac, normalize_rewards=5.0, learning_starts=12)
        assert model._reward_divisor() == 1.0
        model.learn(10, reset_num_timesteps=False)
        assert model._reward_divisor() != 1.0


class TestChanges:
    def test_another_bound_counts_at_the_next_step(self) -> None:
        model = quick_model(paying(), normalize_rewards=1e6).learn(20)
        by_deviation = model._reward_divisor()
        model.normalize_rewards = 0.1
        model.train(1, batch_size=8)
        assert model._return_moments is not None
        assert logged(model, "reward_divisor") == pytest.approx(model._return_moments[3] / 0.1)
        assert logged(model, "reward_divisor") > by_deviation

    def test_on_and_off(self) -> None:
        model = quick_model(paying()).learn(20)
        model.normalize_rewards = 5.0
        model.learn(20)
        assert model._return_moments is not None
        assert model._return_moments[0] == 20
        assert update_of(model).reward_scale == pytest.approx(1.0 / logged(model, "reward_divisor"))
        model.normalize_rewards = None
        model.train(1, batch_size=8)
        assert update_of(model).reward_scale == 1.0
        assert "_return_moments" not in vars(model)

    @pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "5"])
    def test_bad_bounds(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"`normalize_rewards` is .*, but it must be a finite number and above 0"):
            make_model(normalize_rewards=value)
        model = make_model(normalize_rewards=2.0)
        model.normalize_rewards = value
        with pytest.raises(ValueError, match="`normalize_rewards` is"):
            model.learn(1)
        assert model.normalize_rewards == 2.0

    def test_vec_normalize_of_rewards(self) -> None:
        twice = VecNormalize(DummyVecEnv([RandomEnv]), norm_obs=False)
        message = r"`normalize_rewards` is on, but VecNormalize in `env` normalises rewards, too: .*norm_reward=False"
        with pytest.raises(ValueError, match=message):
            make_model(env=twice, normalize_rewards=5.0)
        model = make_model(normalize_rewards=5.0)
        with pytest.raises(ValueError, match=message):
            model.set_env(twice)
        with pytest.raises(ValueError, match=message):
            through_a_file(model, env=twice)
        plain = make_model(env=twice)
        plain.normalize_rewards = 5.0
        with pytest.raises(ValueError, match=message):
            plain.learn(5)
        make_model(env=VecNormalize(DummyVecEnv([RandomEnv]), norm_reward=False), normalize_rewards=5.0).learn(10)

    def test_soft_q_learning_has_none(self) -> None:
        with pytest.raises(TypeError, match="normalize_rewards"):
            SoftQL("MlpPolicy", RandomEnv(), normalize_rewards=5.0)  # type: ignore[call-arg]

    @pytest.mark.parametrize("options", [{"normalize_rewards": 5.0}, {"normalize_observations": True}], ids=str)
    def test_not_with_training_in_parallel(self, options: dict[str, Any]) -> None:
        zoo.register()
        model = quick_model(RandomEnv(), train_freq=(1, "episode"), **options)
        with pytest.raises(ValueError, match=r"but it must be .* with ParallelTrainCallback"):
            model.learn(20, callback=rl_zoo3.callbacks.ParallelTrainCallback())


def test_without_the_options_nothing_is_there() -> None:
    model = make_model(learning_starts=5, batch_size=8).learn(20)
    assert not [name for name, _ in parameters_of(model) if "normalizer" in name]
    assert "normalize_observations" not in model.policy_kwargs
    assert "train/reward_divisor" not in model.logger.name_to_value
    assert not any(isinstance(value, th.nn.Module) for value in vars(model.policy).values())
