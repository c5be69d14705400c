"""States of random generators, looked at before a generator gets them.

NumPy and PyTorch take over most of a state as it is. A position outside of a generator's words reads other memory, and words
that never change again make a draw wait forever.
"""

import random
import struct
from typing import Any

import numpy as np
import torch as th

from sb3_softac.files.rebuilding import require

#: bit generators that NumPy has: arrays in their state, by name, with their length and type
ARRAYS: dict[str, dict[str, tuple[int, Any]]] = {
    "PCG64": {},
    "PCG64DXSM": {},
    "MT19937": {"key": (624, np.uint32)},
    "Philox": {"counter": (4, np.uint64), "key": (2, np.uint64)},
    "SFC64": {"state": (4, np.uint64)},
}
N_WORDS = 624


def _is_below(value: Any, bits: int) -> bool:
    return type(value) is int and 0 <= value < 1 << bits


def _is_array(value: Any, length: int, dtype: Any) -> bool:
    return type(value) is np.ndarray and value.shape == (length,) and value.dtype == dtype


def check_bits(state: Any) -> str:
    """The kind of a bit generator that could have this state.

    :raises Damage: none could
    """
    problem = "a random generator has no state of one"
    require(type(state) is dict and type(state.get("bit_generator")) is str and state["bit_generator"] in ARRAYS, problem)
    kind, inner = str(state["bit_generator"]), state.get("state")
    require(type(inner) is dict, problem)
    for name, (length, dtype) in ARRAYS[kind].items():
        require(_is_array(inner.get(name), length, dtype), problem)
    if kind == "MT19937":
        require(type(inner.get("pos")) is int and 0 <= inner["pos"] <= N_WORDS and bool(inner["key"][1:].any()), problem)
        return kind
    require(_is_below(state.get("has_uint32"), 1) and _is_below(state.get("uinteger"), 32), problem)
    if kind.startswith("PCG"):
        require(all(_is_below(inner.get(name), 128) for name in ("state", "inc")) and inner["inc"] % 2 == 1, problem)
    if kind == "Philox":
        position = state.get("buffer_pos")
        require(_is_array(state.get("buffer"), 4, np.uint64) and type(position) is int and 0 <= position <= 4, problem)
    return kind


def set_generator(generator: Any, state: Any) -> np.random.Generator:
    """Give a generator of NumPy a state, or make one for it."""
    kind = check_bits(state)
    if not isinstance(generator, np.random.Generator) or type(generator.bit_generator).__name__ != kind:
        generator = np.random.Generator(getattr(np.random, kind)(0))
    result: np.random.Generator = generator
    result.bit_generator.state = state
    return result


def set_legacy(generator: Any, state: Any) -> Any:
    """The same for a ``RandomState``, or for NumPy's global one, which is ``numpy.random``."""
    require(check_bits(state) == "MT19937", "a random generator has no state of one")
    require(
        _is_below(state.get("has_gauss"), 1) and type(state.get("gauss")) is float, "a random generator has no state of one"
    )
    generator.set_state(state)
    return generator


def set_python(generator: Any, state: Any) -> Any:
    """The same for a ``random.Random``, or for Python's global one, which is ``random``."""
    problem = "a random generator has no state of one"
    require(type(state) is tuple and len(state) == 3 and state[0] == random.Random.VERSION, problem)
    words = state[1]
    require(type(words) is tuple and len(words) == N_WORDS + 1 and type(state[2]) in (float, type(None)), problem)
    require(all(_is_below(word, 32) for word in words) and words[-1] <= N_WORDS and any(words[1:-1]), problem)
    generator.setstate(state)
    return generator


def set_torch(state: Any) -> None:
    """The same for PyTorch's generator of the CPU."""
    problem = "PyTorch's random generator has no state of one"
    is_bytes = isinstance(state, th.Tensor) and state.dtype is th.uint8 and state.shape == th.get_rng_state().shape
    require(is_bytes, problem)
    _, left, seeded, position = struct.unpack_from("=QiiQ", state.numpy().tobytes())
    require(seeded == 1 and ((left, position) == (1, 0) or (left > 0 and left + position == N_WORDS + 1)), problem)
    th.set_rng_state(state)
