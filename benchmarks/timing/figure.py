"""What the rows say, as a figure."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing.cases import BFLOAT16, PEERS, Case
from timing.rows import by_case

#: curves by the name of their panel: what is on the axis, and its value in a row
GROWTH: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "batch": ("batch size", lambda row: float(row["batch_size"])),
    "width": ("units of both hidden layers", lambda row: float(_widths(row)[0])),
    "critics": ("critics", lambda row: float(row["n_critics"])),
    "environments": ("environments, one update per step of all", lambda row: float(row["n_envs"])),
}
COLOURS = {"SB3": "0.5", "SoftAC eager": "tab:blue", "SoftAC compiled": "tab:orange", "SBX": "tab:green", BFLOAT16: "tab:red"}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios to SB3 in every case, and how the time of a gradient step grows."""
    rows = _rows_of_sac(rows)
    table = by_case(rows)
    figure, axes = _pyplot().subplot_mosaic(
        [["ratios", "batch"], ["ratios", "width"], ["ratios", "critics"], ["ratios", "environments"]],
        figsize=(12, 11),
        width_ratios=[1.6, 1.0],
        layout="constrained",
    )
    peers = _peers_in(table)
    _draw_ratios(axes["ratios"], table, peers)
    axes["ratios"].legend(loc="lower right")
    for name in GROWTH:
        _draw_growth(axes[name], rows, name, ["SB3", *peers])
    figure.savefig(path, dpi=110)


def plot_cases(rows: list[dict[str, Any]], words: list[str], path: Path) -> None:
    """Ratios to SB3 in those cases whose name has one of the words, each with its number.

    :raises ValueError: no case has one
    """
    table = {case: cells for case, cells in by_case(_rows_of_sac(rows)).items() if any(word in case for word in words)}
    if not table:
        raise ValueError(f"No case has {' or '.join(map(repr, words))} in its name: choose others, or leave out --only.")
    figure, axis = _pyplot().subplots(figsize=(9.9, 7.4), layout="constrained")
    _draw_ratios(axis, table, _peers_in(table))
    for bars in axis.containers:
        axis.bar_label(bars, fmt="{:.1f}x", padding=3, fontsize=11)
    axis.tick_params(labelsize=12)
    axis.xaxis.label.set_size(12)
    axis.margins(x=0.12)
    figure.legend(loc="outside upper center", ncols=4, fontsize=12)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # writes files, needs no screen
    from matplotlib import pyplot

    return pyplot


def _rows_of_sac(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["peer"] in PEERS and row.get("algorithm") in (None, "", "SAC")]


def _peers_in(table: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    return [peer for peer in PEERS if peer != "SB3" and any(peer in cells for cells in table.values())]


def _draw_ratios(axis: Any, table: dict[str, dict[str, dict[str, Any]]], peers: list[str]) -> None:
    height = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        present = [(line, float(cells[peer]["ratio"])) for line, cells in enumerate(table.values()) if peer in cells]
        places = [line + (index - (len(peers) - 1) / 2) * height for line, _ in present]
        axis.barh(places, [ratio for _, ratio in present], height, label=peer, color=COLOURS[peer])
    axis.axvline(1.0, color=COLOURS["SB3"], linewidth=1, label="SB3")
    axis.set_yticks(range(len(table)), list(table))
    axis.invert_yaxis()
    axis.set_xlabel("speed, multiple of SB3's")


def _draw_growth(axis: Any, rows: list[dict[str, Any]], name: str, peers: list[str]) -> None:
    from matplotlib import ticker

    label, value = GROWTH[name]
    for peer in peers:
        chosen = [row for row in rows if row["peer"] == peer and _belongs(row, name)]
        if name == "width":
            chosen = [row for row in chosen if len(set(_widths(row))) == 1]
        points = sorted((value(row), 1e3 / float(row["median"])) for row in chosen)
        axis.plot(*zip(*points, strict=True), "o-", label=peer, color=COLOURS[peer])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.set_xlabel(label)
    axis.set_ylabel("ms per environment step" if name == "environments" else "ms per gradient step")
    axis.grid(alpha=0.3)


def _widths(row: dict[str, Any]) -> list[str]:
    return str(row["net_arch"]).strip("()").split(", ")


def _belongs(row: dict[str, Any], name: str) -> bool:
    """Whether the row is a point of the curve ``name``: two threads, and all else as in the first case."""
    standard = {field.name: str(field.default) for field in dataclasses.fields(Case) if field.name != "name"}
    standard["kind"] = "learn" if name == "environments" else "updates"
    free = {"batch": "batch_size", "width": "net_arch", "critics": "n_critics", "environments": "n_envs"}[name]
    return all(str(row.get(field) or value) == value for field, value in standard.items() if field != free)
