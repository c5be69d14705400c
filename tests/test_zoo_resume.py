"""RL Zoo's runs that were killed go on with ``-i FOLDER``: against the run that was not, bit for bit."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np
import pytest
import rl_zoo3.train
import torch as th
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC, SoftQL, zoo, zoo_resume
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.zoo_algorithms import ALGORITHMS
from tests import test_zoo
from tests.test_zoo import PENDULUM, PYTHON, Experiment

# RL Zoo leaves files of its environments to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
experiment = test_zoo.experiment  # a fixture
#: at which step of each environment the run kills itself; never if it is not set
KILL = "SB3_SOFTAC_TEST_KILL"
SMALL = ["policy_kwargs:dict(net_arch=[8])", "learning_starts:50", "buffer_size:400", "learning_rate:lin_1e-3"]
EVALUATED = ["--eval-freq", "110", "--eval-episodes", "1"]
SAVED = ["--save-freq", "100", "--save-replay-buffer"]


class Killer(BaseCallback):
    """Ends its process as ``kill -9`` does, at some moment in the 30 ms after a step."""

    def _on_step(self) -> bool:
        if str(self.n_calls) == os.environ.get(KILL):
            threading.Timer(SystemRandom().uniform(0, 0.03), os.kill, [os.getpid(), signal.SIGKILL]).start()
        return True


def train(folder: Path, *arguments: str, kill: int = 0) -> str:
    """Run the literal command in a process of its own; what it has printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), KILL: str(kill)}
    command = [*PYTHON, "-m", "rl_zoo3.train", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == (-signal.SIGKILL if kill else 0), result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def train_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run the function behind the command in this process."""
    n_threads = th.get_num_threads()

    def call(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        rl_zoo3.train.train()
        return sys.argv

    zoo.register()
    monkeypatch.chdir(tmp_path)
    yield call
    th.set_num_threads(n_threads)


def episodes(folder: Path) -> list[list[str]]:
    """What Monitor has written, without the time."""
    files = sorted(folder.glob("*.monitor.csv"))
    return [[line.rpartition(",")[0] for line in path.read_text().splitlines()[1:]] for path in files]


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, th.Tensor | np.ndarray):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second), strict=True)
    else:
        assert first == second


def assert_same_runs(one: Path, other: Path) -> None:
    """Models with optimizers, the best ones, replay buffers, evaluations, episodes, statistics."""
    models = [SoftAC.load(folder / "Pendulum-v1.zip") for folder in (one, other)]
    assert_same(models[0].get_parameters(), models[1].get_parameters())
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "ep_info_buffer"):
        first, second = (getattr(model, name) for model in models)
        assert_same(*([{**e, "t": 0} for e in value] if name == "ep_info_buffer" else value for value in (first, second)))
    assert_same(*(SoftAC.load(folder / "best_model.zip").get_parameters() for folder in (one, other)))
    for model, folder in zip(models, (one, other), strict=True):
        model.load_replay_buffer(folder / "replay_buffer.pkl")
    buffers = [vars(model.replay_buffer) for model in models]
    assert_same(*({name: value for name, value in buffer.items() if isinstance(value, np.ndarray)} for buffer in buffers))
    with np.load(one / "evaluations.npz") as first, np.load(other / "evaluations.npz") as second:
        assert len(first["timesteps"]) >= 3
        assert_same(dict(first), dict(second))
    assert_same(episodes(one), episodes(other))
    assert len(episodes(one)[0]) >= 2


class TestKilled:
    @pytest.mark.parametrize("more", [[], ["normalize:True", "n_envs:2"]], ids=["plain", "VecNormalize"])
    def test_a_run_that_goes_on_is_the_one_that_was_not_killed(self, more: list[str], train_here: Any, tmp_path: Path) -> None:
        killer = ["-params", *SMALL, *more, "callback:tests.test_zoo_resume.Killer"]
        command = [*PENDULUM, "--seed", "3", "-n", "440", "--num-threads", "1", *EVALUATED, *SAVED, *killer]
        kept = train_here(*command, "-f", "whole")
        assert kept == ["train.py", *command, "-f", "whole"]
        train(tmp_path, *command, kill=330 // (1 + bool(more)))
        whole, killed = (tmp_path / name / "softac" / "Pendulum-v1_1" for name in ("whole", "logs"))
        assert not (killed / "Pendulum-v1.zip").exists()
        described = {name: (killed / "Pendulum-v1" / name).read_bytes() for name in ("config.yml", "args.yml")}
        printed = train(tmp_path, *PENDULUM, "-i", "logs/softac/Pendulum-v1_1")
        assert "Going on from step 3" in printed
        assert " of 440, in logs/softac/Pendulum-v1_1" in printed
        assert_same_runs(whole, killed)
        for name, content in described.items():
            assert (killed / "Pendulum-v1" / name).read_bytes() == content
        assert (killed / "Pendulum-v1" / "command.txt").read_text().count("rl_zoo3.train") == 2
        assert [path.name for path in (tmp_path / "logs" / "softac").iterdir()] == ["Pendulum-v1_1"]
        assert len(list((killed / zoo_resume.CHECKPOINTS).glob("checkpoint-*"))) == 2
        if more:
            statistics = [VecNormalize.load(f"{f}/Pendulum-v1/vecnormalize.pkl", _one_env()) for f in (whole, killed)]
            assert_same(vars(statistics[0].obs_rms), vars(statistics[1].obs_rms))
            assert_same(vars(statistics[0].ret_rms), vars(statistics[1].ret_rms))


def _one_env() -> Any:
    env = SoftAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu").get_env()
    assert env is not None
    return env


class TestArguments:
    """In one process: runs of 120 steps."""

    @pytest.fixture
    def run(self, train_here: Any, tmp_path: Path) -> Path:
        train_here(*PENDULUM, "--seed", "3", "-n", "120", *EVALUATED, *SAVED, "-params", *SMALL)
        return tmp_path / "logs" / "softac" / "Pendulum-v1_1"

    def test_a_longer_total(self, run: Path, train_here: Any) -> None:
        with pytest.warns(UserWarning, match="to 150 steps instead of 120: its schedules change"):
            train_here(*PENDULUM, "-i", str(run), "-n", "150")
        assert SoftAC.load(run / "Pendulum-v1.zip").num_timesteps == 150
        train_here(*PENDULUM, "-i", f"{run}/")  # it goes on to the newer total, where it is already
        assert SoftAC.load(run / "Pendulum-v1.zip").num_timesteps == 150

    def test_the_whole_command_again(self, run: Path, train_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """A job that always starts with the same line."""
        command = [*PENDULUM, "--seed", "3", "-n", "120", *EVALUATED, *SAVED, "-params", *SMALL, f"--trained-agent={run}"]
        capsys.readouterr()
        assert train_here(*command) == ["train.py", *command[:-1]]
        assert "Going on from step 120 of 120" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--seed", "4"], "--seed is 4, but the run in .* has 3: .* Leave out --seed"),
            (["--eval-freq", "10"], "--eval-freq is 10, but the run in .* has 110"),
            (["--vec-env=subproc"], "--vec-env is 'subproc', but the run in .* has 'dummy'"),
            (["-params", "gamma:0.9"], "-params is {'gamma': 0.9}, but the run in"),
            (["--env", "CartPole-v1"], "a run on Pendulum-v1, but --env is CartPole-v1"),
            (["--algo", "softql"], "a run of --algo softac, but --algo is softql"),
        ],
    )
    def test_what_must_be_as_it_was(self, given: list[str], message: str, run: Path, train_here: Any) -> None:
        before = sorted(path.name for path in run.parent.rglob("*"))
        with pytest.raises(ValueError, match=message):
            train_here(*PENDULUM, "-i", str(run), *given)
        assert sorted(path.name for path in run.parent.rglob("*")) == before

    @pytest.mark.parametrize("name", ["config.yml", "args.yml"])
    def test_a_description_that_is_missing(self, name: str, run: Path, train_here: Any) -> None:
        (run / "Pendulum-v1" / name).unlink()
        with pytest.raises(ValueError, match=name):
            train_here(*PENDULUM, "-i", str(run))

    @pytest.mark.filterwarnings("ignore:The run goes on to 150 steps")
    def test_another_process(self, run: Path, train_here: Any, tmp_path: Path) -> None:
        code = f"from sb3_softac.files.checkpoint import Lock; Lock(__import__('pathlib').Path({str(run)!r}, 'checkpoints'))"
        holder = subprocess.Popen([*PYTHON, "-c", f"{code}; print(1, flush=True); input()"], stdin=-1, stdout=-1)
        assert holder.stdin is not None
        assert holder.stdout is not None
        with holder:
            holder.stdout.readline()
            with pytest.raises(ValueError, match=rf"process {holder.pid} on .* writes its checkpoints there"):
                train_here(*PENDULUM, "-i", str(run), "-n", "150")
            holder.stdin.write(b"\n")
            holder.stdin.flush()

    @pytest.mark.parametrize(("folder", "what"), [("missing", "there is no such folder"), (".", "it has none")])
    def test_no_checkpoints(self, folder: str, what: str, train_here: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"-i is '{folder}', but it must be a .zip file, or the folder of a run .*{what}"):
            train_here(*PENDULUM, "-i", folder)
        assert not (tmp_path / "logs").exists()

    def test_other_algorithms_take_files_only(self, run: Path, train_here: Any) -> None:
        with pytest.raises(AssertionError, match=r"must be a valid path to a \.zip file"):
            train_here("--algo", "sac", "--env", "Pendulum-v1", "-i", str(run))

    def test_a_file_of_the_same_run(self, run: Path, train_here: Any) -> None:
        train_here(*PENDULUM, "-i", str(run / "Pendulum-v1.zip"), "-n", "60", "--eval-freq", "-1")
        assert (run.parent / "Pendulum-v1_2" / "Pendulum-v1.zip").is_file()


class TestFilesOfEpisodes:
    @pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # an error there crashes Box2D
    def test_where_an_environment_begins_a_new_episode(self, train_here: Any, tmp_path: Path) -> None:
        """Nothing is removed: what comes after the checkpoint does not come again."""
        task = ["--algo", "softac", "--env", "LunarLander-v3"]
        train_here(*task, "-n", "300", "--eval-freq", "-1", *SAVED, "-params", *SMALL)
        (monitor,) = (tmp_path / "logs" / "softac" / "LunarLander-v3_1").glob("*.monitor.csv")
        before = monitor.read_text()
        with pytest.warns(UserWarning, match=r"(new episodes begin|to 600 steps)"):
            train_here(*task, "-i", "logs/softac/LunarLander-v3_1", "-n", "600")
        assert monitor.read_text().startswith(before)
        assert len(monitor.read_text().splitlines()) > len(before.splitlines()) >= 4

    def test_a_half_written_line(self, train_here: Any, tmp_path: Path) -> None:
        train_here(*PENDULUM, "-n", "250", "--eval-freq", "-1", *SAVED, "-params", *SMALL)
        monitor = tmp_path / "logs" / "softac" / "Pendulum-v1_1" / "0.monitor.csv"
        before = monitor.read_text()
        monitor.write_text(f"{before}-1000.0,200,0.5\n-9")
        with pytest.warns(UserWarning, match="to 450 steps"):
            train_here(*PENDULUM, "-i", "logs/softac/Pendulum-v1_1", "-n", "450")
        assert monitor.read_text().startswith(before)
        assert [row.split(",")[1] for row in monitor.read_text().splitlines()[2:]] == ["200", "200"]


class TestExperiments:
    def test_soft_q_learning(self, experiment: Experiment) -> None:
        given: dict[str, Any] = {"algo": "softql", "save_freq": 50, "save_replay_buffer": True, "n_timesteps": 100}
        first, model = experiment(hyperparams={"learning_starts": 20, "kernel_particles": 4}, **given)
        first.learn(model)
        second, model = experiment(trained_agent=first.save_path, **{**given, "n_timesteps": 130})
        assert type(model) is SoftQL
        assert (model.num_timesteps, model.kernel_particles, second.save_path) == (100, 4, first.save_path)
        with pytest.warns(UserWarning, match="to 130 steps instead of 100"):
            second.learn(model)
        assert model.num_timesteps == 130

    @pytest.mark.parametrize(
        "given",
        [{"save_freq": 50}, {"save_replay_buffer": True}, {"save_freq": 50, "save_replay_buffer": True, "algo": "sac"}],
    )
    def test_when_none_are_written(self, given: dict[str, Any], experiment: Experiment) -> None:
        manager, _ = experiment(**given)
        assert not any(isinstance(callback, ExactCheckpointCallback) for callback in manager.callbacks)

    def test_not_with_parallel_training(self, experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
        parallel = {"callback": "rl_zoo3.callbacks.ParallelTrainCallback", "train_freq": (1, "episode")}
        manager, _ = experiment(save_freq=50, save_replay_buffer=True, hyperparams=parallel)
        assert not any(isinstance(callback, ExactCheckpointCallback) for callback in manager.callbacks)
        assert "No exact checkpoints are written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "folder", "left"),
    [
        (["-i", "a/b", "-n", "5"], "a/b", ["-n", "5"]),
        (["-n", "5", "-i=a"], "a", ["-n", "5"]),
        (["--trained-agent", "a"], "a", []),
        (["--trained-agent=a"], "a", []),
        (["-i", "a.zip"], "", ["-i", "a.zip"]),
        (["-i", ""], "", ["-i", ""]),
        (["-i"], "", ["-i"]),
        (["-n", "5"], "", ["-n", "5"]),
    ],
)
def test_what_is_taken_from_a_command_line(argv: list[str], folder: str, left: list[str]) -> None:
    assert zoo_resume.CommandLine.take_folder(argv).folder == folder
    assert argv == left


def test_a_command_line_counts_once(tmp_path: Path) -> None:
    zoo_resume.look_at(["train.py", "-i", str(tmp_path)], ALGORITHMS["softac"])
    with pytest.raises(ValueError, match="it has none"):
        test_zoo.manager("softac")
    assert test_zoo.manager("softac").trained_agent == ""
    assert ExperimentManager(argparse.Namespace(), "sac", "Pendulum-v1", "logs").trained_agent == ""
