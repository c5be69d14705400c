"""Arrays, random generators and tensors out of a pickle, by functions of our own in the place of those that it names.

NumPy's and PyTorch's functions trust what they are given: a data type whose state says that it holds no objects turns bytes
into pointers, ``torch.storage._load_from_bytes`` unpickles again, and a shape is allocated before it is filled. Here every
value is checked against the bytes that are there.
"""

import functools
import io
import math
import pickletools
import re
import sys
from collections import OrderedDict
from typing import Any, cast

import numpy as np
import torch as th
from torch.nn.modules import activation

from sb3_softac.files.unpickling import Damage, Refusal

#: data types by NumPy's short names
DTYPES = re.compile(r"b1|\?|[iu][1248]|f[248]|c8|c16|[US]\d{1,6}|O8?")
MAX_DIMENSIONS = 32


def require(condition: bool, problem: str) -> None:
    """:raises Damage: the condition does not hold"""
    if not condition:
        raise Damage(problem)


def check_shape(shape: Any) -> int:
    """The number of elements of an array of this shape."""
    require(type(shape) is tuple and len(shape) <= MAX_DIMENSIONS, "the shape of an array is none")
    require(all(type(size) is int and size >= 0 for size in shape), "the shape of an array is none")
    return math.prod(shape)


def make_dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype[Any]:
    if type(code) is not str or not DTYPES.fullmatch(code):
        raise Refusal(f"the data type {code!r}")
    return np.dtype(code)


def check_dtype(dtype: np.dtype[Any], state: Any) -> None:
    """The state of a plain data type in this machine's byte order says nothing new, and is not given to it."""
    require(type(state) is tuple and len(state) == 8, "a data type has no state of one")
    if state[2:5] != (None, None, None) or state[1] not in ("|", "=", "<" if sys.byteorder == "little" else ">"):
        raise Refusal(f"a structured data type, or one of another machine ({state[1]!r})")


def frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray[Any, Any]:
    """In the place of NumPy's function of this name: an array over ``data``."""
    n_elements = check_shape(shape)
    require(type(data) in (bytes, bytearray) and isinstance(dtype, np.dtype), "an array has no data")
    require(dtype.hasobject is False, "an array of objects has bytes in their place")
    require(n_elements * dtype.itemsize == len(data), f"an array of the shape {shape} has {len(data)} bytes")
    require(order in ("C", "F", "K"), "an array has no order")
    flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    if axes is None:
        return flat.reshape(shape, order="F" if order == "F" else "C")
    require(check_shape(axes) >= 0 and sorted(axes) == list(range(len(shape))), "an array has no order")
    return flat.reshape(shape).transpose(axes)


def reconstruct(cls: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    """In the place of NumPy's function of this name: an empty array, which gets its state later."""
    require(cls is np.ndarray and shape == (0,), "an array is none")
    return np.empty(0, np.uint8)


def fill_array(array: np.ndarray[Any, Any], state: Any) -> None:
    require(type(state) is tuple and len(state) == 5, "an array has no state of one")
    _, shape, dtype, fortran, data = state
    n_elements = check_shape(shape)
    require(isinstance(dtype, np.dtype) and type(fortran) is bool, "an array has no state of one")
    if dtype.hasobject:
        require(type(data) is list and len(data) == n_elements, f"an array of the shape {shape} has other objects")
    else:
        require(
            type(data) is bytes and len(data) == n_elements * dtype.itemsize, f"an array of the shape {shape} has other data"
        )
    array.__setstate__((1, shape, dtype, fortran, data))


def pad(array: Any, widths: Any) -> np.ndarray[Any, Any]:
    """In the place of NumPy's function of this name: rows of zeros behind an array, which take no memory until used."""
    require(type(array) is np.ndarray and array.ndim > 0 and not array.dtype.hasobject, "an array has no rows")
    require(type(widths) is tuple and len(widths) == array.ndim, "an array has no rows")
    require(all(type(width) is tuple and len(width) == 2 for width in widths), "an array has no rows")
    check_shape(tuple(n for width in widths for n in width))
    require(all(width == (0, 0) for width in widths[1:]) and widths[0][0] == 0, "an array has its rows elsewhere")
    try:
        padded = np.zeros((len(array) + widths[0][1], *array.shape[1:]), array.dtype)
    except (MemoryError, ValueError) as error:
        raise Damage(f"an array has more rows than fit: {error}") from error
    padded[: len(array)] = array
    return padded


def scalar(dtype: Any, data: Any) -> Any:
    """In the place of NumPy's function of this name."""
    require(isinstance(dtype, np.dtype) and not dtype.hasobject, "a number has no data type")
    require(type(data) is bytes and len(data) == dtype.itemsize > 0, "a number has other data")
    return np.frombuffer(data, dtype)[0]


def bit_generator(kind: Any) -> np.random.PCG64:
    """In the place of NumPy's ``__bit_generator_ctor``; spaces of Gymnasium have PCG64 and no other."""
    if kind is not np.random.PCG64 and kind != "PCG64":
        raise Refusal(f"the random generator {getattr(kind, '__name__', kind)!r}")
    return np.random.PCG64(0)


def fill_bit_generator(generator: np.random.PCG64, state: Any) -> None:
    seeds = None
    if type(state) is tuple and len(state) == 2:
        state, seeds = state
    require(type(state) is dict and type(state.get("state")) is dict, "a random generator has no state of one")
    numbers = [*(state["state"].get(name) for name in ("state", "inc")), state.get("has_uint32"), state.get("uinteger")]
    bounds = (128, 128, 1, 32)
    valid = all(type(n) is int and 0 <= n < 1 << bits for n, bits in zip(numbers, bounds, strict=True))
    require(valid and state.get("bit_generator") == "PCG64", "a random generator has no state of one")
    require(seeds is None or type(seeds) is np.random.SeedSequence, "a random generator has no seed sequence")
    generator.state = state
    if seeds is not None and np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # older ones keep no seed sequence in files
        generator.__setstate__((state, seeds))  # type: ignore[attr-defined]  # which NumPy does not list


def generator(source: Any, constructor: Any = None) -> np.random.Generator:
    """In the place of NumPy's ``__generator_ctor``."""
    return np.random.Generator(source if type(source) is np.random.PCG64 else bit_generator(source))


def fill_generator(generator: np.random.Generator, state: Any) -> None:
    """NumPy before 2.0 gives the state to the generator itself."""
    require(type(generator.bit_generator) is np.random.PCG64, "a random generator is none")
    fill_bit_generator(cast(np.random.PCG64, generator.bit_generator), state)


def seed_sequence(cls: Any, checksum: Any, state: Any) -> np.random.SeedSequence:
    """In the place of Cython's function for NumPy's seed sequences."""
    require(cls is np.random.SeedSequence and state is None, "a seed sequence is none")
    return np.random.SeedSequence(0)


def fill_seed_sequence(sequence: Any, state: Any) -> None:
    require(type(state) is tuple and len(state) == 5, "a seed sequence has no state of one")
    entropy, spawned, pool, pool_size, spawn_key = state
    entropies = entropy if type(entropy) in (list, tuple) else [entropy]
    numbers = [*entropies, spawned, pool_size, *(spawn_key if type(spawn_key) is tuple else [None])]
    require(all(type(number) is int and number >= 0 for number in numbers), "a seed sequence has no state of one")
    fits = type(pool) is np.ndarray and pool.dtype == np.uint32 and pool.shape == (pool_size,) and 4 <= pool_size <= 1024
    require(fits, "a seed sequence has no state of one")
    sequence.__setstate__(state)


def fill_partial(partial: "functools.partial[Any]", state: Any) -> None:
    require(type(state) is tuple and len(state) == 4 and state[0] is partial.func, "a partial has no state of one")
    _, arguments, keywords, attributes = state
    plain = type(arguments) is tuple and type(keywords) is dict and not attributes
    require(plain, "a partial has no state of one")
    for value in (*arguments, *keywords.values()):
        require(type(value) in (int, float, bool, str, type(None)), f"a partial has a {type(value).__name__} as its argument")
    partial.__setstate__((partial.func, arguments, keywords, {}))  # type: ignore[attr-defined]  # nor does Python


def make_partial(cls: Any) -> "functools.partial[Any]":
    """Only of an activation function of PyTorch."""
    known = isinstance(cls, type) and cls.__module__ == activation.__name__ and vars(activation).get(cls.__name__) is cls
    if not known:
        raise Refusal(f"functools.partial of {getattr(cls, '__qualname__', type(cls).__name__)}")
    return functools.partial(cls)


def storage(data: Any) -> Any:
    """In the place of ``torch.storage._load_from_bytes``, which unpickles ``data`` without any restriction."""
    require(type(data) is bytes, "a tensor has no data")
    stream = io.BytesIO(data)
    for _ in range(5):  # the parts of PyTorch's format before its own data
        argument: Any
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name in ("STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "INST", "OBJ"):
                raise Refusal(f"the instruction {instruction.name} in the data of a tensor")
            if instruction.name == "GLOBAL" and not re.fullmatch(r"torch \w+Storage", argument):
                raise Refusal(f"{argument.replace(' ', '.')} in the data of a tensor")
            declared = argument if type(argument) is int and argument.bit_length() <= 64 else 0
            require(declared <= max(len(data), 1 << 16), "a tensor has less data than it says")
    loaded = th.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    require(isinstance(loaded, th.storage.TypedStorage | th.UntypedStorage), "a tensor has no data")
    return loaded


def tensor(data: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None) -> th.Tensor:
    """In the place of ``torch._utils._rebuild_tensor_v2``."""
    require(isinstance(data, th.storage.TypedStorage), "a tensor has no data")
    require(type(offset) is int and offset >= 0 and check_shape(size) >= 0 <= check_shape(stride), "a tensor has no shape")
    require(len(size) == len(stride), "a tensor has no shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    require(
        0 in size or last * data.dtype.itemsize < data._untyped_storage.nbytes(), f"a tensor of the shape {size} has less data"
    )
    require(type(requires_grad) is bool and type(hooks) is OrderedDict and not hooks, "a tensor has hooks")
    rebuilt = th.tensor([], dtype=data.dtype).set_(data._untyped_storage, offset, size, stride)
    rebuilt.requires_grad = requires_grad
    return rebuilt


def parameter(data: Any, requires_grad: Any, hooks: Any) -> th.nn.Parameter:
    """In the place of ``torch._utils._rebuild_parameter``."""
    require(type(data) is th.Tensor and type(requires_grad) is bool, "a parameter is no tensor")
    require(type(hooks) is OrderedDict and not hooks, "a parameter has hooks")
    return th.nn.Parameter(data, requires_grad)
