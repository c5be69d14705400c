"""What ``compile="auto"`` counts: the gradient steps that were asked for. What a compiler would build runs in eager mode here.

Source of truth: ``WORTH_COMPILING``, compared with gradient steps that are counted by hand.
"""

from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softac.engine import engine
from tests.helpers import RandomEnv, make_model


class Uncompiled:
    """``CompiledStep`` without a compiler."""

    has_run = True

    def __init__(self, update: Any, flags: Any, numbers: Any, optimizer_step: Any) -> None:
        self.arguments = update, flags, numbers, optimizer_step

    def __call__(self, batch: Any, noise: Any) -> Any:
        update, flags, numbers, optimizer_step = self.arguments
        return update(batch, noise, flags, numbers, optimizer_step)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CompiledStep", Uncompiled)
    monkeypatch.setattr(engine, "missing_for_compilation", lambda _device: None)


def test_many_short_calls_are_compiled_once_their_sum_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORTH_COMPILING", 35)
    model = make_model(learning_starts=0, batch_size=8)
    compiled = []
    for _ in range(5):
        model.learn(10, reset_num_timesteps=False)
        compiled.append(model._engine.compiles)
    assert compiled == [False, False, False, True, True]
    assert model._engine.n_steps == 50
    assert model._engine.n_builds == 1


def test_a_short_call_between_two_long_ones_keeps_the_built_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORTH_COMPILING", 30)
    model = make_model(learning_starts=0, batch_size=8)
    for steps in (40, 3, 40):
        model.learn(steps, reset_num_timesteps=False)
        assert model._engine.compiles
        assert model._engine.n_builds == 1


@pytest.mark.parametrize(("worth", "expected"), [(50, True), (500, False)])
def test_episodes_without_a_monitor_count(worth: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of 5 steps, and 5 gradient steps after each: as many as environment steps."""
    monkeypatch.setattr(engine, "WORTH_COMPILING", worth)
    env = DummyVecEnv([RandomEnv])
    model = make_model(env=env, learning_starts=0, batch_size=8, train_freq=(1, "episode"), gradient_steps=5)
    model.learn(100)
    assert not model.ep_info_buffer
    assert model._engine.n_steps == pytest.approx(100, abs=5)
    assert model._engine.compiles is expected


def test_a_call_outside_of_learn_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WORTH_COMPILING", 30)
    model = make_model(learning_starts=0, batch_size=8)
    assert "how many gradient steps will follow is not known" in model._engine.decide(model._current_update(), "auto", None)
    assert not model._engine.compiles
