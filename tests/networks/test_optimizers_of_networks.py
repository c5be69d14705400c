"""Optimizers and their options for each network: who gets what, the first steps in closed form, files, refusals."""

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_softac import SoftAC, SoftQL
from sb3_softac.checkpoint import ExactCheckpointCallback
from tests.files.resume_runs import Stop, Stopped
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    make_model,
    net,
    quick_model,
    restart_generators,
)

MIXED: dict[str, Any] = {
    "optimizer_class": {"pi": th.optim.AdamW, "vf": th.optim.SGD},
    "optimizer_kwargs": {"pi": {"weight_decay": 0.1}, "qf": {"betas": (0.5, 0.9)}, "vf": {}},
}


def kinds(model: Any) -> dict[str, Any]:
    """Class, β₁ and weight decay of each optimizer."""
    optimizers = {name: network.optimizer for name, network in model.policy.trained_networks().items()}
    groups = {name: optimizer.param_groups[0] for name, optimizer in optimizers.items()}
    return {
        name: (type(optimizers[name]).__name__, group.get("betas", (None,))[0], group["weight_decay"])
        for name, group in groups.items()
    }


def test_each_network_has_its_own() -> None:
    model = make_model(value_network=True, **net(**MIXED))
    assert kinds(model) == {"actor": ("AdamW", 0.9, 0.1), "critic": ("Adam", 0.5, 0), "value": ("SGD", None, 0)}


def test_a_value_network_is_by_default_as_the_critics_and_who_is_left_out_has_none() -> None:
    options = {"optimizer_class": {"qf": th.optim.AdamW}, "optimizer_kwargs": {"qf": {"weight_decay": 0.2}}}
    model = make_model(value_network=True, **net(**options))
    assert kinds(model) == {"actor": ("Adam", 0.9, 0), "critic": ("AdamW", 0.9, 0.2), "value": ("AdamW", 0.9, 0.2)}
    sampler = SoftQL("MlpPolicy", RandomEnv(), device="cpu", **net(optimizer_kwargs={"pi": {"betas": (0.7, 0.9)}}))
    assert kinds(sampler) == {"actor": ("Adam", 0.7, 0), "critic": ("Adam", 0.9, 0)}


def test_what_is_the_same_for_all_stays_so() -> None:
    model = make_model(value_network=True, **net(optimizer_kwargs={"betas": (0.5, 0.999)}))
    assert {name: kind[:2] for name, kind in kinds(model).items()} == dict.fromkeys(
        ("actor", "critic", "value"), ("Adam", 0.5)
    )
    assert kinds(make_model(**net(optimizer_kwargs={}))) == kinds(make_model())


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.traced)])
def test_first_steps_in_closed_form(compile: bool) -> None:
    """By hand, with the gradient g: Adam's averages are (1 − β₁)g and (1 − β₂)g², AdamW's step −λwθ − λ·sign g."""
    options = {"optimizer_class": {"pi": th.optim.AdamW}, "optimizer_kwargs": MIXED["optimizer_kwargs"] | {}}
    options["optimizer_kwargs"] = {name: options["optimizer_kwargs"][name] for name in ("pi", "qf")}
    model = build(compile, learning_rate=1e-2, **net(**options))
    before = [parameter.detach().clone() for parameter in model.actor.parameters()]
    model.train(1, batch_size=16)
    for state in model.critic.optimizer.state.values():
        moving = state["exp_avg"].abs() > 1e-9
        ratio = state["exp_avg"][moving].abs() / state["exp_avg_sq"][moving].sqrt()
        th.testing.assert_close(ratio, th.full_like(ratio, 0.5 / math.sqrt(0.1)))
    n_checked = 0
    for parameter, start in zip(model.actor.parameters(), before, strict=True):
        average = model.actor.optimizer.state[parameter]["exp_avg"]
        large = average.abs() > 1e-4  # far above Adam's ε
        expected = start * (1.0 - 1e-2 * 0.1) - 1e-2 * average.sign()
        th.testing.assert_close(parameter.detach()[large], expected[large], atol=1e-5, rtol=0.0)
        n_checked += int(large.sum())
    assert n_checked > 50
    assert model._engine.compiles == compile


def test_weight_decay_takes_biases_too() -> None:
    model = build(
        False, learning_rate=1e-2, **net(optimizer_class=th.optim.AdamW, optimizer_kwargs={"qf": {"weight_decay": 1.0}})
    )
    names = dict(model.critic.named_parameters())
    held = {id(parameter) for group in model.critic.optimizer.param_groups for parameter in group["params"]}
    assert {name for name, parameter in names.items() if id(parameter) in held} == names.keys()
    assert all(group["weight_decay"] == 1.0 for group in model.critic.optimizer.param_groups)


@pytest.mark.traced
def test_compiled_equals_eager() -> None:
    models = [build(compile, value_network=True, **net(**MIXED)) for compile in (True, False)]
    for model in models:
        restart_generators()
        model.train(20, batch_size=16)
    assert models[0]._engine.n_builds == 1
    assert_close(models[0], models[1])


def test_saved_loaded_and_copied() -> None:
    model = make_model(value_network=True, learning_starts=5, batch_size=8, **net(**MIXED)).learn(20)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = SoftAC.load(stream, RandomEnv(), **net(**MIXED))
    for other in (loaded, copy.deepcopy(model)):
        assert kinds(other) == kinds(model)
        assert_same_parameters(other, model)
    stream.seek(0)
    with pytest.raises(ValueError, match="`policy_kwargs` is"):
        SoftAC.load(stream, RandomEnv(), **net(optimizer_class=MIXED["optimizer_class"]))


def test_resumed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"value_network": True, "seed": 0, "policy_kwargs": {"net_arch": [8], **MIXED}}
    expected = quick_model(RandomEnv(), **options).learn(60)
    with pytest.raises(Stopped):
        quick_model(RandomEnv(), **options).learn(60, callback=[ExactCheckpointCallback(10, tmp_path), Stop(33)])
    model = SoftAC.resume(tmp_path, RandomEnv()).learn()
    assert kinds(model) == kinds(expected)
    assert_same_parameters(model, expected)


def test_warm_start_and_sb3() -> None:
    source = make_model(ent_coef_update="log", **net(optimizer_kwargs={"qf": {"betas": (0.5, 0.9)}}))
    model = make_model(**net(optimizer_kwargs={"pi": {"weight_decay": 0.1}})).warm_start(source)
    assert kinds(model) == {"actor": ("Adam", 0.9, 0.1), "critic": ("Adam", 0.9, 0)}
    with pytest.raises(
        ValueError, match=r"`policy_kwargs\['optimizer_kwargs'\]` is .* would have to be the same for all networks"
    ):
        source.to_sb3()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer_kwargs": {"pi": {}, "eps": 1e-5}}, r"`optimizer_kwargs` is .* or a dict with the keys 'pi', 'qf' and"),
        ({"optimizer_kwargs": {"pi": {}, "critic": {}}}, r"`optimizer_kwargs` is .* or a dict with the keys 'pi', 'qf' and"),
        ({"optimizer_kwargs": {"vf": {}}}, "with `value_network=True` only, 'vf'"),
        ({"optimizer_kwargs": {"pi": 1e-5}}, "a dict with one of these for each of 'pi', 'qf' and 'vf'"),
        ({"optimizer_kwargs": 3}, "`optimizer_kwargs` is 3, but it must be a dict of options"),
        ({"optimizer_kwargs": {"critic": {}}}, "contains 'critic', which Adam does not take. Allowed are betas, eps"),
        ({"optimizer_kwargs": {"qf": {"momentum": 0.9}}}, "contains 'momentum', which Adam does not take"),
        ({"optimizer_kwargs": {"params": []}}, "contains 'params', which Adam does not take"),
        ({"optimizer_kwargs": {"qf": {"lr": 1e-3}}}, r"must be without lr: `learning_rate` and the options"),
        ({"optimizer_class": {"pi": th.optim.SGD, "lr": 3}}, "`optimizer_class` is .* what is for all networks, or a dict"),
        ({"optimizer_class": {"pi": "Adam"}}, "`optimizer_class` is 'Adam', but it must be a subclass"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**net(**options))


def test_discrete_actions_of_soft_q_learning_have_no_sampler() -> None:
    for name, value in (("optimizer_kwargs", {"pi": {}}), ("optimizer_class", {"pi": th.optim.Adam})):
        with pytest.raises(ValueError, match=f"`{name}` is .* without 'pi' with discrete actions"):
            SoftQL("MlpPolicy", RandomDiscreteEnv(), policy_kwargs={"net_arch": [8], name: value})
