"""Everything about RL Zoo: registration, hyperparameter search, and ``python -m sb3_softac.zoo train|enjoy|…``.

RL Zoo finds algorithms, samplers and converters in dicts that its modules share, so these are changed in place, and so are
its classes, which other modules may have imported already. Every extension acts only where the algorithm is one of ours, which
``zoo_algorithms`` lists, but for one: with all algorithms ``-params`` takes a few strings without quotes, which is an error
otherwise.
"""

import argparse
import contextlib
import functools
import inspect
import io
import runpy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pprint import pprint
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import yaml

from sb3_softac import SoftAC, presets, zoo_ranks, zoo_resume, zoo_search
from sb3_softac.arguments.checks import check_choice
from sb3_softac.errors import DamagedFileError
from sb3_softac.files import from_contrib
from sb3_softac.files.conversion import load_sac
from sb3_softac.files.reading import attribute_names
from sb3_softac.zoo_algorithms import ALGORITHMS, Algorithm, quoted, suggestion

# RL Zoo is imported inside functions: its modules may be in the middle of their own import when this one is.

#: The algorithm that is meant where none is named.
ALGO = "softac"

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


def hyperparams_path(algo: str = ALGO) -> Path:
    """The file of hyperparameters of one of our algorithms, in RL Zoo's format.

    :param algo: its name in RL Zoo
    :raises ValueError: unknown name
    """
    check_choice("algo", algo, tuple(ALGORITHMS))
    return ALGORITHMS[algo].hyperparams_path


def _class_of(algorithm: Algorithm) -> Any:
    from rl_zoo3.utils import ALGOS

    return ALGOS.get(algorithm.name)


def option_defaults(algorithm: Algorithm) -> dict[str, Any]:
    """The arguments that hyperparameters may set, with their defaults; those of a subclass that RL Zoo has been given, too."""
    return algorithm.option_defaults(_class_of(algorithm))


def expand_preset(
    explicit: Mapping[str, Any] | None, hyperparams: dict[str, Any], algorithm: Algorithm = ALGORITHMS[ALGO]
) -> dict[str, Any]:
    """Replace the key ``preset`` by the arguments that it stands for.

    A preset of the hyperparameter file is overridden by its other keys. One of the command line replaces what the file
    tunes for its task, but for what the presets leave to that, and is overridden by the other arguments of the command line,
    and by those of an Optuna trial.

    :param explicit: what was passed with ``-params``, or comes from a trial
    :param hyperparams: the entry of the file, updated with it
    :param algorithm: what the preset must be for
    :return: arguments of the algorithm and of RL Zoo
    :raises ValueError: unknown preset, or one of another algorithm
    """
    if "preset" not in hyperparams:
        return hyperparams
    algorithm.check_preset(hyperparams["preset"])
    given = {name: value for name, value in hyperparams.items() if name != "preset"}
    if "preset" in (explicit or {}):
        tuned = {*option_defaults(algorithm)} - {*(explicit or {})} - {*algorithm.of_task}
        given = {name: value for name, value in given.items() if name not in tuned}
    if isinstance(given.get("policy_kwargs"), str):
        import rl_zoo3.exp_manager

        # As RL Zoo does a little later, with the names that it has there.
        given["policy_kwargs"] = eval(given["policy_kwargs"], dict(vars(rl_zoo3.exp_manager)))
    return presets.get(hyperparams["preset"], **given)


def _asked_for(namespace: Any) -> Algorithm | None:
    """Which of our algorithms a command line is for; ``--algo`` may stand behind what is parsed now."""
    command = f"{' '.join(sys.argv)} ".replace("=", " ")
    behind = next((algorithm for name, algorithm in ALGORITHMS.items() if f" --algo {name} " in command), None)
    return ALGORITHMS.get(getattr(namespace, "algo", ""), behind)


def _store_params(store: Callable[..., None]) -> Callable[..., None]:
    """``-params`` takes names and schedules without quotes; for ours it explains what it does not understand."""

    @functools.wraps(store)
    def call(self: Any, parser: Any, namespace: Any, values: list[str], option_string: str | None = None) -> None:
        algorithm = _asked_for(namespace)
        options = option_defaults(algorithm or ALGORITHMS[ALGO])
        values = [quoted(argument, options) for argument in values]
        if algorithm is None or "-params" not in self.option_strings:
            store(self, parser, namespace, values, option_string)
            return
        stored: dict[str, Any] = {}
        for argument in values:
            key, _, value = argument.partition(":")
            try:
                algorithm.check_names({key: value}, options)
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


def _look_at_command_line(init: Callable[..., None]) -> Callable[..., None]:
    """The argument ``-params`` belongs to the parser of RL Zoo's training, which ``-i FOLDER`` must not reach."""

    @functools.wraps(init)
    def __init__(self: Any, option_strings: list[str], *args: Any, **kwargs: Any) -> None:
        init(self, option_strings, *args, **kwargs)
        if "-params" in option_strings:
            algorithm = _asked_for(None)
            if algorithm is not None:
                zoo_ranks.enter(sys.argv)
            zoo_resume.look_at(sys.argv, algorithm)

    return __init__


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
        algorithm = ALGORITHMS.get(self.algo)
        if algorithm is None:
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
        algorithm.check_names(hyperparams, option_defaults(algorithm))
        zoo_search.take(self, hyperparams, algorithm)
        hyperparams = expand_preset(explicit, hyperparams, algorithm)
        if self.n_timesteps > 0:
            hyperparams["n_timesteps"] = self.n_timesteps
        if self.env_kwargs:
            hyperparams["env_kwargs"] = self.env_kwargs
        elif "env_kwargs" in hyperparams and not self.eval_env_kwargs:
            self.eval_env_kwargs = hyperparams["env_kwargs"]  # RL Zoo would evaluate on another task than it trains on
        self._used = OrderedDict(sorted(hyperparams.items()))
        print(HEADING)
        pprint(self._used)
        zoo_ranks.meet(self, hyperparams)
        return hyperparams, self._used

    return read_hyperparameters


def _continue(load: Callable[..., Any]) -> Callable[..., Any]:
    """What is kept from a ``--trained-agent`` is saved as it has it.

    It may be a run; with ``softac`` a file of SB3's SAC, or of sb3-contrib's TQC or CrossQ.
    """

    @functools.wraps(load)
    def _load_pretrained_agent(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        algorithm = ALGORITHMS.get(self.algo)
        if algorithm is None:
            return load(self, hyperparams, env)
        if self.resumed is not None:
            return self.resumed.model(self, env, _class_of(algorithm))
        algorithms = {algorithm.name: SimpleNamespace(load=_load_peer)}
        of_peer = algorithm.takes_sac and saved_by_peer(self.trained_agent) is not None
        model = (_rebind(load, ALGOS=algorithms) if of_peer else load)(self, hyperparams, env)
        # The model also keeps there what it tells its policy of its own options.
        options = option_defaults(algorithm)
        of_policy = {name: value for name, value in model.policy_kwargs.items() if name not in options}
        kept = {"policy_kwargs": of_policy, "ent_coef": model.ent_coef}
        changed = {name: kept[name] for name in kept if name in self._used and self._used[name] != kept[name]}
        if changed:
            print(f"Kept from {self.trained_agent}, whatever is listed above: {changed}")
            self._used.update(changed)
        return model

    return _load_pretrained_agent


def saved_by_peer(path: str | Path) -> str | None:
    """``"SB3's SAC"``, ``"sb3-contrib's TQC"`` or ``"sb3-contrib's CrossQ"`` if that has saved a file; None for all others.

    :param path: a file that SB3 or one of its plugins has saved
    """
    try:
        attributes = attribute_names(path)
    except DamagedFileError:
        return None  # whoever loads it says what is wrong
    of_contrib = from_contrib.name_of_data(attributes)
    if of_contrib is not None:
        return f"sb3-contrib's {of_contrib}"
    is_sac = {"batch_norm_stats_target", "ent_coef"} <= attributes and "ent_coef_update" not in attributes
    return "SB3's SAC" if is_sac else None


def _load_peer(path: str, env: Any, device: Any, **hyperparams: Any) -> SoftAC:
    sac = load_sac(path)  # without a replay buffer: RL Zoo loads that of the run afterwards
    # As when RL Zoo continues SAC itself: a learned temperature goes on from where it was.
    is_learned = sac.log_ent_coef is not None
    if is_learned and str(hyperparams.get("ent_coef", "")).startswith("auto"):
        del hyperparams["ent_coef"]
    model = SoftAC.from_sb3(sac, env=env, device=device, **hyperparams)
    temperature = f", with a temperature of the form ent_coef_update={model.ent_coef_update!r}" if is_learned else ""
    print(
        f"{path} was saved by {saved_by_peer(path)}: SoftAC goes on from its networks, optimizers and entropy coefficient"
        f"{temperature}; the hyperparameters above replace those of the file."
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
        arguments = signature.bind(self, *args, **kwargs).arguments
        if arguments["algo"] in ALGORITHMS:
            zoo_ranks.begin(arguments)
        run = zoo_resume.run_to_resume(arguments)
        init(**arguments)
        algorithm = ALGORITHMS.get(self.algo)
        self.resumed = run
        if run is not None:
            run.adopt(self)
        if algorithm is not None:
            if not arguments.get("config"):
                self.config = str(algorithm.hyperparams_path)
            # Instead of RL Zoo's own parsing of schedules, which knows fewer of them than ours.
            self._preprocess_schedules = functools.partial(expand_preset, self.custom_hyperparams, algorithm=algorithm)

    return __init__


def _train_in_parallel(method: Callable[..., None]) -> Callable[..., None]:
    """``ParallelTrainCallback`` asks for SAC by name, and needs nothing of it that ours have not."""

    @functools.wraps(method)
    def call(self: Any) -> None:
        ours = [algorithm for algorithm in ALGORITHMS.values() if isinstance(self.model, algorithm.base)]
        for algorithm in ours:
            algorithm.check_parallel(self.model)
        (_rebind(method, SAC=type(self.model)) if ours else method)(self)

    return call


def _extend(owner: type, **methods: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap methods of a class of RL Zoo, once."""
    if "_knows_softac" in vars(owner):
        return
    for name, wrap in methods.items():
        setattr(owner, name, wrap(getattr(owner, name)))
    owner._knows_softac = True  # type: ignore[attr-defined]


def extend_utils(module: ModuleType) -> None:
    """Add ours to RL Zoo's algorithms, let ``-params`` take its strings without extra quotes, and ``-i`` folders.

    :param module: ``rl_zoo3.utils``
    """
    for name, algorithm in ALGORITHMS.items():
        module.ALGOS.setdefault(name, algorithm.base)
    if "_knows_softac" not in vars(module.StoreDict):
        vars(module)["get_model_path"] = zoo_ranks.for_one_process(module.get_model_path, ALGORITHMS)
    _extend(module.StoreDict, __init__=_look_at_command_line, __call__=_store_params)


def extend_callbacks(module: ModuleType) -> None:
    """Let ``ParallelTrainCallback`` train our algorithms.

    :param module: ``rl_zoo3.callbacks``
    """
    _extend(module.ParallelTrainCallback, _init_callback=_train_in_parallel, _on_rollout_end=_train_in_parallel)


def extend_experiment_manager(module: ModuleType) -> None:
    """Add samplers and converters for ``-optimize``, our hyperparameter files and presets, agents and runs to continue.

    :param module: ``rl_zoo3.exp_manager``
    """
    import rl_zoo3.callbacks
    from rl_zoo3 import hyperparams_opt as opt

    for name, algorithm in ALGORITHMS.items():
        sample = functools.partial(zoo_search.sample_params, algorithm, opt.sample_sac_params)
        convert = functools.partial(zoo_search.convert_params, algorithm, opt.convert_offpolicy_params)
        opt.HYPERPARAMS_SAMPLER.setdefault(name, sample)
        opt.HYPERPARAMS_CONVERTER.setdefault(name, convert)
    _extend(
        module.ExperimentManager,
        __init__=_with_our_defaults,
        read_hyperparameters=_read_what_is_used,
        _load_pretrained_agent=_continue,
        create_callbacks=lambda create: zoo_ranks.with_callbacks_of_rank(zoo_resume.with_checkpoints(create)),
        create_envs=zoo_ranks.with_own_envs,
        create_log_folder=zoo_ranks.only_first,
        save_trained_model=zoo_ranks.only_first,
        _save_config=lambda save: zoo_ranks.only_first(zoo_resume.with_durable_config(save)),
        objective=zoo_search.with_search,
        hyperparameters_optimization=zoo_search.without_lost_trials,
    )
    extend_callbacks(rl_zoo3.callbacks)  # which the manager has imported


def register() -> None:
    """Make our algorithms known to RL Zoo in this process; calling it again changes nothing."""
    import rl_zoo3.exp_manager
    import rl_zoo3.utils

    extend_utils(rl_zoo3.utils)
    extend_experiment_manager(rl_zoo3.exp_manager)


def main() -> None:
    """Run a script of RL Zoo, such as ``train`` or ``enjoy``, with our algorithms registered; exit with 2 if there is none."""
    scripts = "\n".join(f"  {name:16} {text}" for name, (_, text) in SCRIPTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m sb3_softac.zoo",
        usage=f"%(prog)s SCRIPT [arguments of that script]\n\nscripts (SCRIPT --help lists their arguments):\n{scripts}",
        description=f"Run a script of RL Zoo that knows --algo {' and '.join(ALGORITHMS)}.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="one of those above")
    script = parser.parse_args(sys.argv[1:2]).script
    if script not in SCRIPTS:
        parser.error(f"SCRIPT is {script!r}, but it must be one of {', '.join(SCRIPTS)}.{suggestion(script, list(SCRIPTS))}")
    if script != "train":
        zoo_ranks.refuse_several(script)
    register()
    del sys.argv[1]
    runpy.run_module(f"rl_zoo3.{SCRIPTS[script][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
