"""SB3's SAC is the source of truth: from the same weights, batches and noise come the same weights."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_softac import SoftAC
from tests.helpers import ACTION_DIM, OBS_DIM, RandomEnv, assert_same_parameters, fill_buffer, make_model, train_with_noise

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "n_steps": {"n_steps": 3},
    "sizes": {"policy_kwargs": {"net_arch": {"pi": [8, 32], "qf": [24, 16, 8]}}},
    "tanh": {"policy_kwargs": {"net_arch": [32, 32], "activation_fn": nn.Tanh}},
    "one layer": {"policy_kwargs": {"net_arch": [32]}},
    "one critic": {"policy_kwargs": {"net_arch": [32, 32], "n_critics": 1}},
    "three critics": {"policy_kwargs": {"net_arch": [32, 32], "n_critics": 3}},
    "fixed ent_coef": {"ent_coef": 0.2},
    "auto_0.1": {"ent_coef": "auto_0.1"},
    "target_entropy": {"target_entropy": -0.5},
    "schedule": {"learning_rate": lambda progress: 1e-3 * progress},
    "momentum": {
        "learning_rate": 2e-3,
        "policy_kwargs": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    },
    "tau and gamma": {"tau": 0.1, "gamma": 0.9},
    "several environments": {"n_envs": 3},
    "NAdam": {"policy_kwargs": {"net_arch": [32, 32], "optimizer_class": th.optim.NAdam}},
    "shared features": {"policy_kwargs": {"net_arch": [32, 32], "share_features_extractor": True}},
}


def make_sac(**kwargs: Any) -> SAC:
    kwargs.setdefault("policy_kwargs", {"net_arch": [32, 32]})
    env = make_vec_env(RandomEnv, n_envs=kwargs.pop("n_envs", 1), seed=0)
    sac = SAC("MlpPolicy", env, **{"buffer_size": 1000, "device": "cpu", "seed": 3, **kwargs})
    sac.set_logger(Logger(None, []))
    fill_buffer(sac)
    return sac


def outputs(model: SAC | SoftAC) -> dict[str, th.Tensor]:
    """Actor, critics, targets and α on fixed inputs."""
    generator = th.Generator().manual_seed(5)
    observations = 2 * th.rand(64, OBS_DIM, generator=generator) - 1
    actions = 2 * th.rand(64, ACTION_DIM, generator=generator) - 1
    mean, log_std, _ = model.actor.get_action_dist_params(observations)
    critics: Any = [model.critic, model.critic_target]
    if isinstance(model, SoftAC):
        alpha = model.temperature.value
    else:
        alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp().squeeze()
    found = {"mean": mean, "log_std": log_std, "alpha": alpha}
    for name, critic in zip(("critic", "target"), critics, strict=True):
        found |= {f"{name} {i}": q for i, q in enumerate(critic(observations, actions))}
    return {name: value.detach() for name, value in found.items()}


def largest_difference(sac: SAC, model: SoftAC) -> float:
    expected, actual = outputs(sac), outputs(model)
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - value).abs().max()) for name, value in expected.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("already_trained", [0, 10])
def test_50_updates_equal_those_of_sb3(case: str, already_trained: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was trained before hands over its optimizers' state as well."""
    sac = make_sac(**CASES[case])
    train_with_noise(sac, already_trained, seed=8)
    model = SoftAC.from_sb3(sac)
    assert largest_difference(sac, model) < 1e-5
    before = outputs(sac)
    sampled: list[th.Tensor] = []
    action_log_prob = model.actor.action_log_prob

    def spy(observations: Any) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = action_log_prob(observations)
        sampled.append(actions.detach())
        return actions, log_prob

    monkeypatch.setattr(model.actor, "action_log_prob", spy)
    drawn = train_with_noise(sac, 50).drawn, train_with_noise(model, 50).drawn
    assert len(drawn[0]) == len(drawn[1]) == len(sampled) == 100
    # SB3's density has its own error of 1e-6/(1 − a²): the injected noise is small enough to keep every |u| below 2.
    assert th.atanh(th.cat(sampled)).abs().max() < 2.0
    assert largest_difference(sac, model) < 1e-4
    assert model._n_updates == sac._n_updates
    moved = max(float((outputs(sac)[name] - value).abs().max()) for name, value in before.items())
    assert moved > 1e-2, "equality of models that did not move would prove nothing"


def test_gsde() -> None:
    """SB3 inverts the tanh with a clip, so the bound is a little wider."""
    sac = make_sac(use_sde=True, policy_kwargs={"net_arch": [32, 32], "log_std_init": -2.0, "use_expln": True})
    model = SoftAC.from_sb3(sac)
    # Drawing the noise matrix at construction is not part of training; here it takes its place in both.
    train_with_noise(sac, 20)
    train_with_noise(model, 20)
    assert largest_difference(sac, model) < 1e-3


def test_actions_equal_those_of_sb3() -> None:
    sac = make_sac()
    model = SoftAC.from_sb3(sac)
    observations = np.random.default_rng(0).uniform(-1, 1, (20, OBS_DIM)).astype(np.float32)
    np.testing.assert_allclose(
        model.predict(observations, deterministic=True)[0], sac.predict(observations, deterministic=True)[0], atol=1e-6
    )
    # PyTorch's normal_() and randn draw the same numbers from one seed.
    th.manual_seed(4)
    ours = model.predict(observations)[0]
    th.manual_seed(4)
    np.testing.assert_allclose(ours, sac.predict(observations)[0], atol=1e-6)


def test_the_same_run_from_the_same_seed() -> None:
    """Collection and training draw in SB3's order, so whole runs agree without injected noise."""
    actions = []
    for algorithm in (make_sac(learning_starts=20), SoftAC.from_sb3(make_sac(learning_starts=20))):
        assert algorithm.replay_buffer is not None
        algorithm.replay_buffer.reset()
        algorithm.set_random_seed(11)
        algorithm.learn(60)
        actions.append(algorithm.replay_buffer.actions[:60].copy())
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-4)


class TestFromSB3:
    def test_what_is_handed_over(self) -> None:
        sac = make_sac(gamma=0.97)
        sac.learn(130)
        model = SoftAC.from_sb3(sac)
        assert model.env is sac.env
        assert model.replay_buffer is sac.replay_buffer
        assert model.gamma == 0.97
        assert model.num_timesteps == sac.num_timesteps == 130
        assert model._n_updates == sac._n_updates == 30
        assert model._episode_num == sac._episode_num
        assert model.target_entropy == sac.target_entropy
        model.learn(20, reset_num_timesteps=False)
        assert model.num_timesteps == 150

    def test_the_random_state_is_left_alone(self) -> None:
        sac = make_sac()
        before: Any = np.random.get_state()  # noqa: NPY002  # the generator that SB3 seeds
        SoftAC.from_sb3(sac)
        after: Any = np.random.get_state()  # noqa: NPY002
        np.testing.assert_array_equal(after[1], before[1])

    def test_ours_replace_theirs(self) -> None:
        model = SoftAC.from_sb3(make_sac(), ent_coef_update="dual", actor_q="mean", learning_rate="lin_1e-3")
        assert type(model.temperature).__name__ == "DualTemperature"
        assert model.actor_q == "mean"
        assert model.lr_schedule(0.5) == pytest.approx(5e-4)

    def test_a_temperature_can_be_fixed(self) -> None:
        model = SoftAC.from_sb3(make_sac(), ent_coef=0.3)
        assert model.temperature.value.item() == pytest.approx(0.3)

    def test_what_sb3_lets_pass_is_put_right(self) -> None:
        kwargs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 2}}
        with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
            sac = make_sac(n_steps=3, learning_starts=-1, gradient_steps=-5, **kwargs)
        model = SoftAC.from_sb3(sac)
        assert (model.n_steps, model.learning_starts, model.gradient_steps) == (1, 0, -1)
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        assert model.replay_buffer.n_steps == 2

    def test_without_an_environment(self, tmp_path: Any) -> None:
        sac = make_sac()
        sac.save(tmp_path / "sac.zip")
        model = SoftAC.from_sb3(SAC.load(tmp_path / "sac.zip"))
        assert model.env is None
        assert largest_difference(sac, model) < 1e-5

    def test_a_converted_model_saves_and_loads(self, tmp_path: Any) -> None:
        model = SoftAC.from_sb3(make_sac(n_steps=3))
        train_with_noise(model, 3)
        model.save(tmp_path / "model.zip")
        assert_same_parameters(model, SoftAC.load(tmp_path / "model.zip"))

    def test_what_cannot_be_taken_over(self) -> None:
        with pytest.raises(ValueError, match="`sac` is a SoftAC"):
            SoftAC.from_sb3(make_model())
        with pytest.raises(ValueError, match="`value_network` is True"):
            SoftAC.from_sb3(make_sac(), value_network=True)
        with pytest.raises(ValueError, match="`policy_kwargs` do not fit"):
            SoftAC.from_sb3(make_sac(), policy_kwargs={"net_arch": [8]})
        with pytest.raises(ValueError, match="`n_steps` is 3, but the ReplayBuffer has one-step returns"):
            SoftAC.from_sb3(make_sac(), n_steps=3)
        with pytest.raises(ValueError, match="`buffer_size` is 77, but the replay buffer of `sac` is handed over"):
            SoftAC.from_sb3(make_sac(), buffer_size=77)
        with pytest.raises(ValueError, match=r"`ent_coef` is 'auto_0\.5', but the learned temperature of `sac`"):
            SoftAC.from_sb3(make_sac(), ent_coef="auto_0.5")
        with pytest.raises(ValueError, match="`env` has 2 environments"):
            SoftAC.from_sb3(make_sac(), env=make_vec_env(RandomEnv, n_envs=2))

    def test_new_returns_reach_the_buffer(self) -> None:
        for gamma, n_steps in ((0.9, 3), (0.8, 5), (0.99, 1)):
            model = SoftAC.from_sb3(make_sac(n_steps=3), gamma=gamma, n_steps=n_steps)
            assert isinstance(model.replay_buffer, NStepReplayBuffer)
            assert (model.replay_buffer.gamma, model.replay_buffer.n_steps) == (gamma, n_steps)

    def test_another_environment(self) -> None:
        sac, env = make_sac(), make_vec_env(RandomEnv)
        sac.learn(20)
        model = SoftAC.from_sb3(sac, env=env)
        assert model.env is env
        assert model._last_obs is None
        assert model.learn(5, reset_num_timesteps=False).num_timesteps == 25

    def test_a_seed(self) -> None:
        draws = []
        for _ in range(2):
            SoftAC.from_sb3(make_sac(), seed=5)
            draws.append(th.rand(1).item())
        assert draws[0] == draws[1]

    def test_hindsight_rewards_come_from_the_new_environment(self) -> None:
        envs = [make_vec_env(BitFlippingEnv, env_kwargs={"n_bits": 4, "continuous": True}) for _ in range(3)]
        sac = SAC("MultiInputPolicy", envs[0], replay_buffer_class=HerReplayBuffer, buffer_size=100, device="cpu")
        model = SoftAC.from_sb3(sac, env=envs[1])
        assert isinstance(model.replay_buffer, HerReplayBuffer)
        assert model.replay_buffer.env is model.env is envs[1]
        model.set_env(envs[2])
        assert model.replay_buffer.env is envs[2]

    def test_gsde_explores_with_the_weights_that_were_copied(self) -> None:
        sac = make_sac(use_sde=True)
        th.nn.init.constant_(sac.actor.log_std, 2.0)
        matrix = SoftAC.from_sb3(sac).actor.action_dist.exploration_mat
        assert 3.0 < matrix.std().item() < 15.0  # e² = 7.4

    @pytest.mark.gpu
    @pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
    def test_from_device_to_device(self, source: str, target: str) -> None:
        sac = make_sac(device=source)
        train_with_noise(sac, 3)
        model = SoftAC.from_sb3(sac, device=target)
        model.train(3, batch_size=16)
        assert model.actor.mu.weight.device.type == target

    def test_a_bound_below_the_first_temperature(self) -> None:
        sac = make_sac()
        assert sac.log_ent_coef is not None
        with th.no_grad():
            sac.log_ent_coef.fill_(-3.0)
        assert SoftAC.from_sb3(sac, ent_coef_max=0.5).temperature.value.item() == pytest.approx(np.exp(-3.0))
        assert SoftAC.from_sb3(sac, ent_coef_max=0.01).temperature.value.item() <= 0.01
