"""The formulas of benchmarks/parallel: they are found again in times that they made, and say what follows from them."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from parallel import cost_model, extrapolation  # benchmarks/parallel

DATA = Path(__file__).parent.parent / "docs" / "data-parallel.csv"


def test_the_coefficients_of_a_step_are_found_again() -> None:
    true = cost_model.Step(2e-3, 1e-10, 3e-9)
    shapes = [(1e4, 64), (1e4, 1024), (1e6, 64), (1e6, 256)]
    rows = [{"numbers": p, "batch": b, "seconds": 2e-3 + 1e-10 * p * b + 3e-9 * p} for p, b in shapes]
    fitted = cost_model.Step.fitted(rows)
    assert fitted.base == pytest.approx(true.base)
    assert fitted.per_product == pytest.approx(true.per_product)
    assert fitted.per_parameter == pytest.approx(true.per_parameter)
    assert fitted.seconds(5e5, 100) == pytest.approx(2e-3 + 5e-3 + 1.5e-3)


def test_the_coefficients_of_a_ring_are_found_again() -> None:
    # Four ranks on two cores take turns, eight wait twice as long again.
    shares = {2: 1.0, 4: 2.0, 8: 4.0}
    rows = [
        {"numbers": n, "ranks": r, "seconds": 1e-4 + (r - 1) * share * (5e-5 + 2.0 * n / r * 1e-9)}
        for r, share in shares.items()
        for n in (1e3, 1e5, 1e7)
    ]
    fitted = cost_model.Ring.fitted(rows, cores=2)
    assert fitted.per_message == pytest.approx(1e-4)
    assert fitted.per_hop == pytest.approx(5e-5)
    assert fitted.per_number == pytest.approx(1e-9)
    assert fitted.seconds(1e6, 1) == 0.0


def test_no_coefficient_is_negative() -> None:
    rows = [{"numbers": p, "batch": b, "seconds": t} for p, b, t in ((1e4, 64, 2e-3), (1e5, 64, 1e-3), (1e6, 256, 5e-2))]
    fitted = cost_model.Step.fitted(rows)
    assert min(fitted.base, fitted.per_product, fitted.per_parameter) >= 0.0


def test_means_of_a_step_are_those_of_critics_actor_and_temperature() -> None:
    ring, tree = cost_model.Ring(1e-3, 1e-4, 1e-9), cost_model.Tree(1e-3, 1e-4, 1e-9)
    # 200 and 100 numbers over 4 ranks, then one: 2·3/4 of them pass each rank.
    assert cost_model.Means(ring, ring).seconds(300, 4) == pytest.approx(3 * 1e-3 + 9 * 1e-4 + 301 * 1.5 * 1e-9)
    assert cost_model.Means(tree, tree).seconds(300, 4) == pytest.approx(3 * 1e-3 + 3 * 4 * 1e-4 + 301 * 2.0 * 1e-9)


def test_efficiency_falls_to_a_half_where_means_take_as_long_as_the_step() -> None:
    ring = cost_model.Ring(0.0, 1e-3, 0.0)  # three means: 3 ms for each further rank
    means = cost_model.Means(ring, ring)

    def share(ranks: int) -> float:
        return cost_model.efficiency(0.03, means.seconds(1, ranks))

    assert share(1) == 1.0
    assert share(11) == pytest.approx(0.5)
    assert cost_model.largest(lambda ranks: share(ranks) >= 0.5 - 1e-9, 1000) == 11


def test_the_fastest_division_of_a_batch_is_where_both_costs_meet() -> None:
    # 0.1/R + 1e-3·(R − 1) is least at R = 10.
    ring = cost_model.Ring(0.0, 1e-3, 0.0)
    assert cost_model.fastest(lambda ranks: 0.1 / ranks + ring.seconds(1, ranks), 500) == 10
    assert cost_model.fastest(lambda ranks: 0.1 / ranks, 500) == 500


NUMBER = re.compile(r"([-+]?\d[\d,.]*)( %)?")


def are_alike(table: str, other: str) -> bool:
    """The same words, and the same numbers up to their last digit, which another processor may round in another way."""
    if NUMBER.sub("", table) != NUMBER.sub("", other):
        return False
    for (mine, percent), (theirs, _) in zip(NUMBER.findall(table), NUMBER.findall(other), strict=True):
        rel, error = (0.0, 1.0) if percent else (0.01, 0.0)
        if float(mine.replace(",", "")) != pytest.approx(float(theirs.replace(",", "")), rel=rel, abs=error):
            return False
    return True


def test_the_committed_measurements_are_fitted() -> None:
    rows = extrapolation.read(DATA)
    step, means = extrapolation.fits(rows)
    for row in rows:
        if row["kind"] == "mean":
            fitted = (means.single if row["numbers"] == 1 else means.gradients).seconds(row["numbers"], row["ranks"])
        elif row["ranks"] == row["threads"] == 1 and row["way"] == "eager":
            fitted = step.seconds(row["numbers"], row["batch"])
        else:
            continue
        assert fitted == pytest.approx(row["seconds"], rel=0.4), row
    report = extrapolation.report(rows)
    page = (DATA.parent / "distributed.md").read_text()
    tables = [part for part in report.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    assert all(any(are_alike(table, part) for part in page.split("\n\n")) for table in tables)
    assert not are_alike(tables[0], re.sub(r"\d\.", "7.", tables[0]))


def test_a_drawing_is_written(tmp_path: Path) -> None:
    extrapolation.draw(extrapolation.read(DATA), tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 10_000
