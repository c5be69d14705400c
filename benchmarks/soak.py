"""A long training that is killed again and again, beside the same one that is not: what is lost, and what memory it takes.

    python benchmarks/soak.py --output docs/soak.json

Four environments that cost almost nothing, the smallest network, a checkpoint every 10,000 steps. The training runs in a
process, which is killed (SIGKILL) at random moments, every second one close to where a checkpoint is written, and started
again; each process goes on from the newest checkpoint. Then the last weights, optimizers and transitions are compared with
those of a training in one go, whose memory is measured on the way: at 1 per mille of the steps, 10 %, 20 %, ... --steps and
--kills ask for less of both.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from timing.machine import machine

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback

PACKAGES = ("sb3-softac", "stable-baselines3", "torch", "gymnasium", "numpy", "safetensors")
N_ENVS = 4


class Point(gym.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
    """A point on a line, which noise moves, and which should stay at 0."""

    observation_space = spaces.Box(-10.0, 10.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.place, self.time = 0.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-1.0, 1.0)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.place = float(np.clip(self.place + 0.3 * action[0] + 0.1 * self.np_random.normal(), -10.0, 10.0))
        return np.array([self.place], np.float32), -(self.place**2), False, self.time == 200, {}


def environments() -> VecEnv:
    return make_vec_env(Point, N_ENVS, seed=0)


def build() -> SoftAC:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}, "batch_size": 16, "buffer_size": 50_000}
    kwargs |= {"train_freq": 64, "gradient_steps": 1, "learning_starts": 1000, "learning_rate": "lin_3e-4"}
    return SoftAC("MlpPolicy", environments(), seed=0, device="cpu", compile=False, **kwargs)


def memory() -> float:
    """Of this process, in MB, at this moment."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


class Memory(BaseCallback):
    """Appends what memory this process takes, by steps."""

    def __init__(self, path: Path, total: int) -> None:
        super().__init__()
        self.path = path
        self.at = [total // 1000, *(total * tenth // 10 for tenth in range(1, 11))]

    def _on_step(self) -> bool:
        while self.at and self.num_timesteps >= self.at[0]:
            self.at.pop(0)
            with self.path.open("a") as file:
                file.write(f"{self.num_timesteps} {memory():.1f} {os.getpid()}\n")
        return True


class Watched(ExactCheckpointCallback):
    """Says in a file when it writes, so that a kill can be aimed there."""

    def save(self) -> Path:
        (self.folder / "writing").touch()
        path = super().save()
        (self.folder / "writing").unlink()
        with (self.folder / "written").open("a") as file:
            file.write(f"{self.model.num_timesteps}\n")
        return path


def train(folder: Path, total: int, save_freq: int) -> None:
    """Begin a training, or go on with it, to its end; then ``result.json`` is there."""
    th.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = [Watched(save_freq // N_ENVS, folder), Memory(folder / "memory", total)]
    if any(folder.glob("checkpoint-*")):
        model = SoftAC.resume(folder, environments())
        with (folder / "resumed").open("a") as file:
            file.write(f"{model.num_timesteps}\n")
        model.learn(callback=callbacks)
    else:
        model = build().learn(total, callback=callbacks)
    (folder / "result.json").write_text(json.dumps(result(model)))


def result(model: SoftAC) -> dict[str, Any]:
    checksums = {}
    for name, state in model.get_parameters().items():
        digest = hashlib.sha256()
        values = state.get("state", {}).values() if "optimizer" in name else [state]
        for part in values:
            for value in part.values():
                digest.update(np.ascontiguousarray(value.cpu().numpy() if isinstance(value, th.Tensor) else value).tobytes())
        checksums[name] = digest.hexdigest()
    buffer = model.replay_buffer
    assert buffer is not None
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        checksums[f"replay buffer: {name}"] = hashlib.sha256(getattr(buffer, name).tobytes()).hexdigest()
    return {"steps": model.num_timesteps, "updates": model._n_updates, "checksums": checksums}


def start(folder: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--train", str(folder), "--steps", str(options.steps)]
    return subprocess.Popen([*command, "--save-freq", str(options.save_freq)])


def newest(folder: Path) -> int:
    """Steps of the newest checkpoint; 0 if there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def run_with_kills(folder: Path, options: argparse.Namespace, seconds: float) -> int:
    """Kill a training at random moments, spread over its steps; how often it died of it.

    :param seconds: that the training takes without kills
    """
    generator, kills = random.Random(options.seed), 0
    n_checkpoints = options.steps // options.save_freq
    while kills < options.kills:
        process = start(folder, options)
        target = n_checkpoints * (kills + generator.random()) / (options.kills + 1) * options.save_freq
        before = newest(folder)
        while process.poll() is None and ((reached := newest(folder)) <= target or reached == before):
            time.sleep(0.005)
        if kills % 2:  # every second one is aimed at where a checkpoint is written
            while process.poll() is None and not (folder / "writing").exists():
                time.sleep(0.0005)
            time.sleep(generator.uniform(0.0, 0.02))
        else:
            time.sleep(generator.uniform(0.0, seconds / n_checkpoints))
        process.kill()
        if process.wait() == 0:
            print("It has come to its end before it was killed so often.", flush=True)
            break
        assert process.returncode == -signal.SIGKILL, process.returncode
        kills += 1
        writing = (folder / "writing").exists()
        (folder / "writing").unlink(missing_ok=True)
        print(f"kill {kills} of {options.kills} at {newest(folder):,} steps{' while it wrote' if writing else ''}", flush=True)
        with (folder / "kills").open("a") as file:
            file.write(f"{int(writing)}\n")
    if not (folder / "result.json").exists():
        assert start(folder, options).wait() == 0
    return kills


def soak(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        began = time.monotonic()
        assert start(whole, options).wait() == 0
        seconds = time.monotonic() - began
        print(f"without kills: {seconds:.0f} s", flush=True)
        began = time.monotonic()
        kills = run_with_kills(killed, options, seconds)
        expected, found = (json.loads((folder / "result.json").read_text()) for folder in (whole, killed))
        rows = [line.split() for line in (whole / "memory").read_text().splitlines()]
        rss = {int(steps): float(megabytes) for steps, megabytes, _ in rows}
        last = [line.split() for line in (killed / "memory").read_text().splitlines()][-1]
        resumed = (killed / "resumed").read_text().split()
        by_steps = sorted(rss)
        tenth, end = rss[next(steps for steps in by_steps if steps >= options.steps // 10)], rss[by_steps[-1]]
        return {
            "steps": found["steps"],
            "updates": found["updates"],
            "environments": N_ENVS,
            "save_freq": options.save_freq,
            "kills": kills,
            "kills_while_a_checkpoint_was_written": (killed / "kills").read_text().count("1"),
            "resumed_at": [int(steps) for steps in resumed],
            "equal": found == expected,
            "different": [name for name, value in expected["checksums"].items() if found["checksums"].get(name) != value],
            "rss_mb_by_steps": rss,
            "rss_mb_at_10_percent": tenth,
            "rss_mb_at_the_end": end,
            "rss_growth_percent": round(100 * (end / tenth - 1), 2),
            "rss_mb_at_the_end_after_kills": float(last[1]),
            "segments_left": len(list((killed / "segments").iterdir())),
            "seconds_without_kills": round(seconds),
            "seconds_with_kills": round(time.monotonic() - began),
            "machine": machine("cpu"),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
            "python": platform.python_version(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of all environments together")
    parser.add_argument("--save-freq", type=int, default=10_000, help="steps of all environments between two checkpoints")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.steps, options.save_freq)
        return
    results = soak(options)
    text = json.dumps(results, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(f"{text}\n")
    sys.exit(0 if results["equal"] else 1)


if __name__ == "__main__":
    main()
