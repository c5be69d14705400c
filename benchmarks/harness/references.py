"""What returns are compared with: those that authors have published, and those of uniformly random actions."""

import csv
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED, RANDOM = DOCS / "published-returns.csv", DOCS / "random-returns.csv"
#: what names a published algorithm as a reference
PREFIX = "published "


@dataclass(frozen=True)
class Published:
    """Mean and standard deviation over seeds of an algorithm on a task at a step."""

    algorithm: str
    task: str
    steps: int
    n_seeds: int
    mean: float
    deviation: float


def family(task: str) -> str:
    """A task without its version."""
    return task.rpartition("-v")[0]


@functools.cache
def all_published() -> list[Published]:
    with PUBLISHED.open() as file:
        return [
            Published(algorithm, task, int(steps), int(seeds), float(mean), float(deviation))
            for algorithm, task, steps, seeds, mean, deviation in list(csv.reader(file))[1:]
        ]


def published_algorithms() -> set[str]:
    return {each.algorithm for each in all_published()}


def published(env: str) -> list[Published]:
    """All figures for a task, whose version may be another one."""
    return [each for each in all_published() if family(each.task) == family(env)]


def published_at(env: str, steps: int) -> list[Published]:
    """Those at one step, the highest first."""
    return sorted((each for each in published(env) if each.steps == steps), key=lambda each: -each.mean)


def random_return(env: str) -> float:
    """The mean return of uniformly random actions.

    :raises ValueError: it is not measured
    """
    with RANDOM.open() as file:
        found = [float(row["mean"]) for row in csv.DictReader(file) if row["env"] == env]
    if not found:
        raise ValueError(f"docs/{RANDOM.name} has no row of {env}: `benchmarks/returns.py --random --env {env}` measures it.")
    return found[0]


def measure_random(envs: Iterable[str], n_episodes: int = 100) -> None:
    """Add tasks to the file of random returns, or replace theirs; the first episode and the actions have seed 0."""
    rows = {}
    if RANDOM.exists():
        with RANDOM.open() as file:
            rows = {row["env"]: row for row in csv.DictReader(file)}
    for name in envs:
        env = gym.make(name)
        env.action_space.seed(0)
        returns = []
        for episode in range(n_episodes):
            env.reset(seed=0 if episode == 0 else None)
            total, is_over = 0.0, False
            while not is_over:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, is_over = total + float(reward), terminated or truncated
            returns.append(total)
        env.close()
        figures = {"mean": f"{np.mean(returns):.2f}", "std": f"{np.std(returns):.2f}"}
        rows[name] = {"env": name, "episodes": str(n_episodes), **figures, "gymnasium": gym.__version__}
        print(f"{name}: {figures['mean']} ± {figures['std']}", flush=True)
    with RANDOM.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["env", "episodes", "mean", "std", "gymnasium"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
