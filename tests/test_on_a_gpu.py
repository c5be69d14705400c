"""What only a GPU can show of critics, precision, buffers, checkpoints, files and ranks.

Gradient steps of the plain algorithms are compared in tests/engine. Sources of truth: eager mode, or the same on the CPU.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_softac import SoftAC, TensorReplayBuffer
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.export import ExportedPolicy
from tests.engine.test_joint import JOINT
from tests.engine.test_precision import at_rest, metrics
from tests.files.resume_runs import RUNS, Run, Stopped, Trained, several
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    parameters_of,
    restart_generators,
)
from tests.ranks import run_ranks
from tests.test_presets_modern import MODERN, small, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.* of the targets lie outside of `value_range`"),  # made rewards are large
]


class TestSteps:
    @pytest.mark.parametrize("name", MODERN)
    def test_captured_presets(self, name: str) -> None:
        eager, captured = (trained(name, compile, device="cuda") for compile in (False, "auto"))
        assert captured._engine.captures
        assert_close(eager, captured, tolerance=1e-3)

    @pytest.mark.parametrize("name", ["tqc", "crossq_small", "simba_v2", "bro", "flashsac"])
    def test_compiled_presets(self, name: str) -> None:
        eager, compiled = (trained(name, compile, device="cuda", policy_delay=1) for compile in (False, True))
        assert compiled._engine.compiles
        assert compiled._engine.captures
        assert_close(eager, compiled, tolerance=1e-3)

    @pytest.mark.parametrize("case", JOINT)
    def test_joint_passes(self, case: str) -> None:
        models = [build(compile, device="cuda", **JOINT[case]) for compile in (False, "auto")]
        for model in models:
            restart_generators()
            model.train(12, batch_size=32)
        assert_close(models[0], models[1], tolerance=1e-3)

    @pytest.mark.parametrize("name", MODERN)
    def test_as_on_a_cpu(self, name: str) -> None:
        """The gradients of one step, of the same batch; generators of devices differ, so there is no noise."""
        models = [build(False, device=device, **small(name, policy_delay=1)) for device in ("cpu", "cuda")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(th, "randn", lambda shape, device=None: th.zeros(shape, device=device))
            patch.setattr(th, "randn_like", lambda like: th.zeros_like(like))
            for model in models:
                restart_generators()
                model.train(1, batch_size=32)
        assert_close(models[0], SoftAC.load(_saved(models[1]), device="cpu"), tolerance=1e-3)

    @pytest.mark.parametrize("way", ["auto", True])
    def test_bfloat16(self, way: Any) -> None:
        exact, rounded, built = (
            metrics(at_rest(compile, precision=precision, device="cuda"))
            for compile, precision in ((False, "float32"), (False, "bfloat16"), (way, "bfloat16"))
        )
        assert exact != rounded
        np.testing.assert_allclose(rounded, exact, rtol=0.02, atol=0.01)
        np.testing.assert_allclose(built, rounded, rtol=1e-3, atol=1e-4)


def _saved(model: SoftAC) -> Any:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


class TestBuffers:
    @pytest.mark.parametrize("n_steps", [1, 3])
    def test_rows_of_tensors(self, n_steps: int) -> None:
        """The same rows are the same batch, wherever they are."""
        box, rng = RandomEnv(), np.random.default_rng(0)
        spaces: Any = (box.observation_space, box.action_space)
        options: Any = {"n_envs": 3, "n_steps": n_steps}
        buffers = [TensorReplayBuffer(90, spaces[0], spaces[1], device, **options) for device in ("cpu", "cuda")]
        for _ in range(40):
            obs, next_obs = rng.uniform(-1.0, 1.0, (2, 3, 4)).astype(np.float32)
            actions, rewards = rng.uniform(-1.0, 1.0, (3, 2)), rng.normal(size=3)
            dones: Any = rng.random(3) < 0.2
            infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(done and rng.random() < 0.5)} for done in dones]
            for buffer in buffers:
                buffer.add(obs, next_obs, actions, rewards, dones, infos)
        rows, envs = np.arange(30), np.arange(30) % 3
        theirs, ours = (buffer._get_samples(rows, None, envs) for buffer in buffers)
        for name, left, right in zip(theirs._fields, theirs, ours, strict=False):
            if left is not None and right is not None:
                assert right.device.type == "cuda"
                # sums of several rewards are rounded as each device adds
                th.testing.assert_close(right.cpu(), left, rtol=1e-6, atol=1e-6, msg=name)

    @pytest.mark.parametrize("discrete", [False, True])
    def test_trainings(self, discrete: bool) -> None:
        """Rows in tensors on the GPU, several environments, and statistics of observations there."""
        env = make_vec_env(RandomDiscreteEnv if discrete else RandomEnv, 3, seed=0)
        model = SoftAC(
            "MlpPolicy",
            env,
            replay_buffer_class=TensorReplayBuffer,
            normalize_observations=True,
            normalize_rewards=5.0,
            learning_starts=30,
            batch_size=16,
            buffer_size=300,
            policy_kwargs={"net_arch": [8]},
            device="cuda",
            seed=0,
        ).learn(300)
        assert model._engine.captures
        assert model._n_updates == 90
        moments = model.policy.normalizer.moments[0]  # type: ignore[union-attr]
        assert moments.mean.device.type == "cuda"
        assert all(value.isfinite().all() for _, value in parameters_of(model))


class TestFiles:
    @pytest.mark.parametrize("compile", [False, "auto"])
    @pytest.mark.parametrize("discrete", [False, True])
    def test_stopped_and_resumed_equals_uninterrupted(
        self, discrete: bool, compile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights, moments, rows and generators, to the last bit."""
        task = "CartPole-v1" if discrete else "Pendulum-v1"
        options = {"device": "cuda", "compile": compile, "normalize_observations": True}
        monkeypatch.setitem(RUNS, "gpu", Run(lambda: several(task, 2), options, total=320, stops=207))
        whole = Trained("gpu", tmp_path / "whole", writes=False)
        expected, state = whole.digest(), th.cuda.get_rng_state()
        first = Trained("gpu", tmp_path / "cut", at=207)
        assert first.stopped
        second = Trained("gpu", tmp_path / "cut")
        assert 0 < second.resumed_at <= 207
        assert second.model.device.type == "cuda"
        found = second.digest()
        assert [name for name, value in expected.items() if found[name] != value] == []
        assert th.equal(th.cuda.get_rng_state(), state)

    def test_a_checkpoint_goes_on_on_a_cpu(self, tmp_path: Path) -> None:
        env = make_vec_env("Pendulum-v1", 2, seed=0)
        options: Any = {"policy_kwargs": {"net_arch": [8]}, "learning_starts": 20, "batch_size": 8, "buffer_size": 90}
        model = SoftAC("MlpPolicy", env, device="cuda", seed=0, **options)

        class Stops(ExactCheckpointCallback):
            def _on_step(self) -> bool:
                super()._on_step()
                if self.num_timesteps >= 100:
                    raise Stopped
                return True

        callback = Stops(20, tmp_path / "run")
        with pytest.raises(Stopped):
            model.learn(200, callback=callback)
        callback.release()
        resumed = SoftAC.resume(tmp_path / "run", make_vec_env("Pendulum-v1", 2, seed=0), device="cpu")
        assert resumed.num_timesteps >= 80
        assert resumed.learn(200).num_timesteps == 200
        assert {value.device.type for _, value in parameters_of(resumed)} == {"cpu"}

    @pytest.mark.parametrize("name", ["tqc", "crossq_small", "simba_v2", "flashsac"])
    def test_saved_and_exported(self, name: str, tmp_path: Path) -> None:
        model = SoftAC("MlpPolicy", RandomEnv(), device="cuda", seed=0, **small(name, gradient_steps=1)).learn(60)
        model.save(tmp_path / "model")
        loaded = {device: SoftAC.load(tmp_path / "model", device=device) for device in ("cuda", "cpu")}
        assert_same_parameters(model, loaded["cuda"])
        observations = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
        expected = model.predict(observations, deterministic=True)[0]
        np.testing.assert_allclose(loaded["cpu"].predict(observations, deterministic=True)[0], expected, atol=1e-5)
        exported = ExportedPolicy(model.export(tmp_path / "policy", format="torchscript"))
        np.testing.assert_allclose(exported.predict(observations)[0], expected, atol=1e-5)


def train_on_the_gpu() -> dict[str, Any]:
    model = SoftAC(
        "MlpPolicy",
        RandomEnv(),
        policy_kwargs={"net_arch": [8], "normalization": "batch_renorm"},
        normalize_observations=True,
        learning_starts=20,
        batch_size=8,
        buffer_size=200,
        device="cuda",
        distributed=True,
        seed=0,
    ).learn(120, log_interval=None)
    weights = {name: value.cpu().numpy() for name, value in parameters_of(model)}
    return {"weights": weights, "updates": model._n_updates, "steps": model.num_timesteps}


@pytest.mark.parametrize("size", [1, 2])
def test_ranks(size: int) -> None:
    """One rank by NCCL; where two have to share a GPU, which NCCL refuses, by gloo."""
    results = run_ranks(train_on_the_gpu, size)
    assert all(good for good, _ in results), results
    first, *others = [result for _, result in results]
    assert (first["updates"], first["steps"]) == (50 if size == 2 else 100, 120)
    assert all(np.isfinite(value).all() for value in first["weights"].values())
    for other in others:
        for name, value in first["weights"].items():
            np.testing.assert_array_equal(other["weights"][name], value, err_msg=name)
