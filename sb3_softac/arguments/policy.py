"""Checks of ``policy_kwargs``."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_softac.arguments.checks import check_choice, check_count, check_flag, check_real, refuse, refuse_for_discrete_actions

DEFAULT_LOG_STD_BOUNDS = (-20.0, 2.0)
BATCH_NORMS = ("batch", "batch_renorm")
#: encoders whose weights are of one length, which no other initialisation gives
UNIT_ENCODERS = ("simba_v2", "flash")
#: encoders of residual blocks, all of one width
RESIDUAL_ENCODERS = ("simba", "bro", *UNIT_ENCODERS)
#: encoders with batch normalisation of their own
BATCH_NORM_ENCODERS = ("flash",)
#: actor, critics and value network, as they are called in ``policy_kwargs``
NETWORKS = ("pi", "qf", "vf")
DEFAULT_HEAD: dict[str, Any] = {"n_quantiles": 25, "n_atoms": 101, "value_range": (-5.0, 5.0)}


def _check_units(name: str, units: Any) -> list[int]:
    if not isinstance(units, list | tuple):
        refuse(name, units, "a list of layer sizes")
    return [check_count(name, size, 1) for size in units]


def _check_net_arch(net_arch: Any, value_network: bool) -> list[int] | dict[str, list[int]]:
    if not isinstance(net_arch, dict):
        return _check_units("net_arch", net_arch)
    required, allowed = {"pi", "qf"}, {"pi", "qf", "vf"} if value_network else {"pi", "qf"}
    if not required <= set(net_arch) <= allowed:
        refuse(
            "net_arch",
            net_arch,
            "a list, or a dict with the keys 'pi', 'qf' and, with `value_network=True` only, 'vf' (by default as 'qf')",
        )
    return {key: _check_units(f"net_arch[{key!r}]", units) for key, units in net_arch.items()}


def _check_log_std(arguments: Mapping[str, Any]) -> None:
    check_choice("log_std_mode", arguments["log_std_mode"], ("state", "free"))
    check_choice("log_std_bounding", arguments["log_std_bounding"], ("clamp", "tanh"))
    bounds = arguments["log_std_bounds"]
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        refuse("log_std_bounds", bounds, "a pair (low, high)")
    low, high = (check_real("log_std_bounds", bound) for bound in bounds)
    if not low < high:
        refuse("log_std_bounds", bounds, "a pair (low, high) with low below high")
    if arguments["use_sde"]:
        unused = {"log_std_mode": "state", "log_std_bounding": "clamp", "log_std_bounds": DEFAULT_LOG_STD_BOUNDS}
        for name, default in unused.items():
            value = arguments[name]
            if (tuple(value) if name == "log_std_bounds" else value) != default:
                refuse(name, value, f"{default!r} with `use_sde=True`, which has a noise matrix of its own")
    elif arguments["log_std_init"] is not None:
        init = check_real("log_std_init", arguments["log_std_init"])
        inside = low < init < high if arguments["log_std_bounding"] == "tanh" else low <= init <= high
        if not inside:
            refuse("log_std_init", init, f"inside `log_std_bounds`={tuple(bounds)}")


def _check_activation(activation_fn: Any) -> None:
    made = activation_fn() if callable(activation_fn) else None
    if not hasattr(made, "parameters"):
        refuse(
            "activation_fn",
            activation_fn,
            "a class of activations such as torch.nn.ReLU, or functools.partial(torch.nn.LeakyReLU, 0.2)",
        )
    if any(True for _ in made.parameters()):  # type: ignore[union-attr]  # it has them
        refuse("activation_fn", activation_fn, "without parameters, which all critics would share")


def _check_building_blocks(
    arguments: Mapping[str, Any], encoders: tuple[str, ...], heads: tuple[str, ...], value_network: bool
) -> dict[str, Any]:
    """Encoders and heads are names, or user-defined classes; the sizes of the head in normal form."""
    encoder = arguments["encoder"]
    if isinstance(encoder, dict) and not set(encoder) <= {"pi", "qf"}:
        refuse("encoder", encoder, "a name, a class, or a dict with the keys 'pi' and 'qf'")
    for chosen in encoder.values() if isinstance(encoder, dict) else [encoder]:
        if not (isinstance(chosen, str) and chosen in encoders) and not (
            isinstance(chosen, type) and hasattr(chosen, "build")
        ):
            refuse("encoder", chosen, f"one of {', '.join(map(repr, encoders))}, or a subclass of sb3_softac.networks.Encoder")
    for network in ("pi", "qf"):
        _check_encoder(network, encoder.get(network, "mlp") if isinstance(encoder, dict) else encoder, arguments)
    _check_normalization(arguments, value_network)
    head = arguments["critic_head"]
    if not (isinstance(head, str) and head in heads) and not (isinstance(head, type) and hasattr(head, "expected_value")):
        allowed = f"one of {', '.join(map(repr, heads))}, or a subclass of sb3_softac.networks.CriticHead"
        refuse("critic_head", head, allowed)
    return _check_head(head, arguments)


def _check_encoder(network: str, encoder: Any, arguments: Mapping[str, Any]) -> None:
    """Options that the hidden layers of actor (``"pi"``) or critics (``"qf"``) have no place for."""
    if encoder == "mlp":
        return
    normalization = arguments["normalization"]
    of_network, of_value_network = (
        normalization.get(key) if isinstance(normalization, Mapping) else normalization for key in (network, "vf")
    )
    unused = {"normalization": of_network}
    if network == "qf":
        unused |= {
            "normalization": of_network or of_value_network,
            "layer_norm": arguments["layer_norm"],
            "dropout_rate": arguments["dropout_rate"],
        }
    for name, value in unused.items():
        if value:
            default = {"layer_norm": "False", "dropout_rate": "0.0"}.get(name, "None")
            refuse(name, arguments[name], f"{default} with `encoder`={encoder!r} ({network}), which has layers of its own")
    if encoder not in RESIDUAL_ENCODERS:
        return
    net_arch = arguments["net_arch"]
    units = net_arch.get(network) if isinstance(net_arch, dict) else net_arch
    for widths in (units, net_arch.get("vf") if isinstance(net_arch, dict) and network == "qf" else None):
        if widths is not None and (not widths or len(set(widths)) > 1):
            allowed = f"one width for each residual block, all equal, such as [256, 256], with `encoder`={encoder!r}"
            refuse("net_arch", net_arch, allowed)
    if encoder in UNIT_ENCODERS:
        free: dict[str, Any] = {"weight_init": "default", "final_init_scale": None}
        free |= {"log_std_init": None, "use_sde": False} if network == "pi" else {}
        for name, other in free.items():
            if arguments.get(name, other) != other:
                allowed = f"{other!r} with `encoder`={encoder!r} ({network}), whose weights have one length"
                refuse(name, arguments[name], allowed)


def _check_normalization(arguments: Mapping[str, Any], value_network: bool) -> None:
    normalization = arguments["normalization"]
    if isinstance(normalization, Mapping) and not set(normalization) <= set(NETWORKS if value_network else NETWORKS[:2]):
        keys = "the keys 'pi', 'qf' and, with `value_network=True` only, 'vf'"
        refuse("normalization", normalization, f"a name, None, or a dict with {keys}")
    for chosen in normalization.values() if isinstance(normalization, Mapping) else [normalization]:
        if chosen not in (None, "layer", *BATCH_NORMS):
            refuse("normalization", chosen, f"None, 'layer', {', '.join(map(repr, BATCH_NORMS))}, or a dict of these")
    of_critics = normalization.get("qf") if isinstance(normalization, Mapping) else normalization
    if arguments["layer_norm"] and of_critics not in (None, "layer"):
        refuse("layer_norm", True, f"False with `normalization`={normalization!r}")


def _check_that_there_are_layers(arguments: Mapping[str, Any], net_arch: Any, value_network: bool) -> None:
    """Linear networks have no hidden layers to normalise, or whose units to drop; batch normalisation is of inputs, too."""
    units = {key: net_arch[key] if isinstance(net_arch, dict) else net_arch for key in ("pi", "qf")}
    if value_network:
        units["vf"] = net_arch.get("vf", units["qf"]) if isinstance(net_arch, dict) else net_arch
    normalization = arguments["normalization"]
    # a name is for all networks that have layers
    wanted = normalization if isinstance(normalization, Mapping) else {"pi": normalization}
    has_layers = {key: bool(units[key]) if isinstance(normalization, Mapping) else any(units.values()) for key in wanted}
    if any(value == "layer" and not has_layers[key] for key, value in wanted.items()):
        refuse("normalization", normalization, f"None with `net_arch`={arguments['net_arch']!r}, which has no hidden layers")
    for name, default in (("layer_norm", False), ("dropout_rate", 0.0)):
        if arguments[name] != default and not units["qf"]:
            refuse(name, arguments[name], f"{default} with `net_arch`={arguments['net_arch']!r}, by which critics are linear")


def _check_head(head: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a distribution, which only heads of ours have, in normal form."""
    belongs = {"n_quantiles": "quantile", "n_atoms": "categorical", "value_range": "categorical"}
    bounds = arguments["value_range"]
    if not isinstance(bounds, tuple | list | np.ndarray) or np.shape(bounds) != (2,):
        refuse("value_range", bounds, "a pair (low, high)")
    normal: dict[str, Any] = {
        "n_quantiles": check_count("n_quantiles", arguments["n_quantiles"], 1),
        "n_atoms": check_count("n_atoms", arguments["n_atoms"], 2),
        "value_range": tuple(check_real("value_range", bound) for bound in bounds),
    }
    for name, owner in belongs.items():
        if head != owner and normal[name] != DEFAULT_HEAD[name]:
            refuse(name, normal[name], f"{DEFAULT_HEAD[name]!r} with `critic_head`={head!r}, which would ignore it")
    low, high = normal["value_range"]
    if not low < high:
        refuse("value_range", bounds, "a pair (low, high) with low below high")
    if not (np.diff(np.linspace(low, high, normal["n_atoms"], dtype=np.float32)) > 0.0).all():
        allowed = f"a pair (low, high) with room for `n_atoms`={normal['n_atoms']} different numbers in float32"
        refuse("value_range", bounds, allowed)
    return normal


def is_for_each(value: Any) -> bool:
    """Whether an option of the optimizers is a dict with a value for each network, or for some."""
    return isinstance(value, Mapping) and not set(NETWORKS).isdisjoint(value)


def for_network(value: Any, network: str, default: Any) -> Any:
    """What an option of the optimizers says of one network, whether it is the same for all or a dict.

    :param value: the option
    :param network: ``"pi"``, ``"qf"`` or ``"vf"``, which by default is as ``"qf"``
    :param default: of a network that is not in the dict
    """
    if not is_for_each(value):
        return value
    return value.get(network, value.get("qf", default) if network == "vf" else default)


def _check_optimizers(arguments: Mapping[str, Any], value_network: bool) -> None:
    classes, options = arguments["optimizer_class"], arguments["optimizer_kwargs"]
    networks = NETWORKS if value_network else NETWORKS[:2]
    for name, value in (("optimizer_class", classes), ("optimizer_kwargs", options)):
        if is_for_each(value) and not set(value) <= set(networks):
            mixed = "what is for all networks" if name == "optimizer_class" else "options for all networks"
            keys = "the keys 'pi', 'qf' and, with `value_network=True` only, 'vf' (by default as 'qf')"
            refuse(name, value, f"{mixed}, or a dict with {keys}")
    for network in networks:
        cls, given = for_network(classes, network, th.optim.Adam), for_network(options, network, None)
        if not callable(cls):
            refuse("optimizer_class", cls, "a subclass of torch.optim.Optimizer, or a dict of these")
        if given is not None and not isinstance(given, Mapping):
            refuse(
                "optimizer_kwargs", options, "a dict of options, or a dict with one of these for each of 'pi', 'qf' and 'vf'"
            )
        _check_options_of_optimizer(network, cls, given or {})


def _check_options_of_optimizer(network: str, cls: Any, options: Mapping[str, Any]) -> None:
    if "lr" in options:
        refuse("optimizer_kwargs", dict(options), "without lr: `learning_rate` and the options for each network set it")
    parameters = inspect.signature(cls).parameters if options else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_any else [name for name in options if name not in parameters or name == "params"]
    if unknown:
        names = ", ".join(name for name in parameters if name not in ("params", "lr"))
        made = getattr(cls, "__name__", cls)
        raise ValueError(f"`optimizer_kwargs` contains {unknown[0]!r}, which {made} does not take. Allowed are {names}.")
    if not options:
        return
    try:
        cls([th.zeros(1, requires_grad=True)], lr=1e-3, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        made = getattr(cls, "__name__", cls)
        raise ValueError(
            f"`optimizer_kwargs` is {dict(options)!r} for {network!r}, but it must be what {made} takes, which says: {error}"
        ) from error


class NetworkArguments(NamedTuple):
    """Policy arguments in normal form."""

    n_critics: int
    net_arch: list[int] | dict[str, list[int]]
    head: dict[str, Any]  # n_quantiles, n_atoms, value_range


def check_network_arguments(
    arguments: Mapping[str, Any], encoders: tuple[str, ...], heads: tuple[str, ...], value_network: bool = False
) -> NetworkArguments:
    """Check the policy arguments that every algorithm has.

    :param arguments: argument values by name
    :param encoders: names of encoders
    :param heads: names of critic heads
    :param value_network: whether there is a value network
    :return: those that have a normal form
    :raises ValueError: a value out of range, or options that contradict each other
    """
    for name in ("target_networks", "layer_norm", "normalize_images"):
        check_flag(name, arguments[name])
    n_critics = check_count("n_critics", arguments["n_critics"], 1)
    check_real("dropout_rate", arguments["dropout_rate"], 0.0)
    if arguments["dropout_rate"] >= 1.0:
        refuse("dropout_rate", arguments["dropout_rate"], "at least 0 and below 1")
    check_choice("weight_init", arguments["weight_init"], ("default", "orthogonal", "xavier"))
    if arguments["final_init_scale"] is not None:
        check_real("final_init_scale", arguments["final_init_scale"], above=0.0)
    net_arch = _check_net_arch([256, 256] if arguments["net_arch"] is None else arguments["net_arch"], value_network)
    _check_activation(arguments["activation_fn"])
    _check_optimizers(arguments, value_network)
    head = _check_building_blocks(arguments, encoders, heads, value_network)
    _check_that_there_are_layers(arguments, net_arch, value_network)
    return NetworkArguments(n_critics, net_arch, head)


def check_gaussian_arguments(arguments: Mapping[str, Any], action_space: spaces.Space[Any]) -> None:
    """Check the policy arguments of ``SoftACPolicy`` alone.

    :param arguments: argument values by name
    :param action_space: of the environment
    :raises ValueError: a value out of range, or options that contradict each other
    """
    for name in ("use_sde", "use_expln", "value_network", "share_features_extractor", "normalize_observations"):
        check_flag(name, arguments[name])
    if isinstance(action_space, spaces.Discrete):
        unused: dict[str, Any] = {
            "use_sde": False,
            "log_std_init": None,
            "use_expln": False,
            "clip_mean": 2.0,
            "log_std_mode": "state",
        }
        unused |= {"log_std_bounds": DEFAULT_LOG_STD_BOUNDS, "log_std_bounding": "clamp"}
        refuse_for_discrete_actions(arguments, unused)
    _check_log_std(arguments)
    if not arguments["use_sde"]:
        for name, default in (("use_expln", False), ("clip_mean", 2.0)):
            if arguments[name] != default:
                refuse(name, arguments[name], f"{default} with `use_sde=False`, which would ignore it")


def check_sampler_arguments(arguments: Mapping[str, Any], action_space: spaces.Space[Any], samplers: tuple[str, ...]) -> None:
    """Check the policy arguments of ``SoftQLPolicy`` alone.

    :param arguments: argument values by name
    :param action_space: of the environment
    :param samplers: names of samplers
    :raises ValueError: a value out of range, or an option of the sampler where there is none
    """
    sampler = arguments["sampler"]
    if isinstance(action_space, spaces.Discrete):
        refuse_for_discrete_actions(arguments, {"sampler": "mlp"})
        for name in ("optimizer_class", "optimizer_kwargs"):
            if is_for_each(arguments[name]) and "pi" in arguments[name]:
                refuse(name, arguments[name], "without 'pi' with discrete actions, which have no sampler to train")
    if sampler not in samplers and not (isinstance(sampler, type) and hasattr(sampler, "particles")):
        refuse("sampler", sampler, f"one of {', '.join(map(repr, samplers))}, or a subclass of sb3_softac.networks.Sampler")
    if arguments["noise_dim"] is not None:
        check_count("noise_dim", arguments["noise_dim"], 1)
    check_count("kernel_particles", arguments["kernel_particles"], 1)
    check_choice("target_q", arguments["target_q"], ("min", "mean", "first"))


def _why_not_normalized(space: spaces.Space[Any]) -> str | None:
    """Why observations of a space have no mean and variance for ``normalize_observations``, or None."""
    if not isinstance(space, spaces.Box):
        return f"{type(space).__name__} observations are labels, which have no mean"
    if is_image_space(space, normalized_image=True):
        return "images are scaled by `normalize_images`"
    if not np.issubdtype(space.dtype, np.floating):
        return f"observations of dtype {space.dtype} may be labels: as float32 they would be quantities"
    return None


def normalized_shapes(space: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """What ``normalize_observations`` normalises: Boxes of floats with less than three dimensions.

    :param space: observation space
    :return: their shapes, by key; that of a single Box is called "observation"
    :raises ValueError: there are none
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    reasons = {name: _why_not_normalized(part) for name, part in parts.items()}
    if all(reasons.values()):
        why = "; ".join(dict.fromkeys(filter(None, reasons.values())))
        refuse("normalize_observations", True, f"False with the observation space {space}: {why}")
    return {name: tuple(part.shape or ()) for name, part in parts.items() if reasons[name] is None}


def check_policy_kwargs(
    policy_class: type[Any], policy_kwargs: Mapping[str, Any], of_algorithm: Mapping[str, Any], algorithm: str
) -> None:
    """Refuse names that the policy does not take, and options of the algorithm with another value than there.

    :param policy_class: class of the policy
    :param policy_kwargs: what a user passed
    :param of_algorithm: policy arguments that are options of the algorithm, with their values there
    :param algorithm: its name
    :raises ValueError: a name that must not be among them
    """
    for name, value in of_algorithm.items():
        if policy_kwargs.get(name, value) != value:
            raise ValueError(f"`policy_kwargs` contains {name}, but it must be an argument of {algorithm} itself.")
    parameters = inspect.signature(policy_class.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    allowed = [name for name in parameters if name not in ("self", "observation_space", "action_space", "lr_schedule")]
    unknown = [name for name in policy_kwargs if name not in allowed]
    if unknown:
        matches = difflib.get_close_matches(unknown[0], allowed, n=1, cutoff=0.75)
        hint = f" Did you mean {matches[0]}?" if matches else ""
        names = ", ".join(name for name in allowed if name not in of_algorithm)
        raise ValueError(
            f"`policy_kwargs` contains {unknown[0]!r}, which {policy_class.__name__} does not take.{hint} Allowed are {names}."
        )
