"""Critics without targets, with batch normalisation: eager, compiled and captured; saved, exported, with every space."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_softac import SoftAC, SoftQL
from sb3_softac.export import ExportedPolicy
from sb3_softac.networks import Encoder
from sb3_softac.networks.ensemble import make_linear
from sb3_softac.networks.normalization import BatchRenorm
from tests.graph_standin import GraphStandIn
from tests.helpers import (
    RandomEnv,
    assert_same_parameters,
    assert_train_alike,
    build,
    fill_buffer,
    make_model,
    needs_compiler,
    net,
    restart_generators,
    traced_except,
)


def normalised(**policy_kwargs: Any) -> dict[str, Any]:
    """Small networks. Where normalisation takes away what a bias adds, its gradient is rounding, of which Adam's own ε would
    make whole steps.
    """
    return net(optimizer_kwargs={"eps": 1e-4}, **policy_kwargs)


JOINT: dict[str, dict[str, Any]] = {
    "renorm": {"bootstrap": "joint", **normalised(normalization="batch_renorm")},
    "plain, delayed": {"bootstrap": "joint", "policy_delay": 3, **normalised(normalization="batch")},
    "critics only": {"bootstrap": "joint", **normalised(normalization={"qf": "batch_renorm"})},
    "quantile": {"bootstrap": "joint", **normalised(normalization="batch_renorm", critic_head="quantile", n_quantiles=5)},
    "subset, mean, n-step": {
        "bootstrap": "joint",
        "target_subset": 2,
        "actor_q": "mean",
        "n_steps": 3,
        "soft_n_step": True,
        **normalised(normalization="batch_renorm", n_critics=4),
    },
    "discrete": {"bootstrap": "joint", "discrete": True, **normalised(normalization="batch_renorm")},
    "discrete, quantile": {
        "bootstrap": "joint",
        "discrete": True,
        **normalised(normalization="batch_renorm", critic_head="quantile", n_quantiles=5),
    },
    "with targets": normalised(normalization="batch_renorm"),
    "layers": normalised(normalization="layer"),
}


@pytest.mark.parametrize("case", JOINT)
def test_captured(case: str, standin: type[GraphStandIn]) -> None:
    assert_train_alike([build(compile, **JOINT[case]) for compile in (False, "auto")])
    assert standin.captured > 0


@needs_compiler
@pytest.mark.parametrize("case", traced_except(["renorm"], ["renorm", "plain, delayed", "discrete, quantile", "with targets"]))
def test_compiled(case: str) -> None:
    models = [build(compile, **JOINT[case]) for compile in (False, True)]
    assert_train_alike(models)
    assert models[1]._engine.compiles


@pytest.mark.parametrize("case", ["renorm", "discrete", "with targets", "layers"])
def test_saved_and_trained_on(case: str, tmp_path: Path) -> None:
    model = build(False, **JOINT[case])
    model.train(3, batch_size=16)
    model.save(tmp_path / "model.zip")
    loaded = SoftAC.load(tmp_path / "model.zip", device="cpu", compile=False)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        restart_generators()
        each.train(3, batch_size=16)
    assert_same_parameters(model, loaded)
    assert (model.critic_target is None) == (model.bootstrap == "joint")


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize("case", ["renorm", "discrete"])
def test_exported(case: str, format: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = build(False, **JOINT[case])
    model.train(5, batch_size=32)
    path = model.export(tmp_path / "policy", format=format)
    observations = np.stack([model.observation_space.sample() for _ in range(5)])
    actions = model.predict(observations, deterministic=True)[0]
    np.testing.assert_allclose(ExportedPolicy(path).predict(observations)[0], actions, atol=1e-4)


def test_dict_observations_and_hindsight() -> None:
    options: dict[str, Any] = {
        "bootstrap": "joint",
        "device": "cpu",
        "learning_starts": 20,
        "buffer_size": 200,
        "batch_size": 16,
    }
    options |= net(normalization="batch_renorm")
    SoftAC("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), **options).learn(40)
    env = BitFlippingEnv(n_bits=4, continuous=True)
    SoftAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **options).learn(40)


@pytest.mark.parametrize("warmup_steps", [-1, 1000])
def test_features_that_never_change(warmup_steps: int) -> None:
    layer = BatchRenorm(3, warmup_steps=warmup_steps)
    layer.uses_batch = True
    inputs = th.cat([th.zeros(8, 1), th.ones(8, 1), th.rand(8, 1)], dim=1).requires_grad_()
    (gradient,) = th.autograd.grad(layer(inputs).square().sum(), inputs)
    assert gradient.isfinite().all()


def test_acting_moves_no_statistics() -> None:
    model = make_model(learning_starts=10_000, **JOINT["renorm"])
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(50)
    model.predict(np.zeros(4, np.float32))
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())


def test_soft_q_learning_takes_normalisation() -> None:
    """Of sampler and critics: the statistics of both move."""
    model = SoftQL("MlpPolicy", RandomEnv(), device="cpu", buffer_size=100, **net(normalization="batch_renorm"))
    fill_buffer(model, 50)
    model.train(3, batch_size=16)
    for network in (model.actor, model.critic):
        layers = [module for module in network.modules() if isinstance(module, BatchRenorm)]
        assert len(layers) == 3
        assert all(layer.running_steps == 3 and (layer.running_var != 1.0).all() for layer in layers)
    assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()


class Block(nn.Module):
    """A layer of a user, which keeps the number of networks for itself."""

    def __init__(self, n_networks: int | None) -> None:
        super().__init__()
        self.n_networks = n_networks

    def forward(self, values: th.Tensor) -> th.Tensor:
        return values.relu()


class WithBlocks(Encoder):
    def build(self, in_features: int, net_arch: list[int], activation_fn: Any, **options: Any) -> int:
        self.append(make_linear(in_features, net_arch[0], self.n_networks))
        self.append(Block(self.n_networks))
        return net_arch[0]


def test_layers_of_a_user_get_no_indices() -> None:
    model = make_model(policy_kwargs={"net_arch": [8], "encoder": WithBlocks}, compile=False)
    fill_buffer(model)
    model.train(2, batch_size=8)


def test_without_batch_normalisation_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="`bootstrap` is 'joint' without batch normalisation"):
        model = make_model(bootstrap="joint", compile=False)
    fill_buffer(model)
    model.reward_scale = 2.0
    model.train(1, batch_size=8)  # once: a second warning would be an error
