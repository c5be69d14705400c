"""What benchmarks/flops.py counts, against matmuls that are counted by hand."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftAC
from tests.helpers import ACTION_DIM, OBS_DIM, RandomEnv, fill_buffer

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from flops import gradient_step_flops  # benchmarks/flops.py

BATCH, WIDTH = 32, 16


def forward(*units: int) -> int:
    """Multiplications and additions of a batch through linear layers."""
    return sum(2 * BATCH * a * b for a, b in itertools.pairwise(units))


CRITIC = forward(OBS_DIM + ACTION_DIM, WIDTH, WIDTH, 1)
#: of ours: a single output is a sum, and no matmul
OWN_CRITIC = forward(OBS_DIM + ACTION_DIM, WIDTH, WIDTH)
QUANTILES = forward(OBS_DIM + ACTION_DIM, WIDTH, WIDTH, 25)
CRITIC_FIRST = forward(OBS_DIM + ACTION_DIM, WIDTH)
ACTOR = forward(OBS_DIM, WIDTH, WIDTH, 2 * ACTION_DIM)
ACTOR_FIRST = forward(OBS_DIM, WIDTH)


def of_sac(critic: int, with_useless: bool = False) -> int:
    """Two critics: values with their gradient, targets, and the actor's loss, which needs the inputs of all layers.

    Forward, weights and inputs are three matmuls for each layer; the first layer's inputs need no gradient.

    :param critic: one of them forward
    :param with_useless: in the actor's loss the weights of the critics get gradients, too, which nobody needs
    """
    of_critics = 2 * (3 * critic - CRITIC_FIRST + critic + (3 if with_useless else 2) * critic)
    return of_critics + ACTOR + 3 * ACTOR - ACTOR_FIRST


def of_crossq(critic: int, with_useless: bool = False) -> float:
    """A pass over twice the batch, with all gradients, since normalisation comes before the first layer; the next action.

    The actor has its turn at every third step.
    """
    of_actor = 3 * ACTOR + 2 * (3 if with_useless else 2) * critic
    return 2 * 3 * 2 * critic + ACTOR + of_actor / 3


def ready(owner: Any, **kwargs: Any) -> Any:
    policy_kwargs = {"net_arch": [WIDTH, WIDTH], **kwargs.pop("policy_kwargs", {})}
    options: dict[str, Any] = {"batch_size": BATCH, "buffer_size": 300, "device": "cpu", **kwargs}
    model = owner("MlpPolicy", RandomEnv(), policy_kwargs=policy_kwargs, **options)
    model.set_logger(Logger(None, []))
    fill_buffer(model)
    return model


def test_soft_actor_critic() -> None:
    assert gradient_step_flops(ready(SoftAC, compile=False)) == of_sac(OWN_CRITIC)
    assert gradient_step_flops(ready(SAC)) == of_sac(CRITIC, with_useless=True)


def test_quantile_critics() -> None:
    model = ready(SoftAC, compile=False, policy_kwargs={"critic_head": "quantile"})
    assert gradient_step_flops(model) == of_sac(QUANTILES)
    assert gradient_step_flops(ready(TQC)) == of_sac(QUANTILES, with_useless=True)


def test_joint_bootstrap() -> None:
    options: dict[str, Any] = {"bootstrap": "joint", "policy_delay": 3, "policy_kwargs": {"normalization": "batch_renorm"}}
    assert gradient_step_flops(ready(SoftAC, compile=False, **options)) == pytest.approx(of_crossq(OWN_CRITIC))
    assert gradient_step_flops(ready(CrossQ)) == pytest.approx(of_crossq(CRITIC, with_useless=True))


def test_large_products_are_counted_too() -> None:
    """Where oneDNN would do them."""
    wide: dict[str, Any] = {"batch_size": 256, "policy_kwargs": {"net_arch": [256, 256]}, "compile": False}
    counted = gradient_step_flops(ready(SoftAC, **wide))
    critic, actor = (512 * (first * 256 + 256 * 256) for first in (OBS_DIM + ACTION_DIM, OBS_DIM))
    actor += 512 * 256 * 2 * ACTION_DIM
    firsts = 512 * 256 * (2 * (OBS_DIM + ACTION_DIM) + OBS_DIM)
    assert counted == 12 * critic + 4 * actor - firsts
