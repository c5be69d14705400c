"""Collection with 1,024 vectorised environments: SB3's loop and buffer, and ``VectorEnvAdapter`` with ``TensorReplayBuffer``.

    python benchmarks/vector_collection.py --steps 60 --repeats 5

All ways have the same number of gradient steps for each transition, and environments whose steps are a few array operations.
``tensors`` is ours. In ``sb3`` SB3's ``SAC``, with its loop and buffer, trains on a ``VecEnv`` of the same environments with a
dict of infos for each, as SB3 asks for; it has no discrete actions, so not on CartPole. ``dicts`` is ``SoftAC`` on that
``VecEnv`` with SB3's buffer, ``dummy`` on SB3's ``DummyVecEnv`` of as many single environments. Runs alternate; the median of
each is printed, as one JSON line for each task.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_softac import SoftAC, TensorReplayBuffer, VectorEnvAdapter

#: ways to train, by task; the last is ours
WAYS = {"cartpole": ("dummy", "dicts", "tensors"), "pendulum": ("sb3", "dummy", "dicts", "tensors")}


class VectorPendulum(VectorEnv[Any, Any, Any]):
    """Pendulum-v1, all at once, in NumPy or in PyTorch.

    :param num_envs: number of environments
    :param mode: when an environment is reset whose episode has ended
    :param device: of the tensors; None for arrays
    :param length: steps after which an episode is cut off
    :param ends_upright: whether an episode terminates where the pendulum is upright
    """

    def __init__(
        self,
        num_envs: int = 1,
        mode: AutoresetMode = AutoresetMode.SAME_STEP,
        device: str | None = None,
        length: int = 200,
        ends_upright: bool = False,
    ) -> None:
        self.num_envs, self.mode, self.device, self.length, self.ends_upright = num_envs, mode, device, length, ends_upright
        self.metadata = {"autoreset_mode": mode}
        high = np.array([1.0, 1.0, 8.0], np.float32)
        self.single_observation_space = spaces.Box(-high, high)
        self.single_action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = None
        self.angle, self.speed = np.zeros(num_envs), np.zeros(num_envs)
        self.time = np.zeros(num_envs, np.int64)
        self.resets_next = np.zeros(num_envs, dtype=bool)
        #: tensors are handed out in the same memory in each step, as simulators do
        self.memory = None if device is None else th.zeros((num_envs, 3), device=device)

    def _begin(self, mask: Any) -> None:
        n = int(mask.sum())
        self.angle[mask] = self.np_random.uniform(-np.pi, np.pi, n)
        self.speed[mask] = self.np_random.uniform(-1.0, 1.0, n)
        self.time[mask] = 0

    def _observe(self) -> Any:
        obs = np.stack([np.cos(self.angle), np.sin(self.angle), self.speed], axis=1).astype(np.float32)
        return obs if self.memory is None else self.memory.copy_(th.from_numpy(obs))

    def _out(self, array: Any) -> Any:
        return array if self.device is None else th.as_tensor(array, device=self.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            super().reset(seed=seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        self._begin(mask.cpu().numpy() if isinstance(mask, th.Tensor) else mask)
        self.resets_next[:] = False
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        torque = np.clip(actions.cpu().numpy() if isinstance(actions, th.Tensor) else actions, -2.0, 2.0)[:, 0]
        angle = (self.angle + np.pi) % (2.0 * np.pi) - np.pi
        reward = -(angle**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        self.speed = np.clip(self.speed + (15.0 * np.sin(self.angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
        self.angle = self.angle + self.speed * 0.05
        self.time += 1
        terminated = (np.abs(angle) < 0.3) & self.ends_upright
        truncated = self.time >= self.length
        if self.mode is AutoresetMode.NEXT_STEP and self.resets_next.any():
            again = self.resets_next
            self._begin(again)
            reward[again], terminated[again], truncated[again] = 0.0, False, False
        done = terminated | truncated
        info: dict[str, Any] = {}
        if self.mode is AutoresetMode.SAME_STEP and done.any():
            final = self._observe()
            info = {"final_obs": final.clone() if isinstance(final, th.Tensor) else final, "_final_obs": done}
            self._begin(done)
        self.resets_next = done
        return self._observe(), *map(self._out, (reward, terminated, truncated)), info


class WithDicts(VecEnv):
    """The same environments as SB3 has them: with a dict for each."""

    def __init__(self, venv: VectorEnvAdapter) -> None:
        self.adapter = venv
        super().__init__(venv.num_envs, venv.observation_space, venv.action_space)

    def reset(self) -> Any:
        return self.adapter.reset()

    def step_async(self, actions: Any) -> None:
        self.adapter.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.adapter.step_wait()
        dicts: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones):
            dicts[index] = infos[index]
        return obs, rewards, dones, dicts

    def close(self) -> None:
        self.adapter.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return self.adapter.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self.adapter.set_attr(attr_name, value, indices)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return self.adapter.env_method(method_name, *args, indices=indices, **kwargs)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return self.adapter.env_is_wrapped(wrapper_class, indices)


def make_vector(task: str, n_envs: int, device: str | None) -> Any:
    """CartPole is Gymnasium's own, which resets in the next step."""
    if task == "pendulum":
        return VectorPendulum(n_envs, device=device)
    return gym.make_vec("CartPole-v1", n_envs, vectorization_mode="vector_entry_point")


def make_model(task: str, way: str, n_envs: int, device: str, gradient_steps: int = 1) -> Any:
    """A model on one of the tasks, in one of the ways."""
    tensors = device if way == "tensors" and task == "pendulum" and device != "cpu" else None
    adapter = VectorEnvAdapter(make_vector(task, n_envs, tensors))
    adapter.skips_steps = adapter.skips_steps and way == "tensors"  # SB3's buffer stores them, at the same speed
    single = "Pendulum-v1" if task == "pendulum" else "CartPole-v1"
    envs: dict[str, Callable[[], VecEnv]] = {
        "tensors": lambda: adapter,
        "dicts": lambda: WithDicts(adapter),
        "sb3": lambda: WithDicts(adapter),
        "dummy": lambda: make_vec_env(single, n_envs),
    }
    options: dict[str, Any] = {"learning_starts": n_envs, "batch_size": 256, "train_freq": 1, "seed": 0, "device": device}
    options |= {"gradient_steps": gradient_steps, "policy_kwargs": {"net_arch": [64, 64]}, "buffer_size": 200 * n_envs}
    if way == "sb3":
        return SAC("MlpPolicy", envs[way](), **options)
    buffer = TensorReplayBuffer if way == "tensors" else ReplayBuffer
    return SoftAC("MlpPolicy", envs[way](), replay_buffer_class=buffer, compile=False, **options)


def measure(model: Any, n_steps: int) -> float:
    """Transitions per second."""
    start = time.perf_counter()
    model.learn(n_steps * model.n_envs, reset_num_timesteps=False, log_interval=None)
    if model.device.type == "cuda":
        th.cuda.synchronize()
    return n_steps * int(model.n_envs) / (time.perf_counter() - start)


def main() -> None:
    """Measure all ways on both tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=60, help="of all environments, in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gradient-steps", type=int, default=1, help="for each step of all environments")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    th.set_num_threads(arguments.threads)
    for task, ways in WAYS.items():
        models = {way: make_model(task, way, arguments.envs, arguments.device, arguments.gradient_steps) for way in ways}
        for model in models.values():
            measure(model, 5)
        runs: dict[str, list[float]] = {way: [] for way in models}
        for _ in range(arguments.repeats):
            for way, model in models.items():
                runs[way].append(measure(model, arguments.steps))
        medians = {way: statistics.median(values) for way, values in runs.items()}
        result = {"task": task, "envs": arguments.envs, "device": arguments.device, "threads": arguments.threads}
        result |= {f"{way}_per_s": round(value) for way, value in medians.items()}
        result["gradient_steps"] = arguments.gradient_steps
        ratios = {f"to_{way}": round(medians["tensors"] / medians[way], 2) for way in ways[:-1]}
        print(json.dumps(result | ratios | {"torch": th.__version__, "machine": platform.machine()}), flush=True)


if __name__ == "__main__":
    main()
