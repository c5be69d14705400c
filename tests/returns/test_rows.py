"""The file of rows: no kill, no neighbour and no damage costs a finished run."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import rows
from harness.plans import Run

ROOT = Path(__file__).parents[2]
RUN = Run("SoftAC", "SoftAC", "Pendulum-v1", 0, 100)
OLD = "variant,env,steps,seed,return,settings\r\n"


def row(seed: int, **more: Any) -> dict[str, Any]:
    run = {"variant": "SoftAC", "env": "Pendulum-v1", "steps": 100, "seed": seed, "return": -1.5}
    return run | {"settings": '{"learning_starts": 1000, "learning_rate": 0.0003}', **more}


def start(code: str, path: Path) -> "subprocess.Popen[str]":
    """A Python process that has the harness and ``path``; what it prints can be read."""
    begin = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]\n"
    begin += "import os, pathlib, signal\nfrom harness import rows\nfrom tests.returns.test_rows import row\n"
    begin += f"path = pathlib.Path({str(path)!r})\n"
    return subprocess.Popen([sys.executable, "-c", begin + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def seeds(path: Path) -> list[int]:
    """Of a file that must be whole."""
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert all(None not in each and None not in each.values() for each in found)
    return [int(each["seed"]) for each in found]


def test_rows_of_older_files_stay_as_they_are(tmp_path: Path) -> None:
    """New columns are empty in them."""
    path = tmp_path / "rows.csv"
    rows.write(path, [row(0)])
    before = path.read_bytes()
    assert before.startswith(OLD.encode())
    assert rows.append(path, row(1, times="1.0 2.0"))
    assert not rows.append(path, row(1, times="3.0 4.0"))
    first, second = rows.read(path)
    assert (first["times"], second["times"]) == ("", "1.0 2.0")
    assert path.read_bytes().splitlines()[1] == before.splitlines()[1] + b","


def test_which_runs_are_missing() -> None:
    """A run is one of its settings, in any order, of its algorithm, steps and seed."""
    reordered = row(0, settings='{"learning_rate": 0.0003, "learning_starts": 1000}')
    written = {name: str(value) for name, value in reordered.items()}
    assert rows.missing([RUN], [written]) == []
    changes = ({"seed": "1"}, {"steps": "99"}, {"algorithm": "SoftQL"}, {"settings": ""})
    for change in (*changes, {"settings": '{"learning_rate": 0.0003}'}):
        assert rows.missing([RUN], [{**written, **change}]) == [RUN]


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_last_line_that_is_cut(cut: int, tmp_path: Path) -> None:
    """Reading refuses it, and whoever adds a row replaces it."""
    path = tmp_path / "rows.csv"
    rows.write(path, [row(0), row(1)])
    path.write_bytes(path.read_bytes()[: -cut - 1])
    with pytest.raises(ValueError, match=r"rows\.csv' is cut in line 3 .*remove that line"):
        rows.read(path)
    assert rows.append(path, row(2))
    assert seeds(path) == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD + "SoftAC,Pendu\r\nSoftAC,Pendulum-v1,100,1,-1.5,{}\r\n", r"is cut in line 2 \(2 of 6 columns\)"),
        ("variant,env\r\n", "has no column 'steps'"),
        ("var", "has no column 'variant'"),
        (OLD + "SoftAC,Pendulum-v1,100,x,-1.5,{}\r\n", "has in line 2 the seed 'x', which must be a whole number"),
        (OLD + "SoftAC,Pendulum-v1,1e5,1,-1.5,{}\r\n", "has in line 2 the steps '1e5'"),
        (OLD + "SoftAC,Pendulum-v1,100,1,high,{}\r\n", "has in line 2 a return, curve or settings that cannot be read"),
        (OLD + "SoftAC,Pendulum-v1,100,1,-1.5,{bad\r\n", "has in line 2 a return, curve or settings that cannot be read"),
    ],
)
def test_a_file_that_is_damaged_is_not_written_to(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    with pytest.raises(ValueError, match=message):
        rows.append(path, row(2))
    assert path.read_bytes() == text.encode()


def test_a_line_that_will_be_replaced_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    rows.write(path, [row(0), row(1)])
    rows.check_writable(path)
    assert not capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-2])  # as editors do it
    rows.check_writable(path)
    assert "ends within a line, which the next row replaces: 'SoftAC,Pendulum-v1,100,1," in capsys.readouterr().err


def test_rows_over_other_numbers_of_episodes() -> None:
    done = [{name: str(value) for name, value in row(seed, episodes=10).items()} for seed in (0, 1)]
    runs = [replace(RUN, seed=seed, episodes=episodes) for seed, episodes in ((0, 10), (1, 50), (2, 50))]
    assert rows.missing(runs, done) == [runs[2]]
    assert rows.of_other_episodes(runs, done) == [runs[1]]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "rows.csv"):
        with pytest.raises(ValueError, match=r"`--output` is .*, which cannot be written"):
            rows.check_writable(path)


def test_kills_and_neighbours(tmp_path: Path) -> None:
    """Two processes write to one file, and two more are killed with signal 9 in the middle of it.

    One of them dies before a new file is on the disk, one after it. Every row whose writer was told that it is safe is there,
    once, and nothing else of those that were killed.
    """
    path = tmp_path / "rows.csv"
    many = "for seed in range({0}, {0} + 15):\n    rows.append(path, row(seed)); print(seed, flush=True)\n"
    die = "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    killed = "rows.append(path, row({0})); print({0}, flush=True)\n" + die + "{1} = die\nrows.append(path, row({0} + 1))\n"
    processes = [
        start(many.format(0), path),
        start(many.format(100), path),
        start(killed.format(200, "pathlib.Path.replace"), path),
        start("import io\n" + killed.format(300, "os.fsync"), path),
    ]
    told = [int(number) for process in processes for number in process.communicate(timeout=300)[0].split()]
    assert [process.returncode for process in processes] == [0, 0, -9, -9]
    assert len(told) == 32
    assert sorted(seeds(path)) == sorted(told)
    rows.append(path, row(201))  # nobody is in the way
    assert seeds(path)[-1] == 201


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    code = "from tests.returns.test_rows import RUN\nwith rows.claim(path, RUN) as is_free:\n"
    code += "    print(is_free, flush=True); sys.stdin.read()\n"
    process = start(code, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert rows.is_claimed(path, RUN)
    assert not rows.is_claimed(path, Run("SoftAC", "SoftAC", "Pendulum-v1", 1, 100))
    process.kill()
    process.communicate()
    assert not rows.is_claimed(path, RUN)
    with rows.claim(path, RUN) as is_free:
        assert is_free
