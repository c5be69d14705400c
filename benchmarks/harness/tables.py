"""Rows of files, chosen and checked, and printed seed by seed."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from harness import rows as files
from harness.rows import Row


def load(
    paths: Iterable[Path],
    envs: list[str] | None = None,
    variants: list[str] | None = None,
    seeds: list[int] | None = None,
    steps: int | None = None,
) -> list[Row]:
    """The rows of files, or those of some tasks, variants, seeds and steps.

    :raises ValueError: a file is not there or cut, nothing is left, or rows that would be mixed up
    """
    rows = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{str(path)!r} is not there.")
        rows += files.read(path)
    chosen = [
        row
        for row in rows
        if (not envs or row["env"] in envs)
        and (not variants or row["variant"] in variants)
        and (not seeds or int(row["seed"]) in seeds)
        and (not steps or int(row["steps"]) == steps)
    ]
    if not chosen:
        raise ValueError(f"No row of {', '.join(map(str, paths))} is of what is asked for.")
    check(chosen)
    return chosen


def _check_settings(rows: list[Row]) -> None:
    """:raises ValueError: rows of one variant on one task have different settings, so they are no seeds of one thing"""
    first = {"algorithm": files.algorithm_of(rows[0]), **json.loads(rows[0].get("settings") or "{}")}
    for row in rows[1:]:
        other = {"algorithm": files.algorithm_of(row), **json.loads(row.get("settings") or "{}")}
        differing = sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
        if differing and rows[0]["seed"] != row["seed"]:
            values = " and ".join(repr(each.get(differing[0])) for each in (first, other))
            raise ValueError(
                f"{row['variant']} on {row['env']} has rows of different settings: {differing[0]} is {values} with seeds "
                f"{rows[0]['seed']} and {row['seed']}. Choose files or --seeds of one, or give one of them a name in a plan."
            )


def check(rows: list[Row]) -> None:
    """:raises ValueError: unequal steps on a task, two rows of a run, different settings of a variant, or unequal seeds"""
    for env in dict.fromkeys(row["env"] for row in rows):
        of_env = [row for row in rows if row["env"] == env]
        steps = sorted({int(row["steps"]) for row in of_env})
        if len(steps) > 1:
            raise ValueError(f"There are runs of {' and '.join(f'{n:,}' for n in steps)} steps on {env}: choose with --steps.")
        for variant in dict.fromkeys(row["variant"] for row in of_env):
            _check_settings([row for row in of_env if row["variant"] == variant])
        seeds: dict[str, list[int]] = {}
        for row in of_env:
            seeds.setdefault(row["variant"], []).append(int(row["seed"]))
        every = set().union(*seeds.values())
        for variant, own in seeds.items():
            if len(own) > len(set(own)):
                twice = next(seed for seed in own if own.count(seed) > 1)
                raise ValueError(f"{variant} on {env} has two rows of seed {twice}, with other settings: give files with one.")
            lacking = sorted(every - set(own))
            if lacking:
                common = sorted(set.intersection(*map(set, seeds.values())))
                hint = f", or choose --seeds {' '.join(map(str, common))}, which all have" if common else ""
                raise ValueError(
                    f"{variant} on {env} has no row of seed {', '.join(map(str, lacking))}, but others do: let the plan go "
                    f"on{hint}."
                )


def at(rows: list[Row], step: int) -> list[Row]:
    """Rows with the evaluation at a step in place of the return, and without what is known of the end only.

    :raises ValueError: a run has no evaluation there
    """
    found = []
    for row in rows:
        curve, steps = row.get("curve", "").split(), int(row["steps"])
        place, rest = divmod(step * len(curve), steps)
        if rest or not 1 <= place <= len(curve):
            raise ValueError(
                f"--at is {step:,}, but {row['variant']} on {row['env']} has {len(curve)} evaluations in {steps:,} steps, the "
                "first and each further one after the same number of steps: choose a step of one."
            )
        found.append({**row, "steps": str(step), "return": curve[place - 1], "best": "", "alpha": ""})
    return found


def table(rows: list[Row]) -> str:
    """Returns by variant and seed, their mean, and the mean of the best evaluation of each run; one table for each task."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    parts = []
    for env in envs:
        of_env = [row for row in rows if row["env"] == env]
        heading = f"{env}, {int(of_env[0]['steps']):,} steps\n\n" if len(envs) > 1 else ""
        parts.append(heading + _of_task(of_env))
    return "\n\n".join(parts)


def _of_task(rows: list[Row]) -> str:
    seeds = sorted({row["seed"] for row in rows}, key=int)
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | best evaluation | alpha |"]
    lines.append("|---" * (len(seeds) + 4) + "|")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        runs = {row["seed"]: row for row in rows if row["variant"] == variant}
        returns = [f"{float(runs[seed]['return']):.0f}" for seed in seeds]
        mean = statistics.mean(float(run["return"]) for run in runs.values())
        best = [float(run["best"]) for run in runs.values() if run.get("best")]
        alphas = [float(run["alpha"]) for run in runs.values() if run.get("alpha")]
        best_mean = f"{statistics.mean(best):.0f}" if best else ""
        alpha = f"{statistics.mean(alphas):.2g}" if alphas else ""
        lines.append(f"| {variant} | {' | '.join(returns)} | {mean:.0f} | {best_mean} | {alpha} |")
    return "\n".join(lines)
