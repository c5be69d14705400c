"""Schedules: values, strings, pickling, refusals."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softac import SoftAC, SoftQL
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    StaircaseSchedule,
    WarmUpSchedule,
    check_rate,
    parse_schedule,
    value_at,
    warm_up_of,
)
from tests.files.resume_runs import Stop, Stopped
from tests.helpers import RandomEnv, assert_same_parameters, quick_model


@pytest.mark.parametrize(
    ("text", "start", "middle", "end"),
    [
        ("3e-4", 3e-4, 3e-4, 3e-4),
        ("lin_3e-4", 3e-4, 1.5e-4, 0.0),
        ("lin_3e-4_1e-10", 3e-4, 1.5e-4 + 0.5e-10, 1e-10),
        ("exp_3e-4_1e-10", 3e-4, (3e-4 * 1e-10) ** 0.5, 1e-10),
        ("cos_3e-4_1e-4", 3e-4, 2e-4, 1e-4),
    ],
)
def test_strings(text: str, start: float, middle: float, end: float) -> None:
    schedule = pickle.loads(pickle.dumps(parse_schedule("learning_rate", text)))
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == pytest.approx([start, middle, end], rel=1e-9)


def test_decay_by_epoch_is_a_staircase_from_start_to_end() -> None:
    """By hand: five epochs of ten steps; linear 5, 4, 3, 2, 1, exponential 16, 8, 4, 2, 1."""
    for text, stairs in (("lin_5_1_5", [5, 4, 3, 2, 1]), ("exp_16_1_5", [16, 8, 4, 2, 1])):
        schedule = pickle.loads(pickle.dumps(parse_schedule("learning_rate", text)))
        values = [schedule(1.0 - step / 50) for step in range(51)]
        assert values == pytest.approx([stair for stair in stairs for _ in range(10)] + stairs[-1:])
        assert schedule(-0.1) == pytest.approx(1.0)


def test_a_cosine_in_steps() -> None:
    schedule = parse_schedule("learning_rate", "cos_4_0_3")
    assert [schedule(progress) for progress in (1.0, 0.5, 0.1)] == pytest.approx([4.0, 2.0, 0.0])


def test_a_staircase_of_any_schedule() -> None:
    schedule = StaircaseSchedule(lambda progress: progress**2, 3)
    assert [schedule(progress) for progress in (1.0, 0.7, 0.6, 0.4, 0.3, 0.0)] == [1.0, 1.0, 0.25, 0.25, 0.0, 0.0]
    with pytest.raises(ValueError, match="`n_stairs` is 1, but it must be an integer of at least 2"):
        StaircaseSchedule(lambda progress: progress, 1)


def test_numbers_and_callables() -> None:
    assert parse_schedule("learning_rate", np.float64(0.25))(0.3) == 0.25
    assert parse_schedule("learning_rate", 0)(0.3) == 0.0
    assert parse_schedule("learning_rate", lambda progress: 2 * progress)(0.25) == 0.5


def test_past_the_planned_end() -> None:
    assert ExponentialSchedule(1.0, 0.1)(-0.5) == pytest.approx(0.1)
    assert CosineSchedule(1.0, 0.1)(-0.5) == pytest.approx(0.1)
    assert parse_schedule("learning_rate", "lin_1")(-0.5) == 0.0


@pytest.mark.parametrize(
    "value",
    [
        "",
        "lin",
        "lin_",
        "lin_1_2_3_4",
        "lin_1_2_1",
        "lin_1_2_2.5",
        "lin_1_2_inf",
        "exp_1_0_3",
        "exp_1",
        "exp_1_0",
        "exp_0_1",
        "cos_1",
        "constant_1",
        "_1",
        "3e-4_1e-4",
        "LIN_1",
        "lin_a",
        "warm_3e-4",
        "warm_1000",
        "warm_1000_",
        "warm_0_3e-4",
        "warm_2.5_3e-4",
        "warm_nan_3e-4",
        "warm_inf_3e-4",
        "warm_a_3e-4",
        "warm__3e-4",
        "warm_10_warm_10_3e-4",
        "warm_1000_cos_3e-4",
        None,
        [1],
        True,
    ],
)
def test_malformed_values_show_the_grammar(value: Any) -> None:
    with pytest.raises(ValueError, match=r'`critic_learning_rate` is .*"lin_3e-4_1e-10" \(linear\)'):
        parse_schedule("critic_learning_rate", value)


@pytest.mark.parametrize(
    "value", [-1e-4, float("nan"), float("inf"), "-1", "nan", "lin_1_-1", "lin_inf", "warm_9_-1", lambda _: -1.0]
)
def test_negative_and_non_finite_rates(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`learning_rate.*must be finite and at least 0"):
        parse_schedule("learning_rate", value)


def test_a_schedule_that_turns_negative_later() -> None:
    assert check_rate("learning_rate", 0.0) == 0.0
    with pytest.raises(ValueError, match=r"`learning_rate` is -0\.1"):
        check_rate("learning_rate", -0.1)


# --- warm-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "progress", "step", "value"),
    [
        ("warm_1000_3e-4", 1.0, 0, 0.0),
        ("warm_1000_3e-4", 1.0, 1, 3e-7),
        ("warm_1e3_3e-4", 1.0, 250, 0.75e-4),
        ("warm_1000_3e-4", 0.5, 1000, 3e-4),
        ("warm_1000_3e-4", 0.0, 5000, 3e-4),
        ("warm_100_lin_4", 0.75, 50, 1.5),
        ("warm_100_lin_4_2", 0.5, 200, 3.0),
        ("warm_100_exp_16_1", 0.5, 25, 1.0),
        ("warm_1000_cos_3e-4_1e-4", 0.5, 500, 1e-4),
        ("warm_10_lin_5_1_5", 0.5, 5, 1.5),
    ],
)
def test_a_warm_up_by_hand(text: str, progress: float, step: int, value: float) -> None:
    """min(1, t/n) times what the rest of the string says."""
    schedule = pickle.loads(pickle.dumps(parse_schedule("learning_rate", text)))
    assert value_at(schedule, progress, step) == pytest.approx(value, rel=1e-12)
    assert schedule(progress) == pytest.approx(parse_schedule("learning_rate", text.split("_", 2)[2])(progress))


def test_schedules_without_a_warm_up_know_no_steps() -> None:
    assert value_at(parse_schedule("learning_rate", "lin_4"), 0.5, 0) == 2.0
    assert value_at(lambda progress: progress, 0.5, 0) == 0.5


def test_a_warm_up_is_around_all_others() -> None:
    inner = WarmUpSchedule(CosineSchedule(1.0, 0.5), 10)
    assert repr(inner) == "WarmUpSchedule(CosineSchedule(start=1.0, end=0.5), n_steps=10)"
    for make in (lambda: WarmUpSchedule(inner, 5), lambda: StaircaseSchedule(parse_schedule("learning_rate", inner), 5)):
        with pytest.raises(ValueError, match=r"`schedule` is .* must be without a warm-up"):
            make()
    with pytest.raises(ValueError, match="`n_steps` is 0, but it must be an integer of at least 1"):
        WarmUpSchedule(CosineSchedule(1.0, 0.5), 0)


class Rates(BaseCallback):
    """The learning rates of the optimizers after each rollout, before the update that follows it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, list[float]]] = []

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, SoftAC)
        networks = [*self.model.policy.trained_networks().values(), self.model.temperature]
        rates = [float(network.optimizer.param_groups[0]["lr"]) for network in networks]
        self.rows.append((self.model.num_timesteps, rates))

    def _on_step(self) -> bool:
        return True


WARM: dict[str, Any] = {
    "learning_rate": "warm_40_1e-2",
    "actor_learning_rate": "warm_20_lin_1e-3",
    "value_learning_rate": WarmUpSchedule(ExponentialSchedule(1e-2, 1e-4), 30),
    "ent_coef_learning_rate": "warm_60_cos_1e-3_1e-4",
    "value_network": True,
}


def test_each_network_warms_up_by_itself() -> None:
    """After t of 100 steps, in closed form; the critics follow `learning_rate`."""
    rates = Rates()
    quick_model(RandomEnv(), **WARM).learn(100, callback=rates)
    trained = rates.rows[12:]
    assert len(trained) == 88
    for step, row in trained:
        p = 1.0 - step / 100
        expected = [
            min(1.0, step / 20) * 1e-3 * p,
            min(1.0, step / 40) * 1e-2,
            min(1.0, step / 30) * 1e-2**p * 1e-4 ** (1 - p),
            min(1.0, step / 60) * (1e-4 + 9e-4 * 0.5 * (1 + np.cos(np.pi * (1 - p)))),
        ]
        assert row == pytest.approx(expected, rel=1e-9)


def test_steps_of_all_environments_count_and_a_second_learn_goes_on() -> None:
    model = SoftQL("MlpPolicy", RandomEnv(), learning_starts=10, batch_size=8, learning_rate="warm_200_1e-2", device="cpu")
    model.learn(50)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.25 * 1e-2)
    model.learn(100, reset_num_timesteps=False)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.75 * 1e-2)
    model.learn(20)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 1e-2)


def test_a_rate_of_zero_moves_nothing() -> None:
    model = quick_model(RandomEnv(), learning_rate="warm_1000_1e-2", learning_starts=0).learn(1)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.num_timesteps = 0
    model.train(1, 8)
    for parameter, value in zip(model.actor.parameters(), before, strict=False):
        assert parameter.equal(value)


def test_a_temperature_is_no_learning_rate() -> None:
    for make in (lambda value: quick_model(ent_coef=value), lambda value: SoftQL("MlpPolicy", RandomEnv(), ent_coef=value)):
        for value in ("warm_10_0.2", WarmUpSchedule(CosineSchedule(0.2, 0.1), 10)):
            with pytest.raises(ValueError, match=r"`ent_coef` is .* must be without a warm-up, which is for learning rates"):
                make(value)
    model: Any = quick_model(RandomEnv(), ent_coef=0.2)
    model.ent_coef = "warm_10_0.2"
    with pytest.raises(ValueError, match=r"`ent_coef` is 'warm_10_0\.2'"):
        model.learn(5)
    assert model.ent_coef == 0.2


def test_set_during_training_saved_and_not_given_to_sb3() -> None:
    model = quick_model(RandomEnv(), ent_coef_update="log").learn(20)
    model.learning_rate = "warm_100_1e-2"
    model.learn(20, reset_num_timesteps=False)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.4e-2)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream)
    warm_up = warm_up_of(loaded.lr_schedule)
    assert warm_up is not None
    assert (warm_up.n_steps, loaded.learning_rate) == (100, "warm_100_1e-2")
    with pytest.raises(ValueError, match="`learning_rate` is 'warm_100_1e-2' and would have to be without a warm-up"):
        model.to_sb3()


def test_an_object_is_saved_too() -> None:
    model, stream = quick_model(RandomEnv(), learning_rate=WarmUpSchedule(CosineSchedule(1e-2, 1e-3), 50)), io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream)
    assert value_at(loaded.lr_schedule, 1.0, 25) == pytest.approx(0.5e-2)


def test_a_warm_up_goes_on_after_resume(tmp_path: Path) -> None:
    """Stopped within it."""
    expected = quick_model(RandomEnv(), seed=0, **WARM).learn(80)
    with pytest.raises(Stopped):
        quick_model(RandomEnv(), seed=0, **WARM).learn(80, callback=[ExactCheckpointCallback(10, tmp_path), Stop(33)])
    model = SoftAC.resume(tmp_path, RandomEnv()).learn()
    assert_same_parameters(model, expected)


@pytest.mark.traced
def test_a_compiled_step_follows_it() -> None:
    """One build: the learning rate is a tensor."""
    options: dict[str, Any] = {"seed": 0, "learning_rate": "warm_60_1e-3", "policy_kwargs": {"net_arch": [8]}}
    eager = quick_model(RandomEnv(), compile=False, **options).learn(60)
    compiled = quick_model(RandomEnv(), **{**options, "compile": True}).learn(60)
    assert compiled._engine.n_builds == 1
    for left, right in zip(eager.policy.parameters(), compiled.policy.parameters(), strict=True):
        np.testing.assert_allclose(left.detach(), right.detach(), atol=1e-4)
