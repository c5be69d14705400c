"""Checks of what a user passes: ranges first, then contradictions, each refused in one sentence.

Every message names the argument, the value that it got and the values that are allowed.
"""

import functools
import math
import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer

DEFAULT_LOG_STD_BOUNDS = (-20.0, 2.0)
DEFAULT_LEARNING_RATE = 3e-4
#: who may have a learning rate of its own, as the option ``{owner}_learning_rate``
LEARNING_RATE_OWNERS = ("actor", "critic", "value", "ent_coef")
#: chosen by measurement, see docs/benchmarks.md
DEFAULT_TARGET_ENTROPY_SCALE = 0.5


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    raise ValueError(f"`{name}` is {value!r}, but it must be {allowed}.")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """:raises ValueError: ``value`` is not one of ``allowed``"""
    if value not in allowed:
        _refuse(name, value, f"one of {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: object) -> None:
    """:raises ValueError: ``value`` is not a bool"""
    if not isinstance(value, bool | np.bool_):
        _refuse(name, value, "True or False")


def check_count(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an int; 1e6 is an integer too.

    :raises ValueError: not an integer, or below ``minimum``
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and int(value) == value and value >= minimum):
        _refuse(name, value, f"an integer of at least {minimum}")
    return int(value)


def check_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> float:
    """Return ``value`` as a float.

    :raises ValueError: not a finite number in [``low``, ``high``], or not above ``above``
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and low <= value <= high and value > above):
        limits = [
            f"at least {low:g}" if low > -math.inf else "",
            f"above {above:g}" if above > -math.inf else "",
            f"at most {high:g}" if high < math.inf else "",
        ]
        _refuse(name, value, " and ".join(["a finite number", *filter(None, limits)]))
    return float(value)


def _refuse_for_discrete_actions(arguments: Mapping[str, Any], unused: Mapping[str, Any]) -> None:
    """Refuse what differs from its value in ``unused``: with discrete actions it would be ignored."""
    for name, default in unused.items():
        value = arguments[name]
        if (tuple(value) if isinstance(value, list) else value) != default:
            _refuse(name, value, f"{default!r} with discrete actions, for which it has no meaning")


def check_action_space(space: spaces.Space[Any], use_sde: bool = False) -> None:
    """Only a ``Discrete`` with a choice, or a ``Box`` whose bounds can be rescaled to [−1, 1] and back.

    :param space: action space of the environment
    :param use_sde: whether gSDE is asked for, which needs a ``Box``
    :raises ValueError: another space, a single action, infinite bounds, or bounds whose difference overflows
    """
    if isinstance(space, spaces.Discrete):
        _refuse_for_discrete_actions({"use_sde": use_sde}, {"use_sde": False})
        if space.n < 2:
            raise ValueError(f"The action space is {space}, but there must be at least two actions to choose from.")
        return
    if not isinstance(space, spaces.Box):
        raise ValueError(f"The action space is {space}, but SoftAC supports spaces.Box and spaces.Discrete only.")
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"The action space {space} has dtype {space.dtype}, but continuous actions need a floating-point one."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high - space.low
    if not np.isfinite(width).all():
        raise ValueError(
            f"The action space {space} has infinite bounds, or bounds so wide that high - low overflows {space.dtype}, "
            "but actions are rescaled between [low, high] and [-1, 1], so both must be finite. "
            "gymnasium.wrappers.RescaleAction or a narrower Box helps."
        )
    if not (width > 0).all():
        raise ValueError(f"The action space {space} has an upper bound that is not above its lower bound.")


def _check_train_freq(train_freq: Any, n_envs: int) -> tuple[int, Any]:
    """Return ``train_freq`` as a pair of an int and a unit."""
    frequency, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    unit = getattr(unit, "value", unit)
    if unit not in ("step", "episode"):
        _refuse("train_freq", train_freq, "a number of steps, or a pair such as (1, 'step') or (1, 'episode')")
    frequency = check_count("train_freq", frequency, 1)
    if unit == "episode" and n_envs > 1:
        _refuse("train_freq", train_freq, f"counted in steps with several environments (here {n_envs})")
    return frequency, unit


def _check_exploration(arguments: Mapping[str, Any]) -> None:
    for name in ("use_sde", "use_sde_at_warmup"):
        check_flag(name, arguments[name])
    if arguments["use_sde"]:
        if arguments["use_sde_at_warmup"] and arguments["random_steps"] not in (None, 0):
            _refuse("random_steps", arguments["random_steps"], "None or 0 with `use_sde_at_warmup=True`, which replaces them")
        return
    for name, unused in (("use_sde_at_warmup", False), ("sde_sample_freq", -1)):
        if arguments[name] != unused:
            _refuse(name, arguments[name], f"{unused} with `use_sde=False`, which would ignore it")


def _check_replay_buffer(arguments: Mapping[str, Any], observation_space: spaces.Space[Any]) -> None:
    dict_observations = isinstance(observation_space, spaces.Dict)
    buffer_class, automatic = arguments["replay_buffer_class"], arguments["automatic_replay_buffer"]
    if not automatic and not (isinstance(buffer_class, type) and issubclass(buffer_class, BaseBuffer)):
        _refuse("replay_buffer_class", buffer_class, "None or a subclass of SB3's ReplayBuffer")
    if automatic and not {"n_steps", "gamma"}.isdisjoint(arguments["replay_buffer_kwargs"]):
        _refuse(
            "replay_buffer_kwargs",
            arguments["replay_buffer_kwargs"],
            "without n_steps and gamma where there is no `replay_buffer_class` of your own: both are arguments of SoftAC",
        )
    if arguments["soft_n_step"] and arguments["n_steps"] == 1:
        _refuse("soft_n_step", True, "False with `n_steps=1`, whose return has no states in between")
    if arguments["n_steps"] > 1:
        if not automatic:
            _refuse(
                "n_steps",
                arguments["n_steps"],
                "1 with a `replay_buffer_class` of your own; n-step returns then belong to that class, for instance "
                'replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99} for NStepReplayBuffer',
            )
        if dict_observations:
            _refuse("n_steps", arguments["n_steps"], "1 with Dict observations, for which SB3 has no n-step buffer")
        if arguments["optimize_memory_usage"]:
            _refuse("n_steps", arguments["n_steps"], "1 with `optimize_memory_usage=True`")
    if arguments["optimize_memory_usage"] and dict_observations and automatic:
        _refuse("optimize_memory_usage", True, "False with Dict observations, for which SB3 has no such buffer")


def _check_temperature(arguments: Mapping[str, Any]) -> None:
    check_choice("ent_coef_update", arguments["ent_coef_update"], ("dual", "log", "exp"))
    if arguments["ent_coef_max"] is not None:
        check_real("ent_coef_max", arguments["ent_coef_max"], above=0.0)
    check_real("target_entropy_scale", arguments["target_entropy_scale"], 0.0)
    if arguments["target_entropy_scale"] >= 1.0:
        _refuse("target_entropy_scale", arguments["target_entropy_scale"], "at least 0 and below 1")
    if arguments["target_entropy"] != "auto":
        try:
            target_entropy = math.nan if isinstance(arguments["target_entropy"], bool) else float(arguments["target_entropy"])
        except (TypeError, ValueError):
            target_entropy = math.nan
        if not math.isfinite(target_entropy):
            _refuse("target_entropy", arguments["target_entropy"], "'auto' or a finite number")
        if arguments["target_entropy_scale"] != DEFAULT_TARGET_ENTROPY_SCALE:
            _refuse(
                "target_entropy_scale",
                arguments["target_entropy_scale"],
                f"left out beside `target_entropy`={arguments['target_entropy']}, which would override it",
            )
    ent_coef = arguments["ent_coef"]
    if is_learned(ent_coef):
        return
    unused: dict[str, Any] = {"ent_coef_update": "dual", "ent_coef_max": None, "ent_coef_learning_rate": None}
    unused |= {"target_entropy": "auto", "target_entropy_scale": DEFAULT_TARGET_ENTROPY_SCALE}
    for name, default in unused.items():
        if arguments[name] != default:
            _refuse(name, arguments[name], f"{default!r} with a fixed temperature (`ent_coef`={ent_coef!r}), which ignores it")


def is_learned(ent_coef: object) -> bool:
    """Whether ``ent_coef`` asks for a learned temperature."""
    return isinstance(ent_coef, str) and ent_coef.startswith("auto")


def _refuse_an_unused_learning_rate(arguments: Mapping[str, Any]) -> None:
    """``learning_rate`` counts where a network or a learned temperature has none of its own."""
    exists = {"value": arguments["value_network"], "ent_coef": is_learned(arguments["ent_coef"])}
    names = [f"{owner}_learning_rate" for owner in LEARNING_RATE_OWNERS if exists.get(owner, True)]
    if arguments["learning_rate"] != DEFAULT_LEARNING_RATE and all(arguments[name] is not None for name in names):
        _refuse("learning_rate", arguments["learning_rate"], f"left out where all have their own: {', '.join(names)}")


def check_architecture(
    model: Any, built_for: Mapping[str, Any] | None, expected_policy_kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A saved model can be loaded with other options, but not with ones that its weights have no place for.

    :param model: a model with the options of ``SoftAC``
    :param built_for: what the weights were built for, or None if they are still to be built
    :param expected_policy_kwargs: what a user passed to ``load``
    :return: what the weights are built for
    :raises ValueError: another architecture
    """
    if "batch_norm_stats" in vars(model):  # an attribute of SAC; others that have it have policies that are refused
        raise ValueError(
            "The file was saved by SB3's SAC: SoftAC.from_sb3(SAC.load(path)), or of the path itself, takes it over."
        )
    now = {
        "value_network": model.value_network,
        "use_sde": model.use_sde,
        "ent_coef": model.ent_coef if is_learned(model.ent_coef) else "fixed",
        "ent_coef_update": model.ent_coef_update,
    }
    for name, saved in (built_for or now).items():
        if now[name] != saved:
            advice = ": a new model with it can `warm_start` from this one" if name.startswith("ent_coef") else ""
            raise ValueError(f"`{name}` is {getattr(model, name)!r}, but the saved model needs {name} {saved!r}{advice}.")
    if expected_policy_kwargs is not None:
        expected, kept = (
            {name: value for name, value in kwargs.items() if name not in ("use_sde", "value_network")}
            for kwargs in (expected_policy_kwargs, model.policy_kwargs)
        )
        if comparable(expected) != comparable(kept):
            raise ValueError(f"`policy_kwargs` is {expected}, but the saved model needs {kept}.")
    return now


def comparable(value: Any) -> Any:
    """``value`` with lists instead of tuples, as the file format keeps them, and partial functions by what they hold."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items()}
    if isinstance(value, functools.partial):
        return ["partial", value.func, comparable(value.args), comparable(value.keywords)]
    return [comparable(entry) for entry in value] if isinstance(value, list | tuple) else value


def _check_compile(value: Any) -> Any:
    if isinstance(value, str) and value == "auto":
        return value
    if not isinstance(value, bool | np.bool_):
        _refuse("compile", value, "'auto', True or False")
    return bool(value)


def check_arguments(
    arguments: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    n_envs: int,
    weights_follow: bool = False,
) -> dict[str, Any]:
    """Check the arguments of ``SoftAC`` that need no network, and return those that have one normal form in it.

    Learning rates, schedules and ``ent_coef`` are checked where they are parsed, policy arguments in
    :func:`check_policy_arguments`.

    :param arguments: argument values by name; ``automatic_replay_buffer`` tells whether the buffer class was left to SB3
    :param observation_space: of the environment
    :param action_space: of the environment
    :param n_envs: number of environments
    :param weights_follow: whether another model is taken over, whose learning rates may be replaced one by one
    :return: the integer arguments as int, ``train_freq`` as a pair, ``compile`` as a bool
    :raises ValueError: a value out of range, or options that contradict each other
    """
    minimum = {
        "buffer_size": 1,
        "learning_starts": 0,
        "batch_size": 1,
        "gradient_steps": -1,
        "n_steps": 1,
        "target_update_interval": 1,
        "policy_delay": 1,
        "sde_sample_freq": -1,
    }
    normal: dict[str, Any] = {name: check_count(name, arguments[name], low) for name, low in minimum.items()}
    for name, low in (("random_steps", 0), ("target_subset", 1)):
        if arguments[name] is not None:
            normal[name] = check_count(name, arguments[name], low)
    normal["train_freq"] = _check_train_freq(arguments["train_freq"], n_envs)
    for name in ("tau", "gamma"):
        check_real(name, arguments[name], 0.0, 1.0)
    if check_real("reward_scale", arguments["reward_scale"]) == 0.0:
        _refuse("reward_scale", arguments["reward_scale"], "a finite number other than 0")
    if arguments["max_grad_norm"] is not None:
        check_real("max_grad_norm", arguments["max_grad_norm"], above=0.0)
    for name in ("value_network", "optimize_memory_usage", "soft_n_step"):
        check_flag(name, arguments[name])
    if not weights_follow:
        _refuse_an_unused_learning_rate(arguments)
    normal["compile"] = _check_compile(arguments["compile"])
    check_choice("actor_q", arguments["actor_q"], ("min", "mean", "first", "target_min"))
    check_choice("target_q", arguments["target_q"], ("min", "mean", "first"))
    if arguments["value_network"] and arguments["actor_q"] == "target_min":
        _refuse("actor_q", "target_min", "'min', 'mean' or 'first' with `value_network=True`, which has no target critics")
    if not arguments["value_network"] and arguments["value_learning_rate"] is not None:
        _refuse("value_learning_rate", arguments["value_learning_rate"], "None without `value_network=True`")
    _check_temperature(arguments)
    if isinstance(action_space, spaces.Discrete):
        unused = {"action_noise": None, "sde_sample_freq": -1, "use_sde_at_warmup": False}
        _refuse_for_discrete_actions(arguments, unused)
    _check_exploration(arguments)
    _check_replay_buffer({**arguments, **normal}, observation_space)
    return normal


def _check_units(name: str, units: Any) -> list[int]:
    if not isinstance(units, list | tuple):
        _refuse(name, units, "a list of layer sizes")
    return [check_count(name, size, 1) for size in units]


def _check_net_arch(net_arch: Any, value_network: bool) -> list[int] | dict[str, list[int]]:
    if not isinstance(net_arch, dict):
        return _check_units("net_arch", net_arch)
    required, allowed = {"pi", "qf"}, {"pi", "qf", "vf"} if value_network else {"pi", "qf"}
    if not required <= set(net_arch) <= allowed:
        _refuse(
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
        _refuse("log_std_bounds", bounds, "a pair (low, high)")
    low, high = (check_real("log_std_bounds", bound) for bound in bounds)
    if not low < high:
        _refuse("log_std_bounds", bounds, "a pair (low, high) with low below high")
    if arguments["use_sde"]:
        unused = {"log_std_mode": "state", "log_std_bounding": "clamp", "log_std_bounds": DEFAULT_LOG_STD_BOUNDS}
        for name, default in unused.items():
            value = arguments[name]
            if (tuple(value) if name == "log_std_bounds" else value) != default:
                _refuse(name, value, f"{default!r} with `use_sde=True`, which has a noise matrix of its own")
    elif arguments["log_std_init"] is not None:
        init = check_real("log_std_init", arguments["log_std_init"])
        inside = low < init < high if arguments["log_std_bounding"] == "tanh" else low <= init <= high
        if not inside:
            _refuse("log_std_init", init, f"inside `log_std_bounds`={tuple(bounds)}")


def _check_activation(activation_fn: Any) -> None:
    made = activation_fn() if callable(activation_fn) else None
    if not hasattr(made, "parameters"):
        _refuse(
            "activation_fn",
            activation_fn,
            "a class of activations such as torch.nn.ReLU, or functools.partial(torch.nn.LeakyReLU, 0.2)",
        )
    if any(True for _ in made.parameters()):  # type: ignore[union-attr]  # it has them
        _refuse("activation_fn", activation_fn, "without parameters, which all critics would share")


def _check_building_blocks(arguments: Mapping[str, Any], encoders: tuple[str, ...], heads: tuple[str, ...]) -> None:
    """Encoders and heads are names, or user-defined classes."""
    encoder = arguments["encoder"]
    if isinstance(encoder, dict) and not set(encoder) <= {"pi", "qf"}:
        _refuse("encoder", encoder, "a name, a class, or a dict with the keys 'pi' and 'qf'")
    for chosen in encoder.values() if isinstance(encoder, dict) else [encoder]:
        if chosen not in encoders and not (isinstance(chosen, type) and hasattr(chosen, "build")):
            _refuse(
                "encoder", chosen, f"one of {', '.join(map(repr, encoders))}, or a subclass of sb3_softac.networks.Encoder"
            )
    of_critics = encoder.get("qf", "mlp") if isinstance(encoder, dict) else encoder
    for name, unused in (("layer_norm", False), ("dropout_rate", 0.0)):
        if of_critics != "mlp" and arguments[name] != unused:
            _refuse(name, arguments[name], f"{unused} with `encoder`={of_critics!r}, which has layers of its own")
    head = arguments["critic_head"]
    if head not in heads and not (isinstance(head, type) and hasattr(head, "expected_value")):
        allowed = f"one of {', '.join(map(repr, heads))}, or a subclass of sb3_softac.networks.CriticHead"
        _refuse("critic_head", head, allowed)


def check_policy_arguments(
    arguments: Mapping[str, Any], action_space: spaces.Space[Any], encoders: tuple[str, ...], heads: tuple[str, ...]
) -> tuple[int, list[int] | dict[str, list[int]]]:
    """Check the arguments of ``SoftACPolicy``, which reach it as ``policy_kwargs``.

    :param arguments: argument values by name
    :param action_space: of the environment
    :param encoders: names of encoders
    :param heads: names of critic heads
    :return: ``n_critics`` and ``net_arch``, with integers
    :raises ValueError: a value out of range, or options that contradict each other
    """
    flags = "use_sde use_expln value_network target_networks layer_norm share_features_extractor normalize_images"
    for name in flags.split():
        check_flag(name, arguments[name])
    n_critics = check_count("n_critics", arguments["n_critics"], 1)
    check_real("dropout_rate", arguments["dropout_rate"], 0.0)
    if arguments["dropout_rate"] >= 1.0:
        _refuse("dropout_rate", arguments["dropout_rate"], "at least 0 and below 1")
    check_choice("weight_init", arguments["weight_init"], ("default", "orthogonal", "xavier"))
    if arguments["final_init_scale"] is not None:
        check_real("final_init_scale", arguments["final_init_scale"], above=0.0)
    net_arch = _check_net_arch(
        [256, 256] if arguments["net_arch"] is None else arguments["net_arch"], arguments["value_network"]
    )
    _check_activation(arguments["activation_fn"])
    _check_building_blocks(arguments, encoders, heads)
    if isinstance(action_space, spaces.Discrete):
        unused: dict[str, Any] = {
            "use_sde": False,
            "log_std_init": None,
            "use_expln": False,
            "clip_mean": 2.0,
            "log_std_mode": "state",
        }
        unused |= {"log_std_bounds": DEFAULT_LOG_STD_BOUNDS, "log_std_bounding": "clamp"}
        _refuse_for_discrete_actions(arguments, unused)
    _check_log_std(arguments)
    if not arguments["use_sde"]:
        for name, default in (("use_expln", False), ("clip_mean", 2.0)):
            if arguments[name] != default:
                _refuse(name, arguments[name], f"{default} with `use_sde=False`, which would ignore it")
    return n_critics, net_arch
