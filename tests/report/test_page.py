"""The command and its page: what it shows, that it needs no network, and what it says where there is nothing to show."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

import sb3_softac.report.command
from sb3_softac.report import main
from sb3_softac.report.discovery import read_run
from sb3_softac.report.panels import mean_speed
from tests.helpers import quick_model
from tests.report.made import write_monitor, write_progress, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page whose tags must be closed in order; keeps its text, and the places that attributes point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.places: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def says(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def report(folders: list[Path], tmp_path: Path) -> Page:
    output = tmp_path / "page.html"
    assert main([*map(str, folders), "--output", str(output)]) == 0
    return Page(output.read_text())


def test_the_page_of_seeds_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write_run(tmp_path / "logs" / f"seed_{seed}", n_episodes=30 + seed, shift=seed)
    page = report([tmp_path / "logs"], tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}: 3 runs of SoftAC\n"
    assert all(place.startswith("#") for place in page.places)  # within the page
    assert not {"script", "link", "img", "iframe"} & {*page.tags}
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"url\((?!#)|@import|https?:", text)
    assert page.tags.count("figure") == 8  # two of returns, Q, entropy, α, the critics' loss, lengths, speed
    for words in ("Training returns", "Student's t", "unequal lengths", "seed_1", "Entropy against its target"):
        assert page.says(words), words


def test_findings_have_evidence_by_run_and_advice(tmp_path: Path) -> None:
    for name, clipped in {"a": 0.5, "b": 0.6}.items():
        columns: dict[str, list[float]] = {
            "time/total_timesteps": [1, 2, 3, 4, 5],
            "train/q_value": [1.0] * 5,
            "train/target_clipped": [clipped] * 5,
        }
        write_progress(tmp_path / name, columns)
    page = report([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert page.says("Targets of the categorical critics are cut off at value_range.")
    assert page.says("(2 of 2 runs)")
    assert page.says("a: train/target_clipped is 50%")
    assert page.says("b: train/target_clipped is 60%")
    assert page.says("A larger policy_kwargs['value_range']")


def test_a_real_training_is_shown_and_judged(tmp_path: Path) -> None:
    def env() -> gym.Env[np.ndarray, np.ndarray]:
        return Monitor(gym.make("Pendulum-v1", max_episode_steps=25))

    logger = configure(str(tmp_path / "run"), ["csv", "tensorboard"])
    model = quick_model(Monitor(env(), str(tmp_path / "run")), learning_starts=130, tau=0.1)
    model.set_logger(logger)
    evaluation = EvalCallback(env(), eval_freq=100, n_eval_episodes=2, log_path=str(tmp_path / "run"), verbose=0)
    model.learn(400, callback=evaluation, log_interval=1)
    model.save(tmp_path / "run" / "model")
    logger.close()
    assert model.env is not None
    model.env.close()
    page = report([tmp_path / "run"], tmp_path)
    for words in ("Pendulum-v1", "Actions at their bounds", "discounted return that was obtained", "random actions", "tau"):
        assert page.says(words), words
    assert not page.says("rollout/timeout_rate was not logged")
    assert not page.says("Time-outs are learned as terminations")


def test_a_run_of_sb3s_sac(tmp_path: Path) -> None:
    write_monitor(tmp_path / "run", [(-100.0, 200, float(i)) for i in range(1, 21)])
    n = 20
    metrics = {"train/ent_coef": [0.5] * n, "train/actor_loss": [30.0] * n, "train/critic_loss": [1.0] * n}
    write_progress(tmp_path / "run", {"time/total_timesteps": [200 * i for i in range(1, n + 1)], **metrics})
    page = report([tmp_path / "run"], tmp_path)
    for words in ("1 run of SAC", "SB3's SAC logs no Q", "estimate of it from returns and lengths"):
        assert page.says(words), words
    assert page.says("all episodes have 200 steps, but the logs do not hold TimeLimit.truncated")


def test_logs_of_another_algorithm_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    write_monitor(tmp_path / "run", [(1.0, 20, 1.0), (2.0, 20, 2.0)])
    write_progress(tmp_path / "run", {"time/total_timesteps": [20, 40], "train/clip_fraction": [0.1, 0.2]})
    page = report([tmp_path / "run"], tmp_path)
    assert page.says("1 run of PPO")
    assert page.says("Training returns")


@pytest.mark.parametrize("rows", [[], [(-5.0, 10, 1.0)], [(float("nan"), 10, 1.0), (1.0, 10, 2.0)]])
def test_runs_of_no_episode_of_one_and_with_nan(rows: list[tuple[float, int, float]], tmp_path: Path) -> None:
    write_monitor(tmp_path / "run", rows)
    page = report([tmp_path / "run"], tmp_path)
    assert page.says("There is nothing to plot") == (not rows)
    assert page.says("There are values that are not finite.") == any(np.isnan(row[0]) for row in rows)


def test_speed_is_that_of_the_whole_run(tmp_path: Path) -> None:
    """Random steps at the start are fast: 1,000 steps take 0.2 s, and 9,000 take 90."""
    ends = np.cumsum([0.02] * 10 + [1.0] * 90)
    write_monitor(tmp_path / "run", [(1.0, 100, float(end)) for end in ends])
    made = read_run(tmp_path / "run", "run")
    assert mean_speed(made) == pytest.approx(9_900 / (90.2 - 0.02))
    assert report([tmp_path / "run"], tmp_path).says("110")


def test_names_that_are_no_text_and_numbers_without_end(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    write_monitor(folder, [((-1) ** n * 1.7e308, 10, float(n + 1)) for n in range(40)])
    assert report([folder], tmp_path).says("run?")


def test_advice_for_other_algorithms_says_whose_options_it_names(tmp_path: Path) -> None:
    columns = {"time/total_timesteps": [*range(1, 9)], "train/ent_coef": [2.0**n for n in range(8)]}
    write_progress(tmp_path / "run", columns)  # by which it is of SB3's SAC
    page = report([tmp_path / "run"], tmp_path)
    assert page.says("α grows without end")
    assert page.says("What to try names the options of SoftAC, not all of which SAC has.")


def test_metrics_that_are_nan_throughout(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "time/total_timesteps": [1, 2],
        "train/critic_loss": ["nan", "inf"],
        "train/ent_coef": ["nan", "nan"],
    }
    write_progress(tmp_path / "run", columns)
    page = report([tmp_path / "run"], tmp_path)
    assert page.says("train/critic_loss from step 1")


def test_what_stands_in_logs_is_text(tmp_path: Path) -> None:
    path = write_run(tmp_path / "<script>alert(1)</script>".replace("/", "_")) / "monitor.csv"
    path.write_text(path.read_text().replace("Pendulum-v1", "<img src=http://x>"))
    (path.parent / "config.yml").write_text("'<b>': '</table><script>'\n")
    page = report([path.parent], tmp_path)
    assert not {"script", "img", "b"} & {*page.tags}
    assert page.says("<img src=http://x>")


def test_every_cut_of_every_file_gives_a_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = write_run(tmp_path / "whole", n_episodes=8)
    (whole / "config.yml").write_text("tau: 0.1\n")
    for number in range(8):
        folder = tmp_path / "cut" / str(number)
        shutil.copytree(whole, folder)
        for path in folder.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[: rng.integers(len(content))])
    report([tmp_path / "cut"], tmp_path)


def error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


class TestErrors:
    def test_no_folder_a_file_and_no_logs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = ["--output", str(tmp_path / "page.html")]
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        assert "there is no such folder" in error([str(tmp_path / "none"), *output], capsys)
        assert "which is a file" in error([str(tmp_path / "file"), *output], capsys)
        assert "holds no logs: neither it nor a folder in it has monitor.csv" in error(
            [str(tmp_path / "empty"), *output], capsys
        )
        assert not (tmp_path / "page.html").exists()

    def test_a_name_that_is_too_long(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_run(tmp_path / "run")
        output = str(tmp_path / ("x" * 300))
        assert "which cannot be written: File name too long" in error([str(tmp_path / "run"), "--output", output], capsys)

    def test_one_folder_without_logs_among_others_is_a_note(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert report([write_run(tmp_path / "run"), tmp_path / "empty"], tmp_path).says("holds no logs")

    def test_an_output_that_cannot_be_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = str(write_run(tmp_path / "run"))
        assert "which is a folder" in error([folder, "--output", str(tmp_path)], capsys)
        assert "there is no folder" in error([folder, "--output", str(tmp_path / "a" / "b.html")], capsys)
        kept = tmp_path / "kept.html"
        kept.write_text("older")

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(sb3_softac.report.command, "writing", full)
        assert "No space left on device" in error([folder, "--output", str(kept)], capsys)
        assert kept.read_text() == "older"

    def test_a_missing_extra(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        said = error([str(write_run(tmp_path / "run")), "--output", str(tmp_path / "page.html")], capsys)
        assert said == 'error: The report needs matplotlib for its plots: pip install "sb3-softac[report]" installs it.\n'


def test_the_command_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sb3_softac.report", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_all_of_it_without_a_network(tmp_path: Path) -> None:
    assert BROWSER is not None
    write_run(tmp_path / "run")
    page = report([tmp_path / "run"], tmp_path)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~",
    ]
    address = (tmp_path / "page.html").as_uri()
    shown = subprocess.run([BROWSER, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert shown.stdout.count("<figure>") == page.tags.count("figure")
    image = tmp_path / "page.png"
    command = [BROWSER, *flags, f"--screenshot={image}", "--window-size=420,900", address]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert image.stat().st_size > 10_000
