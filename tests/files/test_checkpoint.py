"""Folders of checkpoints: their layout, what is refused by name, and what happens to damaged ones and on full disks."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_softac import DamagedFileError, SoftAC, SoftQL
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files import checkpoint, segments
from sb3_softac.files.checkpoint import Folder
from sb3_softac.files.segments import BufferLog, rows_of
from tests.files.resume_runs import Stop, Stopped
from tests.helpers import CountingEnv, RandomDiscreteEnv, RandomEnv, assert_same_parameters, quick_model

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Features(BaseFeaturesExtractor):
    width = 5

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, self.width)
        self.layer = nn.Linear(observation_space.shape[0], self.width)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        result: th.Tensor = self.layer(observations)
        return result


def callback_in(folder: Path, save_freq: int = 10, **kwargs: Any) -> ExactCheckpointCallback:
    return ExactCheckpointCallback(save_freq, folder, **kwargs)


def train(folder: Path, total: int = 40, save_freq: int = 10, keep: int = 2, **kwargs: Any) -> SoftAC:
    """A training to its end, with checkpoints."""
    kwargs.setdefault("seed", 0)
    model = quick_model(kwargs.pop("env", None) or RandomEnv(), **kwargs)
    return model.learn(total, callback=callback_in(folder, save_freq, keep=keep))


def steps_in(folder: Path) -> list[int]:
    return Folder(folder).numbers()


def newest(folder: Path) -> Path:
    return Folder(folder).checkpoints()[0]


class TestFolder:
    def test_layout(self, tmp_path: Path) -> None:
        train(tmp_path / "new" / "folder")
        folder = tmp_path / "new" / "folder"
        names = ["checkpoint-000000000030", "checkpoint-000000000040", "lock", "run.json", "segments"]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert sorted(path.name for path in newest(folder).iterdir()) == ["arrays.safetensors", "manifest.json", "state.json"]
        run = json.loads((folder / "run.json").read_text())
        assert (run["algorithm"], run["environment"], run["n_envs"]) == ("SoftAC", "RandomEnv", 1)
        content = json.loads((newest(folder) / "manifest.json").read_text())["content"]
        assert (content["format"], content["n_steps"], content["run"]) == (1, 40, run)
        for name, entry in content["files"].items():
            assert (newest(folder) / name).stat().st_size == entry["bytes"]
        needed = {entry["file"] for entry in content["segments"]}
        assert needed <= {path.name for path in (folder / "segments").iterdir()}

    @pytest.mark.parametrize("keep", [1, 3])
    def test_only_the_newest_are_kept(self, keep: int, tmp_path: Path) -> None:
        train(tmp_path, 60, keep=keep)
        assert steps_in(tmp_path) == [60, 50, 40][:keep]

    def test_more_than_one_environment(self, tmp_path: Path) -> None:
        """The frequency counts steps of each environment, and a checkpoint follows where a rollout ends."""
        train(tmp_path, 60, save_freq=5, keep=9, env=make_vec_env(RandomEnv, 2), train_freq=4)
        assert steps_in(tmp_path) == [64, 56, 40, 32, 24, 16]

    def test_it_says_what_it_writes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        quick_model(RandomEnv()).learn(10, callback=callback_in(tmp_path, verbose=1))
        assert capsys.readouterr().out == f"Checkpoint: {tmp_path / 'checkpoint-000000000010'}\n"

    def test_a_frequency_beyond_the_end(self, tmp_path: Path) -> None:
        train(tmp_path, 15, save_freq=1000)
        assert steps_in(tmp_path) == [15]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"save_freq": 0}, "`save_freq` is 0"),
            ({"save_freq": 1.5}, "`save_freq` is 1.5"),
            ({"keep": 0}, "`keep` is 0"),
            ({"keep": True}, "`keep` is True"),
            ({"folder": ""}, "`folder` is ''"),
            ({"folder": None}, "`folder` is None"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            ExactCheckpointCallback(**{"save_freq": 10, "folder": tmp_path, **arguments})


class TestDamage:
    """The newest checkpoint is named, and the one before it is taken."""

    def expect_the_one_before(self, folder: Path, message: str) -> None:
        with pytest.warns(UserWarning, match=f"checkpoint-000000000040 is damaged: {message}.* The one before it is tried"):
            model = SoftAC.resume(folder, RandomEnv())
        assert model.num_timesteps == 30
        model.learn(callback=callback_in(folder))
        assert_same_parameters(model, quick_model(RandomEnv(), seed=0).learn(40))
        assert SoftAC.resume(folder, RandomEnv()).num_timesteps == 40

    @pytest.mark.parametrize("name", ["manifest.json", "state.json", "arrays.safetensors"])
    @pytest.mark.parametrize("how", ["missing", "half", "flipped"])
    def test_of_a_file(self, name: str, how: str, tmp_path: Path) -> None:
        train(tmp_path)
        self.damage(newest(tmp_path) / name, how)
        self.expect_the_one_before(tmp_path, f".*{re.escape(name)}")

    @pytest.mark.parametrize("how", ["missing", "half", "flipped"])
    def test_of_a_segment(self, how: str, tmp_path: Path) -> None:
        train(tmp_path)
        first, second = (Folder(tmp_path).read(path).segments for path in Folder(tmp_path).checkpoints())
        (own,) = {part.file for part in first} - {part.file for part in second}
        self.damage(tmp_path / "segments" / own, how)
        self.expect_the_one_before(tmp_path, f".*{re.escape(own)}")

    @staticmethod
    def damage(path: Path, how: str) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        if how != "missing":
            path.write_bytes(content if how == "flipped" else content[: len(content) // 2])

    def test_with_only_one_kept(self, tmp_path: Path) -> None:
        """What is damaged does not push out what is written after it."""
        train(tmp_path)
        (newest(tmp_path) / "state.json").unlink()
        with pytest.warns(UserWarning, match="is damaged"):
            model = SoftAC.resume(tmp_path, RandomEnv())
        with pytest.raises(Stopped):
            model.learn(callback=[callback_in(tmp_path, 3, keep=1), Stop(39)])
        assert steps_in(tmp_path) == [36]
        assert SoftAC.resume(tmp_path, RandomEnv()).num_timesteps == 36

    def test_of_all(self, tmp_path: Path) -> None:
        train(tmp_path)
        for path in Folder(tmp_path).checkpoints():
            (path / "state.json").unlink()
        with (
            pytest.warns(UserWarning, match="is damaged") as warned,
            pytest.raises(DamagedFileError, match=r"no checkpoint in it is whole: .*40 is damaged.*30 is damaged"),
        ):
            SoftAC.resume(tmp_path, RandomEnv())
        assert len(warned) == 2

    def test_a_newer_format(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "FORMAT", 2)
            train(tmp_path)
        with pytest.raises(DamagedFileError, match=r"of the format 2, which sb3-softac .* reads formats up to 1: update it"):
            SoftAC.resume(tmp_path, RandomEnv())


class TestRefusals:
    def test_no_folder_and_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must hold a checkpoint, which .* writes: there is no such folder"):
            SoftAC.resume(tmp_path / "nothing", RandomEnv())
        with pytest.raises(ValueError, match=r"must hold a checkpoint, which .* writes: it holds none"):
            SoftAC.resume(tmp_path, RandomEnv())

    @pytest.mark.parametrize(
        ("env", "message"),
        [
            (lambda: make_vec_env(RandomEnv, 2), "`env` has 2 as number of environments, but the checkpoint .* is of 1"),
            (
                lambda: CountingEnv(5),
                r"`env` has the observation space Box\(-1e\+06.*, but the checkpoint .* is of Box",
            ),
            (RandomDiscreteEnv, r"`env` has the action space Discrete\(3\), but the checkpoint .* is of Box"),
            (
                lambda: VecNormalize(make_vec_env(RandomEnv)),
                "`env` is made of DummyVecEnv in VecNormalize, but the run had DummyVecEnv: build it as it was",
            ),
        ],
    )
    def test_another_environment(self, env: Any, message: str, tmp_path: Path) -> None:
        train(tmp_path)
        with pytest.raises(ValueError, match=message):
            SoftAC.resume(tmp_path, env())

    def test_another_algorithm(self, tmp_path: Path) -> None:
        train(tmp_path)
        with pytest.raises(ValueError, match=r"of SoftAC, but this is SoftQL: SoftAC\.resume goes on with it"):
            SoftQL.resume(tmp_path, RandomEnv())

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"policy_kwargs": {"net_arch": [16]}}, r"`policy_kwargs` is \{'net_arch': \[16\]\}, but the run has .*\[8\]"),
            ({"gamma": 0.5}, "`gamma` is 0.5, but the run has 0.99: `resume` goes on with what the run has"),
            ({"train_freq": 3}, "`train_freq` is 3, but the run has .*2"),
            ({"learning_rate": 1.0}, r"`learning_rate` is 1\.0, but the run has 'lin_1e-3'"),
            ({"net_arch": [8]}, "`net_arch` is no option of SoftAC"),
        ],
    )
    def test_a_changed_option(self, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
        train(tmp_path, learning_rate="lin_1e-3", train_freq=2)
        with pytest.raises(ValueError, match=message):
            SoftAC.resume(tmp_path, RandomEnv(), **changed)

    @pytest.mark.parametrize("given", ["auto_0.5", "std_0.3", -0.7, "auto"])
    def test_a_target_entropy_by_name(self, given: Any, tmp_path: Path) -> None:
        """It is kept as a number, and may be repeated as it was given."""
        train(tmp_path, target_entropy=given)
        model = SoftAC.resume(tmp_path, RandomEnv(), target_entropy=given)
        with pytest.raises(ValueError, match=f"`target_entropy` is 'auto_0.25', but the run has {model.target_entropy}"):
            SoftAC.resume(tmp_path, RandomEnv(), target_entropy="auto_0.25")

    def test_a_network_whose_code_has_changed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No damage: both shapes are named, and no older checkpoint is tried."""
        train(tmp_path, policy_kwargs={"net_arch": [8], "features_extractor_class": Features})
        monkeypatch.setattr(Features, "width", 7)
        message = (
            r"`actor\.features_extractor\.layer\.weight` of `policy` is of the shape \(7, 4\) here, and of the shape \(5, 4\)"
        )
        with pytest.raises(ValueError, match=message) as raised:
            SoftAC.resume(tmp_path, RandomEnv())
        assert not isinstance(raised.value, DamagedFileError)

    def test_the_options_of_the_run_may_be_repeated(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {
            "policy_kwargs": {"net_arch": [8], "n_critics": 3},
            "learning_rate": "lin_1e-3",
            "train_freq": 2,
            "gamma": 0.9,
            "buffer_size": 70,
            "ent_coef": "auto_0.3",
            "target_entropy": "auto",
            "stats_window_size": 7,
            "n_steps": 2,
            "seed": 3,
            "gradient_steps": -1,
            "replay_buffer_kwargs": None,
            "action_noise": None,
            "verbose": 0,
        }
        train(tmp_path, **options)
        assert SoftAC.resume(tmp_path, RandomEnv(), **options).num_timesteps == 40
        train(tmp_path / "episodes", train_freq=(1, "episode"))
        SoftAC.resume(tmp_path / "episodes", RandomEnv(), train_freq=(1, "episode"))

    def test_a_folder_of_another_run(self, tmp_path: Path) -> None:
        train(tmp_path)
        other = quick_model(make_vec_env("Pendulum-v1", 2))
        message = (
            r"holds checkpoints of another run, SoftAC on 1 x RandomEnv \(run \w{8}\); this is SoftAC on 2 x Pendulum-v1 "
            r"\(run \w{8}\)\. Choose another folder, or go on with that run: SoftAC\.resume\("
        )
        with pytest.raises(ValueError, match=message):
            other.learn(20, callback=callback_in(tmp_path))
        assert other.num_timesteps == 0
        assert steps_in(tmp_path) == [40, 30]

    def test_the_same_model_that_begins_again(self, tmp_path: Path) -> None:
        """Its checkpoints would be older than those that are there, and thrown away at once."""
        model = train(tmp_path)
        with pytest.raises(ValueError, match="this run has a checkpoint at 40 steps, but the model is at 0"):
            model.learn(40, callback=callback_in(tmp_path))
        assert steps_in(tmp_path) == [40, 30]
        model.learn(20, callback=callback_in(tmp_path / "other"))
        assert steps_in(tmp_path / "other") == [20, 10]

    def test_the_same_model_that_goes_on(self, tmp_path: Path) -> None:
        train(tmp_path).learn(20, callback=callback_in(tmp_path), reset_num_timesteps=False)
        assert steps_in(tmp_path) == [60, 50]
        assert SoftAC.resume(tmp_path, RandomEnv()).num_timesteps == 60

    def test_a_model_that_another_one_has_overtaken(self, tmp_path: Path) -> None:
        with pytest.raises(Stopped):
            quick_model(RandomEnv()).learn(60, callback=[callback_in(tmp_path), Stop(35)])
        slow, fast = (SoftAC.resume(tmp_path, RandomEnv()) for _ in range(2))
        fast.learn(callback=callback_in(tmp_path))
        with pytest.raises(ValueError, match="this run has a checkpoint at 60 steps, but the model is at 30"):
            slow.learn(callback=callback_in(tmp_path))
        assert steps_in(tmp_path) == [60, 50]

    def test_an_algorithm_of_sb3(self, tmp_path: Path) -> None:
        model = SAC("MlpPolicy", RandomEnv(), buffer_size=50)
        with pytest.raises(ValueError, match="the model is a SAC: SB3's CheckpointCallback saves it"):
            model.learn(20, callback=callback_in(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_a_model_without_a_replay_buffer(self, tmp_path: Path) -> None:
        model = quick_model(RandomEnv())
        model.replay_buffer = None
        with pytest.raises(ValueError, match="needs the replay buffer of the model, but it is None"):
            model.learn(20, callback=callback_in(tmp_path))

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"learning_rate": lambda progress: 1e-3 * progress}, "learning_rate"),
            ({"policy_kwargs": {"net_arch": [8], "activation_fn": lambda: th.nn.ReLU()}}, r"policy_kwargs\['activation_fn'\]"),
        ],
    )
    def test_a_lambda_before_the_first_step(self, options: dict[str, Any], name: str, tmp_path: Path) -> None:
        model = quick_model(RandomEnv(), **options)
        message = f"`{name}` is a lambda, but a checkpoint holds .*: a function with a name, in a module, can be found again"
        with pytest.raises(ValueError, match=message):
            model.learn(20, callback=callback_in(tmp_path))
        assert model.num_timesteps == 0
        assert list(tmp_path.iterdir()) == []

    def test_noise_with_a_lambda_before_the_first_step(self, tmp_path: Path) -> None:
        noise = NormalActionNoise(np.zeros(2), np.ones(2))
        noise.scale = lambda: 1.0  # type: ignore[attr-defined]
        model = quick_model(RandomEnv(), action_noise=noise)
        with pytest.raises(ValueError, match=r"`action_noise\.scale` is a lambda: a function with a name"):
            model.learn(20, callback=callback_in(tmp_path))
        assert model.num_timesteps == 0

    def test_save_outside_of_learn(self, tmp_path: Path) -> None:
        callback = callback_in(tmp_path)
        quick_model(RandomEnv()).learn(20, callback=callback)
        with pytest.raises(ValueError, match="`save` writes checkpoints while `learn` runs"):
            callback.save()


HOLDER = """
import sys
from tests.files.test_checkpoint import callback_in, quick_model, RandomEnv
from stable_baselines3.common.callbacks import BaseCallback
from pathlib import Path
class Wait(BaseCallback):
    def _on_step(self):
        print("ready", flush=True)
        sys.stdin.read()
        return True
quick_model(RandomEnv()).learn(20, callback=[callback_in(Path(sys.argv[1])), Wait()])
"""


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            model = quick_model(RandomEnv())
            with pytest.raises(ValueError, match=rf"but process {holder.pid} on .* writes its checkpoints there"):
                model.learn(20, callback=callback_in(tmp_path))
        finally:
            holder.kill()
    model.learn(20, callback=callback_in(tmp_path))  # a lock ends with its process
    assert steps_in(tmp_path) == [20, 10]


class TestWritingFails:
    """One error, and the model goes on from where it is."""

    @pytest.mark.parametrize("number", range(4))
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_a_full_disk(self, code: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """At each file of a checkpoint: the segment, arrays, state, manifest."""
        model = quick_model(RandomEnv(), seed=0)
        fsync, files = os.fsync, 0

        def fail(descriptor: int) -> None:
            nonlocal files
            files += steps_in(tmp_path) == [20, 10] and stat.S_ISREG(os.fstat(descriptor).st_mode)
            if files == number + 1:
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match=f"{os.strerror(code)}: the file could not be written") as raised:
                model.learn(40, callback=callback_in(tmp_path))
        assert raised.value.errno == code
        assert str(tmp_path) in str(raised.value.filename)
        assert model.num_timesteps == 30
        assert list(tmp_path.glob(".*")) == []
        assert steps_in(tmp_path) == [20, 10]
        model.learn(10, callback=callback_in(tmp_path), reset_num_timesteps=False)
        assert steps_in(tmp_path)[0] == 40
        assert_same_parameters(model, SoftAC.resume(tmp_path, RandomEnv()))
        assert_same_parameters(model, quick_model(RandomEnv(), seed=0).learn(40))

    def test_a_lock_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("socket.gethostname", fail)  # the last that is asked before the file is written
        with pytest.raises(OSError, match="No space left on device: the file could not be written") as raised:
            quick_model(RandomEnv()).learn(20, callback=callback_in(tmp_path))
        assert raised.value.filename == str(tmp_path / "lock")

    def test_the_older_checkpoint_is_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        class Fill(Stop):
            def _on_step(self) -> bool:
                if self.num_timesteps == self.at:
                    monkeypatch.setattr(os, "fsync", fail)
                return True

        with pytest.raises(OSError, match="No space left"):
            quick_model(RandomEnv(), seed=0).learn(40, callback=[callback_in(tmp_path), Fill(25)])
        monkeypatch.undo()
        model = SoftAC.resume(tmp_path, RandomEnv())
        assert model.num_timesteps == 20
        model.learn(callback=callback_in(tmp_path))
        assert_same_parameters(model, quick_model(RandomEnv(), seed=0).learn(40))

    @pytest.mark.parametrize("again", [False, True])
    def test_a_folder_that_is_removed(self, again: bool, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"

        class Remove(Stop):
            def _on_step(self) -> bool:
                if self.num_timesteps == self.at:
                    shutil.rmtree(folder)
                    if again:
                        (folder / "segments").mkdir(parents=True)
                return True

        model = quick_model(RandomEnv(), seed=0)
        with pytest.raises(FileNotFoundError, match="the folder was removed during the training, and nothing was saved"):
            model.learn(40, callback=[callback_in(folder), Remove(25)])
        assert model.num_timesteps == 30
        model.learn(10, callback=callback_in(folder), reset_num_timesteps=False)
        assert_same_parameters(model, quick_model(RandomEnv(), seed=0).learn(40))
        assert_same_parameters(model, SoftAC.resume(folder, RandomEnv()))

    def test_segments_that_are_removed_are_written_again(self, tmp_path: Path) -> None:
        class Remove(Stop):
            def _on_step(self) -> bool:
                if self.num_timesteps == self.at:
                    for path in (tmp_path / "segments").iterdir():
                        path.unlink()
                return True

        model = quick_model(RandomEnv(), seed=0)
        model.learn(40, callback=[callback_in(tmp_path), Remove(25)])
        assert_same_parameters(model, SoftAC.resume(tmp_path, RandomEnv()))

    @pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        model = quick_model(RandomEnv())
        with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
            model.learn(20, callback=callback_in(tmp_path))
        assert model.num_timesteps == 0

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        model = quick_model(RandomEnv())
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
            model.learn(20, callback=callback_in(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "mine"
        assert model.num_timesteps == 0


class TestSegments:
    """What of the replay buffer is written, and kept."""

    def buffer(self, n_rows: int = 200, size: int = 40) -> ReplayBuffer:
        return ReplayBuffer(n_rows, spaces.Box(-1.0, 1.0, (size,)), spaces.Box(-1.0, 1.0, (1,)), "cpu")

    def add(self, buffer: ReplayBuffer, n: int, generator: np.random.Generator) -> None:
        shape = (1, *buffer.obs_shape)
        for _ in range(n):
            obs, following = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
            done = np.array([generator.random() < 0.1])
            buffer.add(obs, following, np.zeros((1, 1)), generator.normal(size=1), done, [{}])

    def bytes_in(self, folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.iterdir())

    def restored(self, folder: Path, buffer: ReplayBuffer, written: list[segments.Segment]) -> ReplayBuffer:
        arrays: dict[str, Any] = {}
        form = segments.state_of(buffer, arrays)
        new = self.buffer(buffer.buffer_size, buffer.obs_shape[0])
        segments.restore(folder, written, new, form, arrays, BufferLog(folder))
        return new

    def test_only_what_is_new_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segments, "SMALL", 1000)
        buffer, log, generator = self.buffer(), BufferLog(tmp_path), np.random.default_rng(0)
        self.add(buffer, 150, generator)
        log.write(buffer, 150)
        first = self.bytes_in(tmp_path)
        self.add(buffer, 10, generator)
        log.write(buffer, 160)
        assert self.bytes_in(tmp_path) - first == pytest.approx(first / 15, rel=0.3)
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("small", [0, 2000, 1 << 20])
    def test_random_histories(self, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows are added, ends of trajectories change later, rings wrap, files fail, processes end."""
        monkeypatch.setattr(segments, "SMALL", small)
        generator = np.random.default_rng(small)
        for _ in range(6):
            buffer = self.buffer(int(generator.integers(5, 60)), 6)
            log, n_steps = BufferLog(tmp_path), 0
            for _ in range(25):
                n = int(generator.integers(0, buffer.buffer_size + 9)) if generator.random() < 0.3 else 3
                self.add(buffer, n, generator)
                n_steps += n
                if buffer.size() and generator.random() < 0.5:
                    row = generator.integers(buffer.size())
                    buffer.timeouts[row] = generator.random() < 0.5
                    buffer.rewards[row] = generator.choice([0.0, 7.0])
                written = log.write(buffer, n_steps)
                other = self.restored(tmp_path, buffer, written)
                for name, rows in rows_of(buffer).items():
                    np.testing.assert_array_equal(rows, rows_of(other)[name])
                if generator.random() < 0.2:  # a new process
                    arrays: dict[str, Any] = {}
                    form, log = segments.state_of(buffer, arrays), BufferLog(tmp_path)
                    buffer = self.buffer(buffer.buffer_size, 6)
                    log.n_steps = n_steps
                    segments.restore(tmp_path, written, buffer, form, arrays, log)

    def test_what_no_checkpoint_needs_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segments, "SMALL", 1000)
        train(tmp_path, 200, buffer_size=60)
        needed = {part.file for path in Folder(tmp_path).checkpoints() for part in Folder(tmp_path).read(path).segments}
        assert {path.name for path in (tmp_path / "segments").iterdir()} == needed
        assert 2 <= len(needed) <= 10
        assert all(int(name.partition("-")[0]) >= 120 for name in needed)

    def test_many_checkpoints_have_few_segments(self, tmp_path: Path) -> None:
        train(tmp_path, 150, save_freq=1, gradient_steps=0)
        assert len(list((tmp_path / "segments").iterdir())) <= 3

    def test_a_replay_buffer_that_was_replaced_is_written_as_a_whole(self, tmp_path: Path) -> None:
        model = train(tmp_path)
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")
        model.learn(10, callback=callback_in(tmp_path), reset_num_timesteps=False)
        resumed = SoftAC.resume(tmp_path, RandomEnv())
        assert resumed.replay_buffer is not None
        assert model.replay_buffer is not None
        for name, rows in rows_of(model.replay_buffer).items():
            np.testing.assert_array_equal(rows, rows_of(resumed.replay_buffer)[name])
