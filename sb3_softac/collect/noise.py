"""Exploration noise that is kept for several steps (FlashSAC, 2026).

White noise averages out over the steps of an environment with a small time step; noise that is kept moves it somewhere. Each
environment keeps its ε ~ N(0, I) for n steps, P(n) ∝ n⁻² for n = 1, ..., N, and then draws both again, as it does where an
episode begins. Actions are tanh(μ(s) + σ(s)·ε), with μ and σ of the present state.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_softac.networks import SoftPolicy

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=8)
def _weights(longest: int) -> th.Tensor:
    return th.arange(1, longest + 1, dtype=th.float64, device="cpu").square_().reciprocal_()


def draw_lengths(longest: int, size: int) -> Array:
    """Numbers of steps, (size,), from the zeta distribution with exponent 2, cut at ``longest``."""
    drawn: Array = th.multinomial(_weights(longest), size, replacement=True).numpy()
    return drawn + 1


def advance(noise: Array, steps_left: Array, longest: int) -> None:
    """The noise of the next step, in place; of environments that have none left a new one, from PyTorch's generator.

    :param noise: ε, (n_envs, A)
    :param steps_left: for how many more steps each is kept, (n_envs,)
    :param longest: N
    """
    ended = np.flatnonzero(steps_left == 0)
    if len(ended) > 0:
        noise[ended] = th.randn((len(ended), noise.shape[1]), device="cpu").numpy()
        steps_left[ended] = draw_lengths(longest, len(ended))
    steps_left -= 1


@contextmanager
def keeping_exploration(policy: Any) -> Iterator[None]:
    """Within it gSDE may draw other matrices, as gradient steps do; afterwards environments explore with those from before.

    :param policy: a policy with gSDE
    """
    distribution = policy.actor.action_dist
    kept = {name: vars(distribution)[name] for name in ("exploration_mat", "exploration_matrices")}
    try:
        yield
    finally:
        vars(distribution).update(kept)


@contextmanager
def sampling_with(policy: SoftPolicy, noise: th.Tensor) -> Iterator[None]:
    """Within it ``policy`` samples actions with this ε.

    :param policy: a policy with a squashed Gaussian
    :param noise: ε, (B, A)
    :raises ValueError: it did not ask for it, or for another number of actions
    """
    shapes: list[Any] = []

    def draw_noise(mean_actions: th.Tensor) -> th.Tensor:
        shapes.append(mean_actions.shape)
        return noise if mean_actions.shape == noise.shape else th.randn_like(mean_actions)

    distribution: Any = getattr(policy.actor, "action_dist", None)
    if not hasattr(distribution, "draw_noise"):
        yield  # and nothing asks for it
    else:
        distribution.draw_noise = draw_noise
        try:
            yield
        finally:
            del distribution.draw_noise
    if not shapes or any(shape != noise.shape for shape in shapes):
        raise ValueError(
            f"`noise_repeat` is set, but it must be None: the actions of this {type(policy).__name__} do not come from one "
            "sample of the squashed Gaussian of its actor."
        )
