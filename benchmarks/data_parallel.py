"""What ranks cost that train together: measured on this machine, and extrapolated to others.

    python benchmarks/data_parallel.py --output docs/data-parallel.csv
    python benchmarks/data_parallel.py --model docs/data-parallel.csv --plot docs/data-parallel.png

The first command measures gradient steps (`train()` on a filled replay buffer) of one process and of two ranks, and means over
2, 4 and 8 ranks through the loopback. All processes are started first, and take turns: one case at a time, in several rounds.
The second fits the formulas of parallel/cost_model.py to the file and prints what is measured, fitted and extrapolated.
"""

import argparse
import contextlib
import csv
import dataclasses
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch as th
from parallel import extrapolation
from timing import cases as shapes
from timing.machine import limited, machine
from timing.models import make_spaces, ready

#: environment of HalfCheetah's size
OBS_DIM, ACTION_DIM = 17, 6
RANKS = (2, 4, 8)
MESSAGES = (1, 10_000, 100_000, 1_000_000, 4_000_000)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: gradient steps, or means of so many numbers."""

    kind: str
    ranks: int
    threads: int = 1
    way: str = "eager"
    units: int = 0
    batch: int = 0
    numbers: int = 0
    silent: bool = False  # two ranks at work at the same time, which tell each other nothing

    def __str__(self) -> str:
        if self.kind == "mean":
            return f"mean of {self.numbers:,} numbers, {self.ranks} ranks"
        shape = f"2x{self.units}, batch {self.batch}, ranks {self.ranks}, threads {self.threads}"
        return f"step, {self.way}, {shape}{', silent' if self.silent else ''}"


def cases() -> list[Case]:
    """All of them."""
    steps = [Case("step", 1, units=units, batch=batch) for units in (64, 256, 512, 1024) for batch in (64, 256, 1024)]
    for way, units in (("eager", 256), ("eager", 512), ("compiled", 256)):
        steps += [Case("step", 2, 1, way, units, 256, silent=silent) for silent in (False, True)]
        steps += [Case("step", 1, 2, way, units, 512)]
    steps += [Case("step", 1, 1, "compiled", 256, 256), Case("step", 2, units=1024, batch=256)]
    return [*steps, *(Case("mean", ranks, numbers=numbers) for ranks in RANKS for numbers in MESSAGES)]


class Worker:
    """One process of a team: a rank, or a process alone."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.models: dict[Case, Any] = {}

    def model(self, case: Case) -> Any:
        from sb3_softac import SoftAC

        if case not in self.models:
            shape = shapes.Case("", "updates", case.threads, obs_dim=OBS_DIM, action_dim=ACTION_DIM)
            model = SoftAC(
                "MlpPolicy",
                make_spaces(shape),
                policy_kwargs={"net_arch": [case.units] * 2},
                compile=case.way == "compiled",
                buffer_size=5_000,
                seed=0,
                device="cpu",
            )
            self.models[case] = ready(model, 5_000)
        return self.models[case]

    def time(self, case: Case, calls: int) -> tuple[float, int]:
        """Seconds of one gradient step or mean, and trained parameters or numbers."""
        from sb3_softac.engine import Group

        if case.kind == "mean":
            group, values = Group(), th.randn(case.numbers)
            start = time.perf_counter()
            for _ in range(calls):
                group.mean(values)
            return (time.perf_counter() - start) / calls, case.numbers
        model = self.model(dataclasses.replace(case, silent=False))
        with Group().silent() if case.silent else contextlib.nullcontext():
            start = time.perf_counter()
            model.train(calls, case.batch)
            seconds = (time.perf_counter() - start) / calls
        trained = model.policy.trained_networks().values()
        return seconds, sum(parameter.numel() for network in trained for parameter in network.parameters())


def work(connection: Any, rank: int, ranks: int, threads: int, port: int) -> None:
    """Answer ``(case, calls)`` until None comes."""
    from sb3_softac.engine.group import close_group, open_group

    th.set_num_threads(threads)
    if ranks > 1:
        values = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in values.items()})
        open_group(rank, 300.0)
    worker = Worker(threads)
    while (asked := connection.recv()) is not None:
        connection.send(worker.time(*asked))
    close_group()


class Team:
    """Processes that wait for work: ``ranks`` of a group, or one alone."""

    def __init__(self, ranks: int, threads: int) -> None:
        with socket.socket() as each:
            each.bind(("127.0.0.1", 0))
            port = each.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.connections = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs, rank, ranks, threads, port), daemon=True).start()
            theirs.close()
            self.connections.append(ours)

    def time(self, case: Case, calls: int) -> tuple[float, int]:
        """Seconds of the slowest rank."""
        for connection in self.connections:
            connection.send((case, calls))
        answers = [connection.recv() for connection in self.connections]
        return max(seconds for seconds, _ in answers), answers[0][1]

    def end(self) -> None:
        for connection in self.connections:
            connection.send(None)


@contextlib.contextmanager
def teams(chosen: list[Case]) -> Iterator[dict[tuple[int, int], Team]]:
    with limited(1, pinned=False):
        made = {key: Team(*key) for key in dict.fromkeys((case.ranks, case.threads) for case in chosen)}
        try:
            yield made
        finally:
            for team in made.values():
                team.end()


def measure(chosen: list[Case], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each case: the median of ``rounds`` turns, each of which takes about ``seconds``."""
    times: dict[Case, list[float]] = {case: [] for case in chosen}
    numbers: dict[Case, int] = {}
    with teams(chosen) as started:
        calls = {}
        for case in chosen:
            team = started[case.ranks, case.threads]
            team.time(case, 3)  # compiles, and allocates
            calls[case] = max(3, int(seconds / team.time(case, 3)[0]))
            print(f"{case}: {calls[case]} calls", flush=True)
        for _ in range(rounds):
            for case in chosen:
                taken, numbers[case] = started[case.ranks, case.threads].time(case, calls[case])
                times[case].append(taken)
    about = {"rounds": rounds, "cores": os.cpu_count(), "machine": machine("cpu"), "torch": th.__version__}
    return [
        dataclasses.asdict(case)
        | {"numbers": numbers[case], "seconds": f"{statistics.median(taken):.3g}"}
        | {"lowest": f"{min(taken):.3g}", "highest": f"{max(taken):.3g}"}
        | about
        for case, taken in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="CSV", help="measure, and write this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each case in each round")
    parser.add_argument("--model", type=Path, metavar="CSV", help="fit and extrapolate what this file holds")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="with --model: draw it, too")
    arguments = parser.parse_args()
    if (arguments.output is None) == (arguments.model is None):
        parser.error("one of --output and --model is needed.")
    if arguments.plot and not arguments.model:
        parser.error("--plot needs --model.")
    if arguments.model:
        rows = extrapolation.read(arguments.model)
        print(extrapolation.report(rows))
        if arguments.plot:
            extrapolation.draw(rows, arguments.plot)
        return
    rows = measure(cases(), arguments.rounds, arguments.seconds)
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
