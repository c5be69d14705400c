"""The gradient step of soft Q-learning in three ways: eager, compiled and captured. Eager mode is the source of truth here."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftQL
from sb3_softac.update import KernelValues, gaussian_kernel
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_close,
    fill_buffer,
    needs_compiler,
    net,
    parameters_of,
    restart_generators,
    traced_except,
)

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two critics, Polyak": {**net(n_critics=2), "tau": 0.005, "target_update_interval": 1},
    "mean": {**net(n_critics=3), "target_q": "mean"},
    "gaussian, policy": {**net(sampler="gaussian"), "value_proposal": "policy"},
    "scheduled": {"ent_coef": "lin_1_0.1"},
    "clipped": {"max_grad_norm": 0.05},
    "quarters": {"kernel_update_ratio": 0.25, "value_particles": 3, "noise_dim": 5},
    "copied targets": {"target_update_interval": 3},
    "AdamW, layer norm, dropout": net(optimizer_class=th.optim.AdamW, layer_norm=True, dropout_rate=0.1),
    "discrete": {"discrete": True},
    "discrete, dual": {"discrete": True, "ent_coef": "auto"},
    "discrete, log, two critics": {"discrete": True, "ent_coef": "auto", "ent_coef_update": "log", **net(n_critics=2)},
}
#: every switch in few compilations, which take seconds each
COMPILED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gaussian, policy, two critics, clipped, Polyak": {
        **net(sampler="gaussian", n_critics=2),
        "value_proposal": "policy",
        "max_grad_norm": 0.05,
        "tau": 0.005,
        "target_update_interval": 1,
    },
    "discrete, dual": {"discrete": True, "ent_coef": "auto"},
}


def build(compile: Any, discrete: bool = False, **kwargs: Any) -> Any:
    """A small model with a filled buffer, whose random generators are at the same place for all that are built."""
    env = RandomDiscreteEnv() if discrete else RandomEnv()
    kwargs = {"buffer_size": 500, "device": "cpu", "seed": 0, **net(), **kwargs}
    model = SoftQL("MlpPolicy", env, compile=compile, **kwargs)
    model.set_logger(Logger(None, []))
    fill_buffer(model)
    restart_generators()
    return model


def metrics(model: Any) -> dict[str, float]:
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
        assert standin.captured == (2 if case == "copied targets" else 1)
        assert models[1]._engine.captures
        assert_close(models[0], models[1])
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)

    @pytest.mark.gpu
    @pytest.mark.parametrize(
        ("case", "compile"),
        [*((case, "auto") for case in CASES), ("two critics, Polyak", True), ("discrete, log, two critics", True)],
    )
    def test_on_a_gpu(self, case: str, compile: Any) -> None:
        models = [build(compile, device="cuda", **CASES[case]) for compile in (False, compile)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert models[1]._engine.captures
        assert_close(models[0], models[1], tolerance=1e-3)
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-3, abs=1e-4)

    @needs_compiler
    @pytest.mark.parametrize("case", traced_except(["defaults"], COMPILED))
    def test_compiled(self, case: str) -> None:
        models = [build(compile, **COMPILED[case]) for compile in (False, True)]
        for model in models:
            restart_generators()
            model.train(20, batch_size=32)
        assert models[1]._engine.compiles
        assert models[1]._engine.n_builds == 1
        assert_close(models[0], models[1])
        assert metrics(models[1]) == pytest.approx(metrics(models[0]), rel=1e-4, abs=1e-5)


def half_kernel(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    """Half of the Gaussian kernel, which moves the particles by half."""
    values, gradients = gaussian_kernel(fixed, updated)
    return KernelValues(0.5 * values, 0.5 * gradients)


class TestChanges:
    """What is changed between two steps counts in the next one, however they run."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("reward_scale", 3.0),
            ("gamma", 0.5),
            ("target_update_interval", 1),
            ("value_particles", 5),
            ("kernel_update_ratio", 0.25),
            ("kernel", half_kernel),
            ("target_q", "mean"),
            ("ent_coef", 0.1),
            ("max_grad_norm", 0.01),
            ("actor_learning_rate", 1e-2),
        ],
    )
    def test_an_option(self, name: str, value: Any, standin: type[GraphStandIn]) -> None:
        models = [build(compile, **net(n_critics=2)) for compile in (False, "auto")]
        unchanged = build(False, **net(n_critics=2))
        for model in [*models, unchanged]:
            restart_generators()
            model.train(6, batch_size=32)
            if model is not unchanged:
                setattr(model, name, value)
            model.train(6, batch_size=32)
        assert_close(models[0], models[1])
        with pytest.raises(AssertionError):
            assert_close(models[0], unchanged, tolerance=1e-6)

    def test_a_copy_goes_on_alike(self, standin: type[GraphStandIn]) -> None:
        model = build("auto", discrete=True, ent_coef="auto")
        model.train(6, batch_size=32)
        copied = copy.deepcopy(model)
        for each in (model, copied):
            restart_generators()
            each.train(6, batch_size=32)
        for (name, value), (_, other) in zip(parameters_of(model), parameters_of(copied), strict=True):
            assert th.equal(value, other), name

    def test_discrete_actions_follow_replaced_critics(self, standin: type[GraphStandIn]) -> None:
        model, other = (build("auto", discrete=True) for _ in range(2))
        with th.no_grad():
            for parameter in other.critic.parameters():
                parameter.mul_(-1.0)
        model.train(6, batch_size=32)
        obs = th.rand(50, *model.observation_space.shape)
        model.critic = other.critic
        expected = th.log_softmax(other.critic.q_values(obs)[0], dim=1)
        assert th.allclose(model.actor.log_probs(obs), expected, atol=1e-6)
        model.train(6, batch_size=32)
        assert model.policy.critic is other.critic


def test_a_users_kernel_is_compiled_only_if_it_says_so() -> None:
    def kernel(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
        return gaussian_kernel(fixed, updated)

    assert build(False)._current_update().compilable
    assert not build(False, kernel=kernel)._current_update().compilable
    kernel.compilable = True  # type: ignore[attr-defined]  # functions take attributes
    assert build(False, kernel=kernel)._current_update().compilable


def test_a_saved_model_goes_on_alike() -> None:
    model = build(False, ent_coef="lin_1_0.1")
    model.train(5, batch_size=32)
    stream = io.BytesIO()
    model.save(stream)
    loaded: Any = SoftQL.load(io.BytesIO(stream.getvalue()), device="cpu")
    loaded.replay_buffer = model.replay_buffer
    for each in (model, loaded):
        restart_generators()
        each.train(5, batch_size=32)
    for (name, value), (_, other) in zip(parameters_of(model), parameters_of(loaded), strict=True):
        assert th.equal(value, other), name
