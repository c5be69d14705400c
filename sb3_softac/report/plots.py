"""Panels as SVG, whose colours are variables of the page: one drawing for light and dark."""

import io
import re
from typing import Any

import numpy as np

from sb3_softac.report.curves import band, thin
from sb3_softac.report.data import ReportError, Series
from sb3_softac.report.panels import Line, Panel

#: colours that stand for those of the page, by the names of its variables
INK, GRID = "#0a0b01", "#0a0b02"
COLORS = tuple(f"#0a0c{index:02x}" for index in range(8))
VARIABLES = {INK: "ink", GRID: "grid", **{color: f"c{index}" for index, color in enumerate(COLORS)}}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "path.simplify": True,
}
WIDTH, HEIGHT = 5.4, 2.9


def require_matplotlib() -> None:
    """:raises ReportError: it is not installed"""
    try:
        import matplotlib.figure  # noqa: F401  # whether it can be
    except ImportError as error:
        raise ReportError(
            'The report needs matplotlib for its plots: pip install "sb3-softac[report]" installs it.'
        ) from error


def draw(panel: Panel, index: int) -> str:
    """The SVG element of a panel, to stand in an HTML page.

    :param panel: what is drawn
    :param index: another number for each panel of a page, so that no two names in it are the same
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    style: Any = STYLE | {"svg.hashsalt": f"panel {index}"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in panel.lines:
            _draw_line(axes, line)
        if panel.is_logarithmic and _spans_decades(panel):
            axes.set_yscale("log")
        _widen(axes, panel)
        axes.set_xlabel("environment steps")
        axes.set_ylabel(panel.unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_yscale() == "linear" and max(map(abs, axes.get_ylim())) >= 1e5:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.margins(x=0.02)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _of_page(file.getvalue(), panel.title)


def _draw_line(axes: Any, line: Line) -> None:
    color, style = COLORS[line.color % len(COLORS)], ("-", "--", ":")[line.dashes]
    for points in line.points:
        shown = thin(points, 1000)
        axes.plot(shown.steps, shown.values, ".", color=color, alpha=0.3, markersize=3, markeredgewidth=0)
    together = band(line.curves)
    for curve in line.curves:
        _draw_curve(axes, thin(curve), color, style, is_faint=together is not None)
    if together is not None:
        axes.fill_between(together.steps, together.low, together.high, color=color, alpha=0.18, linewidth=0)
        axes.plot(together.steps, together.mean, style, color=color)


def _draw_curve(axes: Any, curve: Series, color: str, style: str, is_faint: bool) -> None:
    look: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.4} if is_faint else {}
    if len(curve) == 1:
        look["marker"] = "o"  # one point makes no line
    axes.plot(curve.steps, curve.values, style, color=color, **look)


def _values(panel: Panel) -> Any:
    return np.concatenate([curve.values for line in panel.lines for curve in line.curves])


def _widen(axes: Any, panel: Panel) -> None:
    """A constant is no noise of rounding."""
    low, high = float(_values(panel).min()), float(_values(panel).max())
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * largest:
        around = 0.1 * largest or 1.0
        axes.set_ylim(low - around, high + around)


def _spans_decades(panel: Panel) -> bool:
    values = _values(panel)
    return bool((values > 0).all() and values.max() > 100 * values.min())


def _of_page(svg: str, title: str) -> str:
    """Without what belongs to a file of its own, and with the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names that all drawings have
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg role="img" aria-label="{title}" {box.group(0) if box else ""}>'
    svg = re.sub(r"<svg[^>]*>", head, svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # of the family that the page has
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return re.sub(r"\n\s*\n", "\n", svg)
