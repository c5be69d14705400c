"""Checks of the options that all algorithms of the family have: ranges first, then contradictions."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import ActionNoise

from sb3_softac.arguments.checks import check_choice, check_count, check_flag, check_real, comparable, is_learned, refuse
from sb3_softac.arguments.policy import BATCH_NORM_ENCODERS, BATCH_NORMS

DEFAULT_LEARNING_RATE = 3e-4
#: who may have a learning rate of its own, as the option ``{owner}_learning_rate``
LEARNING_RATE_OWNERS = ("actor", "critic", "value", "ent_coef")
#: chosen by measurement, see docs/benchmarks.md
DEFAULT_TARGET_ENTROPY_SCALE = 0.5


def _check_train_freq(train_freq: Any, n_envs: int) -> tuple[int, Any]:
    """Return ``train_freq`` as a pair of an int and a unit."""
    frequency, unit = train_freq if isinstance(train_freq, tuple) and len(train_freq) == 2 else (train_freq, "step")
    unit = getattr(unit, "value", unit)
    if unit not in ("step", "episode"):
        refuse("train_freq", train_freq, "a number of steps, or a pair such as (1, 'step') or (1, 'episode')")
    frequency = check_count("train_freq", frequency, 1)
    if unit == "episode" and n_envs > 1:
        refuse("train_freq", train_freq, f"counted in steps with several environments (here {n_envs})")
    return frequency, unit


def _check_replay_buffer(arguments: Mapping[str, Any], observation_space: spaces.Space[Any]) -> None:
    dict_observations = isinstance(observation_space, spaces.Dict)
    buffer_class, automatic = arguments["replay_buffer_class"], arguments["automatic_replay_buffer"]
    if not automatic and not (isinstance(buffer_class, type) and issubclass(buffer_class, BaseBuffer)):
        refuse("replay_buffer_class", buffer_class, "None or a subclass of SB3's ReplayBuffer")
    if automatic and not {"n_steps", "gamma"}.isdisjoint(arguments["replay_buffer_kwargs"]):
        refuse(
            "replay_buffer_kwargs",
            arguments["replay_buffer_kwargs"],
            "without n_steps and gamma where there is no `replay_buffer_class` of your own: both are arguments of "
            f"{arguments['algorithm']}",
        )
    if arguments["n_steps"] > 1:
        if not automatic:
            refuse(
                "n_steps",
                arguments["n_steps"],
                "1 with a `replay_buffer_class` of your own; n-step returns then belong to that class, for instance "
                'replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99} for NStepReplayBuffer',
            )
        if dict_observations:
            refuse("n_steps", arguments["n_steps"], "1 with Dict observations, for which SB3 has no n-step buffer")
        if arguments["optimize_memory_usage"]:
            refuse("n_steps", arguments["n_steps"], "1 with `optimize_memory_usage=True`")
    if arguments["optimize_memory_usage"] and dict_observations and automatic:
        refuse("optimize_memory_usage", True, "False with Dict observations, for which SB3 has no such buffer")


def target_entropy_rule(value: Any) -> tuple[str, float] | None:
    """The parts of ``"auto_0.5"`` (half of the automatic one) or ``"std_0.15"`` (a Gaussian of this σ); None for others."""
    kind, _, number = value.partition("_") if isinstance(value, str) else ("", "", "")
    if kind not in ("auto", "std"):
        return None
    try:
        factor = float(number)
    except ValueError:
        return None
    return (kind, factor) if math.isfinite(factor) and factor > 0.0 else None


def _check_target_entropy(value: Any) -> None:
    if target_entropy_rule(value) is not None:
        return
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        refuse("target_entropy", value, "'auto', a finite number, 'auto_0.5' (a multiple) or 'std_0.15' (of a deviation)")


def _check_temperature(arguments: Mapping[str, Any]) -> None:
    check_choice("ent_coef_update", arguments["ent_coef_update"], ("dual", "log", "exp"))
    if arguments["ent_coef_max"] is not None:
        check_real("ent_coef_max", arguments["ent_coef_max"], above=0.0)
    check_real("target_entropy_scale", arguments["target_entropy_scale"], 0.0)
    if arguments["target_entropy_scale"] >= 1.0:
        refuse("target_entropy_scale", arguments["target_entropy_scale"], "at least 0 and below 1")
    if arguments["target_entropy"] != "auto":
        _check_target_entropy(arguments["target_entropy"])
        if arguments["target_entropy_scale"] != DEFAULT_TARGET_ENTROPY_SCALE:
            refuse(
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
            refuse(name, arguments[name], f"{default!r} with a fixed temperature (`ent_coef`={ent_coef!r}), which ignores it")


def _refuse_an_unused_learning_rate(arguments: Mapping[str, Any]) -> None:
    """``learning_rate`` counts where a network or a learned temperature has none of its own."""
    exists = {
        "actor": arguments.get("trains_actor", True),
        "value": arguments.get("value_network", False),
        "ent_coef": is_learned(arguments["ent_coef"]),
    }
    names = [f"{owner}_learning_rate" for owner in LEARNING_RATE_OWNERS if exists.get(owner, True)]
    if arguments["learning_rate"] != DEFAULT_LEARNING_RATE and all(arguments[name] is not None for name in names):
        refuse("learning_rate", arguments["learning_rate"], f"left out where all have their own: {', '.join(names)}")


def _check_compile(value: Any) -> Any:
    if isinstance(value, str) and value == "auto":
        return value
    if not isinstance(value, bool | np.bool_):
        refuse("compile", value, "'auto', True or False")
    return bool(value)


def check_common_options(
    arguments: Mapping[str, Any], observation_space: spaces.Space[Any], n_envs: int, weights_follow: bool = False
) -> dict[str, Any]:
    """Check the options that need no network and that every algorithm has; what one of them lacks is at its default.

    Learning rates, schedules and ``ent_coef`` are checked where they are parsed, policy arguments in
    :mod:`~sb3_softac.arguments.policy`.

    :param arguments: argument values by name; ``automatic_replay_buffer`` tells whether the buffer class was left to SB3
    :param observation_space: of the environment
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
    }
    normal: dict[str, Any] = {name: check_count(name, arguments[name], low) for name, low in minimum.items()}
    if arguments["random_steps"] is not None:
        normal["random_steps"] = check_count("random_steps", arguments["random_steps"], 0)
    normal["train_freq"] = _check_train_freq(arguments["train_freq"], n_envs)
    for name in ("tau", "gamma"):
        check_real(name, arguments[name], 0.0, 1.0)
    if check_real("reward_scale", arguments["reward_scale"]) == 0.0:
        refuse("reward_scale", arguments["reward_scale"], "a finite number other than 0")
    if arguments["max_grad_norm"] is not None:
        check_real("max_grad_norm", arguments["max_grad_norm"], above=0.0)
    if not isinstance(arguments["action_noise"], ActionNoise | None):
        refuse("action_noise", arguments["action_noise"], "None or an ActionNoise of stable_baselines3.common.noise")
    for name in ("normalization", "encoder"):
        chosen = (arguments["policy_kwargs"] or {}).get(name)
        used = chosen.values() if isinstance(chosen, Mapping) else [chosen]
        if normal["batch_size"] == 1 and any(use in (*BATCH_NORMS, *BATCH_NORM_ENCODERS) for use in used):
            refuse("batch_size", 1, f"at least 2 with `{name}`={chosen!r}, which needs the variance of a batch")
    check_flag("optimize_memory_usage", arguments["optimize_memory_usage"])
    check_choice("target_q", arguments["target_q"], ("min", "mean", "first"))
    if not weights_follow:
        _refuse_an_unused_learning_rate(arguments)
    check_choice("precision", arguments["precision"], ("float32", "bfloat16"))
    normal["compile"] = _check_compile(arguments["compile"])
    _check_temperature(arguments)
    _check_replay_buffer({**arguments, **normal}, observation_space)
    return normal


def check_weights_fit(
    model: Any,
    now: Mapping[str, Any],
    built_for: Mapping[str, Any] | None,
    expected_policy_kwargs: Mapping[str, Any] | None,
    of_algorithm: tuple[str, ...] = (),
) -> None:
    """A saved model can be loaded with other options, but not with ones that its weights have no place for.

    :param model: the model
    :param now: what its options ask for
    :param built_for: what the weights were built for, or None if they are still to be built
    :param expected_policy_kwargs: what a user passed to ``load``
    :param of_algorithm: policy arguments that are options of the algorithm
    :raises ValueError: another architecture
    """
    for name, saved in (built_for or now).items():
        if now[name] != saved:
            advice = ": a new model with it can `warm_start` from this one" if name.startswith("ent_coef") else ""
            raise ValueError(f"`{name}` is {getattr(model, name)!r}, but the saved model needs {name} {saved!r}{advice}.")
    for name in of_algorithm:
        given = (expected_policy_kwargs or {}).get(name, getattr(model, name))
        if given != getattr(model, name):
            raise ValueError(f"`policy_kwargs` has {name} {given!r}, but the saved model needs {getattr(model, name)!r}.")
    if expected_policy_kwargs is not None:
        expected, kept = (
            {name: value for name, value in kwargs.items() if name not in of_algorithm}
            for kwargs in (expected_policy_kwargs, model.policy_kwargs)
        )
        if comparable(expected) != comparable(kept):
            raise ValueError(f"`policy_kwargs` is {expected}, but the saved model needs {kept}.")


def temperature_weights(model: Any) -> dict[str, Any]:
    """What the saved weights of a temperature are built for."""
    return {
        "ent_coef": model.ent_coef if is_learned(model.ent_coef) else "fixed",
        "ent_coef_update": model.ent_coef_update,
    }
