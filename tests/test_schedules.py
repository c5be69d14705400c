"""Schedules: values, strings, pickling, refusals."""

import pickle
from typing import Any

import numpy as np
import pytest

from sb3_softac.schedules import CosineSchedule, ExponentialSchedule, StaircaseSchedule, check_rate, parse_schedule


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
        None,
        [1],
        True,
    ],
)
def test_malformed_values_show_the_grammar(value: Any) -> None:
    with pytest.raises(ValueError, match=r'`critic_learning_rate` is .*"lin_3e-4_1e-10" \(linear\)'):
        parse_schedule("critic_learning_rate", value)


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf"), "-1", "nan", "lin_1_-1", "lin_inf", lambda _: -1.0])
def test_negative_and_non_finite_rates(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`learning_rate.*must be finite and at least 0"):
        parse_schedule("learning_rate", value)


def test_a_schedule_that_turns_negative_later() -> None:
    assert check_rate("learning_rate", 0.0) == 0.0
    with pytest.raises(ValueError, match=r"`learning_rate` is -0\.1"):
        check_rate("learning_rate", -0.1)
