"""What a user has overridden acts on vectorised environments as it does on SB3's, also where observations are tensors."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_softac import SoftAC, SoftQL, TensorReplayBuffer, VectorEnvAdapter
from sb3_softac.networks import MlpPolicy
from sb3_softac.networks.actors import CategoricalActor
from tests.helpers import SMALL, quick_model

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
from vector_collection import VectorPendulum  # benchmarks/vector_collection.py

TENSORS: dict[str, Any] = {"replay_buffer_class": TensorReplayBuffer}
OPTIONS: dict[str, Any] = {
    **TENSORS,
    "policy_kwargs": SMALL,
    "buffer_size": 2000,
    "batch_size": 8,
    "learning_starts": 40,
    "random_steps": 8,
    "seed": 0,
    "compile": False,
    "device": "cpu",
}
#: observations as arrays and as tensors
DEVICES = [None, "cpu"]


def pendulum(device: str | None, **kwargs: Any) -> VectorEnvAdapter:
    return VectorEnvAdapter(VectorPendulum(4, device=device, length=9, **kwargs))


def stored(model: Any, name: str = "actions") -> Any:
    """All rows of a field, (steps, 4, ...)."""
    return model.replay_buffer.host_rows()[name][: model.replay_buffer.size()]


def half(observation: Any) -> Any:
    """Actions of a rule of one's own: half of the cosine, scaled to bounds of ±2."""
    assert isinstance(observation, np.ndarray)
    return (0.5 * observation[:, :1]).astype(np.float32)


class OwnPredict(SoftAC):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return half(observation), None


class PolicyWithPredict(MlpPolicy):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return half(observation), None


class PolicyWithInnerPredict(MlpPolicy):
    """Scaled to [−1, 1] there."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return th.as_tensor(observation)[:, :1] * 0.25


def with_attribute(owner: str) -> Any:
    def make(env: Any) -> SoftAC:
        model = SoftAC("MlpPolicy", env, **OPTIONS)
        vars(model if owner == "model" else model.policy)["predict"] = lambda observation, *_, **__: (half(observation), None)
        return model

    return make


WAYS: dict[str, Any] = {
    "algorithm": lambda env: OwnPredict("MlpPolicy", env, **OPTIONS),
    "policy": lambda env: SoftAC(PolicyWithPredict, env, **OPTIONS),
    "inner": lambda env: SoftAC(PolicyWithInnerPredict, env, **OPTIONS),
    "attribute of the model": with_attribute("model"),
    "attribute of the policy": with_attribute("policy"),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_an_own_predict_acts(way: str, device: str | None) -> None:
    """In every step that is not random."""
    model = WAYS[way](pendulum(device)).learn(80)
    expected = 0.25 * stored(model, "observations")[:, :, :1]
    np.testing.assert_allclose(stored(model)[2:], expected[2:], atol=1e-6)
    assert np.abs(stored(model)[:2] - expected[:2]).max() > 0.1  # the random ones
    assert model._n_updates == 10


@pytest.mark.parametrize("device", DEVICES)
def test_it_may_be_replaced_on_the_way(device: str | None) -> None:
    class Replaces(BaseCallback):
        model: Any

        def _on_step(self) -> bool:
            if self.n_calls == 10:
                vars(self.model)["predict"] = lambda observation, **_: (half(observation), None)
            if self.n_calls == 15:
                del vars(self.model)["predict"]
            return True

    model = SoftAC("MlpPolicy", pendulum(device), **OPTIONS).learn(80, callback=Replaces())
    same = np.isclose(stored(model), 0.25 * stored(model, "observations")[:, :, :1], atol=1e-6).all(axis=(1, 2))
    assert same.tolist() == [False] * 10 + [True] * 5 + [False] * 5


class WithinHalf(MlpPolicy):
    """Reaches only one half of the torque."""

    def unscale_action(self, scaled_action: Any) -> Any:
        return 0.5 * super().unscale_action(scaled_action)

    def scale_action(self, action: Any) -> Any:
        return super().scale_action(2.0 * action)


class Sent(VectorPendulum):
    """Writes down what it is sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Any] = []

    def step(self, actions: Any) -> Any:
        self.sent.append(th.as_tensor(actions).numpy().copy())
        return super().step(actions)


@pytest.mark.parametrize("device", DEVICES)
def test_an_own_scale_of_actions(device: str | None) -> None:
    vector = Sent(4, device=device)
    model = SoftAC(WithinHalf, VectorEnvAdapter(vector), **OPTIONS).learn(80)
    np.testing.assert_allclose(np.array(vector.sent)[2:], stored(model)[2:], rtol=1e-5)  # ±1 where ±2 are the bounds


class First(CategoricalActor):
    """Takes the first action, whatever its probability."""

    def forward(self, obs: Any, deterministic: bool = False) -> th.Tensor:
        return super().forward(obs, deterministic) * 0


class VectorOfDiscrete(VectorPendulum):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.single_action_space: Any = spaces.Discrete(3, start=5)

    def step(self, actions: Any) -> Any:
        return super().step((actions - 6.0)[:, None])


class FirstPolicy(MlpPolicy):
    def make_actor(self, features_extractor: Any = None) -> Any:
        actor = super().make_actor(features_extractor)
        actor.__class__ = First
        return actor


@pytest.mark.parametrize("device", DEVICES)
def test_an_own_actor_acts(device: str | None) -> None:
    model = SoftAC(FirstPolicy, VectorEnvAdapter(VectorOfDiscrete(4, device=device)), **OPTIONS).learn(80)
    assert (stored(model)[2:] == 5).all()
    assert (stored(model)[:2] != 5).any()


@pytest.mark.parametrize("algorithm", [SoftAC, SoftQL])
@pytest.mark.parametrize("device", DEVICES)
def test_discrete_actions(device: str | None, algorithm: Any) -> None:
    model = algorithm("MlpPolicy", VectorEnvAdapter(VectorOfDiscrete(4, device=device)), **OPTIONS).learn(80)
    assert set(np.unique(stored(model))) == {5, 6, 7}
    assert model._n_updates == 10


class OnlyUpwards(spaces.Box):
    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return np.abs(super().sample(*args, **kwargs))


@pytest.mark.parametrize("device", DEVICES)
def test_an_own_distribution_of_random_actions(device: str | None) -> None:
    vector = VectorPendulum(4, device=device)
    vector.single_action_space = OnlyUpwards(-2.0, 2.0, (1,), np.float32)
    model = SoftAC("MlpPolicy", VectorEnvAdapter(vector), **{**OPTIONS, "random_steps": 80}).learn(80)
    assert (stored(model) > 0).all()


class OwnSteps(SoftAC):
    """Actions and rewards of its own."""

    def _sample_action(self, *args: Any, **kwargs: Any) -> Any:
        actions, scaled = super()._sample_action(*args, **kwargs)
        return actions * 0.0 + 1.0, scaled * 0.0 + 0.5

    def _store_transition(self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, *rest: Any) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward * 0.0 + 7.0, *rest)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:`overlap` is True, but a VectorPendulum")
@pytest.mark.filterwarnings("ignore:`overlap` is True, but a VectorEnvAdapter")
def test_own_actions_and_rewards_are_stored(device: str | None, overlap: bool) -> None:
    model = OwnSteps("MlpPolicy", pendulum(device), overlap=overlap, **OPTIONS).learn(80)
    assert (stored(model) == 0.5).all()
    assert (stored(model, "rewards") == 7.0).all()
    assert model._n_updates == 10


@pytest.mark.parametrize("device", DEVICES)
def test_action_noise_is_added(device: str | None) -> None:
    noise = NormalActionNoise(np.full(1, 0.3), np.zeros(1))
    model = OwnPredict("MlpPolicy", pendulum(device), action_noise=noise, **OPTIONS).learn(40)
    expected = 0.25 * stored(model, "observations")[:, :, :1] + 0.3
    np.testing.assert_allclose(stored(model)[2:], expected[2:], atol=1e-6)


class WritesInfos(BaseCallback):
    """Says that no episode was cut off, and that all end at 0.25; in the dicts that SB3's buffers read."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def _on_step(self) -> bool:
        for index in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][int(index)]
            info["TimeLimit.truncated"] = False
            if self.in_place:
                info["terminal_observation"][:] = 0.25
            else:
                info["terminal_observation"] = info["terminal_observation"] * 0.0 + 0.25
        return True


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_what_a_callback_writes_into_infos_is_stored(device: str | None, in_place: bool) -> None:
    model = SoftAC("MlpPolicy", pendulum(device), **OPTIONS).learn(80, callback=WritesInfos(in_place))
    ended = stored(model, "dones") != 0
    assert ended.sum() == 8
    assert not stored(model, "timeouts").any()
    assert (stored(model, "next_observations")[ended] == 0.25).all()
    assert (stored(model, "next_observations")[~ended] != 0.25).any()
    assert [episode["timeout_rate"] for episode in model.ep_info_buffer or ()] == [0.0] * 8


def test_wrappers_that_change_last_observations() -> None:
    """Stacked frames: the last observation of an episode has the frames before it."""
    model = quick_model(VecFrameStack(pendulum(None), 2), seed=0, **TENSORS)
    model.learn(80)
    following, first = stored(model, "observations")[1:], stored(model, "next_observations")[:-1]
    ended = stored(model, "dones")[:-1] != 0
    np.testing.assert_array_equal((following == first).all(axis=2), ~ended)
    np.testing.assert_array_equal(first[..., :3], stored(model, "observations")[:-1][..., 3:])


class TrainsInBetween(BaseCallback):
    """Leaves the networks in the mode of training."""

    model: Any

    def _on_step(self) -> bool:
        self.model.policy.set_training_mode(True)
        return True


@pytest.mark.parametrize("device", DEVICES)
def test_acting_counts_nothing(device: str | None) -> None:
    """Batch normalisation has the statistics of batches, and of nothing that was seen while acting."""
    kwargs = {**SMALL, "normalization": "batch"}
    model = SoftAC("MlpPolicy", pendulum(device), **{**OPTIONS, "policy_kwargs": kwargs, "gradient_steps": 0})
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(80, callback=TrainsInBetween())
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"use_sde": True, "sde_sample_freq": 4}, {"noise_repeat": 3}], ids=str)
def test_tensors_act_as_arrays(options: dict[str, Any]) -> None:
    """The same actions from the same random numbers, updates in between."""
    actions = []
    for device in DEVICES:
        model = SoftAC("MlpPolicy", pendulum(device), **{**OPTIONS, "random_steps": 0, "train_freq": 8, **options}).learn(96)
        assert model._n_updates == 1 + 1
        actions.append(stored(model))
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-5)
    assert np.abs(np.diff(actions[0], axis=0)).max() > 0.1
