"""Our algorithms as RL Zoo gets to know them: names and files of hyperparameters, presets, search spaces.

``ALGORITHMS`` has a row for each, which answers everything in which they differ. Nothing here imports RL Zoo.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_softac import SoftAC, SoftQL, presets, zoo_spaces
from sb3_softac.algorithm import SoftAlgorithm
from sb3_softac.zoo_spaces import Search, Suggest

if TYPE_CHECKING:
    import optuna

#: Strings that RL Zoo's ``-params`` would evaluate as Python and fail on: schedules, "auto" and "auto_0.1".
PLAIN_STRING = re.compile(r"((lin|exp|cos|warm|std)_[-+.\w]+|auto(_[-+.\w]+)?)")

#: Names of functions, classes and modules, which are strings where an argument takes names.
PLAIN_NAME = re.compile(r"(?!(True|False|None)$)[A-Za-z_][-.\w]*")

#: Hyperparameters that RL Zoo itself understands, and two of ours: one stands for many, one says what a search samples.
OF_RL_ZOO = (
    *("callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps", "noise_std"),
    *("noise_type", "normalize", "policy", "preset", "search", "vec_env_wrapper"),
)

#: Those that take names, as do arguments of an algorithm whose default is a string.
TAKE_NAMES = (
    *("callback", "env_wrapper", "noise_type", "policy", "preset", "replay_buffer_class", "search", "vec_env_wrapper"),
)
#: Arguments that take names though their default is None.
NAMES_OR_NONE = ("actor_q",)

#: Arguments of the algorithms that RL Zoo passes from its own command line.
OF_COMMAND_LINE = {name: f"--{name.replace('_', '-')}" for name in ("device", "env", "seed", "tensorboard_log", "verbose")}


@dataclass(frozen=True)
class Algorithm:
    """One of our algorithms in RL Zoo.

    A search samples what RL Zoo samples for SAC, but for ``fixed``, and ``space``. Where RL Zoo has been given a subclass of
    ``base``, the arguments of that count too.

    :param name: its name after ``--algo``
    :param base: its class
    :param presets: those that are meant for it, by name
    :param space: how the parameters of our own part of a search are sampled, by name
    :param arguments: turns them into constructor arguments, ``policy_kwargs`` among them, and adds what these need, in case
        the hyperparameter file or the command line has set it otherwise
    :param continuous_space: more of them, which belong to continuous actions only
    :param fixed: what RL Zoo samples for SAC and ``arguments`` sets in another way
    :param of_task: arguments that the presets leave to the task, so that one in ``-params`` does not replace them
    :param takes_sac: whether it continues agents of SB3's SAC, and of sb3-contrib's TQC and CrossQ
    :param searches: those that take the place of ``space`` where the hyperparameter ``search`` asks for one, by name
    """

    name: str
    base: type[SoftAlgorithm]
    presets: Mapping[str, presets.Preset]
    space: Mapping[str, Suggest]
    arguments: Callable[[dict[str, Any]], dict[str, Any]]
    continuous_space: Mapping[str, Suggest] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    of_task: tuple[str, ...] = ()
    takes_sac: bool = False
    searches: Mapping[str, Search] = field(default_factory=dict)

    @property
    def sampled(self) -> tuple[str, ...]:
        """Names of all parameters that are our own part of a search."""
        return (*self.space, *self.continuous_space)

    def sample(self, trial: "optuna.Trial", n_actions: int) -> dict[str, Any]:
        """Sample our own part of a trial, as parameters by name.

        :param trial: Optuna trial
        :param n_actions: dimension of the actions, 0 if they are discrete
        """
        space = {**self.space, **(self.continuous_space if n_actions else {})}
        return {name: suggest(trial, name) for name, suggest in space.items()}

    def check_search(self, name: object) -> None:
        """:raises ValueError: ``name`` is neither None nor that of a search"""
        if name is None or (isinstance(name, str) and name in self.searches):
            return
        allowed = f"one of {', '.join(map(repr, self.searches))}, or left out" if self.searches else "left out"
        raise ValueError(f"`search` is {name!r}, but it must be {allowed} for {self.base.__name__}.")

    @property
    def hyperparams_path(self) -> Path:
        """Its hyperparameters in RL Zoo's format: inside the package when installed, beside it in a checkout."""
        package, place = Path(__file__).resolve().parent, Path("hyperparams", f"{self.name}.yml")
        return package / place if (package / place).is_file() else package.parent / place

    def option_defaults(self, used: type[BaseAlgorithm] | None = None) -> dict[str, Any]:
        """The arguments that hyperparameters may set, with their defaults.

        :param used: ``base``, or the subclass that RL Zoo has been given
        """
        constructors = [inspect.signature(owner) for owner in (used or self.base).__mro__ if issubclass(owner, self.base)]
        defaults = {name: entry.default for constructor in constructors for name, entry in constructor.parameters.items()}
        other = {*OF_COMMAND_LINE, "policy", "args", "kwargs", "_init_setup_model"}
        return {name: default for name, default in defaults.items() if name not in other}

    def check_names(self, hyperparams: Mapping[str, Any], options: Collection[str]) -> None:
        """Refuse names that neither the algorithm nor RL Zoo knows, before anything is built from them.

        :param hyperparams: values by name
        :param options: names of the algorithm's arguments
        :raises ValueError: an unknown name, or one that belongs to another argument of the command line
        """
        for name, value in hyperparams.items():
            if name in OF_COMMAND_LINE:
                raise ValueError(
                    f"`{name}` is {value!r}, but it must not be a hyperparameter: pass {OF_COMMAND_LINE[name]} instead."
                )
            if name not in options and name not in OF_RL_ZOO:
                raise ValueError(
                    f"`{name}` is {value!r}, but there is no such hyperparameter.{suggestion(name, [*options, *OF_RL_ZOO])} "
                    f"Allowed are arguments of {self.base.__name__} ({', '.join(options)}) and of RL Zoo "
                    f"({', '.join(OF_RL_ZOO)})."
                )

    def check_parallel(self, model: Any) -> None:
        """``ParallelTrainCallback`` trains a copy that sees no environment, and hands its state back.

        :raises ValueError: ``model`` normalises by what the environments return
        """
        for name, without in (("normalize_observations", False), ("normalize_rewards", None)):
            value = getattr(model, name, without)
            if value != without:
                raise ValueError(
                    f"`{name}` is {value!r}, but it must be {without!r} with ParallelTrainCallback, which trains a copy of "
                    "the model that sees no environment: its statistics would stand still."
                )

    def check_preset(self, name: object) -> None:
        """:raises ValueError: ``name`` is no preset, or one of another algorithm"""
        if isinstance(name, str) and name in self.presets:
            return
        owner = next((other for other in ALGORITHMS.values() if isinstance(name, str) and name in other.presets), None)
        whose = f", a preset of {owner.base.__name__} (--algo {owner.name})" if owner else ""
        allowed = f"one of {', '.join(map(repr, self.presets))} for {self.base.__name__}"
        raise ValueError(f"`preset` is {name!r}{whose}, but it must be {allowed}.")


def quoted(argument: str, options: Mapping[str, Any]) -> str:
    """``NAME:VALUE`` of ``-params``, with quotes around a value that is a string without them.

    ``min`` is one where an argument takes names, and no function of Python.

    :param argument: what the command line has
    :param options: arguments of the algorithm, with their defaults
    """
    name, _, value = argument.partition(":")
    takes_names = name in TAKE_NAMES or isinstance(options.get(name), str) or (name in options and name in NAMES_OR_NONE)
    is_string = PLAIN_STRING.fullmatch(value) or (PLAIN_NAME.fullmatch(value) and takes_names)
    return f"{name}:{value!r}" if is_string else argument


def suggestion(name: str, allowed: list[str]) -> str:
    """The allowed name that is nearest to ``name``, as a sentence behind another one; empty if none is near."""
    matches = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


# --- the table

SOFTAC = Algorithm(
    name="softac",
    base=SoftAC,
    presets=presets.PRESETS,
    space=zoo_spaces.SOFTAC,
    arguments=zoo_spaces.softac_arguments,
    takes_sac=True,
    searches={"critics": zoo_spaces.CRITICS},
)

SOFTQL = Algorithm(
    name="softql",
    base=SoftQL,
    presets=presets.SOFTQL_PRESETS,
    space=zoo_spaces.SOFTQL,
    continuous_space=zoo_spaces.SOFTQL_CONTINUOUS,
    arguments=zoo_spaces.softql_arguments,
    fixed=("tau",),
    of_task=("reward_scale",),
)

#: All of them, by their names in RL Zoo.
ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in (SOFTAC, SOFTQL)}
