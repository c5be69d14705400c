"""What an exported file is compared with before it is written: ``predict()``, whatever the file was made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, SoftACPolicy, SoftQL, SoftQLPolicy
from sb3_softac.export import ExportedPolicy
from sb3_softac.files import export
from tests.files.test_export import SpaceEnv, sample
from tests.helpers import RandomDiscreteEnv, RandomEnv

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
DIFFERS = "was not written: its actions differ"


class Mirrored(SoftQLPolicy):
    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return -super()._predict(observation, deterministic)


class Next(SoftACPolicy):
    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return (super()._predict(observation, deterministic) + 1) % 3


@pytest.mark.parametrize(("cls", "policy", "env"), [(SoftQL, Mirrored, RandomEnv()), (SoftAC, Next, RandomDiscreteEnv(3))])
def test_a_policy_that_predicts_in_another_way(cls: Any, policy: Any, env: Any, tmp_path: Path) -> None:
    """The best of all actions that the file knows is no answer to that."""
    model = cls(policy, env, buffer_size=10, seed=0, device="cpu")
    with pytest.raises(RuntimeError, match=DIFFERS):
        model.export(tmp_path / "policy", format="torchscript")


@pytest.mark.parametrize(("cls", "env"), [(SoftQL, RandomEnv), (SoftQL, RandomDiscreteEnv), (SoftAC, RandomDiscreteEnv)])
def test_a_wrong_normalisation(cls: Any, env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = VecNormalize(DummyVecEnv([env]))
    model = cls("MlpPolicy", statistics, learning_starts=1000, seed=0, device="cpu").learn(50)
    monkeypatch.setattr(export, "_Normalisation", lambda *_: th.nn.Identity())
    with pytest.raises(RuntimeError, match=DIFFERS):
        model.export(tmp_path / "policy", format="torchscript", vec_normalize=statistics)
    assert list(tmp_path.iterdir()) == []


class TestLargeRoundingErrors:
    """Small values of observations far from 0, as a trained network has them: float32 mixes up actions nearly as good."""

    @staticmethod
    def model_of(cls: Any, action_space: Any) -> Any:
        space = spaces.Box(np.full(17, 29_999.0, np.float32), np.full(17, 30_001.0, np.float32))
        model = cls("MlpPolicy", SpaceEnv(space, action_space), buffer_size=10, seed=0, device="cpu")
        model.observation_space.seed(0)
        obs = th.as_tensor(sample(model.observation_space, 100))
        with th.no_grad():
            if cls is SoftAC:
                model.actor.logits.bias -= model.actor.logits(model.actor.latent_pi(obs)).mean(dim=0)
            else:
                q = model.policy.acting_module().candidates(obs)[1]
                model.critic.q_networks.output.bias -= q.mean(dim=0) if isinstance(action_space, spaces.Discrete) else q.mean()
        return model

    @pytest.mark.parametrize("cls", [SoftQL, SoftAC])
    def test_discrete_actions_are_exported(self, cls: Any, tmp_path: Path) -> None:
        model = self.model_of(cls, spaces.Discrete(5))
        module = export._Exported(model.policy, True, None, "")
        exact = module.exact()
        obs = sample(model.observation_space, 1000)
        assert module.distance(exact.act(obs), module.act(obs), obs).max() >= 1.0  # `AS_GOOD` alone is too small
        slack = export.ROUNDING_ERRORS * module.rounding(exact, obs).values
        assert module.distance(exact.act(obs), module.act(obs), obs, slack).max() == 0.0
        model.export(tmp_path / "policy", format="onnx")

    def test_they_do_not_hide_what_differs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another particle in float64 than in float32 is no rounding error of actions: of those a small one is found."""
        model = self.model_of(SoftQL, spaces.Box(-1.0, 1.0, (3,)))
        with th.no_grad():
            model.actor.latent_pi[0].weight[:, :17] = 0.0  # else all particles would be at the bounds
        module = export._Exported(model.policy, True, None, "")
        exact = module.exact()
        obs = sample(model.observation_space, 1000)
        assert module.distance(exact.act(obs), module.act(obs), obs).max() > 0.01
        assert export.ROUNDING_ERRORS * module.rounding(exact, obs).actions < 1e-4
        model.export(tmp_path / "policy", format="torchscript")
        original = ExportedPolicy.__call__
        monkeypatch.setattr(ExportedPolicy, "__call__", lambda file, obs: original(file, obs) + np.float32(1e-3))
        with pytest.raises(RuntimeError, match=DIFFERS):
            model.export(tmp_path / "other", format="torchscript")
