"""Everything about RL Zoo: registration, hyper-parameter search, and ``python -m sb3_softac.zoo train|enjoy|…``.

RL Zoo finds algorithms, samplers and converters in dicts that its modules share, so these are changed in place. Its default
hyper-parameter file lies inside its own package, so an experiment with SoftAC is pointed to ours. For other algorithms nothing
changes but that ``-params`` takes a few strings without quotes, which is an error otherwise.
"""

import functools
import inspect
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sb3_softac import presets
from sb3_softac.soft_ac import SoftAC

# RL Zoo is imported inside functions: its modules may be in the middle of their own import when this one is.
if TYPE_CHECKING:
    import optuna

ALGO = "softac"

#: Strings that RL Zoo's ``-params`` would evaluate as Python and fail on: schedules, "auto" and "auto_0.1".
PLAIN_STRING = re.compile(r"((lin|exp)_[-+.\w]+|auto(_[-+.\w]+)?)")

#: Arguments whose values are names: one of them, ``min``, would even be taken for Python's own function.
NAMED_CHOICES = ("actor_q", "target_q", "ent_coef_update", "preset")

SAMPLED_BY_US = ("value_network", "actor_q", "target_q", "policy_delay", "ent_coef_update", "actor_learning_rate")


def hyperparams_path() -> Path:
    """Our hyper-parameters in RL Zoo's format: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "hyperparams" / f"{ALGO}.yml"
    return installed if installed.is_file() else package.parent / "hyperparams" / f"{ALGO}.yml"


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
    """Add what the sampled options need, in case the hyper-parameter file or the command line has set it otherwise."""
    # A search over its update needs a learned temperature, one over the common rate needs somebody who follows it.
    implied: dict[str, Any] = {"ent_coef": "auto", "critic_learning_rate": None, "ent_coef_learning_rate": None}
    if not ours.get("value_network", False):
        implied["value_learning_rate"] = None
    return {**implied, **ours}


def extend_utils(module: ModuleType) -> None:
    """Add SoftAC to RL Zoo's algorithms, and let ``-params`` take its strings without extra quotes.

    :param module: ``rl_zoo3.utils``
    """
    if ALGO in module.ALGOS:
        return
    module.ALGOS[ALGO] = SoftAC
    module.StoreDict.__call__ = _with_plain_strings(module.StoreDict.__call__)


def extend_experiment_manager(module: ModuleType) -> None:
    """Add sampler and converter for ``-optimize``, and our hyper-parameter file as the default of SoftAC.

    :param module: ``rl_zoo3.exp_manager``
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    if ALGO in HYPERPARAMS_SAMPLER:
        return
    HYPERPARAMS_SAMPLER[ALGO] = sample_softac_params
    HYPERPARAMS_CONVERTER[ALGO] = convert_softac_params
    module.ExperimentManager.__init__ = _with_our_defaults(module.ExperimentManager.__init__)


def register() -> None:
    """Make ``softac`` known to RL Zoo in this process; calling it again changes nothing."""
    import rl_zoo3.exp_manager
    import rl_zoo3.utils

    extend_utils(rl_zoo3.utils)
    extend_experiment_manager(rl_zoo3.exp_manager)


def _with_plain_strings(store: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(store)
    def call(self: Any, parser: Any, namespace: Any, values: list[str], option_string: str | None = None) -> None:
        quoted = []
        for argument in values:
            key, _, value = argument.partition(":")
            is_string = PLAIN_STRING.fullmatch(value) or (key in NAMED_CHOICES and value.isidentifier())
            quoted.append(f"{key}:{value!r}" if is_string else argument)
        store(self, parser, namespace, quoted, option_string)

    return call


def expand_preset(from_command_line: dict[str, Any] | None, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Replace the key ``preset`` by the arguments that it stands for.

    A preset of the hyper-parameter file is overridden by its other keys. One of the command line replaces what the file
    tunes for its task, and is overridden by the other arguments of the command line.

    :param from_command_line: what was passed with ``-params``
    :param hyperparams: the entry of the file, updated with it
    :return: arguments of ``SoftAC`` and of RL Zoo
    :raises ValueError: unknown preset
    """
    if "preset" not in hyperparams:
        return hyperparams
    given = {name: value for name, value in hyperparams.items() if name != "preset"}
    if "preset" in (from_command_line or {}):
        tuned = {*SoftAC._option_names()} - {*(from_command_line or {})}
        given = {name: value for name, value in given.items() if name not in tuned}
    if isinstance(given.get("policy_kwargs"), str):
        import rl_zoo3.exp_manager

        # As RL Zoo does a little later, with the names that it has there.
        given["policy_kwargs"] = eval(given["policy_kwargs"], dict(vars(rl_zoo3.exp_manager)))
    return presets.get(hyperparams["preset"], **given)


def _with_our_defaults(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.algo == ALGO:
            if not signature.bind(self, *args, **kwargs).arguments.get("config"):
                self.config = str(hyperparams_path())
            # In place of RL Zoo's own parsing of schedules, which knows fewer of them than SoftAC.
            self._preprocess_schedules = functools.partial(expand_preset, self.custom_hyperparams)

    return __init__


def main() -> None:
    """Run a script of RL Zoo, such as ``train`` or ``enjoy``, with SoftAC registered."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m sb3_softac.zoo train|enjoy|record_video|… [arguments of that RL Zoo script]")
    register()
    script = sys.argv.pop(1)
    runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
