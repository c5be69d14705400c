"""The example with four goals: its task against numbers worked by hand, and the files that it writes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_softac import SoftQL
from tests.test_examples import script

multi_goal: Any = script("examples/multi_goal.py")


class TestTask:
    def test_it_is_a_gymnasium_environment(self) -> None:
        check_env(multi_goal.MultiGoal(), skip_render_check=True)

    def test_a_step(self) -> None:
        env = multi_goal.MultiGoal()
        env.reset(seed=0)
        env.position = np.array([1.0, 0.5], np.float32)
        obs, reward, terminated, truncated, info = env.step(np.array([0.5, -0.5], np.float32))
        assert obs.tolist() == [1.5, 0.0]
        # 30·(0.25 + 0.25) for the action, (5 − 1.5)² to the goal on the right
        assert reward == pytest.approx(-15.0 - 12.25)
        assert (terminated, truncated, info["goal"]) == (False, False, -1)

    @pytest.mark.parametrize("goal", range(4))
    def test_a_goal_ends_the_episode_and_pays_10(self, goal: int) -> None:
        env = multi_goal.MultiGoal()
        env.reset(seed=0)
        direction = multi_goal.GOALS[goal] / 5.0
        env.position = 3.75 * direction
        _, reward, terminated, _, info = env.step(0.5 * direction)  # to 0.75 from the goal
        assert reward == pytest.approx(-7.5 - 0.5625 + 10.0)
        assert terminated
        assert info["goal"] == goal

    def test_actions_and_positions_are_bounded_and_episodes_have_30_steps(self) -> None:
        env = multi_goal.MultiGoal()
        env.reset(seed=0)
        env.position = np.array([6.5, 6.5], np.float32)
        obs, reward, *_ = env.step(np.array([9.0, 9.0], np.float32))
        assert obs.tolist() == [7.0, 7.0]
        assert reward == pytest.approx(-60.0 - 53.0)  # as for (1, 1); 2² + 7² to the nearest goal
        ends = [env.step(np.zeros(2, np.float32))[3] for _ in range(29)]
        assert ends == [False] * 28 + [True]

    def test_it_starts_near_the_middle(self) -> None:
        env = multi_goal.MultiGoal()
        starts = np.stack([env.reset(seed=seed)[0] for seed in range(300)])
        assert np.abs(starts.mean(axis=0)).max() < 0.03
        assert starts.std() == pytest.approx(0.1, rel=0.15)

    def test_one_goal_alone_may_count(self) -> None:
        env = multi_goal.MultiGoal(multi_goal.GOALS[1:2])
        env.reset(seed=0)
        env.position = np.array([4.5, 0.0], np.float32)
        _, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
        assert not terminated
        assert reward == pytest.approx(-90.25)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["multi_goal.py", *arguments])
    multi_goal.main()


class InThisProcess:
    """A pool of processes that starts none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.imap = map

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_rows_and_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Context:
        Pool = InThisProcess

    for name in ("COUNTED", "DRAWN", "LOOKED_AT"):
        monkeypatch.setattr(multi_goal, name, 5)
    monkeypatch.setattr(multi_goal.multiprocessing, "get_context", lambda _: Context)
    small = '{"learning_starts": 20, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}, "buffer_size": 1000}'
    common = ["--seeds", "0", "--set", small, "--models", str(tmp_path / "models")]
    for _ in range(2):  # the second time nothing is left to do but the picture
        call(monkeypatch, "--steps", "40", "--output", str(tmp_path / "four"), *common)
    rows = multi_goal.read(tmp_path / "four.csv")
    assert [row["algorithm"] for row in rows] == list(multi_goal.ALGORITHMS)
    for row in rows:
        shares = [float(row[goal]) for goal in ("right", "left", "top", "bottom")]
        assert sum(shares) == pytest.approx(float(row["any"]))
        assert 0.0 <= min(shares) <= sum(shares) <= 1.0
    assert (tmp_path / "four.png").stat().st_size > 10_000

    started: list[Any] = []
    warm_start = SoftQL.warm_start

    def noted(model: SoftQL, source: Path) -> SoftQL:
        started.append(source)
        return warm_start(model, source)

    monkeypatch.setattr(SoftQL, "warm_start", noted)
    monkeypatch.setattr(multi_goal, "EVERY", 20)
    call(monkeypatch, "--transfer", "--steps", "40", "--output", str(tmp_path / "one"), *common)
    assert started == [tmp_path / "models" / "SoftQL-0"]
    rows = multi_goal.read(tmp_path / "one.csv")
    assert [row["start"] for row in rows] == list(multi_goal.TRANSFER)
    assert all(len(row["success"].split()) == 3 for row in rows)
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("seed 0") == len(multi_goal.ALGORITHMS) + 2
