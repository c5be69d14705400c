"""The presets of the modern critics: what they construct, and that every way of running and keeping them is the same."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC, presets
from sb3_softac.export import ExportedPolicy
from sb3_softac.networks.hypersphere import FlashSAC, SimbaV2
from sb3_softac.networks.residual import BRO, SimBa
from tests.graph_standin import GraphStandIn
from tests.graph_standin import install as install_standin
from tests.helpers import (
    ACTION_DIM,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    fill_buffer,
    needs_compiler,
    restart_generators,
)

#: the made rewards are as large as the range of values
pytestmark = pytest.mark.filterwarnings("ignore:.* of the targets lie outside of `value_range`")
#: A/2·log(2πe·0.15²)
ENTROPY_OF_A_GAUSSIAN = ACTION_DIM / 2 * math.log(2 * math.pi * math.e * 0.15**2)
LISTED: dict[str, dict[str, Any]] = {
    "sac_n": {"actor_q": "min", "target_q": "min", "ent_coef": "auto", "ent_coef_update": "log", "batch_size": 256},
    "sr_sac": {
        "gradient_steps": 32,
        "learning_starts": 10_000,
        "ent_coef": "auto",
        "ent_coef_update": "exp",
        "target_entropy": -ACTION_DIM / 2,
        "batch_size": 256,
        "learning_rate": 3e-4,
        "resets": 2_560_000,
    },
    "bro": {
        "gradient_steps": 10,
        "learning_starts": 2500,
        "actor_q": "mean",
        "target_q": "mean",
        "top_quantiles_to_drop_per_net": 0,
        "ent_coef": "auto",
        "ent_coef_update": "exp",
        "target_entropy": -ACTION_DIM / 2,
        "batch_size": 128,
        "learning_rate": 3e-4,
    },
    "simba": {
        "learning_rate": 1e-4,
        "gamma": 0.995,
        "learning_starts": 5000,
        "ent_coef": "auto_0.01",
        "ent_coef_update": "exp",
        "target_entropy": -ACTION_DIM / 2,
        "normalize_observations": True,
        "normalize_rewards": None,
    },
    "simba_v2": {
        "learning_rate": "lin_1e-4_5e-5",
        "gamma": 0.995,
        "learning_starts": 5000,
        "ent_coef": "auto_0.01",
        "normalize_observations": True,
        "normalize_rewards": 5.0,
        "batch_size": 256,
        "tau": 0.005,
    },
    "flashsac": {
        "learning_rate": "cos_3e-4_1.5e-4",
        "gamma": 0.99,
        "learning_starts": 10_000,
        "batch_size": 512,
        "tau": 0.01,
        "policy_delay": 2,
        "bootstrap": "joint_target",
        "noise_repeat": 16,
        "normalize_rewards": 5.0,
        "normalize_observations": False,
        "target_entropy": ENTROPY_OF_A_GAUSSIAN,
        "ent_coef": "auto_0.01",
    },
    "flashsac_parallel": {"learning_starts": 100_000, "batch_size": 2048, "gradient_steps": 2},
}
#: encoder, widths of the actor's and of the critics' blocks or layers, numbers of each critic, critics
BUILT: dict[str, tuple[Any, list[int], list[int], int, int]] = {
    "sac_n": (None, [256, 256, 256], [256, 256, 256], 1, 10),
    "sr_sac": (None, [256, 256], [256, 256], 1, 2),
    "bro": (BRO, [256], [512, 512], 100, 2),
    "simba": (SimBa, [128], [512, 512], 1, 2),
    "simba_v2": (SimbaV2, [128], [512, 512], 101, 2),
    "flashsac": (FlashSAC, [128, 128], [256, 256], 101, 2),
    "flashsac_parallel": (FlashSAC, [128, 128], [256, 256], 101, 2),
}


@pytest.mark.parametrize("name", LISTED)
def test_construction(name: str) -> None:
    model = SoftAC("MlpPolicy", RandomEnv(), **{**presets.PRESETS[name], "buffer_size": 10})
    assert {key: getattr(model, key) for key in LISTED[name]} == LISTED[name]
    encoder, actor, critic, n_numbers, n_critics = BUILT[name]
    hidden = model.critic.q_networks.hidden
    assert [model.actor.net_arch, model.critic_target.q_networks.hidden.out_features] == [actor, critic[-1]]  # type: ignore[union-attr]
    assert (model.critic.head.n_numbers, model.critic.n_critics) == (n_numbers, n_critics)
    if encoder is not None:
        assert type(hidden) is type(model.actor.latent_pi) is encoder
        assert (model.actor.log_std_bounds, model.actor.log_std_bounding) == ((-10.0, 2.0), "tanh")
    assert presets.PRESETS[name]["buffer_size"] == (10_000_000 if name == "flashsac_parallel" else 1_000_000)


@pytest.mark.parametrize(("name", "decay"), [("simba", 1e-2), ("bro", 1e-4)])
def test_weights_decay_as_adamw_has_it(name: str, decay: float) -> None:
    """One step at a gradient of 0 leaves 1 − λ·decay of each weight."""
    model = SoftAC("MlpPolicy", RandomEnv(), **{**presets.PRESETS[name], "buffer_size": 10})
    optimizer: Any = model.critic.optimizer
    weight = optimizer.param_groups[0]["params"][0]
    before = weight.detach().clone()
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = th.zeros_like(parameter)
    optimizer.step()
    rate = optimizer.param_groups[0]["lr"]
    th.testing.assert_close(weight.detach(), before * (1.0 - rate * decay), rtol=1e-7, atol=0.0)


def test_the_first_log_std_of_sr_sac_is_the_middle_of_its_bounds() -> None:
    model = SoftAC("MlpPolicy", RandomEnv(), **{**presets.SR_SAC, "buffer_size": 10})
    log_std = model.actor.get_action_dist_params(th.rand(5, 4))[1]
    th.testing.assert_close(log_std, th.full_like(log_std, -4.0))


MODERN = ["tqc", "crossq_small", *LISTED]


def small(name: str, **others: Any) -> dict[str, Any]:
    """The preset with few units, few updates and a small buffer."""
    preset = presets.PRESETS[name]
    arch = preset["policy_kwargs"]["net_arch"]
    arch = {key: [8] * len(units) for key, units in arch.items()} if isinstance(arch, dict) else [8] * len(arch)
    # Where normalisation takes away what a parameter adds, its gradient is rounding, of which Adam's own ε would make steps.
    optimizer_kwargs = {**preset["policy_kwargs"].get("optimizer_kwargs", {}), "eps": 1e-4}
    policy_kwargs = {**preset["policy_kwargs"], "net_arch": arch, "optimizer_kwargs": optimizer_kwargs}
    if "n_quantiles" in policy_kwargs:
        policy_kwargs["n_quantiles"] = 5
    resets = {"resets": 6} if "resets" in preset else {}
    return {**preset, "policy_kwargs": policy_kwargs, "buffer_size": 200, "learning_starts": 10, **resets, **others}


def trained(name: str, compile: Any, n_updates: int = 8, **others: Any) -> SoftAC:
    model = build(compile, **small(name, **others))
    model.train(n_updates, batch_size=32)
    return model


@pytest.mark.parametrize("name", MODERN)
def test_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = trained(name, False)
    install_standin(monkeypatch)
    captured = trained(name, "auto")
    assert GraphStandIn.captured > 0
    assert_close(eager, captured)


@needs_compiler
@pytest.mark.traced
@pytest.mark.parametrize("name", ["bro", "simba"])
def test_compiled(name: str) -> None:
    """The steps of the others are compiled in tests/engine."""
    eager, compiled = (trained(name, compile, policy_delay=1) for compile in (False, True))
    assert compiled._engine.compiles
    assert_close(eager, compiled)


@pytest.mark.parametrize("name", MODERN)
def test_saved_and_trained_on(name: str, tmp_path: Path) -> None:
    model = trained(name, False, 4)
    model.save(tmp_path / "model")
    loaded = SoftAC.load(tmp_path / "model", env=RandomEnv(), device="cpu")
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    loaded.set_logger(model.logger)
    for either in (model, loaded):
        restart_generators()
        either.train(6, batch_size=32)
    assert_same_parameters(model, loaded)


@pytest.mark.parametrize("name", MODERN)
def test_exported_and_predicted(name: str, tmp_path: Path) -> None:
    """Also the statistics of observations, which have been collected before."""
    model = SoftAC("MlpPolicy", RandomEnv(), compile=False, seed=0, **small(name, gradient_steps=1))
    model.learn(60)
    policy = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript"))
    observations = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    np.testing.assert_allclose(policy.predict(observations)[0], model.predict(observations, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("name", MODERN)
def test_it_learns_with_several_environments(name: str) -> None:
    """More than one environment, and a step of each kind: nothing diverges, and the actor has moved."""
    from stable_baselines3.common.env_util import make_vec_env

    model = SoftAC("MlpPolicy", make_vec_env(RandomEnv, 3), compile=False, seed=0, **small(name, gradient_steps=1))
    before = {key: value.clone() for key, value in model.actor.state_dict().items()}
    fill_buffer(model)
    model.learn(90)
    moved = [key for key, value in model.actor.state_dict().items() if not th.equal(value, before[key])]
    assert {key for key, _ in model.actor.named_parameters()} <= set(moved)
