"""The command line of benchmarks/speed.py."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from timing.cases import BFLOAT16, CUDA_PEERS, PEERS, cases_on, peers_of
from timing.figure import plot, plot_cases
from timing.machine import has_bfloat16, limited
from timing.measuring import measure
from timing.presets import print_flops
from timing.profiling import profile
from timing.rows import read, write
from timing.tables import report


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="PATH", help="of rows or a picture, without suffix")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="some cases")
    parser.add_argument("--peers", nargs="+", choices=CUDA_PEERS, default=list(CUDA_PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = [case.name for case in cases_on("cpu")]
    parser.add_argument("--profile", metavar="CASE", choices=names, help="only show where the time of SoftAC goes in a case")
    parser.add_argument("--flops", action="store_true", help="only compare presets with the limit of their arithmetic")
    parser.add_argument("--report", type=Path, metavar="CSV", help="only print the tables of a file")
    parser.add_argument("--plot", type=Path, metavar="CSV", help="only draw a file, or of it the cases of --only")
    return parser


def main(description: str | None) -> None:
    parser = make_parser(description)
    args = parser.parse_args()
    if args.profile:
        with limited(2):
            print(profile(next(case for case in cases_on("cpu") if case.name == args.profile)))
    elif args.flops:
        with limited(2):
            ways = [peer for peer in ("SoftAC eager", "SoftAC compiled") if peer in args.peers]
            print_flops(args.only or [], ways, 2, args.rounds, args.seconds)
    elif args.report or args.plot:
        if args.report:
            print(report(read(args.report)))
        if args.plot:
            picture = (args.output or args.plot).with_suffix(".png")
            try:
                plot_cases(read(args.plot), args.only, picture) if args.only else plot(read(args.plot), picture)
            except ValueError as error:
                parser.error(str(error))
    elif args.output is None:
        parser.error("--output is needed")
    else:
        measure_cases(args)


def _possible_peers(args: argparse.Namespace) -> list[str]:
    """Those that were chosen, without what this machine cannot run."""
    peers = [peer for peer in (PEERS if args.device == "cpu" else CUDA_PEERS) if peer in args.peers or peer == "SB3"]
    if "SBX" in peers and importlib.util.find_spec("sbx") is None:
        print("SBX is left out: it is not installed (the extra sbx).")
        peers.remove("SBX")
    if BFLOAT16 in peers and not has_bfloat16(args.device):
        print(f"{BFLOAT16} is left out: this machine does not compute in bfloat16.")
        peers.remove(BFLOAT16)
    return peers


def measure_cases(args: argparse.Namespace) -> None:
    """Measure the chosen cases; the file is written after each of them."""
    peers = _possible_peers(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    path = args.output.with_name(f"{args.output.name}.csv")
    cases = cases_on(args.device)
    order = {case.name: place for place, case in enumerate(cases)}
    rows: list[dict[str, Any]] = read(path) if args.only and path.exists() else []
    for case in cases:
        if args.only and not any(word in case.name for word in args.only):
            continue
        measured = measure(case, peers_of(case, peers), args.rounds, args.seconds)
        rows = sorted([row for row in rows if row["case"] != case.name] + measured, key=lambda row: order[row["case"]])
        write(path, rows)
        speeds = [f"{row['peer']} {row['median']:,.0f} ({row['ratio']:.2f}x)" for row in measured]
        print(f"{case.name:34} {', '.join(speeds)}", flush=True)
    rows = read(path)
    print(report(rows))
    if args.device == "cpu" and {row["case"] for row in rows} == set(order):
        plot(rows, path.with_suffix(".png"))
