"""State as JSON and arrays: what a checkpoint is made of, written and read without running anything in it.

A value becomes a form, which JSON can hold, and arrays by names. What JSON has no form for is an object with the key ``"!"``,
which says what it is. Objects are their class, by name, and their attributes; they are either made again, by the rules for
everything that comes out of files (``allowed.py``), or their attributes are put into an object that is there already.
"""

import collections
import enum
import functools
import math
import random
import sys
from collections.abc import Callable, Collection, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch as th

from sb3_softac.files.allowed import Allowed, full_name, is_class
from sb3_softac.files.rebuilding import require
from sb3_softac.files.unpickling import Damage, Refusal

Form = Any
Arrays = dict[str, np.ndarray[Any, Any]]
KIND = "!"
#: bit generators that NumPy has
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, functools.partial)
#: flag of classes that a ``class`` statement has made
HEAP_TYPE = 1 << 9
#: deeper than any state, and shallower than Python's stack
DEEPEST = 100


class UnsavableError(ValueError):
    """A value that has no form."""

    def __init__(self, path: str, what: str, advice: str = "") -> None:
        self.path, self.what, self.advice = path, what, advice
        super().__init__(f"`{path}` is {what}{advice}")


def kind_of(value: Any) -> str:
    cls = type(value)
    return f"{'an' if cls.__name__[:1] in 'AEIOUaeiou' else 'a'} {cls.__name__}"


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
    :param leave_out_code: leave out functions, classes and modules; they are part of the program, and do not change
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
        if type(value) in (th.device, th.dtype, np.dtype) or isinstance(value, np.dtype):
            return {KIND: "device" if type(value) is th.device else "dtype", "is": getattr(value, "str", str(value))}
        if id(value) in self._seen:
            return {KIND: "same", "is": self._seen[id(value)]}
        if type(value) not in (tuple, frozenset):  # which cannot change
            self._seen[id(value)] = len(self._seen)
            self._held.append(value)
        return self._container(value, path, depth + 1)

    def _scalar(self, value: Any, path: str) -> Form:
        if value.dtype.kind not in "biuf":
            raise UnsavableError(path, f"a NumPy scalar of {value.dtype}")
        return {KIND: "scalar", "dtype": value.dtype.str, "is": self(value.item(), path)}

    def _code(self, value: Any, path: str, depth: int) -> Form:
        if self.leave_out_code:
            return {KIND: "code"}
        if isinstance(value, functools.partial):
            parts = [self(part, path, depth + 1) for part in (value.func, list(value.args), dict(value.keywords))]
            return {KIND: "partial", "is": parts}
        try:
            return {KIND: "class" if is_class(value) else "function", "is": named(value)}
        except UnsavableError as error:
            raise UnsavableError(path, error.what, error.advice) from None

    def _container(self, value: Any, path: str, depth: int) -> Form:
        cls = type(value)
        if cls is list:
            return [self(part, f"{path}[{i}]", depth) for i, part in enumerate(value)]
        if cls in SEQUENCES.values():
            parts = sorted(value, key=repr) if cls is not tuple else value
            return {KIND: cls.__name__, "is": [self(part, f"{path}[{i}]", depth) for i, part in enumerate(parts)]}
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

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Form:
        if type(value) is dict and all(type(key) is str and key != KIND for key in value):
            return {key: self(part, f"{path}[{key!r}]", depth) for key, part in value.items()}
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
            self.arrays[name] = np.array(value, order="C")  # a copy: it goes on changing
            return {KIND: "array", "is": name, "dtype": value.dtype.str}
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
            if name not in self.skip and not (self.leave_out_code and (is_class(value) or isinstance(value, CODE)))
        }


class Decoder:
    """Turns forms into values again.

    :param arrays: by name
    :param rules: what may be named and made; without them, objects are only filled
    :param replaced: what the caller has for names, ``"module:name"`` or ``"module.name"``
    """

    def __init__(
        self, arrays: Mapping[str, Any], rules: Allowed | None = None, replaced: Mapping[str, Any] | None = None
    ) -> None:
        self.arrays, self.rules, self.replaced = arrays, rules, replaced or {}
        self._seen: list[Any] = []
        self.others: dict[str, Callable[[Any, Any], Any]] = {}
        self._kinds: dict[str, Callable[[Any, Any, int], Any]] = {
            "float": lambda form, _, __: self._float(form["is"]),
            "scalar": lambda form, _, __: _dtype(form["dtype"]).type(self(form["is"])),
            "code": lambda _, present, __: present,
            "class": lambda form, _, __: self._find(form["is"]),
            "function": lambda form, _, __: self._find(form["is"]),
            "enum": self._enum,
            "device": lambda form, _, __: th.device(form["is"]),
            "dtype": lambda form, _, __: getattr(th, form["is"][6:]) if form["is"][:6] == "torch." else _dtype(form["is"]),
            "same": lambda form, _, __: self._seen[form["is"]],
            "partial": lambda form, _, depth: self._partial(*[self(part, None, depth) for part in form["is"]]),
            **{kind: self._fixed for kind in ("tuple", "frozenset", "named_tuple")},
            "set": self._set,
            "deque": self._deque,
            "dict": self._dict,
            "ordered_dict": self._dict,
            "bytes": lambda form, _, __: bytes.fromhex(form["is"]),
            "text": self._text,
            "array": self._array,
            "tensor": self._tensor,
            "generator": self._generator,
            "random_state": self._random_state,
            "random": self._random,
            "object": self._object,
        }

    def __call__(self, form: Form, present: Any = None, depth: int = 0) -> Any:
        """The value of a form.

        :param form: what an encoder has made
        :param present: the value that is there now: arrays, generators and objects are changed in place where they fit
        :raises Damage: a form that no encoder makes, or an object that is not there
        """
        require(depth <= DEEPEST, "it is nested too deeply")
        if form is None or type(form) in (bool, int, float, str):
            return form
        if type(form) is list:
            result: list[Any] = []
            self._seen.append(result)
            old = present if type(present) is list and len(present) == len(form) else [None] * len(form)
            result.extend(self(part, was, depth + 1) for part, was in zip(form, old, strict=True))
            return result
        require(type(form) is dict, "it holds something that is no form")
        if KIND not in form:
            return self._dict({"is": [[key, part] for key, part in form.items()]}, present, depth)
        kind = form[KIND]
        if kind in self.others:
            self._seen.append(present)
            return self.others[kind](form, present)
        require(kind in self._kinds, f"it holds {kind!r}, which is no kind of value")
        return self._kinds[kind](form, present, depth + 1)

    @staticmethod
    def _float(text: str) -> float:
        require(text in ("nan", "inf", "-inf"), "a number is none")
        return float(text)

    def _find(self, name: str) -> Any:
        for key in (name, name.replace(":", ".")):
            if key in self.replaced:
                return self.replaced[key]
        require(type(name) is str and name.count(":") == 1, "a name is none")
        if self.rules is None:
            raise Refusal(name.replace(":", "."))
        return self.rules.resolve(*name.split(":"))

    def _enum(self, form: Form, present: Any, depth: int) -> Any:
        value = self(form["is"], None, depth)
        if isinstance(present, enum.Enum) and f"{type(present).__module__}:{type(present).__qualname__}" == form["class"]:
            return type(present)(value)
        cls = self._find(form["class"])
        return cls(value) if form["class"] in self.replaced or self.rules is None else self.rules.call(cls, (value,))

    def _partial(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if self.rules is None:
            raise Refusal("functools.partial")
        return functools.partial(function, *arguments, **keywords)

    def _fixed(self, form: Form, present: Any, depth: int) -> Any:
        old = present if isinstance(present, tuple) and len(present) == len(form["is"]) else [None] * len(form["is"])
        if form[KIND] == "named_tuple":
            self._seen.append(present)  # as the encoder counts them
        parts = [self(part, was, depth) for part, was in zip(form["is"], old, strict=True)]
        if form[KIND] != "named_tuple":
            return SEQUENCES[form[KIND]](parts)
        cls = type(present) if present is not None and full_name(type(present)) == form["class"].replace(":", ".") else None
        if cls is not None:
            return cls(*parts)
        if self.rules is None:
            raise Refusal(form["class"])
        return self.rules.create(self._find(form["class"]), tuple(parts))

    def _set(self, form: Form, present: Any, depth: int) -> Any:
        result: set[Any] = set()
        self._seen.append(result)
        result.update(self(part, None, depth) for part in form["is"])
        return result

    def _deque(self, form: Form, present: Any, depth: int) -> Any:
        require(form["maxlen"] is None or type(form["maxlen"]) is int, "a deque has no length")
        result: collections.deque[Any] = collections.deque(maxlen=form["maxlen"])
        self._seen.append(result)
        result.extend(self(part, None, depth) for part in form["is"])
        return result

    def _dict(self, form: Form, present: Any, depth: int) -> Any:
        old = present if isinstance(present, dict) else {}
        result: Any = collections.OrderedDict() if form.get(KIND) == "ordered_dict" else {}
        if type(present) is collections.defaultdict:
            result = collections.defaultdict(present.default_factory)
        self._seen.append(result)
        for pair in form["is"]:
            require(type(pair) is list and len(pair) == 2, "a dict has no pairs")
            key = self(pair[0], None, depth)
            require(type(key) in (str, int, float, bool, tuple, type(None)) or isinstance(key, np.generic), "a key is none")
            result[key] = self(pair[1], old.get(key), depth)
        return result

    def _take(self, form: Form) -> np.ndarray[Any, Any]:
        require(form["is"] in self.arrays, f"there is no array {form['is']!r}")
        return np.asarray(self.arrays[form["is"]])

    def _array(self, form: Form, present: Any, depth: int) -> Any:
        value = self._take(form)
        require(value.dtype == _dtype(form["dtype"]), "an array has another type than it says")
        fits = type(present) is np.ndarray and present.shape == value.shape and present.dtype == value.dtype
        if fits and present.flags.writeable:
            present[...] = value
            value = present
        else:
            value = value.copy()
        self._seen.append(value)
        return value

    def _text(self, form: Form, present: Any, depth: int) -> Any:
        index = len(self._seen)
        self._seen.append(None)
        require(form["dtype"][:2] in ("|S", "<U", ">U", "=U"), "an array of text is none")
        self._seen[index] = value = np.array(self(form["is"], None, depth), dtype=form["dtype"])
        return value

    def _tensor(self, form: Form, present: Any, depth: int) -> Any:
        value = th.from_numpy(self._take(form).copy())
        if form["dtype"] == "bfloat16":
            require(value.dtype is th.int16, "a tensor has another type than it says")
            value = value.view(th.bfloat16)
        require(str(value.dtype) == f"torch.{form['dtype']}", "a tensor has another type than it says")
        if isinstance(present, th.Tensor) and present.shape == value.shape and present.dtype == value.dtype:
            with th.no_grad():
                value = present.copy_(value)
        self._seen.append(value)
        return value

    def _generator(self, form: Form, present: Any, depth: int) -> Any:
        index = len(self._seen)
        self._seen.append(present)
        state = self(form["is"], None, depth)
        require(type(state) is dict and state.get("bit_generator") in BIT_GENERATORS, "a generator is of no kind")
        if not isinstance(present, np.random.Generator) or type(present.bit_generator).__name__ != state["bit_generator"]:
            present = np.random.Generator(getattr(np.random, state["bit_generator"])(0))
        present.bit_generator.state = state
        self._seen[index] = present
        return present

    def _random_state(self, form: Form, present: Any, depth: int) -> Any:
        index = len(self._seen)
        self._seen.append(present)
        present = present if isinstance(present, np.random.RandomState) else np.random.RandomState(0)
        present.set_state(self(form["is"], None, depth))
        self._seen[index] = present
        return present

    def _random(self, form: Form, present: Any, depth: int) -> Any:
        index = len(self._seen)
        self._seen.append(present)
        present = present if isinstance(present, random.Random) else random.Random(0)
        present.setstate(self(form["is"], None, depth))
        self._seen[index] = present
        return present

    def _object(self, form: Form, present: Any, depth: int) -> Any:
        if present is not None and full_name(type(present)) == form["class"]:
            self._seen.append(present)
            self.fill(present, form["is"], depth)
            return present
        require(self.rules is not None, f"there is no {form['class']} where one was")
        assert self.rules is not None
        module, _, name = form["class"].rpartition(".")
        replaced = self.replaced.get(form["class"], self.replaced.get(f"{module}:{name}"))
        made = self.rules.create(self.rules.resolve(module, name) if replaced is None else replaced, ())
        self._seen.append(made)
        require(type(form["is"]) is dict, "an object has no attributes")
        self.rules.build(made, {name: self(part, None, depth) for name, part in form["is"].items()})
        return made

    def fill(self, present: Any, forms: Form, depth: int = 0) -> None:
        """Give an object the attributes that it had."""
        require(type(forms) is dict, "an object has no attributes")
        attributes = vars(present)
        for name, form in forms.items():
            require(
                type(name) is str and name.isidentifier() and not name.startswith("__"), f"an attribute is called {name!r}"
            )
            attributes[name] = self(form, attributes.get(name), depth + 1)


def _dtype(text: Any) -> np.dtype[Any]:
    require(type(text) is str and len(text) <= 4 and text[1:2] in tuple("biuf?"), "a type is none")
    try:
        result: np.dtype[Any] = np.dtype(text)
    except TypeError as error:
        raise Damage(f"{text!r} is no type") from error
    return result
