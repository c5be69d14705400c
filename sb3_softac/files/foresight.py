"""Warnings at saving of what loading would refuse."""

import io
import json
import warnings
import zipfile
from typing import Any

from sb3_softac.files.allowed import FUNCTION_FIELDS, Allowed, full_name
from sb3_softac.files.reading import DERIVED, MAX_STEPS, SERIALIZED, unpickle_field
from sb3_softac.files.unpickling import Damage, Refusal


def warn_of_code(stream: io.BytesIO, warned: set[str]) -> None:
    """Warn of attributes of a model that was written to ``stream``, once for each.

    :param stream: a file in SB3's format
    :param warned: names of attributes that have been warned of
    """
    with zipfile.ZipFile(stream) as archive:
        attributes = json.loads(archive.read("data").decode())
    steps = MAX_STEPS
    for name, value in attributes.items():
        if name in warned | DERIVED or not isinstance(value, dict) or SERIALIZED not in value:
            continue
        try:
            steps -= unpickle_field(name, value[SERIALIZED], steps)[1]
        except (Refusal, Damage) as problem:
            warned.add(name)
            _warn(name, problem)


def warn_of_buffer(buffer: Any, warned: set[str]) -> None:
    """Warn of a replay buffer of a class that loading would refuse, once."""
    cls, rules = type(buffer), Allowed()
    try:
        rules.resolve(cls.__module__, cls.__qualname__)
        rules.create(cls, ())
    except Refusal as problem:
        if "replay_buffer" not in warned:
            warned.add("replay_buffer")
            _warn("replay_buffer", f"{full_name(cls)}: {problem}")


def _warn(name: str, problem: Any) -> None:
    instead = (
        "A class in a module that is imported before, instead of one in the script or in a function, is loaded without it"
    )
    if name in FUNCTION_FIELDS:
        instead = (
            "A function, or a class with `__call__`, in a module of your own that is imported before is loaded without it"
        )
        instead += "" if name == "kernel" else ", and so is a schedule string such as 'lin_3e-4'"
    warnings.warn(
        f"`{name}` is saved with what loading refuses unless it is told `trusted=True` ({problem}). {instead}.", stacklevel=4
    )
