"""Random damage to a model file, a replay buffer or a checkpoint: every file loads equal, or ends in one of two errors.

Checksums find most of it. A second kind of damage is therefore done inside of them: to attributes and weights, before the
archive is made, and to a buffer without its checksum. Such a file may load as another one, but has no other errors, either.

A checkpoint is resumed, and does its first rollout. Its second kind of damage also puts wrong values into its JSON.

``python benchmarks/fuzz_files.py --cases 2000``, ``python benchmarks/fuzz_files.py --kind checkpoints --cases 10000``
"""

import argparse
import base64
import collections
import copy
import hashlib
import io
import json
import random
import re
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import DamagedFileError, SoftAC, UntrustedFileError
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files.buffers import MARKER
from sb3_softac.files.reading import SERIALIZED

#: what is put into JSON in the place of something else
WRONG: list[Any] = [
    *(None, True, -1, 0, 1, 10**9, 10**30, 0.5, -1e300, "", "x", "step", "../x", "os:system", [], {}, [[]], [1, 2]),
    *({"!": "same", "is": 0}, {"!": "class", "is": "builtins:eval"}, {"!": "float", "is": "nan"}, {"!": "code"}, {"!": "x"}),
    *({"!": "tuple", "is": [1]}, {"!": "set", "is": [[1]]}, {"!": "dict", "is": [[1, 2]]}, {"!": "numbers", "is": "env/env0"}),
    *({"!": "array", "is": "attribute0", "dtype": "<f4"}, {"!": "tensor", "is": "parameter3", "dtype": "float32"}),
    *({"!": "object", "class": "os.system", "is": {}}, {"!": "deque", "maxlen": 10**30, "is": []}, {"!": "mujoco", "is": {}}),
]
#: and what is added to it, by name
NAMES = ("learn", "env", "__class__", "step", "model", "venv", "_np_random", "_on_step", "x")
#: values of the right types that no model takes, each named by the argument or by the space
OTHER_REFUSALS = re.compile(r"^`\w+` is |^The replay buffer is for |action space|observation space|needs")


def small_files(folder: Path) -> tuple[SoftAC, dict[str, bytes]]:
    """A model that has trained for a few steps, and its files by kind."""
    env = gym.make("Pendulum-v1")
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 100, "device": "cpu", "seed": 0}
    model = SoftAC("MlpPolicy", env, learning_starts=20, batch_size=8, compile=False, **kwargs).learn(25)
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "buffer.pkl")
    return model, {"model": (folder / "model.zip").read_bytes(), "buffer": (folder / "buffer.pkl").read_bytes()}


def damage(content: bytes, generator: random.Random) -> bytes:
    """Some bits flipped, some bytes replaced, or an end or a piece in the middle cut off."""
    damaged = bytearray(content)
    kind = generator.randrange(4)
    if kind == 0:
        return bytes(damaged[: generator.randrange(len(damaged))])
    if kind == 1:
        start = generator.randrange(len(damaged))
        del damaged[start : start + generator.randint(1, 100)]
        return bytes(damaged)
    for _ in range(generator.choice((1, 1, 1, 2, 10))):
        # Half of them where instructions are: at the beginning and at the end, not in the numbers between.
        edge = generator.random() < 0.5
        place = (
            generator.randrange(min(2000, len(damaged))) * generator.choice((1, -1))
            if edge
            else generator.randrange(len(damaged))
        )
        damaged[place] = damaged[place] ^ (1 << generator.randrange(8)) if kind == 2 else generator.randrange(256)
    return bytes(damaged)


def damage_inside(kind: str, content: bytes, generator: random.Random) -> bytes:
    """The same, and the checksums are those of the damaged contents."""
    if kind == "buffer":
        return damage(content[: content.index(MARKER)], generator)
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if generator.random() < 0.3:
        name = generator.choice([name for name in members if name.endswith(".pth") or name == "data"])
        members[name] = damage(members[name], generator)
    else:
        attributes = json.loads(members["data"])
        name = generator.choice(
            [name for name, value in attributes.items() if isinstance(value, dict) and SERIALIZED in value]
        )
        pickled = base64.b64decode(attributes[name][SERIALIZED])
        attributes[name][SERIALIZED] = base64.b64encode(damage(pickled, generator)).decode()
        members["data"] = json.dumps(attributes).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return stream.getvalue()


def same_model(one: SoftAC, other: SoftAC) -> bool:
    """Whether all weights, averages of optimizers and options are equal."""

    def flat(value: Any) -> Any:
        return {f"{k}": flat(v) for k, v in value.items()} if isinstance(value, dict) else value

    def equal(left: Any, right: Any) -> bool:
        if isinstance(left, dict):
            return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
        return th.equal(left, right) if isinstance(left, th.Tensor) else bool(left == right)

    options = [name for name in SoftAC._option_names() if hasattr(one, name) and name != "learning_rate"]
    return equal(flat(one.get_parameters()), flat(other.get_parameters())) and all(
        equal(getattr(one, name), getattr(other, name)) for name in options
    )


def same_buffer(one: Any, other: Any) -> bool:
    arrays = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return same and (one.pos, one.full, one.buffer_size) == (other.pos, other.full, other.buffer_size)


def load(kind: str, path: Path, model: SoftAC) -> bool:
    """Whether what is loaded equals what was saved."""
    if kind == "model":
        return same_model(model, SoftAC.load(path, device="cpu"))
    reader = SoftAC("MlpPolicy", gym.make("Pendulum-v1"), buffer_size=1, policy_kwargs={"net_arch": [4]}, device="cpu")
    reader.load_replay_buffer(path)
    return same_buffer(model.replay_buffer, reader.replay_buffer)


def fuzz(
    files: tuple[SoftAC, dict[str, bytes]], cases: int, generator: random.Random, folder: Path
) -> "collections.Counter[str]":
    """How often each kind of file ended how.

    :raises AssertionError: a file loaded as another model or buffer
    """
    model, contents = files
    counts: collections.Counter[str] = collections.Counter()
    for case in range(cases):
        kind = ("model", "buffer")[case % 2]
        path = folder / f"fuzzed.{kind}"
        inside = case % 4 >= 2
        path.write_bytes(damage_inside(kind, contents[kind], generator) if inside else damage(contents[kind], generator))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                equal = load(kind, path, model)
            assert equal or inside, f"case {case}: the {kind} is another one, and nothing was noticed"
            end = "equal" if equal else "another"
        except DamagedFileError:
            end = "damaged"
        except UntrustedFileError:
            end = "untrusted"
        except ValueError as error:
            if not (inside and OTHER_REFUSALS.search(str(error))):
                raise AssertionError(f"case {case}: {error}") from error
            end = "refused as an argument"
        counts[f"{kind}{' inside' * inside}: {end}"] += 1
    return counts


class Stop(BaseCallback):
    """After one step."""

    def _on_step(self) -> bool:
        return False


def make_env() -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1"))]))


def small_checkpoint(folder: Path) -> Path:
    """A checkpoint of a model that has trained for a few steps."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 100, "device": "cpu", "seed": 0}
    model = SoftAC("MlpPolicy", make_env(), learning_starts=20, batch_size=8, compile=False, **kwargs)
    model.learn(30, callback=ExactCheckpointCallback(100, folder))
    return folder


def go_on(folder: Path) -> SoftAC:
    """The model after its first step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SoftAC.resume(folder, make_env(), device="cpu").learn(40, callback=Stop())


def sign(checkpoint: Path, content: dict[str, Any]) -> None:
    """Write a manifest whose checksums are those of what is there."""
    for name in content["files"]:
        data = (checkpoint / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for segment in content["segments"]:
        data = (checkpoint.parent / "segments" / segment["file"]).read_bytes()
        segment |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def seal(checkpoint: Path, content: Any) -> None:
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps({"content": content, "sha256": checksum}))


def put_wrong(form: Any, generator: random.Random) -> None:
    """Replace, remove or add something somewhere in JSON."""
    while True:
        keys = list(form) if isinstance(form, dict) else list(range(len(form)))
        if not keys:
            return
        key = generator.choice(keys)
        inner = form[key]
        if isinstance(inner, (dict, list)) and inner and generator.random() < 0.9:
            form = inner
            continue
        kind = generator.randrange(6)
        if kind == 0:
            del form[key]
        elif kind == 1 and isinstance(form, list):
            form.append(copy.deepcopy(inner))
        elif kind == 1:
            form[generator.choice(("learn", "env", "__class__", "step", "model", "venv", "_np_random", "x"))] = copy.deepcopy(
                inner
            )
        elif kind == 2:
            form[key] = copy.deepcopy(generator.choice(list(form.values()) if isinstance(form, dict) else form))
        else:
            form[key] = copy.deepcopy(generator.choice(WRONG))
        return


def damage_checkpoint(checkpoint: Path, inside: bool, generator: random.Random) -> None:
    """Change a checkpoint: any byte of it, or what its checksums are of."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())["content"]
    segments = [checkpoint.parent / "segments" / segment["file"] for segment in manifest["segments"]]
    files = [checkpoint / "state.json", checkpoint / "arrays.safetensors", *segments]
    if not inside:
        path = generator.choice([*files, checkpoint / "manifest.json"])
        path.write_bytes(damage(path.read_bytes(), generator))
        return
    kind = generator.random()
    if kind < 0.4:
        path = generator.choice(files)
        path.write_bytes(damage(path.read_bytes(), generator))
    elif kind < 0.9:
        state = json.loads((checkpoint / "state.json").read_text())
        for _ in range(generator.choice((1, 1, 1, 2, 5))):
            part = state.get(generator.choice(["attributes", "parameters", "environment", "callbacks", "generators", "x"]))
            put_wrong(part if isinstance(part, dict) else state, generator)
        (checkpoint / "state.json").write_text(json.dumps(state))
    sign(checkpoint, manifest)
    if kind >= 0.9:
        put_wrong(manifest, generator)
    seal(checkpoint, manifest)


def fuzz_checkpoints(good: Path, cases: int, generator: random.Random, folder: Path) -> "collections.Counter[str]":
    """The same as :func:`fuzz`."""
    expected = go_on(good)
    counts: collections.Counter[str] = collections.Counter()
    for case in range(cases):
        fuzzed, inside = folder / "fuzzed", case % 2 == 1
        shutil.rmtree(fuzzed, ignore_errors=True)
        shutil.copytree(good, fuzzed)
        damage_checkpoint(next(fuzzed.glob("checkpoint-*")), inside, generator)
        try:
            model = go_on(fuzzed)
            assert all(th.isfinite(weight).all() for weight in model.policy.parameters()), f"case {case}: NaN"
            equal = same_model(expected, model) and same_buffer(expected.replay_buffer, model.replay_buffer)
            assert equal or inside, f"case {case}: the checkpoint is another one, and nothing was noticed"
            end = "equal" if equal else "another"
        except ValueError as error:
            end = {DamagedFileError: "damaged", UntrustedFileError: "untrusted", ValueError: "refused"}.get(type(error), "")
            if not end or not (inside or end == "damaged"):
                raise AssertionError(f"case {case}: {error!r}") from error
        except Exception as error:
            raise AssertionError(f"case {case}: {error!r}") from error
        counts[f"checkpoint{' inside' * inside}: {end}"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--kind", choices=("files", "checkpoints"), default="files")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generator, place = random.Random(arguments.seed), Path(folder)
        counts = (
            fuzz(small_files(place), arguments.cases, generator, place)
            if arguments.kind == "files"
            else fuzz_checkpoints(small_checkpoint(place / "good"), arguments.cases, generator, place)
        )
    for name, count in sorted(counts.items()):
        print(f"{name:40} {count:6}")


if __name__ == "__main__":
    main()
