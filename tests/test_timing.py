"""benchmarks/speed.py: its tables, figure, columns and command line, from the files that are committed."""

import ast
import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from timing import command
from timing.cases import CUDA_PEERS, Case, cases_on, peers_of
from timing.figure import GROWTH, plot
from timing.machine import limited
from timing.measuring import row_of, setting_of
from timing.rows import read, write
from timing.tables import report

from tests.test_structure import length

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FILES = [ROOT / "benchmarks" / "speed.py", *sorted((ROOT / "benchmarks" / "timing").glob("*.py"))]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", *map(str, arguments)])
    command.main("what it does")


def cells_of(text: str) -> dict[str, list[str]]:
    """What stands beside each case in tables, in order; not their headings."""
    found: dict[str, list[str]] = {}
    for case, cells in re.findall(r"^\| ([^|`-][^|]*) \|(.*)\|$(?!\n\|---)", text, flags=re.MULTILINE):
        found.setdefault(case, []).extend(cell.strip() for cell in cells.split("|") if cell.strip())
    return found


@pytest.mark.parametrize(
    ("name", "heading", "following"),
    [
        ("speed", "### How fast", "### Another processor"),
        ("speed-zen3", "### Another processor", "### Starting"),
        ("speed-cuda", "### On a GPU", "## A standard deviation"),
    ],
)
def test_tables_of_the_page_are_those_that_are_printed(
    name: str, heading: str, following: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page leaves out columns; what it shows of a case is printed for this case, in this order."""
    run(monkeypatch, "--report", DOCS / f"{name}.csv")
    printed = cells_of(capsys.readouterr().out)
    page = (DOCS / "benchmarks.md").read_text().split(heading)[1].split(following)[0]
    shown = {case: cells for case, cells in cells_of(page).items() if case in printed}
    assert len(shown) > 5
    for case, cells in shown.items():
        remaining = iter(printed[case])
        assert [cell for cell in cells if cell not in remaining] == [], case  # `in` goes on behind the last find


def test_the_printed_tables_by_hand() -> None:
    """Every part of a report: speeds with ratios and limit, memory where the environment is measured, and compile times."""
    common = {"kind": "updates", "mflop": "500", "gemm_gflops": "100", "device": "cpu", "peak_rss_mb": "300"}
    eager = {"case": "2x256", "peer": "SoftAC eager", "median": "200", "ratio": "2.0", "first_calls_s": "0.5", **common}
    compiled = eager | {"peer": "SoftAC compiled", "median": "400", "ratio": "4.0", "first_calls_s": "20.5"}
    sb3 = eager | {"peer": "SB3", "median": "100.4", "ratio": "1.0"}
    acting = {"case": "act", "kind": "act", "mflop": "500", "median": "1234.5"}
    lines = report(
        [sb3, eager, compiled, sb3 | acting, eager | acting | {"ratio": "2.5", "peak_rss_mb": "301.6"}]
    ).splitlines()
    assert lines[0] == "| case | SB3 | SoftAC eager | SoftAC compiled | SBX | SoftAC compiled, bfloat16 | limit |"
    assert lines[2] == "| 2x256 | 100 | 200 (2.00x) | 400 (4.00x) |  |  | 200 |"
    assert lines[3] == "| act | 1,230 | 1,230 (2.50x) |  |  |  |  |"
    assert lines[7] == "| act | 300 | 302 |  |  |"
    assert lines[11] == "| 2x256 | 20.5 |  | 8,000 |"  # 20 s more, 2.5 ms saved by each step


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_have_the_columns_of_the_committed_file(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timing.measuring.machine", lambda device: "a processor")
    case = cases_on(device)[0]
    rates = {"SB3": [1.0, 2.0, 4.0], "SoftAC eager": [3.0, 4.0, 6.0]}
    row = row_of(case, "SoftAC eager", rates, 0.5, 300.0) | {"mflop": 1.0, "gemm_gflops": 2.0} | setting_of(case, 7, 0.7)
    assert (row["median"], row["ratio"], row["lowest"], row["highest"]) == (4.0, 2.0, 3.0, 6.0)
    with (DOCS / ("speed.csv" if device == "cpu" else "speed-cuda.csv")).open(newline="") as file:
        columns = set(next(csv.reader(file)))
    assert columns <= set(row)


def test_a_file_keeps_all_columns(tmp_path: Path) -> None:
    rows = read(DOCS / "speed.csv")
    write(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_bytes() == (DOCS / "speed.csv").read_bytes()


def test_the_figure_has_a_bar_for_each_ratio_and_a_curve_for_each_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append((figure, path)))
    rows = read(DOCS / "speed.csv")
    plot(rows, tmp_path / "speed.png")
    ((figure, path),) = drawn
    ratios, *growth = figure.axes
    of_sac = [row for row in rows if row.get("algorithm") in (None, "", "SAC") and not row["case"].startswith("SoftQL")]
    assert len(ratios.patches) == sum(row["peer"] != "SB3" for row in of_sac)
    assert path.name == "speed.png"
    assert len(growth) == len(GROWTH)
    assert all(len(axis.lines) == len({row["peer"] for row in of_sac}) for axis in growth)
    plt.close("all")


def test_the_figure_of_some_cases_names_their_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append((figure, path)))
    run(monkeypatch, "--plot", DOCS / "speed.csv", "--only", "critics, 20", "2x256, 2 t", "--output", tmp_path / "some")
    ((figure, path),) = drawn
    (axis,) = figure.axes
    cases = ["10 critics, 20 steps, 1 thread", "2x256, 2 threads", "10 critics, 20 steps, 2 threads"]
    assert path == tmp_path / "some.png"
    assert [label.get_text() for label in axis.get_yticklabels()] == cases
    ratios = {(row["case"], row["peer"]): float(row["ratio"]) for row in read(DOCS / "speed.csv")}
    expected = {f"{ratios[case, peer]:.1f}x" for case in cases for peer in ("SoftAC eager", "SoftAC compiled", "SBX")}
    assert {text.get_text() for text in axis.texts} == expected
    with pytest.raises(SystemExit):
        run(monkeypatch, "--plot", DOCS / "speed.csv", "--only", "nothing")
    assert "No case has 'nothing' in its name" in capsys.readouterr().err
    assert len(drawn) == 1


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chosen cases are measured one by one, and the others of the file stay; SB3 is always there to compare with."""
    asked: list[tuple[str, list[str]]] = []

    def measured(case: Case, peers: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
        asked.append((case.name, peers))
        rates = {peer: [2.0] * rounds for peer in peers}
        return [row_of(case, peer, rates, 0.1, 1.0) | {"mflop": 1.0, "gemm_gflops": 2.0, "kind": case.kind} for peer in peers]

    monkeypatch.setattr(command, "measure", measured)
    output = tmp_path / "made" / "speed"
    for word in ("batch 1024", "batch 64"):
        run(monkeypatch, "--output", output, "--only", word, "--peers", "SoftAC eager", "--rounds", 3)
    assert asked == [("batch 1024", ["SB3", "SoftAC eager"]), ("batch 64", ["SB3", "SoftAC eager"])]
    rows = read(output.with_suffix(".csv"))
    assert [(row["case"], row["peer"]) for row in rows] == [
        (case, peer) for case in ("batch 64", "batch 1024") for peer in ("SB3", "SoftAC eager")
    ]
    assert "| batch 64 | 2.00 | 2.00 (1.00x) |" in capsys.readouterr().out
    assert not output.with_suffix(".png").exists()  # not all cases are there
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "--output is needed" in capsys.readouterr().err


def test_peers_of_a_case() -> None:
    by_name = {case.name: case for case in cases_on("cpu")}
    chosen = ["SB3", "SoftAC eager"]
    assert peers_of(by_name["batch 64"], chosen) == chosen
    assert peers_of(by_name["TQC 2x256, 1 thread"], chosen) == ["sb3-contrib", "SoftAC eager"]
    assert peers_of(by_name["SoftQL 2x256, 16 particles, 2 threads"], chosen) == ["SoftQL eager", "SoftQL compiled"]
    assert len({case.name for case in cases_on("cuda")}) == len(cases_on("cuda"))
    assert "SoftAC captured" in CUDA_PEERS


def test_threads_are_limited_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with limited(2, pinned=False):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("2", "2")
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 450
    lengths = {node.name: length(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert {name: lines for name, lines in lengths.items() if lines > 45} == {}
