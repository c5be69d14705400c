"""Replay buffers in checkpoints: the transitions that are new since the last one, in files that are never changed.

Transitions are numbered from the first that was ever stored; number n lies in row n mod N of a buffer of N rows. A segment
holds consecutive ones, and, of older ones, what has changed meanwhile: ends of trajectories are known later than their
beginnings. A buffer is all segments that still have a living transition, in their order.
"""

import hashlib
import pathlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_softac.files.atomic import writing
from sb3_softac.files.checking import check_attributes_of_buffer, check_transitions, is_like
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.plain import Arrays, Encoder, Form
from sb3_softac.files.rebuilding import require
from sb3_softac.files.unpickling import Damage
from sb3_softac.replay import TensorReplayBuffer

#: a segment that is smaller is written again together with the next one, so that there are not too many
SMALL = 1 << 20
#: of a segment: its transitions, and something random
NAME = re.compile(r"\d{12,20}-\d{12,20}-[0-9a-f]{8}\.safetensors", re.ASCII)
#: a file is looked at in pieces of so many bytes
PIECE = 1 << 20
#: bytes of the header of a file: enough for 100,000 arrays
MAX_HEADER = 16 << 20
#: rows are written in pieces of about so many bytes
LARGE = 64 << 20
#: what the model has, or what is written row by row
NOT_HERE = ("env", "device", "observation_space", "action_space", "infos")


@dataclass(frozen=True)
class Segment:
    """A file with the transitions ``first`` to ``last - 1``."""

    file: str
    first: int
    last: int
    bytes: int
    sha256: str


def write_arrays(path: pathlib.Path, arrays: Arrays) -> tuple[int, str]:
    """Write arrays as safetensors; how many bytes, and their checksum."""
    content = safetensors.save(arrays)
    with writing(path) as file:
        file.write(content)
    return len(content), hashlib.sha256(content).hexdigest()


def pieces_of(path: pathlib.Path, size: int) -> Iterator[bytes]:
    """The contents of a file, piece by piece.

    :raises Damage: it is no file of this size
    """
    try:
        require(path.is_file() and not path.is_symlink() and path.stat().st_size == size, f"{path.name} is incomplete")
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise Damage(f"{path.name} cannot be read: {error.strerror}") from error


def check_file(path: pathlib.Path, size: int, checksum: str) -> None:
    """:raises Damage: a file is another one"""
    summed = hashlib.sha256()
    for piece in pieces_of(path, size):
        summed.update(piece)
    require(summed.hexdigest() == checksum, f"the checksum of {path.name} is not that of its contents")


def read_arrays(path: pathlib.Path, size: int, checksum: str) -> Arrays:
    """Read arrays that :func:`write_arrays` has written.

    :raises Damage: the file is another one
    """
    content = b"".join(pieces_of(path, size))
    require(hashlib.sha256(content).hexdigest() == checksum, f"the checksum of {path.name} is not that of its contents")
    require(int.from_bytes(content[:8], "little") <= MAX_HEADER, f"{path.name} has a header that is too long")
    try:
        arrays: Arrays = safetensors.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise Damage(f"{path.name} holds no arrays: {error}") from error
    return arrays


def rows_of(buffer: ReplayBuffer) -> Arrays:
    """The arrays of a buffer that have a row for each transition, by name."""
    found: Arrays = {}
    fields = buffer.host_rows() if isinstance(buffer, TensorReplayBuffer) else vars(buffer)
    for name, value in fields.items():
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        for key, part in parts.items():
            if isinstance(part, np.ndarray) and part.shape[:1] == (buffer.buffer_size,) and part.dtype.kind in "biuf":
                found[key] = part
    return found


def by_field(rows: Arrays) -> dict[str, Any]:
    """What :func:`rows_of` has taken apart: a dict for each field that has several parts."""
    fields: dict[str, Any] = {}
    for name, part in rows.items():
        field, _, key = name.partition(".")
        if key:
            fields.setdefault(field, {})[key] = part
        else:
            fields[field] = part
    return fields


def _is_small(rows: np.ndarray[Any, Any]) -> bool:
    """Whether there are few numbers in a row: these may be changed later; observations and actions are not."""
    return rows[:1].nbytes <= 16 * rows.shape[1] if rows.ndim > 1 else True


class BufferLog:
    """What of a replay buffer is on the disk.

    :param folder: of the segments
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.buffer: ReplayBuffer | None = None
        self.segments: list[Segment] = []
        self.patched: dict[str, set[int]] = {}  # older transitions in a segment, by its file
        self.added = 0  # number of the next transition
        self.n_steps = 0  # of the model
        self.shadow: Arrays = {}

    def _adds(self, buffer: ReplayBuffer, n_steps: int) -> int | None:
        """How many transitions are new; None if that is not certain."""
        new, rest = divmod(n_steps - self.n_steps, buffer.n_envs)
        theirs = type(buffer).__module__.startswith("stable_baselines3.") or type(buffer) is TensorReplayBuffer
        if buffer is not self.buffer or not theirs or rest or not 0 <= new < buffer.buffer_size:
            return None
        return new if (self.added + new) % buffer.buffer_size == buffer.pos else None

    def write(self, buffer: ReplayBuffer, n_steps: int) -> list[Segment]:
        """Write what is new; the segments that make up the buffer.

        :param buffer: replay buffer between two rollouts
        :param n_steps: of the model; each of its environments adds one transition in a step
        :raises OSError: it cannot be written; the next call begins again
        """
        new, n_rows, rows = self._adds(buffer, n_steps), buffer.buffer_size, rows_of(buffer)
        if new is None or not all((self.folder / segment.file).is_file() for segment in self.segments):
            self.segments, self.patched = [], {}
            self.added = new = n_rows + buffer.pos if buffer.full else buffer.pos
            changed: set[int] = set()
            first = max(0, self.added - n_rows)
        else:
            first = self.added
            changed = self._changed(rows, max(0, first + new - n_rows), first)
            self.added += new
        oldest = max(0, self.added - n_rows)
        self.segments = [segment for segment in self.segments if segment.last > oldest]
        try:
            self._extend(rows, max(first, oldest), changed, oldest)
        except BaseException:
            self.buffer = None
            raise
        self.buffer, self.n_steps = buffer, n_steps
        self.remember(rows)
        return list(self.segments)

    def remember(self, rows: Arrays) -> None:
        """Keep the rows that may be changed later, as they are; no memory is touched for those that are not there yet."""
        n_filled = self.added
        self.shadow = {}
        for name, part in rows.items():
            if _is_small(part):
                self.shadow[name] = np.zeros(part.shape, part.dtype)
                self.shadow[name][:n_filled] = part[:n_filled]

    def _changed(self, rows: Arrays, oldest: int, end: int) -> set[int]:
        """Transitions before ``end`` that are not as they were written."""
        numbers = np.arange(oldest, end)
        different = np.zeros(len(numbers), dtype=bool)
        if len(numbers):
            for name, before in self.shadow.items():
                at = slice(0, end)  # all rows, if there are fewer
                now, before, n_rows = rows[name][at], before[at], len(rows[name])
                unequal = (now != before) & ~((now != now) & (before != before))
                different |= unequal.reshape(len(now), -1).any(axis=1)[numbers % n_rows]
        return set(numbers[different].tolist())

    def _extend(self, rows: Arrays, first: int, changed: set[int], oldest: int) -> None:
        last = self.segments[-1] if self.segments else None
        if last is not None and last.bytes < SMALL and (changed or self.added > first):
            self.segments.pop()
            changed |= self.patched.pop(last.file, set())
            first = max(last.first, oldest)
        changed = {number for number in changed if oldest <= number < first}
        n_bytes = sum(part[:1].nbytes for part in rows.values())
        step = max(1, LARGE // max(n_bytes, 1))
        pieces = [(start, min(start + step, self.added)) for start in range(first, self.added, step)]
        for start, end in pieces or ([(first, first)] if changed else []):
            self.segments.append(self._write_piece(rows, start, end, changed))
            self.patched[self.segments[-1].file] = changed
            changed = set()
        self.patched = {segment.file: self.patched.get(segment.file, set()) for segment in self.segments}

    def _write_piece(self, rows: Arrays, start: int, end: int, changed: set[int]) -> Segment:
        arrays = {name: part[np.arange(start, end) % len(part)] for name, part in rows.items()}
        if changed:
            numbers = np.array(sorted(changed))
            small = {name: part for name, part in rows.items() if _is_small(part)}
            arrays |= {f"changed.{name}": part[numbers % len(part)] for name, part in small.items()}
            arrays["changed"] = numbers
        name = f"{start:012d}-{end:012d}-{uuid.uuid4().hex[:8]}.safetensors"
        size, checksum = write_arrays(self.folder / name, arrays)
        return Segment(name, start, end, size, checksum)


def state_of(buffer: ReplayBuffer, arrays: Arrays) -> Form:
    """What a buffer has besides its rows."""
    rows = {name.partition(".")[0] for name in rows_of(buffer)}
    encoder = Encoder(arrays, "buffer", (*rows, *NOT_HERE), leave_out_code=True)
    form: dict[str, Any] = {"class": type(buffer).__qualname__, "is": encoder.attributes(vars(buffer), "replay_buffer")}
    if buffer.optimize_memory_usage:  # the next observation lies in the row that is written next
        form["next"] = encoder({name: part[buffer.pos] for name, part in rows_of(buffer).items()})
    if getattr(buffer, "copy_info_dict", False):
        size = buffer.size()
        form["infos"] = encoder([list(row) for row in vars(buffer)["infos"][:size]], "replay_buffer.infos")
    return form


def restore(
    folder: pathlib.Path, segments: Sequence[Segment], buffer: ReplayBuffer, form: Form, arrays: Arrays, log: BufferLog
) -> None:
    """Fill a new buffer.

    :param log: is told what is on the disk
    :raises Damage: it is another buffer's
    """
    require(type(form) is dict and form.get("class") == type(buffer).__qualname__, "the replay buffer was of another class")
    rows = rows_of(buffer)
    decoder = Decoder(arrays, skip=(*NOT_HERE, *(name.partition(".")[0] for name in rows)))
    before, n_rows = dict(vars(buffer)), buffer.buffer_size
    decoder.fill(buffer, form.get("is"))
    check_attributes_of_buffer(buffer, before)
    added = n_rows + buffer.pos if buffer.full else buffer.pos
    if segments:
        added = segments[-1].last
        require(added % n_rows == buffer.pos and (added >= n_rows) == bool(buffer.full), "the replay buffer ends elsewhere")
    oldest, reached = max(0, added - n_rows), max(0, added - n_rows)
    for segment in segments:
        _check_length(rows, segment)
    for segment, content in _contents(folder, segments):
        require(segment.first <= reached <= segment.last, "transitions are missing")
        _put(rows, content, max(segment.first, oldest), segment, oldest)
        changed = content.get("changed", np.zeros(0, np.int64))
        log.patched[segment.file] = set(changed.tolist())
        reached = segment.last
    require(reached == added, "transitions are missing")
    _restore_rest(decoder, form, buffer, rows)
    check_transitions(buffer, rows)
    if isinstance(buffer, TensorReplayBuffer):
        buffer.put_rows(by_field(rows))
    log.segments, log.added, log.buffer = list(segments), added, buffer
    log.remember(rows)


def _restore_rest(decoder: Decoder, form: Form, buffer: Any, rows: Arrays) -> None:
    """What of the rows is not in segments."""
    for name, value in decoder(form.get("next", {})).items():
        require(name in rows and is_like(rows[name][buffer.pos], value), "the replay buffer has another next observation")
        rows[name][buffer.pos] = value
    if "infos" not in form:
        return
    infos = decoder(form["infos"])
    require(type(infos) is list and len(infos) == buffer.size(), "the replay buffer has other infos")
    for row, of_row in zip(buffer.infos, infos, strict=False):
        dicts = type(of_row) is list and len(of_row) == buffer.n_envs and all(isinstance(info, dict) for info in of_row)
        require(dicts, "the replay buffer has other infos")
        row[:] = of_row


def _check_length(rows: Arrays, segment: Segment) -> None:
    """:raises Damage: a segment is far longer than its transitions, and would take memory for nothing"""
    n_rows = max((len(part) for part in rows.values()), default=0)
    in_rows = sum(part[:1].nbytes for part in rows.values()) * (segment.last - segment.first)
    in_changes = (8 + sum(part[:1].nbytes for part in rows.values() if _is_small(part))) * n_rows
    fits = segment.last - segment.first <= n_rows and segment.bytes <= 2 * (in_rows + in_changes) + (1 << 20)
    require(fits, f"{segment.file} is longer than its transitions")


def _contents(folder: pathlib.Path, segments: Sequence[Segment]) -> Iterator[tuple[Segment, Arrays]]:
    for segment in segments:
        yield segment, read_arrays(folder / segment.file, segment.bytes, segment.sha256)


def _put(rows: Arrays, content: Arrays, first: int, segment: Segment, oldest: int) -> None:
    for name, part in rows.items():
        value = content.get(name)
        fits = (
            value is not None and value.shape == (segment.last - segment.first, *part.shape[1:]) and value.dtype == part.dtype
        )
        require(fits, f"{segment.file} holds other transitions")
        assert value is not None
        part[np.arange(first, segment.last) % len(part)] = value[first - segment.first :]
    numbers = content.get("changed")
    if numbers is None:
        return
    require(numbers.ndim == 1 and numbers.dtype == np.int64, f"{segment.file} holds other transitions")
    alive = (numbers >= oldest) & (numbers < segment.last)
    for name, part in rows.items():
        value = content.get(f"changed.{name}")
        if value is not None:
            fits = value.shape == (len(numbers), *part.shape[1:]) and value.dtype == part.dtype
            require(fits, f"{segment.file} holds other transitions")
            part[numbers[alive] % len(part)] = value[alive]


def as_json(segments: Sequence[Segment]) -> list[Form]:
    return [asdict(segment) for segment in segments]


def from_json(forms: Any) -> list[Segment]:
    """:raises Damage: no segments"""
    require(type(forms) is list, "there is no list of segments")
    segments: list[Segment] = []
    for form in forms:
        require(type(form) is dict and form.keys() == Segment.__dataclass_fields__.keys(), "a segment is none")
        segment = Segment(**form)
        plain = type(segment.file) is str and bool(NAME.fullmatch(segment.file)) and type(segment.sha256) is str
        numbers = all(type(n) is int and 0 <= n < 1 << 62 for n in (segment.first, segment.last, segment.bytes))
        require(plain and numbers and segment.first <= segment.last, "a segment is none")
        before = segments[-1] if segments else segment
        require(before.first <= segment.first <= before.last <= segment.last, "segments are in another order")
        segments.append(segment)
    require(len({segment.file for segment in segments}) == len(segments), "a segment is there twice")
    return segments
