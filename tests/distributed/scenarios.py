"""What two ranks go through, one scenario after the other, and what each of them sees: run in both test processes."""

import os
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, TrainingDivergedError, distributed
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.engine import engine
from sb3_softac.engine.group import close_group
from sb3_softac.engine.steps import call
from sb3_softac.files import ranked
from sb3_softac.ranks import _summary, state_tensors
from tests.helpers import SMALL, RandomEnv

Seen = Any
SCENARIOS: dict[str, Callable[[int, pytest.MonkeyPatch], Seen]] = {}


def scenario(function: Callable[[int, pytest.MonkeyPatch], Seen]) -> Callable[[int, pytest.MonkeyPatch], Seen]:
    SCENARIOS[function.__name__] = function
    return function


def make(env: Any = None, **kwargs: Any) -> Any:
    options: dict[str, Any] = {
        "policy_kwargs": SMALL,
        "learning_starts": 10,
        "batch_size": 8,
        "buffer_size": 200,
        "seed": 0,
        "device": "cpu",
    }
    options |= {"compile": False, "distributed": True}
    return SoftAC(
        "MlpPolicy", RandomEnv() if env is None else env, **{"compile": False, "distributed": True} | options | kwargs
    )


class Unlucky(RandomEnv):
    """Fails, or returns another reward, at its tenth step."""

    def __init__(self, reward: float | None) -> None:
        super().__init__()
        self.n_calls, self.reward = 0, reward

    def step(self, action: Any) -> Any:
        self.n_calls += 1
        observation, reward, *rest = super().step(action)
        if self.n_calls >= 10:
            if self.reward is None:
                raise OSError("the sensor is gone")
            reward = self.reward
        return observation, reward, *rest


class Recorder(RandomEnv):
    """Keeps every observation that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _observe(self) -> Any:
        self.seen.append(super()._observe() * (1.0 + len(self.seen)))
        return self.seen[-1]


class StopsAt(BaseCallback):
    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.last = n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last


# --- training together ---------------------------------------------------------------------------------------------------


@scenario
def trains(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    env = Recorder()
    model = make(Monitor(env), normalize_observations=True, normalize_rewards=5.0, learning_starts=20)
    begun = _summary(state_tensors(model))
    model.learn(60, log_interval=None)
    buffer, moments = model.replay_buffer, model.policy.normalizer.moments[0]
    return {
        "begun": begun,
        "weights": _summary(state_tensors(model)),
        "steps": (model.num_timesteps, model._n_updates, buffer.size(), len(model.ep_info_buffer)),
        "observations": np.array(env.seen),
        "moments": (float(moments.count), moments.mean.numpy(), moments.var.numpy()),
        "returns": model._return_moments,
        "rewards": buffer.rewards[: buffer.size(), 0],
        "dones": buffer.dones[: buffer.size(), 0],
        "actions": buffer.actions[: buffer.size()],
        "logged": len(model.logger.output_formats),
    }


@scenario
def resets(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    model = make(resets=(10,)).learn(40)
    return model._n_resets, _summary(state_tensors(model))


@scenario
def as_many_updates_as_steps(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    return make(gradient_steps=-1, train_freq=2, learning_starts=0).learn(40)._n_updates


@scenario
def callback_stops_one(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    model = make(train_freq=4).learn(1000, callback=StopsAt(22) if rank == 1 else None)
    return model.num_timesteps, model.replay_buffer.size(), _summary(state_tensors(model))


@scenario
def one_does_not_compile(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    patch.setattr(engine, "WORTH_COMPILING", 0)
    patch.setattr(engine, "missing_for_compilation", lambda device: "a compiler" if rank == 1 else None)
    model = make(compile="auto").learn(40)
    return model._engine.compiles, _summary(state_tensors(model))


def _stand_in(fails: bool) -> Any:
    """What runs a step as it is in the place of a compiled one, which takes half a minute to make."""

    class StandIn:
        def __init__(self, update: Any, flags: Any, numbers: Any, optimizer_step: Any) -> None:
            self.step: Any = lambda batch, noise: call(update, batch, noise, flags, numbers, optimizer_step)

        def __call__(self, batch: Any, noise: Any) -> Any:
            metrics = self.step(batch, noise)
            if fails:
                raise RuntimeError("out of registers")
            return metrics

    return StandIn


@scenario
def one_fails_to_compile(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    patch.setattr(engine, "missing_for_compilation", lambda device: None)
    patch.setattr(engine, "CompiledStep", _stand_in(fails=rank == 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make(compile=True).learn(40)
    said = [str(each.message) for each in caught if "could not be compiled" in str(each.message)]
    return model._engine.compiles, said, _summary(state_tensors(model))


@scenario
def all_compile(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    patch.setattr(engine, "missing_for_compilation", lambda device: None)
    patch.setattr(engine, "CompiledStep", _stand_in(fails=False))
    model = make(compile=True).learn(40)
    return model._engine.compiles, _summary(state_tensors(model))


class Plans(StopsAt):
    """Asks how many gradient steps are to come, at the first step."""

    model: Any

    def _on_step(self) -> bool:
        if self.n_calls == 1:
            self.planned = self.model._planned_gradient_steps()
        return super()._on_step()


@scenario
def plans(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    callback = Plans(4)
    make(learning_starts=0).learn(1000, callback=callback)
    return callback.planned


@scenario
def trained_apart_before(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    """What normalises rewards is then that of rank 0, as everything else."""
    with pytest.MonkeyPatch.context() as apart:
        apart.setattr(distributed, "is_open", lambda: False)  # as if the group were opened later
        model = make(distributed=None, normalize_rewards=5.0).learn(40)
    before = model._return_moments.copy()
    model.learn(20, reset_num_timesteps=False)
    return before, model._return_moments, _summary(state_tensors(model))


@scenario
def shows_progress(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    shown: list[Any] = []
    calls: list[Any] = []

    def look(bar: ProgressBarCallback) -> None:
        shown.append(None if bar.pbar.disable else (bar.pbar.n, bar.pbar.total))

    patch.setattr(distributed.Progress, "_on_training_end", look)
    make().learn(60, callback=lambda *_: calls.append(1) or True, progress_bar=True)  # type: ignore[func-returns-value]
    given = ProgressBarCallback()
    make().learn(60, callback=[given, StopsAt(100)])
    look(given)
    given.on_training_end()  # as RL Zoo does, also where the training has failed
    look(given)
    return shown, len(calls)


# --- failures that ranks tell each other ---------------------------------------------------------------------------------


@scenario
def environment_fails(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(Unlucky(None) if rank == 1 else None).learn(1000)


@scenario
def reward_is_nan(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(Unlucky(float("nan")) if rank == 1 else None).learn(1000)


@scenario
def one_diverges(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(Unlucky(1e30) if rank == 1 else None).learn(1000)


# --- bad input -----------------------------------------------------------------------------------------------------------


@scenario
def other_option(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(batch_size=8 + rank).learn(100)


@scenario
def other_networks(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(policy_kwargs={"net_arch": [8 + rank]}).learn(100)


@scenario
def other_spaces(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    env = RandomEnv()
    env.observation_space = spaces.Box(-1.0, 1.0 + rank, (4,), np.float32)
    make(env).learn(100)


@scenario
def other_total(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make().learn(100 + rank)


@scenario
def other_version(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    patch.setattr("sb3_softac.ranks.version", lambda package: f"{package} {rank if package == 'torch' else 0}")
    make().learn(100)


@scenario
def frozen_on_one(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    model = make()
    next(model.actor.parameters()).requires_grad_(rank == 0)
    model.learn(100)


@scenario
def counted_in_episodes(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(train_freq=(1, "episode")).learn(100)


@scenario
def with_vec_normalize(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(VecNormalize(DummyVecEnv([RandomEnv]))).learn(100)


@scenario
def with_overlap(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(overlap=True).learn(100)


@scenario
def another_time_out(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make(distributed={"timeout": 5})


@scenario
def alone_by_choice(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    return make(distributed=False).learn(40).num_timesteps


@scenario
def noticed(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    return make(distributed=None).learn(40).replay_buffer.size()


# --- checkpoints ---------------------------------------------------------------------------------------------------------


@scenario
def checkpoints_of_two_runs(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    make().learn(60, callback=ExactCheckpointCallback(10, Path(os.environ["RANKS_FOLDER"])))
    make().learn(60, callback=ExactCheckpointCallback(10, Path(os.environ["RANKS_FOLDER"])))


@scenario
def checkpoint_cannot_be_written(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    if rank == 1:
        patch.setattr("sb3_softac.files.checkpoint.Folder.put", _no_space)
    make().learn(60, callback=ExactCheckpointCallback(10, Path(os.environ["RANKS_FOLDER"]) / "full"))


def _no_space(*args: Any) -> None:
    raise OSError("no space left")


class Removes(BaseCallback):
    """Removes a folder on the way."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        if self.n_calls == 25:
            shutil.rmtree(self.folder)
        return True


@scenario
def folder_is_removed(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    folder = Path(os.environ["RANKS_FOLDER"]) / "removed"
    removes = [Removes(folder / "rank-1")] if rank == 1 else []
    make().learn(200, callback=[ExactCheckpointCallback(10, folder), *removes])


@scenario
def other_option_where_it_goes_on(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    folder = Path(os.environ["RANKS_FOLDER"])
    SoftAC.resume(folder, RandomEnv(), device="cpu", batch_size=8 + rank)


@scenario
def unknown_option_where_it_goes_on(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    folder = Path(os.environ["RANKS_FOLDER"])
    options: dict[str, Any] = {"gama": 0.9} if rank == 1 else {}
    SoftAC.resume(folder, RandomEnv(), device="cpu", **options)


@scenario
def other_folder_where_it_goes_on(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    folder = Path(os.environ["RANKS_FOLDER"])
    sources = ranked.sources
    if rank == 1:
        patch.setattr(ranked, "sources", lambda path: sources(path)[1:])  # the newest is not there
    SoftAC.resume(folder, RandomEnv(), device="cpu")


@scenario
def interrupted_while_it_writes(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    if rank == 1:
        patch.setattr("sb3_softac.files.checkpoint.Folder.put", _interrupt)
    try:
        make().learn(60, callback=ExactCheckpointCallback(10, Path(os.environ["RANKS_FOLDER"]) / "interrupted"))
    except KeyboardInterrupt:
        return "KeyboardInterrupt: "


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


# --- the end of the group ------------------------------------------------------------------------------------------------


@scenario
def one_fails_while_it_trains(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    model = make()
    if rank == 1:
        patch.setattr(type(model), "_batches", _diverge)
    model.learn(100)


def _diverge(*args: Any) -> None:
    raise TrainingDivergedError("as gSDE may, of the batch of one rank")


@scenario
def one_is_killed(rank: int, patch: pytest.MonkeyPatch) -> Seen:
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)  # a new group
    close_group()
    model = make()
    if rank == 1:
        model.learn(20)
        os.kill(os.getpid(), signal.SIGKILL)
    model.learn(20)
    model.learn(1000)


def run_all(folder: Path) -> None:
    """Write down what this rank sees, as long as it lives: results, or errors as text."""
    th.set_num_threads(1)
    rank = int(os.environ["RANK"])
    os.environ["RANKS_FOLDER"] = str(folder / "checkpoints")
    seen: dict[str, Seen] = {}
    for name, function in SCENARIOS.items():
        with pytest.MonkeyPatch.context() as patch:
            try:
                seen[name] = function(rank, patch)
            except Exception as error:
                seen[name] = f"{type(error).__name__}: {error}"
        (folder / f"{rank}.pkl").write_bytes(pickle.dumps(seen))
