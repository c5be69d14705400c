"""Steps per second with and without ``overlap``, in environments that run in processes.

    python benchmarks/overlap.py --tasks slow Pendulum-v1 HalfCheetah-v5 --steps 400 --repeats 3

``slow`` is made: a step takes 5 ms in which its process computes nothing, as one that waits for a simulator does, and the
gradient steps are those of HalfCheetah's shapes. Both models run in turns in one process; the medians are printed, as one JSON
line for each task. With --returns it trains Pendulum-v1 with both, for some seeds, and prints the mean returns instead.
"""

import argparse
import json
import platform
import statistics
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_softac import SoftAC

#: seconds of a step of the made environment
SLOW = 0.005


class SlowEnv(gym.Env[Any, Any]):
    """HalfCheetah's shapes, and a step that waits."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (17,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def _observe(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 17).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(SLOW)
        return self._observe(), float(action[0]), False, False, {}


def make_model(task: str, overlap: bool, options: dict[str, Any], seed: int = 0) -> SoftAC:
    """A model with one environment in another process."""
    maker: Any = SlowEnv if task == "slow" else task
    env = make_vec_env(maker, 1, seed=seed, vec_env_cls=SubprocVecEnv)
    return SoftAC("MlpPolicy", env, overlap=overlap, seed=seed, device="cpu", learning_starts=100, **options)


def measure(model: SoftAC, n_steps: int) -> tuple[float, float]:
    """Steps per second, and milliseconds of ``train()`` per step."""
    spent, train = 0.0, type(model).train

    def timed(*args: Any, **kwargs: Any) -> None:
        nonlocal spent
        start = time.perf_counter()
        train(model, *args, **kwargs)
        spent += time.perf_counter() - start

    model.train = timed  # type: ignore[method-assign]  # to measure it
    start = time.perf_counter()
    model.learn(n_steps, reset_num_timesteps=False, log_interval=None)
    seconds = time.perf_counter() - start
    del model.train
    return n_steps / seconds, 1000.0 * spent / n_steps


def compare_speed(task: str, arguments: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Both ways in turns."""
    models = {overlap: make_model(task, overlap, options) for overlap in (False, True)}
    for model in models.values():
        measure(model, 150)
    runs: dict[bool, list[tuple[float, float]]] = {overlap: [] for overlap in models}
    for _ in range(arguments.repeats):
        for overlap, model in models.items():
            runs[overlap].append(measure(model, arguments.steps))
    for model in models.values():
        model.get_env().close()  # type: ignore[union-attr]  # it has one
    speed = {overlap: statistics.median(run[0] for run in of_way) for overlap, of_way in runs.items()}
    update = statistics.median(run[1] for run in runs[False])
    return {
        "task": task,
        "update_ms": round(update, 2),
        "without_per_s": round(speed[False], 1),
        "overlap_per_s": round(speed[True], 1),
        "ratio": round(speed[True] / speed[False], 2),
    }


def compare_returns(arguments: Any, options: dict[str, Any]) -> None:
    """Pendulum-v1, trained with both for some seeds."""
    for overlap in (False, True):
        returns = []
        for seed in range(arguments.returns):
            model = make_model("Pendulum-v1", overlap, options | {"learning_rate": 1e-3}, seed)
            model.learn(arguments.steps, log_interval=None)
            model.get_env().close()  # type: ignore[union-attr]  # it has one
            mean: Any = evaluate_policy(model, make_vec_env("Pendulum-v1", 1, seed=1000), 20)[0]
            returns.append(float(mean))
        print(json.dumps({"overlap": overlap, "steps": arguments.steps, "returns": [round(value, 1) for value in returns]}))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["slow", "Pendulum-v1"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--net-arch", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--returns", type=int, default=0, metavar="SEEDS")
    arguments = parser.parse_args()
    th.set_num_threads(arguments.threads)
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": arguments.net_arch}, "batch_size": arguments.batch_size}
    options["compile"] = arguments.compile
    if arguments.returns:
        compare_returns(arguments, options)
        return
    for task in arguments.tasks:
        result = compare_speed(task, arguments, options)
        print(
            json.dumps(result | {"threads": arguments.threads, "torch": th.__version__, "machine": platform.machine()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
