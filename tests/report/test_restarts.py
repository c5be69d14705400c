"""Logs of a training that began more than once, and logs that hold anything but numbers that one can calculate with."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from sb3_softac.report.command import main
from sb3_softac.report.curves import rolling, smooth
from sb3_softac.report.data import Episodes, Series, as_written, windowed
from sb3_softac.report.discovery import find_runs, read_run
from sb3_softac.report.estimates import discounted_returns
from sb3_softac.report.panels import mean_speed, speed
from sb3_softac.report.rules_runs import random_returns
from sb3_softac.report.settings import of_model
from sb3_softac.report.tables import read_evaluations, read_monitor, read_progress
from sb3_softac.report.verdicts import Unknown
from tests.report.made import write_evaluations, write_monitor, write_progress, write_run


class TestMonitor:
    def test_files_that_were_added_to_go_on_in_time(self, tmp_path: Path) -> None:
        """Two environments, each with a second start whose clock begins at 0 again."""
        for index in range(2):
            first = [(-100.0 + t, 10, float(t)) for t in range(1, 6)]
            second = [(float(t), 10, t + 0.5) for t in range(5)]
            write_monitor(tmp_path, first + second, name=f"{index}.monitor.csv")
        notes: list[str] = []
        episodes, _ = read_monitor([*tmp_path.glob("*.csv")], notes)
        assert episodes is not None
        assert not notes
        assert np.all(np.diff(episodes.seconds) >= 0)
        assert [*episodes.returns[::2]] == [-99, -98, -97, -96, -95, 0, 1, 2, 3, 4]
        assert episodes.seconds[-1] == 5 + 4.5

    def test_a_file_without_its_start_begins_with_the_others(self, tmp_path: Path) -> None:
        rows = [(1.0, 10, float(t)) for t in range(1, 4)]
        write_monitor(tmp_path, rows, start=1.7e9, name="1.monitor.csv")
        path = write_monitor(tmp_path, rows, name="0.monitor.csv")
        path.write_text('#{"t_start": 17\n' + path.read_text().partition("\n")[2])
        notes: list[str] = []
        episodes, _ = read_monitor([*tmp_path.glob("*.csv")], notes)
        assert episodes is not None
        assert [*episodes.seconds] == [1, 1, 2, 2, 3, 3]
        assert "taken to have begun with the first" in notes[0]

    @pytest.mark.parametrize("header", ["#[" + "[" * 100_000, '#{"t_start": ' + "9" * 400 + "}", '#{"t_start": 1e999}', "#5"])
    def test_a_header_that_says_nothing(self, header: str, tmp_path: Path) -> None:
        path = write_monitor(tmp_path, [(1.0, 10, 1.0)])
        path.write_text(header + "\n" + path.read_text().partition("\n")[2])
        episodes, _ = read_monitor([path], [])
        assert episodes is not None
        assert (len(episodes), episodes.started) == (1, None)

    def test_speed_does_not_count_the_time_between_two_starts(self, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 100, t) for t in (10.0, 20.0, 30.0, *(10.0 * n for n in range(1, 38)))])
        run = read_run(tmp_path, "run")
        curve = speed(run)
        assert curve is not None
        np.testing.assert_allclose(curve.values, 10.0)
        assert mean_speed(run) == pytest.approx(10.0)

    def test_episodes_of_a_file_that_was_begun_anew_are_the_last_ones(self, tmp_path: Path) -> None:
        """As SB3's Monitor does it for `load` and `learn(reset_num_timesteps=False)`: no episode is of random actions."""
        write_monitor(tmp_path, [(200.0, 200, float(t)) for t in range(1, 246)])
        steps = [*range(51_000, 100_000, 1000)]
        write_progress(tmp_path, {"time/total_timesteps": steps, "train/ent_coef": [0.1] * len(steps)})
        (tmp_path / "config.yml").write_text("learning_starts: 1000\n")
        (run,) = find_runs([tmp_path])
        assert run.episodes is not None
        assert (run.episodes.steps[0], run.episodes.steps[-1]) == (50_200, 99_000)
        assert "knows of 49,000 of 99,000 steps: its file was begun anew" in run.notes[-1]
        assert isinstance(random_returns(run), Unknown)

    def test_a_monitor_of_one_of_several_processes(self, tmp_path: Path) -> None:
        """Training in four processes counts the steps of all of them, and the folder has the Monitor of the first."""
        write_monitor(tmp_path, [(200.0, 200, float(t)) for t in range(1, 41)])
        steps = [*range(800, 32_800, 800)]
        write_progress(
            tmp_path, {"time/total_timesteps": steps, **{f"train/{name}": [5e6] * 40 for name in ("ent_coef", "q_value")}}
        )
        (tmp_path / "config.yml").write_text("learning_starts: 4000\n")
        (run,) = find_runs([tmp_path])
        assert run.episodes is not None
        assert run.episodes.steps[-1] == 8000
        assert "knows of 8,000 of 32,000 steps: it has seen a part of the training" in run.notes[-1]
        for unknown in (random_returns(run), discounted_returns(run)):
            assert isinstance(unknown, Unknown)
            assert "a part of the training" in unknown.reason

    def test_episodes_that_have_not_ended_are_no_new_beginning(self, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(200.0, 200, float(t)) for t in range(1, 41)])
        write_progress(tmp_path, {"time/total_timesteps": [8200], "train/ent_coef": [0.1]})
        (run,) = find_runs([tmp_path])
        assert run.episodes is not None
        assert run.episodes.steps[0] == 200
        assert not run.notes


class TestMetrics:
    def test_what_was_logged_later_replaces_what_lies_behind_it(self) -> None:
        series = as_written([(100, 1.0), (200, 1.0), (300, 1.0), (150, 2.0), (250, 2.0), (250, 3.0)])
        assert [*zip(series.steps, series.values, strict=True)] == [(100, 1.0), (150, 2.0), (250, 3.0)]

    def test_two_trainings_in_one_file(self, tmp_path: Path) -> None:
        """`learn` twice with one logger: counting begins again."""
        steps = [*range(100, 600, 100), *range(50, 600, 100)]
        write_progress(tmp_path, {"time/total_timesteps": steps, "train/ent_coef": [1.0] * 5 + [0.1] * 6})
        notes: list[str] = []
        found = read_progress(tmp_path / "progress.csv", notes)
        assert [*found["train/ent_coef"].values] == [0.1] * 6
        assert "goes back from step 500 to 50" in notes[0]

    def test_event_files_of_a_training_that_was_killed(self, tmp_path: Path) -> None:
        """The second one begins at the checkpoint before the end of the first."""
        for steps, value in ((range(100, 600, 100), 1.0), (range(350, 800, 100), 2.0)):
            writer = SummaryWriter(str(tmp_path), filename_suffix=f".{steps[0]}")
            for step in steps:
                writer.add_scalar("train/ent_coef", value, step)
            writer.close()
        run = read_run(tmp_path, "run")
        alpha = run.metrics["train/ent_coef"]
        assert [*zip(alpha.steps, alpha.values, strict=True)] == [
            *((step, 1.0) for step in (100, 200, 300)),
            *((step, 2.0) for step in (350, 450, 550, 650, 750)),
        ]
        assert "goes back from step 500 to 350" in run.notes[0]

    def test_means_are_of_their_own_values(self) -> None:
        """A huge value is forgotten when the window has left it."""
        returns = np.array([-1e20, *[100.0] * 399])
        episodes = Episodes(returns, np.ones(400), np.arange(400.0))
        assert smooth(episodes).values[-1] == 100.0
        assert rolling(Series(np.arange(400.0), returns)).values[-1] == 100.0
        np.testing.assert_allclose(windowed(np.arange(5.0), 2), [0.0, 0.5, 1.5, 2.5, 3.5])


def spoil_evaluations(folder: Path) -> None:
    np.savez_compressed(
        folder / "evaluations.npz", timesteps=np.arange(999), results=np.random.default_rng(0).random((999, 9))
    )
    content = bytearray((folder / "evaluations.npz").read_bytes())
    content[3000:3100] = bytes(range(100))
    (folder / "evaluations.npz").write_bytes(bytes(content))


def encrypt_model(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("data", "{}")
    content = bytearray((folder / "model.zip").read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + place] |= 1
    (folder / "model.zip").write_bytes(bytes(content))


def nest_model(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("data", "[" * 100_000)


def configure(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.yml").write_text(text)


def command_line(**arguments: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        (folder / "config.yml").write_text("gamma: 0.9\n")
        (folder / "args.yml").write_text(json.dumps(arguments))

    return write


def log(**columns: Any) -> Callable[[Path], Any]:
    return lambda folder: write_progress(folder, {name.replace("__", "/"): values for name, values in columns.items()})


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "compressed evaluations with other bytes": spoil_evaluations,
    "evaluations at one step": lambda folder: np.savez(folder / "evaluations.npz", timesteps=5, results=np.ones((2, 3))),
    "evaluations of no steps": lambda folder: np.savez(
        folder / "evaluations.npz", timesteps=np.ones((1, 0)), results=np.ones((1, 3))
    ),
    "evaluations at no number": lambda folder: write_evaluations(folder, [1, np.inf, np.nan], [[1.0]] * 3),
    "endless episodes": lambda folder: write_monitor(folder, [(1.0, int(1e308), 1.0), (1.0, int(1e308), 2.0)]),
    "an encrypted model": encrypt_model,
    "a model without end": nest_model,
    "log_std_bounds in words": configure("policy_kwargs: 'dict(log_std_bounds=(math.log(1e-3), 2))'\n"),
    "numbers without end": configure(f"reward_scale: {'9' * 400}\nlearning_starts: {'9' * 400}\nent_coef_max: {'9' * 400}\n"),
    "a task that is a number": command_line(algo="softac", env=5, tensorboard_log="logs"),
    "a task that is a list": command_line(algo="softac", env=["a"], tensorboard_log="logs"),
    "a task that is a path": command_line(algo="softac", env="/x", tensorboard_log="logs"),
    "a task without a name": command_line(algo="softac", env="", tensorboard_log="logs"),
    "learning rates below 0": log(time__total_timesteps=[*range(9)], train__learning_rate=[-1.0] * 9),
    "steps beyond all numbers": log(time__total_timesteps=[-1.7e308, 1, 1.7e308], train__ent_coef=[1.0] * 3),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_page_is_made_of_anything(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "σ2²" / "run")
    log(time__total_timesteps=[*range(100, 4000, 100)], train__log_std=[-3.0] * 39, train__entropy=[-1.0] * 39)(folder)
    damage(folder)
    assert main([str(tmp_path / "σ2²"), "--output", str(tmp_path / "page.html")]) in (None, 0)
    page = (tmp_path / "page.html").read_text()
    assert "<h1>1 run of " in page
    assert "the rule failed" not in page


def test_what_is_left_of_damaged_evaluations(tmp_path: Path) -> None:
    path = write_evaluations(tmp_path, [1, np.inf, 3], [[1.0], [2.0], [3.0]])
    notes: list[str] = []
    found = read_evaluations(path, notes)
    assert found is not None
    assert ([*found.steps], [*found.returns[:, 0]]) == ([1.0, 3.0], [1.0, 3.0])
    assert "1 of its steps are no numbers" in notes[0]


def test_models_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    encrypt_model(tmp_path)
    assert of_model(tmp_path) is None
