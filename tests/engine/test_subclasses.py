"""User-defined gradient steps and modules: compiled where they say that they can be.

Source of truth: the same class in eager mode.
"""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_softac import SoftAC
from sb3_softac.engine import engine
from sb3_softac.update import ActorCriticUpdate
from tests.graph_standin import GraphStandIn
from tests.helpers import SMALL, RandomEnv, assert_close, build, fill_buffer, logged, net, restart_generators


class OptimisticUpdate(ActorCriticUpdate):
    """V(s') + 1 in the targets, and one more metric of the actor."""

    def next_value(self, *args: Any, **kwargs: Any) -> Any:
        return super().next_value(*args, **kwargs) + 1.0

    def update_actor(self, batch: Any, pi: Any, *args: Any, **kwargs: Any) -> dict[str, th.Tensor]:
        metrics = super().update_actor(batch, pi, *args, **kwargs)
        return metrics | {"largest_action": pi.actions.detach().abs().max()}


class Optimistic(SoftAC):
    update_class = OptimisticUpdate


class CountingUpdate(ActorCriticUpdate):
    """Does something in Python in each step, and says so."""

    compilable = False
    n_counted = 0

    def update_targets(self, numbers: Any) -> None:
        self.n_counted += 1
        super().update_targets(numbers)


class Counting(SoftAC):
    update_class = CountingUpdate


class Doubled(BaseFeaturesExtractor):
    """Says nothing of itself."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return 2.0 * observations


class CompilableDoubled(Doubled):
    compilable = True


def make(cls: type[SoftAC], compile: Any) -> SoftAC:
    model = cls("MlpPolicy", RandomEnv(), device="cpu", buffer_size=500, seed=0, compile=compile, policy_kwargs=dict(SMALL))
    model.set_logger(Logger(None, []))
    fill_buffer(model)
    restart_generators()
    return model


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single gradient step is worth a compilation."""
    monkeypatch.setattr(engine, "WORTH_COMPILING", 0)


@pytest.mark.traced
def test_a_subclass_of_the_update_is_compiled(worth_it: None) -> None:
    models = [make(Optimistic, "auto"), make(Optimistic, False), make(SoftAC, False)]
    for model in models:
        restart_generators()
        model.train(8, batch_size=32)
    assert models[0]._engine.compiles
    assert models[0]._engine.n_builds == 1
    assert_close(models[0], models[1])
    assert logged(models[0], "largest_action") == pytest.approx(logged(models[1], "largest_action"), rel=1e-4)
    with pytest.raises(AssertionError):
        assert_close(models[1], models[2])


def test_a_subclass_of_the_update_is_captured(standin: type[GraphStandIn]) -> None:
    models = [make(Optimistic, "auto"), make(Optimistic, False)]
    for model in models:
        restart_generators()
        model.train(8, batch_size=32)
    assert standin.captured == 1
    assert_close(models[0], models[1])


@pytest.mark.traced
def test_an_update_that_says_no_stays_eager(worth_it: None, standin: type[GraphStandIn]) -> None:
    model = make(Counting, "auto")
    model.train(6, batch_size=32)
    update: Any = model._current_update()
    assert update.n_counted == 6
    assert not model._engine.compiles
    assert not model._engine.captures
    reason = "CountingUpdate says `compilable = False`; compile=True compiles it all the same"
    assert model._engine.decide(update, "auto", 100) == f"eager ({reason})"
    assert model._engine.decide(update, True, 100).endswith("(compile=True)")
    assert model._engine.compiles


@pytest.mark.traced
def test_a_features_extractor_is_compiled_where_it_or_the_user_says_so(worth_it: None) -> None:
    models = {
        "silent, auto": build("auto", **net(features_extractor_class=Doubled)),
        "silent, True": build(True, **net(features_extractor_class=Doubled)),
        "compilable, auto": build("auto", **net(features_extractor_class=CompilableDoubled)),
        "eager": build(False, **net(features_extractor_class=Doubled)),
    }
    for model in models.values():
        restart_generators()
        model.train(8, batch_size=32)
        assert_close(model, models["silent, auto"])
    assert [model._engine.compiles for model in models.values()] == [False, True, True, False]


@pytest.mark.traced
def test_the_reason_names_the_module_that_does_not_say_it(worth_it: None) -> None:
    model = build("auto", **net(features_extractor_class=Doubled))
    reason = "Doubled does not say `compilable = True`; compile=True compiles it all the same"
    assert model._engine.decide(model._current_update(), "auto", 100) == f"eager ({reason})"


def test_a_captured_features_extractor_equals_the_eager_one(standin: type[GraphStandIn]) -> None:
    models = [build(compile, **net(features_extractor_class=CompilableDoubled)) for compile in ("auto", False)]
    for model in models:
        restart_generators()
        model.train(8, batch_size=32)
    assert standin.captured == 1
    assert_close(models[0], models[1])
