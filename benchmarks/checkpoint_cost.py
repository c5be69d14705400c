"""What a checkpoint costs at a full replay buffer of the shapes of HalfCheetah: seconds in which training stops, and bytes.

    python benchmarks/checkpoint_cost.py --output docs/checkpoint-cost.csv

A buffer of 10^6 transitions (observations of 17 numbers in float64, actions of 6 in float32; 310 MB) is filled with random
ones, and networks of the usual size (2 x 256) have their optimizers. The first checkpoint writes all of it; each of the others
what 10,000 further steps have brought, while the ring overwrites its oldest. Environments, updates and evaluations are not
part of it. --transitions asks for less.
"""

import argparse
import csv
import importlib.metadata
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from timing.machine import machine

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files.segments import rows_of

PACKAGES = ("sb3-softac", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy", "safetensors")


def fill(model: SoftAC, n: int, generator: np.random.Generator) -> None:
    """Let the model have done ``n`` steps, and their random transitions be in its buffer; episodes have 1,000 steps."""
    buffer = model.replay_buffer
    assert buffer is not None
    rows = np.arange(buffer.pos, buffer.pos + n) % buffer.buffer_size
    steps = np.arange(model.num_timesteps, model.num_timesteps + n) % 1000
    for name, part in rows_of(buffer).items():
        if name in ("dones", "timeouts"):
            part[rows] = (steps == 999).reshape(-1, 1)
        else:
            part[rows] = generator.standard_normal((n, *part.shape[1:]), dtype=np.float32)
    buffer.full = buffer.full or buffer.pos + n >= buffer.buffer_size
    buffer.pos = (buffer.pos + n) % buffer.buffer_size
    model.num_timesteps += n


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    env = gym.make("HalfCheetah-v5")
    model = SoftAC("MlpPolicy", env, buffer_size=options.transitions, device="cpu", compile=False, seed=0, learning_starts=0)
    model.learn(2)  # optimizers have their state
    model.set_logger(Logger(None, []))
    fill(model, options.transitions + options.save_freq // 2, generator)
    callback = ExactCheckpointCallback(options.save_freq, folder)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    results = []
    for number in range(options.checkpoints + 1):
        before = written(folder)
        began = time.perf_counter()
        callback.save()
        seconds = time.perf_counter() - began
        new = {path: size for path, size in written(folder).items() if path not in before}
        results.append(
            {
                "checkpoint": "first" if number == 0 else f"incremental {number}",
                "seconds": round(seconds, 3),
                "megabytes": round(sum(new.values()) / 1e6, 2),
                "of_transitions": round(sum(size for path, size in new.items() if path.parent.name == "segments") / 1e6, 2),
            }
        )
        print(results[-1], flush=True)
        fill(model, options.save_freq, generator)
    callback.release()
    began = time.perf_counter()
    resumed = SoftAC.resume(folder, env, device="cpu")
    seconds = time.perf_counter() - began
    assert resumed.num_timesteps == model.num_timesteps - options.save_freq
    size = sum(written(folder).values()) / 1e6
    return [*results, {"checkpoint": "resume", "seconds": round(seconds, 3), "megabytes": round(size, 2)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--save-freq", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=10, help="incremental ones")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--output", type=Path, help="CSV file for the results")
    options = parser.parse_args()
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(options, Path(folder) / "checkpoints")
    common = {
        "transitions": options.transitions,
        "save_freq": options.save_freq,
        "machine": machine("cpu"),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "python": platform.python_version(),
    }
    incremental = [row["seconds"] for row in rows if row["checkpoint"].startswith("incremental")]
    print(f"incremental: median {statistics.median(incremental):.3f} s, longest {max(incremental):.3f} s")
    if options.output is not None:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *common])
            writer.writeheader()
            writer.writerows({**row, **common} for row in rows)


if __name__ == "__main__":
    main()
