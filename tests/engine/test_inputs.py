"""Images, Dict observations, goals, normalised and n-step returns: fast ways equal eager mode, without a warning."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC
from tests.helpers import SMALL, CountingEnv, RandomEnv, SampledEnv, assert_close, restart_generators

IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)  # the smallest that SB3's convolutions take
IMAGE_AND_VECTOR = spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1.0, 1.0, (3,))})
# Convolutions add up many numbers, and Adam would make steps of equal size from gradients that are little more than rounding.
SGD = {"optimizer_class": th.optim.SGD}
CNN = {"features_extractor_kwargs": {"features_dim": 8}, **SGD}

CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "image": ("CnnPolicy", lambda: SampledEnv(observation_space=IMAGE), {"policy_kwargs": {**SMALL, **CNN}}),
    "image, shared features": (
        "CnnPolicy",
        lambda: SampledEnv(observation_space=IMAGE),
        {"policy_kwargs": {**SMALL, **CNN, "share_features_extractor": True}},
    ),
    "Dict with an image": (
        "MultiInputPolicy",
        lambda: SampledEnv(observation_space=IMAGE_AND_VECTOR),
        {"policy_kwargs": {**SMALL, **SGD, "features_extractor_kwargs": {"cnn_output_dim": 8}}},
    ),
    "hindsight": (
        "MultiInputPolicy",
        lambda: CountingEnv(5, goals=True),
        {"replay_buffer_class": HerReplayBuffer, "policy_kwargs": SMALL},
    ),
    "VecNormalize": ("MlpPolicy", lambda: VecNormalize(DummyVecEnv([RandomEnv])), {"policy_kwargs": SMALL}),
    "n-step": ("MlpPolicy", RandomEnv, {"n_steps": 3, "policy_kwargs": SMALL}),
    "soft n-step": ("MlpPolicy", RandomEnv, {"n_steps": 3, "soft_n_step": True, "policy_kwargs": SMALL}),
}


@pytest.mark.parametrize("case", CASES)
def test_fast_ways_equal_eager_mode(case: str, fast: Any) -> None:
    policy, make_env, kwargs = CASES[case]
    env = make_env()
    models = []
    kwargs = {"learning_rate": 3e-2 if "image" in case else 3e-4, **kwargs}
    for compile in (fast, False):
        model = SoftAC(policy, env, buffer_size=100, learning_starts=50, seed=0, device="cpu", compile=compile, **kwargs)
        model.set_logger(Logger(None, []))
        models.append(model)
    models[0].learn(50)
    assert models[0]._engine.n_steps == 0
    models[1].replay_buffer = models[0].replay_buffer
    before = [parameter.detach().clone() for parameter in models[1].policy.parameters()]
    for model in models:
        restart_generators()
        model.train(10, batch_size=32)
    assert models[0]._engine.n_builds == 1
    assert models[0]._engine.compiles or models[0]._engine.captures
    assert_close(models[0], models[1], tolerance=1e-3 if "image" in case else 1e-4)
    after = [parameter.detach() for parameter in models[1].policy.parameters()]
    pairs = zip(before, after, strict=True)
    moved = max(float((old - new).abs().max() / new.abs().max()) for old, new in pairs if new.abs().max() > 0)
    assert moved > 1e-2, "equality of models that did not move would prove nothing"
    assert all(th.isfinite(parameter).all() for parameter in models[0].policy.parameters())
