"""Exported policies of soft Q-learning against ``predict()``, and what is compared where two actions are as good."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, SoftQL
from sb3_softac.engine import matmul
from sb3_softac.export import ExportedPolicy
from sb3_softac.files import export
from tests.files.test_export import FORMATS, SpaceEnv, sample
from tests.helpers import RandomDiscreteEnv, RandomEnv, net

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
VECTOR = spaces.Box(-np.inf, np.inf, (4,))
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "continuous": ("MlpPolicy", RandomEnv(), net()),
    "two critics, Gaussian, matrix": (
        "MlpPolicy",
        SpaceEnv(VECTOR, spaces.Box(-3.0, 1.0, (2, 3))),
        {**net(n_critics=2, sampler="gaussian"), "kernel_particles": 5},
    ),
    "mean of critics, more noise": ("MlpPolicy", RandomEnv(), {**net(n_critics=3), "target_q": "mean", "noise_dim": 4}),
    # So large that matmuls may go to a library that other programs do not know.
    "wide": ("MlpPolicy", RandomEnv(), {**net(net_arch=[512, 512]), "kernel_particles": 24}),
    "discrete from -1": ("MlpPolicy", RandomDiscreteEnv(start=-1), net(n_critics=2)),
    "images": ("CnnPolicy", FakeImageEnv(36, 36, discrete=False), net()),
    "dict": ("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), net()),
    "dict, discrete": ("MultiInputPolicy", SimpleMultiObsEnv(), net()),
}


def model_of(case: str) -> SoftQL:
    policy, env, kwargs = CASES[case]
    model = SoftQL(policy, env, buffer_size=10, seed=0, device="cpu", **kwargs)
    model.observation_space.seed(0)
    return model


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_deterministic(case: str, format: Any, tmp_path: Path) -> None:
    """Batches of other sizes than the one that was traced."""
    model = model_of(case)
    file = ExportedPolicy(model.export(tmp_path / "policy", format=format))
    for size in (1, 9, 40):
        obs = sample(model.observation_space, size)
        expected = model.predict(obs, deterministic=True)[0]
        actions = file.predict(obs)[0]
        assert actions.dtype == expected.dtype
        np.testing.assert_allclose(actions, expected, atol=3e-5, rtol=0.0)
    if isinstance(model.action_space, spaces.Box) and case != "images":  # a fixed particle for all would be no choice
        assert len(np.unique(np.round(expected.reshape(len(expected), -1), 3), axis=0)) > 1


def test_it_says_what_it_does(tmp_path: Path) -> None:
    rules = {"continuous": "best of 16 particles by Q", "dict, discrete": "largest Q"}
    for case, rule in rules.items():
        metadata = ExportedPolicy(model_of(case).export(tmp_path / "policy")).metadata
        assert (metadata["algorithm"], metadata["action"]) == ("SoftQL", rule)
    file = model_of("continuous").export(tmp_path / "sampled", format="torchscript", deterministic=False)
    assert ExportedPolicy(file).metadata["action"] == "sampled"
    for env, rule in ((RandomEnv(), "mean"), (RandomDiscreteEnv(), "most probable")):
        metadata = ExportedPolicy(SoftAC("MlpPolicy", env, buffer_size=10).export(tmp_path / "other")).metadata
        assert (metadata["algorithm"], metadata["action"]) == ("SoftAC", rule)


@pytest.mark.parametrize("format", FORMATS)
def test_with_normalisation(format: Any, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([RandomEnv]), clip_obs=0.7)
    model = SoftQL("MlpPolicy", env, learning_starts=1000, seed=0, device="cpu").learn(50)
    obs = 3.0 * np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    file = ExportedPolicy(model.export(tmp_path / "policy", format=format, vec_normalize=env))
    expected = model.predict(env.normalize_obs(obs), deterministic=True)[0]
    np.testing.assert_allclose(file.predict(obs)[0], expected, atol=1e-5)


def test_samples_of_continuous_actions(tmp_path: Path) -> None:
    """The same distribution as that of ``predict()``: mean and spread of 4,000 samples of one state."""
    model = model_of("continuous")
    file = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript", deterministic=False))
    obs = np.tile(sample(model.observation_space, 1), (4000, 1))
    samples = file.predict(obs)[0], model.predict(obs, deterministic=False)[0]
    for statistic in (np.mean, np.std):
        left, right = (statistic(each, axis=0) for each in samples)
        np.testing.assert_allclose(left, right, atol=0.03)
    assert samples[0].std() > 0.01


@pytest.mark.parametrize("case", ["two critics, Gaussian, matrix", "mean of critics, more noise", "discrete from -1", "dict"])
def test_samples_are_those_of_the_model(case: str, tmp_path: Path) -> None:
    """The same random numbers give the same actions as ``predict()``, and others are drawn at each call."""
    model = model_of(case)
    obs = sample(model.observation_space, 50)
    file = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript", deterministic=False))
    th.manual_seed(3)
    actions = file(obs)
    th.manual_seed(3)
    np.testing.assert_allclose(actions, model.predict(obs)[0], atol=1e-5)
    assert not np.array_equal(file(obs), actions)


@pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="needs oneDNN")  # type: ignore[no-untyped-call]
@pytest.mark.parametrize("format", FORMATS)
def test_networks_so_large_that_onednn_multiplies(format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: its operations have no place in a file."""
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(matmul, "LARGE_NETWORK", matmul.LARGE)
    model = SoftQL("MlpPolicy", RandomEnv(), buffer_size=10, seed=0, device="cpu", policy_kwargs={"n_critics": 2})
    obs = sample(model.observation_space, 3)
    file = ExportedPolicy(model.export(tmp_path / "policy", format=format))
    np.testing.assert_allclose(file(obs), model.predict(obs, deterministic=True)[0], atol=1e-5)


def test_samples_of_discrete_actions(tmp_path: Path) -> None:
    """At the temperature of the model."""
    model = SoftQL("MlpPolicy", RandomDiscreteEnv(3), ent_coef=0.05, buffer_size=10, seed=0, device="cpu", **net())
    file = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript", deterministic=False))
    obs = np.tile(sample(model.observation_space, 1), (4000, 1))
    with th.no_grad():
        expected = th.softmax(model.critic.q_values(th.as_tensor(obs[:1]))[0, 0] / 0.05, dim=0).numpy()
    shares = np.bincount(file.predict(obs)[0], minlength=3) / 4000
    np.testing.assert_allclose(shares, expected, atol=0.03)
    assert expected.max() - expected.min() > 0.03


class TestActionsThatAreAsGood:
    """Rounding may prefer another one of them, in the file and in float64."""

    @staticmethod
    def tied(n_particles: int = 4) -> Any:
        """All critics say 0, so that any particle may be taken."""
        model = SoftQL("MlpPolicy", RandomEnv(), kernel_particles=n_particles, buffer_size=10, seed=0, device="cpu", **net())
        with th.no_grad():
            for parameter in model.critic.q_networks.output.parameters():
                parameter.zero_()
        model.observation_space.seed(0)
        return model

    def test_another_particle_is_no_error(self) -> None:
        model = self.tied()
        module = export._Exported(model.policy, True, None, "SoftQL")
        obs = sample(model.observation_space, 20)
        first = module.act(obs)
        with th.no_grad():
            noise = model.actor.fixed_noise[2].expand(20, 1, -1)
            third = module._to_environment(model.actor.particles(th.as_tensor(obs), noise).actions.squeeze(1)).numpy()
        assert np.abs(first - third).max() > 0.05
        assert module.distance(third, first, obs).max() < 1e-6

    def test_other_actions_are_errors(self) -> None:
        model = self.tied()
        module = export._Exported(model.policy, True, None, "SoftQL")
        obs = sample(model.observation_space, 20)
        expected = module.act(obs)
        assert module.distance(expected + 1e-3, expected, obs).min() > 10 * export.TOLERANCE
        assert module.distance(expected, expected + 1e-3, obs).min() > 10 * export.TOLERANCE

    def test_a_worse_particle_is_an_error(self) -> None:
        model = model_of("continuous")
        module = export._Exported(model.policy, True, None, "SoftQL")
        obs = sample(model.observation_space, 20)
        with th.no_grad():
            actions, q = module.acting.candidates(th.as_tensor(obs))  # type: ignore[operator]  # ours
            worst = module._to_environment(actions[th.arange(20), q.argmin(dim=1)]).numpy()
        assert (q.amax(dim=1) - q.amin(dim=1)).min() > 2e-4
        assert module.distance(worst, module.act(obs), obs).max() > 1e-2

    @pytest.mark.parametrize("format", FORMATS)
    def test_it_is_exported(self, format: Any, tmp_path: Path) -> None:
        assert self.tied().export(tmp_path / "policy", format=format).is_file()

    def test_a_file_that_differs_is_not_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_of("continuous")
        original = ExportedPolicy.__call__
        monkeypatch.setattr(ExportedPolicy, "__call__", lambda file, obs: original(file, obs) + np.float32(0.01))
        with pytest.raises(RuntimeError, match="was not written: its actions differ"):
            model.export(tmp_path / "policy", format="torchscript")
        assert list(tmp_path.iterdir()) == []


def test_a_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = model_of("continuous")
    model.policy.set_training_mode(True)
    model.critic.q_networks.hidden[0].eval()  # as a user may freeze a part
    before = {name: module.training for name, module in model.policy.named_modules()}
    state = th.get_rng_state()
    model.export(tmp_path / "policy", format="torchscript")
    assert th.equal(th.get_rng_state(), state)
    assert {name: module.training for name, module in model.policy.named_modules()} == before
    assert len(set(before.values())) == 2
    with pytest.raises(ValueError, match="an exported policy"):
        SoftQL.load(tmp_path / "policy.pt")
