"""Checks of the options of ``SoftAC``."""

import warnings
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from sb3_softac.arguments.checks import check_choice, check_count, check_flag, check_real, refuse, refuse_for_discrete_actions
from sb3_softac.arguments.options import check_common_options, check_weights_fit, temperature_weights
from sb3_softac.arguments.policy import BATCH_NORMS, DEFAULT_HEAD

#: as in sb3-contrib's TQC
DEFAULT_DROPPED = 2


def check_architecture(
    model: Any, built_for: Mapping[str, Any] | None, expected_policy_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Refuse options that the weights of a saved model have no place for.

    :param model: a ``SoftAC``
    :param built_for: what the weights were built for, or None if they are still to be built
    :param expected_policy_kwargs: what a user passed to ``load``
    :return: what the weights are built for
    :raises ValueError: another architecture
    """
    if "batch_norm_stats" in vars(model):  # an attribute of SAC; others that have it have policies that are refused
        raise ValueError(
            "The file was saved by SB3's SAC: SoftAC.from_sb3(SAC.load(path)), or of the path itself, takes it over."
        )
    of_algorithm = ("use_sde", "value_network", "normalize_observations")
    now = {**{name: getattr(model, name) for name in of_algorithm}, **temperature_weights(model)}
    if built_for is not None:
        built_for = {"normalize_observations": False, **built_for}  # files before it do not say so
    check_weights_fit(model, now, built_for, expected_policy_kwargs, of_algorithm)
    return now


def _check_exploration(arguments: Mapping[str, Any]) -> None:
    for name in ("use_sde", "use_sde_at_warmup"):
        check_flag(name, arguments[name])
    if arguments["use_sde"]:
        if arguments["use_sde_at_warmup"] and arguments["random_steps"] not in (None, 0):
            refuse("random_steps", arguments["random_steps"], "None or 0 with `use_sde_at_warmup=True`, which replaces them")
        return
    for name, unused in (("use_sde_at_warmup", False), ("sde_sample_freq", -1)):
        if arguments[name] != unused:
            refuse(name, arguments[name], f"{unused} with `use_sde=False`, which would ignore it")


def _check_reductions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How several critics, or the quantiles of each, become one value; in normal form."""
    policy_kwargs = arguments["policy_kwargs"] or {}
    head = policy_kwargs.get("critic_head", "scalar")
    n_dropped = check_count("top_quantiles_to_drop_per_net", arguments["top_quantiles_to_drop_per_net"], 0)
    if head == "quantile":
        n_quantiles = policy_kwargs.get("n_quantiles", DEFAULT_HEAD["n_quantiles"])
        if isinstance(n_quantiles, int) and 0 < n_quantiles <= n_dropped:
            refuse(
                "top_quantiles_to_drop_per_net", n_dropped, f"below `n_quantiles`={n_quantiles}, or no target would be left"
            )
        if arguments["target_q"] != "min" and not arguments["value_network"]:
            refuse("target_q", arguments["target_q"], "'min' with quantile critics, whose targets pool the quantiles of all")
    elif n_dropped != DEFAULT_DROPPED:
        refuse("top_quantiles_to_drop_per_net", n_dropped, f"{DEFAULT_DROPPED} with `critic_head`={head!r}, which has none")
    if arguments["value_network"] and n_dropped != DEFAULT_DROPPED:
        allowed = f"{DEFAULT_DROPPED} with `value_network=True`, whose targets have no quantiles"
        refuse("top_quantiles_to_drop_per_net", n_dropped, allowed)
    actor_q = arguments["actor_q"]
    if actor_q is None:
        actor_q = "mean" if head == "quantile" else "min"
    check_choice("actor_q", actor_q, ("min", "mean", "first", "target_min"))
    return {"actor_q": actor_q, "top_quantiles_to_drop_per_net": n_dropped}


def _check_bootstrap(arguments: Mapping[str, Any]) -> None:
    """Without target networks nothing follows them."""
    check_choice("bootstrap", arguments["bootstrap"], ("target", "joint"))
    if arguments["bootstrap"] == "target":
        return
    without_meaning = {"value_network": False, "tau": 0.005, "target_update_interval": 1}
    for name, default in without_meaning.items():
        if arguments[name] != default:
            refuse(name, arguments[name], f"{default} with `bootstrap='joint'`, which has no target networks")
    if arguments["actor_q"] == "target_min":
        refuse("actor_q", "target_min", "'min', 'mean' or 'first' with `bootstrap='joint'`, which has no target networks")


def warn_of_joint_bootstrap(bootstrap: str, policy_kwargs: Mapping[str, Any]) -> None:
    """Without targets and without batch normalisation nothing holds critics back; an encoder of a user may have some."""
    normalization = policy_kwargs.get("normalization")
    of_critics = normalization.get("qf") if isinstance(normalization, Mapping) else normalization
    if bootstrap == "joint" and of_critics not in BATCH_NORMS and policy_kwargs.get("encoder", "mlp") == "mlp":
        warnings.warn(
            "`bootstrap` is 'joint' without batch normalisation in the critics, and such critics often diverge: "
            "policy_kwargs={'normalization': 'batch_renorm'} helps.",
            stacklevel=4,
        )


def check_arguments(
    arguments: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    n_envs: int,
    weights_follow: bool = False,
) -> dict[str, Any]:
    """Check the arguments of ``SoftAC`` that need no network, and return those that have one normal form in it.

    :param arguments: argument values by name
    :param observation_space: of the environment
    :param action_space: of the environment
    :param n_envs: number of environments
    :param weights_follow: whether another model is taken over
    :return: as ``check_common_options``
    :raises ValueError: a value out of range, or options that contradict each other
    """
    normal = check_common_options(arguments, observation_space, n_envs, weights_follow)
    for name, low in (("policy_delay", 1), ("sde_sample_freq", -1)):
        normal[name] = check_count(name, arguments[name], low)
    if arguments["target_subset"] is not None:
        normal["target_subset"] = check_count("target_subset", arguments["target_subset"], 1)
    for name in ("value_network", "soft_n_step", "normalize_observations"):
        check_flag(name, arguments[name])
    normal["normalize_observations"] = bool(arguments["normalize_observations"])
    if arguments["normalize_rewards"] is not None:
        normal["normalize_rewards"] = check_real("normalize_rewards", arguments["normalize_rewards"], above=0.0)
    if arguments["soft_n_step"] and normal["n_steps"] == 1:
        refuse("soft_n_step", True, "False with `n_steps=1`, whose return has no states in between")
    normal |= _check_reductions(arguments)
    _check_bootstrap(arguments)
    if arguments["value_network"] and arguments["actor_q"] == "target_min":
        refuse("actor_q", "target_min", "'min', 'mean' or 'first' with `value_network=True`, which has no target critics")
    if not arguments["value_network"] and arguments["value_learning_rate"] is not None:
        refuse("value_learning_rate", arguments["value_learning_rate"], "None without `value_network=True`")
    if isinstance(action_space, spaces.Discrete):
        unused = {"action_noise": None, "sde_sample_freq": -1, "use_sde_at_warmup": False}
        refuse_for_discrete_actions(arguments, unused)
    _check_exploration(arguments)
    return normal
