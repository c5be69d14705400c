"""RL Zoo's literal commands under torchrun, on two ranks. Source of truth: a user's own script with the same settings."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rl_zoo3.utils
import yaml
from rl_zoo3.callbacks import ParallelTrainCallback
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_softac import SoftAC, zoo, zoo_ranks
from sb3_softac.checkpoint import newest_step
from sb3_softac.engine import GroupError
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.files import ranked
from sb3_softac.files.checkpoint import Folder
from tests.distributed.zoo_runs import TOTAL
from tests.ranks import environment
from tests.test_zoo_resume import assert_same, train_here

ROOT = Path(__file__).parent.parent.parent
PENDULUM = ["--algo", "softac", "--env", "Pendulum-v1", "--seed", "3", "-n", str(TOTAL)]
EVALUATED = ["--eval-freq", "100", "--eval-episodes", "1", "--n-eval-envs", "2"]
SAVED = ["--save-freq", "100", "--save-replay-buffer"]
SMALL = ["policy_kwargs:dict(net_arch=[8])", "learning_starts:50", "buffer_size:400", "compile:False"]
FAILING = ["callback:tests.distributed.zoo_runs.FailsOnOne", "distributed:dict(timeout=60)", "n_envs:2", "kernel_particles:4"]
SOFTQL = ["--algo", "softql", "--env", "Pendulum-v1", "-n", "400", "--eval-freq", "-1", "--vec-env", "subproc"]
__all__ = ["train_here"]  # a fixture

# RL Zoo leaves files of its environments to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*launcher, *command], cwd=folder, env=variables, text=True, **output)  # type: ignore[call-overload,no-any-return]


def printed(process: subprocess.Popen[str], code: int) -> str:
    text, _ = process.communicate(timeout=600)
    assert process.returncode == code, text
    return text


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Four starts of torchrun, two at a time: what they have printed, and where they have written."""
    folder = tmp_path_factory.mktemp("zoo")
    trains = start(folder, "rl_zoo3.train", *PENDULUM, *EVALUATED, *SAVED, "--progress", "-params", *SMALL)
    fails = start(folder, "sb3_softac.zoo", "train", *SOFTQL, "-f", "failed", "-params", *SMALL, *FAILING)
    texts = {"trains": printed(trains, 0), "fails": printed(fails, 1)}
    run = folder / "logs" / "softac" / "Pendulum-v1_1"
    goes_on = start(folder, "tests.distributed.zoo_runs", str(run))
    refused = start(folder, "rl_zoo3.train", *PENDULUM, "-f", "refused", "-params", *SMALL, "normalize:True")
    texts |= {"goes_on": printed(goes_on, 0), "refused": printed(refused, 1)}
    return SimpleNamespace(folder=folder, run=run, **texts)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestARun:
    def test_it_is_what_a_script_does(self, seen: SimpleNamespace) -> None:
        results = [json.loads((seen.folder / f"script-{rank}.json").read_text()) for rank in (0, 1)]
        assert results[0] == results[1]
        # Both ranks are past 50 steps after 26 of each; then one gradient step for each step of a rank.
        assert (results[0]["steps"], results[0]["updates"]) == (300, 125)
        model, of_script = (SoftAC.load(path) for path in (seen.run / "Pendulum-v1.zip", seen.folder / "script.zip"))
        assert (model.num_timesteps, model._n_updates) == (300, 125)
        assert_same(model.get_parameters(), of_script.get_parameters())

    def test_both_ranks_have_the_same_weights_and_other_transitions(self, seen: SimpleNamespace) -> None:
        parts = [ranked._read(Folder(ranked.folder_of(seen.run / "checkpoints", rank)), TOTAL) for rank in (0, 1)]
        arrays = [part.arrays for part in parts]
        weights = [name for name in arrays[0] if name.startswith("parameter")]  # and states of optimizers
        assert weights
        for name in weights:
            np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
        assert parts[0].segments != parts[1].segments

    def test_what_is_written(self, seen: SimpleNamespace) -> None:
        of_run = {"0.monitor.csv", "Pendulum-v1", "Pendulum-v1.zip", "best_model.zip", "evaluations.npz", "replay_buffer.pkl"}
        assert names_in(seen.run) == {*of_run, "checkpoints", *(f"rl_model_{n}_steps.zip" for n in (100, 200, 300))}
        assert names_in(seen.run / "Pendulum-v1") == {"config.yml", "args.yml", "command.txt"}
        assert names_in(seen.run / "checkpoints") == {"rank-0", "rank-1"}
        assert names_in(seen.run.parent) == {"Pendulum-v1_1"}
        with np.load(seen.run / "evaluations.npz") as evaluations:
            np.testing.assert_array_equal(evaluations["timesteps"], [100, 200, 300])  # steps of all ranks
        assert yaml.unsafe_load((seen.run / "Pendulum-v1" / "args.yml").read_text())["eval_freq"] == 100
        assert "distributed" not in (seen.run / "Pendulum-v1" / "config.yml").read_text()
        buffer = SoftAC("MlpPolicy", "Pendulum-v1", buffer_size=400, device="cpu")
        buffer.load_replay_buffer(seen.run / "replay_buffer.pkl")
        assert buffer.replay_buffer is not None
        assert buffer.replay_buffer.size() == 150

    @pytest.mark.parametrize(
        "line",
        [
            *(
                "===== Pendulum-v1 =====",
                "Seed: 3",
                "Loading hyperparameters",
                "('learning_starts', 50)",
                "Using 1 environments",
            ),
            *("Training on 2 ranks", "Using cpu", "Gradient steps:", "Eval num_timesteps=200", "Saving to", "Log path"),
            *("Saving replay buffer", "Checkpoint: logs/softac/Pendulum-v1_1/checkpoints/rank-0/checkpoint-000000000200"),
        ],
    )
    def test_what_is_printed_is_printed_once(self, line: str, seen: SimpleNamespace) -> None:
        assert seen.trains.count(line) == 1, seen.trains
        assert "Warning" not in seen.trains

    def test_the_progress_bar_counts_all_ranks(self, seen: SimpleNamespace) -> None:
        assert "300/300" in seen.trains


class TestGoingOn:
    def test_a_run_goes_on_as_if_it_had_not_stopped(self, seen: SimpleNamespace) -> None:
        assert seen.goes_on.count("Going on from step 200 of 300, in again") == 1
        again = seen.folder / "again"
        assert newest_step(again / "checkpoints") == 300
        assert names_in(again) == names_in(seen.run)
        assert_same(*(SoftAC.load(folder / "Pendulum-v1.zip").get_parameters() for folder in (seen.run, again)))
        with np.load(seen.run / "evaluations.npz") as first, np.load(again / "evaluations.npz") as second:
            assert_same(dict(first), dict(second))
        for rank in (0, 1):
            first, second = (
                ranked._read(Folder(ranked.folder_of(folder / "checkpoints", rank)), TOTAL).state
                for folder in (seen.run, again)
            )
            assert first["replay_buffer"] == second["replay_buffer"]
        assert (again / "Pendulum-v1" / "command.txt").read_text().count("\n") == 1

    def test_an_agent_begins_a_new_run(self, seen: SimpleNamespace) -> None:
        assert names_in(seen.folder / "from_file" / "softac") == {"Pendulum-v1_1"}
        run = seen.folder / "from_file" / "softac" / "Pendulum-v1_1"
        assert names_in(run) == {"0.monitor.csv", "Pendulum-v1", "Pendulum-v1.zip"}
        assert SoftAC.load(run / "Pendulum-v1.zip").num_timesteps == 60
        assert seen.goes_on.count("Loading replay buffer") == 1

    def test_one_process_goes_on_where_two_were(self, seen: SimpleNamespace, train_here: Any, tmp_path: Path) -> None:
        shutil.copytree(seen.run, tmp_path / "alone")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_here("--algo", "softac", "--env", "Pendulum-v1", "-i", "alone", "-n", "320")
        model = SoftAC.load(tmp_path / "alone" / "Pendulum-v1.zip")
        assert model.num_timesteps == 320
        assert model.distributed is None
        assert any("The run had 2 ranks and goes on with 1" in str(each.message) for each in caught)


class TestFailures:
    def test_a_rank_that_fails_ends_all_with_its_error(self, seen: SimpleNamespace) -> None:
        assert seen.fails.count("OSError: the sensor is gone") == 1, seen.fails
        assert seen.fails.count("GroupError") == 0
        assert 'in _on_step\n      raise OSError("the sensor is gone")' in seen.fails  # where it was raised
        assert names_in(seen.folder / "failed" / "softql") == {"Pendulum-v1_1"}
        run = seen.folder / "failed" / "softql" / "Pendulum-v1_1"
        assert names_in(run) == {"Pendulum-v1", "0.monitor.csv", "1.monitor.csv"}

    def test_what_is_refused_is_said_once(self, seen: SimpleNamespace) -> None:
        assert seen.refused.count("ValueError: `env` has VecNormalize, whose statistics are those of one rank") == 1
        assert seen.refused.count("ValueError: ") == 1, seen.refused


# --- in this process, as one of two ranks


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let this process be a rank that torchrun has started; what that changes in it ends with the test."""

    def be(number: int) -> None:
        for name, value in environment(rank=number, size=2, port=1).items():
            monkeypatch.setenv(name, value)

    zoo.register()
    monkeypatch.setattr(zoo_ranks, "_Process", type("_Process", (), {"entered": False, "heard": None}))
    monkeypatch.setattr("sb3_softac.zoo_ranks.atexit.register", lambda _: None)
    for name in ("stdout", "stderr", "excepthook", "argv"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with warnings.catch_warnings():
        yield be


def test_a_search_is_refused(rank: Any) -> None:
    rank(0)
    with pytest.raises(ValueError, match=r"a search \(-optimize\) in 2 processes, .* --storage and --study-name"):
        ExperimentManager(argparse.Namespace(), "softac", "Pendulum-v1", "logs", optimize_hyperparameters=True)
    ExperimentManager(argparse.Namespace(), "sac", "Pendulum-v1", "logs", optimize_hyperparameters=True)


def test_other_scripts_are_refused(rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rank(0)
    monkeypatch.setattr(sys, "argv", ["zoo", "enjoy", "--algo", "softac"])
    with pytest.raises(ValueError, match="torchrun has started RL Zoo's enjoy in 2 processes, but only `train`"):
        zoo.main()
    monkeypatch.setattr(sys, "argv", ["rl_zoo3/record_video.py", "--algo", "softac"])
    with pytest.raises(ValueError, match="torchrun has started RL Zoo's record_video in 2 processes"):
        rl_zoo3.utils.get_model_path(0, "logs", "softac", "Pendulum-v1")
    with pytest.raises(AssertionError, match="folder was not found"):
        rl_zoo3.utils.get_model_path(0, "logs", "sac", "Pendulum-v1")


def test_distributed_false_leaves_rank_0_alone(rank: Any, capsys: pytest.CaptureFixture[str]) -> None:
    manager = SimpleNamespace()
    rank(0)
    zoo_ranks.meet(manager, {"distributed": False})
    assert "rank 0 trains by itself" in capsys.readouterr().out
    assert vars(manager) == {}
    rank(1)
    with pytest.raises(SystemExit) as ended:
        zoo_ranks.meet(manager, {"distributed": False})
    assert ended.value.code == 0
    with pytest.raises(ValueError, match="`distributed` is 'yes', but it must be"):
        zoo_ranks.meet(manager, {"distributed": "yes"})


def test_callbacks_of_a_rank(capsys: pytest.CaptureFixture[str]) -> None:
    def create(manager: Any) -> None:
        manager.callbacks.append(CheckpointCallback(manager.save_freq, "unused"))

    for number, kind in ((0, CheckpointCallback), (1, zoo_ranks.Nothing)):
        group = SimpleNamespace(rank=number, size=4)
        manager = SimpleNamespace(ranks=group, callbacks=[], save_freq=100, eval_freq=-1)
        zoo_ranks.with_callbacks_of_rank(create)(manager)
        assert [type(callback) for callback in manager.callbacks] == [kind]
        assert (manager.save_freq, manager.eval_freq) == (25, -1)
        manager.callbacks = [ParallelTrainCallback()]
        with pytest.raises(ValueError, match="`callback` is ParallelTrainCallback, but it must be another one"):
            zoo_ranks.with_callbacks_of_rank(create)(manager)


class Failing:
    """Has the names of what an algorithm does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def set_up(self) -> None:
        raise self.error

    def collect_rollouts(self) -> None:
        raise self.error

    def train(self) -> None:
        raise self.error


class TestSilence:
    def test_rank_0_speaks(self, rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        rank(0)
        monkeypatch.setenv(zoo_ranks.ERROR_FILE, "unused")
        argv, out, err = ["train.py", "--track"], sys.stdout, sys.stderr
        zoo_ranks.enter(argv)
        assert argv == ["train.py", "--track"]
        assert (sys.stdout, sys.stderr) == (out, err)

    def test_another_rank_does_not(self, rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        rank(1)
        monkeypatch.setenv(zoo_ranks.ERROR_FILE, "unused")
        waited: list[float] = []
        monkeypatch.setattr("sb3_softac.zoo_ranks.time.sleep", waited.append)
        monkeypatch.setattr(sys, "__stderr__", io.StringIO())
        argv = ["train.py", "--track", "-n", "5"]
        zoo_ranks.enter(argv)
        assert argv == ["train.py", "-n", "5"]  # one run is tracked, that of rank 0
        assert sys.stdout.name == os.devnull
        zoo_ranks._repeat()
        assert waited == []
        print("usage: no such argument", file=sys.stderr)
        zoo_ranks._repeat()  # the process ends
        assert waited == [zoo_ranks.PATIENCE]
        assert sys.__stderr__ is not None
        assert sys.__stderr__.getvalue() == "usage: no such argument\n"  # type: ignore[attr-defined]
        zoo_ranks.begin({})
        assert sys.stderr is sys.__stderr__
        sys.stdout.close()

    @pytest.mark.parametrize(
        ("number", "error", "where", "waits"),
        [
            (0, ValueError("wrong"), "set_up", False),
            (1, ValueError("wrong"), "set_up", True),  # rank 0 says it, too
            (1, ValueError("wrong"), "collect_rollouts", False),
            (1, ValueError("wrong"), "train", False),
            (1, TrainingDivergedError("not finite"), "train", True),
            (0, GroupError("gone"), "collect_rollouts", True),  # another rank says why
            (1, GroupError("gone"), "train", True),
        ],
    )
    def test_errors_are_left_to_torchrun(
        self,
        number: int,
        error: Exception,
        where: str,
        waits: bool,
        rank: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rank(number)
        file, waited = tmp_path / "error.json", list[float]()
        monkeypatch.setenv(zoo_ranks.ERROR_FILE, str(file))
        monkeypatch.setattr("sb3_softac.zoo_ranks.time.sleep", waited.append)
        with pytest.raises(type(error)) as raised:
            getattr(Failing(error), where)()
        zoo_ranks._record(raised.type, raised.value, raised.tb)
        assert waited == [zoo_ranks.PATIENCE] * waits
        message = json.loads(file.read_text())["message"]
        assert message["message"] == f"{type(error).__name__}: {error}"
        assert f"in {where}" in message["extraInfo"]["py_callstack"]
