"""Random damage to a model file and to a replay buffer: every file loads equal, or ends in one of two errors.

Checksums find most of it. A second kind of damage is therefore done inside of them: to attributes and weights, before the
archive is made, and to a buffer without its checksum. Such a file may load as another one, but has no other errors, either.

``python benchmarks/fuzz_files.py --cases 2000``
"""

import argparse
import base64
import collections
import io
import json
import random
import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_softac import DamagedFileError, SoftAC, UntrustedFileError
from sb3_softac.files.buffers import MARKER
from sb3_softac.files.reading import SERIALIZED

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(small_files(Path(folder)), arguments.cases, random.Random(arguments.seed), Path(folder))
    for name, count in sorted(counts.items()):
        print(f"{name:40} {count:6}")


if __name__ == "__main__":
    main()
