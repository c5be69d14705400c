"""Logs that are made up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softac.report.data import Episodes, Evaluations, Run, Series, Settings
from sb3_softac.report.settings import defaults_of

STEPS = np.arange(1, 41, dtype=np.float64) * 1000  # 40 logs in 40,000 steps


def series(values: Any) -> Series:
    """A metric at ``STEPS``: a number, or a function of the share of the run that is done."""
    shares = (STEPS - STEPS[0]) / (STEPS[-1] - STEPS[0])
    made = np.array([values(share) for share in shares]) if callable(values) else np.full(len(STEPS), float(values))
    return Series(STEPS, made.astype(np.float64))


def episodes(returns: Sequence[float], lengths: int | Sequence[int] = 100) -> Episodes:
    n = len(returns)
    counted = np.full(n, lengths, np.float64) if isinstance(lengths, int) else np.array(lengths, np.float64)
    return Episodes(np.array(returns, np.float64), counted, np.arange(1.0, n + 1), 1e9)


def evaluations(steps: Sequence[float], returns: Sequence[float]) -> Evaluations:
    return Evaluations(np.array(steps, np.float64), np.array(returns, np.float64)[:, None])


def run(
    *,
    given: Mapping[str, Any] | None = None,
    algorithm: str | None = "SoftAC",
    known: bool = True,
    episodes: Episodes | None = None,
    evaluations: Evaluations | None = None,
    n_dimensions: int | None = None,
    unread: Sequence[str] = (),
    **metrics: Any,
) -> Run:
    """A run with settings; metrics by their names, with ``__`` for the slash."""
    settings = Settings(given or {}, defaults_of(algorithm), "made" if known else None, frozenset(unread), n_dimensions)
    named = {name.replace("__", "/"): series(values) for name, values in metrics.items()}
    return Run("made", Path("made"), "Task-v0", algorithm, 0, named, episodes, evaluations, settings)


def write_monitor(
    folder: Path, rows: Sequence[tuple[float, int, float]], start: float = 1000.0, name: str = "monitor.csv"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"t_start": start, "env_id": "Pendulum-v1"})
    lines = [f"#{header}", "r,l,t", *(f"{r},{length},{t}" for r, length, t in rows)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def write_progress(folder: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    path = folder / "progress.csv"
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def write_evaluations(folder: Path, steps: Sequence[float], returns: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "evaluations.npz"
    np.savez(path, timesteps=np.array(steps), results=np.array(returns), ep_lengths=np.ones_like(np.array(returns)))
    return path


def write_run(folder: Path, n_episodes: int = 30, shift: float = 0.0) -> Path:
    """A run of SoftAC with every file that SB3 writes beside the TensorBoard's."""
    rng = np.random.default_rng(int(shift))
    rows = [(float(shift + index + rng.normal()), 100, 0.5 * (index + 1)) for index in range(n_episodes)]
    write_monitor(folder, rows)
    steps = [100 * (index + 1) for index in range(n_episodes)]
    write_progress(
        folder,
        {
            "time/total_timesteps": steps,
            "train/ent_coef": [0.1] * n_episodes,
            "train/entropy": [-1.0 + 0.1 * (-1) ** index for index in range(n_episodes)],
            "train/target_entropy": [-1.0] * n_episodes,
            "train/q_value": [5.0 + shift] * n_episodes,
            "train/critic_loss": [0.5 * 10 ** (index / 10) for index in range(n_episodes)],
            "rollout/discounted_return": [6.0 + shift] * n_episodes,
        },
    )
    write_evaluations(folder, [1000, 2000, 3000], [[1.0, 2.0], [3.0, 4.0], [5.0 + shift, 6.0]])
    return folder
