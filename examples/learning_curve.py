"""Evaluate the newest RL Zoo run of SoftAC on a task, and draw its learning curve.

python examples/learning_curve.py --env Pendulum-v1
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen

import numpy as np
from matplotlib import pyplot as plt
from rl_zoo3 import get_latest_run_id
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_softac import SoftAC


def draw(evaluations: Any, title: str, path: Path) -> None:
    """Mean return against environment steps, with one standard deviation over the evaluation episodes."""
    steps, mean, std = evaluations["timesteps"], evaluations["results"].mean(axis=1), evaluations["results"].std(axis=1)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2, linewidth=0)
    axes.plot(steps, mean, marker="o", markersize=4)
    axes.set(title=title, xlabel="environment steps", ylabel="return of the deterministic policy")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="log folder that was given to RL Zoo")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of the final evaluation")
    args = parser.parse_args()
    runs = args.logs / "softac"
    folder = runs / f"{args.env}_{get_latest_run_id(str(runs), args.env)}"
    if not folder.is_dir():
        parser.error(f"there is no run of softac on {args.env} in {args.logs}")
    model = SoftAC.load(folder / f"{args.env}.zip")
    env = make_vec_env(args.env, seed=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a policy may be trained with wrappers that this plain task lacks
        returns: Any = evaluate_policy(model, env, n_eval_episodes=args.episodes, return_episode_rewards=True)[0]
    print(
        f"Final deterministic evaluation of {folder}: "
        f"mean return {np.mean(returns):.1f} ± {np.std(returns):.1f} over {args.episodes} episodes"
    )
    picture = folder / "learning_curve.png"
    draw(np.load(folder / "evaluations.npz"), f"SoftAC on {args.env}", picture)
    print(f"Learning curve: {picture}")


if __name__ == "__main__":
    main()
