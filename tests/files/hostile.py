"""Files that want to run something, and classes of a user that files may or may not name."""

import base64
import functools
import io
import json
import operator
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

# --- what a user may have in a module -------------------------------------------------------------------------------------


class Features(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box, width: int = 8) -> None:
        super().__init__(observation_space, width)
        self.layer = nn.Linear(observation_space.shape[0], width)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        result: th.Tensor = self.layer(observations)
        return result


class Buffer(ReplayBuffer):
    pass


class Decay:
    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, progress_remaining: float) -> float:
        return self.start * progress_remaining


def kernel(fixed: th.Tensor, updated: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    differences = fixed.unsqueeze(2) - updated.unsqueeze(1)
    values = (-differences.square().sum(dim=3)).exp()
    return values, -2.0 * values.unsqueeze(3) * differences


def touch(path: Any) -> None:
    """What no file may run."""
    Path(path).touch()


class TouchesAtConstruction(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        touch(path)


class TouchesAtNew(ReplayBuffer):
    def __new__(cls, *args: Any) -> Any:
        touch(os.environ["CANARY"])
        return super().__new__(cls)


class TouchesAtSetState(ReplayBuffer):
    def __setstate__(self, state: Any) -> None:
        touch(state["path"])


class TouchesAtDelete(ReplayBuffer):
    def __del__(self) -> None:
        touch(os.environ["CANARY"])


class TouchesAtSetItem(ReplayBuffer):
    def __setitem__(self, key: Any, value: Any) -> None:
        touch(value)

    def append(self, value: Any) -> None:
        touch(value)

    def extend(self, values: Any) -> None:
        touch(values[0])


# --- pickles by hand ------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        """So that the result of a call can be called in its turn."""


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value.encode())]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def new(module: str, name: str, *after: bytes) -> bytes:
    """An object without its constructor, and what is done to it."""
    return b"\x80\x04" + named(module, name) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + b"".join(after) + pickle.STOP


def called(module: str, name: str, *arguments: str) -> bytes:
    parts = pickle.MARK + b"".join(map(text, arguments)) + pickle.TUPLE
    return b"\x80\x04" + named(module, name) + parts + pickle.REDUCE + pickle.STOP


def state(**attributes: str) -> bytes:
    items = b"".join(text(name) + text(value) for name, value in attributes.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.BUILD


HERE, SCHEDULE = __name__, ("stable_baselines3.common.utils", "FloatSchedule")


def that_run(path: str) -> dict[str, bytes]:
    """Pickles that create the file ``path`` when Python reads them."""
    command, python = f"touch {path}", f"open({path!r}, 'w').close()"
    system = Call(os.system, command)
    storage: Any = th.storage
    return {
        **{f"os.system, protocol {n}": pickle.dumps(system, protocol=n) for n in range(6)},
        "builtins.eval": pickle.dumps(Call(eval, python)),
        "builtins.exec": pickle.dumps(Call(exec, python)),
        "builtins.getattr": pickle.dumps(Call(Call(getattr, Call(__import__, "os"), "system"), command)),
        "builtins.map": pickle.dumps(Call(list, Call(map, os.system, [command]))),
        "functools.partial": pickle.dumps(Call(functools.partial(os.system, command))),
        "operator.methodcaller": pickle.dumps(Call(operator.methodcaller("system", command), Call(__import__, "os"))),
        "operator.attrgetter": pickle.dumps(Call(Call(operator.attrgetter("system"), Call(__import__, "os")), command)),
        "nested": pickle.dumps({"a": [1, (2, {"b": np.array([Call(list, Call(list, [system]))], object)})]}),
        "in the arguments of what is allowed": pickle.dumps(Call(spaces.Box, -1.0, 1.0, system)),
        "torch.load in a storage": pickle.dumps(Call(storage._load_from_bytes, pickle.dumps(system))),
        "pickle.loads": pickle.dumps(Call(pickle.loads, pickle.dumps(system))),
        "INST": f"(S'{command}'\nios\nsystem\n.".encode(),
        "dotted name": called("stable_baselines3.common.save_util", "os.system", command),
        "dotted name of torch": called("torch.nn.modules.module", "warnings.sys.modules.get", "os"),
        "a function of the user": called(HERE, "touch", path),
        "a constructor": called(HERE, "TouchesAtConstruction", path),
        "__new__": new(HERE, "TouchesAtNew"),
        "__setstate__": new(HERE, "TouchesAtSetState", state(path=path)),
        "__del__": new(HERE, "TouchesAtDelete"),
        "__setitem__": new(HERE, "TouchesAtSetItem", text("a") + text(path) + pickle.SETITEM),
        "append": new(HERE, "TouchesAtSetItem", text(path) + pickle.APPEND),
        "OBJ": b"(cos\nsystem\n" + text(command) + pickle.OBJ + pickle.STOP,
        "an import": called("touches_when_imported", "anything"),
    }


def that_prepare() -> dict[str, bytes]:
    """Pickles that run nothing themselves, but change classes or leave something to be run later."""
    ordered = Call(__import__("copyreg")._reconstructor, object, object, None)
    slots = (
        pickle.NONE
        + pickle.EMPTY_DICT
        + text("forward")
        + named("os", "system")
        + pickle.SETITEM
        + pickle.TUPLE2
        + pickle.BUILD
    )
    end = pickle.STOP
    return {
        "a function of os": b"\x80\x04" + named("os", "system") + end,
        "a function behind another name": b"\x80\x04" + named("posix", "system") + end,
        "a module": b"\x80\x04" + named("stable_baselines3.common.save_util", "os") + end,
        "a function of torch": b"\x80\x04" + named("torch", "load") + end,
        "a class from another module": b"\x80\x04" + named("torch.nn.functional", "Tensor") + end,
        "a class of torch beside its layers": b"\x80\x04" + named("torch.fx.graph_module", "GraphModule") + end,
        "numpy.f2py": b"\x80\x04" + named("numpy", "f2py") + end,
        "gymnasium's helpers": b"\x80\x04" + named("gymnasium.spaces.utils", "flatten") + end,
        "builtins.type": pickle.dumps(Call(type, "X", (), {})),
        "copyreg._reconstructor": pickle.dumps(ordered),
        "a partial of something else": pickle.dumps(functools.partial(nn.Linear, 3)),
        "a partial of a function": pickle.dumps(functools.partial(print, 3)),
        "a layer": new("torch.nn.modules.activation", "ReLU"),
        "attributes of a class": b"\x80\x04" + named("torch.nn.modules.activation", "ReLU") + slots + end,
        "a second state": new(*SCHEDULE, state(value_schedule="a"), state(value_schedule="b")),
        "keywords": b"\x80\x04" + named(*SCHEDULE) + b")}" + pickle.NEWOBJ_EX + end,
        "a persistent name": b"\x80\x04" + text("x") + pickle.BINPERSID + end,
        "an extension": b"\x80\x04" + pickle.EXT1 + b"\x01" + end,
        "items of a schedule": new(*SCHEDULE, text("a") + text("b") + pickle.SETITEM),
        "pointers in an array": pickle.dumps(Call(np.dtype, "V8")),
        "an array class": pickle.dumps(np.ma.masked_array([1.0])),
    }


def that_are_damaged() -> dict[str, bytes]:
    """Pickles of values that no file should have; reading them as Python does may take all memory."""
    dtype = pickle.dumps(np.dtype("f4"))[2:-1].split(b"\x95", 1)[-1][8:]
    frombuffer = named("numpy._core.numeric", "_frombuffer")
    end, huge = pickle.TUPLE + pickle.REDUCE + pickle.STOP, b"\x8a\x08" + struct.pack("<q", 10**15)

    def array(shape: bytes) -> bytes:
        return (
            b"\x80\x05"
            + frombuffer
            + pickle.MARK
            + b"\x96"
            + struct.pack("<Q", 4)
            + bytes(4)
            + dtype
            + shape
            + text("C")
            + end
        )

    doubled = b"\x80\x04])" + b"".join(
        pickle.MEMOIZE + pickle.MARK + b"h" + bytes([n]) + b"h" + bytes([n]) + b"t" for n in range(60)
    )
    return {
        "an array of 10**15 elements": array(huge + pickle.TUPLE1),
        "an array of 100,000 dimensions": array(pickle.MARK + b"K\x01" * 100_000 + pickle.TUPLE),
        "an array of a negative size": array(b"J\xff\xff\xff\xff" + pickle.TUPLE1),
        "bytes that are not there": b"\x80\x05\x96" + struct.pack("<Q", 10**15) + b"x.",
        "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 10**12) + b"x.",
        "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 10**15) + b"N",
        "lists in lists": b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "tuples that double": doubled + b"\x86.",
        "a key of tuples": doubled[:3] + doubled[4:] + b"}h\x3bNs.",
        "a list in itself": b"\x80\x04]\x94h\x00a.",
        "millions of lists": b"\x80\x04(" + b"]" * 2_000_000 + b"t.",
        "an unhidden method": new(*SCHEDULE, state(__call__="x")),
        "another class": new(*SCHEDULE, state(__class__="x")),
        "a dict of attributes": new(*SCHEDULE, state(__dict__="x")),
        "a method": new("gymnasium.spaces.box", "Box", state(sample="x")),
        "a schedule in itself": b"\x80\x04" + named(*SCHEDULE) + b")\x81\x94}" + text("value_schedule") + b"h\x00sb.",
        "nothing": b"",
        "an unknown instruction": b"\x80\x04\xff.",
        "no end": b"\x80\x04N",
        "two values": b"\x80\x04NN.",
        "no value": b"\x80\x04.",
        "a missing memory": b"\x80\x04h\x07.",
    }


# --- files ----------------------------------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def with_attributes(content: dict[str, bytes], **attributes: Any) -> dict[str, bytes]:
    """The members of a model file with other attributes; bytes are pickles."""
    data = json.loads(content["data"])
    for name, value in attributes.items():
        is_pickle = isinstance(value, bytes)
        data[name] = {":type:": "x", ":serialized:": base64.b64encode(value).decode()} if is_pickle else value
    return {**content, "data": json.dumps(data).encode()}


def saved(value: Any) -> bytes:
    """As ``torch.save`` writes it."""
    stream = io.BytesIO()
    th.save(value, stream)
    return stream.getvalue()
