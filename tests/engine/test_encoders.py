"""Published encoders: eager, compiled and captured; saved, exported, copied, with every space."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC
from sb3_softac.export import ExportedPolicy
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    RandomEnv,
    assert_same_parameters,
    assert_train_alike,
    build,
    needs_compiler,
    net,
    restart_generators,
    traced_except,
)
from tests.networks.spheres import assert_on_spheres

LOG_STD: dict[str, Any] = {"log_std_bounds": (-10.0, 2.0), "log_std_bounding": "tanh"}
CATEGORIES: dict[str, Any] = {"critic_head": "categorical", "n_atoms": 61, "value_range": (-30, 30)}
EXP: dict[str, Any] = {"ent_coef": "auto_0.01", "ent_coef_update": "exp"}
SIMBA: dict[str, Any] = {**EXP, **net(encoder="simba", optimizer_class=th.optim.AdamW)}
SIMBA_V2: dict[str, Any] = {**EXP, **net(encoder="simba_v2", **CATEGORIES)}
BRO: dict[str, Any] = {
    **EXP,
    **net(encoder="bro", critic_head="quantile", n_quantiles=5, optimizer_class=th.optim.AdamW),
    "target_q": "mean",
    "top_quantiles_to_drop_per_net": 0,
}
FLASH: dict[str, Any] = {
    **EXP,
    **net(encoder="flash", **CATEGORIES),
    "bootstrap": "joint_target",
    "policy_delay": 2,
    "tau": 0.01,
}
BOXES = {"simba": SIMBA, "simba_v2": SIMBA_V2, "bro": BRO, "flash": FLASH}
CASES: dict[str, dict[str, Any]] = {
    **{name: {**case, "policy_kwargs": {**case["policy_kwargs"], **LOG_STD}} for name, case in BOXES.items()},
    **{f"{name}, discrete": {**case, "discrete": True} for name, case in BOXES.items()},
    "simba, value network": {**SIMBA, "value_network": True},
    "simba, one critic": {**EXP, **net(encoder="simba", n_critics=1)},
    "flash, without targets": {**EXP, **net(encoder="flash", **CATEGORIES), "bootstrap": "joint"},
    "flash, value network": {**EXP, **net(encoder="flash"), "value_network": True},
    "flash, subset, n-step": {
        **FLASH,
        **net(encoder="flash", n_critics=4, **CATEGORIES),
        "target_subset": 2,
        "n_steps": 3,
        "soft_n_step": True,
    },
    "simba_v2, clipped": {**SIMBA_V2, "max_grad_norm": 0.1},
}


@pytest.mark.parametrize("case", CASES)
def test_captured(case: str, standin: type[GraphStandIn]) -> None:
    assert_train_alike([build(compile, **CASES[case]) for compile in (False, "auto")])
    assert standin.captured > 0


@needs_compiler
@pytest.mark.parametrize("case", traced_except(["flash"], ["simba_v2", "flash"]))
def test_compiled(case: str) -> None:
    options = {**CASES[case], "policy_delay": 1, "policy_kwargs": {**CASES[case]["policy_kwargs"], "net_arch": [8]}}
    models = [build(compile, **options) for compile in (False, True)]
    assert_train_alike(models)
    assert models[1]._engine.compiles
    for _ in range(5):
        models[1].train(1, batch_size=32)
        assert_on_spheres(models[1], case)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_trained_on(case: str, tmp_path: Path) -> None:
    model = build(False, **CASES[case])
    model.train(3, batch_size=16)
    model.save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", device="cpu", compile=False)
    assert_same_parameters(model, loaded)
    copied = copy.deepcopy(model)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for each in (model, loaded, copied):
        restart_generators()
        each.train(3, batch_size=16)
    assert_same_parameters(model, loaded)
    assert_same_parameters(model, copied)
    statistics = [model.policy.state_dict(), loaded.policy.state_dict()]
    assert all(th.equal(statistics[1][name], value) for name, value in statistics[0].items())


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize("case", [case for case in CASES if case in BOXES or case.endswith("discrete")])
def test_exported(case: str, format: Any, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model = build(False, learning_rate=1e-2, **CASES[case])
    model.train(5, batch_size=32)
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    if case.endswith("discrete"):  # each action is the best one somewhere
        with th.no_grad():
            biases = [value for name, value in model.actor.named_parameters() if re.fullmatch(r"logits.*bias", name)]
            biases[-1].sub_(model.actor.log_probs(th.as_tensor(observations)).mean(dim=0))
    path = model.export(tmp_path / "policy", format=format)
    actions = model.predict(observations, deterministic=True)[0]
    np.testing.assert_allclose(ExportedPolicy(path).predict(observations)[0], actions, atol=1e-4)
    assert len(np.unique(actions)) > 1
    for row, action in zip(observations[:3], actions, strict=False):  # statistics of one row are no statistics
        np.testing.assert_allclose(model.predict(row, deterministic=True)[0], action, atol=1e-5)


@pytest.mark.parametrize("case", BOXES)
def test_collected_with(case: str) -> None:
    """Several environments, Dict observations, hindsight; acting samples from the same policy as ``predict``."""
    options: dict[str, Any] = {**CASES[case], "device": "cpu", "learning_starts": 20, "batch_size": 16, "buffer_size": 200}
    model = SoftAC("MlpPolicy", make_vec_env(RandomEnv, n_envs=3, seed=0), seed=0, compile=False, **options).learn(60)
    observations = np.zeros((3, 4), np.float32)
    th.manual_seed(0)
    expected = model.policy.predict(observations)[0]
    th.manual_seed(0)
    np.testing.assert_allclose(model.predict(observations)[0], expected)
    SoftAC("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), compile=False, **options).learn(40)
    env = BitFlippingEnv(n_bits=4, continuous=True)
    SoftAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, compile=False, **options).learn(40)


@pytest.mark.parametrize("case", ["simba", "simba_v2", "bro", "flash", "flash, discrete", "simba, value network"])
def test_warm_start(case: str) -> None:
    """Weights, and the running statistics that belong to them."""
    source = build(False, **CASES[case])
    source.train(4, batch_size=16)
    model = build(False, **CASES[case]).warm_start(source)
    state = source.policy.state_dict()
    assert all(th.equal(value, state[name]) for name, value in model.policy.state_dict().items())
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    actions = [each.predict(observations, deterministic=True)[0] for each in (model, source)]
    np.testing.assert_allclose(actions[0], actions[1])
