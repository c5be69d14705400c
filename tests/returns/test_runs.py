"""A run: its row, its times, and what becomes of it when it is killed."""

import csv
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import rows, runs
from harness.plans import Run
from harness.status import status
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"learning_starts": 50, "compile": False, "batch_size": 32, "policy_kwargs": {"net_arch": [16, 16]}}


def small(seed: int = 0, steps: int = 200, **options: Any) -> Run:
    return Run("SoftAC", "SoftAC", "Pendulum-v1", seed, steps, {**SMALL, **options}, points=2, episodes=1)


def interrupt(patch: pytest.MonkeyPatch, step: int) -> None:
    """End the run before the evaluations see this step."""
    on_step = runs.Evaluations._on_step

    def on_step_or_end(callback: Any) -> bool:
        if callback.num_timesteps == step:
            raise KeyboardInterrupt
        return bool(on_step(callback))

    patch.setattr(runs.Evaluations, "_on_step", on_step_or_end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A training step takes one second, an evaluation during training 100, and nothing else any time."""
    now = [0.0]
    learn_step = runs.Evaluations.on_step

    def on_step(callback: Any) -> bool:
        now[0] += 1.0
        return bool(learn_step(callback))

    def evaluate_slowly(*args: Any, **kwargs: Any) -> Any:
        now[0] += 100.0
        return evaluate_policy(*args, **kwargs)

    monkeypatch.setattr("harness.runs.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(runs.Evaluations, "on_step", on_step)
    monkeypatch.setattr(runs, "evaluate_policy", evaluate_slowly)
    return now


@pytest.mark.parametrize("ent_coef", ["auto_0.5", 0.25])
def test_alpha_of_a_row(ent_coef: str | float) -> None:
    """Learned or fixed; every warning is an error here."""
    for algorithm in (SAC, SoftAC):
        model = algorithm("MlpPolicy", "Pendulum-v1", ent_coef=ent_coef, buffer_size=10, device="cpu")
        assert runs.entropy_coefficient(model) == pytest.approx(0.5 if ent_coef == "auto_0.5" else 0.25)
    assert runs.entropy_coefficient(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")) == ""


def test_the_device_is_that_of_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line on, in a process of the pool and in a worker."""
    from harness import command, pool, worker

    seen: list[str] = []

    def evaluate(model: Any, *_: Any, **__: Any) -> tuple[float, float]:
        seen.append(str(model.device))
        return 0.0, 0.0

    monkeypatch.setattr(runs, "evaluate_policy", evaluate)
    runs.perform(small(), device="cpu:0")
    assert set(seen) == {"cpu:0"}
    given: list[Any] = []

    def perform(*arguments: Any) -> rows.Row:
        given.append(arguments[3])
        raise ValueError("that is all")

    for module in (pool, worker):
        monkeypatch.setattr(module, "perform", perform)
    ours, theirs = multiprocessing.Pipe()
    with pytest.raises(SystemExit):
        pool.work(small(), tmp_path / "rows.csv", None, theirs, "cuda:1")
    assert "that is all" in ours.recv()
    place = worker.Worker(worker.open_study(str(tmp_path / "log"), "x"), [small()], None, None, 1.0, "cuda:1")
    place.work()
    assert given == ["cuda:1"] * 2
    with pytest.raises(ValueError, match="`--device` is 'meta', but it must be 'cpu', or one that is there"):
        command.check_device("meta")


def test_a_row_of_sac(tmp_path: Path) -> None:
    run = Run("SB3 SAC", "SB3 SAC", "Pendulum-v1", 0, 1010, points=1, episodes=1)
    row = runs.perform(run)
    assert 0.9 < row["alpha"] < 1.0
    rows.append(tmp_path / "rows.csv", row)
    with (tmp_path / "rows.csv").open() as file:
        assert float(next(csv.DictReader(file))["return"]) == row["return"]
    assert rows.missing([run], rows.read(tmp_path / "rows.csv")) == []


def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """To the same numbers as without the interruption; its times are those of all parts, without what the kill has cost."""
    run = small()
    expected = runs.perform(run)
    assert expected["times"] == "100.0 200.0"
    assert (expected["seconds"], expected["parts"]) == (200 + 2 * 100, 1)
    with monkeypatch.context() as patch:
        interrupt(patch, 130)
        with pytest.raises(KeyboardInterrupt):
            runs.perform(run, tmp_path)
    assert "stopped, checkpoint at 120 of 200 steps" in status([run], tmp_path / "none.csv", tmp_path)
    clock[0] += 10_000  # until somebody starts it again
    row = runs.perform(run, tmp_path)
    names = ("return", "best", "curve", "alpha", "entropy", "times", "seconds")
    assert [row[name] for name in names] == [expected[name] for name in names]
    assert row["parts"] == 2
    runs.forget(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_earlier_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders without the settings in their name, and evaluations without times: the run goes on, and its time is unknown."""
    run = small()

    class Earlier(runs.Evaluations):
        def _on_step(self) -> bool:
            if self.num_timesteps == 130:
                raise KeyboardInterrupt
            if self.num_timesteps % self.every == 0:
                self.returns.append(-7.0)
            return True

    Earlier.__name__ = "Evaluations"
    folder = tmp_path / "SoftAC-Pendulum-v1-200-0"
    earlier = Earlier("Pendulum-v1", 200, 2, 10, 0)
    for name in ("times", "training_seconds", "evaluation_seconds", "parts", "is_timed"):
        delattr(earlier, name)
    model = SoftAC("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), seed=0, device="cpu", **run.settings)
    with pytest.raises(KeyboardInterrupt):
        model.learn(200, callback=[earlier, ExactCheckpointCallback(20, folder, keep=1)])
    with pytest.raises(ValueError, match="`batch_size` is 16, but the run has 32"):
        runs.perform(small(batch_size=16), tmp_path)
    row = runs.perform(run, tmp_path)
    assert row["curve"].startswith("-7.0 -")
    assert len(row["curve"].split()) == 2
    assert (row["seconds"], row["times"], row["parts"]) == ("", "", "")
    runs.forget(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("SoftAC", {"target_entropy": "auto_0.5"}), ("SoftQL published", {}), ("sb3", {"ent_coef": "auto_0.1"})],
)
def test_runs_go_on_with_any_settings(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"compile": False, "learning_starts": 200, "buffer_size": 500, **options}
    run = Run(name, name, "Pendulum-v1", 0, 60, options, points=1, episodes=1)
    with monkeypatch.context() as patch:
        interrupt(patch, 30)
        with pytest.raises(KeyboardInterrupt):
            runs.perform(run, tmp_path)
    assert runs.perform(run, tmp_path)["parts"] == 2


def test_speed_and_time_left() -> None:
    from harness.progress import Display, duration

    first, second, third = (small(seed) for seed in range(3))
    display = Display(3, 600)
    display.begin(first)
    assert display.seconds_left() is None
    display.begin(second)
    for run, speed in ((first, 10.0), (second, 30.0)):
        display.running[run].update(50, 50.0)
        display.running[run].update(150, 50.0 + 100 / speed)
    assert display.seconds_left() == pytest.approx((200 + 50 + 50) / 40)
    assert "SoftAC, Pendulum-v1, seed 1: 150 of 200 steps, 30 steps/s; all: 8 s left" in display.line()
    assert display.line().startswith("0 of 3 done")
    texts = {29: "29 s", 90: "2 min", 3540: "59 min", 3600: "1 h 00 min", 9000: "2 h 30 min"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
    assert third not in display.running


def command(*arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, str(ROOT / "benchmarks" / "returns.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_harness_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """With signal 9, after its first row: that row stays as it is, the others follow, and each is there once."""
    path, plan = tmp_path / "rows.csv", tmp_path / "plan.yml"
    settings = "{learning_starts: 50, compile: false, batch_size: 32, policy_kwargs: {net_arch: [16, 16]}}"
    group = f"variants: [SoftAC], tasks: [Pendulum-v1], seeds: 2, steps: 100, points: 1, episodes: 1, set: {settings}"
    plan.write_text(f"output: {path}\nruns:\n  - {{{group}}}\n")
    arguments = ("--plan", str(plan), "--checkpoints", str(tmp_path / "checkpoints"), "--processes", "1")
    harness = command(*arguments)
    assert harness.stdout is not None
    assert harness.stdout.readline().startswith("SoftAC                 Pendulum-v1     seed 0: return")
    harness.kill()
    harness.communicate()
    first = path.read_text()
    assert len(first.splitlines()) == 2
    printed = command(*arguments).communicate(timeout=300)[0]
    assert path.read_text().startswith(first)
    with path.open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "1"]
    assert "seed 1: return" in printed
