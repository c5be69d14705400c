"""A folder of checkpoints: what is written is complete or not there, by one process at a time.

run.json                     whose checkpoints these are
lock                         held by the process that writes
segments/                    transitions of the replay buffer (segments.py)
checkpoint-000000012000/     one for each kept number of steps
    manifest.json            format, sizes and checksums of everything, and its own
    state.json               forms (plain.py)
    arrays.safetensors       and their arrays
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from sb3_softac.errors import DamagedFileError
from sb3_softac.files.atomic import explained_errors, write_through_folder, writing
from sb3_softac.files.plain import Arrays, Form
from sb3_softac.files.rebuilding import require
from sb3_softac.files.segments import NAME, Segment, as_json, check_file, from_json, pieces_of, read_arrays, write_arrays
from sb3_softac.files.unpickling import Damage, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: of the files here; a newer one is refused
FORMAT = 1
PREFIX = "checkpoint-"
#: bytes of the state, and of what is read without knowing how long it should be
MAX_JSON, SHORT = 256 << 20, 32 << 20
#: values of the state, beside one for each eight bytes
MAX_VALUES = 1 << 20


@dataclass
class Checkpoint:
    """What one checkpoint holds."""

    path: pathlib.Path
    run: dict[str, Any]
    n_steps: int
    state: dict[str, Form] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)


def write_json(path: pathlib.Path, form: Form) -> tuple[int, str]:
    content = json.dumps(form, allow_nan=False).encode()
    with writing(path) as file:
        file.write(content)
    return len(content), hashlib.sha256(content).hexdigest()


def read_json(path: pathlib.Path, size: int | None = None, checksum: str | None = None) -> Any:
    """JSON out of a file.

    :raises Damage: it is incomplete, another one, or no JSON
    """
    require(path.is_file() and not path.is_symlink(), f"{path.name} is not there")
    length = path.stat().st_size
    require(length <= (MAX_JSON if size else SHORT) and size in (None, length), f"{path.name} is incomplete")
    summed, n_values = hashlib.sha256(), 0
    for piece in pieces_of(path, length):  # before any of it takes memory
        summed.update(piece)
        n_values += sum(map(piece.count, (b"[", b"{", b",")))
    require(checksum in (None, summed.hexdigest()), f"the checksum of {path.name} is not that of its contents")
    require(n_values <= MAX_VALUES + length // 8, f"{path.name} has far more values than any state")
    try:
        return json.loads(b"".join(pieces_of(path, length)), parse_constant=_refuse_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Damage(f"{path.name} is no JSON: {type(error).__name__}: {error}") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _summary(content: Form) -> str:
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
    except (ValueError, RecursionError) as error:
        raise Damage(f"manifest.json is none: {error}") from error


def _open_own(path: pathlib.Path) -> Any:
    """A file to write to that lies in its folder: behind a link there would be another one.

    :raises ValueError: a link, or no file
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = -1 if path.is_symlink() else os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        descriptor = -1
    about = os.fstat(descriptor) if descriptor >= 0 else None
    if about is None or not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        if descriptor >= 0:
            os.close(descriptor)
        raise ValueError(f"`folder` has {str(path)!r}, which is a link, or no file, but it must be a file: remove it.")
    return os.fdopen(descriptor, "r+")


class Lock:
    """A folder that this process alone writes to.

    :param folder: an existing folder
    :raises ValueError: another process writes to it
    """

    #: the locks of this process, by folder: within a process the newest one holds
    held: "dict[pathlib.Path, Lock]" = {}  # noqa: RUF012  # shared on purpose
    #: one of another folder, which is released with it
    another: "Lock | None" = None

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder.resolve()
        previous = Lock.held.pop(self.folder, None)
        if previous is not None:
            previous.release()
        self.file: Any = _open_own(self.folder / "lock")
        if fcntl is not None:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a forked child does not inherit it
            except OSError:
                self.file.seek(0)
                holder = printable(self.file.read(200).strip()) or "another process"
                self.file.close()
                raise ValueError(
                    f"`folder` is {str(folder)!r}, but {holder} writes its checkpoints there: wait for its end, stop it, or "
                    "choose another folder."
                ) from None
        try:
            with explained_errors(self.folder / "lock"):
                self.file.seek(0)
                self.file.truncate()
                self.file.write(f"process {os.getpid()} on {socket.gethostname()}")
                self.file.flush()
        except OSError:
            with contextlib.suppress(OSError):  # it tries to write once more
                self.file.close()
            raise
        Lock.held[self.folder] = self

    def holds(self) -> bool:
        return Lock.held.get(self.folder) is self

    def is_in_place(self) -> bool:
        """Whether the folder is still the one that was locked."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.folder / "lock"))
        except OSError:
            return False

    def release(self) -> None:
        if Lock.held.get(self.folder) is self:
            del Lock.held[self.folder]
        self.file.close()
        if self.another is not None:
            self.another.release()


def new_run(algorithm: str, environment: dict[str, Any]) -> dict[str, Any]:
    """What tells one training from another."""
    return {"id": uuid.uuid4().hex, "algorithm": algorithm, **environment}


def describe(run: Mapping[str, Any]) -> str:
    text = f"{run.get('algorithm')} on {run.get('n_envs')} x {run.get('environment')} (run {str(run.get('id'))[:8]})"
    return printable(text)


def steps_of(path: pathlib.Path) -> int:
    """Of which step a checkpoint is, by its name."""
    return int(path.name[len(PREFIX) :])


def name_of(n_steps: int) -> str:
    """The name of the checkpoint of a step."""
    return f"{PREFIX}{n_steps:012d}"


class Folder:
    """Checkpoints of one run.

    :param path: the folder
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self.segments = self.path / "segments"

    def numbers(self) -> list[int]:
        """Of steps, of all that look like checkpoints, the largest first."""
        return list(map(steps_of, self.checkpoints()))

    def checkpoints(self) -> list[pathlib.Path]:
        """All that look like checkpoints, the newest first."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if re.fullmatch(rf"{PREFIX}\d{{12,20}}", path.name, re.ASCII)]
        return sorted(found, key=steps_of, reverse=True)

    def run(self) -> dict[str, Any] | None:
        """The run whose checkpoints are here, or None if there are none."""
        if not self.checkpoints():
            return None
        try:
            run = read_json(self.path / "run.json")
        except Damage:
            return {}
        return run if isinstance(run, dict) else {}

    def refuse_link(self) -> None:
        """What is written to ``segments`` must be there, and what is removed from it, too.

        :raises ValueError: it is a link to another folder
        """
        for path in (self.segments, self.path / "run.json"):
            if path.is_symlink():
                raise ValueError(f"`folder` has {str(path)!r}, which is a link to somewhere else: remove it.")

    def claim(self, run: dict[str, Any]) -> Lock:
        """Make the folder that of a run.

        :raises ValueError: it is that of another one, or another process writes there
        :raises OSError: it cannot be written to
        """
        present = self.run()
        if present is not None and present.get("id") != run["id"]:
            raise ValueError(
                f"`folder` is {str(self.path)!r}, which holds checkpoints of another run, {describe(present)}; this is "
                f"{describe(run)}. Choose another folder, or go on with that run: "
                f"{printable(present.get('algorithm'))}.resume({str(self.path)!r}, env).learn(callback=...)."
            )
        self.refuse_link()
        self.segments.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.path)
        write_json(self.path / "run.json", run)
        return lock

    def write(self, checkpoint: Checkpoint, keep: int) -> pathlib.Path:
        """Write a checkpoint whose segments are written already, then remove all but the newest ``keep`` up to it.

        Those of later steps, which were damaged when the run went on from an earlier one, are removed, too.

        :raises OSError: it cannot be written; the older ones are as they were
        """
        target = self.put(checkpoint)
        self.clean(target, keep)
        return target

    def put(self, checkpoint: Checkpoint) -> pathlib.Path:
        """As :meth:`write`, but all others stay.

        :raises OSError: it cannot be written; the older ones are as they were
        """
        self.refuse_link()
        name = name_of(checkpoint.n_steps)
        unfinished = self.path / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            unfinished.mkdir()
            size, checksum = write_arrays(unfinished / "arrays.safetensors", checkpoint.arrays)
            files = {"arrays.safetensors": {"bytes": size, "sha256": checksum}}
            size, checksum = write_json(unfinished / "state.json", checkpoint.state)
            files["state.json"] = {"bytes": size, "sha256": checksum}
            content = {
                "format": FORMAT,
                "sb3_softac": version("sb3-softac"),
                "run": checkpoint.run,
                "n_steps": checkpoint.n_steps,
                "files": files,
                "segments": as_json(checkpoint.segments),
            }
            write_json(unfinished / "manifest.json", {"content": content, "sha256": _summary(content)})
            target = self.path / name
            if target.exists():  # a damaged one, or the same again
                target.rename(self.path / f".{name}.{uuid.uuid4().hex}.old")
            unfinished.rename(target)
            write_through_folder(self.path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return target

    def newest_whole(self) -> int:
        """The number of steps of the newest checkpoint that is whole, or -1; damaged ones are passed over in silence."""
        for path in self.checkpoints():
            with contextlib.suppress(Damage):
                return self.read(path).n_steps
        return -1

    def clean(self, newest: pathlib.Path, keep: int) -> None:
        """Remove what no kept checkpoint needs; one that claims more steps than the newest is damaged."""
        paths = self.checkpoints()
        for old in [*paths[: paths.index(newest)], *paths[paths.index(newest) + keep :]]:
            shutil.rmtree(old, ignore_errors=True)
        for left in [*self.path.glob(".*.tmp"), *self.path.glob(f".{PREFIX}*.old")]:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        needed: set[str] = set()
        for path in self.checkpoints():
            try:
                needed |= {segment.file for segment in self._manifest(path).segments}
            except Damage:  # whatever it needed
                continue
            except DamagedFileError:  # nobody knows what a newer format needs
                return
        for left in self.segments.iterdir():
            if left.name not in needed and NAME.fullmatch(left.name):
                left.unlink(missing_ok=True)

    def _manifest(self, path: pathlib.Path) -> Checkpoint:
        """A checkpoint without its contents.

        :raises Damage: it is damaged
        """
        outer = read_json(path / "manifest.json")
        require(type(outer) is dict and type(outer.get("content")) is dict, "manifest.json is none")
        content = outer["content"]
        require(_summary(content) == outer.get("sha256"), "the checksum of manifest.json is not that of its contents")
        if type(content.get("format")) is int and content["format"] > FORMAT:
            raise DamagedFileError(
                f"`folder` has the checkpoint {str(path)!r} of the format {printable(content['format'])}, which sb3-softac "
                f"{printable(content.get('sb3_softac'))} has written; this is sb3-softac {version('sb3-softac')}, which reads "
                f"formats up to {FORMAT}: update it."
            )
        require(content.get("format") == FORMAT, "manifest.json has no format")
        run, n_steps = content.get("run"), content.get("n_steps")
        texts = ("id", "algorithm", "environment", "observation_space", "action_space")
        is_run = type(run) is dict and type(run.get("n_envs")) is int and all(type(run.get(name)) is str for name in texts)
        require(is_run and type(n_steps) is int, "manifest.json has no run")
        require(path.name == f"{PREFIX}{n_steps:012d}", "manifest.json is that of another checkpoint")
        require(type(content.get("files")) is dict, "manifest.json has no files")
        return Checkpoint(path, content["run"], content["n_steps"], content["files"], {}, from_json(content.get("segments")))

    def read(self, path: pathlib.Path) -> Checkpoint:
        """A checkpoint with everything in it but the segments, whose checksums are compared.

        :raises Damage: it is damaged
        """
        require(path.is_dir() and not path.is_symlink(), "it is no folder")
        require(not self.segments.is_symlink(), "its segments are in another folder")
        checkpoint = self._manifest(path)
        files = checkpoint.state
        for name in ("arrays.safetensors", "state.json"):
            entry = files.get(name)
            size, checksum = (entry.get("bytes"), entry.get("sha256")) if type(entry) is dict else (None, None)
            require(type(size) is int and size > 0 and type(checksum) is str, f"manifest.json has no {name}")
        checkpoint.arrays = read_arrays(path / "arrays.safetensors", **_entry(files["arrays.safetensors"]))
        checkpoint.state = read_json(path / "state.json", **_entry(files["state.json"]))
        require(type(checkpoint.state) is dict, "state.json is none")
        for segment in checkpoint.segments:
            check_file(self.segments / segment.file, segment.bytes, segment.sha256)
        return checkpoint

    def whole(self) -> Iterator[Checkpoint]:
        """The checkpoints that are whole, the newest first; the others are named in a warning each.

        :raises ValueError: there is none
        :raises DamagedFileError: there are some, but none is whole
        """
        paths, damages = self.checkpoints(), []
        if not paths:
            raise ValueError(
                f"`folder` is {str(self.path)!r}, but it must hold a checkpoint, which ExactCheckpointCallback writes: "
                f"{'it holds none' if self.path.is_dir() else 'there is no such folder'}."
            )
        for path in paths:
            try:
                checkpoint = self.read(path)
            except Damage as damage:
                damages.append(f"{path.name} is damaged: {printable(damage)}")
                warnings.warn(f"{damages[-1]}. The one before it is tried.", stacklevel=4)
                continue
            yield checkpoint
        if len(damages) == len(paths):
            shown = "; ".join(damages[:5])
            raise DamagedFileError(f"`folder` is {str(self.path)!r}, but no checkpoint in it is whole: {shown}.")


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {"size": entry["bytes"], "checksum": entry["sha256"]}
