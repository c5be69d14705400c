"""Everything about RL Zoo: registration, hyperparameter search, and ``python -m sb3_softac.zoo train|enjoy|…``.

RL Zoo finds algorithms, samplers and converters in dicts that its modules share, so these are changed in place, and so are
its classes, which other modules may have imported already. Every extension acts only where the algorithm is ``softac``, but
for one: with all algorithms ``-params`` takes a few strings without quotes, which is an error otherwise.
"""

import argparse
import contextlib
import difflib
import functools
import inspect
import io
import re
import runpy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pprint import pprint
from types import FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from sb3_softac import SoftAC, presets
from sb3_softac.errors import DamagedFileError
from sb3_softac.files.conversion import load_sac
from sb3_softac.files.reading import attribute_names

# RL Zoo is imported inside functions: its modules may be in the middle of their own import when this one is.
if TYPE_CHECKING:
    import optuna

ALGO = "softac"

#: Strings that RL Zoo's ``-params`` would evaluate as Python and fail on: schedules, "auto" and "auto_0.1".
PLAIN_STRING = re.compile(r"((lin|exp|cos|warm)_[-+.\w]+|auto(_[-+.\w]+)?)")

#: Names of functions, classes and modules, which are strings where an argument takes names.
PLAIN_NAME = re.compile(r"(?!(True|False|None)$)[A-Za-z_][-.\w]*")

#: Hyperparameters that RL Zoo itself understands, and ours that stands for many.
OF_RL_ZOO = (
    *("callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps", "noise_std"),
    *("noise_type", "normalize", "policy", "preset", "vec_env_wrapper"),
)

#: Arguments of SoftAC that RL Zoo passes from its own command line.
OF_COMMAND_LINE = {name: f"--{name.replace('_', '-')}" for name in ("device", "env", "seed", "tensorboard_log", "verbose")}

SAMPLED_BY_US = ("value_network", "actor_q", "target_q", "policy_delay", "ent_coef_update", "actor_learning_rate")

#: What RL Zoo prints before the hyperparameters.
HEADING = "Default hyperparameters for environment (ones being tuned will be overridden):"

#: How the ``config.yml`` of a run begins.
SAVED_CONFIG = "!!python/object/apply:collections.OrderedDict"

#: The scripts that ``python -m sb3_softac.zoo`` runs, by the module in ``rl_zoo3`` and what they do.
SCRIPTS = {
    "train": ("train", "train an agent, continue one (-i) or search hyperparameters (-optimize)"),
    "enjoy": ("enjoy", "run a trained agent"),
    "record_video": ("record_video", "record a video of a trained agent"),
    "record_training": ("record_training", "record a video of an agent at each of its checkpoints"),
    "plot_train": ("plots.plot_train", "plot the returns of training episodes"),
    "all_plots": ("plots.all_plots", "plot evaluations of several algorithms and tasks"),
    "plot_from_file": ("plots.plot_from_file", "plot what all_plots has saved"),
    "benchmark": ("benchmark", "evaluate all trained agents of a folder"),
    "push_to_hub": ("push_to_hub", "upload an agent to the Hugging Face hub"),
    "load_from_hub": ("load_from_hub", "download an agent from there"),
}


def hyperparams_path() -> Path:
    """Our hyperparameters in RL Zoo's format: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "hyperparams" / f"{ALGO}.yml"
    return installed if installed.is_file() else package.parent / "hyperparams" / f"{ALGO}.yml"


# --- hyperparameter search


def convert_softac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn the parameters of a trial into arguments of ``SoftAC``; the shared ones are converted as those of SAC.

    :param sampled_params: parameters as Optuna stores them
    :return: constructor arguments
    """
    from rl_zoo3.hyperparams_opt import convert_offpolicy_params

    ours = {name: value for name, value in sampled_params.items() if name in SAMPLED_BY_US}
    shared = {name: value for name, value in sampled_params.items() if name not in SAMPLED_BY_US}
    return {**convert_offpolicy_params(shared), **_with_implied(ours)}


def sample_softac_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample what RL Zoo samples for SAC, and our own options.

    :param trial: Optuna trial
    :param n_actions: action dimension
    :param n_envs: number of environments
    :param additional_args: RL Zoo's information about the replay buffer
    :return: constructor arguments
    """
    from rl_zoo3.hyperparams_opt import sample_sac_params

    shared: dict[str, Any] = sample_sac_params(trial, n_actions, n_envs, additional_args)
    ours = {
        "value_network": trial.suggest_categorical("value_network", [False, True]),
        "actor_q": trial.suggest_categorical("actor_q", ["min", "mean", "first"]),
        "target_q": trial.suggest_categorical("target_q", ["min", "mean"]),
        "policy_delay": trial.suggest_int("policy_delay", 1, 3),
        "ent_coef_update": trial.suggest_categorical("ent_coef_update", ["dual", "log", "exp"]),
        "actor_learning_rate": trial.suggest_float("actor_learning_rate", 1e-5, 0.002, log=True),
    }
    return {**shared, **_with_implied(ours)}


def _with_implied(ours: dict[str, Any]) -> dict[str, Any]:
    """Add what the sampled options need, in case the hyperparameter file or the command line has set it otherwise."""
    # A search over its update needs a learned temperature; the common learning rate is sampled, so critics must follow it.
    implied: dict[str, Any] = {"ent_coef": "auto", "critic_learning_rate": None, "ent_coef_learning_rate": None}
    if not ours.get("value_network", False):
        implied["value_learning_rate"] = None
    return {**implied, **ours}


def option_defaults() -> dict[str, Any]:
    """The arguments of ``SoftAC`` that hyperparameters may set, with their defaults.

    RL Zoo may have been given a subclass instead of ``SoftAC``, whose own arguments count too.
    """
    from rl_zoo3.utils import ALGOS

    constructors = [inspect.signature(base) for base in ALGOS.get(ALGO, SoftAC).__mro__ if issubclass(base, SoftAC)]
    defaults = {name: entry.default for constructor in constructors for name, entry in constructor.parameters.items()}
    other = {*OF_COMMAND_LINE, "policy", "args", "kwargs", "_init_setup_model"}
    return {name: default for name, default in defaults.items() if name not in other}


def takes_names(argument: str) -> bool:
    """Whether the values of a hyperparameter are names: ``min`` is one of them, and no function of Python."""
    default = option_defaults().get(argument)
    others = ("callback", "env_wrapper", "noise_type", "policy", "preset", "replay_buffer_class", "vec_env_wrapper")
    return argument in others or isinstance(default, str)


def check_names(hyperparams: Mapping[str, Any]) -> None:
    """Refuse names that neither ``SoftAC`` nor RL Zoo knows, before anything is built from them.

    :param hyperparams: values by name
    :raises ValueError: an unknown name, or one that belongs to another argument of the command line
    """
    ours = list(option_defaults())
    for name, value in hyperparams.items():
        if name in OF_COMMAND_LINE:
            raise ValueError(
                f"`{name}` is {value!r}, but it must not be a hyperparameter: pass {OF_COMMAND_LINE[name]} instead."
            )
        if name not in ours and name not in OF_RL_ZOO:
            raise ValueError(
                f"`{name}` is {value!r}, but there is no such hyperparameter.{_suggest(name, [*ours, *OF_RL_ZOO])} "
                f"Allowed are arguments of SoftAC ({', '.join(ours)}) and of RL Zoo ({', '.join(OF_RL_ZOO)})."
            )


def _suggest(name: str, allowed: list[str]) -> str:
    matches = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def expand_preset(explicit: Mapping[str, Any] | None, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Replace the key ``preset`` by the arguments that it stands for.

    A preset of the hyperparameter file is overridden by its other keys. One of the command line replaces what the file
    tunes for its task, and is overridden by the other arguments of the command line, and by those of an Optuna trial.

    :param explicit: what was passed with ``-params``, or comes from a trial
    :param hyperparams: the entry of the file, updated with it
    :return: arguments of ``SoftAC`` and of RL Zoo
    :raises ValueError: unknown preset
    """
    if "preset" not in hyperparams:
        return hyperparams
    given = {name: value for name, value in hyperparams.items() if name != "preset"}
    if "preset" in (explicit or {}):
        tuned = {*option_defaults()} - {*(explicit or {})}
        given = {name: value for name, value in given.items() if name not in tuned}
    if isinstance(given.get("policy_kwargs"), str):
        import rl_zoo3.exp_manager

        # As RL Zoo does a little later, with the names that it has there.
        given["policy_kwargs"] = eval(given["policy_kwargs"], dict(vars(rl_zoo3.exp_manager)))
    return presets.get(hyperparams["preset"], **given)


def _store_params(store: Callable[..., None]) -> Callable[..., None]:
    """``-params`` takes names and schedules without quotes; for ``softac`` it explains what it does not understand."""

    @functools.wraps(store)
    def call(self: Any, parser: Any, namespace: Any, values: list[str], option_string: str | None = None) -> None:
        quoted = []
        for argument in values:
            key, _, value = argument.partition(":")
            is_string = PLAIN_STRING.fullmatch(value) or (PLAIN_NAME.fullmatch(value) and takes_names(key))
            quoted.append(f"{key}:{value!r}" if is_string else argument)
        # `--algo` may stand behind `-params`: the namespace then still holds its default.
        command = f"{' '.join(sys.argv)} ".replace("=", " ")
        is_ours = getattr(namespace, "algo", None) == ALGO or f" --algo {ALGO} " in command
        if not is_ours or "-params" not in self.option_strings:
            store(self, parser, namespace, quoted, option_string)
            return
        stored: dict[str, Any] = {}
        for argument in quoted:
            key, _, value = argument.partition(":")
            try:
                check_names({key: value})
            except ValueError as error:
                raise argparse.ArgumentError(self, str(error)) from error
            try:
                store(self, parser, namespace, [argument], option_string)
            except Exception as error:  # whatever Python raises on the user's text
                reason = f"is {value!r}, which Python does not understand ({error})" if value else "has no value"
                message = f"`{key}` {reason}; write {key}:VALUE, and quotes around a string: {key}:\"'text'\"."
                raise argparse.ArgumentError(self, message) from error
            stored |= getattr(namespace, self.dest)
        setattr(namespace, self.dest, stored)

    return call


@contextlib.contextmanager
def _readable(manager: Any) -> Iterator[None]:
    """Let RL Zoo read the ``config.yml`` of a run, which is the entry of one task, and holds Python objects.

    RL Zoo itself reads such files only to enjoy an agent; as hyperparameters it takes a dict of entries, also from a package.
    """
    path = str(manager.config)
    text = Path(path).read_text() if path.endswith((".yml", ".yaml")) and Path(path).is_file() else ""
    if not text.startswith(SAVED_CONFIG):
        yield
        return
    package = ModuleType(f"the file {path} of a run")
    vars(package)["hyperparams"] = {manager.env_name.gym_id: dict(yaml.load(text, Loader=yaml.UnsafeLoader))}
    manager.config, sys.modules[package.__name__] = package.__name__, package
    try:
        yield
    finally:
        manager.config = path
        del sys.modules[package.__name__]


def _read_what_is_used(read: Callable[..., Any]) -> Callable[..., Any]:
    """Print and save the hyperparameters that are used: presets expanded, with what the command line says elsewhere."""

    @functools.wraps(read)
    def read_hyperparameters(self: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.algo != ALGO:
            return read(self)  # type: ignore[no-any-return]
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), _readable(self):
                hyperparams = dict(read(self)[0])
        finally:
            print(printed.getvalue().partition(HEADING)[0], end="")
        explicit = dict(self.custom_hyperparams or {})
        if self.storage and self.study_name and self.trial_id:
            explicit = self.load_trial(self.storage, self.study_name, self.trial_id) | explicit
        check_names(hyperparams)
        hyperparams = expand_preset(explicit, hyperparams)
        if self.n_timesteps > 0:
            hyperparams["n_timesteps"] = self.n_timesteps
        if self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        elif "env_kwargs" in hyperparams and not self.eval_env_kwargs:
            self.eval_env_kwargs = hyperparams["env_kwargs"]  # RL Zoo would evaluate on another task than it trains on
        self._used = OrderedDict(sorted(hyperparams.items()))
        print(HEADING)
        pprint(self._used)
        return hyperparams, self._used

    return read_hyperparameters


def _continue_from_sac(load: Callable[..., Any]) -> Callable[..., Any]:
    """``--trained-agent`` takes files of SB3's SAC too; what is kept from the agent is saved as it has it."""

    @functools.wraps(load)
    def _load_pretrained_agent(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        if self.algo != ALGO:
            return load(self, hyperparams, env)
        algorithms = {ALGO: SimpleNamespace(load=_load_sac)}
        is_sac = saved_by_sac(self.trained_agent)
        model = (_rebind(load, ALGOS=algorithms) if is_sac else load)(self, hyperparams, env)
        of_policy = {name: value for name, value in model.policy_kwargs.items() if name not in ("use_sde", "value_network")}
        kept = {"policy_kwargs": of_policy, "ent_coef": model.ent_coef}
        changed = {name: kept[name] for name in kept if name in self._used and self._used[name] != kept[name]}
        if changed:
            print(f"Kept from {self.trained_agent}, whatever is listed above: {changed}")
            self._used.update(changed)
        return model

    return _load_pretrained_agent


def saved_by_sac(path: str | Path) -> bool:
    """Whether SB3's SAC has saved a file, and no other algorithm that has the same attributes.

    :param path: a file that SB3 or one of its plugins has saved
    """
    try:
        attributes = attribute_names(path)
    except DamagedFileError:
        return False  # whoever loads it says what is wrong
    others = {"ent_coef_update", "top_quantiles_to_drop_per_net"}  # SoftAC, TQC
    return {"batch_norm_stats_target", "ent_coef"} <= attributes and not others & attributes


def _load_sac(path: str, env: Any, device: Any, **hyperparams: Any) -> SoftAC:
    sac = load_sac(path)  # without a replay buffer: RL Zoo loads that of the run afterwards
    # As when RL Zoo continues SAC itself: a learned temperature goes on from where it was.
    is_learned = sac.log_ent_coef is not None
    if is_learned and str(hyperparams.get("ent_coef", "")).startswith("auto"):
        del hyperparams["ent_coef"]
    model = SoftAC.from_sb3(sac, env=env, device=device, **hyperparams)
    temperature = f", with a temperature of the form ent_coef_update={model.ent_coef_update!r}" if is_learned else ""
    print(
        f"{path} was saved by SB3's SAC: SoftAC goes on from its networks, optimizers and entropy coefficient{temperature}; "
        "the hyperparameters above replace those of the file."
    )
    return model


def _rebind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The same function of RL Zoo, for which some of its module's names mean something else."""
    function = inspect.unwrap(function)
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__, function.__closure__
    )


def _with_our_defaults(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.algo == ALGO:
            if not signature.bind(self, *args, **kwargs).arguments.get("config"):
                self.config = str(hyperparams_path())
            # Instead of RL Zoo's own parsing of schedules, which knows fewer of them than SoftAC.
            self._preprocess_schedules = functools.partial(expand_preset, self.custom_hyperparams)

    return __init__


def _train_in_parallel(method: Callable[..., None]) -> Callable[..., None]:
    """``ParallelTrainCallback`` asks for SAC by name, and needs nothing of it that SoftAC has not."""

    @functools.wraps(method)
    def call(self: Any) -> None:
        if isinstance(self.model, SoftAC):
            _rebind(method, SAC=type(self.model))(self)
        else:
            method(self)

    return call


def _extend(owner: type, **methods: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap methods of a class of RL Zoo, once."""
    if "_knows_softac" in vars(owner):
        return
    for name, wrap in methods.items():
        setattr(owner, name, wrap(getattr(owner, name)))
    owner._knows_softac = True  # type: ignore[attr-defined]


def extend_utils(module: ModuleType) -> None:
    """Add SoftAC to RL Zoo's algorithms, and let ``-params`` take its strings without extra quotes.

    :param module: ``rl_zoo3.utils``
    """
    module.ALGOS.setdefault(ALGO, SoftAC)
    _extend(module.StoreDict, __call__=_store_params)


def extend_callbacks(module: ModuleType) -> None:
    """Let ``ParallelTrainCallback`` train SoftAC.

    :param module: ``rl_zoo3.callbacks``
    """
    _extend(module.ParallelTrainCallback, _init_callback=_train_in_parallel, _on_rollout_end=_train_in_parallel)


def extend_experiment_manager(module: ModuleType) -> None:
    """Add sampler and converter for ``-optimize``, our hyperparameter file and presets, and files of SAC to continue from.

    :param module: ``rl_zoo3.exp_manager``
    """
    import rl_zoo3.callbacks
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    HYPERPARAMS_SAMPLER.setdefault(ALGO, sample_softac_params)
    HYPERPARAMS_CONVERTER.setdefault(ALGO, convert_softac_params)
    _extend(
        module.ExperimentManager,
        __init__=_with_our_defaults,
        read_hyperparameters=_read_what_is_used,
        _load_pretrained_agent=_continue_from_sac,
    )
    extend_callbacks(rl_zoo3.callbacks)  # which the manager has imported


def register() -> None:
    """Make ``softac`` known to RL Zoo in this process; calling it again changes nothing."""
    import rl_zoo3.exp_manager
    import rl_zoo3.utils

    extend_utils(rl_zoo3.utils)
    extend_experiment_manager(rl_zoo3.exp_manager)


def main() -> None:
    """Run a script of RL Zoo, such as ``train`` or ``enjoy``, with SoftAC registered; exit with 2 if there is none."""
    scripts = "\n".join(f"  {name:16} {text}" for name, (_, text) in SCRIPTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m sb3_softac.zoo",
        usage=f"%(prog)s SCRIPT [arguments of that script]\n\nscripts (SCRIPT --help lists their arguments):\n{scripts}",
        description=f"Run a script of RL Zoo that knows --algo {ALGO}.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="one of those above")
    script = parser.parse_args(sys.argv[1:2]).script
    if script not in SCRIPTS:
        parser.error(f"SCRIPT is {script!r}, but it must be one of {', '.join(SCRIPTS)}.{_suggest(script, list(SCRIPTS))}")
    register()
    del sys.argv[1]
    runpy.run_module(f"rl_zoo3.{SCRIPTS[script][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
