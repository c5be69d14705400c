"""What the rows say, with intervals: interquartile means, probabilities of improvement, and performance profiles.

By rliable (2108.13264): stratified bootstrap over the runs of each task, 95 % percentile intervals.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from harness.references import published_at
from harness.scores import Array, Task, final_scores, scale

REPETITIONS = 2000


class Estimate(NamedTuple):
    """A figure, and the bounds of its interval."""

    value: Array
    low: Array
    high: Array

    def __format__(self, spec: str) -> str:
        return f"{float(self.value):{spec}} [{float(self.low):{spec}}, {float(self.high):{spec}}]"


def rliable() -> Any:
    """:raises ValueError: it is not installed"""
    try:
        from rliable import library, metrics
    except ImportError:
        raise ValueError('--evidence needs rliable, which is not installed: pip install -e ".[evidence]".') from None
    np.random.seed(0)  # noqa: NPY002  # rliable draws from the global generator
    return library, metrics


def estimate(scores: Mapping[str, Any], function: Callable[..., Any], repetitions: int = REPETITIONS) -> dict[str, Estimate]:
    """A statistic of each entry.

    :param scores: arrays of runs × tasks × ..., or pairs of them
    :param function: of such an array, or of two
    """
    library, _ = rliable()
    values, intervals = library.get_interval_estimates(
        dict(scores), lambda *arrays: np.atleast_1d(function(*arrays)), reps=repetitions
    )
    return {name: Estimate(np.squeeze(values[name]), *np.squeeze(intervals[name])) for name in scores}


def interquartile_means(scores: Mapping[str, Array]) -> dict[str, Estimate]:
    """Over all runs and tasks, of arrays of runs × tasks."""
    return estimate(scores, rliable()[1].aggregate_iqm)


def interquartile_curves(curves: Mapping[str, Array]) -> dict[str, Estimate]:
    """At each evaluation, of arrays of runs × tasks × points: rliable's mean of the middle half, of all points at once."""
    return estimate(curves, lambda scores: scipy.stats.trim_mean(scores.reshape(-1, scores.shape[-1]), 0.25, axis=0))


def improvement(scores: Mapping[str, Array], over: str) -> dict[str, Estimate]:
    """P(a run of a variant is better than one of ``over``), averaged over tasks; ties count half."""
    pairs = {variant: (own, scores[over]) for variant, own in scores.items() if variant != over}
    return estimate(pairs, rliable()[1].probability_of_improvement)


def share_above(scores: Array, thresholds: Array) -> Array:
    """Of runs and tasks, for each threshold."""
    return np.asarray((scores.reshape(-1, 1) > thresholds).mean(axis=0))


def profiles(scores: Mapping[str, Array], thresholds: Array) -> dict[str, Estimate]:
    """The share of runs whose score is above each threshold."""
    library, _ = rliable()
    values, intervals = library.create_performance_profile(
        dict(scores), thresholds, custom_profile_func=share_above, reps=REPETITIONS
    )
    return {name: Estimate(values[name], *intervals[name]) for name in scores}


def _task_table(task: Task) -> str:
    lines = [f"**{task.env}, {task.steps:,} steps**", ""]
    lines += ["| | interquartile mean [95 %] | mean | seeds | training, s |", "|---|---|---|---|---|"]
    means = interquartile_means({variant: returns[:, None] for variant, returns in task.final.items()})
    for variant, returns in task.final.items():
        seconds = f"{np.median(task.times[variant][:, -1]):,.0f}" if variant in task.times else ""
        lines.append(f"| {variant} | {means[variant]:,.0f} | {returns.mean():,.0f} | {len(returns)} | {seconds} |")
    for each in published_at(task.env, task.steps):
        mean = f"{each.mean:,.0f} ± {each.deviation:,.0f}"
        lines.append(f"| published: {each.algorithm}, {each.task} | | {mean} | {each.n_seeds} | |")
    return "\n".join(lines)


def _improvement_table(tasks: list[Task], over: str) -> str:
    scores = {variant: np.stack([task.final[variant] for task in tasks], axis=1) for variant in tasks[0].final}
    lines = [f"| | probability of improvement over {over} [95 %] |", "|---|---|"]
    lines += [f"| {variant} | {found:.2f} |" for variant, found in improvement(scores, over).items()]
    return "\n".join(lines)


def normalisation(tasks: list[Task], reference: str) -> str:
    """How scores are made, in a sentence."""
    ends = "; ".join(f"{task.env}: {low:,.0f} and {high:,.0f}" for task in tasks for low, high in [scale(task, reference)])
    return f"Score 0 is the return of uniformly random actions, 1 the mean return of {reference} ({ends})."


def report(tasks: list[Task], reference: str | None) -> str:
    """Tables of each task, of all of them by score, and of probabilities of improvement."""
    parts = [_task_table(task) for task in tasks]
    if reference is None:
        parts.append("Nothing to relate the tasks to: `--reference` names a variant, or a published algorithm.")
        return "\n\n".join(parts)
    scores = final_scores(tasks, reference)
    lines = ["| all tasks | interquartile mean of scores [95 %] | mean |", "|---|---|---|"]
    means = interquartile_means(scores)
    lines += [f"| {variant} | {means[variant]:.2f} | {own.mean():.2f} |" for variant, own in scores.items()]
    parts += ["\n".join(lines), normalisation(tasks, reference)]
    if reference in scores and len(scores) > 1:
        parts.append(_improvement_table(tasks, reference))
    return "\n\n".join(parts)
