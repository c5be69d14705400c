"""State as JSON and arrays: what a checkpoint is made of, written and read without running anything in it.

A value becomes a form, which JSON can hold, and arrays by names. What JSON has no form for is an object with the key ``"!"``,
which says what it is. Objects are their class, by name, and their attributes; they are either made again, by the rules for
everything that comes out of files (``allowed.py``), or their attributes are put into an object that is there already
(``decoding.py``).
"""

import collections
import enum
import functools
import math
import pathlib
import random
import re
import sys
from collections.abc import Callable, Collection, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch as th

from sb3_softac.files import rebuilding
from sb3_softac.files.allowed import full_name, is_class
from sb3_softac.files.unpickling import KEYS, Damage, Refusal

Form = Any
Arrays = dict[str, np.ndarray[Any, Any]]
KIND = "!"
SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, functools.partial)
#: flag of classes that a ``class`` statement has made
HEAP_TYPE = 1 << 9
#: deeper than any state, and shallower than Python's stack
DEEPEST = 100
#: a list of so many numbers is an array
MANY = 64
#: attributes that say where something is written: they are settings, and not state
PLACES = re.compile(r"(?i)path|folder|director|filename|prefix|(^|_)(file|dir)$")


class UnsavableError(ValueError):
    """A value that has no form."""

    def __init__(self, path: str, what: str, advice: str = "") -> None:
        self.path, self.what, self.advice = path, what, advice
        super().__init__(f"`{path}` is {what}{advice}")


def kind_of(value: Any) -> str:
    cls = type(value)
    return f"{'an' if cls.__name__[:1] in 'AEIOUaeiou' else 'a'} {cls.__name__}"


def is_key(value: Any) -> bool:
    """Whether a value may be a key or an element of a set: hashing and comparing it runs no code of a user."""
    if type(value) in (tuple, frozenset):
        return all(map(is_key, value))
    return type(value) in KEYS or isinstance(value, np.generic)


def is_place(name: str, value: Any) -> bool:
    """Whether an attribute says where something is written."""
    return isinstance(value, (str, pathlib.PurePath)) and bool(PLACES.search(name))


def named(value: Any) -> str:
    """The name by which a class or function is found again.

    :raises UnsavableError: there is none
    """
    name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", "")
    if "<lambda>" in name:
        raise UnsavableError("", "a lambda", ": a function with a name, in a module, can be found again")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value or "." in name:
        raise UnsavableError("", f"{module}.{name}, which is not found there", ": at the top of a module it would be")
    return f"{module}:{name}"


class Encoder:
    """Turns values into forms.

    :param arrays: where arrays go
    :param prefix: of their names
    :param skip: names of attributes of objects that are left out
    :param leave_out_code: leave out functions, classes and modules; they are part of the program, and do not change. Of
        attributes also leave out those that say where something is written
    """

    def __init__(self, arrays: Arrays, prefix: str, skip: Collection[str] = (), leave_out_code: bool = False) -> None:
        self.arrays, self.prefix, self.skip, self.leave_out_code = arrays, prefix, frozenset(skip), leave_out_code
        self._seen: dict[int, int] = {}
        self._held: list[Any] = []  # so that no number is given to another object
        #: for types of other packages, by the name of the type: what to do with them
        self.others: dict[str, Callable[[Any], Form]] = {}

    def __call__(self, value: Any, path: str = "", depth: int = 0) -> Form:
        """The form of a value.

        :raises UnsavableError: it has none
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is bytes:
            return {KIND: "bytes", "is": value.hex()}
        if type(value) is float:
            return value if math.isfinite(value) else {KIND: "float", "is": repr(value)}
        if depth > DEEPEST:
            raise UnsavableError(path, "nested too deeply")
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        if is_class(value) or isinstance(value, CODE):
            return self._code(value, path, depth)
        if isinstance(value, enum.Enum):
            return {KIND: "enum", "class": named(type(value)), "is": self(value.value, path, depth + 1)}
        if isinstance(value, np.dtype) and (value.kind not in "biuf" or value.itemsize > 8):
            raise UnsavableError(path, f"the data type {value}")
        if type(value) in (th.device, th.dtype) or isinstance(value, np.dtype):
            return {KIND: "device" if type(value) is th.device else "dtype", "is": getattr(value, "str", str(value))}
        if id(value) in self._seen:
            return {KIND: "same", "is": self._seen[id(value)]}
        if type(value) not in (tuple, frozenset):  # which cannot change
            self._seen[id(value)] = len(self._seen)
            self._held.append(value)
        return self._container(value, path, depth + 1)

    def _scalar(self, value: Any, path: str) -> Form:
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise UnsavableError(path, f"a NumPy scalar of {value.dtype}")
        return {KIND: "scalar", "dtype": value.dtype.str, "is": self(value.item(), path)}

    def _code(self, value: Any, path: str, depth: int) -> Form:
        if self.leave_out_code:
            return {KIND: "code"}
        if isinstance(value, functools.partial):
            return self._partial(value, path, depth)
        try:
            return {KIND: "class" if is_class(value) else "function", "is": named(value)}
        except UnsavableError as error:
            raise UnsavableError(path, error.what, error.advice) from None

    def _partial(self, value: "functools.partial[Any]", path: str, depth: int) -> Form:
        try:
            rebuilding.fill_partial(rebuilding.make_partial(value.func), (value.func, value.args, dict(value.keywords), {}))
        except (Damage, Refusal):
            advice = ": an object of a class with `__call__` holds its arguments, too"
            raise UnsavableError(path, "a functools.partial of something else than an activation", advice) from None
        return {
            KIND: "partial",
            "is": [self(part, path, depth + 1) for part in (value.func, list(value.args), value.keywords)],
        }

    def _container(self, value: Any, path: str, depth: int) -> Form:
        cls = type(value)
        if cls is list:
            return self._list(value, path, depth)
        if cls in SEQUENCES.values():
            return self._sequence(value, path, depth)
        if cls is collections.deque:
            return {KIND: "deque", "maxlen": value.maxlen, "is": [self(part, f"{path}[...]", depth) for part in value]}
        if isinstance(value, dict) and cls in (dict, collections.OrderedDict, collections.defaultdict):
            return self._mapping(value, path, depth)
        if isinstance(value, (np.ndarray, th.Tensor)):
            return self._array(value, path)
        if isinstance(value, np.random.Generator):
            state = self(dict(value.bit_generator.state), path, depth)
            return {KIND: "generator", "is": state}
        if isinstance(value, np.random.RandomState):
            return {KIND: "random_state", "is": self(value.get_state(legacy=False), path, depth)}
        if isinstance(value, random.Random):
            return {KIND: "random", "is": self(value.getstate(), path, depth)}
        if cls.__name__ in self.others:
            return self.others[cls.__name__](value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {KIND: "named_tuple", "class": named(cls), "is": [self(part, path, depth) for part in value]}
        return self._object(value, path, depth)

    def _list(self, value: list[Any], path: str, depth: int) -> Form:
        kinds = set(map(type, value)) if len(value) >= MANY else set()
        if kinds == {float} or (kinds == {int} and all(-(1 << 63) <= number < 1 << 63 for number in value)):
            name = f"{self.prefix}{len(self.arrays)}"
            self.arrays[name] = np.array(value, dtype=np.float64 if kinds == {float} else np.int64)
            return {KIND: "numbers", "is": name}
        return [self(part, f"{path}[{i}]", depth) for i, part in enumerate(value)]

    def _sequence(self, value: Any, path: str, depth: int) -> Form:
        is_set = type(value) is not tuple
        if is_set and not all(map(is_key, value)):
            raise UnsavableError(path, "a set of objects")
        parts = sorted(value, key=repr) if is_set else value
        return {KIND: type(value).__name__, "is": [self(part, f"{path}[{i}]", depth) for i, part in enumerate(parts)]}

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Form:
        if type(value) is dict and all(type(key) is str and key != KIND for key in value):
            return {key: self(part, f"{path}[{key!r}]", depth) for key, part in value.items()}
        if not all(map(is_key, value)):
            raise UnsavableError(path, "a dict with objects as keys")
        kind = "ordered_dict" if type(value) is collections.OrderedDict else "dict"
        pairs = [[self(key, path, depth), self(part, f"{path}[{key!r}]", depth)] for key, part in value.items()]
        return {KIND: kind, "is": pairs}

    def _array(self, value: Any, path: str) -> Form:
        name = f"{self.prefix}{len(self.arrays)}"
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "SU":
                return {KIND: "text", "dtype": value.dtype.str, "is": self(value.tolist(), path)}
            if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
                raise UnsavableError(path, f"an array of {value.dtype}")
            own = value.dtype.newbyteorder("=")
            self.arrays[name] = np.array(value, dtype=own, order="C")  # a copy: it goes on changing
            return {KIND: "array", "is": name, "dtype": own.str}
        tensor = value.detach().cpu()
        if tensor.layout is not th.strided or tensor.is_complex() or tensor.is_quantized:
            raise UnsavableError(path, "a sparse, complex or quantized tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        bits = tensor.contiguous().view(th.int16) if tensor.dtype is th.bfloat16 else tensor.contiguous()
        self.arrays[name] = bits.numpy().copy()
        return {KIND: "tensor", "is": name, "dtype": dtype}

    def _object(self, value: Any, path: str, depth: int) -> Form:
        attributes = getattr(value, "__dict__", None)
        in_python = type(value).__flags__ & HEAP_TYPE and not any(vars(cls).get("__slots__") for cls in type(value).__mro__)
        if type(attributes) is not dict or not in_python:
            raise UnsavableError(path, kind_of(value))
        return {KIND: "object", "class": full_name(type(value)), "is": self.attributes(attributes, path, depth)}

    def attributes(self, attributes: Mapping[str, Any], path: str, depth: int = 0) -> Form:
        """Attributes of an object by their names."""
        return {
            name: self(value, f"{path}.{name}".strip("."), depth)
            for name, value in attributes.items()
            if name not in self.skip
            and not (self.leave_out_code and (is_class(value) or isinstance(value, CODE) or is_place(name, value)))
        }
