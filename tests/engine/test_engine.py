"""The same gradient step in three ways: in eager mode, as all other tests run it, compiled, and captured.

Eager mode is the source of truth here; other tests compare it with equations and with SB3.
"""

import copy
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC

from sb3_softac import SoftAC
from sb3_softac.runtime import Runtime
from sb3_softac.update import make_temperature
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    SMALL,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    fill_buffer,
    make_model,
    needs_compiler,
    net,
    parameters_of,
    restart_generators,
    traced_except,
)

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
    "learning rates of their own": {
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": "lin_1e-2",
        "ent_coef_learning_rate": 0.1,
    },
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
#: those of them that have code generated, as the equality with SB3's SAC has for the defaults; the others are traced
GENERATED = ("value network, first, one critic, log", "dropout, AdamW", "discrete, log")


def metrics(model: SoftAC) -> dict[str, float]:
    model._read_metrics()
    return {name: float(value) for name, value in model.logger.name_to_value.items()}


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
    @pytest.mark.parametrize("case", traced_except(GENERATED, COMPILED))
    def test_compiled(self, case: str) -> None:
        models = [build(compile, **COMPILED[case]) for compile in (False, True)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert models[1]._engine.compiles
        assert models[1]._engine.n_builds == (4 if case == "delayed" else 1)  # once for each kind of step
        assert_close(models[0], models[1])
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)

    @pytest.mark.gpu
    @pytest.mark.parametrize("compile", ["auto", True])
    @pytest.mark.parametrize("case", CASES)
    def test_on_a_gpu(self, case: str, compile: Any) -> None:
        if compile is True and case not in ("min", "value network", "log", "ten critics, two in the target", "discrete, min"):
            pytest.skip("one compilation for each kind of network")
        models = [build(compile, device="cuda", **CASES[case]) for compile in (False, compile)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert (models[1]._engine.compiles, models[1]._engine.captures) == (compile is True, True)
        assert_close(models[0], models[1], tolerance=1e-3)
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)


class TestLearningRates:
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
            assert th.equal(value, before[name]), f"{name} moved at a learning rate of 0"
        return model

    def test_captured(self, standin: type[GraphStandIn]) -> None:
        model = self.train("auto")
        assert standin.captured == 1
        assert_close(self.train(False), model)

    @pytest.mark.traced
    def test_compiled(self) -> None:
        model = self.train(True)
        assert model._engine.compiles
        assert_close(self.train(False), model)


class TestStateThatIsReplaced:
    """Loaded states, copies, other batch sizes: nothing goes on with tensors or constants of before."""

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
    def test_what_begins_again(self, fast: Any, kind: str) -> None:
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
            model.train(6, batch_size=32)
            model.actor.log_std_bounds = (-3.0, -1.0)
            model.train(6, batch_size=32)
            model.policy.load_from_vector(0.5 * model.policy.parameters_to_vector())
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])

    def test_another_way_at_the_next_learning(self, fast: Any) -> None:
        """Fast, in eager mode with another state of the optimizer, and fast again."""
        models = [build(fast), build(False)]
        for model in models:
            way = model.compile
            restart_generators()
            for compile in (way, False, way):
                model.compile = compile
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
    original = Runtime()
    original.engine.decided = original.engine.compiles = True
    assert not copy.deepcopy(original).engine.decided
    assert not copy.copy(original).engine.compiles
    model = build(False)
    model.train(2, batch_size=32)
    assert model._engine.n_steps == 2
    assert copy.deepcopy(model)._engine.n_steps == 0
