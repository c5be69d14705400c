"""Which logs of TensorBoard belong to which run: RL Zoo keeps them in a folder of their own, and several runs may share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sb3_softac.report.data import Run
from sb3_softac.report.tensorboard import PATTERN, start_of

#: an event file is begun at most so many seconds after the Monitor of its run, or so many before it, as clocks round
PATIENCE, ROUNDING = 600.0, 2.0
#: returns that differ by more than this share of their range are not those of one run
LARGEST_GAP = 0.1
#: episodes in SB3's mean return
WINDOW = 100


@dataclass(frozen=True)
class Place:
    """Where the logs of a run may be.

    :param folders: of event files, by what the run itself says
    :param is_none: whether it says that there are none
    """

    folders: Sequence[Path] = ()
    is_none: bool = False


def gap(run: Run, logged: Run) -> float | None:
    """How far the mean returns in ``logged`` are from those in the Monitor of ``run``, as a share of their range.

    :return: the median; None if they have nothing in common that could be compared
    """
    means, counts = logged.metric("rollout/ep_rew_mean"), logged.metric("time/episodes")
    if run.episodes is None or len(run.episodes) == 0 or means is None:
        return None
    returns, width = run.episodes.returns, run.settings.given.get("stats_window_size", WINDOW)
    width = width if isinstance(width, int) and width > 0 else WINDOW
    if counts is not None:
        _, at_means, at_counts = np.intersect1d(means.steps, counts.steps, return_indices=True)
        n_episodes, values = counts.values[at_counts].astype(int), means.values[at_means]
    else:
        n_episodes, values = np.searchsorted(run.episodes.steps, means.steps, side="right"), means.values
    known = (n_episodes > 0) & (n_episodes <= len(returns))
    if not known.any():
        return None
    expected = np.array([returns[max(0, n - width) : n].mean() for n in n_episodes[known]])
    spread = float(np.ptp(returns)) or max(1.0, abs(float(returns[0])))
    differences = np.abs(values[known] - expected) / spread
    return float(np.median(differences)) if np.isfinite(differences).all() else None


def match(runs: Sequence[tuple[Run, Place]], given: Sequence[Path], read: Callable[[Path], Run]) -> Mapping[Path, Path]:
    """The folder of event files of each run that has one, by the folder of the run; none is of two runs.

    Of the event files that were begun soon after the Monitor of a run those are its own whose mean returns are those of the
    Monitor; the first ones, where neither tells.

    :param given: folders of event files that may be of any run which does not say that it has none
    :param read: what lies in a folder
    """
    taken: dict[Path, Path] = {}
    for run, place in sorted(runs, key=lambda pair: _started(pair[0]) or 0.0):
        begun, others = _started(run), {folder.resolve() for folder in taken.values()}
        if begun is None or place.is_none:
            continue
        free = {folder.resolve(): folder for folder in (*given, *place.folders) if folder.resolve() not in others}
        starts = {(start_of(path) or 0.0, folder) for folder in free.values() for path in folder.glob(PATTERN)}
        near = sorted(pair for pair in starts if begun - ROUNDING <= pair[0] <= begun + PATIENCE)
        gaps = {folder: gap(run, read(folder)) for _, folder in near}
        is_only = len(gaps) == 1 and bool(place.folders)  # and where the run says that it is
        near = [pair for pair in near if is_only or (gaps[pair[1]] or 0.0) <= LARGEST_GAP]
        if near:
            taken[run.folder] = min(near, key=lambda pair: (_rank(gaps[pair[1]]), pair))[1]
    return taken


def _rank(found: float | None) -> float:
    """What agrees comes first, then what does not tell."""
    return LARGEST_GAP if found is None else round(found, 4)


def _started(run: Run) -> float | None:
    return run.episodes.started if run.episodes is not None else None
