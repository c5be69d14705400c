"""The example scripts: what they choose, refuse, print and draw."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from rl_zoo3.exp_manager import ExperimentManager

from sb3_softac import SoftAC, zoo

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


learning_curve = script("examples/learning_curve.py")
log_std = script("examples/log_std.py")


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    module.main()


def train(folder: Path, n_timesteps: int = 420, **kwargs: Any) -> Path:
    """A short run of RL Zoo with two evaluations of three episodes; returns its folder."""
    zoo.register()
    # Defined values for what the train script would pass.
    arguments: dict[str, Any] = {"eval_freq": 200, "n_eval_episodes": 3, "log_interval": -1, "verbose": 0, "device": "cpu"}
    arguments |= {"n_timesteps": n_timesteps, "seed": 5, **kwargs}
    settings = argparse.Namespace(seed=5, env_kwargs=None)
    manager = ExperimentManager(settings, "softac", "Pendulum-v1", str(folder), **arguments)
    result = manager.setup_experiment()
    assert result is not None
    manager.learn(result[0])
    manager.save_trained_model(result[0])
    for callback in manager.callbacks:
        callback.eval_env.close()  # type: ignore[attr-defined]
    return Path(manager.save_path)


class TestLearningCurve:
    def test_the_newest_complete_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        complete = train(Path("logs"), hyperparams={"learning_starts": 50})
        for number, files in ((2, ["Pendulum-v1.zip"]), (3, ["evaluations.npz"]), (10, [])):
            folder = complete.with_name(f"Pendulum-v1_{number}")
            folder.mkdir()
            for name in files:
                (folder / name).touch()
        complete.with_name("Pendulum-v1_best").mkdir()
        capsys.readouterr()
        call(learning_curve, monkeypatch, "--env", "Pendulum-v1", "--episodes", "2")
        printed, skipped = capsys.readouterr()
        assert "Skipped logs/softac/Pendulum-v1_10: Pendulum-v1.zip and evaluations.npz missing" in skipped
        assert "Skipped logs/softac/Pendulum-v1_3: Pendulum-v1.zip missing" in skipped
        assert "Skipped logs/softac/Pendulum-v1_2: evaluations.npz missing" in skipped
        assert "Best model: logs/softac/Pendulum-v1_1/best_model.zip, evaluation return -" in printed
        assert "over 2 new episodes" in printed
        assert (complete / "learning_curve.png").is_file()
        command = printed.splitlines()[-1].strip()
        assert "enjoy --algo softac --env Pendulum-v1 -f logs --exp-id 1 --load-best --no-render" in command
        shown = subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True)
        assert "Loading logs/softac/Pendulum-v1_1/best_model.zip" in shown.stdout
        assert "5 Episodes" in shown.stdout

    def test_the_table_has_evaluations_and_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Hand-made files: episodes of 100 steps with returns 1, 2, 3; evaluations after 50, 200 and 300 steps."""
        (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0, "env_id": "x"}\nr,l,t\n1,100,1\n2,100,2\n3,100,3\n')
        np.savez(tmp_path / "evaluations.npz", timesteps=[50, 200, 300], results=[[0.0, 2.0], [4.0, 4.0], [5.0, 7.0]])
        learning_curve.print_table(tmp_path)
        rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()[1:]]
        assert [row[:1] + row[-4:] for row in rows] == [
            ["50", "yet", "1.0", "±", "1.0"],
            ["200", "1.5", "4.0", "±", "0.0"],
            ["300", "2.0", "6.0", "±", "1.0"],
        ]
        drawn: list[Any] = []
        monkeypatch.setattr(plt, "close", drawn.append)
        learning_curve.draw(tmp_path, "title, seed 1", tmp_path / "curve.png")
        (axes,) = drawn[0].axes
        legend = " ".join(text.get_text() for text in axes.get_legend().get_texts())
        assert "mean return of 2 episodes" in legend
        assert "± one standard deviation over these 2 episodes" in legend
        assert "best model: 6.0" in legend
        monkeypatch.undo()
        plt.close("all")

    def test_a_run_with_wrappers_and_normalization(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The agent sees what it has been trained on: with the plain task its observations would have another shape."""
        given = {"env_wrapper": "rl_zoo3.wrappers.TimeFeatureWrapper", "normalize": True, "learning_starts": 50}
        folder = train(tmp_path / "logs", hyperparams=given)
        assert SoftAC.load(folder / "best_model.zip").observation_space.shape == (4,)
        call(learning_curve, monkeypatch, "--logs", str(tmp_path / "logs"), "--episodes", "1")
        assert "over 1 new episodes" in capsys.readouterr().out

    @pytest.mark.parametrize("run", [None, "Pendulum-v1_1", "PPendulum-v1_1"])
    def test_no_complete_run(
        self, run: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if run is not None:
            (tmp_path / "softac" / run).mkdir(parents=True)
        with pytest.raises(SystemExit, match="2"):
            call(learning_curve, monkeypatch, "--logs", str(tmp_path))
        error = capsys.readouterr().err
        assert f"there is no complete run of softac on Pendulum-v1 in {tmp_path}: train one with `python -m rl_zoo3" in error
        assert ("Skipped" in error) == (run == "Pendulum-v1_1")


class TestLogStd:
    @pytest.mark.parametrize("steps", [5, 500, 1000, 1001, 1009])
    def test_too_few_steps(
        self, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            call(log_std, monkeypatch, "--steps", str(steps), "--output", str(tmp_path / "log-std"))
        assert f"--steps is {steps}, but it must be" in capsys.readouterr().err

    @pytest.mark.parametrize(("steps", "learning_starts"), [(110, 100), (20, 18), (102, 98), (10, 0)])
    def test_as_few_as_are_accepted(self, steps: int, learning_starts: int) -> None:
        rows = log_std.run(("Pendulum-v1", "free", 0, steps, learning_starts))
        assert rows
        for row in rows:
            assert row["step"] > learning_starts + 1
            assert row["alpha"] > 0

    def test_the_bound_is_exact(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Nothing that passes the check trains without a row, and nothing that is refused would have one."""

        def would_run(*_: Any) -> Any:
            raise KeyError

        monkeypatch.setattr(log_std.multiprocessing, "get_context", would_run)
        for steps in range(10, 45):
            for learning_starts in (0, 8, 18, 25, 38):
                every = steps // log_std.POINTS
                evaluated = any(step % every == 0 for step in range(learning_starts + 2, steps + 1))
                arguments = ["--steps", str(steps), "--learning-starts", str(learning_starts), "--output", str(tmp_path / "x")]
                with pytest.raises(KeyError if evaluated else SystemExit):
                    call(log_std, monkeypatch, *arguments)

    def test_a_plot_of_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            call(log_std, monkeypatch, "--plot-only", "--output", str(tmp_path / "log-std"))
        assert "--plot-only needs" in capsys.readouterr().err
