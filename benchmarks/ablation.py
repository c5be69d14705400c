"""What each part of the fast path is worth: the same work with all of them, and with each one switched off alone.

    python benchmarks/ablation.py --output docs/ablation.csv

Every variant has a process of its own; in each round each of them works for a while, and the others wait, as in speed.py. The
figure is how much faster everything together is than without the part, a median over the rounds with a 95 % interval by
bootstrap; a part that is below 5 % in every case that users have is not worth its lines. --report prints the table of a file,
--only runs the cases whose names contain one of the given words, and keeps the others of a file that is there.
"""

import argparse
import csv
import os
import platform
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from timing.cases import Case
from timing.measuring import measure as measure_peers
from timing.rows import read
from timing.work import worker as work_on


def replace(owner: Any, name: str, value: Any) -> None:
    """Put something else into the place of a function of the package."""
    assert hasattr(owner, name), f"{name} is no longer there"
    setattr(owner, name, value)


def without_onednn() -> None:
    os.environ["SB3_SOFTAC_NO_ONEDNN"] = "1"


def without_kept_memory() -> None:
    from sb3_softac.engine import engine

    replace(engine, "keep_freed_memory", lambda: None)


def without_direct_acting() -> None:
    from sb3_softac.collect import exploration

    replace(exploration, "make_actor", lambda *_: None)


def without_block_sampling() -> None:
    from sb3_softac.replay import BlockSampler

    replace(BlockSampler, "can_sample", staticmethod(lambda *_: False))


def without_tensor_optimizers() -> None:
    from sb3_softac.engine import optimizers

    replace(optimizers, "can_replace_in_eager_mode", lambda _: False)


#: parts by their names, with what switches each off before a model is made
PARTS: dict[str, Callable[[], None]] = {
    "oneDNN matmuls": without_onednn,
    "kept memory": without_kept_memory,
    "direct acting": without_direct_acting,
    "block sampling": without_block_sampling,
    "tensor optimizers": without_tensor_optimizers,
}
#: parts that a compiled step always has, and those that no update needs
ALWAYS_COMPILED, OF_LEARNING = {"tensor optimizers"}, {"direct acting"}


def cases() -> list[tuple[Case, str]]:
    """What is measured, each eager and compiled."""
    chosen = []
    for threads in (1, 2):
        suffix = f", {threads} thread{'s' * (threads > 1)}"
        chosen += [
            Case(f"2x256{suffix}", threads=threads),
            Case(f"10 critics{suffix}", threads=threads, n_critics=10),
        ]
    small: dict[str, Any] = {"threads": 1, "obs_dim": 3, "action_dim": 1, "net_arch": (64, 64)}
    chosen += [Case("2x64 Pendulum, 1 thread", **small)]
    chosen += [Case("2x64 Pendulum, 20 steps, 1 thread", gradient_steps=20, **small)]
    chosen += [Case("act, 1 environment, 1 thread", kind="act", threads=1)]
    chosen += [Case(f"learn, {n} environment{'s' * (n > 1)}, 2 threads", kind="learn", n_envs=n) for n in (1, 8)]
    return [(case, way) for case in chosen for way in ("SoftAC eager", "SoftAC compiled")]


def parts_of(case: Case, way: str) -> list[str]:
    """Those that can make a difference."""
    if case.kind == "act":
        return ["direct acting"]
    left_out = ALWAYS_COMPILED if way.endswith("compiled") else set()
    if not uses_onednn():
        left_out = left_out | {"oneDNN matmuls"}
    return [part for part in PARTS if part not in left_out and (case.kind == "learn" or part not in OF_LEARNING)]


def worker(connection: Connection, case: Case, variant: str, seconds: float) -> None:
    """Work as speed.py does, without one part."""
    way, _, part = variant.partition(" without ")
    if part:
        PARTS[part]()
    work_on(connection, case, way, seconds)


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of samples drawn from the ratios."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, size=(10_000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def measure(case: Case, way: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each part."""
    parts = parts_of(case, way)
    peers = [way, *(f"{way} without {part}" for part in parts)]
    measured = measure_peers(case, peers, rounds, seconds, target=worker, keep_rates=True)
    everything, *others = measured
    rows = []
    for part, row in zip(parts, others, strict=True):
        ratios = [full / less for full, less in zip(everything["rates"], row["rates"], strict=True)]
        low, high = interval(ratios)
        rows.append(
            {
                "case": case.name,
                "way": way.rpartition(" ")[2],
                "part": part,
                "gain": round(float(np.median(ratios)), 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "with": everything["median"],
                "without": row["median"],
                "unit": row["unit"],
                "rounds": rounds,
                "seconds": seconds,
                "machine": row["machine"],
                "onednn_is_faster": uses_onednn(),
                **{package: row[package] for package in ("sb3-softac", "torch", "gymnasium", "numpy")},
                "python": platform.python_version(),
            }
        )
    return rows


def uses_onednn() -> bool:
    """Whether this processor is one for which oneDNN's matmuls are chosen."""
    from sb3_softac.engine import matmul

    return bool(matmul.ONEDNN_IS_FASTER)


def report(rows: list[dict[str, Any]]) -> str:
    """The gains by case and part, as Markdown."""
    lines = [f"| case | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
    for name, way in dict.fromkeys((row["case"], row["way"]) for row in rows):
        found = {row["part"]: row for row in rows if (row["case"], row["way"]) == (name, way)}
        cells = []
        for part in PARTS:
            gain, low, high = (
                100.0 * (float(found[part][key]) - 1.0) if part in found else 0.0 for key in ("gain", "low", "high")
            )
            cells.append(f"{gain:+.0f} % ({low:+.0f} to {high:+.0f})" if part in found else "")
        lines.append(f"| {name}, {way} | {' | '.join(cells)} |")
    machines = ", ".join(dict.fromkeys(row["machine"] for row in rows))
    return "\n".join([f"{machines}; speed with all parts over speed without one, 95 % interval in brackets:", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="CSV")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="some cases")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only print the table of a file")
    args = parser.parse_args()
    if args.report:
        print(report(read(args.report)))
        return
    if args.output is None:
        parser.error("--output is needed")
    every = {f"{case.name}, {way.rpartition(' ')[2]}": (case, way) for case, way in cases()}
    names = [name for name in every if not args.only or any(word in name for word in args.only)]
    chosen = [every[name] for name in names]
    rows = read(args.output) if args.only and args.output.exists() else []
    rows = [row for row in rows if f"{row['case']}, {row['way']}" not in names]
    for case, way in chosen:
        measured = measure(case, way, args.rounds, args.seconds)
        rows += measured
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(measured[0]))
            writer.writeheader()
            writer.writerows(rows)
        gains = [f"{row['part']} {row['gain']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in measured]
        print(f"{case.name}, {way}: {', '.join(gains)}", flush=True)
    print(report(read(args.output)))


if __name__ == "__main__":
    main()
