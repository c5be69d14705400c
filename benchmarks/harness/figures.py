"""Learning curves over steps and over wall time, performance profiles, and probabilities of improvement, drawn."""

from pathlib import Path
from typing import Any

import numpy as np

from harness.evidence import Estimate, estimate, improvement, interquartile_curves, profiles, rliable
from harness.references import PREFIX, published_algorithms, published_at
from harness.rows import Row, check_place
from harness.scores import Array, Task, curves_over_time, final_scores, scale
from sb3_softac.arguments.checks import refuse

N_THRESHOLDS = 51
#: of published algorithms, the same on each task
MARKERS = "osv^DPX*<>dph8"


def pyplot() -> Any:
    """Matplotlib, which writes files and needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def check_plot(output: Path) -> None:
    """Before anything is calculated: whether a plot can be written there.

    :raises ValueError: no
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in known:
        refuse("--plot", str(output), f"a file that ends in one of {', '.join('.' + ending for ending in sorted(known))}")
    check_place("--plot", output)


#: panels beside each other
PANELS = 3


def draw_runs(rows: list[Row], output: Path) -> None:
    """The evaluations of every run over its steps: a panel for each task, a colour for each variant."""
    if not all(row.get("curve") for row in rows):
        raise ValueError("There are rows without a curve, so there is nothing to draw: leave out --plot, or choose others.")
    variants, tasks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("variant", "env"))
    n_columns, n_rows = min(len(tasks), PANELS), -(-len(tasks) // PANELS)
    size = (7.0, 4.0) if len(tasks) == 1 else (3.3 * n_columns, 3.7 * n_rows)
    figure, axes = pyplot().subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(axes.flat, tasks, strict=False):
        for row in (row for row in rows if row["env"] == task):
            curve = [float(value) for value in row["curve"].split()]
            steps = [int(row["steps"]) * (place + 1) / len(curve) for place in range(len(curve))]
            axis.plot(steps, curve, color=f"C{variants.index(row['variant'])}")
        axis.set_title(task)
        axis.set_xlabel("environment steps")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.locator_params(axis="x", nbins=7 if len(tasks) == 1 else 3)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("return of the deterministic policy")
    lines = [axes[0][0].plot([], [], color=f"C{number}")[0] for number in range(len(variants))]
    axes[0][0].legend(lines, variants)
    figure.savefig(output, dpi=110)


def draw_curve(axis: Any, x: Array, found: Estimate, color: str, label: str) -> None:
    axis.plot(x, found.value, color=color, label=label)
    axis.fill_between(x, found.low, found.high, color=color, alpha=0.15, linewidth=0)


def colors_of(tasks: list[Task]) -> dict[str, str]:
    return {variant: f"C{number}" for number, variant in enumerate(tasks[0].final)}


def _over_steps(axis: Any, task: Task, colors: dict[str, str]) -> None:
    curves = interquartile_curves({variant: curve[:, None, :] for variant, curve in task.curves.items()})
    for variant, found in curves.items():
        draw_curve(axis, task.points, found, colors[variant], variant)
    for number, each in enumerate(sorted(published_at(task.env, task.steps), key=lambda each: each.algorithm)):
        place = task.steps * (1.02 + 0.02 * number)  # side by side
        marker = MARKERS[sorted(published_algorithms()).index(each.algorithm) % len(MARKERS)]
        label = f"{PREFIX}{each.algorithm} (± std)"
        axis.errorbar(place, each.mean, each.deviation, fmt=marker, color="0.3", ms=5, lw=0.8, label=label)
    axis.set_xlabel("environment steps")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.locator_params(axis="x", nbins=5)


def _over_time(axis: Any, task: Task, colors: dict[str, str]) -> None:
    if not task.times:
        axis.text(0.5, 0.5, "no times in these rows", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    grid, curves = curves_over_time(task)
    unit, seconds = ("hours", 3600) if grid[-1] > 7200 else ("minutes", 60) if grid[-1] > 120 else ("seconds", 1)
    for variant, returns in curves.items():
        known = ~np.isnan(returns).any(axis=0)
        if known.any():
            found = interquartile_curves({variant: returns[:, None, known]})[variant]
            draw_curve(axis, grid[known] / seconds, found, colors[variant], variant)
    axis.set_xlabel(f"{unit} of training, without evaluations")


def _all_tasks(axis: Any, tasks: list[Task], reference: str, colors: dict[str, str]) -> None:
    for variant, color in colors.items():
        scores = []
        for task in tasks:
            low, high = scale(task, reference)
            scores.append((task.curves[variant] - low) / (high - low))
        found = interquartile_curves({variant: np.stack(scores, axis=1)})[variant]
        draw_curve(axis, np.arange(1, tasks[0].n_points + 1) / tasks[0].n_points, found, color, variant)
    axis.set_title(f"all tasks (score: random 0, {reference} 1)", fontsize=9)
    axis.set_xlabel("share of the steps")
    axis.set_ylabel("interquartile mean of scores")


def draw_curves(tasks: list[Task], reference: str | None, output: Path) -> None:
    """Interquartile means with 95 % intervals: each task over steps and over time, and the scores of all of them."""
    plt, colors = pyplot(), colors_of(tasks)
    has_all = reference is not None and len(tasks) > 1 and len({task.n_points for task in tasks}) == 1
    has_times = any(task.times for task in tasks)
    n_panels = len(tasks) + has_all
    n_columns, n_bands = min(n_panels, PANELS), -(-n_panels // PANELS)
    n_rows = n_bands * (1 + has_times)
    size = (4 * n_columns, 0.6 + 3 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    over_steps = axes[:: 1 + has_times].ravel()
    over_time = axes[1::2].ravel() if has_times else []
    for axis in (*over_steps[n_panels:], *over_time[len(tasks) :]):
        axis.set_axis_off()
    for axis, task in zip(over_steps, tasks, strict=False):
        _over_steps(axis, task, colors)
        axis.set_title(task.env, fontsize=9)
    for axis, task in zip(over_time, tasks, strict=False):
        _over_time(axis, task, colors)
    for axis in (*over_steps[: len(tasks)], *over_time[: len(tasks)]):
        axis.set_ylabel("interquartile mean of returns")
        axis.yaxis.set_major_formatter("{x:,.0f}")
    if has_all:
        assert reference is not None
        _all_tasks(over_steps[len(tasks)], tasks, reference, colors)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    entries = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width = min(len(entries), n_columns + 1)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=width, fontsize=8)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def draw_profiles(tasks: list[Task], reference: str, output: Path) -> None:
    """The share of runs above each score, the interquartile mean of scores, and probabilities of improvement."""
    plt, colors = pyplot(), colors_of(tasks)
    scores = final_scores(tasks, reference)
    every = np.concatenate([own.ravel() for own in scores.values()])
    thresholds = np.linspace(min(every.min(), 0.0), every.max(), N_THRESHOLDS)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for variant, found in profiles(scores, thresholds).items():
        draw_curve(left, thresholds, found, colors[variant], variant)
    left.set_xlabel(f"score (random 0, {reference} 1)")
    left.set_ylabel("share of runs above it")
    left.legend(fontsize=8)
    draw_bars(middle, estimate(scores, rliable()[1].aggregate_iqm), colors)
    middle.set_xlabel("interquartile mean of scores")
    if reference in scores and len(scores) > 1:
        draw_bars(right, improvement(scores, reference), colors)
        right.axvline(0.5, color="0.5", lw=0.8)
        right.set_xlim(0, 1)
        right.set_xlabel(f"probability of improvement\nover {reference}")
    else:
        right.set_axis_off()
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def draw_bars(axis: Any, found: dict[str, Estimate], colors: dict[str, str]) -> None:
    """An interval for each variant, with its value."""
    for place, (variant, each) in enumerate(found.items()):
        axis.plot([each.low, each.high], [place, place], color=colors[variant], lw=6, alpha=0.35, solid_capstyle="butt")
        axis.plot(each.value, place, "|", color=colors[variant], ms=14, mew=2)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(-0.6, len(found) - 0.4)
    axis.invert_yaxis()
