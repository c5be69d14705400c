"""What SB3 and RL Zoo write is read as they mean it, whole or cut off."""

import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import ResultsWriter
from torch import nn

from sb3_softac import SoftAC
from sb3_softac.report.curves import band, rolling, thin
from sb3_softac.report.data import ReportError, Series, in_order
from sb3_softac.report.discovery import find_runs, group_runs
from sb3_softac.report.estimates import critic_values, discounted_returns
from sb3_softac.report.settings import literal, of_model, read_yaml
from sb3_softac.report.tables import read_evaluations, read_monitor, read_progress
from sb3_softac.report.tensorboard import read_events
from sb3_softac.report.verdicts import Unknown
from tests.report.made import episodes, run, write_evaluations, write_monitor, write_progress, write_run


class TestMonitor:
    def test_it_reads_what_sb3_writes(self, tmp_path: Path) -> None:
        writer = ResultsWriter(str(tmp_path / "0"), {"t_start": 50.0, "env_id": "Task-v0"}, extra_keys=("success",))
        writer.write_row({"r": -1.5, "l": 10, "t": 2.5, "success": True})
        writer.write_row({"r": 4.0, "l": 5, "t": 3.0, "success": False})
        writer.close()
        notes: list[str] = []
        read, env_id = read_monitor([tmp_path / "0.monitor.csv"], notes)
        assert read is not None
        assert (env_id, notes, read.started) == ("Task-v0", [], 50.0)
        assert read.returns.tolist() == [-1.5, 4.0]
        assert read.steps.tolist() == [10, 15]
        assert read.seconds.tolist() == [2.5, 3.0]

    def test_files_that_are_not_numbered_are_no_environments_of_one_run(self, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 10, 1.0)], name="monitor.csv")
        write_monitor(tmp_path, [(9.0, 10, 1.0)], name="eval.monitor.csv")
        (made,) = find_runs([tmp_path])
        assert made.episodes is not None
        assert made.episodes.returns.tolist() == [1.0]
        assert "eval.monitor.csv left out" in made.notes[0]

    def test_several_environments_count_together_in_the_order_of_time(self, tmp_path: Path) -> None:
        first = write_monitor(tmp_path, [(1.0, 10, 1.0), (3.0, 10, 3.0)], start=100.0, name="0.monitor.csv")
        second = write_monitor(tmp_path, [(2.0, 7, 1.5)], start=100.5, name="1.monitor.csv")  # ends at 102.0
        read, _ = read_monitor([second, first], [])
        assert read is not None
        assert read.returns.tolist() == [1.0, 2.0, 3.0]
        assert read.steps.tolist() == [10, 17, 27]
        assert read.seconds.tolist() == [1.0, 2.0, 3.0]

    def test_a_file_that_is_cut_off_anywhere_has_the_rows_before(self, tmp_path: Path) -> None:
        path = write_monitor(tmp_path, [(-100.25, 200, 1.5), (-50.5, 200, 3.5)])
        whole = path.read_bytes()
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            notes: list[str] = []
            read, _ = read_monitor([path], notes)
            assert read is not None
            assert read.returns.tolist() == [-100.25, -50.5][: whole[:end].count(b"\n") - 2 if end > 60 else 0]
            assert bool(notes) == (not whole[:end].endswith(b"\n") and end > 0)

    @pytest.mark.parametrize(
        "text", ["", "#{}\n", "#[1]\nr,l,t\n", "\x00\xff\n\n", "a,b\n1,2\n", "#{\nr,l,t\nx,y,z\n1,-5,3\n"]
    )
    def test_nonsense_is_no_episode(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "monitor.csv").write_bytes(text.encode("latin-1"))
        read, _ = read_monitor([tmp_path / "monitor.csv"], [])
        assert read is not None
        assert len(read) == 0


class TestProgress:
    def test_it_reads_what_sb3_writes(self, tmp_path: Path) -> None:
        logger = configure(str(tmp_path), ["csv"])
        logs: dict[int, dict[str, Any]] = {10: {"a": 1.0}, 20: {"a": 2.0, "b": -1.0}, 30: {"b": float("nan"), "text": "x,y"}}
        for step, values in logs.items():
            for name, value in {"time/total_timesteps": step, **values}.items():
                logger.record(name, value)
            logger.dump(step)
        logger.close()
        notes: list[str] = []
        read = read_progress(tmp_path / "progress.csv", notes)
        assert notes == []
        assert (read["a"].steps.tolist(), read["a"].values.tolist()) == ([10, 20], [1, 2])
        assert read["b"].steps.tolist() == [20, 30]
        assert np.isnan(read["b"].values[1])
        assert "text" not in read

    def test_a_line_that_is_cut_off_is_left_out(self, tmp_path: Path) -> None:
        path = write_progress(tmp_path, {"time/total_timesteps": [1, 2], "train/x": [10.0, 12345.0]})
        path.write_text(path.read_text()[:-4])  # "12345.0" reads as 1234
        notes: list[str] = []
        assert read_progress(path, notes)["train/x"].values.tolist() == [10.0]
        assert "cut off" in notes[0]

    def test_without_steps_rows_are_counted(self, tmp_path: Path) -> None:
        notes: list[str] = []
        read = read_progress(write_progress(tmp_path, {"train/x": [1.0, 2.0]}), notes)
        assert read["train/x"].steps.tolist() == [0, 1]
        assert "rows are counted" in notes[0]


class TestEvaluations:
    def test_means_over_episodes(self, tmp_path: Path) -> None:
        read = read_evaluations(write_evaluations(tmp_path, [20, 10], [[1.0, 3.0], [5.0, 6.0]]), [])
        assert read is not None
        assert (read.means().steps.tolist(), read.means().values.tolist()) == ([10, 20], [5.5, 2.0])

    def test_a_file_that_is_cut_off_anywhere_or_holds_objects_is_left_out(self, tmp_path: Path) -> None:
        path = write_evaluations(tmp_path, [10, 20], [[1.0], [2.0]])
        whole = path.read_bytes()
        for end in [0, 1, 30, len(whole) // 2, len(whole) - 5]:
            path.write_bytes(whole[:end])
            notes: list[str] = []
            assert read_evaluations(path, notes) is None
            assert "could not be read" in notes[0]
        np.savez(path, timesteps=[1], results=np.array([print], dtype=object), ep_lengths=[1])
        assert read_evaluations(path, []) is None


class TestTensorBoard:
    def test_it_reads_what_sb3_writes_whole_or_cut_off(self, tmp_path: Path) -> None:
        logger = configure(str(tmp_path), ["tensorboard"])
        for step in (10, 20, 30):
            logger.record("train/x", step / 10)
            logger.dump(step)
        logger.close()
        read = read_events(tmp_path, [])
        assert (read["train/x"].steps.tolist(), read["train/x"].values.tolist()) == ([10, 20, 30], [1, 2, 3])
        (path,) = tmp_path.glob("events*")
        whole = path.read_bytes()
        for end in range(0, len(whole), 7):
            path.write_bytes(whole[:end])
            values = read_events(tmp_path, []).get("train/x")
            assert values is None or values.values.tolist() == [1, 2, 3][: len(values)]
        path.write_bytes(b"nonsense" * 20)
        notes: list[str] = []
        assert read_events(tmp_path, notes) == {}
        assert len(notes) == 1

    def test_a_missing_tensorboard_is_one_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "tensorboard.backend.event_processing.event_accumulator", None)
        with pytest.raises(ReportError, match=r'needed to read them: pip install "sb3-softac\[report\]"'):
            read_events(tmp_path, [])


class TestSettings:
    def test_a_config_is_read_as_plain_values_and_runs_nothing(self, tmp_path: Path) -> None:
        trap = "!!python/object/apply:os.system ['touch touched']"
        ordered = yaml.dump(OrderedDict(learning_rate="lin_1e-3", train_freq=(1, "episode")))
        path = tmp_path / "config.yml"
        path.write_text(ordered)
        assert read_yaml(path, []) == {"learning_rate": "lin_1e-3", "train_freq": (1, "episode")}
        path.write_text(f"a: {trap}\nb: !!python/name:os.system\nc: 1\n")
        read = read_yaml(path, [])
        assert read is not None
        assert read["c"] == 1
        assert isinstance(read["a"], str)
        assert not Path("touched").exists()

    @pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "a: *b\n", "\x00"])
    def test_what_is_no_config_is_said(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "config.yml").write_text(text)
        notes: list[str] = []
        assert read_yaml(tmp_path / "config.yml", notes) is None
        assert "config.yml could not be read" in notes[0]

    def test_a_few_lines_that_stand_for_billions_of_values_are_refused(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        (tmp_path / "config.yml").write_text("\n".join(lines) + "\n")
        notes: list[str] = []
        assert read_yaml(tmp_path / "config.yml", notes) is None
        assert "config.yml could not be read" in notes[0]

    def test_a_config_that_is_cut_off_says_nothing_and_a_model_beside_it_does(self, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 10, 1.0)])
        (tmp_path / "config.yml").write_text("- - gradient_steps\n  - 20\n- - policy_kwargs\n  - 'dict(layer")
        (made,) = find_runs([tmp_path])
        assert not made.settings.known
        SoftAC("MlpPolicy", "Pendulum-v1", tau=0.5, buffer_size=10, device="cpu").save(tmp_path / "model")
        (made,) = find_runs([tmp_path])
        assert (made.settings.source, made.settings.get("tau"), made.settings.get("gradient_steps")) == ("model.zip", 0.5, 1)

    @pytest.mark.parametrize("frequency", [8, (2, "episode")])
    @pytest.mark.parametrize("cls", [SoftAC, SAC])
    def test_what_a_model_file_holds_as_an_object(self, cls: Any, frequency: Any, tmp_path: Path) -> None:
        """``train_freq`` is read; an option that is a function is not taken to have its default."""
        write_monitor(tmp_path, [(1.0, 10, 1.0)])
        kwargs = {"activation_fn": nn.Tanh}
        env = make_vec_env("Pendulum-v1", 2) if frequency == 8 else make_vec_env("Pendulum-v1", 1)
        model = cls("MlpPolicy", env, train_freq=frequency, policy_kwargs=kwargs, buffer_size=10, device="cpu")
        model.save(tmp_path / "model")
        (made,) = find_runs([tmp_path])
        assert made.settings.get("train_freq") == frequency
        assert made.settings.get("n_envs") == (2 if frequency == 8 else None)
        assert made.settings.unread == {"policy_kwargs"}
        assert made.settings.get("policy_kwargs") is None
        assert made.settings.n_dimensions == 1

    @pytest.mark.parametrize("cls", [A2C, PPO])
    def test_on_policy_models_are_told_apart(self, cls: Any, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 10, 1.0)])
        cls("MlpPolicy", "CartPole-v1", gamma=0.9, device="cpu").save(tmp_path / "model")
        (made,) = find_runs([tmp_path])
        assert (made.algorithm, made.settings.get("gamma")) == (cls.__name__, 0.9)

    def test_values_in_python_are_taken_apart_and_not_run(self) -> None:
        assert literal("dict(net_arch=[64, 64], a=(1, -2.0))") == {"net_arch": [64, 64], "a": (1, -2.0)}
        assert literal("dict(activation_fn=nn.ReLU)") == {"activation_fn": "nn.ReLU"}
        assert literal("{'layer_norm': True}") == {"layer_norm": True}
        assert literal("exec('1') or 2") == "exec('1') or 2"
        assert literal("a.b.Wrapper") == "a.b.Wrapper"
        assert literal("((") == "(("

    @pytest.mark.parametrize(("cls", "name"), [(SoftAC, "SoftAC"), (SAC, "SAC")])
    def test_a_saved_model_tells_what_differs_from_the_defaults(self, cls: Any, name: str, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 10, 1.0)])
        model = cls("MlpPolicy", "Pendulum-v1", seed=3, tau=0.5, policy_kwargs={"net_arch": [4]}, buffer_size=10, device="cpu")
        model.save(tmp_path / "model")
        (made,) = find_runs([tmp_path])
        assert (made.algorithm, made.seed, made.settings.source) == (name, 3, "model.zip")
        changed = {option: value for option, (value, _) in made.settings.differing().items()}
        assert changed == {"tau": 0.5, "policy_kwargs": {"net_arch": [4]}, "buffer_size": 10}
        assert made.settings.get("gamma") == 0.99

    def test_a_damaged_model_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nothing")
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.writestr("data", json.dumps([1]))
        assert of_model(tmp_path) is None


class TestFolders:
    def test_a_run_of_rl_zoo_with_tensorboard_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for number, start in enumerate((1000.0, 2000.0), start=1):
            folder = tmp_path / "logs" / "sac" / f"Task-v0_{number}"
            write_monitor(folder, [(1.0, 10, 5.0)], start=start, name="0.monitor.csv")
            (folder / "Task-v0").mkdir()
            (folder / "Task-v0" / "config.yml").write_text(yaml.dump(OrderedDict(learning_rate=0.1, n_timesteps=10 * number)))
            arguments = OrderedDict(algo="sac", env="Task-v0", seed=number, tensorboard_log="tb")
            (folder / "Task-v0" / "args.yml").write_text(yaml.dump(arguments))
            events = tmp_path / "tb" / "Task-v0" / f"SAC_{number}"
            logger = configure(str(events), ["tensorboard"])
            logger.record("train/ent_coef", float(number))
            logger.dump(7)
            logger.close()
            (written,) = events.glob("events*")
            written.rename(events / f"events.out.tfevents.{int(start) + 3}.host.1.0")
        for roots in (["logs"], ["logs", "tb"], ["."]):
            runs = find_runs([Path(root) for root in roots])
            assert [made.metrics["train/ent_coef"].values.tolist() for made in runs] == [[1.0], [2.0]]
            assert [made.seed for made in runs] == [1, 2]
            ((label, group),) = group_runs(runs).items()
            assert (label, len(group)) == ("SAC, Task-v0", 2)
            assert group[0].settings.differing() == {"learning_rate": (0.1, 0.0003), "n_timesteps": (10, None)}

    def seeds_side_by_side(self, logged: bool) -> None:
        """Three runs of RL Zoo, begun within three seconds, with their event files in one folder."""
        for seed in range(3):
            folder = Path(f"logs{seed}") / "sac" / "Task-v0_1"
            returns = [10.0 * seed + episode for episode in range(6)]
            write_monitor(folder, [(value, 10, float(t + 1)) for t, value in enumerate(returns)], start=1000.0 + seed)
            (folder / "Task-v0").mkdir()
            (folder / "Task-v0" / "config.yml").write_text(yaml.dump(OrderedDict(tau=0.1)))
            arguments = OrderedDict(algo="sac", env="Task-v0", seed=seed, tensorboard_log="tb")
            (folder / "Task-v0" / "args.yml").write_text(yaml.dump(arguments))
            events = Path("tb") / "Task-v0" / f"SAC_{seed + 1}"
            logger = configure(str(events), ["tensorboard"])
            for n_episodes in (4, 6) if logged else ():
                logger.record("rollout/ep_rew_mean", np.mean(returns[:n_episodes]))
                logger.record("time/episodes", n_episodes)
                logger.record("train/ent_coef", float(seed))
                logger.dump(10 * n_episodes)
            if not logged:
                logger.record("train/ent_coef", float(seed))
                logger.dump(7)
            logger.close()
            (written,) = events.glob("events*")
            written.rename(events / f"events.out.tfevents.{1003 + seed}.host.{seed}.0")

    def test_seeds_that_began_together_have_their_own_metrics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self.seeds_side_by_side(logged=True)
        for roots in (["logs0", "logs1", "logs2"], ["logs2"], ["logs1", "tb"], ["."]):
            for made in find_runs([Path(root) for root in roots]):
                if made.seed is not None:  # event files of seeds whose folder is not given are runs of their own
                    assert set(made.metrics["train/ent_coef"].values) == {float(made.seed)}

    def test_without_returns_they_are_dealt_out_in_the_order_of_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        self.seeds_side_by_side(logged=False)
        runs = find_runs([Path(f"logs{seed}") for seed in range(3)])
        assert [made.metrics["train/ent_coef"].values.tolist() for made in runs] == [[0.0], [1.0], [2.0]]

    def test_a_run_that_logged_no_metrics_has_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        self.seeds_side_by_side(logged=True)
        path = Path("logs0/sac/Task-v0_1/Task-v0/args.yml")
        path.write_text(yaml.dump(OrderedDict(algo="sac", env="Task-v0", seed=0, tensorboard_log="")))
        for made in find_runs([Path(".")]):
            if made.seed == 0:
                assert made.metrics == {}

    def test_evaluations_and_tensorboard_below_a_run_belong_to_it(self, tmp_path: Path) -> None:
        write_monitor(tmp_path, [(1.0, 10, 5.0)])
        write_evaluations(tmp_path / "eval", [1], [[2.0]])
        (made,) = find_runs([tmp_path])
        assert made.evaluations is not None
        assert made.evaluations.returns.tolist() == [[2.0]]

    def test_other_settings_are_another_group(self, tmp_path: Path) -> None:
        for name, tau in {"a": 0.1, "b": 0.1, "c": 0.2}.items():
            write_run(tmp_path / name)
            (tmp_path / name / "config.yml").write_text(yaml.dump({"tau": tau, "gamma": 0.9}))
        groups = group_runs(find_runs([tmp_path]))
        assert {label: [made.name for made in runs] for label, runs in groups.items()} == {
            "tau=0.1": ["a", "b"],
            "tau=0.2": ["c"],
        }

    def test_an_algorithm_is_known_by_its_logs(self, tmp_path: Path) -> None:
        write_progress(tmp_path / "ppo", {"time/total_timesteps": [1], "train/clip_fraction": [0.1]})
        write_progress(tmp_path / "sac", {"time/total_timesteps": [1], "train/ent_coef": [0.1]})
        write_progress(tmp_path / "what", {"time/total_timesteps": [1], "train/other": [0.1]})
        assert [made.algorithm for made in find_runs([tmp_path])] == ["PPO", "SAC", None]


class TestCurves:
    def test_a_band_of_three_runs_is_students_interval_on_their_common_steps(self) -> None:
        made = [in_order([0, 10, end], [level, level, level]) for end, level in ((20, 1.0), (30, 2.0), (40, 6.0))]
        found = band(made)
        assert found is not None
        assert (found.steps[0], found.steps[-1]) == (0, 20)
        assert found.mean == pytest.approx(3.0)
        half = 4.3026527 * np.sqrt(7.0) / np.sqrt(3.0)  # t(0.975, 2); the variance of 1, 2, 6 is 7
        assert found.high == pytest.approx(3.0 + half)
        assert found.low == pytest.approx(3.0 - half)

    def test_two_runs_have_a_range_and_one_has_none(self) -> None:
        first, second = in_order([0, 10], [1.0, 1.0]), in_order([5, 10, 20], [4.0, np.nan, 4.0])
        found = band([first, second])
        assert found is not None
        assert (found.steps[0], found.steps[-1], found.low[0], found.high[0]) == (5, 10, 1.0, 4.0)
        assert band([first]) is None
        assert band([first, in_order([20, 30], [1.0, 1.0])]) is None
        assert band([first, in_order([], [])]) is None

    def test_smoothing_and_thinning(self) -> None:
        made = Series(np.arange(60.0), np.arange(60.0))  # a window of 3
        assert rolling(made).values[:4].tolist() == [0.0, 0.5, 1.0, 2.0]
        assert thin(made, 6).values.tolist() == [4.5, 14.5, 24.5, 34.5, 44.5, 54.5]
        assert in_order([3, 1, 1, np.nan], [30, 10, 11, 0]).values.tolist() == [11, 30]


class TestEstimates:
    def test_without_rewards_per_step_it_is_the_larger_of_both_ends(self) -> None:
        positive = discounted_returns(run(episodes=episodes([200.0] * 30), given={"gamma": 0.9, "reward_scale": 0.5}))
        assert not isinstance(positive, Unknown)
        assert positive.is_estimate
        assert positive.series.values == pytest.approx(0.5 * 2.0 / (1 - 0.9))
        negative = discounted_returns(run(episodes=episodes([-3.0] * 30, 3), given={"gamma": 0.5}))
        assert not isinstance(negative, Unknown)
        assert negative.series.values == pytest.approx(-((1 + 0.5 + 0.25) + (1 + 0.5) + 1) / 3)

    def test_what_is_logged_comes_first(self) -> None:
        made = run(episodes=episodes([200.0] * 30), rollout__discounted_return=7.0, train__q_value=3.0, train__actor_loss=1.0)
        value, q = discounted_returns(made), critic_values(made)
        assert not isinstance(value, Unknown)
        assert not isinstance(q, Unknown)
        assert (value.series.values[0], q.series.values[0]) == (7.0, 3.0)
        assert not value.is_estimate
        assert not q.is_estimate


def test_numbers_of_a_zip_bomb_are_not_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", " " * (60 << 20))
    (tmp_path / "model.zip").write_bytes(buffer.getvalue())
    assert of_model(tmp_path) is None
