"""Two ranks that torchrun starts again after one was killed. Source of truth: the same training, left alone."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback, newest_step
from sb3_softac.files import ranked, segments
from sb3_softac.files.checkpoint import Folder
from tests.helpers import RandomEnv

ROOT = Path(__file__).parent.parent.parent
TOTAL, KILLED_AT = 200, 110


def start(folder: Path, killed_at: int) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    script = ["-m", "tests.distributed.elastic", str(folder), str(TOTAL), str(killed_at)]
    return subprocess.Popen([*launcher, *script], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run that was left alone, and one that was killed, have written."""
    folder = tmp_path_factory.mktemp("elastic")
    processes = [start(folder / "alone", 0), start(folder / "killed", KILLED_AT)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return folder


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-result-{rank}.json").read_text()) for rank in (0, 1)]


def test_a_killed_rank_costs_no_more_than_one_interval_and_changes_nothing(runs: Path) -> None:
    alone, killed = results(runs, "alone"), results(runs, "killed")
    assert [run.pop("begun") for run in alone] == [None, None]
    # A checkpoint every 20 steps of each rank, 40 in all, where the next rollout begins.
    assert [run.pop("begun") for run in killed] == [80, 80]
    assert killed == alone
    assert alone[0]["weights"] == alone[1]["weights"]
    assert alone[0]["buffer"] != alone[1]["buffer"]


def test_the_newest_step_is_one_that_all_ranks_have(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(runs / "alone"), str(folder)], check=True)
    assert newest_step(folder) == TOTAL
    (folder / "rank-1" / f"checkpoint-{TOTAL:012d}" / "manifest.json").unlink()
    assert newest_step(folder) == 160
    (folder / "rank-1" / f"checkpoint-{160:012d}" / "manifest.json").unlink()
    assert newest_step(folder) is None
    with pytest.raises(ValueError, match="must hold a checkpoint that all ranks have written"):
        SoftAC.resume(folder, RandomEnv())


def stored(folder: Path) -> np.ndarray[Any, Any]:
    """All rewards in the buffers of both ranks: continuous, so that each is a transition's own."""
    every = []
    for rank in (0, 1):
        place = Folder(ranked.folder_of(folder, rank))
        part = ranked._read(folder, rank, TOTAL)
        model: Any = SoftAC("MlpPolicy", RandomEnv(), buffer_size=90, policy_kwargs={"net_arch": [16, 16]}, device="cpu")
        segments.restore(
            place.segments,
            part.segments,
            model.replay_buffer,
            part.state["replay_buffer"],
            part.arrays,
            segments.BufferLog(place.segments),
        )
        every.append(model.replay_buffer.rewards[:, 0])
    return np.concatenate(every)


def test_three_ranks_share_all_transitions_of_two(runs: Path) -> None:
    parts = [ranked._read(runs / "alone", rank, TOTAL) for rank in (0, 1)]
    rewards = []
    for rank in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = ranked._dealt(runs / "alone", rank, 3, parts, (SoftAC, SoftAC._wrap_env(RandomEnv()), "cpu", {}, {}))
        said = [str(each.message) for each in caught if "dealt out anew" in str(each.message)]
        assert len(said) == (rank == 0)
        buffer = model.replay_buffer
        assert model.num_timesteps == TOTAL
        rewards.append(buffer.rewards[: buffer.size(), 0])
    everything = np.concatenate(rewards)
    np.testing.assert_array_equal(np.sort(everything), np.sort(stored(runs / "alone")))
    assert len(everything) == 180


def test_one_process_goes_on_where_two_were(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(runs / "alone"), str(folder)], check=True)
    with pytest.warns(UserWarning, match="The run had 2 ranks and goes on with 1: replay buffers are dealt out anew"):
        model: Any = SoftAC.resume(folder, RandomEnv(), device="cpu")
    kept = model.replay_buffer.rewards[:, 0]
    assert len(np.intersect1d(kept, stored(folder))) == 90  # the newest 45 of each rank
    with pytest.warns(UserWarning, match="goes on to 220 steps"):
        model.learn(TOTAL + 20, callback=ExactCheckpointCallback(10, folder))
    assert model.num_timesteps == TOTAL + 20
    assert newest_step(folder) == TOTAL + 20
    assert ranked.ranks_in(folder) == [0]
    assert SoftAC.resume(folder, RandomEnv(), device="cpu").num_timesteps == TOTAL + 20


def test_checkpoints_of_ranks_and_of_one_process_do_not_mix(runs: Path, tmp_path: Path) -> None:
    model = SoftAC("MlpPolicy", RandomEnv(), buffer_size=90, learning_starts=20, device="cpu")
    with pytest.raises(ValueError, match="checkpoints of several ranks"):
        model.learn(10, callback=ExactCheckpointCallback(5, runs / "alone"))
