"""Vectorised environments against SB3's own vectors, and against the physics that they claim to have."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from sb3_softac import SoftAC, SoftQL, TensorReplayBuffer, VectorEnvAdapter
from tests.helpers import RandomEnv, quick_model

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
from vector_collection import VectorPendulum  # benchmarks/vector_collection.py

MODES = list(AutoresetMode)
ONE: Any = 1
TENSORS: dict[str, Any] = {"replay_buffer_class": TensorReplayBuffer}


class DictEnv(RandomEnv):
    """The same with Dict observations."""

    def __init__(self, terminates: bool = True) -> None:
        super().__init__(terminates)
        self.observation_space: Any = spaces.Dict({"a": self.observation_space, "b": spaces.Discrete(9)})

    def _observe(self) -> Any:
        return {"a": super()._observe(), "b": int(self.np_random.integers(9))}


def makers(kind: type[RandomEnv], monitored: bool) -> list[Any]:
    """Environments whose episodes end at different times, some of them cut off."""

    def make(index: int) -> Any:
        env = kind(terminates=index % 2 == 0)
        env.n_steps = 3 + index
        return Monitor(env) if monitored else env

    return [lambda index=index: make(index) for index in range(4)]


@pytest.mark.parametrize("kind", [RandomEnv, DictEnv])
@pytest.mark.parametrize("mode", MODES)
def test_all_modes_equal_sb3s_vector(mode: AutoresetMode, kind: type[RandomEnv]) -> None:
    """Observations, rewards, ends, and all that the infos say; the clock left out."""
    theirs = DummyVecEnv(makers(kind, monitored=True))
    ours = VectorEnvAdapter(SyncVectorEnv(makers(kind, monitored=False), autoreset_mode=mode))
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    for env in (theirs, ours):
        env.seed(7)
    assert_same(theirs.reset(), ours.reset())
    n_ended = 0
    for _ in range(25):
        actions = np.zeros((4, 2))
        obs, rewards, dones, infos = theirs.step(actions)
        our_obs, our_rewards, our_dones, our_infos = ours.step(actions)
        assert_same(obs, our_obs)
        assert_same(rewards, our_rewards)
        assert_same(dones, our_dones)
        assert len(our_infos) == 4
        for index, (info, own) in enumerate(zip(infos, our_infos, strict=True)):
            assert not own or dones[index]
            if dones[index]:
                n_ended += 1
                assert own["TimeLimit.truncated"] == info["TimeLimit.truncated"]
                assert_same(info["terminal_observation"], own["terminal_observation"])
                assert (own["episode"]["r"], own["episode"]["l"]) == (
                    pytest.approx(info["episode"]["r"]),
                    info["episode"]["l"],
                )
    assert n_ended > 10
    ours.close()


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
        return
    np.testing.assert_allclose(np.asarray(right), np.asarray(left), rtol=1e-6)


def test_vectors_in_processes_step_while_something_else_is_done() -> None:
    env = VectorEnvAdapter(AsyncVectorEnv(makers(RandomEnv, monitored=False), context="fork"))
    try:
        assert not env.steps_in_this_process
        assert not env.skips_steps
        model = quick_model(env, overlap=True, seed=0, **TENSORS)
        model.learn(80)
        assert model._n_updates > 10
    finally:
        env.close()


def transitions(model: SoftAC) -> dict[str, Any]:
    """All that were stored and may be drawn, (n, ...) by field."""
    buffer = model.replay_buffer
    assert isinstance(buffer, TensorReplayBuffer)
    rows = {name: part[: buffer.size()].reshape(-1, *part.shape[2:]) for name, part in buffer.host_rows().items()}
    return {name: part[~rows["skipped"]] for name, part in rows.items()}


def test_no_stored_transition_is_a_reset() -> None:
    """Gymnasium's CartPole resets in the next step: what may be drawn obeys the physics of a single one."""
    vector = gym.make_vec("CartPole-v1", 16, vectorization_mode="vector_entry_point")
    model = quick_model(VectorEnvAdapter(vector), buffer_size=3000, seed=0, random_steps=1600, learning_starts=1500, **TENSORS)
    model.learn(1600)
    rows, single = transitions(model), gym.make("CartPole-v1").unwrapped
    single.reset()
    n_resets = 100 * 16 - len(rows["rewards"])
    assert n_resets > 40
    for index in range(0, len(rows["rewards"]), 7):
        single.state = rows["observations"][index].astype(np.float64)  # type: ignore[attr-defined]  # CartPole has one
        single.steps_beyond_terminated = None  # type: ignore[attr-defined]  # likewise
        obs, reward, terminated, _, _ = single.step(int(rows["actions"][index, 0]))
        np.testing.assert_allclose(rows["next_observations"][index], obs, rtol=1e-4, atol=1e-5)
        assert (rows["rewards"][index], rows["dones"][index]) == (reward, terminated)
    counted = sum(episode["l"] for episode in model.ep_info_buffer or ())
    assert n_resets - 16 <= len(model.ep_info_buffer or ()) <= n_resets + 16
    assert counted == pytest.approx(sum(episode["r"] for episode in model.ep_info_buffer or ()))  # 1 for each step


def test_another_buffer_would_store_resets() -> None:
    vector = gym.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match="`replay_buffer_class` is ReplayBuffer, but it must be TensorReplayBuffer here"):
        quick_model(VectorEnvAdapter(vector)).learn(10)


# --- tensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SoftAC, SoftQL])
@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("mode", MODES)
def test_transitions_obey_the_physics(mode: AutoresetMode, device: str | None, algorithm: Any) -> None:
    """In arrays and in tensors, which lie in the same memory in each step; whatever resets, and when."""
    env = VectorEnvAdapter(VectorPendulum(8, mode, device, length=15, ends_upright=True))
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 2000, "learning_starts": 40, "batch_size": 8}
    model = algorithm("MlpPolicy", env, seed=0, compile=False, device="cpu", **options, **TENSORS).learn(800)
    assert model._n_updates > 50
    rows = transitions(model)
    n_skipped = 800 - len(rows["rewards"])
    assert (n_skipped > 0) == (mode is AutoresetMode.NEXT_STEP)
    (cos, sin, speed), torque = rows["observations"].T, 2.0 * rows["actions"][:, 0]
    angle = np.arctan2(sin, cos)
    np.testing.assert_allclose(rows["rewards"], -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2), rtol=1e-3, atol=1e-3)
    new_speed = np.clip(speed + (15.0 * sin + 3.0 * torque) * 0.05, -8.0, 8.0)
    expected = np.stack([np.cos(angle + new_speed * 0.05), np.sin(angle + new_speed * 0.05), new_speed], axis=1)
    np.testing.assert_allclose(rows["next_observations"], expected, atol=1e-4)
    ended, cut_off = rows["dones"] != 0, rows["timeouts"] != 0
    np.testing.assert_array_equal(ended & ~cut_off, np.abs(angle) < 0.3)
    assert cut_off.sum() > 5
    assert not (cut_off & ~ended).any()


def test_all_hooks_of_the_collection_work_on_tensors() -> None:
    """Statistics of observations and returns are those of what is stored, each observation once."""
    env = VectorEnvAdapter(VectorPendulum(4, AutoresetMode.NEXT_STEP, "cpu", length=10))
    options: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": 5.0, "noise_repeat": 4}
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    model = quick_model(env, random_steps=20, seed=0, buffer_size=2000, action_noise=noise, **options, **TENSORS)
    model.learn(4 * 33)  # three times ten steps and a reset
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    seen = [model.replay_buffer.host_rows()["observations"][:33].reshape(-1, 3), np.asarray(model._last_obs)]
    normalizer: Any = model.policy.normalizer
    moments = normalizer.moments[0]
    assert float(moments.count) == 34 * 4
    np.testing.assert_allclose(moments.mean.numpy(), np.concatenate(seen).mean(axis=0), rtol=1e-6)
    assert model._return_moments is not None
    assert model._return_moments[0] == 4 * 30
    assert [episode["l"] for episode in model.ep_info_buffer or ()] == [10] * 12
    assert all(episode["timeout_rate"] == 1.0 and "saturation" in episode for episode in model.ep_info_buffer or ())


def test_facts_of_episodes_are_those_of_sb3s_buffer() -> None:
    """The same rows, and the same summary of each episode, in both buffers."""
    facts = []
    for buffer_class in (ReplayBuffer, TensorReplayBuffer):
        env = VectorEnvAdapter(VectorPendulum(4, length=9, ends_upright=True))
        model = quick_model(env, random_steps=400, learning_starts=400, seed=0, replay_buffer_class=buffer_class)
        model.learn(400)
        names = ("r", "l", "discounted_return", "saturation", "timeout_rate")
        facts.append([[episode[name] for name in names] for episode in model.ep_info_buffer or ()])
    assert len(facts[0]) > 20
    np.testing.assert_allclose(facts[0], facts[1], rtol=1e-6)


class Broken(VectorPendulum):
    """Says something that is no number."""

    where = "observation"

    def step(self, actions: Any) -> Any:
        obs, reward, *rest = super().step(actions)
        if self.time[0] == 3:
            (obs if self.where == "observation" else reward)[1] = float("nan")
        return obs, reward, *rest


@pytest.mark.parametrize("where", ["observation", "reward"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_non_finite_data_are_refused(device: str | None, where: str) -> None:
    vector = Broken(4, device=device)
    vector.where = where
    model = quick_model(VectorEnvAdapter(vector), **TENSORS)
    with pytest.raises(ValueError, match=f"the environment returned a non-finite {where}"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 2


class DictTensors(VectorPendulum):
    """Dict observations in tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.single_observation_space: Any = spaces.Dict({"x": self.single_observation_space})

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return {"x": obs}, info

    def step(self, actions: Any) -> Any:
        obs, *rest, info = super().step(actions)
        return {"x": obs}, *rest, {"final_obs": {"x": info["final_obs"]}} if info else {}


def test_dict_of_tensors() -> None:
    model = quick_model(VectorEnvAdapter(DictTensors(4, device="cpu", length=7)), "MultiInputPolicy", seed=0, **TENSORS)
    model.learn(200)
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    rows = model.replay_buffer.host_rows()
    ended = rows["dones"][:50] != 0
    following, first = rows["observations"]["x"][1:50], rows["next_observations"]["x"][:49]
    same = (following == first).all(axis=2)
    np.testing.assert_array_equal(same, ~ended[:49])  # except where an episode ends, one begins where the other has led to
    assert model._n_updates > 20


def test_wrappers_that_take_arrays_are_refused() -> None:
    for wrapper in (VecNormalize, VecMonitor):
        env: Any = wrapper(VectorEnvAdapter(VectorPendulum(4, device="cpu")))
        with pytest.raises(ValueError, match=f"a {wrapper.__name__} around it takes arrays"):
            quick_model(env, **TENSORS).learn(20)
    with pytest.raises(ValueError, match="the environment hands out tensors"):
        quick_model(VectorEnvAdapter(VectorPendulum(4, device="cpu"))).learn(20)


def test_wrappers_of_sb3_work_on_arrays() -> None:
    env = VecNormalize(VecMonitor(VectorEnvAdapter(VectorPendulum(4, length=6))))
    model = quick_model(env, seed=0, **TENSORS)
    model.learn(100)
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    rows = model.replay_buffer.host_rows()
    assert (rows["timeouts"][:25] != 0).sum() == 16
    np.testing.assert_allclose(np.linalg.norm(rows["next_observations"][:25, :, :2], axis=2), 1.0, rtol=1e-3)  # unnormalised


def test_a_seed_makes_it_repeatable() -> None:
    weights = []
    for _ in range(2):
        model = quick_model(VectorEnvAdapter(VectorPendulum(4, device="cpu")), seed=3, **TENSORS)
        model.learn(100)
        weights.append(th.cat([part.flatten() for part in model.policy.state_dict().values()]))
    assert th.equal(*weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorEnvAdapter(RandomEnv()), "`env` is a RandomEnv without `num_envs`"),
        (
            lambda: VectorEnvAdapter(VectorPendulum(2), "never"),
            "`autoreset_mode` is 'never', but it must be one of 'NextStep'",
        ),
        (lambda: VectorEnvAdapter(VectorPendulum(2), "NextStep"), "`autoreset_mode` is 'NextStep', but it must be 'SameStep'"),
        (lambda: VectorEnvAdapter(VectorPendulum(2), copy=ONE), "`copy` is 1, but it must be True or False"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_one_that_does_not_say_when_it_resets() -> None:
    vector = VectorPendulum(2)
    vector.metadata = {}
    with pytest.raises(ValueError, match="`autoreset_mode` is None, but it must be one of"):
        VectorEnvAdapter(vector)
    assert VectorEnvAdapter(vector, "SameStep").mode is AutoresetMode.SAME_STEP


def test_sb3s_vectors_are_as_before() -> None:
    """Infos in dicts take the same way as ever, into both buffers."""
    for buffer_class in (ReplayBuffer, TensorReplayBuffer):
        model = quick_model(make_vec_env("Pendulum-v1", 2), seed=0, replay_buffer_class=buffer_class).learn(60)
        assert model._n_updates > 10
