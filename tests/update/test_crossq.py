"""Critics that bootstrap from themselves against sb3-contrib's CrossQ: the same weights, batches and noise."""

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC
from sb3_softac.engine import UpdateFlags
from sb3_softac.networks.normalization import BatchRenorm
from sb3_softac.update.actor_critic import Noise
from tests.helpers import InjectedNoise, RandomEnv, fill_buffer

#: passes before renormalisation begins, in a run of 50 updates
WARM_UPS = {"before": 1000, "across": 20, "after": -1}


def make_pair(warmup_steps: int, policy_delay: int) -> tuple[CrossQ, SoftAC]:
    """The same model twice.

    Normalisation takes away what a bias adds where all of a batch is above 0: there gradients are rounding errors, of which
    Adam with its own ε would make whole steps.
    """
    arch: dict[str, Any] = {
        "net_arch": {"pi": [16, 16], "qf": [24, 24]},
        "optimizer_kwargs": {"betas": (0.5, 0.999), "eps": 1e-4},
    }
    common: dict[str, Any] = {
        "buffer_size": 500,
        "device": "cpu",
        "seed": 0,
        "learning_rate": 1e-3,
        "policy_delay": policy_delay,
    }
    theirs = CrossQ("MlpPolicy", RandomEnv(), policy_kwargs={**arch, "renorm_warmup_steps": warmup_steps}, **common)
    ours = SoftAC(
        "MlpPolicy",
        RandomEnv(),
        policy_kwargs={**arch, "normalization": "batch_renorm"},
        bootstrap="joint",
        ent_coef_update="log",
        compile=False,
        **common,
    )
    for module in ours.policy.modules():
        if isinstance(module, BatchRenorm):
            module.warmup_steps = warmup_steps
    copy_weights(theirs, ours)
    for model in (theirs, ours):
        model.set_logger(Logger(None, []))
        fill_buffer(model)
    return theirs, ours


def renamed(state: dict[str, th.Tensor], prefix: str) -> dict[str, th.Tensor]:
    """Parameters and statistics of a network of theirs, by our names."""
    names = {"scale": "weight", "ra_mean": "running_mean", "ra_var": "running_var", "steps": "running_steps"}
    result = {}
    for name, value in state.items():
        if name.startswith(prefix):
            *place, last = name[len(prefix) :].split(".")
            result[".".join([*place, names.get(last, last)])] = value
    return result


def critics_of(theirs: CrossQ) -> dict[str, th.Tensor]:
    """Their critics as one stacked network."""
    each = [renamed(theirs.critic.state_dict(), f"qf{i}.") for i in range(2)]
    last = max(int(name.partition(".")[0]) for name in each[0])
    linear = {name for name, value in each[0].items() if name.endswith(".weight") and value.ndim == 2}
    stacked = {}
    for name in each[0]:
        place, _, kind = name.partition(".")
        ours = f"q_networks.output.{kind}" if int(place) == last else f"q_networks.hidden.{name}"
        parts = [state[name] for state in each]
        if kind == "running_steps":
            stacked[ours] = parts[0]
        else:
            stacked[ours] = th.stack([part.t() if name in linear else part.unsqueeze(0) for part in parts])
    return stacked


def actor_of(theirs: CrossQ) -> dict[str, th.Tensor]:
    heads = {name: value for name, value in theirs.actor.state_dict().items() if name.startswith(("mu", "log_std"))}
    hidden = renamed(theirs.actor.state_dict(), "latent_pi.")
    return heads | {f"latent_pi.{name}": value for name, value in hidden.items()}


@th.no_grad()
def copy_weights(theirs: CrossQ, ours: SoftAC) -> None:
    ours.critic.load_state_dict(critics_of(theirs))
    ours.actor.load_state_dict(actor_of(theirs))


def step_of_theirs(theirs: CrossQ, seed: int) -> list[th.Tensor]:
    """One gradient step; the noise that it has drawn."""
    with pytest.MonkeyPatch.context() as patch:
        noise = InjectedNoise(seed)
        noise.install(patch)
        np.random.seed(seed)  # noqa: NPY002  # the generator that SB3's buffers draw from
        theirs.train(1, batch_size=32)
    return noise.drawn


def step_of_ours(ours: SoftAC, seed: int, drawn: list[th.Tensor]) -> None:
    """The same step, on the same noise: theirs draws that of the next action first."""
    ours.policy.set_training_mode(True)
    np.random.seed(seed)  # noqa: NPY002
    batch = ours._sample_batch(32)
    ours._n_updates += 1
    update = ours._current_update()
    flags = UpdateFlags(actor=ours._n_updates % ours.policy_delay == 0, targets=True)
    assert len(drawn) == 1 + flags.actor
    update(batch, Noise(drawn[1] if flags.actor else None, drawn[0]), flags, update.numbers())


@pytest.mark.parametrize("warm_up", WARM_UPS)
@pytest.mark.parametrize("policy_delay", [1, 3])
def test_fifty_updates(warm_up: str, policy_delay: int) -> None:
    theirs, ours = make_pair(WARM_UPS[warm_up], policy_delay)
    before = {name: value.clone() for name, value in ours.critic.state_dict().items()}
    for seed in range(50):
        step_of_ours(ours, seed, step_of_theirs(theirs, seed))
    for network, state in ((ours.critic, critics_of(theirs)), (ours.actor, actor_of(theirs))):
        present = network.state_dict()
        assert present.keys() == state.keys()
        for name, value in state.items():
            th.testing.assert_close(present[name], value, atol=1e-4, rtol=1e-4, msg=name)
            assert network is ours.actor or not th.equal(value, before[name]), name
    assert theirs.log_ent_coef is not None
    assert ours.temperature.value.item() == pytest.approx(theirs.log_ent_coef.exp().item(), abs=1e-4)


@pytest.mark.parametrize("mode", [False, True])
def test_the_mode_of_the_module_does_not_decide(mode: bool) -> None:
    """Acting, and every pass that is not asked to use its batch, uses the running statistics and moves none."""
    _, ours = make_pair(20, 1)
    ours.policy.set_training_mode(mode)
    before = {name: value.clone() for name, value in ours.policy.state_dict().items()}
    single = ours.critic(th.rand(1, 4), th.rand(1, 2))
    assert all(value.isfinite().all() for value in single)
    ours.actor(th.rand(3, 4))
    assert all(th.equal(before[name], value) for name, value in ours.policy.state_dict().items())


def test_layers_equal_theirs_single_and_stacked() -> None:
    theirs = [BatchRenorm1d(5, warmup_steps=3) for _ in range(3)]
    ours, single = BatchRenorm(5, 3, warmup_steps=3), BatchRenorm(5, warmup_steps=3)
    for _ in range(8):
        inputs = 3.0 * th.randn(3, 16, 5) + 1.0
        ours.uses_batch = single.uses_batch = True
        stacked, one = ours(inputs), single(inputs[0])
        for index, layer in enumerate(theirs):
            expected = layer(inputs[index])
            th.testing.assert_close(stacked[index], expected)
            if index == 0:
                th.testing.assert_close(one, expected)
    ours.uses_batch = False
    for index, layer in enumerate(theirs):
        layer.eval()
        th.testing.assert_close(ours(inputs)[index], layer(inputs[index]))
    th.testing.assert_close(ours(inputs[1:2], slice(1, 2)), ours(inputs)[1:2])
