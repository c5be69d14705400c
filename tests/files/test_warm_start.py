"""Training from a given policy: what is taken over, what stays, what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.noise import NormalActionNoise

from sb3_softac import SoftAC
from tests.helpers import SMALL, RandomDiscreteEnv, RandomEnv, fill_buffer, make_model

OBS = np.linspace(-1, 1, 20).reshape(5, 4).astype(np.float32)


def trained(**kwargs: Any) -> SoftAC:
    model = make_model(seed=7, ent_coef="auto_0.3", ent_coef_learning_rate=0.01, **kwargs)
    fill_buffer(model)
    model.train(3, batch_size=16)
    return model


def sb3_sac(**kwargs: Any) -> SAC:
    return SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), learning_starts=10, seed=7, **kwargs).learn(20)


def assert_same_weights(left: SoftAC, right: SoftAC) -> None:
    for name, weight in left.policy.state_dict().items():
        assert th.equal(weight, right.policy.state_dict()[name]), name


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"value_network": True},
        {"env": RandomDiscreteEnv(start=2)},
        {"policy_kwargs": {**SMALL, "log_std_mode": "free", "n_critics": 3}},
    ],
)
def test_all_weights_and_nothing_else(kwargs: dict[str, Any], from_file: bool, tmp_path: Path) -> None:
    source = trained(**kwargs)
    source.save(tmp_path / "source")
    model = make_model(ent_coef="auto_0.8", **kwargs)
    assert model.warm_start(tmp_path / "source" if from_file else source) is model
    assert_same_weights(model, source)
    assert model.temperature.value.item() == pytest.approx(0.8)
    assert model.num_timesteps == model._n_updates == 0
    assert not model.actor.optimizer.state
    assert not model.critic.optimizer.state
    fill_buffer(model)
    before = source.predict(OBS, deterministic=True)[0]
    model.train(5, batch_size=16)
    np.testing.assert_array_equal(source.predict(OBS, deterministic=True)[0], before)  # the source is not trained along


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("use_sde", [False, True])
def test_from_a_model_of_sb3(use_sde: bool, from_file: bool, tmp_path: Path) -> None:
    sac = sb3_sac(use_sde=use_sde)
    sac.save(tmp_path / "sac")
    model = make_model(use_sde=use_sde).warm_start(str(tmp_path / "sac") if from_file else sac)
    np.testing.assert_allclose(model.predict(OBS, deterministic=True)[0], sac.predict(OBS, deterministic=True)[0], atol=1e-6)
    obs, actions = th.as_tensor(OBS), th.rand(5, 2)
    for ours, theirs in (("critic", sac.critic), ("critic_target", sac.critic_target)):
        for left, right in zip(getattr(model, ours)(obs, actions), theirs(obs, actions), strict=True):
            th.testing.assert_close(left, right)


@pytest.mark.parametrize("update", ["dual", "log", "exp"])
def test_the_temperature_if_asked_for(update: Any) -> None:
    source, sac = trained(), sb3_sac()
    assert sac.log_ent_coef is not None
    alpha = float(sac.log_ent_coef.detach().exp())
    assert make_model(ent_coef_update=update).warm_start(sac, temperature=True).temperature.value.item() == pytest.approx(
        alpha
    )
    model = make_model(ent_coef_update=update).warm_start(source, temperature=True)
    assert model.temperature.value.item() == pytest.approx(source.temperature.value.item())
    capped = make_model(ent_coef_update=update, ent_coef="auto_0.1", ent_coef_max=0.2).warm_start(source, temperature=True)
    assert capped.temperature.value.item() == pytest.approx(0.2)


def test_from_a_fixed_temperature() -> None:
    source = make_model(ent_coef=0.05)
    assert make_model().warm_start(source, temperature=True).temperature.value.item() == pytest.approx(0.05)
    with pytest.raises(ValueError, match=r"`temperature` is True, but `ent_coef`=0\.2 is fixed"):
        make_model(ent_coef=0.2).warm_start(source, temperature=True)


def test_without_a_random_phase_the_policy_acts_at_once() -> None:
    """A policy that always chooses the first action: uniformly random steps would choose others."""
    source = make_model(env=RandomDiscreteEnv())
    th.nn.init.constant_(source.actor.logits.weight, 0.0)
    source.actor.logits.bias.data = th.tensor([50.0, 0.0, 0.0])
    env, random_env = RandomDiscreteEnv(), RandomDiscreteEnv()
    model = make_model(env=env, learning_starts=30, random_steps=0).warm_start(source).learn(30)
    assert env.actions == [0] * 30
    assert model._n_updates == 0
    make_model(env=random_env, learning_starts=30).warm_start(source).learn(30)
    assert set(random_env.actions) == {0, 1, 2}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy_kwargs": {"net_arch": [16, 8]}}, "actor.latent_pi.2.weight has shape (16, 16) there and (8, 16) here"),
        ({"policy_kwargs": {**SMALL, "n_critics": 3}}, "has shape (2, 6, 16) there and (3, 6, 16) here"),
        ({"value_network": True}, "value_net.v_network.hidden.0.weight of shape (1, 4, 16) exists only here"),
        ({"env": RandomDiscreteEnv()}, "critic.q_networks.hidden.0.weight has shape (2, 6, 16) there and (2, 4, 16) here"),
        ({"policy_kwargs": {"net_arch": [16]}}, "actor.latent_pi.2.weight of shape (16, 16) exists only there"),
    ],
)
def test_shapes_that_do_not_fit(kwargs: dict[str, Any], message: str) -> None:
    model = make_model(**kwargs)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        model.warm_start(trained())
    for name, weight in model.policy.state_dict().items():
        assert th.equal(weight, before[name])


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"activation_fn": th.nn.Tanh}, {}, "its activation_fn is .*Tanh.*, here it is .*ReLU"),
        ({}, {"log_std_bounding": "tanh"}, "its log_std_bounding is clamp, here it is tanh"),
        (
            {"log_std_bounding": "tanh"},
            {"log_std_bounding": "tanh", "log_std_bounds": (-5.0, 2.0)},
            r"its log_std_bounds is \(-20\.0, 2\.0\), here it is \(-5\.0, 2\.0\)",
        ),
    ],
)
def test_weights_that_would_mean_something_else(there: dict[str, Any], here: dict[str, Any], message: str) -> None:
    source = make_model(policy_kwargs={**SMALL, **there})
    with pytest.raises(ValueError, match=f"`source` does not fit this model: {message}"):
        make_model(policy_kwargs={**SMALL, **here}).warm_start(source)


def test_from_sb3_into_another_activation() -> None:
    with pytest.raises(ValueError, match=r"its activation_fn is .*ReLU.*, here it is .*Tanh"):
        make_model(policy_kwargs={**SMALL, "activation_fn": th.nn.Tanh}).warm_start(sb3_sac())


def crossq(**kwargs: Any) -> CrossQ:
    return CrossQ("MlpPolicy", RandomEnv(), policy_kwargs={**SMALL, **kwargs}, learning_starts=10, seed=7).learn(40)


def tqc(**kwargs: Any) -> TQC:
    return TQC("MlpPolicy", RandomEnv(), policy_kwargs={**SMALL, **kwargs}, learning_starts=10, seed=7).learn(20)


class TestFromContrib:
    """Models of sb3-contrib; how weights are laid out there and here is tested in test_tqc.py and test_crossq.py."""

    @pytest.mark.parametrize("from_file", [False, True])
    @pytest.mark.parametrize("make", [tqc, crossq])
    def test_the_same_functions(self, make: Any, from_file: bool, tmp_path: Path) -> None:
        source, is_tqc = make(), make is tqc
        source.save(tmp_path / "source")
        options: dict[str, Any] = {"policy_kwargs": {**SMALL, "critic_head": "quantile"}}
        if not is_tqc:
            options = {"policy_kwargs": {**SMALL, "normalization": "batch_renorm"}, "bootstrap": "joint"}
        model = make_model(**options).warm_start(tmp_path / "source.zip" if from_file else source)
        np.testing.assert_allclose(
            model.predict(OBS, deterministic=True)[0], source.predict(OBS, deterministic=True)[0], atol=1e-6
        )
        source.policy.set_training_mode(False)
        obs, actions = th.as_tensor(OBS), th.rand(5, 2)
        theirs = source.critic(obs, actions)
        expected = theirs.mean(dim=2).unbind(1) if is_tqc else [value.squeeze(1) for value in theirs]
        for ours, value in zip(model.critic(obs, actions), expected, strict=True):
            th.testing.assert_close(ours.squeeze(1), value)
        assert not model.critic.optimizer.state
        assert model.num_timesteps == 0
        fill_buffer(model)
        model.train(3, batch_size=16)

    @pytest.mark.parametrize(
        ("source", "here", "message"),
        [
            (crossq, {}, r"actor\.latent_pi\.0\.weight has shape .*; `SoftAC\.from_sb3\(source\)` makes a model that fits"),
            (tqc, {}, r"critic\.q_networks\.output\.weight has shape \(2, 16, 25\) .*`SoftAC\.from_sb3\(source\)` makes"),
            (
                tqc,
                {"policy_kwargs": {**SMALL, "critic_head": "categorical", "n_atoms": 25}},
                "its critic_head is quantile, here it is categorical",
            ),
            (
                lambda: crossq(batch_norm_eps=1e-5),
                {"policy_kwargs": {**SMALL, "normalization": "batch_renorm"}, "bootstrap": "joint"},
                r"`policy_kwargs\['batch_norm_eps'\]` of the CrossQ model is 1e-05, but it must be 0\.001",
            ),
        ],
    )
    def test_what_does_not_fit(self, source: Any, here: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_model(**here).warm_start(source())


def test_a_distribution_of_another_meaning() -> None:
    """As many atoms on another range: the same numbers are other values."""
    options = {**SMALL, "critic_head": "categorical", "n_atoms": 11}
    source = make_model(policy_kwargs={**options, "value_range": (-1.0, 1.0)})
    with pytest.raises(ValueError, match=r"its value_range is \(-1\.0, 1\.0\), here it is \(-5\.0, 5\.0\)"):
        make_model(policy_kwargs=options).warm_start(source)


class TestSharedFeatures:
    """Images, for which the features extractor has weights."""

    ENV = FakeImageEnv(36, 36, discrete=False)

    def model(self, share: bool) -> SoftAC:
        kwargs = {**SMALL, "share_features_extractor": share, "features_extractor_kwargs": {"features_dim": 8}}
        return SoftAC("CnnPolicy", self.ENV, policy_kwargs=kwargs, buffer_size=10, device="cpu")

    @pytest.mark.parametrize(("there", "here"), [(True, True), (True, False), (False, False)])
    def test_the_policy_is_the_same(self, there: bool, here: bool) -> None:
        source = self.model(there)
        model = self.model(here).warm_start(source)
        obs: Any = self.ENV.observation_space.sample()
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], source.predict(obs, deterministic=True)[0])

    def test_two_extractors_have_no_place_in_one(self) -> None:
        with pytest.raises(ValueError, match="`share_features_extractor` is True, but it must be False"):
            self.model(True).warm_start(self.model(False))
        kwargs = {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
        sac = SAC("CnnPolicy", self.ENV, policy_kwargs=kwargs, buffer_size=10, device="cpu")
        with pytest.raises(ValueError, match="`share_features_extractor` is True, but it must be False"):
            SoftAC.from_sb3(sac, policy_kwargs={**kwargs, "share_features_extractor": True})


class TestFilesOfSB3:
    def test_hindsight_experience_replay(self, tmp_path: Path) -> None:
        env = BitFlippingEnv(n_bits=3, continuous=True)
        kwargs: dict[str, Any] = {"buffer_size": 100, "learning_starts": 20, "device": "cpu"}
        sac = SAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, policy_kwargs=dict(SMALL), **kwargs).learn(30)
        sac.save(tmp_path / "sac")
        model = SoftAC("MultiInputPolicy", env, policy_kwargs=SMALL, **kwargs).warm_start(tmp_path / "sac.zip")
        obs: Any = env.observation_space.sample()
        np.testing.assert_allclose(
            model.predict(obs, deterministic=True)[0], sac.predict(obs, deterministic=True)[0], atol=1e-6
        )

    def test_the_random_numbers_stay_those_of_this_model(self, tmp_path: Path) -> None:
        sb3_sac().save(tmp_path / "sac")
        draws = set()
        for seed in (1, 2):
            make_model(seed=seed).warm_start(tmp_path / "sac.zip")
            draws.add((float(th.rand(())), float(np.random.rand())))  # noqa: NPY002  # SB3's generator
        assert len(draws) == 2


def test_a_temperature_of_zero_has_no_logarithm() -> None:
    source = make_model(ent_coef="auto_0")
    assert make_model().warm_start(source, temperature=True).temperature.value == 0.0
    model = make_model(ent_coef_update="log")
    before = model.actor.mu.weight.clone()
    with pytest.raises(ValueError, match="the temperature of the source is 0, where `ent_coef_update`='log' cannot start"):
        model.warm_start(source, temperature=True)
    assert th.equal(model.actor.mu.weight, before)
    with pytest.raises(ValueError, match="`temperature` is 'no', but it must be True or False"):
        model.warm_start(source, temperature="no")  # type: ignore[arg-type]  # on purpose


def test_other_sources(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    td3 = TD3("MlpPolicy", RandomEnv(), buffer_size=10, action_noise=noise)
    with pytest.raises(ValueError, match="`source` is a TD3, but it must be a SoftAC, an SB3 SAC, an sb3-contrib TQC"):
        make_model().warm_start(td3)
    td3.save(tmp_path / "td3.zip")
    with pytest.raises(ValueError, match=r"td3\.zip', but it must be a file that SoftAC, SB3's SAC, or sb3-contrib's TQC"):
        make_model().warm_start(tmp_path / "td3.zip")
    DQN("MlpPolicy", "CartPole-v1", buffer_size=10).save(tmp_path / "dqn.zip")
    with pytest.raises(ValueError, match=r"dqn\.zip', but it must be a file that SoftAC, SB3's SAC, or sb3-contrib's TQC"):
        make_model().warm_start(tmp_path / "dqn.zip")
    with pytest.raises(FileNotFoundError):
        make_model().warm_start(tmp_path / "missing.zip")


class OtherBounds(RandomEnv):
    """``RandomEnv`` whose actions have other bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([3.0, 1.0]), dtype=np.float64)


def test_actions_of_other_bounds_are_refused() -> None:
    """The weights would mean other actions of the environment: all are rescaled from [-1, 1] to the bounds."""
    with pytest.raises(ValueError, match=r"`source` does not fit this model: its action space is Box\(\[-2"):
        make_model(env=OtherBounds()).warm_start(make_model())
    with pytest.raises(ValueError, match=r"action space is Discrete\(3\), here it is Discrete\(3, start=2\)"):
        make_model(env=RandomDiscreteEnv(3, start=2)).warm_start(make_model(env=RandomDiscreteEnv(3)))


@pytest.mark.parametrize("kwargs", [{}, {"value_network": True}, {"ent_coef_update": "log", "ent_coef": "auto_0.5"}])
def test_a_model_that_has_trained_begins_again(kwargs: dict[str, Any]) -> None:
    """As its docstring says: optimizers without a state, and the initial α; also if it trains on."""
    source, model = make_model(seed=1, **kwargs), make_model(learning_starts=5, batch_size=8, **kwargs).learn(30)
    initial = make_model(**kwargs).temperature.value
    assert model.temperature.value != initial
    model.warm_start(source)
    assert model.temperature.value == initial
    networks = model.policy.trained_networks().values()
    assert all(len(network.optimizer.state) == 0 for network in [*networks, model.temperature])
    before = model.actor.mu.weight.clone()
    model.learn(10, reset_num_timesteps=False)
    assert not th.equal(model.actor.mu.weight, before)
    assert {int(state["step"]) for state in model.actor.optimizer.state.values()} == {10}
