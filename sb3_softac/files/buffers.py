"""Replay buffers in files: a pickle, as SB3 writes it, with its checksum behind it."""

import io
import pathlib
import pickle
import zlib
from typing import Any, BinaryIO, cast

import numpy as np
from stable_baselines3.common.save_util import open_path

from sb3_softac.files.allowed import Allowed
from sb3_softac.files.atomic import named, writing
from sb3_softac.files.checking import check_transitions
from sb3_softac.files.reading import MAX_STEPS, explained, unreadable
from sb3_softac.files.rebuilding import require
from sb3_softac.files.segments import rows_of
from sb3_softac.files.settling import check_buffer, check_values, is_known
from sb3_softac.files.unpickling import Machine, Source

#: what a checksum begins with; eight hexadecimal digits follow
MARKER = b"\nsb3_softac crc32 "


class _Summed:
    """A file to write to, with the CRC-32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.checksum = file, 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self.file.write(data)


class _BufferPickler(pickle.Pickler):
    """Leaves out the rows of a buffer that nothing has been written to; reading makes them again, in SB3, too."""

    def __init__(self, file: Any, buffer: Any) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        full = bool(getattr(buffer, "full", True))
        self.n_rows = 0 if full else buffer.buffer_size
        self.n_used = 0 if full else buffer.pos + 1  # the next observation may lie there

    def reducer_override(self, value: Any) -> Any:
        rows = type(value) is np.ndarray and value.shape[:1] == (self.n_rows,) and value.dtype.kind in "biuf"
        if not rows or self.n_used >= self.n_rows or value[self.n_used :].any():
            return NotImplemented
        behind = ((0, self.n_rows - self.n_used), *[(0, 0)] * (value.ndim - 1))
        return np.pad, (value[: self.n_used].copy(), behind)


def write_buffer(path: str | pathlib.Path | io.BufferedIOBase, buffer: Any) -> None:
    """See ``save_replay_buffer``; a stream gets the pickle alone, since something else may follow in it."""
    if not isinstance(path, str | pathlib.Path):
        _BufferPickler(open_path(path, "w"), buffer).dump(buffer)
        return
    with writing(named(path, ".pkl")) as file:
        summed = _Summed(file)
        _BufferPickler(summed, buffer).dump(buffer)
        file.write(MARKER + b"%08x" % summed.checksum)


def read_buffer(path: str | pathlib.Path | io.BufferedIOBase) -> Any:
    """A replay buffer out of its file, without running anything in it; a stream is left behind the pickle.

    :raises UntrustedFileError: it asks for what is not on the list
    :raises DamagedFileError: it is incomplete, or holds no replay buffer
    """
    is_stream = not isinstance(path, str | pathlib.Path)
    file = cast(BinaryIO, open_path(path, "r", suffix="pkl"))
    try:
        with explained(str(path)):
            source, rules = Source(file), Allowed()
            machine = Machine(source, rules, MAX_STEPS + source.size // 4)
            buffer = machine.run()
            check_values(buffer, rules.created, machine.steps + 1000)
            if is_stream:
                source.leave()
            else:
                _compare_checksum(source)
            with unreadable():  # an attribute that is not there
                check_buffer(buffer)
                if is_known(buffer):
                    check_transitions(buffer, rows_of(buffer))
            return buffer
    finally:
        if not is_stream:
            file.close()


def _compare_checksum(source: Source) -> None:
    """:raises Damage: what was read is not what was written; a file of SB3 has no checksum"""
    checksum = source.checksum()
    if source.remaining:
        require(source.remaining == len(MARKER) + 8, "it goes on behind its end")
        require(source.read(source.remaining) == MARKER + b"%08x" % checksum, "its checksum is not that of its contents")
