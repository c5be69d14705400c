"""RL Zoo's training on several ranks: torchrun starts the same command in every process, and together they are one run.

Rank 0 is the run as RL Zoo knows it: it prints, evaluates, and writes the folder of the run. The others have environments and
a replay buffer of their own, and write nothing but their part of exact checkpoints. Errors are left to torchrun, which shows
that of the rank that has failed. Nothing here imports RL Zoo; ``zoo`` puts these functions in their places.
"""

import atexit
import functools
import inspect
import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.utils import set_random_seed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from sb3_softac.arguments.options import check_distributed
from sb3_softac.distributed import join_launched
from sb3_softac.engine import Group, GroupError
from sb3_softac.engine.group import is_launched
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.zoo_resume import CutMonitorFiles, trains_in_parallel

#: where torchrun lets a process put the error that ends it; it shows the first one of its processes
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
#: seconds that a rank waits for torchrun to end it where another one says what is wrong, or rank 0 may say the same
PATIENCE = 20.0
#: what only rank 0 has: it saves, evaluates, and cuts the files of its episodes
OF_FIRST = (CheckpointCallback, EvalCallback, CutMonitorFiles)


def n_ranks() -> int:
    """In how many processes torchrun has started this command; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if is_launched(os.environ) else 1


def _is_first() -> bool:
    return os.environ["RANK"] == "0"


# --- the process


class _Process:
    """What has been changed in this process."""

    entered = False
    #: what stands instead of ``sys.stderr`` while the command line is parsed
    heard: io.StringIO | None = None


def enter(argv: list[str]) -> None:
    """Let errors go to torchrun, and silence all ranks but the first; called when RL Zoo builds the parser of its training.

    :param argv: arguments, from which ``--track`` is taken on those ranks
    """
    if n_ranks() == 1 or _Process.entered:
        return
    _Process.entered = True
    if ERROR_FILE in os.environ:
        sys.excepthook = _record
    if _is_first():
        return
    argv[:] = [argument for argument in argv if argument not in ("--track", "--trac")]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    warnings.simplefilter("ignore")
    if ERROR_FILE in os.environ:
        _Process.heard = sys.stderr = io.StringIO()
        atexit.register(_repeat)


def _record(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Leave an error to torchrun, which ends all ranks and shows what it finds: the error of the rank that has failed."""
    if not isinstance(error, Exception):
        if _is_first():
            sys.__excepthook__(kind, error, trace)
        return
    is_told = isinstance(error, GroupError) or (not _is_first() and not _is_own(error, trace))
    if is_told:
        time.sleep(PATIENCE)
    try:
        raise error.with_traceback(trace)
    except Exception:
        get_error_handler().record_exception(error)


def _is_own(error: Exception, trace: TracebackType | None) -> bool:
    """Whether an error is that of this rank alone, from a rollout or a gradient step: settings are wrong on all ranks."""
    if isinstance(error, TrainingDivergedError):  # its numbers are means over ranks
        return False
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(trace) if "self" in frame.f_locals}
    return bool(names & {"collect_rollouts", "train"})


def _repeat() -> None:
    """Print what the parser did not like on this rank, unless torchrun ends it before: rank 0 has printed it then."""
    if _Process.heard is not None and _Process.heard.getvalue() and sys.__stderr__ is not None:
        time.sleep(PATIENCE)
        sys.__stderr__.write(_Process.heard.getvalue())


def refuse_several(script: str) -> None:
    """:raises ValueError: torchrun has started ``script`` in several processes"""
    if n_ranks() > 1:
        enter([])
        raise ValueError(
            f"torchrun has started RL Zoo's {script} in {n_ranks()} processes, but only `train` is for several: start it "
            "without torchrun."
        )


def for_one_process(find_agent: Callable[..., Any], algorithms: Collection[str]) -> Callable[..., Any]:
    """The function by which all scripts but ``train`` find an agent; under torchrun it refuses.

    :param find_agent: of RL Zoo
    :param algorithms: names of those that are ours
    """
    signature = inspect.signature(find_agent)

    @functools.wraps(find_agent)
    def call(*args: Any, **kwargs: Any) -> Any:
        if signature.bind(*args, **kwargs).arguments.get("algo") in algorithms:
            refuse_several(os.path.basename(sys.argv[0]).removesuffix(".py"))
        return find_agent(*args, **kwargs)

    return call


# --- the experiment


def begin(arguments: Mapping[str, Any]) -> None:
    """Called before an experiment is made, when the command line is parsed.

    :param arguments: those of ``ExperimentManager``
    :raises ValueError: a search on several ranks
    """
    if n_ranks() == 1:
        return
    enter([])
    if _Process.heard is not None and sys.__stderr__ is not None:
        _Process.heard, sys.stderr = None, sys.__stderr__
    if arguments.get("optimize_hyperparameters"):
        raise ValueError(
            f"torchrun has started a search (-optimize) in {n_ranks()} processes, but a trial trains in one: start each "
            "process without torchrun, with the same --storage and --study-name, and Optuna deals the trials out."
        )


def meet(manager: Any, hyperparams: Mapping[str, Any]) -> None:
    """Join the other ranks once the hyperparameters are known; rank 0 decides on the seed and the folder of the run.

    :param manager: the experiment, which gets the attribute ``ranks``
    :param hyperparams: what it trains with; ``distributed`` may have a time-out, or be False
    :raises ValueError: another value of ``distributed``
    """
    if n_ranks() == 1:
        return
    wanted = check_distributed(hyperparams.get("distributed"))
    if wanted is False:
        if not _is_first():
            raise SystemExit(0)
        print("`distributed` is False: rank 0 trains by itself, and the other processes end.")
        return
    n_envs = int(hyperparams.get("n_envs", 1))
    join_launched(wanted["timeout"] if isinstance(wanted, dict) else None)
    group = manager.ranks = Group()
    own = {name: getattr(manager, name) for name in ("seed", "save_path", "params_path")}
    vars(manager).update(group.gather_objects(own)[0])
    if group.rank == 0:
        print(f"Training on {group.size} ranks, each with environments (n_envs={n_envs}) and a replay buffer of its own")
        return
    manager.verbose, manager.tensorboard_log, manager.show_progress, manager.eval_freq = 0, None, False, -1
    set_random_seed(manager.seed + group.rank * n_envs)


def _group(manager: Any) -> Group | None:
    return getattr(manager, "ranks", None)


class Nothing(BaseCallback):
    """Stands where rank 0 has a callback that the other ranks do without."""

    def _on_step(self) -> bool:
        return True


# --- methods of ExperimentManager


def only_first(method: Callable[..., None]) -> Callable[..., None]:
    """What writes to the folder of the run, which rank 0 does for all."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        group = _group(self)
        if group is None or group.rank == 0:
            method(self, *args, **kwargs)

    return call


def with_own_envs(create: Callable[..., Any]) -> Callable[..., Any]:
    """Environments of other ranks have seeds of their own, and write no files of their episodes."""

    @functools.wraps(create)
    def create_envs(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        group = _group(self)
        if group is None or group.rank == 0:
            return create(self, n_envs, eval_env=eval_env, no_log=no_log)
        seed = self.seed
        self.seed = seed + group.rank * n_envs
        try:
            return create(self, n_envs, eval_env=eval_env, no_log=True)
        finally:
            self.seed = seed

    return create_envs


def with_callbacks_of_rank(create: Callable[..., None]) -> Callable[..., None]:
    """``--save-freq`` and ``--eval-freq`` count the steps of all ranks; rank 0 alone saves and evaluates."""

    @functools.wraps(create)
    def create_callbacks(self: Any) -> None:
        group = _group(self)
        if group is None:
            create(self)
            return
        if trains_in_parallel(self.callbacks):
            raise ValueError(
                "`callback` is ParallelTrainCallback, but it must be another one with several ranks: gradient steps at any "
                "time would wait for those of the other ranks."
            )
        for name in ("save_freq", "eval_freq"):
            if getattr(self, name) > 0:
                setattr(self, name, max(getattr(self, name) // group.size, 1))
        create(self)
        for index, callback in enumerate(self.callbacks):
            if group.rank > 0 and isinstance(callback, OF_FIRST):
                self.callbacks[index] = Nothing()

    return create_callbacks
