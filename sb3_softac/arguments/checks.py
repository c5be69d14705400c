"""Checks of single values. Each message names the argument, the value that it got and the values that are allowed."""

import functools
import math
import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    raise ValueError(f"`{name}` is {value!r}, but it must be {allowed}.")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """:raises ValueError: ``value`` is not one of ``allowed``"""
    if value not in allowed:
        refuse(name, value, f"one of {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: object) -> None:
    """:raises ValueError: ``value`` is not a bool"""
    if not isinstance(value, bool | np.bool_):
        refuse(name, value, "True or False")


def check_count(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an int; 1e6 is an integer too.

    :raises ValueError: not an integer, or below ``minimum``
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and int(value) == value and value >= minimum):
        refuse(name, value, f"an integer of at least {minimum}")
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
        refuse(name, value, " and ".join(["a finite number", *filter(None, limits)]))
    return float(value)


def refuse_for_discrete_actions(arguments: Mapping[str, Any], unused: Mapping[str, Any]) -> None:
    """Refuse what differs from its value in ``unused``: with discrete actions it would be ignored."""
    for name, default in unused.items():
        value = arguments[name]
        if (tuple(value) if isinstance(value, list) else value) != default:
            refuse(name, value, f"{default!r} with discrete actions, for which it has no meaning")


def check_action_space(space: spaces.Space[Any], use_sde: bool = False, algorithm: str = "SoftAC") -> None:
    """Only a ``Discrete`` with a choice, or a ``Box`` whose bounds can be rescaled to [−1, 1] and back.

    :param space: action space of the environment
    :param use_sde: whether gSDE is asked for, which needs a ``Box``
    :param algorithm: its name
    :raises ValueError: another space, a single action, infinite bounds, or bounds whose difference overflows
    """
    if isinstance(space, spaces.Discrete):
        refuse_for_discrete_actions({"use_sde": use_sde}, {"use_sde": False})
        if space.n < 2:
            raise ValueError(f"The action space is {space}, but there must be at least two actions to choose from.")
        return
    if not isinstance(space, spaces.Box):
        raise ValueError(f"The action space is {space}, but {algorithm} supports spaces.Box and spaces.Discrete only.")
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


def is_learned(ent_coef: object) -> bool:
    """Whether ``ent_coef`` asks for a learned temperature."""
    return isinstance(ent_coef, str) and ent_coef.startswith("auto")


def comparable(value: Any) -> Any:
    """``value`` with lists instead of tuples, as the file format keeps them, and partial functions by what they hold."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items()}
    if isinstance(value, functools.partial):
        return ["partial", value.func, comparable(value.args), comparable(value.keywords)]
    return [comparable(entry) for entry in value] if isinstance(value, list | tuple) else value
