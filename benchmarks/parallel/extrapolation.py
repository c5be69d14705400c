"""Tables and plots of data_parallel.py: what was measured, how well formulas fit it, and what they say of larger groups."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

from parallel import cost_model
from parallel.cost_model import Means, Ring, Step, Tree

INTEGERS = ("ranks", "threads", "units", "batch", "numbers", "rounds", "cores")
#: seconds of a gradient step with 2x256 networks and a batch of 256 on an NVIDIA H200 (speed-cuda.csv), eager and captured
GPU_EAGER, GPU_CAPTURED = 1.0 / 193.4, 1.0 / 1018.5
#: bytes of a number
BYTES = 4
#: joint batch that ranks divide among themselves
JOINT_BATCH = 8192
#: the most ranks that are asked about: with a batch each, and with a share of the joint batch
MOST, MOST_DIVIDED = 16_384, JOINT_BATCH // 32


@dataclasses.dataclass(frozen=True)
class Machines:
    """A group that was not measured, and what is assumed of it.

    :param latency: seconds until a message of one number arrives at the next rank
    :param bandwidth: bytes per second that each rank sends and receives
    :param overhead: seconds that a call costs before anything is sent
    """

    name: str
    step: float
    ranks: int
    latency: float
    bandwidth: float
    overhead: float
    tree: bool = False

    @property
    def means(self) -> Means:
        kind = Tree if self.tree else Ring
        hop = self.latency if self.tree else 2.0 * self.latency  # a ring has 2(R − 1) rounds
        each = kind(self.overhead, hop, BYTES / self.bandwidth)
        return Means(each, each)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, with numbers as numbers."""
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: int(row[name]) for name in INTEGERS}
        row |= {"seconds": float(row["seconds"]), "silent": row["silent"] == "True"}
    return rows


def fits(rows: list[dict[str, Any]]) -> tuple[Step, Means]:
    """Eager steps of one rank with one thread, and means."""
    alone = [row for row in rows if row["kind"] == "step" and row["ranks"] == row["threads"] == 1 and row["way"] == "eager"]
    means = [row for row in rows if row["kind"] == "mean"]
    gradients = Ring.fitted([row for row in means if row["numbers"] > 1], means[0]["cores"])
    return Step.fitted(alone), Means(gradients, Ring.fitted([row for row in means if row["numbers"] == 1], means[0]["cores"]))


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The row that has these values."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))


def milliseconds(seconds: float) -> str:
    three = float(f"{1e3 * seconds:.3g}")
    return f"{three:,.0f}" if three >= 1000.0 else f"{three:g}"


def measured_pairs(rows: list[dict[str, Any]]) -> str:
    """Two ranks with one thread each beside one process with two, which has the joint batch."""
    lines = []
    for two in (row for row in rows if row["kind"] == "step" and row["ranks"] == 2 and not row["silent"]):
        shape = {"kind": "step", "way": two["way"], "units": two["units"]}
        others = [
            find(rows, **shape, ranks=1, threads=1, batch=two["batch"]),
            find(rows, **shape, ranks=1, threads=2, batch=2 * two["batch"]),
            find(rows, **shape, ranks=2, threads=1, batch=two["batch"], silent=True),
        ]
        times = [row["seconds"] for row in (*others, two) if row is not None]
        if len(times) == 4:
            alone, joint, _, both = times
            name = f"2x{two['units']}, {two['way']}"
            lines.append([name, *map(milliseconds, times), f"{joint / both:.2f}", f"{100.0 * alone / both:.0f} %"])
    heads = ["networks", "1 process, 1 thread, batch 256", "1 process, 2 threads, batch 512"]
    heads += ["2 ranks, 256 each, without messages", "2 ranks, 256 each", "speed of ranks", "efficiency"]
    return table(heads, lines)


def fitted_errors(rows: list[dict[str, Any]], step: Step, means: Means) -> str:
    """Measured and fitted milliseconds."""
    lines = []
    for row in rows:
        if row["kind"] == "mean":
            kind = means.single if row["numbers"] == 1 else means.gradients
            fitted, name = kind.seconds(row["numbers"], row["ranks"]), f"mean of {row['numbers']:,}"
        elif row["way"] == "eager" and row["threads"] == row["ranks"] == 1:
            fitted = step.seconds(row["numbers"], row["batch"])
            name = f"step, 2x{row['units']}, batch {row['batch']}"
        else:
            continue
        error = 100.0 * (fitted / row["seconds"] - 1.0)
        lines.append([name, str(row["ranks"]), milliseconds(row["seconds"]), milliseconds(fitted), f"{round(error):+d} %"])
    return table(["what", "ranks", "measured, ms", "fitted, ms", "error"], lines)


def groups(rows: list[dict[str, Any]]) -> list[Machines]:
    """What is extrapolated to: each with 2x256 networks, and a batch of 256 for each rank."""
    row = find(rows, kind="step", way="compiled", units=256, batch=256, ranks=1, threads=1)
    assert row is not None, "data_parallel.py measures it"
    here = row["seconds"]
    return [
        Machines("8 GPUs of one machine, eager", GPU_EAGER, 8, 2e-6, 150e9, 20e-6),
        Machines("8 GPUs of one machine, if steps were captured", GPU_CAPTURED, 8, 2e-6, 150e9, 20e-6),
        Machines("64 CPU ranks, compiled, 25 Gbit/s, ring", here, 64, 30e-6, 3e9, 100e-6),
        Machines("1,000 CPU ranks, compiled, 25 Gbit/s, ring", here, 1000, 30e-6, 3e9, 100e-6),
        Machines("1,000 CPU ranks, compiled, 25 Gbit/s, tree", here, 1000, 30e-6, 3e9, 100e-6, tree=True),
    ]


def parameters(rows: list[dict[str, Any]]) -> int:
    """Those of 2x256 networks."""
    row = find(rows, kind="step", units=256)
    assert row is not None
    return int(row["numbers"])


def extrapolated(rows: list[dict[str, Any]]) -> str:
    """Steps of the groups that were not measured, each rank with a batch of its own."""
    numbers, lines = parameters(rows), []
    for group in groups(rows):

        def share(ranks: int, group: Machines = group) -> float:
            return cost_model.efficiency(group.step, group.means.seconds(numbers, ranks))

        half = cost_model.largest(lambda ranks, share=share: share(ranks) >= 0.5, MOST)  # type: ignore[misc]
        times = [milliseconds(group.step), milliseconds(group.means.seconds(numbers, group.ranks))]
        shares = [f"{100.0 * share(group.ranks):.0f} %", f"{group.ranks * share(group.ranks):.3g}"]
        lines.append([group.name, *times, *shares, f"{half:,}" if half < MOST // 2 else "more than 8,000"])
    heads = ["group", "own step, ms", "means, ms", "efficiency", "times the transitions of one", "50 % efficiency up to"]
    return table(heads, lines)


def divided(rows: list[dict[str, Any]], step: Step) -> str:
    """One joint batch, divided among ever more ranks of the measured kind (eager, a core each)."""
    lines = []
    for units, numbers in sorted({row["units"]: row["numbers"] for row in rows if row["kind"] == "step"}.items()):
        for group in (group for group in groups(rows) if group.ranks == 1000):

            def seconds(ranks: int, numbers: int = numbers, means: Means = group.means) -> float:
                return step.seconds(numbers, JOINT_BATCH / ranks) + means.seconds(numbers, ranks)

            best = cost_model.fastest(seconds, MOST_DIVIDED)
            cells = [milliseconds(seconds(1)), f"{best}", milliseconds(seconds(best)), f"{seconds(1) / seconds(best):.3g}"]
            lines.append([f"2x{units}", "tree" if group.tree else "ring", *cells])
    return table(["networks", "mean", "1 rank, ms", "fastest with", "ms", "times as fast"], lines)


def report(rows: list[dict[str, Any]]) -> str:
    """All tables, in Markdown."""
    step, means = fits(rows)
    ring, single = means.gradients, means.single
    assert isinstance(ring, Ring)
    formulas = (
        f"step: {1e3 * step.base:.3g} ms + {1e12 * step.per_product:.3g} ps·P·B + {1e9 * step.per_parameter:.3g} ns·P\n"
        f"mean: {1e3 * ring.per_message:.3g} ms + c·(R - 1)·"
        f"({1e3 * ring.per_hop:.3g} ms + {1e9 * ring.per_number:.3g} ns·2n/R)\n"
        f"mean of one number: {1e3 * single.per_message:.3g} ms + c·(R - 1)·{1e3 * single.per_hop:.3g} ms"
        f"    (c: ranks per core, at least 1; {ring.cores} cores)"
    )
    parts = [
        f"Measured on {rows[0]['machine']}, torch {rows[0]['torch']}, {rows[0]['rounds']} rounds",
        measured_pairs(rows),
        formulas,
        fitted_errors(rows, step, means),
        extrapolated(rows),
        divided(rows, step),
    ]
    return "\n\n".join(parts)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Means as measured and fitted; efficiency over ranks of the groups."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    _, fitted = fits(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.0, 4.2), layout="constrained")
    sizes = sorted({row["numbers"] for row in rows if row["kind"] == "mean" and row["numbers"] > 1})
    for index, ranks in enumerate(sorted({row["ranks"] for row in rows if row["kind"] == "mean"})):
        points = [(row["numbers"], 1e3 * row["seconds"]) for row in rows if row["kind"] == "mean" and row["ranks"] == ranks]
        left.plot(*zip(*points, strict=True), "o", color=f"C{index}", label=f"{ranks} ranks")
        left.plot(sizes, [1e3 * fitted.gradients.seconds(size, ranks) for size in sizes], color=f"C{index}")
    left.set(xscale="log", yscale="log", xlabel="numbers", ylabel="milliseconds", title="A mean: measured, fitted (lines)")
    left.legend()
    numbers = parameters(rows)
    counts = [2**power for power in range(11)]
    for group in (each for each in groups(rows) if not (each.ranks == 64 and not each.tree)):
        name = group.name.replace("1,000 CPU ranks", "CPU ranks").replace("8 GPUs of one machine", "GPUs")
        line = [100.0 * cost_model.efficiency(group.step, group.means.seconds(numbers, count)) for count in counts]
        last = [count for count in counts if "GPU" not in group.name or count <= group.ranks]
        right.plot(last, line[: len(last)], marker=".", label=name)
    right.axhline(50.0, color="grey", linestyle=":", linewidth=1.0)
    right.set(
        xscale="log", ylim=(0.0, 103.0), xlabel="ranks", ylabel="efficiency, %", title="Extrapolated, 2x256, batch 256 each"
    )
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
