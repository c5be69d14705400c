"""Tables of SB3: monitor.csv, progress.csv, evaluations.npz. What is cut off or damaged is left out, and said."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softac.report.data import MOST_STEPS, Episodes, Evaluations, Series, as_written, goes_back

STEPS = "time/total_timesteps"
#: return, length, and seconds since the start
Episode = tuple[float, float, float]


def _lines(path: Path, notes: list[str]) -> list[str]:
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}.")
        return []
    if text and not text.endswith("\n"):  # every writer ends its lines
        notes.append(f"{path.name} is cut off in the middle: its last line is left out.")
        text = text[: text.rfind("\n") + 1]
    return text.replace("\0", "").splitlines()


def _number(cell: str | None) -> float | None:
    try:
        return None if cell is None or cell == "" else float(cell)
    except ValueError:
        return None


def _rows(lines: Sequence[str]) -> tuple[list[str], list[dict[str, str]], int]:
    """The names of the columns, the rows, and how many rows were left out because they have not as many cells."""
    try:
        table = list(csv.reader(lines))
    except csv.Error:
        table = [line.split(",") for line in lines]
    names, rows = (table[0], table[1:]) if table else ([], [])
    whole = [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
    return names, whole, len(rows) - len(whole)


def read_monitor(paths: Sequence[Path], notes: list[str]) -> tuple[Episodes | None, str | None]:
    """Episodes of all environments of a run, and the name of the task.

    :param paths: ``monitor.csv``, or ``0.monitor.csv``, ``1.monitor.csv``, ...
    :param notes: gets a sentence for what could not be read
    """
    files: list[tuple[float | None, list[Episode]]] = []
    env_id: str | None = None
    for path in sorted(paths):
        lines = _lines(path, notes)
        start, env_id, lines = _header(lines, env_id)
        names, rows, left_out = _rows(lines)
        if lines and not {"r", "l", "t"} <= {*names}:
            notes.append(f"{path.name} has no columns r, l and t, which Monitor writes.")
            continue
        episodes: list[Episode] = []
        for row in rows:
            r, length, t = (_number(row[name]) for name in ("r", "l", "t"))
            if r is None or length is None or t is None or not 0 < length <= MOST_STEPS or not abs(t) <= MOST_STEPS:
                left_out += 1
            else:
                episodes.append((r, length, t))
        if left_out:
            notes.append(f"{path.name} is damaged: {left_out} of its rows are left out.")
        files.append((start, _going_on(episodes)))
    if not paths:
        return None, None
    return _together(files, len(paths), notes), env_id


def _going_on(episodes: list[Episode]) -> list[Episode]:
    """Episodes of one file whose times never fall: where they do, a later start has added to it, and its clock began anew."""
    offset = last = 0.0
    placed: list[Episode] = []
    for r, length, t in episodes:
        offset += last if t < last else 0.0
        placed.append((r, length, offset + t))
        last = t
    return placed


def _together(files: Sequence[tuple[float | None, list[Episode]]], n_envs: int, notes: list[str]) -> Episodes:
    """The episodes of all environments in the order of time."""
    starts = [start for start, _ in files if start is not None]
    first = min(starts, default=0.0)
    if starts and len(starts) < len(files):
        notes.append(
            "Not every monitor file says when it was begun: those that do not are taken to have begun with the first."
        )
    found = [(r, n, t + (0.0 if start is None else start - first)) for start, own in files for r, n, t in own]
    if len(files) > 1:
        found.sort(key=lambda episode: episode[2])
    columns = np.array(found, dtype=np.float64).reshape(-1, 3)
    return Episodes(columns[:, 0], columns[:, 1], columns[:, 2], first or None, n_envs)


def _header(lines: list[str], env_id: str | None) -> tuple[float | None, str | None, list[str]]:
    """The start and the task that the first line says, and the lines of the table."""
    if not lines or not lines[0].startswith("#"):
        return None, env_id, lines
    try:
        header: Any = json.loads(lines[0][1:])
        name, start = str(header.get("env_id")), float(header["t_start"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None, env_id, lines[1:]
    return (start if abs(start) <= MOST_STEPS else None), (env_id if name == "None" else name), lines[1:]


def read_progress(path: Path, notes: list[str]) -> dict[str, Series]:
    """Every column of a ``progress.csv`` that holds numbers, against environment steps."""
    columns: dict[str, list[tuple[float, float]]] = {}
    steps: list[float] = []
    names, rows, left_out = _rows(_lines(path, notes))
    if rows and STEPS not in names:
        notes.append(f"{path.name} has no column {STEPS}: its rows are counted instead.")
    for index, row in enumerate(rows):
        step = _number(row[STEPS]) if STEPS in names else float(index)
        if step is None or not abs(step) <= MOST_STEPS:
            left_out += 1
            continue
        steps.append(step)
        for name, cell in row.items():
            value = _number(cell)
            if value is not None and name:
                columns.setdefault(name, []).append((step, value))
    if left_out:
        notes.append(f"{path.name} is damaged: {left_out} of its rows are left out.")
    if where := goes_back(steps):
        notes.append(f"{path.name} goes back from {where}: what it had logged from there on is left out.")
    return {name: as_written(points) for name, points in columns.items()}


def read_evaluations(path: Path, notes: list[str]) -> Evaluations | None:
    """What an ``evaluations.npz`` holds; None if that is nothing."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # closed if NumPy fails, too
            steps, returns = file["timesteps"], file["results"]
        steps, returns = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    except Exception as error:  # whatever NumPy and its decompression raise on bytes that they do not understand
        notes.append(f"{path.name} could not be read ({type(error).__name__}): evaluations are missing.")
        return None
    if returns.ndim == 1:
        returns = returns[:, None]
    steps = steps.reshape(-1)
    known = np.abs(steps) <= MOST_STEPS
    if returns.ndim != 2 or len(steps) != len(returns) or returns.size == 0 or not known.any():
        notes.append(f"{path.name} holds no returns, or others than its steps.")
        return None
    if not known.all():
        notes.append(f"{path.name} is damaged: {np.sum(~known)} of its steps are no numbers, and left out.")
    return Evaluations(steps[known], returns[known])
