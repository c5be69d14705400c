"""What returns are compared with: those that authors have published, and those of uniformly random actions."""

import csv
import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from harness.plans import check_tasks
from harness.rows import check_place
from sb3_softac.files.atomic import writing

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
    """Add tasks to the file of random returns, or replace theirs; the first episode and the actions have seed 0.

    :raises ValueError: a task cannot be made, or the file not written
    """
    rows = {}
    if RANDOM.exists():
        with RANDOM.open() as file:
            rows = {row["env"]: row for row in csv.DictReader(file)}
    envs = list(envs)
    check_tasks(envs)
    check_place("docs", RANDOM)
    for name in envs:
        returns = random_returns(name, n_episodes)
        figures = {"mean": f"{np.mean(returns):.2f}", "std": f"{np.std(returns):.2f}"}
        rows[name] = {"env": name, "episodes": str(n_episodes), **figures, "gymnasium": gym.__version__}
        print(f"{name}: {figures['mean']} ± {figures['std']}", flush=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=["env", "episodes", "mean", "std", "gymnasium"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
        with writing(RANDOM) as file:
            file.write(text.getvalue().encode())


def random_returns(name: str, n_episodes: int) -> list[float]:
    """Returns of episodes of a task with uniformly random actions."""
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
    return returns
