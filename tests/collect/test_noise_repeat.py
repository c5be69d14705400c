"""Exploration noise that is kept: how long, in which environment, and that every way to act has it."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.noise import NormalActionNoise

from sb3_softac import SoftAC, SoftACPolicy
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.collect import exploration
from sb3_softac.collect.acting import CapturedActor, DirectActor
from sb3_softac.collect.noise import advance, draw_lengths
from tests import graph_standin
from tests.files.resume_runs import Stop, Stopped
from tests.helpers import (
    DICT,
    SMALL,
    MatrixEnv,
    RandomDiscreteEnv,
    RandomEnv,
    SampledEnv,
    assert_same_parameters,
    make_model,
    quick_model,
)

#: nothing is trained, so that mean and deviation of all actions are still known at the end
UNTRAINED: dict[str, Any] = {"learning_starts": 10_000, "random_steps": 0, "policy_kwargs": {**SMALL, "log_std_init": -1.0}}


def long_episodes(n_envs: int, n_steps: int = 1000) -> Any:
    return make_vec_env(RandomEnv, n_envs, env_kwargs={"n_steps": n_steps})


def noise_of(model: SoftAC) -> np.ndarray[Any, Any]:
    """ε of all stored actions, (steps, n_envs, A): (artanh a − μ)/σ."""
    buffer = model.replay_buffer
    assert buffer is not None
    size = buffer.pos
    observations = th.as_tensor(buffer.observations[:size].reshape(size * model.n_envs, -1))
    with th.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(observations)
    actions = np.arctanh(
        np.clip(buffer.actions[:size].reshape(size * model.n_envs, -1).astype(np.float64), -1 + 1e-9, 1 - 1e-9)
    )
    noise: np.ndarray[Any, Any] = ((th.as_tensor(actions) - mean) / log_std.exp()).numpy()
    return noise.reshape(size, model.n_envs, -1)


def lengths(noise: np.ndarray[Any, Any]) -> list[int]:
    """How long each noise is kept, of one environment (steps, A); the last one may go on."""
    changes = np.flatnonzero(np.abs(np.diff(noise, axis=0)).max(axis=1) > 1e-2) + 1
    return [int(length) for length in np.diff([0, *changes, len(noise)])]


def test_lengths_follow_the_cut_zeta_distribution() -> None:
    """Pearson's χ² of 10⁵ draws, with 15 degrees of freedom: above 44 once in 10,000 seeds."""
    th.manual_seed(0)
    counts = np.bincount(draw_lengths(16, 100_000), minlength=17)
    assert (len(counts), counts[0]) == (17, 0)
    expected = 1.0 / np.arange(1, 17) ** 2
    expected *= 100_000 / expected.sum()
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 44
    assert set(draw_lengths(1, 50)) == {1}


def test_advance_by_hand() -> None:
    th.manual_seed(0)
    noise, left = np.full((3, 2), 7.0, np.float32), np.array([2, 0, 1])
    advance(noise, left, 1)
    assert left.tolist() == [1, 0, 0]
    assert (noise[[0, 2]] == 7.0).all()
    assert (noise[1] != 7.0).all()
    advance(noise, left, 1)
    assert left.tolist() == [0, 0, 0]
    assert (noise[0] == 7.0).all()
    assert (noise[2] != 7.0).all()


def test_noise_is_kept_while_mean_and_observation_change() -> None:
    """Recovered from the replay buffer, for each environment by itself."""
    model = quick_model(long_episodes(2), seed=0, noise_repeat=8, buffer_size=3000, **UNTRAINED).learn(1600)
    noise = noise_of(model)
    both = [lengths(noise[:, i]) for i in range(2)]
    assert both[0] != both[1]
    for found in both:
        assert max(found) <= 8
        assert np.mean(found) == pytest.approx(sum(1 / n for n in range(1, 9)) / sum(1 / n**2 for n in range(1, 9)), rel=0.2)
    drawn = np.concatenate([noise[np.cumsum([0, *found[:-1]]), i] for i, found in enumerate(both)])
    assert drawn.mean() == pytest.approx(0.0, abs=0.15)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)
    plain = quick_model(long_episodes(2), seed=0, buffer_size=3000, **UNTRAINED).learn(400)
    assert set(lengths(noise_of(plain)[:, 0])) == {1}


def test_an_episode_begins_with_new_noise() -> None:
    model = quick_model(RandomEnv(n_steps=3), seed=0, noise_repeat=1000, **UNTRAINED).learn(300)
    noise = noise_of(model)[:, 0].reshape(100, 3, 2)
    assert (np.abs(noise[1:, 0] - noise[:-1, 2]).max(axis=1) > 1e-2).all()
    assert (np.abs(noise[:, 1] - noise[:, 0]).max(axis=1) < 1e-2).any()


class Remember(BaseCallback):
    """What is sent to the environments, and predictions in between, which are none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray[Any, Any]] = []
        self.same = 0

    def _on_step(self) -> bool:
        self.actions.append(np.array(self.locals["actions"]))
        obs = self.locals["new_obs"]
        with th.random.fork_rng():
            first, second = (self.model.predict(obs, deterministic=False)[0] for _ in range(2))
        # Normalised by the statistics of one observation, another one may saturate the actions.
        self.same += int(np.array_equal(first, second) and self.n_calls > 1)
        return True


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "several": {"env": long_episodes(3)},
    "matrix": {"env": MatrixEnv()},
    "normalised": {"normalize_observations": True},
    "free": {"policy_kwargs": {**SMALL, "log_std_mode": "free"}},
    "tanh": {"policy_kwargs": {**SMALL, "log_std_bounding": "tanh", "log_std_bounds": (-3.0, 1.0)}},
}


def actions_of(kind: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
    """All actions of a training of 40 steps, of which 10 are random ones, that acts by ``kind``."""
    callback = Remember()
    model = quick_model(**{"env": RandomEnv(), "seed": 0, "noise_repeat": 6, **kwargs})
    model.learn(40, callback=callback)
    assert type(model._runtime.actor) is kind
    assert callback.same == 0
    return np.array(callback.actions)


@pytest.mark.parametrize("case", CASES)
def test_each_way_to_act_has_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directly, by `predict`, and captured; trained in between, from the same random numbers."""
    direct = actions_of(DirectActor, **CASES[case])
    monkeypatch.setattr(exploration, "make_actor", lambda *_: None)
    np.testing.assert_allclose(actions_of(type(None), **CASES[case]), direct, atol=1e-5)
    monkeypatch.undo()
    graph_standin.install(monkeypatch)
    monkeypatch.setattr("sb3_softac.engine.engine.missing_for_compilation", lambda device: "a compiler")
    captured = actions_of(CapturedActor, compile="auto", **CASES[case])
    np.testing.assert_allclose(captured, direct, atol=1e-4)


def test_random_steps_are_as_without_it() -> None:
    first, second = (actions_of(DirectActor, noise_repeat=repeat)[:10] for repeat in (6, None))
    np.testing.assert_array_equal(first, second)


def test_action_noise_is_added() -> None:
    """By hand: what is stored is tanh(μ + σε) + 0.1, where that is below 1."""
    constant = NormalActionNoise(np.full(2, 0.1), np.zeros(2))
    model = quick_model(RandomEnv(), seed=0, noise_repeat=6, action_noise=constant, **UNTRAINED).learn(60)
    plain = quick_model(RandomEnv(), seed=0, noise_repeat=6, **UNTRAINED).learn(60)
    assert model.replay_buffer is not None
    assert plain.replay_buffer is not None
    with_noise, without = (buffer.actions[:1, 0] for buffer in (model.replay_buffer, plain.replay_buffer))
    np.testing.assert_allclose(with_noise, np.clip(without + 0.1, -1, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["dict", "images", "another activation"])
def test_policies_that_fall_back_to_predict(kind: str) -> None:
    images: Any = FakeImageEnv(36, 36, discrete=False)
    options: dict[str, Any] = {"seed": 0, "noise_repeat": 5, "learning_starts": 100, "random_steps": 0, "buffer_size": 100}
    if kind == "dict":
        env: Any = SampledEnv(observation_space=DICT)
        model = quick_model(env, "MultiInputPolicy", **options)
    elif kind == "images":
        model = quick_model(images, "CnnPolicy", **options)
    else:
        model = quick_model(RandomEnv(), **options, policy_kwargs={"net_arch": [8], "activation_fn": th.nn.LeakyReLU})
    model.learn(5)
    assert model._runtime.actor is None
    assert model._kept_noise is not None
    assert "draw_noise" not in vars(model.actor.action_dist)
    obs, left = model._last_obs, model._kept_steps
    assert left is not None
    left[:] = 3
    with th.no_grad():
        model.policy.set_training_mode(False)
        tensor = model.policy.obs_to_tensor(obs)[0]  # type: ignore[arg-type]  # there is one
        mean, log_std, _ = model.actor.get_action_dist_params(tensor)
        expected = th.tanh(mean + log_std.exp() * th.as_tensor(model._kept_noise))
    actions, stored = model._sample_action(0, None, 1)
    np.testing.assert_allclose(stored, expected.numpy().reshape(stored.shape), atol=1e-5)
    assert isinstance(model.action_space, spaces.Box)
    assert model.action_space.contains(actions[0])
    assert left.tolist() == [2]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("options", [{}, {"train_freq": 3}, {"policy_kwargs": {"net_arch": [8], "normalization": "layer"}}])
def test_resumed_bit_for_bit(n_envs: int, options: dict[str, Any], tmp_path: Path) -> None:
    """In the middle of a repetition."""

    def make() -> SoftAC:
        return quick_model(long_episodes(n_envs, 13), seed=0, noise_repeat=30, **options)

    expected = make().learn(120)
    with pytest.raises(Stopped):
        make().learn(120, callback=[ExactCheckpointCallback(7, tmp_path), Stop(57)])
    model = SoftAC.resume(tmp_path, long_episodes(n_envs, 13), noise_repeat=30)
    assert model._kept_steps is not None
    model.learn()
    assert_same_parameters(model, expected)
    for left, right in ((model._kept_noise, expected._kept_noise), (model._kept_steps, expected._kept_steps)):
        np.testing.assert_array_equal(left, right)


def test_a_loaded_model_begins_with_new_noise() -> None:
    model = quick_model(RandomEnv(), noise_repeat=50).learn(30)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream, RandomEnv())
    assert loaded.noise_repeat == 50
    loaded.random_steps = 0
    before = np.array(model._kept_noise)
    loaded.learn(1)
    assert loaded._kept_noise is not None
    assert not np.array_equal(loaded._kept_noise, before)
    copied = copy.deepcopy(model)
    copied.learn(5, reset_num_timesteps=False)
    assert copied.num_timesteps == 35


def test_a_second_learn_goes_on_with_it_where_the_episode_does() -> None:
    options = {"seed": 0, "noise_repeat": 1000, **UNTRAINED}
    whole = quick_model(RandomEnv(n_steps=30), **options).learn(60)
    parts = quick_model(RandomEnv(n_steps=30), **options).learn(10)
    parts.learn(50, reset_num_timesteps=False)
    np.testing.assert_array_equal(noise_of(whole), noise_of(parts))


def test_set_during_training() -> None:
    """At the next action, or refused."""
    model: Any = quick_model(RandomEnv(n_steps=100), seed=0, **UNTRAINED).learn(20)
    assert model._kept_noise is None
    model.noise_repeat = 1000
    model.learn(20, reset_num_timesteps=False)
    found = lengths(noise_of(model)[:, 0])
    assert found[:20] == [1] * 20
    assert len(found[20:]) < 20
    model.noise_repeat = 0
    with pytest.raises(ValueError, match="`noise_repeat` is 0, but it must be an integer of at least 1"):
        model.learn(5)
    assert model.noise_repeat == 1000

    class Switch(BaseCallback):
        def _on_step(self) -> bool:
            self.model.noise_repeat = None if self.n_calls < 5 else "often"  # type: ignore[attr-defined]  # ours
            return True

    with pytest.raises(ValueError, match="`noise_repeat` is 'often'"):
        model.learn(20, callback=Switch())
    assert model._kept_noise is None


class Silent(SoftACPolicy):
    """A policy that acts without its actor."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return th.zeros(len(observation), 2)


def test_policies_that_ask_for_no_noise_are_refused() -> None:
    model = SoftAC(Silent, RandomEnv(), noise_repeat=5, random_steps=0, buffer_size=100, policy_kwargs=dict(SMALL))
    with pytest.raises(ValueError, match="the actions of this Silent do not come from one sample"):
        model.learn(3)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "16", [4]])
def test_values_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`noise_repeat` is .*, but it must be an integer of at least 1"):
        make_model(noise_repeat=value)


def test_contradictions() -> None:
    with pytest.raises(ValueError, match="`noise_repeat` is 4, but it must be None with `use_sde=True`"):
        make_model(noise_repeat=4, use_sde=True)
    with pytest.raises(ValueError, match="`noise_repeat` is 4, but it must be None with discrete actions"):
        make_model(noise_repeat=4, env=RandomDiscreteEnv())
    with pytest.raises(ValueError, match="`noise_repeat` is 4 and would have to be None"):
        make_model(noise_repeat=4, ent_coef_update="log").to_sb3()
    assert make_model(noise_repeat=16.0).noise_repeat == 16
