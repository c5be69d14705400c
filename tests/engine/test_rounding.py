"""How far eager and compiled training may part: by rounding, which grows slowly as long as no derivative jumps."""

import copy

import numpy as np
import torch as th
from torch import nn

from sb3_softac import SoftAC
from tests.helpers import build, needs_compiler, parameters_of


def largest_difference(left: SoftAC, right: SoftAC) -> float:
    """Over all weights, targets and the temperature."""
    found = dict(parameters_of(right))
    return max(float((x - found[k]).abs().max()) for k, x in parameters_of(left) if "optimizer" not in k and x.numel())


@th.no_grad()
def copy_state(source: SoftAC, target: SoftAC) -> None:
    """Weights and states of optimizers, in place, so that the compiled step stays valid."""
    found = dict(parameters_of(source))
    for name, value in parameters_of(target):
        value.copy_(found[name])


def one_step(models: tuple[SoftAC, SoftAC], step: int) -> None:
    for model in models:
        th.manual_seed(step)
        np.random.seed(step)  # noqa: NPY002  # the generator that SB3's buffers draw from
        model.train(1, batch_size=16)


@needs_compiler
def test_they_part_by_rounding_alone() -> None:
    """From equal states no step differs by more than 1e-6, whoever's turn it is; 300 steps on their own not by 1e-5.

    The activation is smooth. With ReLU a unit whose input lies within rounding of 0 has the derivative 0 in one run and 1 in
    the other, sooner or later, and Adam makes a difference of some learning rates of it; so do two eager runs.
    """
    kwargs = {"net_arch": [8, 8], "n_critics": 4, "activation_fn": nn.Tanh}
    models = (
        build(False, policy_delay=3, target_subset=2, policy_kwargs=kwargs),
        build(True, policy_delay=3, target_subset=2, policy_kwargs=copy.deepcopy(kwargs)),
    )
    for step in range(30):
        one_step(models, step)
        assert largest_difference(*models) < 1e-6, step
        copy_state(*models)
    for step in range(30, 330):
        one_step(models, step)
    assert models[1]._engine.compiles
    assert largest_difference(*models) < 1e-5
    assert models[1]._engine.n_builds == 2
