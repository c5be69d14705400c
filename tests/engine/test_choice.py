"""Which way the gradient steps run, why, and what happens when a way fails."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_softac import SoftAC
from sb3_softac.engine import engine
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    make_model,
    needs_compiler,
    net,
    restart_generators,
)


class TestChoice:
    def test_says_what_runs_and_why(self, capsys: pytest.CaptureFixture[str]) -> None:
        make_model(verbose=1, learning_starts=10).learn(20)
        assert (
            "Gradient steps: eager (9 gradient steps done and to come; compiling pays off from 20,000)"
            in capsys.readouterr().out
        )
        make_model(learning_starts=10).learn(20)
        assert "Gradient steps" not in capsys.readouterr().out

    @pytest.mark.traced
    def test_many_steps_are_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "WORTH_COMPILING", 9)
        model = make_model(learning_starts=10, batch_size=8).learn(19)
        assert not model._engine.compiles
        model = make_model(learning_starts=10, batch_size=8).learn(20)
        assert model._engine.compiles
        assert not make_model(learning_starts=10, batch_size=8, compile=False).learn(20)._engine.compiles

    @pytest.mark.parametrize(
        ("kwargs", "expected"),
        [
            ({}, 900),
            ({"train_freq": 10, "gradient_steps": 5}, 450),
            ({"train_freq": 10, "gradient_steps": -1}, 900),
            ({"learning_starts": 500}, 500),
            ({"train_freq": (1, "episode"), "gradient_steps": -1}, 900),
            ({"train_freq": (2, "episode"), "gradient_steps": 5}, 450),
        ],
    )
    def test_the_gradient_steps_to_come(self, kwargs: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(**{"learning_starts": 100, **kwargs})
        assert model._planned_gradient_steps() is None
        planned: list[int | None] = []
        monkeypatch.setattr(SoftAC, "train", lambda self, *_, **__: planned.append(self._planned_gradient_steps()))
        model.learn(1000)
        assert planned[0] == pytest.approx(expected, abs=10)

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(engine, "WORTH_COMPILING", 1)
        model = make_model(learning_starts=10, verbose=1).learn(20)
        assert not model._engine.compiles
        assert "eager (compiling needs" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"`compile` is True, but it must be 'auto' or False here: it needs .*"):
            make_model(compile=True)

    @needs_compiler
    def test_a_model_that_was_compiled_elsewhere_acts_without_a_compiler(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        make_model(compile=True).save(tmp_path / "model")
        monkeypatch.setenv("CXX", "no-such-compiler")
        model = SoftAC.load(tmp_path / "model", env=RandomEnv())
        model.predict(np.zeros(4, np.float32))
        with pytest.raises(
            ValueError, match="`compile` is True, but it must be 'auto' or False here: it needs a C\\+\\+ compiler"
        ):
            model.learn(10)

    @pytest.mark.parametrize(
        ("kwargs", "reason"),
        [
            ({"use_sde": True}, "gSDE keeps its noise between the steps"),
            (net(optimizer_class=th.optim.RMSprop), "the optimizer RMSprop, with its options, is none of"),
            (net(optimizer_kwargs={"amsgrad": True}), "the optimizer Adam, with its options, is none of"),
        ],
    )
    def test_what_can_only_run_in_eager_mode(
        self, kwargs: dict[str, Any], reason: str, standin: type[GraphStandIn], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ValueError, match=f"`compile` is True, but it must be 'auto' or False here: {reason}"):
            make_model(compile=True, **kwargs)
        make_model(verbose=1, **kwargs).learn(105)
        assert f"Gradient steps: eager ({reason}" in capsys.readouterr().out

    @pytest.mark.parametrize("value", ["always", None, 2, 1.0])
    def test_other_values_are_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"`compile` is .*, but it must be 'auto', True or False"):
            make_model(compile=value)


class Reader(BaseFeaturesExtractor):
    """Asks the device for a number in the middle of the step."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations * float(observations.detach().abs().max())


class TestFailure:
    def check(self, model: SoftAC, reason: str) -> None:
        """One warning, no change of the numbers, and no second attempt."""
        eager = build(False, **({} if model.policy_kwargs.get("features_extractor_class") is None else self.reader()))
        restart_generators()
        message = rf"The gradient step could not be compiled or captured: {reason}.*It runs in eager mode from now on\."
        with pytest.warns(UserWarning, match=message) as caught:
            model.train(5, batch_size=32)
        assert len(caught) == 1
        restart_generators()
        eager.train(5, batch_size=32)
        assert_same_parameters(model, eager)
        model._engine.decided = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.train(5, batch_size=32)
        assert not model._engine.compiles
        assert not model._engine.captures

    @staticmethod
    def reader() -> dict[str, Any]:
        return net(features_extractor_class=Reader)

    @pytest.fixture
    def broken_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is there from earlier
        broken = tmp_path / "g++"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        with th._inductor.config.patch({"cpp.cxx": (str(broken),)}):
            yield

    @needs_compiler
    @pytest.mark.usefixtures("broken_compiler")
    def test_of_the_compiler(self) -> None:
        self.check(build(True), "InductorError: InvalidCxxCompiler")

    @needs_compiler
    @pytest.mark.usefixtures("broken_compiler")
    def test_of_the_compiler_where_steps_can_be_captured(self, standin: type[GraphStandIn]) -> None:
        model, eager = build(True), build(False)
        restart_generators()
        message = r"could not be compiled: InductorError: InvalidCxxCompiler.*It is captured in a CUDA graph as it is\."
        with pytest.warns(UserWarning, match=message) as caught:
            model.train(12, batch_size=32)
        assert len(caught) == 1
        restart_generators()
        eager.train(12, batch_size=32)
        assert_close(model, eager)
        assert standin.captured == 1
        model._engine.decided = False
        model.train(5, batch_size=32)
        assert (model._engine.compiles, model._engine.captures, standin.captured) == (False, True, 1)

    def test_of_the_capture(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reader, "compilable", True, raising=False)
        self.check(build("auto", **self.reader()), "RuntimeError: operation not permitted")

    @needs_compiler
    def test_in_the_middle_of_the_first_compiled_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Critics that were updated, and random numbers that were drawn, are put back before the step runs in eager mode."""
        halves: list[bool] = []

        class HalfWay:
            def __init__(self, update: Any, flags: Any, numbers: Any, optimizer_step: Any) -> None:
                self.update, self.numbers, self.optimizer_step = update, numbers, optimizer_step

            def __call__(self, batch: Any, noise: Any) -> Any:
                update, before = self.update, self.update.networks.critic.q_networks.output.weight.clone()
                target = update.bellman_target(batch, update.temperature.value, noise, self.numbers)
                update.update_critics(batch, target, self.numbers, self.optimizer_step)
                th.randn(3)
                halves.append(not before.equal(update.networks.critic.q_networks.output.weight))
                raise MemoryError("nothing is left")

        monkeypatch.setattr(engine, "CompiledStep", HalfWay)
        self.check(build(True), "MemoryError: nothing is left")
        assert halves == [True]

    def test_of_a_step_that_ran_before(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        """It is no failure of the capture, and the step must not be done twice."""
        model = build("auto")
        model.train(5, batch_size=32)
        replay = GraphStandIn.replay

        def interrupted(self: GraphStandIn) -> th.Tensor:
            replay(self)
            raise TimeoutError

        monkeypatch.setattr(GraphStandIn, "replay", interrupted)
        with pytest.raises(TimeoutError):
            model.train(1, batch_size=32)
        assert model.critic.optimizer.state_dict()["state"][0]["step"] == 6
        assert model._engine.captures

    def test_of_constants_that_change_again_and_again(self, standin: type[GraphStandIn]) -> None:
        models = [build("auto"), build(False)]

        def train(model: SoftAC) -> None:
            restart_generators()
            for step in range(20):
                model.actor.log_std_bounds = (-20.0, 2.0 - 0.1 * step)
                model.train(1, batch_size=32)

        with pytest.warns(UserWarning, match="something that it holds as a constant changes again and again") as caught:
            train(models[0])
        assert len(caught) == 1
        train(models[1])
        assert standin.captured == engine.MOST_BUILDS
        assert_close(models[0], models[1])

    def test_a_mistake_in_the_step_is_not_hidden(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        model = build("auto")
        model.train(5, batch_size=32)
        model.critic_target = None
        with pytest.raises(AssertionError):
            model.train(5, batch_size=16)
