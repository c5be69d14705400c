"""Writing files that are complete and on the disk, or not there."""

import contextlib
import errno
import os
import pathlib
import stat
import uuid
import warnings
from collections.abc import Iterator
from typing import BinaryIO


def named(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """Where SB3 would write: with ``suffix`` if there is none, and beside a folder of that name."""
    path = pathlib.Path(path)
    path = path.with_name(f"{path.name}{suffix}") if path.suffix == "" else path
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=4)
        path = path.with_name(f"{path.name}_2")
    return path


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the name of a new file, which replaces ``path`` if nothing fails; missing folders are made.

    The new file is on the disk before it gets its name, and its name before this ends. It has the permissions of the old one.

    :param path: the file to replace; a symbolic link stays one, and what is no file (a pipe) is written to as it is
    :raises OSError: it cannot be written; an older file is as it was, and nothing else is left
    """
    with explained_errors(path):
        target = path.resolve()
        if target.is_symlink():  # where Python does not say so itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode if target.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        with explained_errors(path):
            yield target
        return
    unfinished = target.with_name(f".{uuid.uuid4().hex}.tmp")  # whoever writes to the same path has another one
    try:
        with explained_errors(path):
            unfinished.open("xb").close()  # whoever writes in C would raise something else where this cannot be done
            yield unfinished
            _write_through(unfinished, mode)
            unfinished.replace(target)
    finally:
        # A folder that cannot be written to raises at the first use of the name, and holds nothing to remove.
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    write_through_folder(target.parent)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` as :func:`replacing` does."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        yield file


@contextlib.contextmanager
def explained_errors(path: pathlib.Path) -> Iterator[None]:
    """Errors of the file system name the file that was asked for, not a temporary one."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        kept = "the older file is as it was" if os.path.lexists(path) else "nothing was saved"
        raise OSError(error.errno or 0, f"{reason}: the file could not be written, and {kept}", str(path)) from error
    except RuntimeError as error:
        if "ymlink loop" not in str(error):  # so Python says before 3.13
            raise
        raise OSError(0, f"{error}: the file could not be written", str(path)) from error


def _write_through(path: pathlib.Path, mode: int | None) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if mode is not None:
            os.chmod(path, stat.S_IMODE(mode))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_through_folder(path: pathlib.Path) -> None:
    """The new name is in place already; where folders cannot be written through, the system does it in time."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
