"""Two ranks that train together, and what each sees when one of them fails. Sources of truth: NumPy, and the other rank."""

import pickle
import re
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac.collect.returns import count_returns, no_returns
from sb3_softac.collect.step_infos import StepInfos
from sb3_softac.engine import group
from tests.distributed import scenarios
from tests.helpers import make_model
from tests.ranks import environment, run_ranks


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    first, second = run_ranks(scenarios.run_all, 2, folder)
    assert first == (True, None)
    assert second == (False, None)  # killed, as the last scenario has it
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in (0, 1)]


def both(seen: Any, name: str) -> Any:
    return [rank[name] for rank in seen]


class TestTraining:
    def test_weights_begin_apart_and_are_bit_for_bit_the_same_afterwards(self, seen: Any) -> None:
        first, second = both(seen, "trains")
        assert first["begun"] != second["begun"]
        assert first["weights"] == second["weights"]

    def test_environments_and_noise_differ(self, seen: Any) -> None:
        first, second = both(seen, "trains")
        assert not np.allclose(first["observations"][:3], second["observations"][:3])
        assert not np.allclose(first["actions"], second["actions"])

    def test_steps_learning_starts_and_episodes_count_all_ranks(self, seen: Any) -> None:
        # 60 steps are 30 of each; updates after 22, 24, ..., 60 steps; episodes of 5 steps
        assert [each["steps"] for each in both(seen, "trains")] == [(60, 20, 30, 12)] * 2

    def test_observations_of_all_ranks_are_normalised_alike(self, seen: Any) -> None:
        first, second = both(seen, "trains")
        every = np.concatenate([first["observations"], second["observations"]]).astype(np.float64)
        for count, mean, var in (first["moments"], second["moments"]):
            assert count == len(every)
            np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(var, every.var(axis=0), rtol=1e-12)

    def test_returns_of_all_ranks_are_counted(self, seen: Any) -> None:
        ranks = both(seen, "trains")
        together, running = no_returns(), np.zeros(2)
        for step in range(30):
            rewards, dones = (np.array([rank[name][step] for rank in ranks], np.float64) for name in ("rewards", "dones"))
            count_returns(together, running, rewards, dones, 0.99)
        for rank in ranks:
            np.testing.assert_allclose(rank["returns"], together, rtol=1e-6)  # rewards are stored as float32

    def test_the_networks_that_resets_make_are_the_same(self, seen: Any) -> None:
        first, second = both(seen, "resets")
        assert first == second
        assert first[0] == 1

    def test_as_many_updates_as_environment_steps_of_all_ranks(self, seen: Any) -> None:
        assert both(seen, "as_many_updates_as_steps") == [40, 40]

    def test_planned_gradient_steps_count_all_ranks(self, seen: Any) -> None:
        assert both(seen, "plans") == [499, 499]  # two environment steps are done, and each rollout has two

    def test_moments_of_returns_are_those_of_rank_0(self, seen: Any) -> None:
        (first, after, weights), (second, other_after, other_weights) = both(seen, "trained_apart_before")
        assert first[1] != second[1]
        np.testing.assert_array_equal(after, other_after)
        assert after[0] == first[0] + 20
        assert weights == other_weights

    def test_one_progress_bar_counts_the_steps_of_all(self, seen: Any) -> None:
        assert both(seen, "shows_progress") == [([(60, 60)] * 3 + [None], 30), ([None] * 4, 30)]

    def test_a_callback_of_one_rank_stops_all(self, seen: Any) -> None:
        (steps, size, weights), (other_steps, other_size, other_weights) = both(seen, "callback_stops_one")
        assert weights == other_weights
        assert (size, other_size) == (24, 22)  # the other one ends its rollout of four steps
        assert steps == other_steps == 46

    def test_compiled_on_all_ranks_or_on_none(self, seen: Any) -> None:
        for name, expected in (("one_does_not_compile", False), ("all_compile", True)):
            first, second = both(seen, name)
            assert first == second, name
            assert first[0] is expected

    def test_a_compilation_that_fails_on_one_is_given_up_by_all(self, seen: Any) -> None:
        first, second = both(seen, "one_fails_to_compile")
        assert first[0] is second[0] is False
        assert len(first[1]) == len(second[1]) == 1
        assert "another rank could not" in first[1][0]
        assert "out of registers" in second[1][0]
        assert first[2] == second[2]
        assert first[2] == both(seen, "one_does_not_compile")[0][1]  # the trial has left no trace

    def test_a_group_is_noticed_unless_it_is_refused(self, seen: Any) -> None:
        assert both(seen, "noticed") == [20, 20]
        assert both(seen, "alone_by_choice") == [40, 40]


#: what the first rank says, and the second, whose fault it is
TOLD = {
    "environment_fails": ("GroupError: .*Rank 1 has failed: OSError: the sensor is gone", "OSError: the sensor is gone"),
    "reward_is_nan": ("GroupError: .*Rank 1 has failed: ValueError: .*non-finite reward", "ValueError: .*non-finite reward"),
    "one_diverges": ("TrainingDivergedError: ", "TrainingDivergedError: "),
    "checkpoint_cannot_be_written": ("GroupError: .*Rank 1 .*OSError: no space left", "OSError: no space left"),
    "one_fails_while_it_trains": (
        "GroupError: Rank 0 no longer reaches the other ranks",
        "TrainingDivergedError: as gSDE may",
    ),
    "folder_is_removed": (
        "GroupError: .*Rank 1 .*FileNotFoundError: .*the folder was removed",
        "FileNotFoundError: .*the folder was removed",
    ),
    "other_option_where_it_goes_on": (
        "GroupError: Rank 1 could not go on: ValueError: `batch_size` is 9",
        "ValueError: `batch_size` is 9",
    ),
    "unknown_option_where_it_goes_on": (
        "GroupError: Rank 1 could not go on: .*`gama` is no option",
        "ValueError: `gama` is no option",
    ),
    "interrupted_while_it_writes": ("GroupError: .*Rank 1 .*KeyboardInterrupt", "KeyboardInterrupt"),
}
#: what both say
REFUSED = {
    "other_option": "ValueError: Rank 1 has `batch_size` 9, but rank 0 has 8",
    "other_networks": r"ValueError: Rank 1 has `policy_kwargs` \{net_arch: \(9\)\}, but rank 0 has \{net_arch: \(8\)\}",
    "other_spaces": r"ValueError: Rank 1 has `observation space` Box\(-1.0, 2.0",
    "other_total": "ValueError: Rank 1 has `total_timesteps` 101, but rank 0 has 100",
    "other_version": "ValueError: Rank 1 has `version of torch` torch 1, but rank 0 has torch 0",
    "frozen_on_one": r"ValueError: Rank 1 has `frozen parameters` \('actor\.",
    "counted_in_episodes": "ValueError: `train_freq` counts episodes, but it must count steps",
    "with_overlap": "ValueError: `overlap` is True, but it must be False with `distributed`",
    "with_vec_normalize": "ValueError: `env` has VecNormalize, .*normalize_observations=True",
    "another_time_out": "ValueError: `distributed` is {'timeout': 5.0}, but it must be True here",
    "other_folder_where_it_goes_on": "ValueError: `folder` is .*, but it must be the same one on all ranks",
    "checkpoints_of_two_runs": "ValueError: `folder` is .*, which holds checkpoints of another run",
}


@pytest.mark.parametrize("name", TOLD)
def test_all_ranks_end_with_one_error_where_one_fails(seen: Any, name: str) -> None:
    for text, pattern in zip(both(seen, name), TOLD[name], strict=True):
        assert re.match(pattern, text), text


@pytest.mark.parametrize("name", REFUSED)
def test_all_ranks_refuse_what_cannot_be(seen: Any, name: str) -> None:
    for text in both(seen, name):
        assert isinstance(text, str), text
        assert re.match(REFUSED[name], text), text


def test_a_rank_that_is_killed_ends_the_others(seen: Any) -> None:
    assert "one_is_killed" not in seen[1]
    assert seen[0]["one_is_killed"].startswith("GroupError: Rank 0 no longer reaches the other ranks")


@pytest.mark.parametrize(
    ("local", "n_gpus", "backend"),
    [("2", 0, None), ("2", 2, None), ("2", 1, "gloo"), ("1", 1, None), (None, 1, None)],
    ids=["no GPU", "a GPU for each", "one GPU for two", "one", "a launcher that does not say"],
)
def test_ranks_that_share_a_gpu_have_gloo(
    local: str | None, n_gpus: int, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    if local is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    chosen: list[Any] = []
    devices: list[int] = []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **_: chosen.append(backend))
    monkeypatch.setattr(th.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(th.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(th.cuda, "set_device", devices.append)
    group.open_group(1, None)
    assert chosen == [backend]
    assert devices == ([1 % n_gpus] if n_gpus else [])


def test_episodes_of_many_environments_are_told_without_a_dict_for_each() -> None:
    """Those that have ended, as `StepInfos` has them."""
    model = make_model()
    model._runtime.group = SimpleNamespace(size=2, rank=0)  # type: ignore[assignment]  # nothing is sent
    model.ep_info_buffer, model.ep_success_buffer = deque(maxlen=10), deque(maxlen=10)
    dones = np.array([False, True, False, True])
    infos = StepInfos(dones, np.zeros(4, dtype=bool), None, None, {})
    infos.set_episodes(np.array([1.5, 2.5]), np.array([3, 4]), 0.0)
    model._update_info_buffer(infos, dones)
    assert [episode["r"] for episode, _ in model._runtime.new_episodes] == [1.5, 2.5]
    assert not infos._dicts
