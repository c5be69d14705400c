"""Gradient steps of two ranks on a half of each batch, and of one process on the whole: what both test processes run."""

import math
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_softac import SoftAC, SoftQL
from sb3_softac.engine import Group, UpdateFlags
from sb3_softac.engine.group import close_group, open_group
from sb3_softac.replay import Batch
from tests.helpers import OBS_DIM, RandomDiscreteEnv, RandomEnv

N_UPDATES, BATCH_SIZE = 50, 16


def net(**kwargs: Any) -> dict[str, Any]:
    """Small networks. Where a gradient is but rounding, Adam with its own ε would make whole steps of it."""
    return {"policy_kwargs": {"net_arch": [16, 16], "optimizer_kwargs": {"eps": 1e-4}, **kwargs}}


#: options of ``SoftAC``; with "discrete" or "soft_ql" besides
CASES: dict[str, dict[str, Any]] = {
    "plain": net(),
    "log temperature": {"ent_coef_update": "log", **net()},
    "exp temperature, bounded": {"ent_coef_update": "exp", "ent_coef_max": 1.001, **net()},
    "fixed temperature, mean": {"ent_coef": 0.2, "actor_q": "mean", "target_q": "mean", **net()},
    "value network": {"value_network": True, "actor_q": "first", **net()},
    "target min, clipped": {"actor_q": "target_min", "max_grad_norm": 0.05, **net()},
    "delayed, subset": {"policy_delay": 2, "target_subset": 2, "target_update_interval": 3, **net(n_critics=4)},
    "state-independent std": net(log_std_mode="free"),
    "soft n-step": {"n_steps": 3, "soft_n_step": True, **net()},
    "quantile": net(critic_head="quantile", n_quantiles=5),
    "quantile, mean": {"target_q": "mean", **net(critic_head="quantile", n_quantiles=5)},
    "categorical": net(critic_head="categorical", n_atoms=11),
    "joint": {"bootstrap": "joint", "max_grad_norm": 0.5, **net(normalization="batch")},
    "joint, renorm, quantile": {
        "bootstrap": "joint",
        **net(normalization="batch_renorm", critic_head="quantile", n_quantiles=5),
    },
    "joint target": {"bootstrap": "joint_target", **net(normalization="batch_renorm")},
    "targets, renorm": net(normalization="batch_renorm"),
    "layer norm": net(normalization="layer"),
    "gSDE": {"use_sde": True, **net()},
    "discrete": {"discrete": True, **net()},
    "discrete, categorical, clipped": {
        "discrete": True,
        "max_grad_norm": 0.1,
        **net(critic_head="categorical", n_atoms=11),
    },
    "discrete, joint": {"discrete": True, "bootstrap": "joint", **net(normalization="batch_renorm")},
    "simba": net(encoder="simba", net_arch=[16]),
    "simba v2": net(encoder="simba_v2", net_arch=[16], critic_head="categorical", n_atoms=11),
    "bro": net(encoder="bro", net_arch=[16]),
    "flash": {"bootstrap": "joint_target", **net(encoder="flash", net_arch=[16], critic_head="categorical", n_atoms=11)},
    "soft Q": {"soft_ql": True, **net()},
    "soft Q, discrete": {"soft_ql": True, "discrete": True, "ent_coef": "auto", "target_entropy": 0.5, **net()},
    "soft Q, proposals of the policy": {
        "soft_ql": True,
        "value_proposal": "policy",
        "max_grad_norm": 0.1,
        **net(sampler="gaussian"),
    },
}


def make(options: dict[str, Any]) -> Any:
    given = dict(options)
    env = RandomDiscreteEnv() if given.pop("discrete", False) else RandomEnv()
    algorithm: Any = SoftQL if given.pop("soft_ql", False) else SoftAC
    kwargs: dict[str, Any] = {"learning_rate": 1e-3, "buffer_size": 10, "device": "cpu", "seed": 0, "compile": False}
    kwargs |= {"distributed": False} | given  # the group is handed to the update alone
    return algorithm("MlpPolicy", env, **kwargs)


def draw_batch(model: Any, generator: th.Generator, size: int) -> Batch:
    def normal(*shape: int) -> th.Tensor:
        return th.randn(shape, generator=generator)

    if isinstance(model.action_space, spaces.Discrete):
        actions = th.randint(0, int(model.action_space.n), (size,), generator=generator)
    else:
        actions = normal(size, math.prod(model.action_space.shape)).tanh()
    later: tuple[Any, ...] = ()
    if model.soft_n_step:
        n_later = model.n_steps - 1
        later = (normal(size * n_later, OBS_DIM), th.full((size, n_later), 0.9))
    dones = (normal(size) > 1.0).float()
    return Batch(
        normal(size, OBS_DIM), actions, normal(size, OBS_DIM) + 3.0, dones, normal(size), th.full((size,), 0.97), *later
    )


def half(value: Any, rank: int, size: int) -> Any:
    """The part of a batch, or of its noise, that belongs to a rank; critic indices belong to all."""
    if value is None or (value.dtype == th.long and len(value) < size):
        return value
    n_each = len(value) // 2
    return value[rank * n_each : (rank + 1) * n_each]


def train(options: dict[str, Any], rank: int | None = None) -> dict[str, th.Tensor]:
    """Weights, targets, statistics and temperature after ``N_UPDATES`` gradient steps.

    :param rank: whose half of each batch is used, or None for all of it
    """
    model = make(options)
    update = model._current_update()
    update.group = None if rank is None else Group()
    generator = th.Generator().manual_seed(1)
    size = 2 * BATCH_SIZE
    for step in range(1, N_UPDATES + 1):
        flags = UpdateFlags(step % model.policy_delay == 0, step % model.target_update_interval == 0)
        batch = draw_batch(model, generator, size)
        th.manual_seed(step)
        # Drawn without the group, so that noise and critic indices are those of the whole batch in both cases.
        group, update.group = update.group, None
        noise = update.draw_noise(size, flags)
        update.group = group
        if model.soft_n_step:
            noise = noise._replace(later_observations=th.randn(size * (model.n_steps - 1), 2))
        if rank is not None:
            batch = Batch(*[half(part, rank, size) for part in batch])
            noise = type(noise)(*[half(part, rank, size) for part in noise])
        update(batch, noise, flags, update.numbers())
    return {name: value.clone() for name, value in {**model.policy.state_dict(), **temperature(model)}.items()}


def temperature(model: Any) -> dict[str, th.Tensor]:
    return {"temperature": model.temperature.value}


def all_cases() -> dict[str, dict[str, th.Tensor]]:
    """What a rank computes."""
    open_group(0, 60.0)
    rank = Group().rank
    try:
        return {name: train(options, rank) for name, options in CASES.items()}
    finally:
        close_group()
