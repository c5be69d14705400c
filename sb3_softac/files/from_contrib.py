"""What sb3-contrib's ``TQC`` and ``CrossQ`` have that SB3's ``SAC`` has not: their options, by our names.

sb3-contrib need not be installed; it is imported only where a file of its models is read.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: policies of sb3-contrib, by the names of ours
POLICIES = {
    "TQCPolicy": "MlpPolicy",
    "CrossQPolicy": "MlpPolicy",
    "CnnPolicy": "CnnPolicy",
    "MultiInputPolicy": "MultiInputPolicy",
}
#: options of CrossQ's policy that batch renormalisation has no place for here, and the value that it has
FIXED = {"batch_norm_momentum": 0.01, "batch_norm_eps": 0.001, "renorm_warmup_steps": 100_000}


def name_of(model: Any) -> str | None:
    """``"TQC"`` or ``"CrossQ"``, also for a subclass; None for another model. Nothing is imported to find out."""
    names = [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("sb3_contrib.")]
    return next((name for name in names if name in ("TQC", "CrossQ")), None)


def name_of_data(data: Collection[str]) -> str | None:
    """The same for the attributes of a model, out of a file; their names are enough."""
    if "ent_coef_update" in data:
        return None  # one of ours
    if "top_quantiles_to_drop_per_net" in data:
        return "TQC"
    is_crossq = {"policy_delay", "ent_coef", "target_entropy"} <= set(data) and "target_update_interval" not in data
    return "CrossQ" if is_crossq else None


def class_of_data(data: Mapping[str, Any]) -> Any:
    """The class whose attributes these are; None for another, or if sb3-contrib is not installed."""
    name = name_of_data(data)
    if name is None:
        return None
    try:
        import sb3_contrib
    except ImportError:
        return None
    return getattr(sb3_contrib, name, None)


def head_of(model: Any) -> str:
    """What the outputs of the critics mean, if a model is not one of ours."""
    return "quantile" if name_of(model) == "TQC" else "scalar"


def own_arguments(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``SoftAC`` that are not those of SB3's ``SAC``.

    :param model: any model
    :param arguments: those that it shares with SB3's ``SAC``
    :raises ValueError: an option that has no place here
    """
    name = name_of(model)
    if name is None:
        return {}
    policy_kwargs = dict(arguments["policy_kwargs"])
    policy = POLICIES.get(model.policy_class.__name__, model.policy_class)
    if name == "TQC":
        policy_kwargs["critic_head"] = "quantile"
        return {
            "policy": policy,
            "policy_kwargs": policy_kwargs,
            "top_quantiles_to_drop_per_net": model.top_quantiles_to_drop_per_net,
        }
    return {
        "policy": policy,
        "policy_kwargs": _policy_kwargs_of_crossq(model.policy, policy_kwargs),
        "bootstrap": "joint",
        "policy_delay": model.policy_delay,
        "tau": 0.005,  # theirs is 1, and without a meaning in both
    }


def _policy_kwargs_of_crossq(policy: Any, policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Policy arguments by our names; its defaults, which are others than ours, are written out."""
    normalised = bool(policy.batch_norm_params["batch_norm"])
    refuse_other_normalisation(policy)
    kept = {name: value for name, value in policy_kwargs.items() if name not in policy.batch_norm_params}
    if normalised and not policy.actor.net_arch:
        raise ValueError(
            f"`policy_kwargs['net_arch']` of the CrossQ model is {policy.net_arch!r}, but its actor must have hidden layers: "
            "without them it normalises nothing there, and its observations here."
        )
    return {
        **kept,
        "net_arch": policy.net_arch,
        "optimizer_kwargs": dict(policy.optimizer_kwargs),
        "normalization": "batch_renorm" if normalised else None,
    }


def refuse_other_normalisation(policy: Any, names: Iterable[str] = FIXED) -> None:
    """Refuse batch renormalisation with other constants than ours.

    :param policy: of CrossQ, or any other
    :param names: constants that matter
    :raises ValueError: another one
    """
    options = getattr(policy, "batch_norm_params", {"batch_norm": False})
    for name in names if options["batch_norm"] else ():
        if options[name] != FIXED[name]:
            raise ValueError(
                f"`policy_kwargs[{name!r}]` of the CrossQ model is {options[name]!r}, but it must be {FIXED[name]!r}, which "
                "`normalization='batch_renorm'` has."
            )
