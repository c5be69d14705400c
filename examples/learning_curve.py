"""Evaluate the newest complete RL Zoo run of SoftAC on a task, draw its learning curve, and say how to go on.

    python examples/learning_curve.py --env Pendulum-v1

A run is complete when RL Zoo has saved its agent (at the end of the training) and its evaluations (``--eval-freq``).
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen

import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from rl_zoo3 import create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results

from sb3_softac import SoftAC

WINDOW = 10  # training episodes behind one mean


def newest_complete_run(runs: Path, env: str) -> Path:
    """The folder of the newest run that has an agent and evaluations; each newer one is named with what it lacks.

    :param runs: RL Zoo's folder of the algorithm, such as ``logs/softac``
    :param env: name of the task, as RL Zoo writes it
    :raises FileNotFoundError: there is none
    """
    numbered = {
        int(match[1]): path for path in runs.glob("*") if (match := re.fullmatch(rf"{re.escape(env)}_(\d+)", path.name))
    }
    for _, folder in sorted(numbered.items(), reverse=True):
        missing = [name for name in (f"{env}.zip", "evaluations.npz") if not (folder / name).is_file()]
        if not missing:
            return folder
        print(
            f"Skipped {folder}: {' and '.join(missing)} missing (unfinished, or trained without evaluations)", file=sys.stderr
        )
    raise FileNotFoundError(
        f"there is no complete run of softac on {env} in {runs.parent}: train one with "
        f"`python -m rl_zoo3.train --algo softac --env {env} -f {runs.parent} --eval-freq N`, N below its number of steps"
    )


def training_returns(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Environment steps at the end of each training episode, and the mean return of the last ``WINDOW`` ones, (n,) each."""
    episodes = load_results(str(folder))
    return episodes["l"].cumsum().to_numpy(), episodes["r"].rolling(WINDOW, min_periods=1).mean().to_numpy()


def draw(folder: Path, title: str, path: Path) -> None:
    """Returns against environment steps: of the deterministic policy in evaluations, and of the exploring one in training.

    :param folder: of a complete run
    :param title: of the plot
    :param path: file to write
    """
    evaluations = np.load(folder / "evaluations.npz")
    steps, returns = evaluations["timesteps"], evaluations["results"]  # (n,), (n, episodes)
    mean, std, episodes = returns.mean(axis=1), returns.std(axis=1), returns.shape[1]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(steps, mean, "o-", markersize=4, label=f"evaluation: deterministic policy, mean return of {episodes} episodes")
    deviation = f"± one standard deviation over these {episodes} episodes"
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2, linewidth=0, label=deviation)
    best = mean.argmax()
    axes.plot(steps[best], mean[best], "*", color="C3", markersize=13, label=f"best model: {mean[best]:.1f}")
    training = f"training: sampled actions, mean return of the last {WINDOW} episodes"
    axes.plot(*training_returns(folder), color="C1", linewidth=1.2, label=training)
    axes.set(title=title, xlabel="environment steps", ylabel="return of an episode")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def evaluate(model_path: Path, saved: Path, env: str, episodes: int) -> str:
    """Return of the deterministic policy on the task as it was trained, with its wrappers and normalization.

    :param model_path: the agent
    :param saved: folder of its hyperparameters
    :param env: id of the task
    :param episodes: how many
    :return: mean and standard deviation over the episodes
    """
    hyperparams, stats_path = get_saved_hyperparams(str(saved), test_mode=True)
    task = create_test_env(
        env,
        stats_path=stats_path,
        seed=10_000,  # other initial states than in the evaluations of the training
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=hyperparams.pop("env_kwargs", None),
    )
    returns: Any = evaluate_policy(SoftAC.load(model_path), task, n_eval_episodes=episodes, return_episode_rewards=True)[0]
    task.close()
    return f"{np.mean(returns):.1f} ± {np.std(returns):.1f}"


def print_table(folder: Path) -> None:
    """One line for each evaluation, with the training return at that time."""
    evaluations = np.load(folder / "evaluations.npz")
    trained_steps, trained = training_returns(folder)
    print(f"\n{'steps':>9}  {f'training return (last {WINDOW} episodes)':>34}  {'evaluation return':>19}")
    for step, returns in zip(evaluations["timesteps"], evaluations["results"], strict=True):
        before = trained[trained_steps <= step]
        training = f"{before[-1]:.1f}" if len(before) else "no episode yet"
        print(f"{step:9d}  {training:>34}  {returns.mean():10.1f} ± {returns.std():6.1f}")


def next_command(folder: Path, env: str, logs: Path) -> str:
    """The command that runs the best model of a run, as it can be pasted here."""
    script = Path(sys.executable).with_name("rl_zoo3")
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    number = folder.name.rpartition("_")[2]
    return f"{script} enjoy --algo softac --env {env} -f {logs} --exp-id {number} --load-best --no-render"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="log folder that was given to RL Zoo")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of the final evaluation")
    args = parser.parse_args()
    if args.episodes < 1:
        parser.error(f"--episodes is {args.episodes}, but it must be at least 1")
    name = EnvironmentName(args.env)
    try:
        folder = newest_complete_run(args.logs / "softac", name)
    except FileNotFoundError as error:
        parser.error(str(error))
    saved = folder / name
    seed = yaml.unsafe_load((saved / "args.yml").read_text())["seed"]  # RL Zoo's own file, with tags of Python
    last, best, picture = folder / f"{name}.zip", folder / "best_model.zip", folder / "learning_curve.png"
    draw(folder, f"SoftAC on {args.env}: one training run, seed {seed}", picture)
    print_table(folder)
    new = f"(mean ± standard deviation over {args.episodes} new episodes)"
    print(f"\nLast model: {last}, evaluation return {evaluate(last, saved, args.env, args.episodes)} {new}")
    print(f"Best model: {best}, evaluation return {evaluate(best, saved, args.env, args.episodes)} {new}")
    print(f"Learning curve: {picture}")
    print("\nRun the best model (leave out --no-render to watch it, which needs the extra zoo):")
    print(f"  {next_command(folder, args.env, args.logs)}")


if __name__ == "__main__":
    main()
