"""Event files of TensorBoard, read by its own reader."""

import logging
from pathlib import Path
from typing import Any

from sb3_softac.report.data import MOST_STEPS, ReportError, Series, as_written, goes_back

PATTERN = "events.out.tfevents.*"


def start_of(path: Path) -> float | None:
    """When an event file was begun, in seconds since 1970, as its name says."""
    parts = path.name.split(".")
    return float(parts[3]) if len(parts) > 3 and parts[3].isdecimal() else None


def read_events(folder: Path, notes: list[str]) -> dict[str, Series]:
    """Every scalar in the event files of a folder, against environment steps.

    :param folder: one that holds event files, of one run
    :param notes: gets a sentence if they could not be read
    :raises ReportError: TensorBoard is not installed
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ReportError(
            f"{str(folder)!r} holds logs of TensorBoard, which is needed to read them: "
            'pip install "sb3-softac[report]" installs it.'
        ) from error
    points: dict[str, list[tuple[int, float]]] = {}
    damaged = 0
    logger = logging.getLogger("tensorboard")
    silent, logger.disabled = logger.disabled, True
    try:
        for path in sorted(folder.glob(PATTERN)):
            try:
                accumulator: Any = EventAccumulator(str(path), size_guidance={"scalars": 0})
                accumulator.Reload()
                for name in accumulator.Tags()["scalars"]:
                    points.setdefault(name, []).extend((event.step, event.value) for event in accumulator.Scalars(name))
            except Exception:  # whatever its reader raises on bytes that it does not understand
                damaged += 1
    finally:
        logger.disabled = silent
    if damaged:
        notes.append(f"{damaged} of the event files in {folder.name} are damaged, and left out.")
    elif not points:
        notes.append(f"The event files in {folder.name} hold no numbers.")
    points = {name: [pair for pair in pairs if abs(pair[0]) <= MOST_STEPS] for name, pairs in points.items()}
    longest = max(points.values(), key=len, default=[])
    if where := goes_back([step for step, _ in longest]):
        notes.append(f"The log in {folder.name} goes back from {where}: what it had logged from there on is left out.")
    return {name: as_written(pairs) for name, pairs in points.items()}
