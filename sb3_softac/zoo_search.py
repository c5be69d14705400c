"""``-optimize``: trials of our algorithms in RL Zoo's search, and which of our search spaces they sample."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from sb3_softac.errors import TrainingDivergedError
from sb3_softac.zoo_algorithms import ALGORITHMS, Algorithm
from sb3_softac.zoo_spaces import Search

if TYPE_CHECKING:
    import optuna

#: the hyperparameter that asks for another search, and the attribute of a trial that remembers which it belongs to
SEARCH = "search"


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
        try:
            return objective(self, trial)
        except TrainingDivergedError as error:
            import optuna

            print(error)
            raise optuna.TrialPruned from error

    return call
