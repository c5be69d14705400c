"""Exported files against ``predict()``, for every kind of policy; their metadata; and what is refused."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_softac import SoftAC
from sb3_softac.export import ExportedPolicy
from sb3_softac.files import export
from tests.helpers import SMALL, RandomDiscreteEnv, RandomEnv, fill_buffer, make_model

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
FORMATS: list[Any] = ["onnx", "torchscript"]


class SpaceEnv(gym.Env[Any, Any]):
    """An environment with given spaces."""

    def __init__(self, observation_space: Any, action_space: Any = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (2,)) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def sample(space: Any, size: int) -> Any:
    """A batch of observations."""
    draws = [space.sample() for _ in range(size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([draw[key] for draw in draws]) for key in space.spaces}
    return np.stack(draws)


class Joined(BaseFeaturesExtractor):
    """All observations of a Dict side by side; SB3's own extractor names modules after keys, which some keys cannot be."""

    def forward(self, observations: Any) -> th.Tensor:
        return th.cat([observations[key] for key in sorted(observations)], dim=1)


VECTOR = spaces.Box(-np.inf, np.inf, (4,))
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "continuous": ("MlpPolicy", RandomEnv(), {"policy_kwargs": dict(SMALL)}),
    "gSDE": ("MlpPolicy", RandomEnv(), {"policy_kwargs": dict(SMALL), "use_sde": True}),
    "free log std": ("MlpPolicy", RandomEnv(), {"policy_kwargs": {**SMALL, "log_std_mode": "free"}, "value_network": True}),
    "wide bounds": (
        "MlpPolicy",
        SpaceEnv(VECTOR, spaces.Box(np.array([-1000.0, -1.0], np.float32), np.array([5.0, 2000.0], np.float32))),
        {},
    ),
    "matrix": ("MlpPolicy", SpaceEnv(VECTOR, spaces.Box(-3.0, 1.0, (2, 3))), {"policy_kwargs": dict(SMALL)}),
    "row": ("MlpPolicy", SpaceEnv(VECTOR, spaces.Box(-3.0, 1.0, (1, 3))), {"policy_kwargs": dict(SMALL)}),
    "half precision": ("MlpPolicy", SpaceEnv(VECTOR, spaces.Box(-3.0, 1.0, (2,), np.float16)), {}),
    "discrete": ("MlpPolicy", RandomDiscreteEnv(), {"policy_kwargs": dict(SMALL)}),
    "discrete from -1": ("MlpPolicy", RandomDiscreteEnv(start=-1), {"policy_kwargs": dict(SMALL)}),
    "float64 observations": ("MlpPolicy", SpaceEnv(spaces.Box(-1.0, 1.0, (3, 2), np.float64)), {}),
    "one-hot observations": ("MlpPolicy", SpaceEnv(spaces.Discrete(7)), {}),
    "several one-hot observations": ("MlpPolicy", SpaceEnv(spaces.MultiDiscrete([3, 5])), {}),
    "binary observations": ("MlpPolicy", SpaceEnv(spaces.MultiBinary(6)), {}),
    "images": ("CnnPolicy", FakeImageEnv(36, 36, discrete=False), {"policy_kwargs": dict(SMALL)}),
    "images, discrete": ("CnnPolicy", FakeImageEnv(36, 36), {"policy_kwargs": dict(SMALL)}),
    "dict": ("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), {"policy_kwargs": dict(SMALL)}),
    "dict, discrete": ("MultiInputPolicy", SimpleMultiObsEnv(), {"policy_kwargs": dict(SMALL)}),
}


def model_of(case: str) -> SoftAC:
    policy, env, kwargs = CASES[case]
    return SoftAC(policy, env, buffer_size=10, seed=0, device="cpu", **kwargs)


class TestFilesEqualTheModel:
    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("case", CASES)
    def test_deterministic(self, case: str, format: Any, tmp_path: Path) -> None:
        """Read with the libraries themselves, not with ours; batches of two sizes; actions the environment accepts."""
        model = model_of(case)
        space: Any = model.observation_space
        path = model.export(tmp_path / "policy", format=format)
        assert path.name == {"onnx": "policy.onnx", "torchscript": "policy.pt"}[format]
        for size in (1, 9):
            obs = sample(space, size)
            named = obs if isinstance(obs, dict) else {"observation": obs}
            if format == "onnx":
                session = onnxruntime.InferenceSession(str(path))
                assert {i.name for i in session.get_inputs()} == set(named)
                (actions,) = session.run(["action"], named)
            else:
                module: Any = th.jit.load(str(path))  # type: ignore[no-untyped-call]  # torch's own
                tensors = {name: th.as_tensor(part) for name, part in named.items()}
                actions = module(tensors if isinstance(obs, dict) else tensors["observation"]).numpy()
            expected = model.predict(obs, deterministic=True)[0]
            assert actions.dtype == expected.dtype
            unit = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(actions, expected, atol=1e-5 * unit, rtol=0.0)
            dtype = model.action_space.dtype
            assert all(model.action_space.contains(action.astype(dtype)) for action in actions)

    @pytest.mark.parametrize("format", FORMATS)
    def test_with_normalisation(self, format: Any, tmp_path: Path) -> None:
        env = VecNormalize(DummyVecEnv([RandomEnv]), clip_obs=0.7)
        model = SoftAC("MlpPolicy", env, learning_starts=1000, seed=0, device="cpu").learn(50)
        obs = 3.0 * np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        assert (np.abs(env.normalize_obs(obs)) == 0.7).any()  # type: ignore[arg-type]  # clipped
        file = ExportedPolicy(model.export(tmp_path / "policy", format=format, vec_normalize=env))
        expected = model.predict(env.normalize_obs(obs), deterministic=True)[0]
        np.testing.assert_allclose(file(obs), expected, atol=1e-5)
        assert np.abs(file(obs) - model.predict(obs, deterministic=True)[0]).max() > 1e-3
        assert file.metadata["normalised"] == ["observation"]

    @pytest.mark.parametrize("format", FORMATS)
    def test_with_normalisation_of_some_keys(self, format: Any, tmp_path: Path) -> None:
        images_first = VecTransposeImage(DummyVecEnv([lambda: SimpleMultiObsEnv(discrete_actions=False)]))
        env = VecNormalize(images_first, norm_obs_keys=["vec"])
        model = SoftAC("MultiInputPolicy", env, learning_starts=1000, seed=0, device="cpu", buffer_size=50).learn(30)
        obs = sample(model.observation_space, 5)
        file = ExportedPolicy(model.export(tmp_path / "policy", format=format, vec_normalize=env))
        statistics: Any = env.obs_rms
        vec = (obs["vec"] - statistics["vec"].mean) / np.sqrt(statistics["vec"].var + env.epsilon)
        normalised = {**obs, "vec": np.clip(vec, -env.clip_obs, env.clip_obs).astype(np.float32)}
        np.testing.assert_allclose(file(obs), model.predict(normalised, deterministic=True)[0], atol=1e-5)
        assert file.metadata["normalised"] == ["vec"]

    def test_statistics_of_other_observations(self, tmp_path: Path) -> None:
        env = VecNormalize(DummyVecEnv([lambda: SpaceEnv(spaces.Box(-1.0, 1.0, (5,)))]))
        with pytest.raises(ValueError, match=r"`vec_normalize` has statistics of shape \(5,\) for 'observation', but the obs"):
            make_model().export(tmp_path / "policy", vec_normalize=env)

    def test_a_warning_if_the_file_would_not_normalise(self, tmp_path: Path) -> None:
        model = SoftAC("MlpPolicy", VecNormalize(DummyVecEnv([RandomEnv])), buffer_size=10)
        with pytest.warns(UserWarning, match="trained with normalised observations, but the file will not normalise them"):
            model.export(tmp_path / "policy")

    @pytest.mark.parametrize("format", FORMATS)
    def test_observations_so_large_that_float32_is_not_exact(self, format: Any, tmp_path: Path) -> None:
        for seed in range(4):
            env = SpaceEnv(spaces.Box(-1e4, 1e4, (17,)))
            model = SoftAC("MlpPolicy", env, buffer_size=10, seed=seed, device="cpu")
            obs = sample(env.observation_space, 20)
            file = ExportedPolicy(model.export(tmp_path / "policy", format=format))
            np.testing.assert_allclose(file(obs), model.predict(obs, deterministic=True)[0], atol=1e-3)

    @pytest.mark.parametrize("format", FORMATS)
    def test_keys_that_modules_cannot_have(self, format: Any, tmp_path: Path) -> None:
        space = spaces.Dict({"type": spaces.Box(-1.0, 1.0, (2,)), "a.b": spaces.Box(-1.0, 1.0, (3,))})
        env = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space)]))
        kwargs = {"features_extractor_class": Joined, "features_extractor_kwargs": {"features_dim": 5}}
        model = SoftAC("MultiInputPolicy", env, buffer_size=10, device="cpu", policy_kwargs=kwargs)
        file = ExportedPolicy(model.export(tmp_path / "policy", format=format, vec_normalize=env))
        obs = sample(space, 4)
        np.testing.assert_allclose(file(obs), model.predict(env.normalize_obs(obs), deterministic=True)[0], atol=1e-5)

    @pytest.mark.parametrize("format", FORMATS)
    def test_the_random_numbers_of_the_training_stay(self, format: Any, tmp_path: Path) -> None:
        draws = []
        for exports in (False, True):
            model = make_model()
            model.observation_space.seed(0)
            if exports:
                model.export(tmp_path / "policy", format=format)
            draws.append([float(th.rand(())), float(np.random.rand()), *model.observation_space.sample()])  # noqa: NPY002
        assert draws[0] == draws[1]

    def test_after_training_and_without_an_environment(self, tmp_path: Path) -> None:
        model = make_model()
        fill_buffer(model)
        model.train(3, batch_size=16)
        model.save(tmp_path / "model")
        obs = sample(model.observation_space, 6)
        file = ExportedPolicy(SoftAC.load(tmp_path / "model").export(tmp_path / "policy"))
        np.testing.assert_allclose(file(obs), model.predict(obs, deterministic=True)[0], atol=1e-5)
        model.train(3, batch_size=16)  # the export has left the networks as they were

    @pytest.mark.parametrize("kind", ["continuous", "discrete from -1", "dict, discrete"])
    def test_stochastic_files_sample_from_the_policy(self, kind: str, tmp_path: Path) -> None:
        """The same random numbers give the same actions as ``predict()``, and others are drawn at each call."""
        model = model_of(kind)
        obs = sample(model.observation_space, 200)
        file = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript", deterministic=False))
        th.manual_seed(3)
        actions = file(obs)
        th.manual_seed(3)
        np.testing.assert_allclose(actions, model.predict(obs)[0], atol=1e-5)
        assert not np.array_equal(file(obs), actions)
        assert file.predict(obs, deterministic=False)[0].shape == actions.shape


class TestMetadata:
    @pytest.mark.parametrize("format", FORMATS)
    def test_what_it_says(self, format: Any, tmp_path: Path) -> None:
        path = model_of("dict").export(tmp_path / "policy", format=format)
        if format == "onnx":
            text = {entry.key: entry.value for entry in onnx.load(path).metadata_props}["sb3_softac.json"]
        else:
            extra = {"sb3_softac.json": ""}
            th.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]  # torch's own
            text = extra["sb3_softac.json"]
        metadata = json.loads(text)
        assert metadata["algorithm"] == "SoftAC"
        assert metadata["deterministic"] is True
        assert metadata["inputs"] == ["img", "vec"]
        assert metadata["action_space"]["low"] == "0.0"
        assert metadata["observation_space"]["spaces"]["img"]["dtype"] == "uint8"

    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize(
        "other",
        [
            spaces.Box(-1.0, 1.0, (2,)),
            spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
            spaces.Discrete(3),
        ],
    )
    def test_another_action_space(self, format: Any, other: Any, tmp_path: Path) -> None:
        model = make_model()
        path = model.export(tmp_path / "policy", format=format)
        ExportedPolicy(path, model.observation_space, RandomEnv().action_space)
        with pytest.raises(ValueError, match=r"`action_space` is .*, but the file was exported for .*'Box'"):
            ExportedPolicy(path, action_space=other)
        with pytest.raises(ValueError, match=r"`observation_space` is .*, but the file was exported for"):
            ExportedPolicy(path, observation_space=spaces.Box(0.0, 1.0, (4,)))

    def test_other_discrete_spaces(self, tmp_path: Path) -> None:
        path = make_model(env=RandomDiscreteEnv(3)).export(tmp_path / "policy")
        for other in (spaces.Discrete(4), spaces.Discrete(3, start=1)):
            with pytest.raises(ValueError, match=r"`action_space` is .*'Discrete'"):
                ExportedPolicy(path, action_space=other)


class TestUse:
    @pytest.mark.parametrize("format", FORMATS)
    def test_evaluate_policy(self, format: Any, tmp_path: Path) -> None:
        model = SoftAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(SMALL), seed=0, device="cpu", buffer_size=10)
        file = ExportedPolicy(model.export(tmp_path / "policy", format=format))
        returns: list[Any] = [
            evaluate_policy(policy, make_vec_env("Pendulum-v1", seed=1), n_eval_episodes=2)[0] for policy in (model, file)
        ]
        assert returns[0] == pytest.approx(returns[1], rel=1e-3)

    @pytest.mark.parametrize("case", ["continuous", "discrete", "dict", "one-hot observations"])
    @pytest.mark.parametrize("format", FORMATS)
    def test_single_observations_of_another_precision(self, case: str, format: Any, tmp_path: Path) -> None:
        model = model_of(case)
        file = ExportedPolicy(model.export(tmp_path / "policy", format=format))
        obs: Any = model.observation_space.sample()
        expected, _ = model.predict(obs, deterministic=True)
        if case == "continuous":
            obs = obs.astype(np.float64)
        actions = file.predict(obs)[0]
        np.testing.assert_allclose(actions, expected, atol=1e-5)
        assert actions.shape == expected.shape

    def test_it_acts_as_it_was_exported(self, tmp_path: Path) -> None:
        file = ExportedPolicy(make_model().export(tmp_path / "policy"))
        with pytest.raises(ValueError, match="`deterministic` is False, but it must be True, as at the export"):
            file.predict(np.zeros((1, 4), np.float32), deterministic=False)

    @pytest.mark.parametrize("format", FORMATS)
    def test_other_files(self, format: Any, tmp_path: Path) -> None:
        model = make_model()
        model.save(tmp_path / "model.zip")
        for name in ("model.zip", "text.onnx"):
            (tmp_path / "text.onnx").write_text("no model")
            with pytest.raises(ValueError, match=f"{name}', which is no file that SoftAC.export wrote"):
                ExportedPolicy(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="where there is no file"):
            ExportedPolicy(tmp_path / "missing.onnx")
        path = model.export(tmp_path / "policy", format=format)
        with pytest.raises(ValueError, match=r"an exported policy: sb3_softac\.export\.ExportedPolicy loads it"):
            SoftAC.load(path)
        with pytest.raises(ValueError, match=r"`observation` has the shape \(2, 3\) for 'observation', but it must be"):
            ExportedPolicy(path).predict(np.zeros((2, 3), np.float32))


class TestRefusals:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"format": "tflite"}, "`format` is 'tflite', but it must be one of 'onnx', 'torchscript'"),
            ({"deterministic": False}, '`deterministic` is False, but it must be True with `format="onnx"`'),
            ({"deterministic": 1}, "`deterministic` is 1, but it must be True or False"),
            ({"vec_normalize": 3}, "`vec_normalize` is a int, but it must be None or a VecNormalize"),
        ],
    )
    def test_arguments(self, kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            make_model().export(tmp_path / "policy", **kwargs)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            (spaces.Dict({"action": VECTOR}), "the observation 'action' needs 'torchscript'"),
            (spaces.Dict({"0": VECTOR}), "the observation '0' needs 'torchscript'"),
            (spaces.Dict({"a": spaces.Box(0, 9, (2,), np.uint16)}), "the dtype uint16 of 'a' needs 'torchscript'"),
        ],
    )
    def test_what_onnx_files_cannot_have(self, space: Any, message: str, tmp_path: Path) -> None:
        model = SoftAC("MultiInputPolicy", SpaceEnv(space), buffer_size=10)
        with pytest.raises(ValueError, match=f"`format` is 'onnx', but {message}"):
            model.export(tmp_path / "policy")
        model.export(tmp_path / "policy", format="torchscript")

    def test_statistics_of_other_keys(self, tmp_path: Path) -> None:
        boxes = VecNormalize(DummyVecEnv([RandomEnv]))
        with pytest.raises(ValueError, match=r"`vec_normalize` has statistics of shape .* for 'observation'"):
            model_of("dict").export(tmp_path / "policy", vec_normalize=boxes)

    def test_sampling_with_gsde(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="`deterministic` is False, but it must be True with gSDE"):
            make_model(use_sde=True).export(tmp_path / "policy", format="torchscript", deterministic=False)

    @pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
    def test_without_onnx(self, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, missing, None)
        with pytest.raises(ImportError, match=f"ONNX files need {missing}: pip install onnx onnxruntime"):
            make_model().export(tmp_path / "policy")
        make_model().export(tmp_path / "policy", format="torchscript")

    @pytest.mark.parametrize("format", FORMATS)
    def test_paths_that_cannot_be_written(self, format: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OSError):  # noqa: PT011  # the system's own message
            make_model().export(tmp_path / "file" / "policy.bin", format=format)
        (tmp_path / "folder.bin").mkdir()
        with pytest.raises(IsADirectoryError, match="which is a folder"):
            make_model().export(tmp_path / "folder.bin", format=format)
        assert sorted(os.listdir(tmp_path)) == ["file", "folder.bin"]
        assert (tmp_path / "file").read_text() == "kept"

    @pytest.mark.parametrize("format", FORMATS)
    def test_a_file_that_differs_from_the_model_is_not_written(
        self, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wrong normalisation, as a stand-in for a mistake of an exporter; the file of before stays."""
        path = tmp_path / "policy.bin"
        path.write_text("before")
        env = VecNormalize(DummyVecEnv([RandomEnv]))
        model = SoftAC("MlpPolicy", env, learning_starts=1000, seed=0, device="cpu").learn(50)
        monkeypatch.setattr(export, "_Normalisation", lambda *_: th.nn.Identity())
        with pytest.raises(RuntimeError, match=r"its actions differ from those of the model by .*, which is more than"):
            model.export(path, format=format, vec_normalize=env)
        assert os.listdir(tmp_path) == ["policy.bin"]
        assert path.read_text() == "before"


def test_the_package_itself_needs_no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_onnx(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("onnx")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    __import__("importlib").reload(export)
