"""Options that were set but not yet looked at, when the model is saved, copied, converted, or refused."""

import copy
import functools
import io
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from torch import nn

from sb3_softac import SoftAC, TrainingDivergedError
from sb3_softac.update import FixedTemperature, LearnedTemperature
from tests.helpers import SMALL, RandomDiscreteEnv, make_model


def trained(**kwargs: Any) -> SoftAC:
    return make_model(learning_starts=5, batch_size=8, **kwargs).learn(10)


def through_a_file(model: SoftAC) -> SoftAC:
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    return SoftAC.load(stream)


COPIES: dict[str, Any] = {
    "file": through_a_file,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_them(how: str) -> None:
    fixed, learned = trained(ent_coef=0.1), trained()
    fixed.ent_coef = "auto_0.5"
    learned.ent_coef, learned.learning_rate = 0.3, "1e-2"
    copied = COPIES[how](fixed)
    assert isinstance(copied.temperature, LearnedTemperature)
    assert copied.temperature.value.item() == 0.5
    copied = COPIES[how](learned)
    assert isinstance(copied.temperature, FixedTemperature)
    assert copied.temperature.value.item() == pytest.approx(0.3)
    assert copied.lr_schedule(1.0) == 1e-2


@pytest.mark.parametrize("how", COPIES)
def test_bad_ones_are_refused_and_no_file_holds_them(how: str) -> None:
    model = trained()
    model.tau = 7.0
    with pytest.raises(ValueError, match=r"`tau` is 7\.0"):
        COPIES[how](model)
    assert COPIES[how](model).tau == 0.005


def test_conversion_and_warm_start_see_them() -> None:
    model = trained(ent_coef_update="log")
    model.learning_rate = "1e-2"
    assert model.to_sb3().lr_schedule(1.0) == 1e-2
    model = trained(ent_coef=0.2)
    model.ent_coef = 0.3
    assert model.to_sb3().ent_coef == pytest.approx(0.3)
    model, source = trained(ent_coef=0.2), trained(ent_coef="auto_0.05")
    model.ent_coef = "auto_0.5"
    model.warm_start(source, temperature=True)
    assert model.temperature.value == source.temperature.value
    model.learn(0)
    assert model.temperature.value == source.temperature.value


def test_a_refusal_leaves_nothing_behind() -> None:
    """Not in the buffer, the schedules or the temperature, although other options of the same look were right."""
    model = trained(n_steps=3)
    model.gamma, model.learning_rate, model.target_subset = 0.5, 0.5, 9
    with pytest.raises(ValueError, match="`target_subset` is 9"):
        model.learn(5)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert (model.gamma, model.replay_buffer.gamma, model.lr_schedule(1.0)) == (0.99, 0.99, 3e-4)
    model = trained(env=RandomDiscreteEnv(), target_entropy_scale=0.9)
    automatic = model.target_entropy
    model.target_entropy, model.tau = 0.3, 9.0
    with pytest.raises(ValueError, match=r"`tau` is 9\.0"):
        model.learn(5)
    assert (model.target_entropy, model.target_entropy_scale) == (automatic, 0.9)
    assert through_a_file(model).target_entropy == automatic


def test_an_automatic_target_entropy_with_another_scale() -> None:
    """As the constructor with both."""
    model = trained(env=RandomDiscreteEnv(), target_entropy=0.2)
    model.target_entropy, model.target_entropy_scale = "auto", 0.9
    model.learn(5)
    assert model.temperature.target_entropy == pytest.approx(0.9 * np.log(3))


def test_another_form_of_the_temperature_below_its_bound() -> None:
    model = trained()
    model.ent_coef_max = 0.5
    model.learn(5)
    alpha = model.temperature.value.item()
    model.ent_coef_update = "log"
    model.learn(0)
    assert model.temperature.value.item() == pytest.approx(alpha)


def test_a_schedule_that_is_replaced_moves_the_temperature_too() -> None:
    model = trained(ent_coef_update="log")
    model.lr_schedule = lambda _: 0.0
    before = model.temperature.value.clone()
    model.learn(20, reset_num_timesteps=False)
    assert th.equal(model.temperature.value, before)


def test_a_frozen_temperature_stays() -> None:
    model = trained()
    next(model.temperature.parameters()).requires_grad_(False)
    before = model.temperature.value.clone()
    model.learn(10, reset_num_timesteps=False)
    assert th.equal(model.temperature.value, before)


@pytest.mark.parametrize("network", ["actor", "critic"])
def test_gsde_that_diverges_has_the_same_error(network: str) -> None:
    model = trained(use_sde=True, gradient_steps=4)
    with th.no_grad():
        for parameter in getattr(model, network).parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError):
        model.learn(20, reset_num_timesteps=False)


def test_equal_partial_activations_are_equal() -> None:
    """Python compares partial functions by identity, and a file makes a new one."""

    def kwargs() -> dict[str, Any]:
        return {"net_arch": [8], "activation_fn": functools.partial(nn.LeakyReLU, 0.2)}

    model, stream = make_model(policy_kwargs=kwargs()), io.BytesIO()
    model.save(stream)
    stream.seek(0)
    SoftAC.load(stream, policy_kwargs=kwargs())
    make_model(policy_kwargs=kwargs()).warm_start(model)
    other = {**kwargs(), "activation_fn": functools.partial(nn.LeakyReLU, 0.3)}
    with pytest.raises(ValueError, match="its activation_fn is"):
        make_model(policy_kwargs=other).warm_start(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.actor, "get_action_dist_params", lambda obs: (th.zeros(len(obs), 2), th.full((2,), -20.0), {})),
        lambda m: setattr(m.actor, "extract_features", lambda obs, extractor: obs.float() * 2.0),
        lambda m: setattr(m.actor, "preprocess", lambda obs: obs.float() * 2.0),
        lambda m: setattr(m.actor.features_extractor, "flatten", nn.Sequential(nn.Flatten(), nn.Tanh())),
        lambda m: setattr(m, "predict", lambda obs, **_: (np.ones((1, 2), np.float32), None)),
        lambda m: setattr(m.policy, "obs_to_tensor", lambda obs: (th.zeros(1, 4), True)),
    ],
    ids=["distribution", "features", "preprocessing", "flatten", "predict", "obs_to_tensor"],
)
def test_acting_follows_what_is_replaced(change: Any) -> None:
    """The actions of `learn` are those of `predict`, from the same random numbers."""
    model = make_model(learning_starts=0, random_steps=0, policy_kwargs={**SMALL, "log_std_init": -19.0}).learn(5)
    change(model)
    model.policy.set_training_mode(False)
    assert model._last_obs is not None
    th.manual_seed(1)
    acted = model._sample_action(0, None, 1)[0]
    th.manual_seed(1)
    np.testing.assert_allclose(acted, model.predict(model._last_obs, deterministic=False)[0], atol=1e-6)
