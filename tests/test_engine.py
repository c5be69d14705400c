"""The same gradient step in three ways: line by line, as all other tests run it, compiled, and captured."""

import copy
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_softac import SoftAC, engine
from sb3_softac.acting import CapturedActor
from sb3_softac.engine import Engine
from sb3_softac.temperature import make_temperature
from tests import graph_standin
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    SMALL,
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    make_model,
    needs_compiler,
    parameters_of,
)

needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")


def net(**kwargs: Any) -> dict[str, Any]:
    return {"policy_kwargs": {**SMALL, **kwargs}}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "min": {},
    "mean": {"actor_q": "mean", "target_q": "mean"},
    "first": {"actor_q": "first", "target_q": "first"},
    "target_min": {"actor_q": "target_min"},
    "value network": {"value_network": True},
    "value network, mean": {"value_network": True, "actor_q": "mean"},
    "value network, first": {"value_network": True, "actor_q": "first"},
}
TEMPERATURES: dict[str, dict[str, Any]] = {
    "fixed": {"ent_coef": 0.2},
    "scheduled": {"ent_coef": "lin_0.2"},
    **{update: {"ent_coef_update": update} for update in ("dual", "log", "exp")},
    "bounded": {"ent_coef_max": 1.0},
}
OTHERS: dict[str, dict[str, Any]] = {
    "one critic": net(n_critics=1),
    "ten critics, two in the target": {**net(n_critics=10), "target_subset": 2, "actor_q": "mean"},
    "delayed": {"policy_delay": 2, "target_update_interval": 3},
    "clipped": {"max_grad_norm": 0.05},
    "dropout": net(dropout_rate=0.1, layer_norm=True),
    "AdamW": net(optimizer_class=th.optim.AdamW, optimizer_kwargs={"weight_decay": 0.1}),
    "SGD": net(optimizer_class=th.optim.SGD),
    "free log std": net(log_std_mode="free", log_std_bounding="tanh"),
    "rates of their own": {"actor_learning_rate": 1e-3, "critic_learning_rate": "lin_1e-2", "ent_coef_learning_rate": 0.1},
    "reward scale": {"reward_scale": -2.0},
}
DISCRETE: dict[str, dict[str, Any]] = {
    f"discrete, {name}": {**kwargs, "discrete": True}
    for name, kwargs in [*ARCHITECTURES.items(), ("log", TEMPERATURES["log"]), ("clipped", OTHERS["clipped"])]
}
CASES = {**ARCHITECTURES, **TEMPERATURES, **OTHERS, **DISCRETE}
#: every switch in one of few compilations, which take seconds each
COMPILED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "value network, first, one critic, log": {
        "value_network": True,
        "actor_q": "first",
        "target_q": "first",
        "ent_coef_update": "log",
        **net(n_critics=1, log_std_mode="free", log_std_bounding="tanh"),
    },
    "value network, mean, bounded": {"value_network": True, "actor_q": "mean", "ent_coef_max": 1.0},
    "ten critics, subset, mean, exp, clipped": {
        **OTHERS["ten critics, two in the target"],
        "ent_coef_update": "exp",
        "max_grad_norm": 0.05,
    },
    "target_min, fixed": {"actor_q": "target_min", "ent_coef": 0.2},
    "delayed": OTHERS["delayed"],
    "dropout, AdamW": net(dropout_rate=0.1, layer_norm=True, **OTHERS["AdamW"]["policy_kwargs"]),
    "discrete, log": {"discrete": True, "ent_coef_update": "log"},
    "discrete, value network, mean, clipped": {
        "discrete": True,
        "value_network": True,
        "actor_q": "mean",
        "max_grad_norm": 0.05,
    },
}


def build(compile: Any, discrete: bool = False, **kwargs: Any) -> SoftAC:
    """A model with a filled buffer, whose random generators are at the same place for all that are built."""
    model = make_model(env=RandomDiscreteEnv() if discrete else RandomEnv(), compile=compile, **kwargs)
    fill_buffer(model)
    restart_generators()
    return model


def restart_generators() -> None:
    th.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the generator that SB3's buffers draw from


def assert_close(first: SoftAC, second: SoftAC, tolerance: float = 1e-4) -> None:
    """The same training state up to ``tolerance`` of each tensor's largest entry."""
    left, right = dict(parameters_of(first)), dict(parameters_of(second))
    assert left.keys() == right.keys()
    assert len(left) > 10
    for name, value in left.items():
        difference = (value - right[name]).abs().max().item() if value.numel() else 0.0
        assert difference <= tolerance * max(value.abs().max().item(), 1e-3), name


def metrics(model: SoftAC) -> dict[str, float]:
    model._read_metrics()
    return {name: float(value) for name, value in model.logger.name_to_value.items()}


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> type[GraphStandIn]:
    graph_standin.install(monkeypatch)
    monkeypatch.setattr(GraphStandIn, "captured", 0)
    return GraphStandIn


class TestSameNumbers:
    """20 updates from the same weights, batches and noise."""

    @pytest.mark.parametrize("case", CASES)
    def test_captured(self, case: str, standin: type[GraphStandIn]) -> None:
        models = [build(compile, **CASES[case]) for compile in (False, "auto")]
        for model in models:
            restart_generators()
            for progress in np.linspace(1.0, 0.0, 20):
                model._current_progress_remaining = float(progress)
                model.train(1, batch_size=32)
        assert standin.captured == (2 if case == "delayed" else 1)  # once for each kind of step that came often enough
        assert models[1]._engine.captures
        assert_close(models[0], models[1])
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)

    @needs_compiler
    @pytest.mark.parametrize("case", COMPILED)
    def test_compiled(self, case: str) -> None:
        models = [build(compile, **COMPILED[case]) for compile in (False, True)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert models[1]._engine.compiles
        assert {variant.n_built for variant in models[1]._engine._variants.values()} == {1}
        assert_close(models[0], models[1])
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)

    @needs_gpu
    @pytest.mark.parametrize("compile", ["auto", True])
    @pytest.mark.parametrize("case", CASES)
    def test_on_a_gpu(self, case: str, compile: Any) -> None:
        if compile is True and case not in ("min", "value network", "log", "ten critics, two in the target", "discrete, min"):
            pytest.skip("one compilation for each kind of network")
        models = [build(compile, device="cuda", **CASES[case]) for compile in (False, compile)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert models[1]._engine.captures
        assert_close(models[0], models[1], tolerance=1e-3)
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-3, abs=1e-4)


class TestRates:
    """A schedule takes effect in steps that hold everything else as constants."""

    def train(self, compile: Any) -> SoftAC:
        model = build(compile, learning_rate="lin_1e-2", ent_coef_learning_rate="lin_1e-1")
        for progress in (1.0, 1.0, 1.0, 1.0, 0.5, 0.5):
            model._current_progress_remaining = progress
            model.train(2, batch_size=32)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model._current_progress_remaining = 0.0
        model.tau = 0.0
        model.train(2, batch_size=32)
        for name, value in model.policy.state_dict().items():
            assert th.equal(value, before[name]), f"{name} moved at a rate of 0"
        return model

    def test_captured(self, standin: type[GraphStandIn]) -> None:
        model = self.train("auto")
        assert standin.captured == 2  # again for the new tau
        assert_close(self.train(False), model)

    @needs_compiler
    def test_compiled(self) -> None:
        model = self.train(True)
        assert model._engine.compiles
        assert_close(self.train(False), model)


class TestStateThatIsReplaced:
    """Loaded states, copies, other batch sizes: nothing goes on with tensors or constants of before."""

    @pytest.fixture(params=["captured", pytest.param("compiled", marks=needs_compiler)])
    def fast(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
        if request.param == "compiled":
            return True
        graph_standin.install(monkeypatch)
        return "auto"

    def test_saved_fast_and_loaded_eager_and_the_reverse(self, fast: Any, tmp_path: Path) -> None:
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
        for name, model, other in (("fast", models[0], False), ("eager", models[1], fast)):
            model.save(tmp_path / name)  # in the middle of its training
            loaded = SoftAC.load(tmp_path / name, compile=other)
            assert_same_parameters(model, loaded)
            loaded.replay_buffer = model.replay_buffer
            loaded.set_logger(model.logger)
            for each in (model, loaded):
                restart_generators()
                each.train(6, batch_size=32)
            assert_close(model, loaded)
            assert (loaded._engine.compiles or loaded._engine.captures) == (other is not False)

    def test_parameters_that_are_set(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        start = copy.deepcopy(models[0].get_parameters())
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            model.set_parameters(copy.deepcopy(start))
            restart_generators()
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])

    def test_an_optimizer_state_that_is_loaded(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            state = copy.deepcopy(model.critic.optimizer.state_dict())
            for entry in state["state"].values():
                entry["exp_avg"].fill_(1.0)
            model.critic.optimizer.load_state_dict(state)
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])

    @pytest.mark.parametrize("kind", ["optimizer", "state", "nothing left", "temperature"])
    def test_what_begins_anew(self, fast: Any, kind: str) -> None:
        """A new optimizer, the state of one that has not begun, no state at all, another temperature."""
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            old = model.critic.optimizer
            if kind == "optimizer":
                model.critic.optimizer = th.optim.Adam(model.critic.parameters(), lr=3e-4, fused=True)
            elif kind == "state":
                old.load_state_dict(th.optim.Adam(model.critic.parameters(), lr=3e-4, fused=True).state_dict())
            elif kind == "nothing left":
                old.state.clear()
            else:
                model.temperature = make_temperature("auto_0.5", "log", None, -2.0, model.lr_schedule)
            before = model.critic.q_networks.output.weight.clone(), model.temperature.value.clone()
            model.train(6, batch_size=32)
            assert not th.equal(model.critic.q_networks.output.weight, before[0])
            assert not th.equal(model.temperature.value, before[1])
            steps = {int(state["step"]) for state in model.critic.optimizer.state.values()}
            assert steps == ({12} if kind == "temperature" else {6})
        assert_close(models[0], models[1])

    def test_targets_bounds_and_memory_that_are_replaced(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            model.critic_target = copy.deepcopy(model.critic)
            model.policy.critic_target = model.critic_target
            model._tracked = (model._tracked[0], list(model.critic_target.parameters()))
            model.train(6, batch_size=32)
            model.actor.log_std_bounds = (-3.0, -1.0)
            model.train(6, batch_size=32)
            model.policy.load_from_vector(0.5 * model.policy.parameters_to_vector())
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])

    def test_another_way_at_the_next_learning(self, fast: Any) -> None:
        """Fast, line by line with another state of the optimizer, and fast again."""
        models = [build(fast), build(False)]
        for model in models:
            way = model.compile
            restart_generators()
            for compile in (way, False, way):
                model.compile = compile
                model._engine.decided = False
                model.train(6, batch_size=32)
                state = copy.deepcopy(model.actor.optimizer.state_dict())
                state["state"][0]["exp_avg"].fill_(0.01)
                model.actor.optimizer.load_state_dict(state)
        assert models[0]._engine.compiles or models[0]._engine.captures
        assert_close(models[0], models[1])

    def test_a_copy_trains_independently(self, fast: Any) -> None:
        model, eager = build(fast), build(False)
        for each in (model, eager):
            restart_generators()
            each.train(6, batch_size=32)
        before = {name: value.clone() for name, value in parameters_of(model)}
        copied = copy.deepcopy(model)
        for each in (copied, eager):
            restart_generators()
            each.train(6, batch_size=32)
        assert_close(copied, eager)
        for name, value in parameters_of(model):
            assert th.equal(value, before[name]), f"training the copy changed {name}"
        restart_generators()
        model.train(6, batch_size=32)
        assert_close(model, eager)

    def test_other_batch_sizes(self, fast: Any) -> None:
        models = [build(fast, learning_starts=0), build(False, learning_starts=0)]
        for model in models:
            for size in (32, 16, 32):
                model.batch_size = size
                restart_generators()
                model.env.seed(0)  # type: ignore[union-attr]  # there is one
                model.learn(8, reset_num_timesteps=False)
        assert_close(models[0], models[1])

    def test_a_setting_of_an_optimizer(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            model.actor.optimizer.param_groups[0]["weight_decay"] = 0.5
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])

    def test_rewards_that_are_scaled_otherwise(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        for model in models:
            restart_generators()
            model.train(6, batch_size=32)
            model.reward_scale = -3.0
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])


class TestChoice:
    def test_says_what_runs_and_why(self, capsys: pytest.CaptureFixture[str]) -> None:
        make_model(verbose=1, learning_starts=10).learn(20)
        assert "Gradient steps: eager (9 gradient steps to come; compiling pays off from 20,000)" in capsys.readouterr().out
        make_model(learning_starts=10).learn(20)
        assert "Gradient steps" not in capsys.readouterr().out

    @needs_compiler
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
    def test_what_can_only_run_line_by_line(
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


class Counting(SoftAC):
    """Does something of its own in each step."""

    n_counted = 0

    def _update_targets(self) -> None:
        self.n_counted += 1
        super()._update_targets()


class TestSomebodysOwn:
    """What could do in every step what a graph would do once is not captured or compiled unless asked for."""

    def check(self, model: SoftAC, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "WORTH_COMPILING", 1)
        assert model._engine.decide(model, 100) == f"eager ({reason})"
        model.compile = True
        assert model._engine.decide(model, 100).endswith("(compile=True)")

    @needs_compiler
    def test_features_extractors(self, monkeypatch: pytest.MonkeyPatch, standin: type[GraphStandIn]) -> None:
        model = build("auto", **TestFailure.reader())
        self.check(model, "the features extractor Reader is not known; compile=True takes it", monkeypatch)

    @needs_compiler
    def test_hooks(self, monkeypatch: pytest.MonkeyPatch, standin: type[GraphStandIn]) -> None:
        model, calls = build("auto"), []
        model.critic.q_networks.output.register_forward_hook(lambda *_: calls.append(1))
        model.train(6, batch_size=32)
        assert len(calls) == 12  # for the critic loss and the actor loss
        self.check(model, "a StackedLinear has hooks", monkeypatch)

    @needs_compiler
    def test_methods(self, monkeypatch: pytest.MonkeyPatch, standin: type[GraphStandIn]) -> None:
        model = Counting("MlpPolicy", RandomEnv(), device="cpu", buffer_size=100, **net())
        model.set_logger(make_model().logger)
        fill_buffer(model)
        model.train(6, batch_size=32)
        assert model.n_counted == 6
        self.check(model, "_update_targets is not SoftAC's own; compile=True takes it", monkeypatch)


class TestFailure:
    def check(self, model: SoftAC, reason: str) -> None:
        """One warning, no change of the numbers, and no second attempt."""
        eager = build(False, **({} if model.policy_kwargs.get("features_extractor_class") is None else self.reader()))
        restart_generators()
        message = rf"The gradient step could not be compiled or captured: {reason}.*It runs line by line from now on\."
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

    @needs_compiler
    def test_of_the_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is there from earlier
        broken = tmp_path / "g++"
        broken.write_text("#!/bin/sh\nexit 1\n")
        broken.chmod(0o755)
        with th._inductor.config.patch({"cpp.cxx": (str(broken),)}):
            self.check(build(True), "InductorError: InvalidCxxCompiler")

    def test_of_the_capture(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "KNOWN_EXTRACTORS", (Reader,))
        self.check(build("auto", **self.reader()), "RuntimeError: operation not permitted")

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
                model.reward_scale = 1.0 + step
                model.train(1, batch_size=32)

        with pytest.warns(UserWarning, match="something that it holds as a constant changes again and again") as caught:
            train(models[0])
        assert len(caught) == 1
        train(models[1])
        assert standin.captured == engine.MOST_BUILT
        assert_close(models[0], models[1])

    def test_a_mistake_in_the_step_is_not_hidden(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        model = build("auto")
        model.train(5, batch_size=32)
        model.critic_target = None
        with pytest.raises(AssertionError):
            model.train(5, batch_size=16)


class TestMetricsStayOnTheDevice:
    def test_they_are_read_at_the_next_train(self, standin: type[GraphStandIn]) -> None:
        """Those of one `train()` appear at the next one, with the values that eager steps log at once."""
        model, eager = build("auto"), build(False)
        logged: list[float] = []
        for n_steps in (8, 3):
            for each in (model, eager):
                restart_generators()
                each.train(n_steps, batch_size=32)
            logged.append(eager.logger.name_to_value["train/critic_loss"])
            if n_steps == 8:
                assert "train/critic_loss" not in model.logger.name_to_value
        assert model._engine.captures
        assert logged[1] != pytest.approx(logged[0], rel=1e-3)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(logged[0], rel=1e-4)
        model.train(0, batch_size=32)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(logged[1], rel=1e-4)

    def test_they_are_there_when_logs_are_dumped(self, standin: type[GraphStandIn], monkeypatch: pytest.MonkeyPatch) -> None:
        """By the model, and by a callback that evaluates."""
        for log_interval, callback in ((1, None), (None, EvalCallback(RandomEnv(), eval_freq=9, verbose=0, warn=False))):
            model = make_model(learning_starts=10)
            seen: list[bool] = []

            def dump(logger: Logger, step: int = 0, seen: list[bool] = seen) -> None:
                seen.append("train/critic_loss" in logger.name_to_value)

            with monkeypatch.context() as context:
                context.setattr(Logger, "dump", dump)
                model.learn(60, callback=callback, log_interval=log_interval)
            assert True in seen
            assert seen == sorted(seen)  # none is missing once training has begun

    def test_without_graphs_they_are_there_at_once(self, standin: type[GraphStandIn]) -> None:
        model = build(False)
        model.train(1, batch_size=32)
        assert model.logger.name_to_value["train/critic_loss"] > 0.0

    def test_divergence_is_noticed(self, standin: type[GraphStandIn]) -> None:
        model = make_model(learning_starts=10, reward_scale=1e38)
        with pytest.raises(ValueError, match="Training has diverged after"):
            model.learn(30, log_interval=None)
        assert model.num_timesteps < 20


def test_no_gradient_is_left_behind() -> None:
    """`parameter.grad` would be that of the first step for ever."""
    model = build(False)
    model.train(1, batch_size=32)
    assert model.critic.q_networks.output.weight.grad is not None
    model.train(1, batch_size=32)
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_hooks_of_an_optimizer_are_called() -> None:
    model, calls = build(False), []
    model.train(2, batch_size=32)
    model.critic.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    model.train(3, batch_size=32)
    assert len(calls) == 3


@pytest.mark.parametrize("kwargs", [{"fused": False}, {"foreach": True}])
def test_counts_that_other_implementations_keep_elsewhere(kwargs: dict[str, Any], standin: type[GraphStandIn]) -> None:
    models = [build(compile, **net(optimizer_kwargs=kwargs)) for compile in ("auto", False)]
    for model in models:
        restart_generators()
        model.train(8, batch_size=32)
    assert models[0]._engine.captures
    assert_close(models[0], models[1])


def test_a_pickled_model_draws_new_batches() -> None:
    model = build(False)
    model.train(3, batch_size=32)
    loaded = cloudpickle.loads(cloudpickle.dumps(model))
    for each in (model, loaded):
        restart_generators()
        each.train(3, batch_size=32)
    assert_same_parameters(model, loaded)
    first, second = (next(iter(loaded._batches(1, 8))).rewards.clone() for _ in range(2))
    assert not th.equal(first, second)


class TestCapturedActing:
    @pytest.mark.parametrize("discrete", [False, True])
    def test_acts_as_the_policy_does(self, discrete: bool, standin: type[GraphStandIn]) -> None:
        model = make_model(env=RandomDiscreteEnv(3, start=2) if discrete else RandomEnv(), learning_starts=5, batch_size=8)
        model.learn(20)
        actor = model._direct_actor
        assert isinstance(actor, CapturedActor)
        assert isinstance(model._last_obs, np.ndarray)
        th.manual_seed(3)
        actions = actor(model._last_obs)
        th.manual_seed(3)
        with th.no_grad():
            expected = model.actor(th.as_tensor(model._last_obs))
        np.testing.assert_array_equal(actions, expected.numpy())
        again = actor(model._last_obs)
        assert discrete or not np.array_equal(actions, again)  # another draw

    def test_a_copy_does_not_act_for_the_original(self, standin: type[GraphStandIn]) -> None:
        model = make_model(learning_starts=5, batch_size=8).learn(20)
        duplicate = copy.deepcopy(model)
        assert duplicate._direct_actor is None
        duplicate.learn(10)
        assert isinstance(duplicate._direct_actor, CapturedActor)
        assert duplicate._direct_actor.policy is duplicate.policy

    def test_not_without_graphs(self, standin: type[GraphStandIn]) -> None:
        assert not isinstance(make_model(learning_starts=5, compile=False).learn(6)._direct_actor, CapturedActor)

    @needs_gpu
    def test_on_a_gpu(self) -> None:
        model = make_model(learning_starts=20, device="cuda").learn(60)
        assert isinstance(model._direct_actor, CapturedActor)
        assert model._engine.captures
        assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()


@needs_compiler
def test_compiled_training_equals_sb3s_sac() -> None:
    """Also through our own buffer: 15 updates from SB3's weights, with SB3's random numbers."""
    sac = SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), seed=0, device="cpu", buffer_size=500)
    fill_buffer(sac)
    model = SoftAC.from_sb3(copy.deepcopy(sac), compile=True)
    for each in (sac, model):
        each.set_logger(make_model().logger)
        restart_generators()
        each.train(15, batch_size=32)
    assert model._engine.compiles
    for ours, theirs in zip(model.actor.parameters(), sac.actor.parameters(), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    observations, actions = th.randn(5, 4), th.rand(5, 2)
    for ours, theirs in zip(model.critic(observations, actions), sac.critic(observations, actions), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_engine_is_not_copied() -> None:
    original = Engine()
    original.decided = original.compiles = True
    assert not copy.deepcopy(original).decided
    assert not copy.copy(original).compiles
