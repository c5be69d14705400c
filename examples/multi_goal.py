"""Four goals, and a policy that goes to all of them: what soft Q-learning can and SAC cannot (1702.08165, figure 1).

    python examples/multi_goal.py --seeds 0 1 2 --output docs/multi-goal

A point in the plane starts in the middle of four goals that are equally good. Trains SoftQL, SoftAC as it is by default, and
SoftAC at the fixed temperature of SoftQL, for the same number of steps; samples 200 paths of each policy, and counts which
goals they reach. Writes OUTPUT.csv, a row for each run, which is not repeated where it is there already, and OUTPUT.png, of
the first seed; --plot-only draws again.

    python examples/multi_goal.py --transfer --seeds 0 1 2 3 4 --output docs/multi-goal-transfer

Then one goal alone counts, and SoftQL learns to reach it: from scratch, and from what the run of seed 0 above has learned. A
row for each run has the share of 50 sampled paths that reach the goal, after every 500 steps.
"""

import argparse
import csv
import json
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import stable_baselines3
import torch as th

import sb3_softac
from sb3_softac import SoftAC, SoftQL

Array = npt.NDArray[np.float32]
GOALS: Array = np.array([(5.0, 0.0), (-5.0, 0.0), (0.0, 5.0), (0.0, -5.0)], np.float32)
#: sampled paths that are counted after a training, drawn, and counted at each look during the transfer
COUNTED, DRAWN, LOOKED_AT = 200, 100, 50
#: the states at which the picture shows Q
STATES = ((-2.5, 0.0), (0.0, 0.0), (2.5, 2.5))
COMMON: dict[str, Any] = {
    "learning_rate": 3e-4,
    "batch_size": 64,
    "learning_starts": 1000,
    "policy_kwargs": {"net_arch": [128, 128]},
}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SoftQL": (SoftQL, {"ent_coef": 1.0, "reward_scale": 0.1, "kernel_particles": 32, "value_particles": 16}),
    "SoftAC": (SoftAC, {"ent_coef": "auto"}),
    "SoftAC, fixed": (SoftAC, {"ent_coef": 1.0, "reward_scale": 0.1}),
}


class MultiGoal(gym.Env[Array, Array]):
    """A point that moves by its action, at most 1 in each direction; an episode ends at a goal, or after 30 steps.

    The reward of a step from x to x' with action a is −30·‖a‖² − min_g ‖x' − g‖², and 10 more within 1 of a goal.

    :param goals: those that count, (G, 2)
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own annotation

    def __init__(self, goals: Array = GOALS) -> None:
        self.goals = np.asarray(goals, np.float32)
        self.observation_space = gym.spaces.Box(-7.0, 7.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.position: Array = np.zeros(2, np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start near the middle, N(0, 0.1²)."""
        super().reset(seed=seed, options=options)
        self.position = self.np_random.normal(0.0, 0.1, 2).astype(np.float32)
        self.steps = 0
        return self.position.copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move."""
        action = np.clip(action, -1.0, 1.0)
        self.position = np.clip(self.position + action, -7.0, 7.0).astype(np.float32)
        squared = ((self.goals - self.position) ** 2).sum(axis=1)
        reached = bool(squared.min() < 1.0)
        reward = -30.0 * float((action**2).sum()) - float(squared.min()) + 10.0 * reached
        self.steps += 1
        info = {"goal": int(squared.argmin()) if reached else -1}
        return self.position.copy(), reward, reached, self.steps >= 30 and not reached, info


def rollouts(model: Any, n_paths: int, seed: int, goals: Array = GOALS) -> tuple[list[Array], list[int]]:
    """Paths of the sampled policy.

    :return: the positions of each path, and the goal that it reached, −1 for none
    """
    env = MultiGoal(goals)
    paths, reached = [], []
    for number in range(n_paths):
        obs, _ = env.reset(seed=seed if number == 0 else None)
        path, done, info = [obs], False, {"goal": -1}
        while not done:
            action, _ = model.predict(obs, deterministic=False)
            obs, _, terminated, truncated, info = env.step(action)
            path.append(obs)
            done = terminated or truncated
        paths.append(np.stack(path))
        reached.append(info["goal"])
    return paths, reached


def train(algorithm: str, seed: int, steps: int, settings: dict[str, Any]) -> Any:
    """A trained model of ``algorithm``."""
    kind, own = ALGORITHMS[algorithm]
    model = kind("MlpPolicy", MultiGoal(), seed=seed, device="cpu", **{**COMMON, **own, **settings})
    return model.learn(steps, log_interval=None)


def run(job: tuple[str, int, int, Path, dict[str, Any]]) -> dict[str, Any]:
    """One training run on one thread, and where its sampled paths end."""
    algorithm, seed, steps, folder, settings = job
    th.set_num_threads(1)
    start = time.perf_counter()
    model = train(algorithm, seed, steps, settings)
    seconds = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / f"{algorithm}-{seed}")
    th.manual_seed(seed)
    _, reached = rollouts(model, COUNTED, seed=10_000 + seed)
    shares = [reached.count(goal) / len(reached) for goal in range(len(GOALS))]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "steps": steps,
        **{name: round(share, 3) for name, share in zip(("right", "left", "top", "bottom"), shares, strict=True)},
        "any": round(sum(shares), 3),
        "seconds": round(seconds),
        "settings": json.dumps({**COMMON, **ALGORITHMS[algorithm][1], **settings}),
        **versions(),
    }


def versions() -> dict[str, str]:
    """What a run depends on."""
    return {
        "sb3_softac": sb3_softac.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "python": platform.python_version(),
    }


#: a color for each goal, and the one of paths that reach none
COLORS = ("C0", "C1", "C2", "C4", "0.5")
TITLES = {
    "SoftQL": "SoftQL",
    "SoftAC": "SoftAC, learned temperature",
    "SoftAC, fixed": "SoftAC, temperature of SoftQL",
}


def picture(folder: Path, seed: int, path: Path) -> None:
    """Above, paths of all policies in the color of their goal; below, Q and sampled actions of SoftQL in three states."""
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no screen
    from matplotlib import pyplot as plt

    models = {name: kind.load(folder / f"{name}-{seed}", device="cpu") for name, (kind, _) in ALGORITHMS.items()}
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.6), layout="compressed")
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        th.manual_seed(seed)
        draw_paths(axis, *rollouts(model, DRAWN, seed=20_000 + seed))
        axis.set_title(TITLES[name], fontsize=11)
    axes[0, 0].set_ylabel(f"{DRAWN} paths from the middle")
    for letter, state in zip("abc", STATES, strict=True):
        axes[0, 0].annotate(letter, state, ha="center", va="center", fontsize=9, bbox=LABEL)
    for axis, letter, state in zip(axes[1], "abc", STATES, strict=True):
        th.manual_seed(seed)
        filled = draw_q(axis, models["SoftQL"], state)
        axis.set_title(f"SoftQL at {letter}, ({state[0]:g}, {state[1]:g})", fontsize=11)
        axis.set_xlabel("horizontal action")
    axes[1, 0].set_ylabel(f"vertical action: Q (color), {DRAWN} samples")
    figure.colorbar(filled, ax=axes[1], label="Q - max Q", shrink=0.9)
    figure.savefig(path, dpi=110)


LABEL = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "0.2"}


def draw_paths(axis: Any, paths: list[Array], reached: list[int]) -> None:
    """Paths over the distance to the nearest goal, and the share of them that ends at each."""
    x, y = np.meshgrid(np.linspace(-7, 7, 141), np.linspace(-7, 7, 141))
    costs = np.min([(x - goal[0]) ** 2 + (y - goal[1]) ** 2 for goal in GOALS], axis=0)
    axis.contour(x, y, costs, 15, colors="0.88", linewidths=0.8)
    for positions, goal in zip(paths, reached, strict=True):
        axis.plot(*positions.T, color=COLORS[goal], alpha=0.45, linewidth=0.9)
    for number, goal in enumerate(GOALS):
        axis.plot(*goal, "o", color=COLORS[number], markersize=8, markeredgecolor="black")
        above = goal[1] >= 0.0
        text = f"{reached.count(number) / len(reached):.0%}"
        axis.annotate(
            text, goal, (0, 8 if above else -8), textcoords="offset points", ha="center", va="bottom" if above else "top"
        )
    axis.set(xlim=(-7, 7), ylim=(-7, 7), aspect="equal", xticks=(-5, 0, 5), yticks=(-5, 0, 5))


def draw_q(axis: Any, model: Any, state: tuple[float, float]) -> Any:
    """Q over the actions in a state, without its lowest values, and actions of the sampler."""
    actions = th.stack(th.meshgrid(th.linspace(-1, 1, 61), th.linspace(-1, 1, 61), indexing="xy"), dim=-1)
    obs = th.tensor([state])
    with th.no_grad():
        q = model.policy.reduced_q(obs, actions.view(1, -1, 2)).view(61, 61)
        samples = model.actor.particles(obs, model.actor.draw_noise(1, DRAWN)).actions[0]
    filled = axis.contourf(*actions.unbind(2), q - q.max(), np.arange(-5.0, 0.1, 0.5), cmap="Blues", extend="min")
    axis.plot(*samples.T, ".", color="C3", markersize=4)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return filled


TRANSFER = ("from scratch", "from the four goals")
#: environment steps between two looks at the success
EVERY = 500


def transfer(job: tuple[str, int, int, Path, dict[str, Any]]) -> dict[str, Any]:
    """One run on the task with one goal, on one thread: its success over the steps."""
    start, seed, steps, folder, settings = job
    th.set_num_threads(1)
    goals = GOALS[seed % len(GOALS)][None]
    kind, own = ALGORITHMS["SoftQL"]
    # The warm start begins with its own policy, the other one with 200 random steps.
    arguments = {**COMMON, **own, **settings, "learning_starts": 200, "random_steps": None if start == TRANSFER[0] else 0}
    model = kind("MlpPolicy", MultiGoal(goals), seed=seed, device="cpu", **arguments)
    if start != TRANSFER[0]:
        model.warm_start(folder / "SoftQL-0")
    successes = []
    for evaluation in range(steps // EVERY + 1):
        if evaluation:
            model.learn(EVERY, reset_num_timesteps=False, log_interval=None)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(evaluation)
            reached = rollouts(model, LOOKED_AT, seed=30_000 + seed, goals=goals)[1]
        successes.append(1.0 - reached.count(-1) / len(reached))
    solved = [place * EVERY for place, success in enumerate(successes) if success >= 0.9]
    return {
        "start": start,
        "seed": seed,
        "steps": steps,
        "solved_after": solved[0] if solved else "",
        "success": " ".join(f"{success:g}" for success in successes),
        "settings": json.dumps(arguments),
        **versions(),
    }


def transfer_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Success over the steps: the median of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no screen
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for number, start in enumerate(TRANSFER):
        curves = np.array([[float(value) for value in row["success"].split()] for row in rows if row["start"] == start])
        steps = EVERY * np.arange(curves.shape[1])
        axis.plot(steps, np.median(curves, axis=0), color=f"C{1 - number}", label=f"{start} (median of {len(curves)} seeds)")
        axis.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=f"C{1 - number}", alpha=0.15, linewidth=0)
    axis.axhline(0.9, color="0.6", linewidth=0.8, linestyle="--")
    axis.set_xlabel("environment steps of the task with one goal")
    axis.set_ylabel("share of paths that reach the goal")
    axis.set_ylim(-0.02, 1.02)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, none if it is not there."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    if "start" in row:
        return (
            f"{row['start']:20} seed {row['seed']}: 90 % after {row['solved_after'] or 'more than ' + str(row['steps'])} steps"
        )
    goals = ", ".join(f"{goal} {row[goal]:.0%}" for goal in ("right", "left", "top", "bottom"))
    return f"{row['algorithm']:14} seed {row['seed']}: {goals}; any {row['any']:.0%} ({row['seconds']} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfer", action="store_true", help="one goal, from scratch and from the trained model")
    parser.add_argument("--steps", type=int, help="30,000, and 10,000 with --transfer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--set", default="{}", metavar="JSON", help="other settings of both")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="without suffix")
    parser.add_argument("--models", type=Path, default=Path("logs/multi-goal"), help="folder of the trained models")
    parser.add_argument("--plot-only", action="store_true")
    args = parser.parse_args()
    table = args.output.with_suffix(".csv")
    rows: list[dict[str, Any]] = read(table)
    key, names, steps = ("start", TRANSFER, 10_000) if args.transfer else ("algorithm", args.algorithms, 30_000)
    steps = steps if args.steps is None else args.steps
    done = {(row[key], int(row["seed"]), int(row["steps"])) for row in rows}
    jobs = [(name, seed, steps, args.models, json.loads(args.set)) for seed in args.seeds for name in names]
    missing = [] if args.plot_only else [job for job in jobs if job[:3] not in done]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for row in pool.imap(transfer if args.transfer else run, missing):
            rows.append(row)
            write(table, rows)
            print(describe(row), flush=True)
    if args.transfer:
        transfer_picture(read(table), args.output.with_suffix(".png"))
    elif set(ALGORITHMS) <= set(args.algorithms):
        picture(args.models, args.seeds[0], args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
