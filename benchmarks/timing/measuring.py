"""Peers in processes of their own, which take turns."""

import dataclasses
import multiprocessing
import platform
import statistics
from collections.abc import Callable
from typing import Any

from timing.cases import Case
from timing.limit import flop_of, gemm_rate
from timing.machine import PACKAGES, limited, machine, version
from timing.work import worker


def measure(
    case: Case,
    peers: list[str],
    rounds: int,
    seconds: float,
    target: Callable[..., None] = worker,
    keep_rates: bool = False,
) -> list[dict[str, Any]]:
    """One row for each peer, which ``target`` runs in a process of its own; with the speeds of all rounds, if asked for."""
    ends, started = _start(case, peers, seconds, target)
    with limited(case.threads, pinned=case.device == "cpu"):  # oneDNN goes on with the threads that a process once had
        arithmetic = multiprocessing.get_context("spawn").Pool(1)
    flop = arithmetic.apply(flop_of, (case,))
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    memory: dict[str, float] = {}
    gemm = [0.0]
    for turn in range(rounds):
        if case.kind == "updates":
            gemm.append(arithmetic.apply(gemm_rate, (case.threads, case.device)))
        for peer in peers[turn % len(peers) :] + peers[: turn % len(peers)]:  # nobody is always the first
            ends[peer].send(None)
            rate, memory[peer] = ends[peer].recv()
            rates[peer].append(rate)
    arithmetic.terminate()
    for end in ends.values():
        end.close()
    limits = {"mflop": round(flop / 1e6, 2), "gemm_gflops": round(max(gemm) / 1e9, 1)}
    setting = setting_of(case, rounds, seconds)
    rows = [row_of(case, peer, rates, started[peer], memory[peer]) | limits | setting for peer in peers]
    return [row | {"rates": rates[row["peer"]]} for row in rows] if keep_rates else rows


def _start(
    case: Case, peers: list[str], seconds: float, target: Callable[..., None]
) -> tuple[dict[str, Any], dict[str, float]]:
    """The connections to the processes of all peers, which are ready, and the seconds of the first calls of each."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Any] = {}
    started: dict[str, float] = {}
    on_cpu = case.device == "cpu"
    for peer in peers:
        ends[peer], other = context.Pipe()
        with limited(case.threads, pinned=on_cpu):
            context.Process(target=target, args=(other, case, peer, seconds), daemon=True).start()
        other.close()
        if on_cpu:  # one after the other
            started[peer] = ends[peer].recv()
    started |= {peer: ends[peer].recv() for peer in peers if peer not in started}  # all are ready before one is measured
    return ends, started


def setting_of(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        **{field.name: getattr(case, field.name) for field in dataclasses.fields(case) if field.name != "name"},
        "rounds": rounds,
        "seconds": seconds,
        "machine": machine(case.device),
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
    }


def row_of(case: Case, peer: str, rates: dict[str, list[float]], started: float, memory: float) -> dict[str, Any]:
    """What was measured of one peer; ratios are to the first."""
    first = next(iter(rates.values()))
    return {
        "case": case.name,
        "peer": peer,
        "unit": "gradient steps/s" if case.kind == "updates" else "environment steps/s",
        "median": round(statistics.median(rates[peer]), 2),
        "ratio": round(statistics.median(a / b for a, b in zip(rates[peer], first, strict=True)), 3),
        "lowest": round(min(rates[peer]), 2),
        "highest": round(max(rates[peer]), 2),
        "first_calls_s": round(started, 2),
        "peak_rss_mb": round(memory, 1),
    }
