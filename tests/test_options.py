"""Options that are set between two trainings: they take effect, or are refused and leave the old value in place."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_softac import SoftAC
from sb3_softac.update import FixedTemperature, LearnedTemperature
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    logged,
    make_model,
    parameters_of,
    quick_model,
)


def seed_everything() -> None:
    th.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # the generator that SB3's buffers draw from


def trained(**kwargs: Any) -> SoftAC:
    """A model after five gradient steps, whose next ones see the same batches and noise."""
    policy_kwargs = {"net_arch": [16, 16], "n_critics": 3}
    model = make_model(policy_kwargs=policy_kwargs, learning_rate=1e-2, batch_size=16, compile=False, **kwargs)
    fill_buffer(model)
    model.train(5, batch_size=16)
    return model


def train(model: SoftAC) -> SoftAC:
    seed_everything()
    model.train(6, batch_size=16)
    return model


def loaded_with(model: SoftAC, **kwargs: Any) -> SoftAC:
    """The same model from a file, constructed with other options."""
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream, env=RandomEnv(), device="cpu", **kwargs)
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    if isinstance(loaded.replay_buffer, NStepReplayBuffer):
        loaded.replay_buffer.gamma = loaded.gamma
    loaded.set_logger(model.logger)
    return loaded


def same_parameters(first: SoftAC, second: SoftAC) -> bool:
    right = dict(parameters_of(second))
    return all(th.equal(value, right[name]) for name, value in parameters_of(first))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tau": ({}, {"tau": 0.5}),
    "gamma": ({}, {"gamma": 0.5}),
    "gamma of n-step returns": ({"n_steps": 3}, {"gamma": 0.5}),
    "reward_scale": ({}, {"reward_scale": -3.0}),
    "target_entropy": ({}, {"target_entropy": 3.0}),
    "ent_coef_max": ({}, {"ent_coef_max": 0.4}),
    "ent_coef_max, none": ({"ent_coef": "auto_0.4", "ent_coef_max": 0.4, "target_entropy": 9.0}, {"ent_coef_max": None}),
    "max_grad_norm": ({"max_grad_norm": 10.0}, {"max_grad_norm": 1e-3}),
    "max_grad_norm, from none": ({}, {"max_grad_norm": 1e-3}),
    "max_grad_norm, to none": ({"max_grad_norm": 1e-3}, {"max_grad_norm": None}),
    "policy_delay": ({}, {"policy_delay": 3}),
    "target_update_interval": ({}, {"target_update_interval": 4}),
    "actor_q": ({}, {"actor_q": "mean"}),
    "actor_q, targets": ({}, {"actor_q": "target_min"}),
    "target_q": ({}, {"target_q": "mean"}),
    "target_q, value network": ({"value_network": True}, {"target_q": "first"}),
    "target_subset": ({}, {"target_subset": 2}),
    "target_subset, all": ({"target_subset": 2}, {"target_subset": None}),
    "learning_rate": ({}, {"learning_rate": 1e-4}),
    "learning_rate, text": ({}, {"learning_rate": "lin_1e-3_1e-4"}),
    "actor_learning_rate": ({}, {"actor_learning_rate": 1e-4}),
    "critic_learning_rate": ({}, {"critic_learning_rate": "exp_1e-3_1e-5"}),
    "value_learning_rate": ({"value_network": True}, {"value_learning_rate": 1e-4}),
    "ent_coef_learning_rate": ({}, {"ent_coef_learning_rate": "1e-1"}),
    "fixed to fixed": ({"ent_coef": 0.2}, {"ent_coef": 0.7}),
    "fixed to scheduled": ({"ent_coef": 0.2}, {"ent_coef": "lin_0.7"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_equals_a_model_that_was_constructed_so(change: str) -> None:
    given, options = CHANGES[change]
    model = trained(**given)
    expected = loaded_with(model, **options)
    unchanged = loaded_with(model)
    for name, value in options.items():
        setattr(model, name, value)
    for either in (model, expected, unchanged):
        either._current_progress_remaining = 0.5
        train(either)
    assert_same_parameters(model, expected)
    assert not same_parameters(model, unchanged)


@pytest.mark.traced
def test_compiled_steps_follow_the_numbers_as_eager_ones_do() -> None:
    """All at once, between two ``train()``: without a new compilation, and with the same results."""
    options: dict[str, Any] = {
        "tau": 0.5,
        "gamma": 0.5,
        "reward_scale": -3.0,
        "target_entropy": 3.0,
        "ent_coef_max": 0.8,
        "max_grad_norm": 1e-3,
        "learning_rate": "lin_1e-3",
    }
    results = []
    for compile in (False, True):
        model = make_model(learning_rate=1e-2, max_grad_norm=10.0, ent_coef_max=2.0, compile=compile)
        fill_buffer(model)
        train(model)
        for name, value in options.items():
            setattr(model, name, value)
        results.append(dict(parameters_of(train(model))))
        assert model._engine.compiles is compile
    for name, value in results[0].items():
        th.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


class TestBetweenTwoLearns:
    def test_train_freq_and_gradient_steps(self) -> None:
        model = quick_model(RandomEnv()).learn(20)
        assert model._n_updates == 10
        model.train_freq, model.gradient_steps = 5, 2
        model.learn(20, reset_num_timesteps=False)
        assert model._n_updates == 10 + 4 * 2
        model.train_freq = (1, "episode")
        model.learn(20, reset_num_timesteps=False)
        assert model._n_updates == 18 + 4 * 2  # episodes of five steps

    def test_batch_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, sizes = quick_model(RandomEnv()).learn(20), []
        original = model._current_update().__class__.__call__

        def spy(self: Any, batch: Any, *args: Any) -> Any:
            sizes.append(len(batch.rewards))
            return original(self, batch, *args)

        monkeypatch.setattr(type(model._current_update()), "__call__", spy)
        model.batch_size = 7
        model.learn(3, reset_num_timesteps=False)
        assert sizes == [7] * 3

    def test_learning_rates(self) -> None:
        model = quick_model(RandomEnv()).learn(20)
        model.learning_rate, model.actor_learning_rate = "5e-4", 1e-5
        model.learn(3, reset_num_timesteps=False)
        assert model.critic.optimizer.param_groups[0]["lr"] == 5e-4
        assert model.actor.optimizer.param_groups[0]["lr"] == 1e-5
        model.actor_learning_rate = None
        model.learn(3, reset_num_timesteps=False)
        assert model.actor.optimizer.param_groups[0]["lr"] == 5e-4

    def test_a_target_entropy_drives_the_temperature_the_other_way(self) -> None:
        model = quick_model(ent_coef="auto_0.1", target_entropy=-50.0, learning_rate=1e-2).learn(60)
        assert model.temperature.value.item() == 0.0
        model.target_entropy = 50.0
        model.learn(20, reset_num_timesteps=False)
        assert model.temperature.value.item() > 0.0
        model.train(1, batch_size=16)
        assert logged(model, "target_entropy") == 50.0

    def test_the_automatic_target_entropy_comes_back(self) -> None:
        model = quick_model(RandomEnv(), target_entropy=-50.0).learn(12)
        setattr(model, "target_entropy", "auto")  # noqa: B010  # mypy would remember the value
        model.learn(3, reset_num_timesteps=False)
        assert model.target_entropy == -2.0
        discrete = quick_model(RandomDiscreteEnv(4)).learn(12)
        discrete.target_entropy_scale = 0.9
        discrete.learn(3, reset_num_timesteps=False)
        assert isinstance(discrete.temperature, LearnedTemperature)
        assert discrete.temperature.target_entropy == pytest.approx(0.9 * np.log(4))

    def test_a_bound_of_the_temperature(self) -> None:
        model = quick_model(RandomEnv()).learn(12)
        model.ent_coef_max = 0.25
        model.learn(3, reset_num_timesteps=False)
        assert model.temperature.value.item() <= 0.25

    def test_a_learned_temperature_becomes_a_fixed_one(self) -> None:
        model = quick_model(RandomEnv()).learn(20)
        model.ent_coef = 0.3
        model.learn(3, reset_num_timesteps=False)
        assert isinstance(model.temperature, FixedTemperature)
        assert model.temperature.value.item() == pytest.approx(0.3)
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == pytest.approx(0.3)

    @pytest.mark.parametrize(("ent_coef", "initial"), [("auto", 1.0), ("auto_0.4", 0.4)])
    def test_a_fixed_temperature_becomes_a_learned_one(self, ent_coef: str, initial: float) -> None:
        model = quick_model(RandomEnv(), ent_coef=0.2, learning_rate=1e-2).learn(20)
        model.ent_coef = ent_coef
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == pytest.approx(initial)
        assert isinstance(model.temperature, LearnedTemperature)
        model.learn(20, reset_num_timesteps=False)
        assert model.temperature.value.item() != pytest.approx(initial, abs=1e-3)
        assert model.temperature.target_entropy == model.target_entropy == -2.0

    def test_what_has_changed_is_saved(self) -> None:
        model = quick_model(RandomEnv(), ent_coef=0.2).learn(20)
        model.ent_coef, model.tau = "auto_0.4", 0.5
        model.learn(3, reset_num_timesteps=False)
        loaded = loaded_with(model)
        assert loaded.tau == 0.5
        assert_same_parameters(model, loaded)

    def test_another_form_of_the_temperature_keeps_its_value(self) -> None:
        model = quick_model(RandomEnv(), ent_coef="auto_0.4").learn(20)
        alpha = model.temperature.value.item()
        model.ent_coef_update = "log"
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == pytest.approx(alpha, rel=1e-5)
        assert type(model.temperature).__name__ == "LogTemperature"


BAD: list[tuple[str, Any]] = [
    ("tau", 2.0),
    ("gamma", -0.1),
    ("reward_scale", 0.0),
    ("target_entropy", "high"),
    ("target_entropy", None),
    ("ent_coef_max", -1.0),
    ("max_grad_norm", 0.0),
    ("policy_delay", 0),
    ("target_update_interval", 0.5),
    ("actor_q", "max"),
    ("target_q", "target_min"),
    ("target_subset", 4),
    ("learning_rate", -1.0),
    ("learning_rate", "lin_"),
    ("actor_learning_rate", "lin_"),
    ("critic_learning_rate", float("nan")),
    ("value_learning_rate", 1e-3),
    ("ent_coef_learning_rate", -1.0),
    ("train_freq", 0),
    ("gradient_steps", -2),
    ("batch_size", 0),
    ("random_steps", -1),
    ("ent_coef", -0.1),
    ("ent_coef", "auto_x"),
    ("ent_coef_update", "sgd"),
    ("compile", "always"),
]


@pytest.mark.parametrize("call", ["learn", "train"])
@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_range_is_refused_and_the_old_one_stays(name: str, value: Any, call: str) -> None:
    """Training goes on afterwards as if it had never been set."""
    model, expected = trained(), trained()
    old = getattr(model, name)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=rf"`{name}(\(1\.0\))?` is "):
        model.learn(5) if call == "learn" else model.train(1, batch_size=16)
    assert getattr(model, name) == old
    for either in (model, expected):
        train(either)
    assert_same_parameters(model, expected)


@pytest.mark.parametrize("call", ["learn", "train"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("value_network", True), ("n_steps", 3), ("buffer_size", 5), ("use_sde", True), ("soft_n_step", True)],
)
def test_what_a_model_was_built_for_is_refused_with_a_hint(name: str, value: Any, call: str) -> None:
    model = trained()
    old = getattr(model, name)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=rf"`{name}` was set to {value}, but it must stay {old}.* can `warm_start` from"):
        model.learn(5) if call == "learn" else model.train(1, batch_size=16)
    assert getattr(model, name) == old
    train(model)


def test_a_contradiction_is_refused_as_at_construction() -> None:
    model = trained(value_network=True)
    setattr(model, "actor_q", "target_min")  # noqa: B010  # mypy would remember the value
    with pytest.raises(ValueError, match="`actor_q` is 'target_min'"):
        train(model)
    assert model.actor_q == "min"


def test_a_discount_that_the_buffer_does_not_have_is_refused() -> None:
    model = make_model(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99})
    fill_buffer(model)
    model.gamma = 0.9
    with pytest.raises(ValueError, match=r"`gamma` is 0\.9, but the replay buffer discounts with 0\.99"):
        train(model)
    assert model.gamma == 0.99
    train(model)
