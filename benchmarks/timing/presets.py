"""Presets beside the limit of their arithmetic."""

import statistics
import time
from typing import Any

from flops import gradient_step_flops  # benchmarks/flops.py

from timing.limit import gemm_rate
from timing.machine import machine
from timing.models import make_preset_model


def seconds_per_step(model: Any, at_least: float) -> float:
    """Time of a gradient step, as a mean over ``at_least`` seconds of those that the model does at a time."""
    at_a_time = max(model.gradient_steps, 1)
    start, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < at_least:
        model.train(at_a_time, model.batch_size)
        steps += at_a_time
    return elapsed / steps


def flops_row(name: str, ways: list[str], threads: int, rounds: int, seconds: float) -> str:
    """One preset: its floating-point operations, and how long a gradient step takes beside them, as a row of Markdown.

    The matmul and all ways take turns; times are medians, and the matmul's speed is the highest.
    """
    flop = gradient_step_flops(make_preset_model(name, compile=False))
    models = {way: make_preset_model(name, compile=way.endswith("compiled")) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for model in models.values():
        for _ in range(max(3, getattr(model, "policy_delay", 1))):  # compiles every kind of step
            model.train(1, model.batch_size)
    peak = 0.0
    for _ in range(rounds):
        peak = max(peak, gemm_rate(threads, "cpu", sizes=((1024, 2),)))
        for way, model in models.items():
            times[way].append(seconds_per_step(model, seconds))
    limit = flop / peak
    cells = [f"{1e3 * statistics.median(each):.2f} | {statistics.median(each) / limit:.1f}" for each in times.values()]
    return f"| `{name}` | {flop / 1e6:,.1f} | {peak / 1e9:.0f} | {1e3 * limit:.2f} | {' | '.join(cells)} |"


def print_flops(chosen: list[str], ways: list[str], threads: int, rounds: int, seconds: float) -> None:
    """The table of all presets whose names contain one of the chosen words, or of all; each row is printed when it is done."""
    from sb3_softac import presets

    names = [
        name for name in (*presets.PRESETS, *presets.SOFTQL_PRESETS) if not chosen or any(word in name for word in chosen)
    ]
    columns = " | ".join(f"{way.rpartition(' ')[2]}, ms | / limit" for way in ways)
    print(f"{machine('cpu')}, {threads} threads\n")
    print(f"| preset | MFLOP per gradient step | 1024³ matmul, GFLOP/s | limit, ms | {columns} |")
    print("|---" * (4 + 2 * len(ways)) + "|", flush=True)
    for name in names:
        print(flops_row(name, ways, threads, rounds, seconds), flush=True)
