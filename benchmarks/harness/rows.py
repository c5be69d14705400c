"""The CSV file of finished runs: each row is there as a whole or not at all, whoever is killed while it is written."""

import contextlib
import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.plans import Key, Run, canonical
from harness.variants import VARIANTS
from sb3_softac.files.atomic import writing

Row = dict[str, Any]
#: columns that every file has, and those of whole numbers
NEEDED = ("variant", "env", "steps", "seed", "return")
COUNTS = ("steps", "seed")


def _fields(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def read(path: Path, repair: bool = False) -> list[Row]:
    """The rows of a file; none if there is no file.

    :param repair: leave out a last line that is cut, which happens to who writes without a temporary file
    :raises ValueError: it is no such file, or a line is cut
    """
    if not path.exists():
        return []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from None
    lines = text.splitlines()
    if not lines:
        return []
    header = _fields(lines[0])
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise ValueError(f"{str(path)!r} has no column {missing[0]!r}: it is no file of returns, or its first line is cut.")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = _fields(line)
        is_last = number == len(lines)
        if len(fields) == len(header) and line.count('"') % 2 == 0 and (not is_last or text.endswith(("\n", "\r"))):
            rows.append(dict(zip(header, fields, strict=True)))
            _check(path, number, rows[-1])
        elif not (repair and is_last):
            raise ValueError(
                f"{str(path)!r} is cut in line {number} ({len(fields)} of {len(header)} columns): remove that line, and the "
                "plan measures the run again."
            )
    return rows


def _check(path: Path, number: int, row: Row) -> None:
    """:raises ValueError: a cell of a row is not what its column says"""
    where = f"{str(path)!r} has in line {number}"
    for name in COUNTS:
        if not row[name].isdecimal():
            raise ValueError(
                f"{where} the {name} {row[name]!r}, which must be a whole number: correct it, or remove that line."
            )
    try:
        float(row["return"])
        [float(value) for value in row.get("curve", "").split()]
        json.loads(row.get("settings") or "{}")
    except ValueError:
        raise ValueError(
            f"{where} a return, curve or settings that cannot be read: correct it, or remove that line."
        ) from None


def algorithm_of(row: Row) -> str:
    """Its class; of the first files, which do not say it, that of its variant."""
    known = VARIANTS.get(row["variant"])
    return row.get("algorithm") or (known[0].__name__ if known else "")


def key_of(row: Row) -> Key | None:
    """What tells the run of a row from others; None for files of the first version, which hold no settings."""
    if not row.get("settings"):
        return None
    return (
        algorithm_of(row),
        row["variant"],
        row["env"],
        int(row["steps"]),
        int(row["seed"]),
        canonical(json.loads(row["settings"])),
    )


def missing(runs: list[Run], rows: list[Row]) -> list[Run]:
    """The runs that have no row."""
    done = {key_of(row) for row in rows}
    return [run for run in runs if run.key not in done]


def of_other_episodes(runs: list[Run], rows: list[Row]) -> list[Run]:
    """Runs that have a row, whose return is the mean over another number of episodes."""
    episodes = {key_of(row): row.get("episodes") for row in rows}
    return [run for run in runs if (episodes.get(run.key) or str(run.episodes)) != str(run.episodes)]


def write(path: Path, rows: list[Row]) -> None:
    """Replace a file by one with these rows, whose columns are all that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    with writing(path) as file:
        file.write(text.getvalue().encode())


def _beside(path: Path, name: str) -> Path:
    folder = path.parent / f".{path.name}.locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def append(path: Path, row: Row) -> bool:
    """Add a row, unless the run has one; other processes that do the same wait.

    :return: whether it was added
    """
    with FileLock(_beside(path, "file")):
        rows = read(path, repair=True)
        if key_of({name: str(value) for name, value in row.items()}) in {key_of(other) for other in rows}:
            return False
        write(path, [*rows, row])
    return True


@contextlib.contextmanager
def claim(path: Path, run: Run, patience: float = 1.0) -> Iterator[bool]:
    """Hold a run; the system lets go of it when this process ends, however it does.

    :param patience: seconds to wait for somebody who only looks
    :return: whether nobody else holds it
    """
    lock = FileLock(_beside(path, run.id), timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_claimed(path: Path, run: Run) -> bool:
    if not (path.parent / f".{path.name}.locks" / run.id).exists():
        return False
    with claim(path, run, patience=0.0) as is_free:
        return not is_free


def check_place(option: str, path: Path, is_folder: bool = False) -> None:
    """Before hours of training: whether a file, or files in a folder, can be written; makes the folder.

    :param option: that has named it, for the error
    :raises ValueError: no
    """
    try:
        if not is_folder and path.is_dir():
            raise IsADirectoryError("it is a folder")
        folder = path if is_folder else path.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not is_folder and path.exists():
            path.open("r+").close()
    except OSError as error:
        raise ValueError(f"`{option}` is {str(path)!r}, which cannot be written: {error.strerror or error}.") from None


def check_writable(path: Path) -> None:
    """Before hours of training: whether rows can be written, and those there can be read.

    :raises ValueError: no
    """
    check_place("--output", path)
    read(path, repair=True)
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith(("\n", "\r")):
        last = text.splitlines()[-1]
        print(f"{path} ends within a line, which the next row replaces: {last[:60]!r}...", file=sys.stderr)
