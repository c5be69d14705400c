"""What must be the same on all ranks, and what says where they differ."""

import hashlib
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch as th

from sb3_softac.engine import Group, GroupError

#: options that may differ: they say where something is written, and what is printed
MAY_DIFFER = frozenset(("seed", "verbose", "tensorboard_log", "stats_window_size"))
PACKAGES = ("sb3-softac", "torch", "stable-baselines3", "numpy", "gymnasium")


def plainly(value: Any) -> str:
    """A value as text that is the same in every process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plainly(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(plainly, value)) + ")"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def settings_of(model: Any) -> dict[str, Any]:
    """All that ranks must have alike, by name, for messages."""
    options = {name: plainly(value) for name, value in model._options().items() if name not in MAY_DIFFER}
    networks = {
        f"weights {name}": f"{tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in {**model.policy.state_dict(), **model.temperature.state_dict()}.items()
    }
    frozen = [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad]
    return {
        **options,
        "observation space": plainly(model.observation_space),
        "action space": plainly(model.action_space),
        "number of environments": model.n_envs,
        "VecNormalize": model._vec_normalize_env is not None,
        "policy class": plainly(model.policy_class),
        "replay buffer class": plainly(type(model.replay_buffer)),
        "device": model.device.type,
        "environment steps done": model.num_timesteps,
        "gradient steps done": model._n_updates,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{f"version of {package}": version(package) for package in PACKAGES},
        **networks,
        "frozen parameters": plainly(frozen),
        "number of optimizer states": len(optimizer_tensors(model)),
    }


def optimizer_tensors(model: Any) -> list[th.Tensor]:
    """What the optimizers of a model keep of the past."""
    owners = [*model.policy.trained_networks().values(), model.temperature]
    optimizers = [owner.optimizer for owner in owners if hasattr(owner, "optimizer")]
    entries = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [value for state in entries for value in state.values() if isinstance(value, th.Tensor)]


def state_tensors(model: Any) -> list[th.Tensor]:
    """Weights, targets, statistics, the temperature and optimizer states of a model."""
    modules = (model.policy, model.temperature)
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    moments = [] if model._return_moments is None else [th.from_numpy(model._return_moments)]  # the same memory
    return [*own, *moments, *optimizer_tensors(model)]


def _summary(tensors: list[th.Tensor]) -> str:
    summed = hashlib.sha256()
    for tensor in tensors:
        summed.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return summed.hexdigest()[:16]


def check_alike(group: Group, settings: dict[str, Any]) -> None:
    """:raises ValueError: a rank has other settings than rank 0
    :raises GroupError: a rank has other weights"""
    own = {name: _summary(value) if isinstance(value, list) else value for name, value in settings.items()}
    every = group.gather_objects(own)
    for rank, theirs in enumerate(every):
        differing = [name for name in {**every[0], **theirs} if every[0].get(name) != theirs.get(name)]
        if not differing:
            continue
        name, group.told = differing[0], True
        if isinstance(settings.get(name), list):
            raise GroupError(f"Rank {rank} has other {name} than rank 0, although it has just taken them over.")
        more = f" (and {len(differing) - 1} more: {', '.join(differing[1:4])})" if len(differing) > 1 else ""
        raise ValueError(
            f"Rank {rank} has `{name}` {theirs.get(name, 'missing')}, but rank 0 has {every[0].get(name, 'missing')}{more}: "
            "all ranks must be started with the same settings, code and versions."
        )
