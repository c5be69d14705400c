"""Rows as arrays of runs × tasks × evaluations, and the scores that make tasks comparable."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.references import PREFIX, PUBLISHED, published_at, random_return
from harness.rows import Row
from sb3_softac.arguments.checks import refuse

Array = np.ndarray[Any, np.dtype[np.float64]]
#: of variants, the first that is there is the reference
REFERENCES = ("sb3", "SB3 SAC", "SB3 DQN")


@dataclass
class Task:
    """All runs on one task, by variant, in the order of their seeds.

    :param env: its name
    :param steps: of each run
    :param final: returns of the last policy (n,)
    :param curves: returns at the evaluations (n, points)
    :param times: seconds of training at the evaluations (n, points); a variant whose rows have none is missing, and all are
        where the runs come from different processors, whose seconds say nothing of each other
    """

    env: str
    steps: int
    final: dict[str, Array]
    curves: dict[str, Array]
    times: dict[str, Array]

    @property
    def n_points(self) -> int:
        return int(next(iter(self.curves.values())).shape[1])

    @property
    def points(self) -> Array:
        """Steps of the evaluations."""
        return max(self.steps // self.n_points, 1) * np.arange(1.0, self.n_points + 1)


def _numbers(row: Row, column: str) -> list[float]:
    return [float(number) for number in (row.get(column) or "").split()]


def tasks_of(rows: list[Row]) -> list[Task]:
    """The tasks of rows that :func:`harness.tables.check` has seen.

    :raises ValueError: variants that are not on every task, a single seed, or evaluations at other steps
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    tasks = []
    for env in dict.fromkeys(row["env"] for row in rows):
        of_env = [row for row in rows if row["env"] == env]
        runs = {
            variant: sorted((row for row in of_env if row["variant"] == variant), key=lambda row: int(row["seed"]))
            for variant in variants
        }
        for variant, own in runs.items():
            if not own:
                raise ValueError(
                    f"{variant} has no row on {env}, but others have: let the plan go on, or choose with --variants."
                )
            if len(own) < 2:
                raise ValueError(f"{variant} has one seed on {env}, but intervals need at least two.")
        n_points = {len(_numbers(row, "curve")) for row in of_env}
        if 0 in n_points:
            raise ValueError(f"There are rows without a curve on {env}: choose files that have one.")
        if len(n_points) != 1:
            raise ValueError(f"The runs on {env} have different numbers of evaluations: choose files with the same --points.")
        is_one_processor = len({row.get("processor") for row in of_env}) == 1
        timed = [variant for variant, own in runs.items() if is_one_processor and all(row.get("times") for row in own)]
        tasks.append(
            Task(
                env,
                int(of_env[0]["steps"]),
                {variant: np.array([float(row["return"]) for row in own]) for variant, own in runs.items()},
                {variant: np.array([_numbers(row, "curve") for row in own]) for variant, own in runs.items()},
                {variant: np.array([_numbers(row, "times") for row in runs[variant]]) for variant in timed},
            )
        )
    return tasks


def reference_of(tasks: list[Task], name: str | None) -> str | None:
    """What scores are relative to; None if there is nothing.

    :raises ValueError: there is no such variant
    """
    variants = list(tasks[0].final)
    if name is None:
        return next((each for each in REFERENCES if each in variants), None)
    if name not in variants and not name.startswith(PREFIX):
        refuse("--reference", name, f"one of {', '.join(map(repr, variants))}, or {PREFIX!r} with an algorithm")
    return name


def scale(task: Task, reference: str) -> tuple[float, float]:
    """The returns of uniformly random actions, whose score is 0, and of the reference, whose mean score is 1.

    :raises ValueError: it is not better than random, or nothing is published
    """
    low = random_return(task.env)
    if reference in task.final:
        high = float(task.final[reference].mean())
    else:
        name = reference.removeprefix(PREFIX)
        found = [each.mean for each in published_at(task.env, task.steps) if each.algorithm == name]
        if not found:
            raise ValueError(f"docs/{PUBLISHED.name} has nothing of {name!r} on {task.env} at {task.steps:,} steps.")
        high = found[0]
    if high <= low:
        raise ValueError(
            f"`--reference` is {reference!r}, whose return on {task.env} is {high:.0f}, but it must be above that of random "
            f"actions, {low:.0f}."
        )
    return low, high


def final_scores(tasks: list[Task], reference: str) -> dict[str, Array]:
    """Scores of the last policies, runs × tasks, by variant.

    :raises ValueError: tasks with different numbers of seeds
    """
    columns: dict[str, list[Array]] = {variant: [] for variant in tasks[0].final}
    for task in tasks:
        low, high = scale(task, reference)
        for variant, returns in task.final.items():
            columns[variant].append((returns - low) / (high - low))
    for variant, scores in columns.items():
        if len({len(column) for column in scores}) > 1:
            raise ValueError(f"{variant} has different numbers of seeds on the tasks: choose with --seeds.")
    return {variant: np.stack(scores, axis=1) for variant, scores in columns.items()}


def curves_over_time(task: Task, n_points: int = 40) -> tuple[Array, dict[str, Array]]:
    """Returns over seconds of training, as long as every run of a variant lasts: (n_points,), and (n, n_points) by variant.

    Between two evaluations a run has the return of the earlier one; before the first it has none (nan).
    """
    last = max(times[:, -1].min() for times in task.times.values())
    grid = np.linspace(last / n_points, last, n_points)
    by_variant = {}
    for variant, times in task.times.items():
        returns = np.full((len(times), n_points), np.nan)
        for number, (own_times, own_returns) in enumerate(zip(times, task.curves[variant], strict=True)):
            place = np.searchsorted(own_times, grid, side="right") - 1
            known = (place >= 0) & (grid <= times[:, -1].min())
            returns[number, known] = own_returns[place[known]]
        by_variant[variant] = returns
    return grid, by_variant
