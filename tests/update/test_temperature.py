"""The temperature strategies against hand-computed steps and their bounds."""

import math
from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_softac.update.temperature import (
    DualTemperature,
    ExpTemperature,
    FixedTemperature,
    LearnedTemperature,
    LogTemperature,
    make_temperature,
)

RATE = 0.1


def learned(update: Any = "dual", ent_coef: str = "auto", maximum: float | None = None) -> LearnedTemperature:
    temperature = make_temperature(ent_coef, update, maximum, -1.0, ConstantSchedule(RATE))
    assert isinstance(temperature, LearnedTemperature)
    return temperature


def test_one_dual_step_by_hand() -> None:
    """α = 1, Ĥ = −mean(0.5, −1.5) = 0.5, H̄ = −1: α ← 1 − 0.1 (0.5 + 1) = 0.85, at a loss of 1 · 1.5."""
    temperature = learned()
    loss = temperature.update(th.tensor([0.5, -1.5]))
    assert temperature.value.item() == pytest.approx(0.85)
    assert loss.item() == pytest.approx(1.5)


@pytest.mark.parametrize(("update", "gradient"), [("log", 1.5), ("exp", 0.5 * 1.5)])
def test_one_step_of_log_and_exp_by_hand(update: Any, gradient: float) -> None:
    """Adam's first step is λ g / (|g| + 1e-8) whatever the gradient, so its ``exp_avg`` shows the gradient itself."""
    temperature = learned(update, "auto_0.5")
    temperature.update(th.tensor([0.5, -1.5]))
    assert temperature.value.item() == pytest.approx(0.5 * math.exp(-RATE), rel=1e-6)
    (state,) = temperature.optimizer.state.values()
    assert state["exp_avg"].item() == pytest.approx(0.1 * gradient, rel=1e-5)


@settings(deadline=None)  # the first example pays for PyTorch's start
@given(
    st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=30),
    st.one_of(st.none(), st.floats(0.5, 10.0)),
    st.floats(0.0, 0.5),
)
def test_dual_ascent_stays_in_its_bounds(log_probs: list[float], maximum: float | None, initial: float) -> None:
    temperature = learned("dual", f"auto_{initial}", maximum)
    for log_prob in log_probs:
        temperature.update(th.full((4,), log_prob))
        assert 0.0 <= temperature.value.item() <= (math.inf if maximum is None else maximum)


@pytest.mark.parametrize("update", ["log", "exp"])
def test_maximum_of_the_other_forms(update: Any) -> None:
    temperature = learned(update, "auto", maximum=1.2)
    for _ in range(20):
        temperature.update(th.full((4,), 3.0))
        assert temperature.value.item() <= 1.2
    assert temperature.value.item() == pytest.approx(1.2)


@settings(deadline=None)
@given(st.floats(0.05, 5.0), st.floats(0.0, 3.0), st.floats(0.01, 5.0))
def test_dual_ascent_reaches_exactly_zero_and_comes_back(gap: float, initial: float, shortfall: float) -> None:
    """As long as Ĥ = H̄ + gap, α falls by λ·gap at each step, to exactly 0; with Ĥ below H̄ it leaves 0 at once."""
    temperature = learned("dual", f"auto_{initial}")
    above, below = th.full((4,), 1.0 - gap), th.full((4,), 1.0 + shortfall)  # H̄ = −1
    for _ in range(math.ceil(initial / (RATE * gap)) + 1):
        temperature.update(above)
    assert temperature.value.item() == 0.0
    temperature.update(above)
    assert temperature.value.item() == 0.0
    temperature.update(below)
    assert temperature.value.item() == pytest.approx(RATE * shortfall, rel=1e-3, abs=1e-6)


def test_dual_ascent_reaches_zero_and_comes_back() -> None:
    temperature = learned()
    above, below = th.full((4,), -2.0), th.full((4,), 2.0)  # Ĥ = 2 and −2 around H̄ = −1
    for _ in range(10):
        temperature.update(above)
    assert temperature.value.item() == 0.0
    temperature.update(above)
    assert temperature.value.item() == 0.0
    temperature.update(below)
    assert temperature.value.item() == pytest.approx(RATE * 1.0)


def test_the_value_carries_no_gradient() -> None:
    for update in ("dual", "log", "exp"):
        value = learned(update).value
        assert value.shape == ()
        assert not value.requires_grad


def test_strategies_are_chosen_by_ent_coef() -> None:
    assert type(learned("dual")) is DualTemperature
    assert type(learned("log")) is LogTemperature
    assert type(learned("exp")) is ExpTemperature
    for ent_coef in (0.2, "0.2", "lin_0.2", lambda progress: 0.2 * progress):
        temperature = make_temperature(ent_coef, "dual", None, -1.0, ConstantSchedule(RATE))
        assert type(temperature) is FixedTemperature
        assert temperature.value.item() == pytest.approx(0.2)


def test_a_scheduled_temperature_follows_the_progress() -> None:
    temperature = make_temperature("lin_0.4_0.2", "dual", None, -1.0, ConstantSchedule(RATE))
    temperature.set_progress(0.5)
    assert temperature.value.item() == pytest.approx(0.3)
    assert temperature.update(th.zeros(4)) is None
    assert temperature.value.item() == pytest.approx(0.3)


def test_the_rate_of_a_learned_temperature_follows_the_progress() -> None:
    temperature = make_temperature("auto", "dual", None, -1.0, LinearSchedule(0.2, 0.0, 1.0))
    temperature.set_progress(0.25)
    temperature.update(th.zeros(4))  # Ĥ − H̄ = 1
    assert temperature.value.item() == pytest.approx(1.0 - 0.05)


@pytest.mark.parametrize("ent_coef", ["auto_", "auto_x", "autox", "auto_-1", "auto_nan", "auto_inf", "auto_1_2"])
def test_malformed_auto(ent_coef: str) -> None:
    with pytest.raises(ValueError, match=r"`ent_coef` is .*'auto_x' with an initial value x of at least 0"):
        learned("dual", ent_coef)


def test_only_dual_ascent_may_start_at_zero() -> None:
    assert learned("dual", "auto_0").value.item() == 0.0
    with pytest.raises(ValueError, match="above 0"):
        learned("log", "auto_0")


def test_initial_value_above_the_maximum() -> None:
    with pytest.raises(ValueError, match=r"starts above `ent_coef_max`=0.5"):
        learned("dual", "auto", maximum=0.5)


@pytest.mark.parametrize("ent_coef", ["high", "lin_a", -0.1, float("nan"), None])
def test_malformed_fixed_value(ent_coef: Any) -> None:
    with pytest.raises(ValueError, match=r"`ent_coef` is .*'auto'"):
        make_temperature(ent_coef, "dual", None, -1.0, ConstantSchedule(RATE))
