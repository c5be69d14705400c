"""Runs of a shared storage, which several machines take from: Optuna keeps who has which.

A run is a trial of an Optuna study. A worker asks for one, trains, stores the row in the trial, and only then completes it; so
a row is in the storage once, and the CSV files are copies of it. While it trains, a thread counts up the attribute ``beat`` of
the trial. A worker that has seen the same count for ``patience`` seconds of its own clock, whatever the other clock is, fails
the trial and queues the run again, from its newest checkpoint if ``--checkpoints`` is a folder that they share. (Optuna's own
heartbeat is for relational databases only; this works with its journal files, too.)
"""

import contextlib
import multiprocessing
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from harness import rows
from harness.plans import Run, as_dict, from_dict
from harness.pool import describe, stop_without_parent
from harness.runs import folder_of, forget, perform
from sb3_softac.files.checkpoint import Lock
from sb3_softac.zoo_search import open_database

LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
#: times that a run may die before it is left alone: it might be what kills its machine
MAX_DEATHS = 5


class TakenOver(Exception):
    """Another worker has taken this one for dead."""


def open_study(storage: str, name: str) -> optuna.Study:
    """:raises ValueError: it cannot be opened"""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend: Any
    try:
        if "://" in storage:
            backend = open_database(storage)
        else:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            backend = JournalStorage(JournalFileBackend(storage))
        return optuna.create_study(study_name=name, storage=backend, load_if_exists=True)
    except Exception as error:  # of the file system, of any database and of its driver
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`--worker` is {storage!r}, which cannot be opened: {reason}. It must be the path of a journal file, or the URL "
            "of a database such as sqlite:///runs.db."
        ) from None


def is_in_use(folder: Path) -> bool:
    """Whether another process writes its checkpoints there."""
    if not folder.is_dir():
        return False
    try:
        Lock(folder).release()
    except ValueError:
        return True
    return False


class Beat:
    """Says that a trial is alive, until it is closed.

    :param trial: the trial
    :param every: seconds between two beats
    """

    def __init__(self, trial: optuna.Trial, every: float) -> None:
        self.trial, self.every = trial, every
        self.is_lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self.every):
            count += 1
            try:
                self.trial.set_user_attr("beat", count)
            except optuna.exceptions.UpdateFinishedTrialError:  # somebody has failed the trial
                self.is_lost = True
                return
            except Exception as error:  # of a network or a database, which may come back
                print(f"The storage did not take a sign of life: {error}", flush=True)

    def __enter__(self) -> "Beat":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()


class Worker:
    """Takes runs from a study until none is left.

    :param study: the study
    :param runs: a plan, whose missing runs it queues; if it is empty, it only takes what others have queued
    :param output: file of rows, or None: they are in the study, too
    :param checkpoints: folder that all workers share
    :param patience: seconds without a sign of life after which a run is taken over
    :param device: where networks are
    """

    def __init__(
        self,
        study: optuna.Study,
        runs: Iterable[Run],
        output: Path | None,
        checkpoints: Path | None,
        patience: float,
        device: str = "cpu",
    ) -> None:
        self.study, self.output, self.checkpoints, self.patience, self.device = study, output, checkpoints, patience, device
        self.runs = {run.id: run for run in runs}
        self.pause = min(patience / 4, 10.0)
        #: of trials, the last beat and when this process first saw it
        self._seen: dict[int, tuple[Any, float]] = {}

    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if "id" in trial.user_attrs]

    def copy_rows(self) -> None:
        """Rows that the file does not have yet."""
        if self.output is not None:
            there = {rows.key_of(row) for row in rows.read(self.output, repair=True)}
            for trial in self.trials():
                row = trial.user_attrs.get("row", {}) if trial.state is TrialState.COMPLETE else {}
                if row and rows.key_of({name: str(value) for name, value in row.items()}) not in there:
                    rows.append(self.output, row)

    def finish(self, number: int, state: TrialState) -> bool:
        """End a trial; whether nobody else has done it before."""
        try:
            self.study.tell(number, 0.0 if state is TrialState.COMPLETE else None, state=state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False
        return True

    def fail_the_dead(self) -> None:
        now = time.monotonic()
        for trial in self.trials():
            if trial.state is TrialState.RUNNING:
                beat = trial.user_attrs.get("beat")
                last, since = self._seen.get(trial.number, (None, now))
                self._seen[trial.number] = (beat, since if beat == last and trial.number in self._seen else now)
                if now - self._seen[trial.number][1] > self.patience:
                    has_row = "row" in trial.user_attrs  # it died after its work
                    self.finish(trial.number, TrialState.COMPLETE if has_row else TrialState.FAIL)

    def queue(self) -> None:
        """Every run of the plan that nobody has: new, or of a trial that has died."""
        trials = self.trials()
        for trial in trials:
            self.runs.setdefault(trial.user_attrs["id"], from_dict(trial.user_attrs["run"]))
        live = {trial.user_attrs["id"] for trial in trials if trial.state in LIVE}
        given_up = {run_id for run_id in self.runs if self._is_given_up(run_id, trials)}
        done = rows.read(self.output, repair=True) if self.output is not None else []
        undone = {run.id for run in rows.missing(list(self.runs.values()), done)}
        for run_id, run in self.runs.items():
            if run_id in undone - live - given_up:
                attributes = {"id": run_id, "run": as_dict(run)}
                self.study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))

    def _is_given_up(self, run_id: str, trials: list[FrozenTrial]) -> bool:
        failed = [trial for trial in trials if trial.user_attrs["id"] == run_id and trial.state is TrialState.FAIL]
        deaths = [trial for trial in failed if not trial.user_attrs.get("does_not_count")]
        return len(deaths) > MAX_DEATHS or any("error" in trial.user_attrs for trial in failed)

    def take(self) -> optuna.Trial | None:
        """A run that nobody else has, or None."""
        while any(trial.state is TrialState.WAITING for trial in self.trials()):
            asked = self.study.ask()
            own_id = asked.user_attrs.get("id")
            others = [trial for trial in self.trials() if trial.user_attrs["id"] == own_id and trial.number < asked.number]
            if own_id is not None and not any(trial.state in LIVE for trial in others):
                return asked
            # Two workers may have queued a run at the same time: the first one counts. Without an id there was none to take.
            self.give_back(asked)
        return None

    def give_back(self, trial: optuna.Trial) -> None:
        """Fail a trial whose run is none the worse for it: it is queued again, if nobody else has it."""
        trial.set_user_attr("does_not_count", True)
        self.finish(trial.number, TrialState.FAIL)

    def train(self, trial: optuna.Trial) -> str:
        """Do the run of a trial; what to say about it."""
        run = from_dict(trial.user_attrs["run"])
        if self.checkpoints is not None and is_in_use(folder_of(run, self.checkpoints)):
            self.give_back(trial)
            time.sleep(self.pause)
            return f"{run}: whoever was taken for dead still writes its checkpoints"
        try:
            with Beat(trial, self.patience / 4) as beat:
                name, value, lines = self.attempt(run, beat)
                if beat.is_lost or not self.store(trial, name, value):
                    raise TakenOver
        except TakenOver:
            return f"{run}: another worker has taken it over"
        except (KeyboardInterrupt, SystemExit):
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # somebody else has it already
                self.give_back(trial)
            raise
        ended = self.finish(trial.number, TrialState.COMPLETE if name == "row" else TrialState.FAIL)
        if name == "error":
            return "\n".join([*lines, f"{run} failed: {value}"])
        if not ended:
            return f"{run}: another worker has taken it over"
        self.copy_rows()
        forget(run, self.checkpoints)
        return describe(value)

    def attempt(self, run: Run, beat: Beat) -> tuple[str, Any, list[str]]:
        """What a run has given: "row" and its row, or "error", what went wrong, and the last lines of where.

        :raises TakenOver: another worker has the run
        """

        def report(*_: Any) -> None:
            stop_without_parent()
            if beat.is_lost:
                raise TakenOver

        try:
            return "row", perform(run, self.checkpoints, report, self.device), []
        except TakenOver:
            raise
        except Exception as error:
            lines = [] if isinstance(error, ValueError) else traceback.format_exc().splitlines()[-8:-1]
            return "error", f"{type(error).__name__}: {error}", lines

    def store(self, trial: optuna.Trial, name: str, value: Any) -> bool:
        """Write an attribute of a trial, until the storage takes it: it may be hours of work.

        :return: whether it is there; not if somebody else has ended the trial
        """
        while True:
            try:
                trial.set_user_attr(name, value)
                return True
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
            except Exception as error:  # of a network or a database, which may come back
                print(
                    f"The storage did not take the {name} of {trial.user_attrs.get('id')}, and is asked again: {error}",
                    flush=True,
                )
                time.sleep(self.pause)

    def work(self) -> None:
        """Until every run is done or has failed."""
        while True:
            self.copy_rows()
            self.fail_the_dead()
            self.queue()
            trial = self.take()
            if trial is not None:
                print(f"{from_dict(trial.user_attrs['run'])}: begins", flush=True)
                print(self.train(trial), flush=True)
            elif any(each.state in (TrialState.WAITING, TrialState.RUNNING) for each in self.trials()):
                time.sleep(self.pause)  # others may die
                stop_without_parent()
            else:
                self.copy_rows()
                return

    def summary(self) -> tuple[str, bool]:
        """How it went, and whether every run is done."""
        trials = self.trials()
        done = {trial.user_attrs["id"] for trial in trials if trial.state is TrialState.COMPLETE}
        live = {trial.user_attrs["id"] for trial in trials if trial.state in LIVE}
        failed = [trial.user_attrs for trial in trials if "error" in trial.user_attrs]
        errors = [f"{from_dict(attributes['run'])}: {attributes['error']}" for attributes in failed]
        lost = len({trial.user_attrs["id"] for trial in trials} - live)
        text = f"{len(done)} runs are done, {len(live - done)} waiting or running, {lost} have failed."
        return "\n".join([*errors, text]), not lost and live == done


def _process(storage: str, name: str, *arguments: Any) -> None:
    Worker(open_study(storage, name), *arguments).work()


def work(
    storage: str,
    name: str,
    runs: list[Run],
    output: Path | None,
    checkpoints: Path | None,
    patience: float,
    n_processes: int,
    device: str = "cpu",
) -> tuple[str, bool]:
    """Workers side by side, until every run of a study is done or has failed.

    :param storage: path of a journal file, or URL of a database
    :param name: of the study
    :return: how it went, and whether every run is done
    """
    study = open_study(storage, name)
    context = multiprocessing.get_context("spawn")
    arguments = (storage, name, runs, output, checkpoints, patience, device)
    processes = [context.Process(target=_process, args=arguments) for _ in range(n_processes)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    if any(process.exitcode for process in processes):
        print("A worker ended early: start it again.", flush=True)
    return Worker(study, [], None, None, patience).summary()
