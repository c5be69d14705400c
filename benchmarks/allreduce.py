"""What ranks cost that train together on this machine: messages over the loopback, and eager gradient steps.

    python benchmarks/allreduce.py --output docs/allreduce.csv

Each case is one row, and is measured once: a file that exists is continued. Every rank has one thread.
"""

import argparse
import csv
import multiprocessing
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_softac import SoftAC
from sb3_softac.engine import Group, UpdateFlags
from sb3_softac.engine.group import n_messages, open_group
from sb3_softac.replay import Batch

FIELDS = ("case", "ranks", "microseconds", "messages", "torch", "cores")
SIZES = (1, 10_000, 100_000, 1_000_000)
#: networks of HalfCheetah's size
OBS_DIM, ACTION_DIM, BATCH_SIZE = 17, 6, 256


class Shape(gym.Env[Any, Any]):
    """Spaces alone: nothing is stepped."""

    observation_space = spaces.Box(-1.0, 1.0, (OBS_DIM,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


def timed(function: Any, repeats: int) -> tuple[float, float]:
    """Median microseconds of a call, and its messages."""
    for _ in range(10):
        function()
    before, times = n_messages(), []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times), (n_messages() - before) / repeats


def measure(case: str, repeats: int, size: int) -> tuple[float, float]:
    """One case, in this rank."""
    group = Group() if size > 1 else None
    kind, _, number = case.partition(" ")
    if kind == "step":
        model: Any = SoftAC("MlpPolicy", Shape(), compile=False, buffer_size=1, seed=0, device="cpu", distributed=False)
        update = model._current_update()
        update.group = group
        batch = Batch(
            th.randn(BATCH_SIZE, OBS_DIM),
            th.rand(BATCH_SIZE, ACTION_DIM),
            th.randn(BATCH_SIZE, OBS_DIM),
            th.zeros(BATCH_SIZE),
            th.randn(BATCH_SIZE),
            th.full((BATCH_SIZE,), 0.99),
        )
        flags = UpdateFlags(True, True)
        return timed(lambda: update(batch, None, flags, update.numbers()), repeats)
    assert group is not None
    if kind == "mean":
        values = th.randn(int(number))
        return timed(lambda: group.mean(values), repeats)
    numbers = np.zeros(int(number))
    return timed(lambda: group.gather(numbers), repeats)


def _worker(rank: int, size: int, port: int, case: str, repeats: int, results: Any) -> None:
    th.set_num_threads(1)
    values = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()})
    if size > 1:
        open_group(rank, 60.0)
    result = measure(case, repeats, size)
    if rank == 0:
        results.put(result)


def run(case: str, size: int, repeats: int) -> tuple[float, float]:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_worker, args=(rank, size, port, case, repeats, results)) for rank in range(size)]
    for process in processes:
        process.start()
    result: tuple[float, float] = results.get(timeout=120)
    for process in processes:
        process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV; rows that it has are not measured again")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    done: set[tuple[str, int]] = set()
    if arguments.output.exists():
        with arguments.output.open(newline="") as file:
            done = {(row["case"], int(row["ranks"])) for row in csv.DictReader(file)}
    else:
        arguments.output.write_text(",".join(FIELDS) + "\n")
    plan = [("step 2x256", 1), ("step 2x256", arguments.ranks)]
    plan += [(f"mean {size}", arguments.ranks) for size in SIZES] + [("gather 10", arguments.ranks)]
    for case, size in plan:
        if (case, size) in done:
            continue
        microseconds, messages = run(case, size, arguments.repeats)
        row = (case, size, round(microseconds, 1), messages, th.__version__, os.cpu_count())
        with arguments.output.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        print(*row)


if __name__ == "__main__":
    main()
