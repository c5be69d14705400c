"""To SB3's ``SAC`` and back: SB3 itself is the source of truth."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_softac import SoftAC
from tests.helpers import (
    OBS_DIM,
    SMALL,
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    make_model,
    train_with_noise,
)

LOG = {"ent_coef_update": "log"}
CASES: dict[str, dict[str, Any]] = {
    "learned": LOG,
    "learned from 0.1, target entropy": {**LOG, "ent_coef": "auto_0.1", "target_entropy": -0.5},
    "fixed": {"ent_coef": 0.2},
    "sizes and tanh": {**LOG, "policy_kwargs": {"net_arch": {"pi": [8, 12], "qf": [16]}, "activation_fn": nn.Tanh}},
    "no hidden layers": {**LOG, "policy_kwargs": {"net_arch": []}},
    "three critics": {**LOG, "policy_kwargs": {**SMALL, "n_critics": 3}},
    "n-step": {**LOG, "n_steps": 3},
    "schedule": {**LOG, "learning_rate": "lin_1e-3_1e-4"},
    "SGD": {**LOG, "policy_kwargs": {**SMALL, "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}},
}


def logged(model: SAC | SoftAC) -> Any:
    model.set_logger(Logger(None, []))
    return model


def outputs(model: SAC | SoftAC) -> list[th.Tensor]:
    """Mean and log σ of the actor, all critics and targets, and α, on fixed inputs."""
    generator = th.Generator().manual_seed(5)
    observations, actions = (2 * th.rand(64, n, generator=generator) - 1 for n in (OBS_DIM, 2))
    mean, log_std, _ = model.actor.get_action_dist_params(observations)
    critics: Any = [model.critic, model.critic_target]
    if isinstance(model, SoftAC):
        alpha = model.temperature.value
    else:
        alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp().squeeze()
    return [value.detach() for value in (mean, log_std, alpha, *(q for c in critics for q in c(observations, actions)))]


def largest_difference(left: SAC | SoftAC, right: SAC | SoftAC) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(outputs(left), outputs(right), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("already_trained", [0, 10])
def test_50_updates_of_sb3_equal_ours(case: str, already_trained: int) -> None:
    model = make_model(**CASES[case])
    fill_buffer(model)
    train_with_noise(model, already_trained, seed=8)
    sac = model.to_sb3()
    assert isinstance(sac, SAC)
    assert largest_difference(model, sac) < 1e-6
    assert (sac._n_updates, sac.replay_buffer, sac.env) == (already_trained, model.replay_buffer, model.env)
    before = outputs(model)
    train_with_noise(model, 50)
    train_with_noise(logged(sac), 50)
    assert largest_difference(model, sac) < 1e-4
    moved = max(float((x - y).abs().max()) for x, y in zip(outputs(model), before, strict=True))
    assert moved > 1e-2, "equality of models that did not move would prove nothing"


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str) -> None:
    model = make_model(**CASES[case])
    fill_buffer(model)
    train_with_noise(model, 5)
    assert_same_parameters(model, SoftAC.from_sb3(model.to_sb3()))


def test_sb3_goes_on_learning_saves_and_acts_as_ours(tmp_path: Path) -> None:
    model = make_model(**LOG, learning_starts=10, batch_size=8).learn(30)
    sac = model.to_sb3()
    observations = np.random.default_rng(0).uniform(-1, 1, (9, OBS_DIM)).astype(np.float32)
    for deterministic in (True, False):
        actions = []
        for each in (model, sac):
            th.manual_seed(3)
            actions.append(each.predict(observations, deterministic=deterministic)[0])
        np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)
    sac.learn(20, reset_num_timesteps=False)
    assert sac.num_timesteps == 50
    sac.save(tmp_path / "sac")
    assert largest_difference(sac, SoftAC.from_sb3(tmp_path / "sac.zip", device="cpu")) < 1e-6


def test_images_gsde_and_hindsight() -> None:
    image: Any = FakeImageEnv(36, 36, discrete=False)
    kwargs: dict[str, Any] = {"buffer_size": 50, "device": "cpu", **LOG}
    small_cnn = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    goals = BitFlippingEnv(n_bits=3, continuous=True)
    models = [
        SoftAC("CnnPolicy", image, policy_kwargs=small_cnn, **kwargs),
        make_model(use_sde=True, **LOG),
        SoftAC("MultiInputPolicy", goals, policy_kwargs=SMALL, replay_buffer_class=HerReplayBuffer, **kwargs),
    ]
    for model in models:
        sac = model.to_sb3()
        observation: Any = model.observation_space.sample()
        ours, theirs = (each.predict(observation, deterministic=True)[0] for each in (model, sac))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert isinstance(sac.replay_buffer, HerReplayBuffer)
    sac.learn(20)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "`ent_coef_update` is 'dual' and would have to be 'log'"),
        ({**LOG, "value_network": True}, "`value_network` is True and would have to be False"),
        ({**LOG, "actor_q": "mean"}, "`actor_q` is 'mean' and would have to be 'min'"),
        ({**LOG, "policy_delay": 2}, "`policy_delay` is 2"),
        ({**LOG, "target_update_interval": 2}, "`target_update_interval` is 2"),
        ({**LOG, "critic_learning_rate": 1e-3}, "`critic_learning_rate` is 0.001"),
        ({"ent_coef": "lin_0.2"}, "`ent_coef` is 'lin_0.2' and would have to be a number or learned"),
        ({**LOG, "random_steps": 7}, "`random_steps` is 7 and would have to be `learning_starts`=100"),
        ({**LOG, "policy_kwargs": {**SMALL, "layer_norm": True}}, r"`policy_kwargs\['layer_norm'\]` is True"),
        ({**LOG, "policy_kwargs": {**SMALL, "log_std_bounds": (-5, 2)}}, r"`policy_kwargs\['log_std_bounds'\]`"),
        ({**LOG, "env": RandomDiscreteEnv()}, r"the action space is Discrete\(3\)"),
    ],
)
def test_what_stands_in_the_way_is_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SB3's SAC cannot continue this model: .*{message}"):
        make_model(**kwargs).to_sb3()


def test_all_obstacles_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"`actor_q` is 'first'.*`reward_scale` is 2.0.*`ent_coef_update` is 'dual'"):
        make_model(actor_q="first", reward_scale=2.0).to_sb3()


class TestFromAFile:
    def test_as_from_the_model(self, tmp_path: Path) -> None:
        sac = logged(SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=300, n_steps=3, device="cpu"))
        fill_buffer(sac)
        train_with_noise(sac, 10)
        sac.save(tmp_path / "sac.zip")
        draws = []
        for seed in (1, 2):
            th.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # SB3's generator
            model = SoftAC.from_sb3(tmp_path / "sac.zip", env=RandomEnv(), device="cpu")
            draws.append((float(th.rand(())), float(np.random.rand())))  # noqa: NPY002
        assert draws[0] != draws[1], "the random generators are not seeded"
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        assert (model.buffer_size, model.n_steps, model.replay_buffer.size()) == (300, 3, 0)
        assert_same_parameters(model, SoftAC.from_sb3(copy.deepcopy(sac)))

    def test_without_an_environment_no_buffer_is_allocated(self, tmp_path: Path) -> None:
        SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), device="cpu", buffer_size=10).save(tmp_path / "sac.zip")
        for source in (str(tmp_path / "sac.zip"), tmp_path / "sac"):
            model = SoftAC.from_sb3(source)
            assert model.replay_buffer is None
        model.set_env(make_vec_env(RandomEnv))
        assert model.replay_buffer is not None

    def test_other_files(self, tmp_path: Path) -> None:
        make_model().save(tmp_path / "ours.zip")
        with pytest.raises(ValueError, match=r"ours\.zip', but it must be a file that SB3's SAC saved"):
            SoftAC.from_sb3(tmp_path / "ours.zip")


class TestTargetUpdateInterval:
    """SB3 counts it again in each ``train()``: its targets move at the first gradient step of every call."""

    def make(self, **kwargs: Any) -> SAC:
        sac = SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=300, device="cpu", **kwargs)
        fill_buffer(logged(sac))
        return sac

    def test_one_gradient_step_per_call_continues_as_sb3(self) -> None:
        sac = self.make(target_update_interval=2)
        with pytest.warns(UserWarning, match="`target_update_interval`=2 again in each call"):
            model = SoftAC.from_sb3(sac)
        assert model.target_update_interval == 1
        train_with_noise(sac, 20)
        train_with_noise(logged(model), 20)
        assert largest_difference(sac, model) < 1e-5

    def test_other_numbers_have_no_counterpart(self) -> None:
        sac = self.make(target_update_interval=2, gradient_steps=3)
        with pytest.raises(ValueError, match="`target_update_interval` is 2, which SB3 counts again in each call"):
            SoftAC.from_sb3(sac)
        assert SoftAC.from_sb3(sac, target_update_interval=4).target_update_interval == 4
