"""What a file may name, and what of it is called while the file is read: two lists, and the second is short.

A class that is only *named* is a value, as ``policy_class`` is; it is used later, where the model is built, for what its field
is for. Whatever is *called* or *created* for a file is either one of ours (``rebuilding.py``) or has no code that runs there.
"""

import functools
import inspect
import pathlib
import re
import sys
import sysconfig
from collections import OrderedDict, deque
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import noise
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_softac import networks
from sb3_softac.files import rebuilding
from sb3_softac.files.rebuilding import require
from sb3_softac.files.unpickling import Refusal
from sb3_softac.replay import FIELDS, TensorReplayBuffer
from sb3_softac.schedules import CosineSchedule, ExponentialSchedule, StaircaseSchedule, WarmUpSchedule
from sb3_softac.update import Update, gaussian_kernel

SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict, spaces.Tuple)
SCHEDULES = (
    *(FloatSchedule, ConstantSchedule, LinearSchedule),
    *(ExponentialSchedule, CosineSchedule, StaircaseSchedule, WarmUpSchedule),
)
NOISES = (noise.NormalActionNoise, noise.OrnsteinUhlenbeckActionNoise, noise.VectorizedActionNoise)
#: a class that is defined in an imported module may be named if it derives from one of these
NAMED_BASES = (
    *(nn.Module, th.optim.Optimizer, networks.Encoder, networks.CriticHead, Update),
    *(BaseBuffer, noise.ActionNoise, *SCHEDULES),
)
#: and its objects may be in a file, if it derives from one of these
CREATED_BASES = (BaseBuffer, noise.ActionNoise, *SCHEDULES)
#: fields that hold a function of the user, which is called with a number, or with the tensors of a kernel
FUNCTION_FIELDS = frozenset(
    (
        *("learning_rate", "actor_learning_rate", "critic_learning_rate", "value_learning_rate", "ent_coef_learning_rate"),
        *("lr_schedule", "ent_coef", "kernel"),
    )
)
#: methods by which a class would take part in its own unpickling, or run when its object is thrown away
HOOKS = ("__new__", "__setstate__", "__del__", "__setattr__", "__getattribute__", "__getattr__")


class Rebuilt:
    """The name of a function that is never looked up: ours is called in its place."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


_NUMPY: dict[str, Callable[..., Any]] = {
    "numeric._frombuffer": rebuilding.frombuffer,
    "multiarray._reconstruct": rebuilding.reconstruct,
    "multiarray.scalar": rebuilding.scalar,
}
REBUILT: dict[str, Rebuilt] = {
    **{f"numpy.{core}.{name}": Rebuilt(function) for core in ("core", "_core") for name, function in _NUMPY.items()},
    "numpy.random._pickle.__generator_ctor": Rebuilt(rebuilding.generator),
    "numpy.random._pickle.__bit_generator_ctor": Rebuilt(rebuilding.bit_generator),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": Rebuilt(rebuilding.seed_sequence),
    "torch._utils._rebuild_tensor_v2": Rebuilt(rebuilding.tensor),
    "torch._utils._rebuild_parameter": Rebuilt(rebuilding.parameter),
    "torch.storage._load_from_bytes": Rebuilt(rebuilding.storage),
    "functools.partial": Rebuilt(rebuilding.make_partial),
    "numpy.pad": Rebuilt(rebuilding.pad),
}
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice)
_SCALARS = ["bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
EXACT: dict[str, Any] = {
    **{f"builtins.{cls.__name__}": cls for cls in _PLAIN},
    **{f"numpy.{name}": getattr(np, name) for name in _SCALARS},
    **{f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in vars(th).values() if isinstance(dtype, th.dtype)},
    **{f"{cls.__module__}.{cls.__name__}": cls for cls in (*SPACES, TrainFreq, TrainFrequencyUnit, GoalSelectionStrategy)},
    "numpy.bool": np.bool_,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "numpy.random._pcg64.PCG64": np.random.PCG64,
    "numpy.random.bit_generator.SeedSequence": np.random.SeedSequence,
    "collections.OrderedDict": OrderedDict,
    "collections.deque": deque,
    "torch.device": th.device,
    "torch.Size": th.Size,
    **{f"pathlib{at}.{name}": pathlib.Path for at in ("", "._local") for name in ("PosixPath", "WindowsPath")},
    f"{RunningMeanStd.__module__}.RunningMeanStd": RunningMeanStd,
    f"{gaussian_kernel.__module__}.gaussian_kernel": gaussian_kernel,
    # import paths of version 0.1
    **{
        f"sb3_softac.policies.{name}": getattr(networks, name)
        for name in ("SoftACPolicy", "CnnPolicy", "MultiInputPolicy", "Actor", "CategoricalActor")
    },
}


def _numbers(cls: Callable[..., Any]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        require(all(type(a) in (int, float, type(None)) for a in arguments), f"{cls.__name__} is made of something else")
        return cls(*arguments)

    return make


def _make_deque(items: Any = (), maxlen: Any = None) -> Any:
    require(items == () and type(maxlen) in (int, type(None)), "a deque is made of something else")
    return deque(maxlen=maxlen)


def _make_empty(cls: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: cls()


def _make_enum(cls: Callable[..., Any]) -> Callable[..., Any]:
    def make(value: Any) -> Any:
        require(type(value) in (int, str), "a choice is made of something else")
        return cls(value)

    return make


def _make_path(*parts: Any) -> pathlib.Path:
    require(all(type(part) is str for part in parts), "a path is made of something else")
    return pathlib.Path(*parts)


def _make_device(kind: Any, index: Any = None) -> th.device:
    require(type(kind) is str and type(index) in (int, type(None)), "a device is made of something else")
    return th.device(kind) if index is None else th.device(kind, index)


def _make_size(sizes: Any) -> th.Size:
    rebuilding.check_shape(sizes)
    return th.Size(sizes)


#: classes that a file may call, and what is called for each
CALLED: dict[Any, Callable[..., Any]] = {
    **{cls: _numbers(cls) for cls in (range, slice, complex)},
    **{cls: _make_empty(cls) for cls in (list, tuple, dict, set, frozenset, bytearray, OrderedDict)},
    **{cls: _make_enum(cls) for cls in (TrainFrequencyUnit, GoalSelectionStrategy)},
    deque: _make_deque,
    np.dtype: rebuilding.make_dtype,
    pathlib.Path: _make_path,
    th.device: _make_device,
    th.Size: _make_size,
}
#: objects that a call has made and that get their state later
FILLED: dict[type, Callable[[Any, Any], None]] = {
    np.ndarray: rebuilding.fill_array,
    np.random.PCG64: rebuilding.fill_bit_generator,
    np.random.Generator: rebuilding.fill_generator,
    np.random.SeedSequence: rebuilding.fill_seed_sequence,
    functools.partial: rebuilding.fill_partial,
}
KNOWN = (*SPACES, *SCHEDULES, *NOISES, HerReplayBuffer, TensorReplayBuffer, RunningMeanStd)


def contents(module: str) -> dict[str, Any]:
    """The names in a module, if it is imported; one that imports itself when it is looked at stays as it is."""
    found = sys.modules.get(module)
    if not isinstance(found, ModuleType):
        return {}
    names: dict[str, Any] = object.__getattribute__(found, "__dict__")
    return names


def is_users_own(module: str) -> bool:
    """Whether a module is code of the user, beside the script or in an editable installation, and no installed package."""
    file, top = contents(module).get("__file__"), module.partition(".")[0]
    if not isinstance(file, str) or top in sys.stdlib_module_names or top == "sb3_softac":
        return False
    path = pathlib.Path(file).resolve()
    installed = {pathlib.Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not installed & set(path.parents) and not {"site-packages", "dist-packages"} & set(path.parts)


def derives_from(cls: Any, bases: tuple[type, ...]) -> bool:
    """By inheritance alone: ``issubclass`` would ask the classes."""
    return is_class(cls) and any(base in bases for base in type.mro(cls))


def _hook(cls: type) -> str | None:
    """A method that would run while an object of ``cls`` is read, if there is one."""
    for base in cls.__mro__:
        if base in (object, *KNOWN) or base.__module__.startswith(("stable_baselines3.common.", "typing", "abc")):
            continue
        for name in HOOKS:
            if name in vars(base):
                return f"{base.__qualname__}.{name}"
    return None


def is_plain_schedule(cls: Any) -> bool:
    """A class of the user's own whose objects are called, as a schedule is."""
    return is_class(cls) and is_users_own(cls.__module__) and any("__call__" in vars(base) for base in type.mro(cls))


def is_class(value: Any) -> bool:
    """Whether ``value`` is a class; ``isinstance`` would ask the value."""
    return issubclass(type(value), type)


class Allowed:
    """The rules for one field of a model, or for a replay buffer.

    :param functions: whether functions of the user may be named, and objects of his classes that are called like functions
    """

    def __init__(self, functions: bool = False) -> None:
        self.functions = functions
        self.new: dict[int, Any] = {}  # objects that may still get their state; holding them keeps the numbers unique
        self.created: list[Any] = []

    def resolve(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if "." in name or not re.fullmatch(r"\w+(\.\w+)*", module):
            raise Refusal(full)
        if full in REBUILT:
            return REBUILT[full]
        if full in EXACT:
            return EXACT[full]
        if module not in sys.modules:
            raise Refusal(f"{full} (its module is not imported, and nothing is imported for a file)")
        value: Any = contents(module).get(name)
        is_function = type(value) is FunctionType
        if (is_class(value) or is_function) and (value.__module__, value.__qualname__) == (module, name):
            allowed = (self.functions and is_users_own(module)) if is_function else self._may_be_named(value, module)
            if allowed:
                return value
        raise Refusal(full)

    def _may_be_named(self, cls: type, module: str) -> bool:
        if module.startswith("torch."):
            return module.startswith(("torch.nn.modules.", "torch.optim.")) and derives_from(cls, NAMED_BASES)
        if full_name(cls) == "rl_zoo3.utils.SimpleLinearSchedule":
            return True
        return derives_from(cls, NAMED_BASES) or (self.functions and is_plain_schedule(cls))

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if type(function) is Rebuilt:
            made = function.function(*arguments)
        elif is_class(function) and function in CALLED:
            made = CALLED[function](*arguments)
        else:
            raise Refusal(f"a call of {full_name(function)}")
        if type(made) in FILLED:
            self.new[id(made)] = made
        return made

    def create(self, cls: Any, arguments: tuple[Any, ...]) -> Any:
        if cls is TrainFreq:
            require(len(arguments) == 2, "a training frequency is made of something else")
            return TrainFreq(*arguments)
        if not self._may_be_created(cls):
            raise Refusal(f"an object of {full_name(cls)}")
        require(arguments == (), f"an object of {full_name(cls)} is made of something else")
        made = object.__new__(cls)
        self.new[id(made)] = made
        self.created.append(made)
        return made

    def _may_be_created(self, cls: Any) -> bool:
        if is_class(cls) and (cls in KNOWN or full_name(cls) == "rl_zoo3.utils.SimpleLinearSchedule"):
            return True
        if not derives_from(cls, CREATED_BASES) and not (self.functions and is_plain_schedule(cls)):
            return False
        if hook := _hook(cls):
            raise Refusal(f"{full_name(cls)}, an object with code that would run at reading ({hook})")
        return True

    def build(self, instance: Any, state: Any) -> None:
        if isinstance(instance, np.dtype):
            rebuilding.check_dtype(instance, state)
            return
        if self.new.pop(id(instance), None) is None:
            raise Refusal(f"a change of {full_name(instance if is_class(instance) else type(instance))}")
        if type(instance) in FILLED:
            FILLED[type(instance)](instance, state)
            return
        check_attributes(type(instance), state)
        if type(instance) in SPACES:
            if type(instance) is spaces.MultiDiscrete:  # it would be allocated
                require(state.get("_shape") == np.shape(state.get("nvec")), "a space has two shapes")
            instance.__setstate__(state)
        elif isinstance(instance, TensorReplayBuffer):
            _check_rows(state)
            instance.__setstate__(state)
        else:
            instance.__dict__.update(state)
            if isinstance(instance, HerReplayBuffer):
                instance.env = None  # as its own method does; the model has it


def _check_rows(state: dict[str, Any]) -> None:
    """:raises Damage: the rows of a ``TensorReplayBuffer`` are no arrays of numbers"""
    for name in FIELDS:
        parts = state.get(name)
        for part in parts.values() if type(parts) is dict else [parts]:
            require(type(part) is np.ndarray and part.dtype.kind in "biuf", f"`{name}` of a replay buffer is no array")


def full_name(value: Any) -> str:
    if is_class(value) or type(value) is FunctionType:
        return f"{value.__module__}.{value.__qualname__}"
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"


def check_attributes(cls: type, state: Any) -> None:
    """Attributes by names that hide no method of ``cls``.

    :raises Damage: something else
    """
    require(type(state) is dict, f"an object of {full_name(cls)} has no state of one")
    for name in state:
        require(type(name) is str and name.isidentifier() and not name.startswith("__"), f"an attribute is called {name!r}")
        found = inspect.getattr_static(cls, name, None)
        hides = inspect.isroutine(found) or isinstance(found, (classmethod, staticmethod, property))
        require(not hides, f"the attribute {name!r} would hide a method of {full_name(cls)}")
