"""A training that has diverged stops with an error of its own, before an action that is NaN reaches an environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_softac import SoftAC, TrainingDivergedError
from tests.helpers import make_model, quick_model


class Spoil(BaseCallback):
    """Makes the actor's first weights NaN at step 60."""

    def _on_step(self) -> bool:
        assert isinstance(self.model, SoftAC)
        if self.num_timesteps == 60:
            with th.no_grad():
                next(self.model.actor.parameters()).fill_(float("nan"))
        return True


class Watch(gym.Wrapper[Any, Any, Any, Any]):
    """Fails if it gets an action that is not finite."""

    def step(self, action: Any) -> Any:
        assert np.isfinite(action).all(), "the environment got a NaN"
        return super().step(action)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("kwargs", [{}, {"learning_starts": 1000, "random_steps": 0}, {"train_freq": 32}])
def test_divergence_has_a_name_of_its_own_and_reaches_no_environment(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TrainingDivergedError):
        quick_model(Watch(gym.make(name)), **kwargs).learn(150, callback=Spoil())


def test_predictions_of_a_diverged_policy_are_refused() -> None:
    model = make_model()
    with th.no_grad():
        next(model.actor.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="load an earlier checkpoint"):
        model.predict(np.zeros(4, np.float32))
