"""Numbers that a user changes during the training take effect in the next step, and nothing is built again for them.

Sources of truth: a model that was constructed with the new number, and eager mode.
"""

from typing import Any

import pytest

from sb3_softac import SoftAC
from sb3_softac.networks.ensemble import Dropout
from tests.graph_standin import GraphStandIn
from tests.helpers import assert_close, assert_same_parameters, build, net, parameters_of, restart_generators

#: every number at once
OPTIONS: dict[str, Any] = {
    "value_network": True,
    "ent_coef_max": 2.0,
    "max_grad_norm": 1.0,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "ent_coef_learning_rate": 1e-2,
    **net(dropout_rate=0.1),
}
VALUES: dict[str, list[Any]] = {
    "actor_learning_rate": [1e-2, "lin_3e-3", 0.0],
    "critic_learning_rate": [1e-2, "lin_3e-3", 0.0],
    "value_learning_rate": [1e-2, "lin_3e-3", 0.0],
    "ent_coef_learning_rate": [0.1, "lin_3e-2", 0.0],
    "tau": [0.5, 1.0, 0.0],
    "reward_scale": [3.0, -2.0, 0.5],
    "target_entropy": [-5.0, 1.0, 0.0],
    "ent_coef_max": [0.5, 0.2, 1.5],
    "gamma": [0.9, 0.0, 1.0],
    "max_grad_norm": [0.01, 10.0, 0.1],
    "dropout": [0.5, 0.0, 0.2],
}


def assign(model: SoftAC, name: str, value: Any) -> None:
    if name != "dropout":
        setattr(model, name, value)
        return
    layers = [module for module in model.policy.modules() if isinstance(module, Dropout)]
    assert layers
    for layer in layers:
        layer.p = value


def train(compile: Any, names: list[str]) -> SoftAC:
    """Six gradient steps, and two after each change."""
    model = build(compile, **OPTIONS)
    model.train(6, batch_size=32)
    n_builds = model._engine.n_builds
    assert n_builds == (compile is not False)
    for name in names:
        for value in VALUES[name]:
            assign(model, name, value)
            model.train(2, batch_size=32)
            assert model._engine.n_builds == n_builds, f"{name} = {value} has built the step again"
    return model


@pytest.mark.parametrize("name", VALUES)
def test_a_number_that_is_set_is_that_of_the_next_step(name: str) -> None:
    """As if the model had been constructed with it."""
    for value in VALUES[name]:
        changed = build(False, **OPTIONS)
        assign(changed, name, value)
        options = {**OPTIONS, **(net(dropout_rate=value) if name == "dropout" else {name: value})}
        if options["policy_kwargs"]["dropout_rate"] == 0.0:
            continue  # it has no such layers
        constructed = build(False, **{"ent_coef": "auto", **options}) if value not in (0.5, 0.2) else None
        if name == "ent_coef_max" and constructed is None:
            continue  # α would start above it
        constructed = constructed or build(False, **options)
        for model in (changed, constructed):
            restart_generators()
            model.train(4, batch_size=32)
        assert_same_parameters(changed, constructed)


@pytest.mark.parametrize("name", VALUES)
def test_captured_steps_follow(name: str, standin: type[GraphStandIn]) -> None:
    eager, captured, unchanged = train(False, [name]), train("auto", [name]), build(False, **OPTIONS)
    assert standin.captured == 1
    assert_close(eager, captured)
    unchanged.train(12, batch_size=32)
    assert any(not left.equal(right) for (_, left), (_, right) in zip(*map(parameters_of, (eager, unchanged)), strict=True))


@pytest.mark.traced
def test_compiled_steps_follow() -> None:
    eager, compiled = train(False, list(VALUES)), train(True, list(VALUES))
    assert compiled._engine.compiles
    assert_close(eager, compiled, tolerance=1e-3)
