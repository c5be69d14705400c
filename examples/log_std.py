"""Does SAC need a standard deviation that depends on the state? The experiment that Spinning Up's page on SAC asks for.

    python examples/log_std.py --envs HalfCheetah-v5 Hopper-v5 --steps 50000 --seeds 0 1 2 --output docs/log-std

Trains with log σ(s) as a head of the actor and with log σ as one learned vector, all else equal, and draws the returns of the
deterministic policy and the spread of the actions. Writes OUTPUT.csv and OUTPUT.png; --plot-only draws a CSV again.
"""

import argparse
import csv
import itertools
import multiprocessing
import platform
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen

import numpy as np
import stable_baselines3
import torch as th
from matplotlib import pyplot as plt
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_softac
from sb3_softac import SoftAC

LABELS = {"state": "state-dependent log std", "free": "one learned log std"}
POINTS, EPISODES = 10, 5


class Curve(BaseCallback):
    """Return of the deterministic policy and mean log σ, in equal distances."""

    def __init__(self, env: str, steps: int, seed: int) -> None:
        super().__init__()
        self.eval_env = make_vec_env(env, seed=10_000 + seed)
        self.every = steps // POINTS
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        logged = self.model.logger.name_to_value
        if self.num_timesteps % self.every == 0 and "train/log_std" in logged:  # from the first update on
            mean: Any = evaluate_policy(self.model, self.eval_env, n_eval_episodes=EPISODES)[0]
            self.rows.append(
                {
                    "step": self.num_timesteps,
                    "return": round(float(mean), 1),
                    "log_std": round(logged["train/log_std"], 4),
                    "entropy": round(logged["train/entropy"], 4),
                    "alpha": round(logged["train/ent_coef"], 5),
                }
            )
        return True


def run(job: tuple[str, str, int, int, int]) -> list[dict[str, Any]]:
    """One training run on one thread."""
    env, mode, seed, steps, learning_starts = job
    th.set_num_threads(1)
    curve = Curve(env, steps, seed)
    SoftAC(
        "MlpPolicy",
        env,
        learning_starts=learning_starts,
        policy_kwargs={"log_std_mode": mode},
        seed=seed,
        device="cpu",
    ).learn(steps, callback=curve, log_interval=None)
    settings = {"env": env, "log_std_mode": mode, "seed": seed, "learning_starts": learning_starts}
    versions = {
        "sb3_softac": sb3_softac.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "python": platform.python_version(),
    }
    return [{**settings, **row, **versions} for row in curve.rows]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One column for each task: returns above, log σ below; thin lines are seeds, thick ones their means."""
    envs = list(dict.fromkeys(row["env"] for row in rows))
    figure, axes = plt.subplots(2, len(envs), figsize=(4.5 * len(envs), 6), layout="constrained", squeeze=False, sharex="col")
    for column, env in enumerate(envs):
        for (quantity, label), axis in zip(
            {"return": "return of the deterministic policy", "log_std": "mean log std of the batch"}.items(),
            axes[:, column],
            strict=True,
        ):
            for color, (mode, name) in zip(("C0", "C1"), LABELS.items(), strict=True):
                chosen = [row for row in rows if row["env"] == env and row["log_std_mode"] == mode]
                seeds = [
                    [(int(row["step"]), float(row[quantity])) for row in chosen if row["seed"] == seed]
                    for seed in dict.fromkeys(row["seed"] for row in chosen)
                ]
                for curve in seeds:
                    axis.plot(*np.array(curve).T, color=color, linewidth=0.8, alpha=0.4)
                axis.plot(*np.mean(seeds, axis=0).T, color=color, linewidth=2.2, label=name)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(env)
        axes[1, column].set_xlabel("environment steps")
    axes[0, 0].legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--learning-starts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("log-std"), help="name of CSV and plot, without suffix")
    parser.add_argument("--plot-only", action="store_true")
    args = parser.parse_args()
    table = args.output.with_suffix(".csv")
    if args.plot_only and not table.is_file():
        parser.error(f"--plot-only needs {table}, which does not exist: leave it out to train")
    # The first update follows the step after the random ones, and is logged before the step after that.
    last_point = args.steps // max(args.steps // POINTS, 1) * max(args.steps // POINTS, 1)
    if not args.plot_only and (args.steps < POINTS or last_point < args.learning_starts + 2):
        parser.error(
            f"--steps is {args.steps}, but it must be at least {POINTS}, and so large that one of {POINTS} evaluations comes "
            f"after the first update: more than --learning-starts, which is {args.learning_starts}"
        )
    if not args.plot_only:
        jobs = [(*job, args.steps, args.learning_starts) for job in itertools.product(args.envs, LABELS, args.seeds)]
        rows: list[dict[str, Any]] = []
        table.parent.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
            for curve in pool.imap(run, jobs):
                rows += curve
                last = curve[-1]
                print(f"{last['env']} {last['log_std_mode']:6} seed {last['seed']}: return {last['return']}", flush=True)
                with table.open("w", newline="") as file:
                    writer = csv.DictWriter(file, fieldnames=list(last))
                    writer.writeheader()
                    writer.writerows(rows)
    with table.open() as file:
        draw(list(csv.DictReader(file)), args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
