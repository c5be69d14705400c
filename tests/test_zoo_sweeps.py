"""RL Zoo's ``-optimize`` by several workers on one storage: trials add up, also where a worker is killed and started again."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sb3_softac import zoo_search
from sb3_softac.zoo_search import WORKER, fail_lost_trials, is_dead

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

#: RL Zoo's script in a process that waits for another, or dies, at a step of its first or second trial
SCRIPT = """
import os, runpy, signal, sys, time
from pathlib import Path
from sb3_softac import SoftAC

folder, role = Path(sys.argv[1]), sys.argv[2]
sample_action, models = SoftAC._sample_action, []

def sample_and_do(self, *args, **kwargs):
    if self not in models:
        models.append(self)
    if role == "waits":  # in its first trial for one to be killed, in its second for the one that is started again
        deadline = time.monotonic() + 100.0
        while not (folder / f"begun-{len(models)}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    elif role == "is killed" and self.num_timesteps == 30:
        (folder / "begun-1").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif role == "is started again":
        (folder / "begun-2").touch()
    return sample_action(self, *args, **kwargs)

SoftAC._sample_action = sample_and_do
sys.argv = ["train.py", *sys.argv[3:]]
runpy.run_module("rl_zoo3.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "PostgreSQL":
        return str(request.getfixturevalue("database"))
    return str(tmp_path / "shared" / "sweep.log")


def study_of(storage: str) -> optuna.Study:
    backend: Any = storage
    if storage.endswith(".log"):
        backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    return optuna.load_study(study_name="sweep", storage=backend)


@pytest.mark.parametrize("storage", ["journal", "PostgreSQL"], indirect=True)
def test_a_worker_is_killed_and_started_again(storage: str, tmp_path: Path) -> None:
    def worker(role: str, n_trials: int) -> subprocess.Popen[str]:
        task = ["--algo", "softac", "--env", "Pendulum-v1", "-n", "200", "-optimize", "--n-trials", str(n_trials)]
        short = ["--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "--sampler", "random", "--pruner", "none"]
        shared = ["--storage", storage, "--study-name", "sweep", "-f", str(tmp_path / role.replace(" ", "-"))]
        line = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), role, *task, *short, *shared]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path
        )

    other, killed = worker("waits", 2), worker("is killed", 1)
    try:
        printed, _ = killed.communicate(timeout=120)
        assert killed.returncode == -9, printed
        running = [trial for trial in study_of(storage).trials if is_dead(trial.user_attrs.get(WORKER))]
        assert [trial.state for trial in running] == [TrialState.RUNNING]
        again = worker("is started again", 1)
        for process in (again, other):
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
    finally:
        other.kill()
        other.communicate()
    trials = study_of(storage).trials
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}
    assert trials[running[0].number].state is TrialState.FAIL
    assert len({trial.user_attrs[WORKER] for trial in trials}) == 3
    assert all(trial.value is not None and trial.value < 0 for trial in trials if trial.state is TrialState.COMPLETE)


def test_only_what_is_known_to_be_lost_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a trial of a process that is there, of another machine, or of nobody."""
    storage = str(tmp_path / "sweep.log")
    fail_lost_trials(storage, "sweep")
    assert not Path(storage).exists()
    backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    fail_lost_trials(storage, "sweep")  # there is no such study
    study = optuna.create_study(study_name="sweep", storage=backend, direction="maximize")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    here = zoo_search._machine()
    name, *parts = here.split(" ")
    twin = " ".join([name, "another-boot", *parts[1:]])  # a host of the same name and kernel
    workers = [f"{here} {ended.pid}", f"{here} {os.getpid()}", f"{twin} {ended.pid}", "", None, f"{here} x"]
    for worker in workers:
        trial = study.ask()
        if worker is not None:
            trial.set_user_attr(WORKER, worker)
    fail_lost_trials(storage, "sweep")
    states = [trial.state for trial in study_of(storage).trials]
    assert states == [TrialState.FAIL] + [TrialState.RUNNING] * 5
    monkeypatch.setattr(os, "name", "nt")  # where to ask for a process is to end it
    assert not is_dead(workers[0])
