"""Training from a given policy: what is taken over, what stays, what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, TD3
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


def test_other_sources(tmp_path: Path) -> None:
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    td3 = TD3("MlpPolicy", RandomEnv(), buffer_size=10, action_noise=noise)
    with pytest.raises(ValueError, match="`source` is a TD3, but it must be a SoftAC, an SB3 SAC, or a file of one"):
        make_model().warm_start(td3)  # type: ignore[arg-type]  # on purpose
    td3.save(tmp_path / "td3.zip")
    with pytest.raises(ValueError, match=r"td3\.zip', but it must be a file that SoftAC or SB3's SAC saved"):
        make_model().warm_start(tmp_path / "td3.zip")
    with pytest.raises(FileNotFoundError):
        make_model().warm_start(tmp_path / "missing.zip")
