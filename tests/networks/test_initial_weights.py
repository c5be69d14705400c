"""The initial actor of a seed is that of SB3's SAC: the same draws in the same order."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.sac import policies as sb3

from sb3_softac import CnnPolicy, MultiInputPolicy, SoftAC, SoftACPolicy
from tests.helpers import RandomEnv

ACTIONS = spaces.Box(-1.0, 1.0, (2,))
BOX, IMAGE = spaces.Box(-1.0, 1.0, (5,)), spaces.Box(0, 255, (3, 36, 36), np.uint8)
CASES: dict[str, tuple[type[Any], type[Any], spaces.Space[Any], dict[str, Any]]] = {
    "default": (sb3.SACPolicy, SoftACPolicy, BOX, {}),
    "net_arch": (sb3.SACPolicy, SoftACPolicy, BOX, {"net_arch": {"pi": [32, 16, 8], "qf": [4]}}),
    "no hidden layer": (sb3.SACPolicy, SoftACPolicy, BOX, {"net_arch": []}),
    "images": (sb3.CnnPolicy, CnnPolicy, IMAGE, {"net_arch": [8]}),
    "dict": (sb3.MultiInputPolicy, MultiInputPolicy, spaces.Dict({"box": BOX, "image": IMAGE}), {"net_arch": [8]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_actor_of_a_policy(case: str) -> None:
    theirs, ours, space, kwargs = CASES[case]
    actors = []
    for policy_class in (theirs, ours):
        th.manual_seed(0)
        actors.append(policy_class(space, ACTIONS, lambda _: 1e-3, **kwargs).actor.state_dict())
    assert actors[0].keys() == actors[1].keys()
    for name, weight in actors[0].items():
        assert th.equal(weight, actors[1][name]), name


def test_the_actor_of_an_algorithm() -> None:
    models = [algorithm("MlpPolicy", RandomEnv(), seed=4, buffer_size=10, device="cpu") for algorithm in (SAC, SoftAC)]
    weights = [model.policy.actor.state_dict() for model in models]
    assert all(th.equal(weight, weights[1][name]) for name, weight in weights[0].items())
