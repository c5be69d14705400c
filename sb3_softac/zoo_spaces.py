"""Search spaces: what ``-optimize`` samples of our own options, and what becomes of it. Nothing here imports RL Zoo."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sb3_softac import SoftQL
from sb3_softac.arguments.policy import BATCH_NORM_ENCODERS, UNIT_ENCODERS
from sb3_softac.networks.catalogue import ENCODERS

if TYPE_CHECKING:
    import optuna

#: Samples the parameter of a trial that has this name.
Suggest = Callable[["optuna.Trial", str], Any]


def _one_of(*values: Any) -> Suggest:
    return lambda trial, name: trial.suggest_categorical(name, values)


def _integer(low: int, high: int) -> Suggest:
    return lambda trial, name: trial.suggest_int(name, low, high)


def _magnitude(low: float, high: float) -> Suggest:
    return lambda trial, name: trial.suggest_float(name, low, high, log=True)


# --- soft actor-critic

SOFTAC: Mapping[str, Suggest] = {
    "value_network": _one_of(False, True),
    "actor_q": _one_of("min", "mean", "first"),
    "target_q": _one_of("min", "mean"),
    "policy_delay": _integer(1, 3),
    "ent_coef_update": _one_of("dual", "log", "exp"),
    "actor_learning_rate": _magnitude(1e-5, 0.002),
}


def softac_arguments(sampled: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of ``SoftAC`` for parameters by name, with what these need."""
    # A search over its update needs a learned temperature; the common learning rate is sampled, so critics must follow it.
    implied: dict[str, Any] = {"ent_coef": "auto", "critic_learning_rate": None, "ent_coef_learning_rate": None}
    if not sampled.get("value_network", False):
        implied["value_learning_rate"] = None
    return {**implied, **sampled}


# --- soft Q-learning

#: How the targets of soft Q-learning follow: copied as in the paper, or by Polyak averaging.
TARGET_UPDATES: dict[str, dict[str, Any]] = {
    "copy": {"tau": 1.0, "target_update_interval": 1000},
    "polyak": {"tau": 0.005, "target_update_interval": 1},
}

#: Options that a search over soft Q-learning leaves at their defaults: the reward scale is its temperature, the sampled
#: learning rate is also that of the critics, and the sampled networks have no density.
SOFTQL_DEFAULTS = (
    *("ent_coef", "ent_coef_update", "ent_coef_max", "ent_coef_learning_rate", "target_entropy", "target_entropy_scale"),
    *("critic_learning_rate", "value_proposal"),
)

SOFTQL: Mapping[str, Suggest] = {
    "reward_scale": _magnitude(0.1, 100.0),
    "target_update": _one_of(*TARGET_UPDATES),
    "n_critics": _integer(1, 2),
}

#: with continuous actions
SOFTQL_CONTINUOUS: Mapping[str, Suggest] = {
    "kernel_particles": _one_of(16, 32),
    "value_particles": _one_of(16, 32),
    "actor_learning_rate": _magnitude(1e-5, 0.002),
}


def softql_arguments(sampled: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of ``SoftQL`` for parameters by name, with what these need."""
    parameters = inspect.signature(SoftQL).parameters
    others = {name: value for name, value in sampled.items() if name not in ("target_update", "n_critics")}
    return {
        **{name: parameters[name].default for name in SOFTQL_DEFAULTS},
        **TARGET_UPDATES[sampled["target_update"]],
        **others,
        "policy_kwargs": {"n_critics": sampled["n_critics"]},
    }


# --- searches that are asked for by name


@dataclass(frozen=True)
class Search:
    """A larger search, which takes the place of our own part of the usual one.

    :param sampled: names of all parameters that it may sample
    :param mark: one of them that each of its trials has, and no other trial
    :param sample: samples those of a trial, by name
    :param arguments: turns them, and the constructor arguments that RL Zoo has sampled, into constructor arguments
    :param fixed: what RL Zoo samples for SAC and has no meaning in a trial, for its parameters by name
    """

    sampled: tuple[str, ...]
    mark: str
    sample: Callable[["optuna.Trial"], dict[str, Any]]
    arguments: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]]
    fixed: Callable[[Mapping[str, Any]], Collection[str]]


#: In a search over critics: the returns that a categorical critic knows lie between minus this number and itself. They are
#: discounted sums of rewards, which it must reach: rewards of ±10 at γ = 0.99 need 1000.
VALUE_BOUND = _magnitude(5.0, 2000.0)


def _sample_critics(trial: "optuna.Trial") -> dict[str, Any]:
    """The usual parameters, but for those that have no meaning beside the critics, and the critics."""
    sampled: dict[str, Any] = {}

    def sample(name: str, suggest: Suggest) -> Any:
        sampled[name] = suggest(trial, name)
        return sampled[name]

    head = sample("critic_head", _one_of("scalar", "quantile", "categorical"))
    if head == "quantile":  # the space that RL Zoo has for TQC
        n_quantiles = sample("n_quantiles", _integer(5, 50))
        sample("top_quantiles_to_drop_per_net", _integer(0, min(n_quantiles - 1, 5)))
    if head == "categorical":
        sample("n_atoms", _one_of(51, 101))
        sample("value_bound", VALUE_BOUND)
    normalization, bootstrap = None, "target"
    encoder = sample("encoder", _one_of(*ENCODERS))
    if encoder == "mlp":  # the others have layers of their own
        normalization = sample("normalization", _one_of(None, "layer", "batch_renorm"))
    if normalization == "batch_renorm" or encoder in BATCH_NORM_ENCODERS:  # a joint pass is for statistics of batches
        bootstrap = sample("bootstrap", _one_of("target", "joint", "joint_target"))
    unused = set()
    if head != "scalar" or bootstrap != "target":
        unused.add("value_network")
    if head == "quantile":
        unused.add("target_q")
    for name, suggest in SOFTAC.items():
        if name not in unused:
            sample(name, suggest)
    return sampled


#: What a trial has where a parameter has no meaning, in case the hyperparameter file or the command line has set it.
_WITHOUT_MEANING = {"value_network": False, "target_q": "min", "bootstrap": "target", "top_quantiles_to_drop_per_net": 2}
#: With ``bootstrap="joint"``, which has no targets.
_WITHOUT_TARGETS = {"tau": 0.005, "target_update_interval": 1}
#: With encoders whose weights have one length, which gSDE has no place in.
_WITHOUT_SDE = {"use_sde": False, "sde_sample_freq": -1, "use_sde_at_warmup": False}


def _critics_arguments(sampled: dict[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    of_policy = ("critic_head", "n_quantiles", "n_atoms", "encoder", "normalization")
    policy_kwargs = {name: sampled[name] for name in of_policy if name in sampled}
    if "value_bound" in sampled:
        policy_kwargs["value_range"] = (-sampled["value_bound"], sampled["value_bound"])
    if sampled["encoder"] != "mlp":  # residual blocks are equally wide
        widths = shared["policy_kwargs"]["net_arch"]
        policy_kwargs["net_arch"] = [max(widths)] * len(widths)
    others = {name: value for name, value in sampled.items() if name not in (*of_policy, "value_bound")}
    implied: dict[str, Any] = {**_WITHOUT_MEANING}
    implied |= _WITHOUT_TARGETS if sampled.get("bootstrap") == "joint" else {}
    implied |= _WITHOUT_SDE if sampled["encoder"] in UNIT_ENCODERS else {}
    return {**softac_arguments({**implied, **others}), "policy_kwargs": policy_kwargs}


def _fixed_by_critics(sampled: Mapping[str, Any]) -> Collection[str]:
    return ("tau",) if sampled.get("bootstrap") == "joint" else ()


CRITICS = Search(
    sampled=(
        *("critic_head", "n_quantiles", "top_quantiles_to_drop_per_net", "n_atoms", "value_bound"),
        *("encoder", "normalization", "bootstrap", *SOFTAC),
    ),
    mark="critic_head",
    sample=_sample_critics,
    arguments=_critics_arguments,
    fixed=_fixed_by_critics,
)
