"""Curves of several runs as one: a common grid, the mean, an interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from sb3_softac.report.data import Array, Episodes, Series, windowed

POINTS = 200


class Band(NamedTuple):
    """Mean over runs, and an interval around it, (n,)."""

    steps: Array
    mean: Array
    low: Array
    high: Array


def smooth(episodes: Episodes) -> Series:
    """Mean return of the last episodes, as many as a twentieth of all, and at most 100."""
    return rolling(Series(episodes.steps, episodes.returns).finite())


def rolling(series: Series, parts: int = 20) -> Series:
    """Mean of each value and those before it, in a window of 1/``parts`` of all values, and at most 100."""
    width = min(100, max(1, len(series) // parts))
    return series if width == 1 else Series(series.steps, windowed(series.values, width))


def thin(series: Series, points: int = 2 * POINTS) -> Series:
    """Means of neighbours, so that there are at most so many points."""
    if len(series) <= points:
        return series
    parts = np.array_split(np.arange(len(series)), points)
    return Series(*(np.array([column[part].mean() for part in parts]) for column in (series.steps, series.values)))


def band(curves: Sequence[Series]) -> Band | None:
    """Mean of several runs where all of them have values.

    With three runs or more the interval is the 95 % confidence interval of the mean (Student's t); with two it is their range.

    :param curves: of each run; those without values are left out
    :return: None for fewer than two runs, or if they have no steps in common
    """
    curves = [curve for curve in (curve.finite() for curve in curves) if len(curve) > 0]
    if len(curves) < 2:
        return None
    first, last = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if not first < last:
        return None
    same = all(np.array_equal(curve.steps, curves[0].steps) for curve in curves)
    grid = curves[0].steps if same else np.linspace(first, last, POINTS)
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])
    mean = values.mean(axis=0)
    if len(curves) == 2:
        return Band(grid, mean, values.min(axis=0), values.max(axis=0))
    half = stats.t.ppf(0.975, len(curves) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(curves))
    return Band(grid, mean, mean - half, mean + half)
