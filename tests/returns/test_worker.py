"""Runs of a shared storage: each is done once, also if workers queue it twice, die at it, or come back from the dead."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from harness import rows, runs, worker
from harness.plans import Run
from harness.worker import Worker, open_study
from optuna.trial import TrialState

from tests.returns.test_runs import ROOT, small

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
PATIENCE = 0.2


def seeds(path: Path) -> list[int]:
    with path.open() as file:
        return sorted(int(row["seed"]) for row in csv.DictReader(file))


def make(storage: str, plan: list[Run], folder: Path, patience: float = 1000.0) -> Worker:
    return Worker(open_study(storage, "x"), plan, folder / "rows.csv", folder / "checkpoints", patience)


def quick(patch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that take no time, and are noted."""
    performed = []

    def perform(run: Run, *_: Any) -> rows.Row:
        performed.append(run)
        row = {name: getattr(run, name) for name in ("variant", "env", "steps", "seed")}
        return row | {"return": 1.0, "alpha": 1.0, "seconds": 1, "settings": json.dumps(run.settings)}

    patch.setattr(worker, "perform", perform)
    return performed


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage by its kind."""
    if request.param == "PostgreSQL":
        return str(request.getfixturevalue("database"))
    return f"sqlite:///{tmp_path}/runs.db" if request.param == "SQLite" else str(tmp_path / "journal.log")


@pytest.mark.parametrize("place", ["journal", "SQLite", "PostgreSQL"], indirect=True)
def test_a_plan_is_done_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two workers that have queued it at the same moment."""
    performed = quick(monkeypatch)
    plan = [small(seed) for seed in range(3)]
    first, second = (make(place, plan, tmp_path) for _ in range(2))
    nothing: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "trials", lambda _: nothing)  # each sees an empty study
        first.queue()
        second.queue()
    assert len(first.trials()) == 6
    taken: list[optuna.Trial] = []
    while len(taken) < 3:
        taken += [trial for trial in (first.take(), second.take()) if trial is not None]
    assert sorted(trial.user_attrs["run"]["seed"] for trial in taken) == [0, 1, 2]
    for trial in taken:
        second.train(trial)
    first.work()
    assert sorted(run.seed for run in performed) == [0, 1, 2]
    assert seeds(tmp_path / "rows.csv") == [0, 1, 2]
    assert first.summary() == ("3 runs are done, 0 waiting or running, 0 have failed.", True)


@pytest.mark.parametrize("place", ["journal", "PostgreSQL"], indirect=True)
def test_a_worker_that_is_killed(place: str, tmp_path: Path) -> None:
    """With signal 9, in the middle of a run: another one goes on from the checkpoint, to the row of an undisturbed run."""
    run, journal = small(), place
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]\n"
        "import os, pathlib, signal\nfrom harness import runs\nfrom tests.returns.test_worker import make, small\n"
        "on_step = runs.Evaluations._on_step\n"
        "def on_step_or_die(self):\n"
        "    if self.num_timesteps == 130: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return on_step(self)\n"
        "runs.Evaluations._on_step = on_step_or_die\n"
        f"make({journal!r}, [small()], pathlib.Path({str(tmp_path)!r})).work()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -9
    survivor = make(journal, [run], tmp_path, PATIENCE)
    assert [trial.state for trial in survivor.trials()] == [TrialState.RUNNING]
    assert not (tmp_path / "rows.csv").exists()
    survivor.work()
    assert [trial.state for trial in survivor.trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    (row,) = rows.read(tmp_path / "rows.csv")
    assert row["parts"] == "2"
    assert row["curve"] == runs.perform(run)["curve"]
    assert not list((tmp_path / "checkpoints").iterdir())


def take_one(place: Worker) -> optuna.Trial:
    place.queue()
    trial = place.take()
    assert trial is not None
    return trial


def test_a_worker_that_was_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes up when another one has its run; its row is dropped."""
    performed = quick(monkeypatch)
    journal = str(tmp_path / "journal.log")
    sleeper, other = (make(journal, [small()], tmp_path) for _ in range(2))
    trial = take_one(sleeper)
    other.fail_the_dead()  # the first look only remembers the beat
    assert trial.storage.get_trial(trial._trial_id).state is TrialState.RUNNING
    other.patience = -1.0
    other.fail_the_dead()
    again = take_one(other)
    assert "another worker has taken it over" in sleeper.train(trial)
    assert not (tmp_path / "rows.csv").exists()
    other.train(again)
    assert len(performed) == 2
    assert seeds(tmp_path / "rows.csv") == [0]


def test_a_worker_that_was_taken_for_dead_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it does, its run is not begun; afterwards it is, and has lost none of its tries."""
    performed = quick(monkeypatch)
    answers = iter([True] * (worker.MAX_DEATHS + 2) + [False])
    monkeypatch.setattr(worker, "is_in_use", lambda _: next(answers))
    other = make(str(tmp_path / "journal.log"), [small()], tmp_path, 0.04)
    other.work()
    assert next(answers, None) is None
    assert len(performed) == 1
    assert seeds(tmp_path / "rows.csv") == [0]


def test_checkpoints_in_use(tmp_path: Path) -> None:
    """By a process that holds their lock, as ExactCheckpointCallback does."""
    assert not worker.is_in_use(tmp_path / "nothing")
    code = "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint('held', flush=True)\n"
    line = [sys.executable, "-c", f"{code}sys.stdin.read()", str(tmp_path / "lock")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert worker.is_in_use(tmp_path)
        holder.kill()
    assert not worker.is_in_use(tmp_path)


def test_a_worker_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run need not wait until it is taken for dead."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    other = make(str(tmp_path / "journal.log"), [small()], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "perform", interrupt)
        with pytest.raises(KeyboardInterrupt):
            other.work()
    performed = quick(monkeypatch)
    other.work()
    assert len(performed) == 1


def test_a_worker_that_is_interrupted_after_its_run_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as it was asked to, whoever has its run now."""
    other = make(str(tmp_path / "journal.log"), [small()], tmp_path)
    trial = take_one(other)

    def interrupt(*_: Any) -> None:
        other.finish(trial.number, TrialState.FAIL)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "perform", interrupt)
    with pytest.raises(KeyboardInterrupt):
        other.train(trial)


@pytest.mark.parametrize("name", ["row", "error"])
def test_a_storage_that_is_away_for_a_while(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hours of training have given is kept until it can be stored; a run does not fail because of it."""
    performed = quick(monkeypatch)
    if name == "error":
        monkeypatch.setattr(worker, "perform", lambda *_: 1 / 0)
    other = make(str(tmp_path / "journal.log"), [small()], tmp_path, PATIENCE)
    trial, answers = take_one(other), iter([OSError("the disk is away"), OSError("still")])
    store = optuna.Trial.set_user_attr

    def set_user_attr(self: optuna.Trial, key: str, value: Any) -> None:
        if key == name and (error := next(answers, None)) is not None:
            raise error
        store(self, key, value)

    monkeypatch.setattr(optuna.Trial, "set_user_attr", set_user_attr)
    said = other.train(trial)
    assert next(answers, None) is None
    if name == "row":
        assert len(performed) == 1
        assert seeds(tmp_path / "rows.csv") == [0]
    else:
        assert "seed 0 failed: ZeroDivisionError" in said
        assert "ZeroDivisionError" in other.summary()[0]


def test_a_worker_that_dies_after_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is in the storage: nothing is done again."""
    performed = quick(monkeypatch)
    journal = str(tmp_path / "journal.log")
    dying, other = (make(journal, [small()], tmp_path, patience) for patience in (1000.0, PATIENCE))
    with monkeypatch.context() as patch:
        patch.setattr(dying, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dying.train(take_one(dying))
    other.work()
    assert len(performed) == 1
    assert seeds(tmp_path / "rows.csv") == [0]


def test_a_run_that_fails_is_not_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = small(tau=2.0), small(1, steps=60)
    place = make(str(tmp_path / "journal.log"), [bad, good], tmp_path)
    place.work()
    assert "seed 0 failed: ValueError: `tau` is 2.0" in capsys.readouterr().out
    assert seeds(tmp_path / "rows.csv") == [1]
    text, is_complete = place.summary()
    assert "1 runs are done, 0 waiting or running, 1 have failed." in text
    assert not is_complete
    assert "`tau` is 2.0" in text


def test_runs_that_a_file_has_are_not_queued(tmp_path: Path) -> None:
    run = small()
    rows.append(tmp_path / "rows.csv", runs.perform(small(steps=60)))
    place = make(str(tmp_path / "journal.log"), [run, small(steps=60)], tmp_path)
    place.queue()
    assert [trial.user_attrs["id"] for trial in place.trials()] == [run.id]


def test_workers_that_begin_together_on_an_empty_database(database: str) -> None:
    """Each finds tables, though Optuna makes them in each."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]\nfrom harness.worker import open_study\n"
        "print(open_study(sys.argv[1], 'x').study_name)"
    )
    line = [sys.executable, "-W", "ignore", "-c", code, database, str(ROOT / "benchmarks")]
    workers = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == ["x\n"] * 3


@pytest.mark.parametrize("storage", ["nothing://host/base", "{}/file/journal.log"])
def test_a_storage_that_cannot_be_opened(storage: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`--worker` is .*, which cannot be opened"):
        open_study(storage.format(tmp_path), "x")
