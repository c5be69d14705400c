"""What a run has written, as numbers: nothing here knows a file or a plot."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
#: numbers beyond it are not drawn or judged: their differences are infinite
LARGEST_NUMBER = 1e300
#: no run has more steps, or takes more seconds: what says so is damaged
MOST_STEPS = 1e15


class ReportError(Exception):
    """A report that cannot be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Series:
    """Values of one metric, in the order of steps.

    :param steps: environment steps, (n,)
    :param values: (n,); NaN and ∞ as they were logged
    """

    steps: Array
    values: Array

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> "Series":
        """Without what is NaN, infinite, or too large to calculate with."""
        return self.where(np.abs(self.values) <= LARGEST_NUMBER)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Series":
        """The points of ``mask``, (n,)."""
        return Series(self.steps[mask], self.values[mask])

    def part(self, start: float, end: float) -> Array:
        """Finite values between two shares of the steps that the series covers, such as 0.75 and 1 for its last quarter."""
        series = self.finite()
        if len(series) == 0:
            return series.values
        first, span = series.steps[0], series.steps[-1] - series.steps[0]
        inside = (series.steps >= first + start * span) & (series.steps <= first + end * span)
        return np.asarray(series.values[inside])

    def late(self) -> Array:
        """Finite values in the last quarter of its steps."""
        return self.part(0.75, 1.0)


def in_order(steps: Any, values: Any) -> Series:
    """A series from points in any order; of several at one step the last one counts."""
    pairs = {float(step): float(value) for step, value in zip(steps, values, strict=True) if np.isfinite(float(step))}
    ordered = sorted(pairs)
    return Series(np.array(ordered, dtype=np.float64), np.array([pairs[step] for step in ordered], dtype=np.float64))


def as_written(points: Iterable[tuple[float, float]]) -> Series:
    """A series from steps and values in the order in which they were logged.

    Where the steps fall, training went on from an earlier state or began anew: what was there from that step on is replaced.
    """
    kept: list[tuple[float, float]] = []
    for step, value in points:
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((float(step), float(value)))
    table = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return Series(table[:, 0], table[:, 1])


def goes_back(steps: Sequence[float]) -> str | None:
    """Where steps fall for the first time, in words; None if they do not."""
    falls = [(before, after) for before, after in itertools.pairwise(steps) if after < before]
    return f"step {falls[0][0]:,.0f} to {falls[0][1]:,.0f}" if falls else None


def windowed(values: Array, width: int) -> Array:
    """Mean of each value and those before it, at most ``width`` of them."""
    sums = np.convolve(values, np.ones(width))[: len(values)]  # each by itself: differences of running sums would cancel
    return np.asarray(sums / np.minimum(np.arange(1, len(values) + 1), width))


@dataclass(frozen=True)
class Episodes:
    """Episodes of training, in the order in which they ended, as ``Monitor`` has counted them.

    :param returns: sums of rewards, not discounted, (n,)
    :param lengths: steps, (n,)
    :param seconds: since the start of the run, (n,)
    :param started: that start, in seconds since 1970; None if it is unknown
    :param n_envs: environments that they come from
    :param before: environment steps before the first of them, of which there are no episodes
    :param is_whole: whether all others are those of these episodes, or of some that have not ended
    """

    returns: Array
    lengths: Array
    seconds: Array
    started: float | None = None
    n_envs: int = 1
    before: float = 0.0
    is_whole: bool = True

    def __len__(self) -> int:
        return len(self.returns)

    @property
    def steps(self) -> Array:
        """Environment steps up to the end of each, (n,); those of other environments in unfinished episodes are missing."""
        return np.asarray(self.before + np.cumsum(self.lengths))


@dataclass(frozen=True)
class Evaluations:
    """What ``EvalCallback`` has written.

    :param steps: (n,)
    :param returns: of each episode, (n, k)
    """

    steps: Array
    returns: Array

    def means(self) -> Series:
        """Mean return of each evaluation."""
        return in_order(self.steps, self.returns.mean(axis=1))


@dataclass(frozen=True)
class Settings:
    """Options of a run, as far as they are known.

    :param given: those that were set, by name
    :param defaults: those of the algorithm, by name; None if the algorithm is not known
    :param source: where ``given`` was read; None if nothing was found
    :param unread: options that were set to what a report does not read, such as a function
    :param n_dimensions: of ``Box`` actions; None if that is not known
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] | None = None
    source: str | None = None
    unread: frozenset[str] = frozenset()
    n_dimensions: int | None = None

    @property
    def known(self) -> bool:
        """Whether an option that is not given has its default."""
        return self.source is not None and self.defaults is not None

    def get(self, name: str) -> Any:
        """The value of an option, or its default; None if neither is known."""
        if name in self.given:
            return self.given[name]
        is_default = self.known and self.defaults is not None and name not in self.unread
        return self.defaults.get(name) if is_default and self.defaults is not None else None

    def number(self, name: str) -> float | None:
        """An option that is a number, or its default; None if it is none that one can calculate with."""
        value = self.get(name)
        return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST_NUMBER else None

    def policy(self, name: str) -> Any:
        """The value of an option in ``policy_kwargs``, or None."""
        kwargs = self.get("policy_kwargs")
        return kwargs.get(name) if isinstance(kwargs, Mapping) else None

    def differing(self) -> dict[str, tuple[Any, Any]]:
        """Given options that are not at their default, with the default; those that the algorithm has not, with None."""
        defaults = self.defaults or {}
        rows = {name: (value, defaults.get(name)) for name, value in self.given.items() if name != "policy"}
        return {name: pair for name, pair in sorted(rows.items()) if name not in defaults or pair[0] != pair[1]}


@dataclass
class Run:
    """One training.

    :param name: how the report calls it
    :param folder: where its logs are
    :param metrics: what was logged, by name
    :param notes: sentences on what could not be read
    """

    name: str
    folder: Path
    env_id: str | None = None
    algorithm: str | None = None
    seed: int | None = None
    metrics: dict[str, Series] = field(default_factory=dict)
    episodes: Episodes | None = None
    evaluations: Evaluations | None = None
    settings: Settings = field(default_factory=Settings)
    notes: list[str] = field(default_factory=list)

    def metric(self, name: str) -> Series | None:
        """Finite values of a metric, or None if there are none."""
        series = self.metrics.get(name)
        finite = series.finite() if series is not None else None
        return finite if finite is not None and len(finite) > 0 else None

    @property
    def n_steps(self) -> int:
        """The last step that any of its logs knows of."""
        ends = [series.steps[-1] for series in self.metrics.values() if len(series) > 0]
        if self.episodes is not None and len(self.episodes) > 0:
            ends.append(self.episodes.steps[-1])
        if self.evaluations is not None and len(self.evaluations.steps) > 0:
            ends.append(self.evaluations.steps[-1])
        return int(max(ends, default=0))

    @property
    def is_soft(self) -> bool:
        """Whether it is of the SAC family, as far as one can tell."""
        return self.algorithm in SOFT or "train/ent_coef" in self.metrics


#: algorithms with a temperature
SOFT = ("SoftAC", "SoftQL", "SAC", "TQC", "CrossQ")
