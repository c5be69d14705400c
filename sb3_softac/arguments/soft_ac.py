"""Checks of the options of ``SoftAC``."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_softac.arguments.checks import check_choice, check_count, check_flag, check_real, refuse, refuse_for_discrete_actions
from sb3_softac.arguments.options import check_common_options, check_weights_fit, temperature_weights

#: updates per environment step up to which plain critics are safe
MOST_UPDATES = 4
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
        # files before these do not say so
        built_for = {"normalize_observations": False, "target_networks": model.bootstrap != "joint", **built_for}
        if built_for.pop("target_networks") != (model.bootstrap != "joint"):
            needed = "'joint', which has no target networks" if model.bootstrap != "joint" else "'target' or 'joint_target'"
            raise ValueError(f"`bootstrap` is {model.bootstrap!r}, but the saved model needs bootstrap {needed}.")
    check_weights_fit(model, now, built_for, expected_policy_kwargs, of_algorithm)
    return now | {"target_networks": model.bootstrap != "joint"}


def _check_exploration(arguments: Mapping[str, Any]) -> None:
    for name in ("use_sde", "use_sde_at_warmup"):
        check_flag(name, arguments[name])
    if arguments["use_sde"]:
        if arguments["noise_repeat"] is not None:
            kept = "None with `use_sde=True`, whose noise matrix is kept for `sde_sample_freq` steps"
            refuse("noise_repeat", arguments["noise_repeat"], kept)
        if arguments["use_sde_at_warmup"] and arguments["random_steps"] not in (None, 0):
            refuse("random_steps", arguments["random_steps"], "None or 0 with `use_sde_at_warmup=True`, which replaces them")
        return
    for name, unused in (("use_sde_at_warmup", False), ("sde_sample_freq", -1)):
        if arguments[name] != unused:
            refuse(name, arguments[name], f"{unused} with `use_sde=False`, which would ignore it")


def _check_reductions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How several critics, or the quantiles of each, become one value; in normal form."""
    head = (arguments["policy_kwargs"] or {}).get("critic_head", "scalar")
    has_quantiles = head == "quantile" or getattr(head, "drops_quantiles", False)
    actor_q = arguments["actor_q"]
    if actor_q is None:
        actor_q = "mean" if has_quantiles else "min"
    check_choice("actor_q", actor_q, ("min", "mean", "first", "target_min"))
    n_dropped = check_count("top_quantiles_to_drop_per_net", arguments["top_quantiles_to_drop_per_net"], 0)
    return {"actor_q": actor_q, "top_quantiles_to_drop_per_net": n_dropped}


def check_critics(options: Mapping[str, Any], critic: Any, chosen: Any) -> None:
    """Refuse options that the critics have no place for, however the policy came to them.

    :param options: option values by name
    :param critic: of the policy
    :param chosen: its ``critic_head``
    :raises ValueError: more critics in a target than there are, or quantiles left out of targets that have none or no others
    """
    subset, n_dropped, head = options["target_subset"], options["top_quantiles_to_drop_per_net"], critic.head
    if subset is not None and subset > critic.n_critics:
        refuse("target_subset", subset, f"at most `n_critics`={critic.n_critics}")
    if options["value_network"]:
        if n_dropped != DEFAULT_DROPPED:
            allowed = f"{DEFAULT_DROPPED} with `value_network=True`, whose targets have no quantiles"
            refuse("top_quantiles_to_drop_per_net", n_dropped, allowed)
    elif not getattr(head, "drops_quantiles", False):
        if n_dropped != DEFAULT_DROPPED:
            allowed = f"{DEFAULT_DROPPED} with `critic_head`={chosen!r}, which has none"
            refuse("top_quantiles_to_drop_per_net", n_dropped, allowed)
    elif n_dropped >= head.n_numbers:
        refuse("top_quantiles_to_drop_per_net", n_dropped, f"below `n_quantiles`={head.n_numbers}, or no target would be left")
    elif options["target_q"] == "first":
        refuse("target_q", "first", f"'min', which pools the quantiles of all, or 'mean' with `critic_head`={chosen!r}")


def _check_bootstrap(arguments: Mapping[str, Any]) -> None:
    """Without target networks nothing follows them."""
    bootstrap = arguments["bootstrap"]
    check_choice("bootstrap", bootstrap, ("target", "joint", "joint_target"))
    if bootstrap == "target":
        return
    if arguments["value_network"]:
        refuse("value_network", True, f"False with `bootstrap={bootstrap!r}`, which evaluates critics at the next action")
    if bootstrap == "joint_target":
        return
    without_meaning = {"tau": 0.005, "target_update_interval": 1}
    for name, default in without_meaning.items():
        if arguments[name] != default:
            refuse(name, arguments[name], f"{default} with `bootstrap='joint'`, which has no target networks")
    if arguments["actor_q"] == "target_min":
        refuse("actor_q", "target_min", "'min', 'mean' or 'first' with `bootstrap='joint'`, which has no target networks")


def warn_of_joint_bootstrap(bootstrap: str, normalises_batches: bool) -> None:
    """Without batch normalisation nothing tells the two halves of a joint pass apart, and without targets nothing holds.

    :param normalises_batches: whether the critics have batch normalisation
    """
    if bootstrap != "target" and not normalises_batches:
        warnings.warn(
            f"`bootstrap` is {bootstrap!r} without batch normalisation in the critics, and such critics often diverge: "
            "policy_kwargs={'normalization': 'batch_renorm'} helps.",
            stacklevel=4,
        )


def updates_per_step(gradient_steps: int, frequency: int, unit: str, n_envs: int) -> float | None:
    """Gradient steps per environment step; None where that depends on the length of episodes."""
    if gradient_steps < 0:
        return 1.0
    return gradient_steps / (frequency * n_envs) if unit == "step" else None


def warn_of_many_updates(arguments: Mapping[str, Any], n_envs: int, critics_normalize: bool) -> None:
    """Plain critics that learn much from little data overestimate what they have not seen (2205.07802).

    Layer or batch normalisation, encoders that have it, resets, and an ensemble with ``target_subset`` (REDQ, 2101.05982) hold
    them back.

    :param arguments: argument values by name, in normal form
    :param n_envs: number of environments
    :param critics_normalize: whether their hidden layers do
    """
    frequency, unit = arguments["train_freq"]
    ratio = updates_per_step(arguments["gradient_steps"], frequency, getattr(unit, "value", unit), n_envs)
    if ratio is None or ratio <= MOST_UPDATES or critics_normalize:
        return
    if arguments["resets"] is None and arguments["target_subset"] is None:
        warnings.warn(
            f"`gradient_steps`={arguments['gradient_steps']} are {ratio:g} updates per environment step, and from about "
            f"{MOST_UPDATES} on critics without normalisation often overestimate and stop learning: policy_kwargs="
            "{'layer_norm': True} or `resets` helps, and so does an ensemble with `target_subset`.",
            stacklevel=4,
        )


def _check_resets(resets: Any) -> int | tuple[int, ...] | None:
    """``resets`` in normal form: None, an int or a tuple of ints."""
    if resets is None:
        return None
    if not isinstance(resets, Sequence | np.ndarray) or isinstance(resets, str | bytes) or np.ndim(resets) == 0:
        return check_count("resets", resets, 1)
    steps = tuple(check_count("resets", step, 1) for step in resets)
    if not steps or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        allowed = "None, a number n for every n-th gradient step, or increasing numbers of gradient steps, at least one"
        refuse("resets", resets, allowed)
    return steps


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
    if arguments["noise_repeat"] is not None:
        normal["noise_repeat"] = check_count("noise_repeat", arguments["noise_repeat"], 1)
    if arguments["target_subset"] is not None:
        normal["target_subset"] = check_count("target_subset", arguments["target_subset"], 1)
    normal["resets"] = _check_resets(arguments["resets"])
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
        unused = {"action_noise": None, "sde_sample_freq": -1, "use_sde_at_warmup": False, "noise_repeat": None}
        refuse_for_discrete_actions(arguments, unused)
    _check_exploration(arguments)
    return normal
