"""Encoders and whole gradient steps of SimBa, SimbaV2, BRO and FlashSAC, against a second derivation in float64."""

import contextlib
import re
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_softac import SoftAC
from sb3_softac.engine import UpdateFlags
from sb3_softac.replay import Batch
from sb3_softac.update.actor_critic import Noise
from tests.helpers import ACTION_DIM, OBS_DIM, RandomDiscreteEnv, RandomEnv
from tests.update.published import UNIT, Adam, Head, Learner, Net, everything

B, N_ACTIONS, LEARNING_RATE = 12, 3, 3e-3
RNG = th.Generator().manual_seed(5)
LOG_STD: dict[str, Any] = {"log_std_bounds": (-10.0, 2.0), "log_std_bounding": "tanh"}
CATEGORIES: dict[str, Any] = {"critic_head": "categorical", "n_atoms": 21, "value_range": (-2.0, 2.0)}
DECAY: dict[str, Any] = {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 1e-2}}
SIMBA: dict[str, Any] = {"policy_kwargs": {"encoder": "simba", **DECAY}}
SIMBA_V2: dict[str, Any] = {"policy_kwargs": {"encoder": "simba_v2", **CATEGORIES}}
BRO: dict[str, Any] = {
    "policy_kwargs": {"encoder": "bro", "critic_head": "quantile", "n_quantiles": 7, **DECAY},
    "top_quantiles_to_drop_per_net": 0,
    "target_q": "mean",
}
FLASH: dict[str, Any] = {
    "policy_kwargs": {"encoder": "flash", **CATEGORIES},
    "bootstrap": "joint_target",
    "policy_delay": 2,
    "tau": 0.01,
}
CASES: dict[str, dict[str, Any]] = {
    "SimBa": SIMBA,
    "SimBa, value network": {**SIMBA, "value_network": True},
    "SimBa, discrete": {**SIMBA, "discrete": True},
    "SimbaV2": SIMBA_V2,
    "SimbaV2, discrete": {**SIMBA_V2, "discrete": True},
    "BRO": BRO,
    "FlashSAC": FLASH,
    "FlashSAC, discrete": {**FLASH, "discrete": True},
}


@th.no_grad()
def make_ours(discrete: bool = False, **kwargs: Any) -> SoftAC:
    """A model in float64 whose weights are all somewhere, its targets' elsewhere."""
    RNG.manual_seed(5)
    policy_kwargs = {"net_arch": {"pi": [6], "qf": [8, 8]}, **kwargs.pop("policy_kwargs"), **({} if discrete else LOG_STD)}
    model = SoftAC(
        "MlpPolicy",
        RandomDiscreteEnv(N_ACTIONS) if discrete else RandomEnv(),
        policy_kwargs=policy_kwargs,
        **{"ent_coef": "auto_0.05", "ent_coef_update": "exp", "target_entropy": -1.0, **kwargs},
        learning_rate=LEARNING_RATE,
        buffer_size=10,
        device="cpu",
        seed=0,
        compile=False,
    )
    model.policy.double()
    model.temperature.double()
    networks: list[Any] = [network for network in model.policy.networks() if network is not None]
    for network in networks:
        network.preprocess = lambda observations: observations  # else to float32
    for name, value in [*model.policy.named_parameters(), *model.policy.named_buffers()]:
        if value.is_floating_point():
            noise = 0.3 * th.randn_like(value)
            value.add_(noise.abs() if name.endswith("running_var") else noise)
    return model


def nets_of(network: Any, encoder: str) -> list[Net]:
    """The networks of one of ours, each by itself, with matrices (out, in)."""
    state = network.state_dict()
    ensemble = not any(name.startswith("latent_pi") for name in state)
    nets = [Net(encoder, {}, {}) for _ in range(len(next(iter(state.values()))) if ensemble else 1)]
    for name, value in state.items():
        name = re.sub(r"^(latent_pi|[qv]_networks?\.hidden)\.", "", name)
        name = re.sub(r"^[qv]_networks?\.output\.", "output.", name)
        for i, net in enumerate(nets) if not name.endswith("running_steps") else ():
            one = value[i] if ensemble else value
            if one.ndim == 1 or len(one) == 1:
                one = one.flatten()
            elif ensemble or encoder in UNIT:
                one = one.T
            (net.statistics if "running_" in name else net.weights)[name] = one.detach().clone()
    return nets


def learner_of(model: SoftAC) -> Learner:
    """Ours as theirs."""
    kwargs = model.policy_kwargs
    encoder, kind = kwargs["encoder"], kwargs.get("critic_head", "scalar")
    n_numbers: Any = {"scalar": 1, "quantile": kwargs.get("n_quantiles"), "categorical": kwargs.get("n_atoms")}[kind]
    value = None if model.value_net is None else nets_of(model.value_net, encoder)[0]
    value_target = None if model.value_net_target is None else nets_of(model.value_net_target, encoder)[0]
    learner = Learner(
        head=Head(kind, n_numbers, *kwargs.get("value_range", ())),
        actor=nets_of(model.actor, encoder)[0],
        critics=nets_of(model.critic, encoder),
        targets=[] if model.critic_target is None else nets_of(model.critic_target, encoder),
        value=value,
        value_target=value_target,
        log_alpha=Net("mlp", {"log": model.temperature.value.log().clone()}, {}),
        optimizer=Adam(LEARNING_RATE, kwargs.get("optimizer_kwargs", {}).get("weight_decay", 0.0)),
        tau=model.tau,
        target_entropy=-1.0,
        n_actions=N_ACTIONS if isinstance(model.action_space, spaces.Discrete) else None,
        joint=model.bootstrap == "joint_target",
    )
    for net in (learner.actor, *learner.critics, learner.value, learner.log_alpha):
        for weight in {} if net is None else net.weights.values():
            weight.requires_grad_()
    return learner


def normal(*shape: int) -> th.Tensor:
    return th.randn(shape, generator=RNG, dtype=th.float64)


def make_batch(discrete: bool) -> Batch:
    actions = th.randint(N_ACTIONS, (B,), generator=RNG) if discrete else th.tanh(normal(B, ACTION_DIM))
    dones = (th.arange(B) % 3 == 0).double()
    observations, following = normal(B, OBS_DIM), normal(B, OBS_DIM)
    return Batch(observations, actions, following, dones, normal(B), th.full((B,), 0.9, dtype=th.float64))


@pytest.mark.parametrize("case", CASES)
def test_gradient_steps(case: str) -> None:
    """Four of them: weights, targets, running statistics and α."""
    model = make_ours(**CASES[case])
    learner, discrete = learner_of(model), isinstance(model.action_space, spaces.Discrete)
    before = {name: value.clone() for name, value in everything(learner).items()}
    update = model._current_update()
    for step in range(1, 5):
        batch = make_batch(discrete)
        noise = Noise() if discrete else Noise(normal(B, ACTION_DIM).clamp(-1, 1), normal(B, ACTION_DIM).clamp(-1, 1))
        with_actor = step % model.policy_delay == 0
        update(batch, noise, UpdateFlags(actor=with_actor, targets=True), update.numbers())
        learner.step(batch, noise, with_actor)
        ours, theirs = everything(learner_of(model)), everything(learner)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert th.allclose(ours[name], value, rtol=1e-8, atol=1e-9), (name, step, ours[name] - value)
    still = {name for name, value in theirs.items() if (value - before[name]).abs().max() < 1e-6}
    assert still == set()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward(case: str, train: bool) -> None:
    """Actor and critics alone; ``train``: by the statistics of the batch."""
    model = make_ours(**CASES[case])
    learner, discrete = learner_of(model), isinstance(model.action_space, spaces.Discrete)
    batch, update = make_batch(discrete), model._current_update()
    actions = None if discrete else batch.actions
    with update.batch_statistics(model.policy) if train else contextlib.nullcontext():
        outputs = model.critic.outputs(batch.observations, actions)
        pi = model.actor.action_distribution(batch.observations, None if discrete else th.ones(B, ACTION_DIM).double())
        value = None if model.value_net is None else model.value_net(batch.observations)
    for ours, net in zip(outputs, learner.critics, strict=True):
        theirs = learner.outputs(net, batch.observations, actions, train)
        th.testing.assert_close(ours, theirs if discrete else theirs.view_as(ours), rtol=1e-10, atol=1e-10)
    ones = None if discrete else th.ones(B, ACTION_DIM).double()
    for mine, theirs in zip((pi.actions, pi.log_prob), learner.policy(batch.observations, ones, train), strict=True):
        assert mine is theirs is None or th.allclose(mine, theirs, rtol=1e-10, atol=1e-10)
    if value is not None:
        assert learner.value is not None
        expected = learner.value.head("output", learner.value.features(batch.observations, train))
        th.testing.assert_close(value, expected)
    if train:
        for name, after in everything(learner).items():
            if "running" in name and not name.startswith(("targets", "value_target")):
                th.testing.assert_close(everything(learner_of(model))[name], after, msg=name)


def test_a_critics_loss_is_that_of_the_head() -> None:
    """Of the quantile loss a loop over single pairs, for the two that this module has written down itself."""
    head, outputs, target = Head("quantile", 3), [2 * normal(2, 3) for _ in range(2)], 2 * normal(2, 3)
    total = 0.0
    for quantiles, row, i, j in np.ndindex(2, 2, 3, 3):
        error = (target[row, j] - outputs[quantiles][row, i]).item()
        huber = error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5
        total += abs((i + 0.5) / 3 - (error < 0)) * huber
    assert head.loss(outputs, target).item() == pytest.approx(total / (2 * 2 * 3 * 3))
