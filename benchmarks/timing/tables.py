"""What the rows say, as Markdown."""

from typing import Any

import numpy as np

from timing.cases import BFLOAT16, CONTRIB, CUDA_PEERS, PEERS, SOFT_QL_PEERS
from timing.rows import by_case


def report(rows: list[dict[str, Any]]) -> str:
    """Speeds with their ratios to SB3's, then memory, compile times and the distance to the limit, as Markdown."""
    soft_ql = {name: peers for name, peers in by_case(rows).items() if not set(peers) - set(SOFT_QL_PEERS)}
    table = {name: peers for name, peers in by_case(rows).items() if "SB3" in peers}
    contrib = {name: peers for name, peers in by_case(rows).items() if CONTRIB in peers}
    on_gpu = any(row.get("device") == "cuda" for row in rows)
    lines = ["| case | SoftQL eager | SoftQL compiled | limit |", "|---" * 4 + "|"] if soft_ql else []
    for name, (eager, compiled) in ((name, peers.values()) for name, peers in soft_ql.items()):
        limit = 1e3 * float(eager["gemm_gflops"]) / float(eager["mflop"])
        speeds = (
            f"{_rounded(float(eager['median']))} | {_rounded(float(compiled['median']))} ({float(compiled['ratio']):.2f}x)"
        )
        lines.append(f"| {name} | {speeds} | {_rounded(limit)} |")
    of_sac = _report_of_sac(table, on_gpu) if table else []
    columns = [CONTRIB, *(peer for peer in (CUDA_PEERS if on_gpu else PEERS) if peer != "SB3")]
    of_contrib = _speeds(contrib, columns) if contrib else []
    return "\n\n".join("\n".join(part) for part in (lines, of_contrib, of_sac) if part)


def _speeds(table: dict[str, dict[str, dict[str, Any]]], columns: list[str]) -> list[str]:
    """Speeds of some peers, with their ratios to the first of them, and the limit."""
    lines = [f"| case | {' | '.join(columns)} | limit |", "|---" * (len(columns) + 2) + "|"]
    for name, peers in table.items():
        cells = []
        for peer in columns:
            row = peers.get(peer)
            ratio = f" ({float(row['ratio']):.2f}x)" if row and peer != columns[0] else ""
            cells.append("" if row is None else f"{_rounded(float(row['median']))}{ratio}")
        row = peers[columns[0]]
        limit = 1e3 * float(row["gemm_gflops"]) / float(row["mflop"])
        lines.append(f"| {name} | {' | '.join(cells)} | {_rounded(limit) if row['kind'] == 'updates' else ''} |")
    return lines


def _report_of_sac(table: dict[str, dict[str, dict[str, Any]]], on_gpu: bool) -> list[str]:
    speeds = _speeds(table, list(CUDA_PEERS if on_gpu else PEERS))
    if on_gpu:
        return speeds  # what starts together says nothing of compile times
    return [*speeds, "", *_memory(table), "", *_compile_times(table)]


def _memory(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    lines = ["| case | peak memory, MB: SB3 | SoftAC eager | SoftAC compiled | SBX |", "|---" * 5 + "|"]
    for name, peers in table.items():
        if peers["SB3"]["kind"] != "updates":
            cells = [f"{float(peers[peer]['peak_rss_mb']):.0f}" if peer in peers else "" for peer in PEERS if peer != BFLOAT16]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _compile_times(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    lines = ["| case | first calls, s: SoftAC compiled | SBX | gradient steps that repay compiling |", "|---" * 4 + "|"]
    for name, peers in table.items():
        if peers["SB3"]["kind"] == "updates" and {"SoftAC eager", "SoftAC compiled"} <= peers.keys():
            eager, compiled = peers["SoftAC eager"], peers["SoftAC compiled"]
            saved = 1.0 / float(eager["median"]) - 1.0 / float(compiled["median"])
            extra = float(compiled["first_calls_s"]) - float(eager["first_calls_s"])
            steps = _rounded(extra / saved) if saved > 0.0 else "never"
            sbx = f"{float(peers['SBX']['first_calls_s']):.1f}" if "SBX" in peers else ""
            lines.append(f"| {name} | {float(compiled['first_calls_s']):.1f} | {sbx} | {steps} |")
    return lines


def _rounded(value: float) -> str:
    """Three digits."""
    if value <= 0.0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(value))))
    return f"{round(value, 2 - int(np.floor(np.log10(value)))):,.{digits}f}"
