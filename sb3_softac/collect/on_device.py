"""Actions for environments whose observations are tensors: nothing leaves the device."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_softac.collect.acting import CapturedActor
from sb3_softac.collect.noise import sampling_with
from sb3_softac.collect.step_infos import each
from sb3_softac.errors import TrainingDivergedError


def draws_uniformly(space: spaces.Space[Any]) -> bool:
    """Whether ``sample`` of an action space is Gymnasium's, of which :func:`random_actions` draws the same distribution."""
    return type(space).sample in (spaces.Box.sample, spaces.Discrete.sample) and "sample" not in vars(space)


def random_actions(space: spaces.Space[Any], n_envs: int, device: th.device) -> th.Tensor:
    """Uniformly random ones, scaled to [−1, 1], (n, A); discrete ones (n,)."""
    if isinstance(space, spaces.Discrete):
        return th.randint(int(space.start), int(space.start + space.n), (n_envs,), device=device)
    return th.rand((n_envs, int(np.prod(space.shape or ()))), device=device) * 2.0 - 1.0


@th.no_grad()
def policy_actions(policy: Any, actor: Any, obs: Any, noise: Any) -> th.Tensor:
    """Sample actions of the policy, scaled to [−1, 1], (n, A); discrete ones (n,), counted from 0.

    :param policy: policy of ours
    :param actor: what acts for it, if it is known
    :param obs: tensors
    :param noise: ε as an array, or None
    :raises TrainingDivergedError: they are NaN
    """
    if isinstance(actor, CapturedActor):
        actions = actor.on_device(obs, noise)
    else:
        kept = nullcontext() if noise is None else sampling_with(policy, th.from_numpy(noise).to(policy.device))
        act = getattr(policy.actor, "sample_on_device", policy.actor)
        policy.set_training_mode(False)  # as `predict` does: a callback may have trained
        with kept:
            actions = act(each(obs, lambda part: part.to(policy.device)))
    broken = actions < 0 if not actions.is_floating_point() else actions.isnan()
    if bool(broken.any()):
        raise TrainingDivergedError(
            "The training has diverged: the policy's actions are NaN. None of them was sent to the environment. A lower "
            "learning rate, `max_grad_norm`, `ent_coef_max` or smaller rewards may help."
        )
    return actions


def sample(
    algorithm: Any, actor: Any, is_random: bool, action_noise: Any, n_envs: int, noise: Any
) -> tuple[th.Tensor, th.Tensor]:
    """As ``_sample_action``: actions for the environment, and those that are stored."""
    space, policy = algorithm.action_space, algorithm.policy
    if isinstance(space, spaces.Discrete):
        if is_random:
            drawn = random_actions(space, n_envs, policy.device)
        else:
            drawn = policy_actions(policy, actor, algorithm._last_obs, noise) + int(space.start)
        return drawn, drawn
    if is_random:
        scaled = random_actions(space, n_envs, policy.device)
    else:
        scaled = policy_actions(policy, actor, algorithm._last_obs, noise)
    scaled = scaled.reshape(-1, *space.shape)
    if action_noise is not None:
        scaled = (scaled + th.as_tensor(action_noise(), dtype=scaled.dtype, device=scaled.device)).clamp(-1.0, 1.0)
    low, high = (th.as_tensor(bound, device=scaled.device).to(scaled.dtype) for bound in (space.low, space.high))
    return low + 0.5 * (scaled + 1.0) * (high - low), scaled
