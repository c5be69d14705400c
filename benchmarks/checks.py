"""Two measurements that explain differences: ``python benchmarks/checks.py rounding|horizon``.

``rounding``: how far eager and compiled training part over 400 gradient steps, from the same weights, batches and noise.
``horizon``: Q in the infinite-horizon task of SB3's own tests, where every reward is 1, and the policy's soft fixed point.
"""

import argparse
import copy
import platform
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_softac import SoftAC

GAMMA = 0.98


def largest_difference(left: SoftAC, right: SoftAC) -> float:
    """Over all weights of both policies."""
    pairs = zip(left.policy.parameters(), right.policy.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


def rounding(n_seeds: int, n_steps: int) -> None:
    """Print the largest difference of a weight after ``n_steps`` gradient steps, for each seed."""
    kinds: dict[str, dict[str, Any]] = {
        "policy_delay=3": {"policy_delay": 3},
        "target_subset=2 of 4": {"target_subset": 2, "policy_kwargs": {"n_critics": 4}},
    }
    print("| case | activation | largest difference of a weight |\n|---|---|---|")
    for name, options in kinds.items():
        for activation in (nn.ReLU, nn.Tanh):
            policy_kwargs = {"net_arch": [8, 8], "activation_fn": activation, **options.get("policy_kwargs", {})}
            arguments = {**options, "policy_kwargs": policy_kwargs, "learning_starts": 10**6, "buffer_size": 1000, "seed": 0}
            eager, compiled = (
                SoftAC("MlpPolicy", "Pendulum-v1", device="cpu", compile=compile, **arguments).learn(500, log_interval=None)
                for compile in (False, True)
            )
            start, found = copy.deepcopy(eager.get_parameters()), []
            for seed in range(n_seeds):
                for model in (eager, compiled):
                    model.set_parameters(copy.deepcopy(start))
                    model._n_updates = 0
                    model.set_logger(Logger(None, []))
                    for step in range(n_steps):
                        th.manual_seed(seed * n_steps + step)
                        np.random.seed(seed * n_steps + step)  # noqa: NPY002  # the generator that SB3's buffers draw from
                        model.train(1, batch_size=16)
                found.append(f"{largest_difference(eager, compiled):.1e}")
            print(f"| {name} | {activation.__name__} | {', '.join(found)} |", flush=True)


class Ring(gym.Env[int, np.ndarray[Any, Any]]):
    """Four states that follow each other whatever the action is; every reward is 1, and nothing ends."""

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(4)  # type: ignore[assignment]  # Gymnasium's integers are NumPy's
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action: np.ndarray[Any, Any]) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.state = (self.state + 1) % 4
        return self.state, 1.0, False, False, {}


@th.no_grad()
def q_and_fixed_point(model: SAC | SoftAC) -> tuple[float, float, float]:
    """Q at state 0, α, and the Q that the present α and policy have as their fixed point.

    Q(s) = 1 + γ·(Q(s') + α·H(s')) around the ring, a linear system of four equations.
    """
    states: list[Any] = [model.policy.obs_to_tensor(np.full(2000, state))[0] for state in range(4)]
    entropies = [-float(model.actor.action_log_prob(state)[1].mean()) for state in states]
    if isinstance(model, SoftAC):
        alpha = float(model.temperature.value)
    else:
        assert model.log_ent_coef is not None
        alpha = float(model.log_ent_coef.exp())
    matrix, right = np.eye(4), np.ones(4)
    for state in range(4):
        matrix[state, (state + 1) % 4] -= GAMMA
        right[state] += GAMMA * alpha * entropies[(state + 1) % 4]
    critics: Any = model.critic
    q = float(critics(states[0][:1], model.actor(states[0][:1]))[0])
    return q, alpha, float(np.linalg.solve(matrix, right)[0])


def horizon(n_seeds: int, n_steps: int) -> None:
    """Print Q, α and the soft fixed point after ``n_steps`` environment steps, means and ranges over seeds."""
    algorithms: dict[str, tuple[type[SAC] | type[SoftAC], dict[str, Any]]] = {
        "SB3's SAC": (SAC, {}),
        "SoftAC, log": (SoftAC, {"ent_coef_update": "log"}),
        "SoftAC, dual": (SoftAC, {}),
    }
    print("| algorithm | Q | alpha | soft fixed point |\n|---|---|---|---|")
    for name, (algorithm, options) in algorithms.items():
        rows = []
        for seed in range(n_seeds):
            make: Any = algorithm
            model: SAC | SoftAC = make(
                "MlpPolicy",
                gym.wrappers.TimeLimit(Ring(), 8),
                gamma=GAMMA,
                seed=seed,
                device="cpu",
                tau=0.5,
                learning_rate=0.005,
                policy_kwargs={"net_arch": [64], "n_critics": 1},
                **options,
            ).learn(n_steps, log_interval=None)
            rows.append(q_and_fixed_point(model))
        q, alpha, fixed = np.array(rows).T
        ranges = [f"{v.mean():.{n}f} ({v.min():.{n}f} to {v.max():.{n}f})" for v, n in ((q, 2), (alpha, 4), (fixed, 2))]
        print(f"| {name} | {' | '.join(ranges)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rounding", "horizon"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="gradient steps (400) or environment steps (1500)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*requires_grad")
    versions = f"torch {th.__version__}, SB3 {stable_baselines3.__version__}, CPython {platform.python_version()}"
    print(f"{versions}, {platform.machine()}, one thread, {arguments.seeds} seeds")
    if arguments.what == "rounding":
        rounding(arguments.seeds, arguments.steps or 400)
    else:
        horizon(arguments.seeds, arguments.steps or 1500)


if __name__ == "__main__":
    main()
