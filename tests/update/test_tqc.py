"""Quantile critics against sb3-contrib's TQC: the same weights, batches and noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC
from stable_baselines3 import TD3
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC
from tests.helpers import InjectedNoise, RandomEnv, fill_buffer

CONFIGURATIONS = [(n_critics, dropped) for n_critics in (1, 2, 5) for dropped in (0, 2, 5)]
N_QUANTILES = 7


def make_pair(n_critics: int, dropped: int, **kwargs: Any) -> tuple[TQC, SoftAC]:
    """The same model twice."""
    arch = {"net_arch": [16, 16], "n_critics": n_critics, "n_quantiles": N_QUANTILES}
    common: dict[str, Any] = {
        "buffer_size": 500,
        "device": "cpu",
        "seed": 0,
        "top_quantiles_to_drop_per_net": dropped,
        **kwargs,
    }
    theirs = TQC("MlpPolicy", RandomEnv(), policy_kwargs=dict(arch), **common)
    ours = SoftAC(
        "MlpPolicy",
        RandomEnv(),
        policy_kwargs={**arch, "critic_head": "quantile"},
        ent_coef_update="dual" if "ent_coef" in kwargs else "log",
        compile=False,
        **common,
    )
    copy_weights(theirs, ours)
    for model in (theirs, ours):
        model.set_logger(Logger(None, []))
        fill_buffer(model)
    return theirs, ours


def critics_of(theirs: TQC, name: str) -> dict[str, th.Tensor]:
    """Its critics as one stacked network."""
    networks = [getattr(theirs, name).q_networks[i] for i in range(len(getattr(theirs, name).q_networks))]
    layers = [[module for module in network if isinstance(module, th.nn.Linear)] for network in networks]
    names = [*(f"hidden.{2 * i}" for i in range(len(layers[0]) - 1)), "output"]
    state = {}
    for place, layer_name in enumerate(names):
        state[f"q_networks.{layer_name}.weight"] = th.stack([layer[place].weight.t() for layer in layers])
        state[f"q_networks.{layer_name}.bias"] = th.stack([layer[place].bias.unsqueeze(0) for layer in layers])
    return state


@th.no_grad()
def copy_weights(theirs: TQC, ours: SoftAC) -> None:
    ours.actor.load_state_dict(theirs.actor.state_dict())
    assert ours.critic_target is not None
    for network, name in ((ours.critic, "critic"), (ours.critic_target, "critic_target")):
        network.load_state_dict(critics_of(theirs, name))


def train_alike(models: tuple[Any, ...], n_steps: int) -> None:
    for model in models:
        with pytest.MonkeyPatch.context() as patch:
            InjectedNoise(1).install(patch)
            np.random.seed(1)  # noqa: NPY002  # the generator that SB3's buffers draw from
            for _ in range(n_steps):
                model.train(gradient_steps=1, batch_size=32)


@pytest.mark.parametrize(("n_critics", "dropped"), CONFIGURATIONS)
def test_fifty_updates(n_critics: int, dropped: int) -> None:
    theirs, ours = make_pair(n_critics, dropped)
    train_alike((theirs, ours), 50)
    for key, value in theirs.actor.state_dict().items():
        th.testing.assert_close(ours.actor.state_dict()[key], value, atol=1e-4, rtol=0.0)
    assert ours.critic_target is not None
    for network, name in ((ours.critic, "critic"), (ours.critic_target, "critic_target")):
        state = network.state_dict()
        for key, value in critics_of(theirs, name).items():
            th.testing.assert_close(state[key], value, atol=1e-4, rtol=0.0)
    assert theirs.log_ent_coef is not None
    assert ours.temperature.value.item() == pytest.approx(theirs.log_ent_coef.exp().item(), abs=1e-4)
    moved = th.cat(
        [
            (p - q).flatten()
            for p, q in zip(ours.actor.parameters(), make_pair(n_critics, dropped)[1].actor.parameters(), strict=True)
        ]
    )
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("n_steps", [1, 3])
def test_n_step_returns_and_a_fixed_temperature(n_steps: int) -> None:
    theirs, ours = make_pair(2, 2, n_steps=n_steps, ent_coef=0.2)
    train_alike((theirs, ours), 20)
    for key, value in critics_of(theirs, "critic").items():
        th.testing.assert_close(ours.critic.state_dict()[key], value, atol=1e-4, rtol=0.0)


def test_values_are_means_over_the_quantiles() -> None:
    theirs, ours = make_pair(3, 2)
    observations, actions = th.rand(5, 4), th.rand(5, 2)
    quantiles = theirs.critic(observations, actions)
    for index, value in enumerate(ours.critic(observations, actions)):
        th.testing.assert_close(value.squeeze(1), quantiles[:, index].mean(dim=1))


class TestTakenOver:
    """``SoftAC.from_sb3`` of a TQC, in the middle of its training."""

    @pytest.mark.parametrize("through_a_file", [False, True])
    @pytest.mark.parametrize("options", [{}, {"n_steps": 3}, {"use_sde": True}])
    def test_it_goes_on_as_theirs(self, options: dict[str, Any], through_a_file: bool, tmp_path: Path) -> None:
        theirs, _ = make_pair(3, 2, **options)
        train_alike((theirs,), 5)
        ours = SoftAC.from_sb3(theirs)
        if through_a_file:
            theirs.save(tmp_path / "tqc.zip")
            ours = SoftAC.from_sb3(tmp_path / "tqc.zip", device="cpu")
            ours.replay_buffer = theirs.replay_buffer
            ours.set_logger(theirs.logger)
        assert (ours.top_quantiles_to_drop_per_net, ours.actor_q, ours._n_updates) == (2, "mean", 5)
        if options.get("use_sde"):
            return  # it draws its noise matrices at other places
        train_alike((theirs, ours), 20)
        for key, value in critics_of(theirs, "critic").items():
            th.testing.assert_close(ours.critic.state_dict()[key], value, atol=1e-5, rtol=0.0)
        for key, value in theirs.actor.state_dict().items():
            th.testing.assert_close(ours.actor.state_dict()[key], value, atol=1e-5, rtol=0.0)

    def test_other_models_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"must be a stable_baselines3\.SAC, an sb3_contrib\.TQC, an sb3_contrib\.CrossQ"):
            SoftAC.from_sb3(TD3("MlpPolicy", RandomEnv(), device="cpu", buffer_size=10))
