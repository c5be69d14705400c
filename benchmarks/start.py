"""How long the first gradient steps of a compiled model take, in a process with an empty compiler cache and in the next one.

    python benchmarks/start.py --output docs/start.csv

Each start is a process of its own: it makes a model with a filled replay buffer, and does three gradient steps. What PyTorch
keeps between processes lies in a new folder for each case (TORCHINDUCTOR_CACHE_DIR; without it, in a folder below the
system's temporary one). --report prints the table of a file, --only runs the cases whose names contain one of the given words.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from timing.cases import Case, cases_on
from timing.machine import limited, machine, version
from timing.rows import read
from timing.work import prepare

CASES = (
    "2x64 Pendulum, 1 thread",
    "2x256, 2 threads",
    "10 critics, 1 step, 2 threads",
    "TQC 2x256, 2 threads",
    "CrossQ 2x256, 2 threads",
)


def start(connection: Connection, case: Case, cache: str) -> None:
    """Send the seconds of the first three gradient steps."""
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
    import torch as th

    th.set_num_threads(case.threads)
    work = prepare(case, "SoftAC compiled")
    begin = time.perf_counter()
    for _ in range(3):
        work()
    connection.send(time.perf_counter() - begin)


def compiled_files(cache: str) -> int:
    """Shared libraries that a C++ compiler has made for this cache."""
    return len(list(Path(cache).rglob("*.so")))


def measure(case: Case) -> dict[str, Any]:
    """Both starts, and what each has compiled."""
    context, seconds, files = multiprocessing.get_context("spawn"), [], [0]
    with tempfile.TemporaryDirectory() as cache, limited(case.threads):
        for _ in range(2):
            here, there = context.Pipe()
            process = context.Process(target=start, args=(there, case, cache))
            process.start()
            seconds.append(here.recv())
            process.join()
            files.append(compiled_files(cache))
    return {
        "case": case.name,
        "first_start_s": round(seconds[0], 2),
        "second_start_s": round(seconds[1], 2),
        "first_compiled_files": files[1],
        "second_compiled_files": files[2] - files[1],
        "machine": machine("cpu"),
        **{package: version(package) for package in ("sb3-softac", "torch")},
        "python": platform.python_version(),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """The seconds by case, as Markdown."""
    lines = ["| case | first start, s | next process, s | C++ files compiled then |", "|---" * 4 + "|"]
    for row in rows:
        lines.append(
            f"| {row['case']} | {row['first_start_s']} ({row['first_compiled_files']} C++ files) | {row['second_start_s']} "
            f"| {row['second_compiled_files']} |"
        )
    return "\n".join([f"{rows[0]['machine']}, torch {rows[0]['torch']}:", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="CSV")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="some cases")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only print the table of a file")
    args = parser.parse_args()
    if args.report:
        print(report(read(args.report)))
        return
    if args.output is None:
        parser.error("--output is needed")
    by_name = {case.name: case for case in cases_on("cpu")}
    rows = []
    for name in CASES:
        if not args.only or any(word in name for word in args.only):
            rows.append(measure(by_name[name]))
            print(rows[-1], flush=True)
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(report(rows))


if __name__ == "__main__":
    main()
