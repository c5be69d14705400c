"""The way back from forms (plain.py) to values: nothing in them runs, and nothing that an object needs is overwritten."""

import collections
import enum
import inspect
import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th

from sb3_softac.files import generators, rebuilding
from sb3_softac.files.allowed import Allowed, full_name, is_class
from sb3_softac.files.plain import CODE, DEEPEST, KIND, SEQUENCES, Form, is_key, is_place
from sb3_softac.files.rebuilding import require
from sb3_softac.files.unpickling import Damage, Refusal

#: how many values may be there twice or more often, all in all
MAX_SHARED = 1_000_000
#: bytes of an array of text
MAX_TEXT = 1 << 24
#: what holds no code and nothing else: a value of one of these may be replaced
PLAIN = (
    *(type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict, collections.OrderedDict),
    *(collections.defaultdict, collections.deque, np.ndarray, np.random.Generator, np.random.RandomState, random.Random),
    *(th.device, th.dtype),
)
DTYPES = re.compile(r"[<>|=](b1|[iu][1248]|f[248])")
TEXTS = re.compile(r"[<>|=][SU]\d{1,6}")


class Decoder:
    """Turns forms into values again.

    :param arrays: by name
    :param rules: what may be named and made; without them, objects are only filled
    :param replaced: what the caller has for names, ``"module:name"`` or ``"module.name"``
    :param skip: names of attributes that are not filled: an encoder leaves them out
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        rules: Allowed | None = None,
        replaced: Mapping[str, Any] | None = None,
        skip: Collection[str] = (),
    ) -> None:
        self.arrays, self.rules, self.replaced, self.skip = arrays, rules, replaced or {}, frozenset(skip)
        self._seen: list[Any] = []
        self._sizes: dict[int, int] = {}  # values in what was seen, once it is complete
        self._n_values = self._n_shared = 0
        self.others: dict[str, Callable[[Any, Any], Any]] = {}
        self._kinds: dict[str, Callable[[Any, Any, int], Any]] = {
            "float": lambda form, _, __: self._float(form["is"]),
            "scalar": lambda form, _, __: self._scalar(form),
            "code": lambda _, present, __: present,
            "class": lambda form, _, __: self._find(form["is"]),
            "function": lambda form, _, __: self._find(form["is"]),
            "enum": self._enum,
            "device": lambda form, _, __: th.device(form["is"]),
            "dtype": lambda form, _, __: _any_dtype(form["is"]),
            "same": lambda form, _, __: self._same(form["is"]),
            "partial": lambda form, _, depth: self._partial(*[self._value(part, None, depth) for part in form["is"]]),
            **dict.fromkeys(("tuple", "frozenset", "named_tuple"), self._fixed),
            "set": self._set,
            "deque": self._deque,
            "dict": self._dict,
            "ordered_dict": self._dict,
            "numbers": lambda form, _, __: self._numbers(form),
            "bytes": lambda form, _, __: bytes.fromhex(form["is"]),
            "text": self._text,
            "array": self._array,
            "tensor": self._tensor,
            "generator": lambda form, present, depth: self._generator(form, present, depth, generators.set_generator),
            "random_state": lambda form, present, depth: self._generator(form, present, depth, _set_random_state),
            "random": lambda form, present, depth: self._generator(form, present, depth, _set_random),
            "object": self._object,
        }

    def __call__(self, form: Form, present: Any = None) -> Any:
        """The value of a form.

        :param form: what an encoder has made
        :param present: the value that is there now: arrays, generators and objects are changed in place where they fit
        :raises Damage: a form that no encoder makes, or an object that is not there
        :raises Refusal: it asks for what is not on the list
        """
        with _damage():
            return self._value(form, present, 0)

    def fill(self, present: Any, forms: Form) -> None:
        """Give an object the attributes that it had.

        :raises Damage: attributes that it cannot have had
        """
        with _damage():
            self._fill(present, forms, 0)

    def _value(self, form: Form, present: Any, depth: int) -> Any:
        require(depth <= DEEPEST + 2, "it is nested too deeply")
        before, index = self._n_values, len(self._seen)
        self._n_values += 1
        if form is None or type(form) in (bool, int, str):
            return form
        if type(form) is float:
            require(math.isfinite(form), "a number is none")
            return form
        if type(form) is list:
            value = self._list(form, present, depth + 1)
        else:
            require(type(form) is dict, "it holds something that is no form")
            if KIND not in form:
                value = self._dict({"is": [[key, part] for key, part in form.items()]}, present, depth + 1)
            elif form[KIND] in self.others:
                self._seen.append(present)
                value = self.others[form[KIND]](form, present)
            else:
                require(form[KIND] in self._kinds, f"it holds {form[KIND]!r}, which is no kind of value")
                value = self._kinds[form[KIND]](form, present, depth + 1)
        self._sizes.setdefault(index, self._n_values - before)
        return value

    def _list(self, form: Form, present: Any, depth: int) -> list[Any]:
        result: list[Any] = []
        self._seen.append(result)
        old = present if type(present) is list and len(present) == len(form) else [None] * len(form)
        result.extend(self._value(part, was, depth) for part, was in zip(form, old, strict=True))
        return result

    def _same(self, index: Any) -> Any:
        require(type(index) is int and 0 <= index < len(self._seen), "it holds what is nowhere")
        value = self._seen[index]
        complete = index in self._sizes or type(value) not in (list, dict, collections.OrderedDict, set, collections.deque)
        require(complete, "a value contains itself")
        self._n_shared += self._sizes.get(index, 1)
        self._n_values += self._sizes.get(index, 1)
        require(self._n_shared <= MAX_SHARED, "its values are nested without an end")
        return value

    @staticmethod
    def _float(text: str) -> float:
        require(text in ("nan", "inf", "-inf"), "a number is none")
        return float(text)

    def _scalar(self, form: Form) -> Any:
        value = self._value(form["is"], None, 0)
        require(type(value) in (bool, int, float), "a number is none")
        scalar = _dtype(form["dtype"]).type(value)
        require(scalar == value or scalar != scalar or not math.isfinite(value), "a number has another type than it says")
        return scalar

    def _numbers(self, form: Form) -> list[Any]:
        value = self._take(form)
        require(value.ndim == 1 and value.dtype in (np.int64, np.float64), "a list of numbers is none")
        result: list[Any] = value.tolist()
        self._seen.append(result)
        self._n_values += len(result)
        return result

    def _find(self, name: str) -> Any:
        require(type(name) is str and name.count(":") == 1, "a name is none")
        for key in (name, name.replace(":", ".")):
            if key in self.replaced:
                return self.replaced[key]
        if self.rules is None:
            raise Refusal(name.replace(":", "."))
        found = self.rules.resolve(*name.split(":"))
        if is_class(found) or isinstance(found, CODE):
            return found
        raise Refusal(name.replace(":", "."))

    def _enum(self, form: Form, present: Any, depth: int) -> Any:
        value = self._value(form["is"], None, depth)
        require(is_key(value), "a choice is made of something else")
        if isinstance(present, enum.Enum) and f"{type(present).__module__}:{type(present).__qualname__}" == form["class"]:
            return type(present)(value)
        cls = self._find(form["class"])
        if not (is_class(cls) and enum.Enum in type.mro(cls)):
            raise Refusal(full_name(cls))
        return cls(value) if form["class"] in self.replaced or self.rules is None else self.rules.call(cls, (value,))

    def _partial(self, function: Any, arguments: Any, keywords: Any) -> Any:
        """As in a pickle: of an activation, with plain arguments."""
        require(type(arguments) is list and type(keywords) is dict, "a partial has no arguments")
        partial = rebuilding.make_partial(function)
        rebuilding.fill_partial(partial, (function, tuple(arguments), keywords, {}))
        return partial

    def _fixed(self, form: Form, present: Any, depth: int) -> Any:
        named, index, forms = form[KIND] == "named_tuple", len(self._seen), form["is"]
        require(type(forms) is list, "a tuple is none")
        if named:
            self._seen.append(None)  # as the encoder counts them
        old = present if isinstance(present, tuple) and len(present) == len(forms) else [None] * len(forms)
        parts = [self._value(part, was, depth) for part, was in zip(forms, old, strict=True)]
        if not named:
            require(form[KIND] == "tuple" or all(map(is_key, parts)), "an element of a set is none")
            return SEQUENCES[form[KIND]](parts)
        if present is not None and full_name(type(present)) == form["class"].replace(":", "."):
            value = type(present)(*parts)
        elif self.rules is None:
            raise Refusal(form["class"])
        else:
            value = self.rules.create(self._find(form["class"]), tuple(parts))
        self._seen[index] = value
        return value

    def _set(self, form: Form, present: Any, depth: int) -> Any:
        result: set[Any] = set()
        self._seen.append(result)
        parts = [self._value(part, None, depth) for part in form["is"]]
        require(all(map(is_key, parts)), "an element of a set is none")
        result.update(parts)
        return result

    def _deque(self, form: Form, present: Any, depth: int) -> Any:
        require(type(form["is"]) is list and type(form["maxlen"]) in (int, type(None)), "a deque has no length")
        result: collections.deque[Any] = collections.deque(maxlen=form["maxlen"])
        self._seen.append(result)
        result.extend(self._value(part, None, depth) for part in form["is"])
        return result

    def _dict(self, form: Form, present: Any, depth: int) -> Any:
        old = present if isinstance(present, dict) else {}
        result: Any = collections.OrderedDict() if form.get(KIND) == "ordered_dict" else {}
        if type(present) is collections.defaultdict:
            result = collections.defaultdict(present.default_factory)
        self._seen.append(result)
        for pair in form["is"]:
            require(type(pair) is list and len(pair) == 2, "a dict has no pairs")
            key = self._value(pair[0], None, depth)
            require(is_key(key), "a key is none")
            result[key] = self._value(pair[1], old.get(key), depth)
        return result

    def _take(self, form: Form) -> np.ndarray[Any, Any]:
        require(type(form["is"]) is str and form["is"] in self.arrays, f"there is no array {form['is']!r}")
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
        index, dtype = len(self._seen), form["dtype"]
        self._seen.append(None)
        require(type(dtype) is str and bool(TEXTS.fullmatch(dtype)), "an array of text is none")
        parts = self._value(form["is"], None, depth)
        n_parts = np.array(parts, dtype=object).size
        require(n_parts * np.dtype(dtype).itemsize <= MAX_TEXT, "an array of text is larger than its text")
        self._seen[index] = value = np.array(parts, dtype=dtype)
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

    def _generator(self, form: Form, present: Any, depth: int, put: Callable[[Any, Any], Any]) -> Any:
        index = len(self._seen)
        self._seen.append(None)
        self._seen[index] = generator = put(present, self._value(form["is"], None, depth))
        return generator

    def _object(self, form: Form, present: Any, depth: int) -> Any:
        require(type(form["class"]) is str, "an object has no class")
        if present is not None and full_name(type(present)) == form["class"]:
            require(not _is_bounded(present), "a space is filled like an object")
            self._seen.append(present)
            self._fill(present, form["is"], depth)
            return present
        require(self.rules is not None, f"there is no {form['class']} where one was")
        assert self.rules is not None
        module, _, name = form["class"].rpartition(".")
        replaced = self.replaced.get(form["class"], self.replaced.get(f"{module}:{name}"))
        made = self.rules.create(self.rules.resolve(module, name) if replaced is None else replaced, ())
        self._seen.append(made)
        require(type(form["is"]) is dict and self.skip.isdisjoint(form["is"]), "an object has no attributes")
        self.rules.build(made, {name: self._value(part, None, depth) for name, part in form["is"].items()})
        return made

    def _fill(self, present: Any, forms: Form, depth: int) -> None:
        require(type(forms) is dict, "an object has no attributes")
        attributes, whose = vars(present), full_name(type(present))
        for name, form in forms.items():
            valid = type(name) is str and name.isidentifier() and not name.startswith("__") and name not in self.skip
            require(valid, f"an attribute of {whose} is called {name!r}")
            require(name in attributes or not _is_hidden_by(type(present), name), f"`{name}` would hide a method of {whose}")
            was = attributes.get(name)
            value = self._value(form, was, depth)
            require(not is_place(name, value), f"`{name}` of {whose} says where something is written")
            require(value is was or _may_be_replaced(was, value), f"`{name}` of {whose} would be overwritten")
            attributes[name] = value


@contextmanager
def _damage() -> Iterator[None]:
    """All errors come from forms of a wrong kind: nothing else runs here."""
    try:
        yield
    except (Damage, Refusal):
        raise
    except Exception as error:
        raise Damage(f"{type(error).__name__}: {error}") from error


def _is_hidden_by(cls: type, name: str) -> bool:
    """Whether an attribute of an object would hide code of its class."""
    found = inspect.getattr_static(cls, name, None)
    return inspect.isroutine(found) or is_class(found) or isinstance(found, (classmethod, staticmethod, property))


def _is_bounded(value: Any) -> bool:
    """Whether a value is a space of Gymnasium, which has a form of its own."""
    return type(value).__module__.startswith("gymnasium.spaces.")


def _may_be_replaced(was: Any, value: Any) -> bool:
    """Whether ``was`` is plain, or an object that need not be there; code stays."""
    if type(was) in PLAIN or isinstance(was, (np.generic, np.dtype, enum.Enum, th.Tensor)):
        return True
    if isinstance(was, tuple) and hasattr(was, "_fields"):
        return True
    return value is None and not (is_class(was) or isinstance(was, CODE) or _is_bounded(was))


def _set_random_state(present: Any, state: Any) -> Any:
    return generators.set_legacy(present if isinstance(present, np.random.RandomState) else np.random.RandomState(0), state)


def _set_random(present: Any, state: Any) -> Any:
    return generators.set_python(present if type(present) is random.Random else random.Random(0), state)


def _dtype(text: Any) -> np.dtype[Any]:
    require(type(text) is str and bool(DTYPES.fullmatch(text)), "a type is none")
    dtype: np.dtype[Any] = np.dtype(text)
    return dtype


def _any_dtype(text: Any) -> Any:
    """A data type of NumPy or PyTorch."""
    if type(text) is str and text.startswith("torch."):
        dtype = getattr(th, text[6:], None)
        require(isinstance(dtype, th.dtype), "a type is none")
        return dtype
    return _dtype(text)
