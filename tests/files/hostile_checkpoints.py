"""Checkpoints that somebody has changed, with checksums that are right."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

State = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"))


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sign(checkpoint: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> None:
    """Give a manifest the checksums of what is there, after ``change``."""
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())["content"]
    for name in content["files"]:
        content["files"][name] = _entry((checkpoint / name).read_bytes())
    for segment in content["segments"]:
        file = checkpoint.parent / "segments" / segment["file"]
        segment |= _entry(file.read_bytes()) if file.is_file() else {}
    change(content)
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"content": content, "sha256": checksum}))


def change_state(folder: Path, change: Callable[[State, Arrays], Any]) -> None:
    """Let ``change`` write into forms and arrays; bytes that it returns are the new ``state.json``."""
    checkpoint = newest(folder)
    state = json.loads((checkpoint / "state.json").read_text())
    arrays = safetensors.load_file(checkpoint / "arrays.safetensors")
    result = change(state, arrays)
    content = result if isinstance(result, bytes) else json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(content)
    (checkpoint / "arrays.safetensors").write_bytes(safetensors.save({name: np.array(part) for name, part in arrays.items()}))
    sign(checkpoint)


def change_segment(folder: Path, change: Callable[[Arrays], Any]) -> None:
    """The same for the newest segment; bytes that ``change`` returns are the new segment."""
    checkpoint = newest(folder)
    name = json.loads((checkpoint / "manifest.json").read_text())["content"]["segments"][-1]["file"]
    path = folder / "segments" / name
    arrays = safetensors.load_file(path)
    result = change(arrays)
    path.write_bytes(result if isinstance(result, bytes) else safetensors.save({k: np.array(v) for k, v in arrays.items()}))
    sign(checkpoint)


def tensor(dtype: str, shape: list[int], n_bytes: int, start: int = 0) -> bytes:
    """A file of safetensors by hand."""
    offsets = [start, start + n_bytes]
    content = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return struct.pack("<Q", len(content)) + content + bytes(n_bytes)


def a_class(name: str, kind: str = "class") -> dict[str, str]:
    return {"!": kind, "is": name}


def an_object(name: str) -> dict[str, Any]:
    return {"!": "object", "class": name, "is": {}}


def doubling(n: int = 60) -> list[Any]:
    """A list of lists, each of which holds the one before twice: 2**n values."""
    result: list[Any] = [[1]]
    for index in range(n):
        result.append([{"!": "same", "is": index + 1}, {"!": "same", "is": index + 1}])
    return result


#: attributes of a model that ask for something that runs, by name
ASKING: dict[str, tuple[str, Any]] = {
    "builtins.eval": ("learning_rate", a_class("builtins:eval", "function")),
    "os.system": ("learning_rate", a_class("os:system", "function")),
    "posix.system": ("ent_coef", a_class("posix:system", "function")),
    "a dotted name": ("learning_rate", a_class("stable_baselines3.common.save_util:os.system", "function")),
    "a function of torch": ("learning_rate", a_class("torch:load", "function")),
    "a function of the user elsewhere": ("policy_kwargs", {"activation_fn": a_class("tests.files.hostile:touch", "function")}),
    "a class of torch": ("policy_kwargs", {"activation_fn": a_class("torch.fx.graph_module:GraphModule")}),
    "subprocess.Popen": ("policy_class", a_class("subprocess:Popen")),
    "another module": ("policy_class", a_class("touches_when_imported:anything")),
    "a rebuilt function": ("learning_rate", a_class("torch.storage:_load_from_bytes", "function")),
    "functools.partial": ("learning_rate", a_class("functools:partial")),
    "a partial of a function of the user": (
        "learning_rate",
        {"!": "partial", "is": [a_class("tests.files.hostile:touch", "function"), ["x"], {}]},
    ),
    "a partial of eval": ("learning_rate", {"!": "partial", "is": [a_class("builtins:eval", "function"), ["1"], {}]}),
    "a partial of a layer": (
        "policy_kwargs",
        {"activation_fn": {"!": "partial", "is": [a_class("torch.nn.modules.linear:Linear"), [3, 3], {}]}},
    ),
    "an enum": ("gamma", {"!": "enum", "class": "os:system", "is": "x"}),
    "an enum that is none": ("gamma", {"!": "enum", "class": "builtins:list", "is": 3}),
    "an object": ("learning_rate", an_object("subprocess.Popen")),
    "an object with __setstate__": (
        "learning_rate",
        {"!": "object", "class": "tests.files.hostile.TouchesAtSetState", "is": {}},
    ),
    "an object with __del__": ("learning_rate", {"!": "object", "class": "tests.files.hostile.TouchesAtDelete", "is": {}}),
    "a named tuple": ("train_freq", {"!": "named_tuple", "class": "os:stat_result", "is": [1]}),
}

#: attributes of a model of a wrong form
WRONG: dict[str, tuple[str, Any]] = {
    "__class__": ("__class__", 1),
    "__dict__": ("__dict__", {}),
    "a method": ("learn", 1),
    "predict": ("predict", None),
    "a property": ("actor", 1),
    "the logger": ("logger", 1),
    "the environment": ("env", None),
    "the runtime": ("_runtime", 3),
    "the policy": ("policy", 3),
    "the device": ("device", {"!": "device", "is": "meta"}),
    "the number of environments": ("n_envs", 10**6),
    "the schedule": ("lr_schedule", 3),
    "the replay buffer": ("replay_buffer", 3),
    "the policy class": ("policy_class", "MlpPolicy"),
    "a policy class of SB3": ("policy_class", a_class("stable_baselines3.sac.policies:SACPolicy")),
    "another policy": ("policy_class", a_class("sb3_softac.networks.ql_policy:SoftQLPolicy")),
    "an extractor as policy": ("policy_class", a_class("stable_baselines3.common.torch_layers:FlattenExtractor")),
    "gamma": ("gamma", "a"),
    "gamma above 1": ("gamma", 7.0),
    "NaN": ("gamma", {"!": "float", "is": "nan"}),
    "infinite": ("tau", {"!": "float", "is": "inf"}),
    "a float that is none": ("tau", {"!": "float", "is": "1e3"}),
    "a learning rate": ("learning_rate", -1.0),
    "a string as learning rate": ("learning_rate", "lin_x"),
    "a huge number": ("learning_starts", 10**400),
    "a huge number of steps": ("num_timesteps", 10**30),
    "steps of another checkpoint": ("num_timesteps", 7),
    "negative steps": ("_n_updates", -5),
    "a truth as steps": ("_n_updates", True),
    "a start time": ("start_time", 10**400),
    "progress": ("_current_progress_remaining", {"!": "float", "is": "nan"}),
    "train_freq 0": ("train_freq", 0),
    "a training frequency": (
        "train_freq",
        {"!": "named_tuple", "class": "stable_baselines3.common.type_aliases:TrainFreq", "is": [-1, "step"]},
    ),
    "a training frequency without unit": (
        "train_freq",
        {"!": "named_tuple", "class": "stable_baselines3.common.type_aliases:TrainFreq", "is": [1, [1]]},
    ),
    "networks of 10**9 units": ("policy_kwargs", {"net_arch": [10**9, 10**9]}),
    "networks of 1e9 units": ("policy_kwargs", {"net_arch": [1e9, 1e9]}),
    "networks of 10,000 units": ("policy_kwargs", {"net_arch": [10_000, 10_000]}),
    "many layers": ("policy_kwargs", {"net_arch": [1000] * 1000}),
    "more layers": ("policy_kwargs", {"net_arch": [1] * 10_000}),
    "many critics": ("policy_kwargs", {"n_critics": 10**9}),
    "other layers": ("policy_kwargs", {"net_arch": [5]}),
    "an unknown option of the policy": ("policy_kwargs", {"no_such_option": 1}),
    "options in a list": ("policy_kwargs", [1]),
    "an optimizer": ("policy_kwargs", {"net_arch": [16, 16], "optimizer_class": a_class("torch.nn.modules.linear:Linear")}),
    "options of a buffer": ("replay_buffer_kwargs", {"no_such_option": 1}),
    "a statistic": ("ep_info_buffer", {"!": "deque", "maxlen": 100, "is": [{"r": "x"}]}),
    "a statistic without keys": ("ep_info_buffer", {"!": "deque", "maxlen": 100, "is": [{}]}),
    "half an episode": ("_stats_window_size", 0.5),
    "no episodes": ("_stats_window_size", -1),
    "a seed": ("seed", "x"),
    "no successes": ("ep_success_buffer", None),
    "statistics in a list": ("ep_info_buffer", [1]),
    "a huge deque": ("ep_info_buffer", {"!": "deque", "maxlen": 10**30, "is": []}),
    "a negative deque": ("ep_info_buffer", {"!": "deque", "maxlen": -1, "is": []}),
    "no such kind": ("gamma", {"!": "no such kind", "is": 1}),
    "a kind that is a list": ("gamma", {"!": [1], "is": 1}),
    "nothing in it": ("gamma", {"!": "tuple"}),
    "same as nothing": ("gamma", {"!": "same", "is": 10**9}),
    "same as the last": ("gamma", {"!": "same", "is": -1}),
    "same as a text": ("gamma", {"!": "same", "is": "0"}),
    "a list in itself": ("policy_kwargs", {"net_arch": [{"!": "same", "is": 1}]}),
    "lists that double": ("policy_kwargs", {"net_arch": doubling()}),
    "lists that double a little": ("policy_kwargs", {"net_arch": doubling(19)}),
    "a set of lists": ("gamma", {"!": "set", "is": [[1], [2]]}),
    "a frozenset of dicts": ("gamma", {"!": "frozenset", "is": [{}]}),
    "a dict with a list as key": ("policy_kwargs", {"!": "dict", "is": [[[1], 2]]}),
    "a dict with numbers as keys": ("policy_kwargs", {"!": "dict", "is": [[1, 2]]}),
    "a dict without pairs": ("policy_kwargs", {"!": "dict", "is": [1]}),
    "a scalar": ("gamma", {"!": "scalar", "dtype": "|i1", "is": 1000}),
    "a scalar of lists": ("gamma", {"!": "scalar", "dtype": "<f4", "is": [1, 2]}),
    "a scalar of objects": ("gamma", {"!": "scalar", "dtype": "|O", "is": 1}),
    "a type": ("gamma", {"!": "dtype", "is": "torch.load"}),
    "a structured type": ("gamma", {"!": "dtype", "is": "1f,f"}),
    "a device": ("gamma", {"!": "device", "is": "no such device"}),
    "bytes": ("gamma", {"!": "bytes", "is": "xyz"}),
    "no such array": ("_last_obs", {"!": "array", "is": "nowhere", "dtype": "<f4"}),
    "an array in a list": ("_last_obs", {"!": "array", "is": ["a"], "dtype": "<f4"}),
    "an array of another type": ("_last_obs", {"!": "array", "is": "attribute0", "dtype": "<f8"}),
    "text of 10**9 characters": ("_last_obs", {"!": "text", "dtype": "<U1000000000", "is": ["a"]}),
    "much text": ("_last_obs", {"!": "text", "dtype": "<U900000", "is": ["a"] * 1000}),
    "ragged text": ("_last_obs", {"!": "text", "dtype": "<U1", "is": [["a"], ["b", "c"]]}),
    "a generator without state": ("seed", {"!": "generator", "is": {"bit_generator": "PCG64"}}),
    "an unknown generator": ("seed", {"!": "generator", "is": {"bit_generator": "seed"}}),
    "no flag": ("normalize_observations", 1),
    "statistics that no network has": ("normalize_observations", True),
    "a bound of text": ("normalize_rewards", "5"),
    "a bound of 0": ("normalize_rewards", 0.0),
    "returns of text": ("_return_moments", "x"),
    "returns in a list": ("_return_moments", [1.0, 0.0, 1.0, 1.0]),
    "a running return": ("_running_returns", 1.0),
    "kept noise in a list": ("_kept_noise", [0.0]),
    "kept noise without its steps": ("_kept_noise", {"!": "array", "is": "attribute0", "dtype": "<f4"}),
    "steps of no noise": ("_kept_steps", {"!": "array", "is": "attribute0", "dtype": "<f4"}),
    "resets in words": ("_n_resets", "two"),
    "no resets": ("resets", []),
    "an observation": ("_last_obs", [0.0, 0.0, 0.0]),
    "another observation": ("_last_original_obs", {"!": "array", "is": "attribute1", "dtype": "|b1"}),
    "an observation by keys": ("_last_obs", {"a": 1}),
    "nested a thousand times": ("policy_kwargs", json.loads("[" * 500 + "]" * 500)),
}
