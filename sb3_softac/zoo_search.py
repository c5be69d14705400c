"""``-optimize``: trials of our algorithms in RL Zoo's search, and which of our search spaces they sample."""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_softac.errors import TrainingDivergedError
from sb3_softac.zoo_algorithms import ALGORITHMS, Algorithm
from sb3_softac.zoo_spaces import Search

if TYPE_CHECKING:
    import optuna

#: the hyperparameter that asks for another search, and the attribute of a trial that remembers which it belongs to
SEARCH = "search"
#: the attribute of a trial of a shared storage that says which process does it
WORKER = "worker"
#: times that a database is opened
ATTEMPTS = 5


class _PartlyFixed:
    """An Optuna trial that does not sample some of the numbers that it is asked for.

    :param trial: the trial
    :param fixed: their names
    """

    def __init__(self, trial: "optuna.Trial", fixed: Collection[str]) -> None:
        self._trial, self._fixed = trial, fixed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_float(self, name: str, low: float, high: float, **kwargs: Any) -> float:
        return low if name in self._fixed else self._trial.suggest_float(name, low, high, **kwargs)


def sample_params(
    algorithm: Algorithm,
    sample_sac: Callable[..., dict[str, Any]],
    trial: "optuna.Trial",
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
) -> dict[str, Any]:
    """Sample what RL Zoo samples for SAC, and our own options.

    :param algorithm: what it is for
    :param sample_sac: RL Zoo's sampler for SAC
    :param trial: Optuna trial; its attribute ``search`` may name one of the algorithm's searches
    :param n_actions: action dimension; 0, as RL Zoo has it, if actions are discrete
    :param n_envs: number of environments
    :param additional_args: RL Zoo's information about the replay buffer
    :return: constructor arguments
    """

    def sample_shared(fixed: Collection[str]) -> dict[str, Any]:
        return sample_sac(_PartlyFixed(trial, fixed), n_actions, n_envs, additional_args)

    search = algorithm.searches.get(trial.user_attrs.get(SEARCH, ""))
    if search is None:
        shared = sample_shared(algorithm.fixed)
        return _with_ours(shared, algorithm.arguments(algorithm.sample(trial, n_actions)))
    sampled = search.sample(trial)  # first: it decides which of the others have a meaning
    shared = sample_shared(search.fixed(sampled))
    return _with_ours(shared, search.arguments(sampled, shared))


def convert_params(
    algorithm: Algorithm, convert_sac: Callable[[dict[str, Any]], dict[str, Any]], sampled_params: dict[str, Any]
) -> dict[str, Any]:
    """Turn the parameters of a trial into constructor arguments; the shared ones are converted as those of SAC.

    :param algorithm: what it is for
    :param convert_sac: RL Zoo's converter for SAC
    :param sampled_params: parameters as Optuna stores them
    :return: constructor arguments
    """
    search = _search_of(algorithm, sampled_params)
    names = algorithm.sampled if search is None else search.sampled
    ours = {name: value for name, value in sampled_params.items() if name in names}
    shared = convert_sac({name: value for name, value in sampled_params.items() if name not in names})
    return _with_ours(shared, algorithm.arguments(ours) if search is None else search.arguments(ours, shared))


def _search_of(algorithm: Algorithm, sampled_params: Mapping[str, Any]) -> Search | None:
    """The search that a trial belongs to; None for the usual one."""
    return next((search for search in algorithm.searches.values() if search.mark in sampled_params), None)


def _with_ours(shared: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    return {**shared, **ours, "policy_kwargs": {**shared["policy_kwargs"], **ours.get("policy_kwargs", {})}}


def take(manager: Any, hyperparams: dict[str, Any], algorithm: Algorithm) -> None:
    """Let an experiment remember which search is asked for, and take that out of its hyperparameters.

    In a hyperparameter file it is what ``-optimize`` samples, and has no meaning for a training.

    :raises ValueError: an unknown search, or one on the command line that does not search
    """
    name = hyperparams.pop(SEARCH, None)
    algorithm.check_search(name)
    if name is not None and SEARCH in (manager.custom_hyperparams or {}) and not manager.optimize_hyperparameters:
        raise ValueError(f"`search` is {name!r}, but it must be left out without -optimize: it names what that samples.")
    manager.search = name
    if name is not None and manager.optimize_hyperparameters:
        print(f"Search space: {name} ({', '.join(algorithm.searches[name].sampled)})")


def with_search(objective: Callable[..., float]) -> Callable[..., float]:
    """Trials know the search that they belong to; one whose training diverges is pruned and does not end the search."""

    @functools.wraps(objective)
    def call(self: Any, trial: "optuna.Trial") -> float:
        if self.algo not in ALGORITHMS:
            return objective(self, trial)
        if getattr(self, "search", None) is not None:
            trial.set_user_attr(SEARCH, self.search)
        if getattr(self, "storage", None) is not None:
            trial.set_user_attr(WORKER, f"{_machine()} {os.getpid()}")
        try:
            return objective(self, trial)
        except TrainingDivergedError as error:
            import optuna

            print(error)
            raise optuna.TrialPruned from error

    return call


# --- workers that have died --------------------------------------------------------------------------------------------


def _machine() -> str:
    """Where a number of a process has one meaning: the host since it was booted, and the container if there is one."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        # Hosts of one image may have one name, and all have the same number for the processes outside of containers.
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def is_dead(worker: Any) -> bool:
    """Whether a worker was a process of this machine that is no longer there; nobody here knows of those of others.

    :param worker: attribute of its trial
    """
    machine, _, number = str(worker).rpartition(" ")
    if os.name != "posix" or machine != _machine() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def open_database(url: str) -> Any:
    """A storage of Optuna, whose tables are made if there are none.

    Optuna does not expect that another worker makes them at the same moment, as where many begin together: one of the two
    fails, and finds them when it looks again.

    :param url: such as ``postgresql+psycopg2://user@host/sweeps``
    """
    import optuna
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for _ in range(ATTEMPTS - 1):
        try:
            return optuna.storages.RDBStorage(url)
        except (IntegrityError, OperationalError, ProgrammingError):
            time.sleep(0.5 + os.getpid() % 10 / 10)  # the other one waits for another time
    return optuna.storages.RDBStorage(url)


def fail_lost_trials(storage: str, study_name: str) -> None:
    """Fail the trials of workers of this machine that were killed: they would run, and count, for ever.

    :param storage: as ``--storage`` of RL Zoo
    :param study_name: name of the study; it need not exist yet
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    backend: Any
    if not storage.endswith(".log"):  # as RL Zoo has it
        backend = open_database(storage)
    elif Path(storage).exists():
        backend = optuna.storages.JournalStorage(JournalFileBackend(storage))
    else:
        return
    try:
        study = optuna.load_study(study_name=study_name, storage=backend)
    except KeyError:
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(trial.user_attrs.get(WORKER)):
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # another one has done it
                study.tell(trial.number, state=TrialState.FAIL)
                print(f"Trial {trial.number} has failed: its worker was killed")


def without_lost_trials(optimize: Callable[..., None]) -> Callable[..., None]:
    """A worker that begins, also one that is started again, first fails the trials of those that were killed."""

    @functools.wraps(optimize)
    def call(self: Any) -> None:
        if self.algo in ALGORITHMS and self.storage is not None and self.study_name is not None:
            fail_lost_trials(self.storage, self.study_name)
        optimize(self)

    return call
