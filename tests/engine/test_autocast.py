"""``train()`` inside of autocast, which no graph that was built outside would see: as in eager mode."""

from typing import Any

import torch as th

from sb3_softac import SoftAC
from tests.helpers import assert_close, build, restart_generators


def train(model: SoftAC, autocast: bool) -> list[th.Tensor]:
    """Steps outside, inside and outside; the actor's weights after each."""
    seen = []
    for inside in (False, autocast, False):
        restart_generators()
        with th.autocast("cpu", th.bfloat16, enabled=inside):
            model.train(5, batch_size=32)
        seen.append(model.actor.mu.weight.detach().clone())
    return seen


def test_fast_steps_equal_eager_ones(fast: Any) -> None:
    """Up to a rounding to bfloat16, whose unit is 2⁻⁸, in a few of the gradients."""
    models = [build(fast), build(False)]
    ours, theirs = (train(model, autocast=True) for model in models)
    plain = train(build(False), autocast=False)
    assert models[0]._engine.compiles or models[0]._engine.captures
    assert models[0]._engine.n_builds == 1
    for left, right in zip(ours, theirs, strict=True):
        th.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert_close(models[0], models[1], tolerance=1e-2)
    assert not theirs[1].equal(plain[1]), "autocast has changed nothing"
