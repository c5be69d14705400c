"""Runs of RL Zoo that write exact checkpoints, and go on from them: what ``-i FOLDER`` means for our algorithms.

RL Zoo takes a .zip file after ``-i``, and asserts it before it makes its ``ExperimentManager``. So a folder is taken out of
``sys.argv`` when its parser is built, and given to the manager, which then works in that folder instead of a new one, with
the arguments that the run was started with. Nothing here imports RL Zoo; ``zoo`` puts these functions in their places.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files import ranked
from sb3_softac.files.atomic import writing
from sb3_softac.files.checkpoint import Folder
from sb3_softac.zoo_algorithms import ALGORITHMS, Algorithm

#: The folder of the exact checkpoints inside that of a run.
CHECKPOINTS = "checkpoints"

#: ``-i FOLDER`` among the arguments of a command.
AGENT = re.compile(r"(?:--trained-agent|-i)(?:=(.*))?")

#: Arguments of ``ExperimentManager`` that must be those of the run: their names in ``args.yml`` and on the command line.
FIXED = {
    "hyperparams": ("hyperparams", "-params"),
    "env_kwargs": ("env_kwargs", "--env-kwargs"),
    "eval_env_kwargs": ("eval_env_kwargs", "--eval-env-kwargs"),
    "vec_env_type": ("vec_env", "--vec-env"),
    "eval_freq": ("eval_freq", "--eval-freq"),
    "n_eval_episodes": ("eval_episodes", "--eval-episodes"),
    "n_eval_envs": ("n_eval_envs", "--n-eval-envs"),
    "seed": ("seed", "--seed"),
    "config": ("conf_file", "-conf"),
    "storage": ("storage", "--storage"),
    "study_name": ("study_name", "--study-name"),
    "trial_id": ("trial_id", "--trial-id"),
    "optimize_hyperparameters": ("optimize_hyperparameters", "-optimize"),
}

#: Those that may change, and are as they were if they are not given.
FREE = {
    "tensorboard_log": ("tensorboard_log", "-tb"),
    "save_freq": ("save_freq", "--save-freq"),
    "save_replay_buffer": ("save_replay_buffer", "--save-replay-buffer"),
    "log_interval": ("log_interval", "--log-interval"),
    "verbose": ("verbose", "--verbose"),
    "device": ("device", "--device"),
    "show_progress": ("progress", "-P"),
}


# --- the command line


def _is_given(option: str, dest: str, argv: Collection[str]) -> bool:
    names = (option, f"--{dest.replace('_', '-')}")
    return any(argument.partition("=")[0] in names for argument in argv)


class CommandLine:
    """What the command line of a training asked for, until the experiment is made.

    :param folder: what stands after ``-i``, if it is no .zip file
    :param given: arguments of ``ExperimentManager`` that the command line has
    """

    def __init__(self, folder: str = "", given: Collection[str] = ()) -> None:
        self.folder, self.given = folder, frozenset(given)

    @classmethod
    def take_folder(cls, argv: list[str]) -> "CommandLine":
        """Take ``-i FOLDER`` out of a command line; ``-i FILE.zip`` stays there.

        :param argv: arguments, which are changed
        """
        found, kept = "", list(argv)
        for index, argument in enumerate(argv):
            match = AGENT.fullmatch(argument)
            if match:
                n = 1 if match[1] is not None else 2
                found = match[1] or "".join(argv[index + 1 : index + n])
                kept = argv[:index] + argv[index + n :]
        if not found or found.endswith(".zip"):
            return cls()
        argv[:] = kept
        return cls(found, [name for name, (dest, option) in {**FIXED, **FREE}.items() if _is_given(option, dest, argv)])


#: That of this process.
COMMAND_LINE = CommandLine()


def look_at(argv: list[str], algorithm: Algorithm | None) -> None:
    """Called when RL Zoo builds the parser of its training.

    :param argv: arguments, from which ``-i FOLDER`` is taken
    :param algorithm: which of our algorithms they are for
    """
    global COMMAND_LINE
    COMMAND_LINE = CommandLine.take_folder(argv) if algorithm is not None else CommandLine()


def run_to_resume(arguments: dict[str, Any]) -> "Run | None":
    """The run that an experiment is to go on with.

    :param arguments: those of ``ExperimentManager``, which become those of the run
    :raises ValueError: a folder without checkpoints, or another algorithm, environment or argument than that of the run
    """
    global COMMAND_LINE
    command_line, COMMAND_LINE = COMMAND_LINE, CommandLine()
    given: Collection[str] = command_line.given if command_line.folder else set(arguments)
    folder = command_line.folder or arguments.get("trained_agent") or ""
    if arguments["algo"] not in ALGORITHMS or not folder or folder.endswith(".zip"):
        return None
    run = Run(Path(folder), ALGORITHMS[arguments["algo"]], arguments["env_id"])
    arguments.update(run.arguments(arguments, given))
    return run


# --- the run


def _read_yaml(path: Path) -> dict[str, Any]:
    """What RL Zoo has written about a run, which may be any object of Python, and is the user's own."""
    try:
        content = yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"-i needs {str(path)!r}, which RL Zoo wrote when the run began: {error}.") from None
    return dict(content or {})


def _differ(saved: Any, given: Any) -> bool:
    return bool(yaml.dump(saved) != yaml.dump(given))  # sorted, and also of what is never equal


class Run:
    """A run of RL Zoo that goes on, in its folder.

    :param folder: that of the run
    :param algorithm: which one ``--algo`` asks for
    :param env_id: which environment ``--env`` asks for
    :raises ValueError: it has no checkpoints, or is of another algorithm or environment
    """

    def __init__(self, folder: Path, algorithm: Algorithm, env_id: str) -> None:
        self.folder, self.checkpoints = folder, Folder(folder / CHECKPOINTS)
        self.total_is_given, self.episodes_go_on = False, True
        self.name = env_id.replace("/", "-").rpartition(":")[2]  # as RL Zoo names its folders
        several = ranked.ranks_in(self.checkpoints.path)
        of_folder = (Folder(ranked.folder_of(self.checkpoints.path, several[0])) if several else self.checkpoints).run()
        if of_folder is None:
            what = "it has none" if folder.is_dir() else "there is no such folder"
            raise ValueError(
                f"-i is {str(folder)!r}, but it must be a .zip file, or the folder of a run with a checkpoint in "
                f"{CHECKPOINTS}/, as `--save-freq N --save-replay-buffer` writes them: {what}."
            )
        names = {entry.base.__name__: name for name, entry in ALGORITHMS.items()}
        theirs = names.get(of_folder.get("algorithm", ""), algorithm.name)
        if theirs != algorithm.name:
            raise ValueError(f"-i is {str(folder)!r}, a run of --algo {theirs}, but --algo is {algorithm.name}.")
        described = sorted(path.parent.name for path in folder.glob("*/config.yml"))
        if self.name not in described:
            where = " and ".join(described) or "an environment that it does not name, since its config.yml is missing"
            raise ValueError(f"-i is {str(folder)!r}, a run on {where}, but --env is {env_id}.")
        self.config = folder / self.name / "config.yml"
        self.command_line = _read_yaml(folder / self.name / "args.yml")

    def arguments(self, present: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
        """The arguments of ``ExperimentManager`` with which the run goes on.

        :param present: what it would get
        :param given: those of them that the user has passed
        :raises ValueError: one must be that of the run, and is not
        """
        arguments: dict[str, Any] = {}
        for name, (dest, option) in {**FIXED, **FREE}.items():
            saved = self.command_line.get(dest)
            if name not in given:
                arguments |= {name: saved} if dest in self.command_line else {}
            elif name in FIXED and dest in self.command_line and _differ(saved, present[name]):
                raise ValueError(
                    f"{option} is {present[name]!r}, but the run in {str(self.folder)!r} has {saved!r}: it goes on with the "
                    f"arguments that it was started with. Leave out {option}, or begin a new run."
                )
        # config.yml has everything that these have brought.
        from_config = {"config": str(self.config), "hyperparams": None, "storage": None, "study_name": None, "trial_id": None}
        return {**arguments, **from_config, "trained_agent": str(self.folder)}

    def adopt(self, manager: Any) -> None:
        """Let a new experiment work in the folder of the run."""
        manager.continue_training = True
        self.total_is_given = manager.n_timesteps > 0
        manager.save_path, manager.params_path = str(self.folder), str(self.folder / self.name)
        n_threads = self.command_line.get("num_threads", -1)
        if n_threads > 0 >= getattr(manager.args, "num_threads", -1):
            th.set_num_threads(n_threads)

    def keep_monitor_files(self, manager: Any) -> None:
        """Let the environments write on to the files of their episodes, which RL Zoo would begin again."""
        has_success = manager.is_robotics_env(manager.env_name.gym_id) or (
            "parking-v0" in manager.env_name.gym_id and not manager.monitor_kwargs
        )
        present = {"info_keywords": ("is_success",)} if has_success else manager.monitor_kwargs
        manager.is_robotics_env = lambda _: False  # for which RL Zoo would replace the arguments again
        begins = not list(self.folder.glob("*.monitor.csv"))
        manager.monitor_kwargs = {**present, "override_existing": begins}

    def model(self, manager: Any, env: VecEnv, owner: Any) -> Any:
        """The model of the newest whole checkpoint.

        :param manager: the experiment
        :param env: its environments
        :param owner: the class of its algorithm
        """
        model = owner.resume(self.checkpoints.path, env, device=manager.device)
        if not self.total_is_given:
            manager.n_timesteps = model._runtime.resumption.total_timesteps
        self.episodes_go_on = "obstacle" not in model._runtime.resumption.checkpoint.state["environment"]
        model.tensorboard_log, model.verbose = manager.tensorboard_log, manager.verbose
        print(f"Going on from step {model.num_timesteps:,} of {manager.n_timesteps:,}, in {self.folder}")
        return model


class CutMonitorFiles(BaseCallback):
    """Where a run goes on, remove the episodes after its checkpoint from the files of the environments: they come again.

    They do not where an environment begins a new episode.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self._is_done = run, False

    def _on_rollout_start(self) -> None:
        if self._is_done or not self.run.episodes_go_on:
            return
        self._is_done = True
        for index, returns in enumerate(self.training_env.env_method("get_episode_rewards")):
            path = self.run.folder / f"{index}.monitor.csv"
            if path.is_file():
                lines = path.read_bytes().splitlines(keepends=True)[: 2 + len(returns)]  # two are the heading
                whole = [line for line in lines if line.endswith(b"\n")]
                os.truncate(path, sum(map(len, whole)))

    def _on_step(self) -> bool:
        return True


# --- methods of ExperimentManager


def trains_in_parallel(callbacks: list[Any]) -> bool:
    """Whether RL Zoo's ``ParallelTrainCallback`` is among ``callbacks``."""
    return any(type(callback).__name__ == "ParallelTrainCallback" for callback in callbacks)


def with_checkpoints(create: Callable[..., None]) -> Callable[..., None]:
    """``--save-freq`` with ``--save-replay-buffer`` writes exact checkpoints, besides the agents that RL Zoo writes."""

    @functools.wraps(create)
    def create_callbacks(self: Any) -> None:
        run = getattr(self, "resumed", None)
        if run is not None:
            run.keep_monitor_files(self)
        create(self)
        if self.algo not in ALGORITHMS or self.optimize_hyperparameters:
            return
        if self.save_freq > 0 and self.save_replay_buffer and trains_in_parallel(self.callbacks):
            print("No exact checkpoints are written: ParallelTrainCallback trains another model, at any time.")
        elif self.save_freq > 0 and self.save_replay_buffer:
            own = next(i for i, callback in enumerate(self.callbacks) if isinstance(callback, CheckpointCallback))
            exact = ExactCheckpointCallback(self.save_freq, Path(self.save_path) / CHECKPOINTS, verbose=self.verbose)
            self.callbacks.insert(own + 1, exact)
        if run is not None:
            self.callbacks.append(CutMonitorFiles(run))

    return create_callbacks


def with_durable_config(save: Callable[..., None]) -> Callable[..., None]:
    """What RL Zoo writes about a run is on the disk before it begins; a run that goes on has it already."""

    @functools.wraps(save)
    def _save_config(self: Any, saved_hyperparams: dict[str, Any]) -> None:
        folder = Path(self.params_path)
        if getattr(self, "resumed", None) is not None:
            with (folder / "command.txt").open("a") as file:
                file.write("\n" + " ".join(sys.orig_argv))
            print(f"Log path: {self.save_path}")
            return
        save(self, saved_hyperparams)
        if self.algo in ALGORITHMS:
            for name in ("config.yml", "args.yml"):
                content = (folder / name).read_bytes()
                with writing(folder / name) as file:
                    file.write(content)

    return _save_config
