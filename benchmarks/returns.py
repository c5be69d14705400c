"""Train SoftAC, SoftQL and their peers with the same number of environment steps, and evaluate the deterministic policy.

    python benchmarks/returns.py --env HalfCheetah-v5 --steps 30000 --seeds 0 1 2 --output docs/returns-halfcheetah.csv

Each row of the CSV is one run; everything that a run depends on stands in it. Learning starts after 1,000 random steps, at a
learning rate of 3e-4; all else has the defaults of the classes. With --zoo the settings come from the hyperparameter files:
hyperparams/softac.yml for SoftAC, softql.yml for SoftQL, RL Zoo's own tuned file for a peer; --set overrides those of ours.
--table prints CSV files as a Markdown table, and --plot draws their evaluations over the steps.

Runs that stand in the CSV already are not done again: the same command goes on with those that are missing. With
--checkpoints FOLDER a run that was killed goes on from its newest checkpoint.
"""

import argparse
import csv
import json
import multiprocessing
import platform
import shutil
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import stable_baselines3
import torch as th
import yaml
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_softac
from sb3_softac import SoftAC, SoftQL, presets
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.zoo import hyperparams_path

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SoftAC": (SoftAC, {}),
    "SoftAC dual": (SoftAC, {"ent_coef_update": "dual"}),
    "SoftAC log": (SoftAC, {"ent_coef_update": "log"}),
    "SoftAC value network": (SoftAC, {"value_network": True}),
    **{f"SoftAC scale {scale}": (SoftAC, {"target_entropy_scale": scale}) for scale in (0.98, 0.89, 0.7, 0.5, 0.3)},
    "TQC": (SoftAC, dict(presets.TQC)),
    "CROSSQ": (SoftAC, dict(presets.CROSSQ)),
    "CROSSQ_SMALL": (SoftAC, dict(presets.CROSSQ_SMALL)),
    "SoftQL": (SoftQL, {}),
    "SoftQL published": (SoftQL, dict(presets.SOFTQLEARNING)),
    "SoftQL softlearning": (SoftQL, dict(presets.SOFTLEARNING_SQL)),
    "SB3 SAC": (SAC, {}),
    "SB3 DQN": (DQN, {}),
}


class Evaluations(BaseCallback):
    """Mean return of ``n_episodes`` deterministic episodes, ``n_points`` times in equal distances."""

    def __init__(self, env: str, steps: int, n_points: int, n_episodes: int, seed: int) -> None:
        super().__init__()
        self.eval_env = make_vec_env(env, seed=seed)
        self.every = max(steps // n_points, 1)
        self.n_episodes = n_episodes
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            mean: Any = evaluate_policy(self.model, self.eval_env, n_eval_episodes=self.n_episodes)[0]
            self.returns.append(round(float(mean), 1))
        return True


def zoo_settings(algorithm: Any, env: str) -> dict[str, Any]:
    """The constructor arguments that RL Zoo would take from the file of ``algorithm`` for ``env``."""
    theirs = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algorithm.__name__.lower()}.yml"
    ours = algorithm.__name__.lower() if algorithm in (SoftAC, SoftQL) else None
    entry = yaml.safe_load((hyperparams_path(ours) if ours else theirs).read_text())[env]
    settings = {name: value for name, value in entry.items() if name not in ("n_timesteps", "policy", "preset")}
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = eval(settings["policy_kwargs"])  # as RL Zoo does
    return presets.get(entry["preset"], **settings) if "preset" in entry else settings


def entropy_coefficient(model: Any) -> float | str:
    """α of SoftAC or SB3's SAC, learned or fixed, rounded; nothing for algorithms that have none."""
    if isinstance(model, SoftAC | SoftQL):
        alpha = model.temperature.value
    elif isinstance(model, SAC):
        alpha = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.exp()
    else:
        return ""
    return round(alpha.item(), 4)  # `float` of a tensor that requires a gradient warns


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def settings_of(variant: str, env: str, args: argparse.Namespace) -> dict[str, Any]:
    """Constructor arguments of a variant."""
    algorithm, options = VARIANTS[variant]
    settings: dict[str, Any] = {"learning_starts": 1000, "learning_rate": 3e-4}
    if args.zoo:
        settings = zoo_settings(algorithm, env)
    settings |= options
    if algorithm in (SoftAC, SoftQL):
        settings |= {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    return settings


def run(job: tuple[str, str, int, argparse.Namespace]) -> dict[str, Any]:
    """One training run on one thread, and the mean return of its last evaluation."""
    variant, env, seed, args = job
    th.set_num_threads(1)
    algorithm, settings = VARIANTS[variant][0], settings_of(variant, env, args)
    curve: Any = Evaluations(env, args.steps, args.points, 10, seed=10_000 + seed)
    folder = args.checkpoints and args.checkpoints / f"{variant}-{env}-{args.steps}-{seed}".replace(" ", "_")
    callback: Any = curve
    if folder and algorithm in (SoftAC, SoftQL):
        callback = CallbackList([curve, ExactCheckpointCallback(max(args.steps // 10, 1), folder, keep=1)])
    start = time.perf_counter()
    if folder and any(folder.glob("checkpoint-*")):  # none: it was killed before the first
        model = algorithm.resume(folder, make_vec_env(env, seed=seed), device="cpu")
        model.learn(callback=callback, log_interval=None)
    else:
        model = algorithm("MlpPolicy", make_vec_env(env, seed=seed), seed=seed, device="cpu", **settings)
        model.learn(args.steps, callback=callback, log_interval=None)
    seconds = time.perf_counter() - start
    final: Any = evaluate_policy(model, curve.eval_env, n_eval_episodes=args.episodes)[0]
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "variant": variant,
        "env": env,
        "steps": args.steps,
        "seed": seed,
        "return": round(float(final), 1),
        "best": max(curve.returns),
        "curve": " ".join(map(str, curve.returns)),
        "alpha": entropy_coefficient(model),
        "entropy": round(model.logger.name_to_value.get("train/entropy", float("nan")), 4),
        "settings": json.dumps(settings),
        "episodes": args.episodes,
        "seconds": round(seconds),
        "processor": processor(),
        "sb3_softac": sb3_softac.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "rl_zoo3": rl_zoo3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "python": platform.python_version(),
    }


def is_same(row: dict[str, Any], job: tuple[str, str, int, argparse.Namespace]) -> bool:
    """Whether a row of a CSV file is of this run."""
    variant, env, seed, args = job
    here = (variant, env, str(seed), str(args.steps), json.dumps(settings_of(variant, env, args)))
    return (row["variant"], row["env"], row["seed"], row["steps"], row["settings"]) == here


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the rows of ``path``."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def table(paths: list[Path]) -> str:
    """Returns by variant and seed, their mean, and the mean of the best evaluation of each run."""
    rows = [row for path in paths for row in csv.DictReader(path.open())]
    seeds = sorted({row["seed"] for row in rows}, key=int)
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | best evaluation | alpha |"]
    lines.append("|---" * (len(seeds) + 4) + "|")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        runs = {row["seed"]: row for row in rows if row["variant"] == variant}
        returns = [f"{float(runs[seed]['return']):.0f}" for seed in seeds]
        mean, best = (statistics.mean(float(run[name]) for run in runs.values()) for name in ("return", "best"))
        alphas = [float(run["alpha"]) for run in runs.values() if run["alpha"]]
        alpha = f"{statistics.mean(alphas):.2g}" if alphas else ""
        lines.append(f"| {variant} | {' | '.join(returns)} | {mean:.0f} | {best:.0f} | {alpha} |")
    return "\n".join(lines)


def plot(paths: list[Path], output: Path) -> None:
    """The evaluations of every run over its steps, a colour for each variant."""
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no screen
    from matplotlib import pyplot as plt

    rows = [row for path in paths for row in csv.DictReader(path.open())]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        curve = [float(value) for value in row["curve"].split()]
        steps = [int(row["steps"]) * (place + 1) / len(curve) for place in range(len(curve))]
        number = variants.index(row["variant"])
        is_first = row is next(other for other in rows if other["variant"] == row["variant"])
        axis.plot(steps, curve, color=f"C{number}", label=row["variant"] if is_first else None)
    axis.set_title(", ".join(dict.fromkeys(row["env"] for row in rows)))
    axis.set_xlabel("environment steps")
    axis.set_ylabel("return of the deterministic policy")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["HalfCheetah-v5"])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--zoo", action="store_true", help="tuned settings from the hyperparameter files")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["SoftAC dual", "SB3 SAC"])
    parser.add_argument("--points", type=int, default=10, help="evaluations during training")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of the last evaluation")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="go on with runs that were killed")
    parser.add_argument("--table", type=Path, nargs="+", metavar="CSV")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --table: draw the curves of its files, too")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        if args.plot:
            plot(args.table, args.plot)
        return
    if args.output is None:
        parser.error("--output is needed")
    jobs = [(variant, env, seed, args) for seed in args.seeds for env in args.env for variant in args.variants]
    rows = list(csv.DictReader(args.output.open())) if args.output.exists() else []
    jobs = [job for job in jobs if not any(is_same(row, job) for row in rows)]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for row in pool.imap_unordered(run, jobs):
            rows.append(row)
            print(
                f"{row['variant']:22} {row['env']:15} seed {row['seed']}: return {row['return']:9.1f}, "
                f"alpha {row['alpha']}, {row['seconds']} s",
                flush=True,
            )
            write(args.output, rows)


if __name__ == "__main__":
    main()
