"""Q in the infinite-horizon task of SB3's own tests, where every reward is 1, and the soft fixed point of the policy.

Settings are those of ``test_infinite_horizon`` in SB3's repository, which asks for a Q within 1 of 1/(1 - 0.98) = 50.
"""

import argparse
import platform
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_softac import SoftAC

GAMMA = 0.98


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
    alpha = alpha_of(model)
    matrix, right = np.eye(4), np.ones(4)
    for state in range(4):
        matrix[state, (state + 1) % 4] -= GAMMA
        right[state] += GAMMA * alpha * entropies[(state + 1) % 4]
    critics: Any = model.critic
    q = float(critics(states[0][:1], model.actor(states[0][:1]))[0])
    return q, alpha, float(np.linalg.solve(matrix, right)[0])


def alpha_of(model: SAC | SoftAC) -> float:
    """The temperature at the end of the training."""
    if isinstance(model, SoftAC):
        return float(model.temperature.value)
    return float(model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=500, help="environment steps")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    versions = f"torch {th.__version__}, SB3 {stable_baselines3.__version__}, CPython {platform.python_version()}"
    print(f"{versions}, {platform.machine()}, one thread, {arguments.seeds} seeds, {arguments.steps} steps\n")
    algorithms: dict[str, tuple[Any, dict[str, Any]]] = {
        "SB3's SAC": (SAC, {}),
        "SB3's SAC, ent_coef=0": (SAC, {"ent_coef": 0.0}),
        "SoftAC, log": (SoftAC, {"ent_coef_update": "log"}),
        "SoftAC, dual (default)": (SoftAC, {}),
    }
    print("| algorithm | Q: mean (range) | within 1 of 50 | alpha | soft fixed point |\n|---|---|---|---|---|")
    for name, (make, options) in algorithms.items():
        rows = []
        for seed in range(arguments.seeds):
            model = make(
                "MlpPolicy",
                gym.wrappers.TimeLimit(Ring(), 8),
                gamma=GAMMA,
                seed=seed,
                device="cpu",
                tau=0.5,
                learning_rate=0.01,
                learning_starts=0,
                replay_buffer_kwargs={"handle_timeout_termination": True},
                policy_kwargs={"net_arch": [16], "n_critics": 1},
                **options,
            ).learn(arguments.steps, log_interval=None)
            rows.append(q_and_fixed_point(model))
        q, alpha, fixed = np.array(rows).T
        passed = f"{int((np.abs(q - 50) < 1).sum())} of {arguments.seeds}"
        ranges = [f"{v.mean():.{n}f} ({v.min():.{n}f} to {v.max():.{n}f})" for v, n in ((q, 2), (alpha, 3), (fixed, 2))]
        print(f"| {name} | {ranges[0]} | {passed} | {ranges[1]} | {ranges[2]} |", flush=True)


if __name__ == "__main__":
    main()
