"""Train SoftAC and SB3's SAC with the same settings, and evaluate the deterministic policy at the end.

    python benchmarks/returns.py --env HalfCheetah-v5 --steps 30000 --seeds 0 1 2 --output docs/returns-halfcheetah.csv

Each row of the CSV is one run; everything that a run depends on stands in it. Settings that are not given are the defaults
of the two classes, which agree but for the update of the temperature.
"""

import argparse
import csv
import multiprocessing
import platform
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_softac
from sb3_softac import SoftAC

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SoftAC dual": (SoftAC, {}),
    "SoftAC log": (SoftAC, {"ent_coef_update": "log"}),
    "SoftAC value network": (SoftAC, {"value_network": True}),
    "SB3 SAC": (SAC, {}),
}


def run(job: tuple[str, int, argparse.Namespace]) -> dict[str, Any]:
    """One training run on one thread, and the mean return of 10 episodes with deterministic actions."""
    variant, seed, args = job
    th.set_num_threads(1)
    algorithm, options = VARIANTS[variant]
    model = algorithm(
        "MlpPolicy",
        args.env,
        learning_starts=args.learning_starts,
        learning_rate=args.learning_rate,
        seed=seed,
        device="cpu",
        **options,
    ).learn(args.steps)
    env = model.get_env()
    env.seed(10_000 + seed)
    returns: Any = evaluate_policy(model, env, n_eval_episodes=10, return_episode_rewards=True)[0]
    alpha = model.temperature.value if isinstance(model, SoftAC) else model.log_ent_coef.exp()
    return {
        "variant": variant,
        "env": args.env,
        "steps": args.steps,
        "learning_starts": args.learning_starts,
        "learning_rate": args.learning_rate,
        "seed": seed,
        "return": round(sum(returns) / len(returns), 1),
        "alpha": round(float(alpha), 4),
        "sb3_softac": sb3_softac.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--learning-starts", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["SoftAC dual", "SB3 SAC"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    jobs = [(variant, seed, args) for seed in args.seeds for variant in args.variants]
    rows = []
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for row in pool.imap(run, jobs):
            rows.append(row)
            print(f"{row['variant']:22} seed {row['seed']}: return {row['return']:9.1f}, alpha {row['alpha']:.4f}", flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
