"""Two ranks that torchrun starts again after one was killed. Source of truth: the same training, left alone."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import DamagedFileError, SoftAC, TensorReplayBuffer, distributed
from sb3_softac.checkpoint import ExactCheckpointCallback, newest_step
from sb3_softac.engine.group import close_group
from sb3_softac.files import ranked, segments
from sb3_softac.files.checkpoint import Folder
from sb3_softac.ranks import _summary, state_tensors
from tests.distributed.elastic import OPTIONS, one_rank
from tests.helpers import RandomEnv
from tests.ranks import environment, run_ranks

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
        _, errors = process.communicate(timeout=600)
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
        part = ranked._read(place, TOTAL)
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


def dealt(folder: Path, size: int, env: Any = RandomEnv) -> list[Any]:
    """The models that as many ranks would go on with."""
    source = ranked.sources(folder)[0]
    parts = [ranked._read(place, source.n_steps) for place in source.places]
    models = []
    for rank in range(size):
        models.append(ranked._dealt(source, rank, size, parts, (SoftAC, SoftAC._wrap_env(env()), "cpu", {}, {})))
    return models


def rewards_of(model: Any) -> np.ndarray[Any, Any]:
    rewards: np.ndarray[Any, Any] = np.asarray(model.replay_buffer.rewards)[: model.replay_buffer.size(), 0]
    return rewards


def test_three_ranks_share_all_transitions_of_two(runs: Path) -> None:
    models = dealt(runs / "alone", 3)
    assert [model.num_timesteps for model in models] == [TOTAL] * 3
    everything = np.concatenate([rewards_of(model) for model in models])
    np.testing.assert_array_equal(np.sort(everything), np.sort(stored(runs / "alone")))
    assert len(everything) == 180


# --- one process, and several ------------------------------------------------------------------------------------------


def single(folder: Path, total: int = 60, **options: Any) -> SoftAC:
    model = SoftAC("MlpPolicy", RandomEnv(), **{**OPTIONS, **options})
    return model.learn(total, callback=ExactCheckpointCallback(20, folder))


@pytest.mark.parametrize("buffer_class", [None, TensorReplayBuffer])
def test_two_ranks_share_all_transitions_of_one_process(buffer_class: Any, tmp_path: Path) -> None:
    model: Any = single(tmp_path / "run", replay_buffer_class=buffer_class)
    models = dealt(tmp_path / "run", 2)
    for other in models:
        assert (other.num_timesteps, other._n_updates, other._episode_num) == (60, 40, 12)
        assert _summary(state_tensors(other)) == _summary(state_tensors(model))
        assert type(other.replay_buffer) is type(model.replay_buffer)
    first, second = (rewards_of(other) for other in models)
    np.testing.assert_array_equal(np.concatenate([first, second]), rewards_of(model))
    last = models[0].replay_buffer
    assert bool(last.timeouts[29] != 0) != bool(last.dones[29] != 0)  # what follows there is the other rank's
    assert models[0].env.unwrapped._seeds != models[1].env.unwrapped._seeds


def test_two_ranks_go_on_where_one_process_was_and_are_killed(tmp_path: Path) -> None:
    """With exact counters; the checkpoints of one process go once all ranks have written."""
    folder = tmp_path / "run"
    single(folder)
    process = start(folder, KILLED_AT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "The run had 1 rank and goes on with 2: replay buffers are redistributed, and new episodes begin" in errors
    every = results(tmp_path, "run")
    assert [each["begun"] for each in every] == [100, 100]  # of their second life: 60 steps, and 20 of each
    # One for each step from 21 to 60, then one for each step of both.
    assert [(each["steps"], each["updates"], each["size"]) for each in every] == [(TOTAL, 40 + 70, 90)] * 2
    assert every[0]["weights"] == every[1]["weights"]
    assert every[0]["buffer"] != every[1]["buffer"]
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "rank-0", "rank-1"]
    assert newest_step(folder) == TOTAL
    with pytest.warns(UserWarning, match="The run had 2 ranks and goes on with 1"):
        model = SoftAC.resume(folder, RandomEnv(), device="cpu")
    assert (model.distributed, model.num_timesteps, model._n_updates) == (None, TOTAL, 110)


def test_one_process_goes_on_where_one_rank_was(tmp_path: Path) -> None:
    """Bit for bit, though it was one that torchrun had started, and there is none now."""
    folder = tmp_path / "run"
    assert run_ranks(one_rank, 1, folder, 40)[0][0] is True
    assert ranked.option_of(folder) is True
    model = SoftAC.resume(folder, RandomEnv(), device="cpu")
    assert model.distributed is None
    with pytest.warns(UserWarning, match="goes on to 60 steps"):
        model.learn(60, callback=ExactCheckpointCallback(20, folder))
    assert model.num_timesteps == newest_step(folder) == 60
    assert model._n_updates == 40
    assert _summary(state_tensors(model)) == _summary(state_tensors(single(tmp_path / "other")))
    with pytest.raises(ValueError, match="`distributed` is True, but it must be None or False in a process that torchrun"):
        SoftAC.resume(folder, RandomEnv(), device="cpu", distributed=True)
    with pytest.raises(ValueError, match="`distributed` is 'yes'"):
        SoftAC.resume(folder, RandomEnv(), device="cpu", distributed="yes")


def test_checkpoints_of_one_process_count_until_all_ranks_have_written(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    single(folder)
    subprocess.run(["cp", "-r", str(runs / "alone" / "rank-0"), str(folder / "rank-0")], check=True)
    assert newest_step(folder) == 60
    assert SoftAC.resume(folder, RandomEnv(), device="cpu").num_timesteps == 60
    subprocess.run(["cp", "-r", str(runs / "alone" / "rank-1"), str(folder / "rank-1")], check=True)
    assert [source.n_steps for source in ranked.sources(folder)] == [TOTAL, 160]  # the other is another run


def test_a_process_of_torchrun_that_goes_on_by_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single(tmp_path / "run")
    for name, value in environment(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="This process is one of 2 that torchrun has started, but the run"):
        SoftAC.resume(tmp_path / "run", RandomEnv(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SoftAC.resume(tmp_path / "run", RandomEnv(), device="cpu", distributed=False).distributed is False
    single(tmp_path / "alone", distributed=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SoftAC.resume(tmp_path / "alone", RandomEnv(), device="cpu").distributed is False


def test_what_cannot_be_dealt_out(tmp_path: Path) -> None:
    def env() -> Any:
        return BitFlippingEnv(n_bits=4, continuous=True)

    options: dict[str, Any] = {**OPTIONS, "normalize_observations": False, "replay_buffer_class": HerReplayBuffer}
    model = SoftAC("MultiInputPolicy", env(), **options)
    model.learn(40, callback=ExactCheckpointCallback(20, tmp_path / "run"))
    with pytest.raises(ValueError, match="a run of 1 rank, and must go on with as many, not 2: a HerReplayBuffer cannot"):
        dealt(tmp_path / "run", 2, env)


def test_one_process_goes_on_where_two_were(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(runs / "alone"), str(folder)], check=True)
    with pytest.warns(UserWarning, match="The run had 2 ranks and goes on with 1: replay buffers are redistributed"):
        model: Any = SoftAC.resume(folder, RandomEnv(), device="cpu")
    kept = model.replay_buffer.rewards[:, 0]
    assert len(np.intersect1d(kept, stored(folder))) == 90  # the newest 45 of each rank
    with pytest.warns(UserWarning, match="goes on to 220 steps"):
        model.learn(TOTAL + 20, callback=ExactCheckpointCallback(10, folder))
    assert model.num_timesteps == TOTAL + 20
    assert newest_step(folder) == TOTAL + 20
    assert ranked.ranks_in(folder) == [0]
    assert SoftAC.resume(folder, RandomEnv(), device="cpu").num_timesteps == TOTAL + 20


def test_an_option_that_there_is_not(runs: Path) -> None:
    with pytest.raises(ValueError, match="`gama` is no option of SoftAC"):
        SoftAC.resume(runs / "alone", RandomEnv(), device="cpu", gama=0.9)


def test_what_shows_its_damage_late(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model is made: the checkpoint before it is tried, as in a run of one process."""
    build, tried = ranked._build, []

    def fails_first(place: Folder, part: Any, arguments: Any) -> Any:
        tried.append(part.n_steps)
        if part.n_steps == TOTAL:
            raise DamagedFileError("`folder` has optimizer states of other networks.")
        return build(place, part, arguments)

    monkeypatch.setattr(ranked, "_build", fails_first)
    with (
        pytest.warns(UserWarning, match=r"The checkpoint at step 200 is damaged: .* of other networks\. The one before it"),
        pytest.warns(UserWarning, match="The run had 2 ranks and goes on with 1"),
    ):
        model = SoftAC.resume(runs / "alone", RandomEnv(), device="cpu")
    assert tried == [TOTAL, 160]
    assert model.num_timesteps == 160


def trained_with_a_time_out(folder: Path) -> Any:
    """A run of one rank, then one that goes on with it and names nothing."""
    options = {**OPTIONS, "distributed": {"timeout": 60.0}}
    SoftAC("MlpPolicy", RandomEnv(), **options).learn(40, callback=ExactCheckpointCallback(20, folder))
    close_group()
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    distributed._Opened.timeout = -1.0
    resumed = SoftAC.resume(folder, RandomEnv(), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed.learn(60)
    return ranked.timeout_of(folder), resumed.distributed, resumed.num_timesteps


def test_the_time_out_of_one_rank_is_kept(tmp_path: Path) -> None:
    assert run_ranks(trained_with_a_time_out, 1, tmp_path / "run") == [(True, (60.0, {"timeout": 60.0}, 60))]


def test_checkpoints_of_ranks_and_of_one_process_do_not_mix(runs: Path, tmp_path: Path) -> None:
    model = SoftAC("MlpPolicy", RandomEnv(), buffer_size=90, learning_starts=20, device="cpu")
    with pytest.raises(ValueError, match="checkpoints of several ranks"):
        model.learn(10, callback=ExactCheckpointCallback(5, runs / "alone"))
