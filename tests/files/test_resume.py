"""What was killed goes on as if it had not been: N steps, a kill and M steps more equal N + M, to the last bit."""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback
from tests.files.resume_runs import RUNS, Digest, Stop, Stopped, Trained, checksum, train
from tests.helpers import RandomEnv, assert_same_parameters, needs_compiler, parameters_of, quick_model

NAMES = [
    pytest.param(name, marks=needs_compiler) if "compiled" in name else name for name in RUNS if not name.startswith("killed")
]
#: some versions of Python say that forks are dangerous where there are threads; here are none that do anything
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def uninterrupted(name: str, folder: Path, total: int | None = None) -> tuple[Digest, Trained]:
    """A training in one go, without checkpoints: writing them changes nothing, either."""
    trained = Trained(name, folder, writes=False, total=total)
    digest = trained.digest()
    trained.close()
    return digest, trained


def assert_equal(left: Digest, right: Digest) -> None:
    assert left.keys() == right.keys()
    assert len(left) > 20
    assert [name for name, value in left.items() if value != right[name]] == []


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Stopped in the middle of a step, some steps after the newest checkpoint."""
    expected, whole = uninterrupted(name, tmp_path / "whole")
    first = Trained(name, tmp_path / "cut", at=RUNS[name].stops)
    first.close()
    assert first.stopped
    second = Trained(name, tmp_path / "cut")
    assert 0 < second.resumed_at <= first.model.num_timesteps < second.model.num_timesteps
    assert second.model._n_updates > 0
    assert_equal(expected, second.digest())
    n_rows = len(second.dumps.rows)
    assert checksum(second.dumps.rows) == checksum(whole.dumps.rows[len(whole.dumps.rows) - n_rows :])
    second.close()


@pytest.mark.parametrize("name", ["pendulum", "three steps", "hindsight"])
def test_stopped_at_any_step(name: str, tmp_path: Path) -> None:
    """And again and again, also before the first checkpoint and at one."""
    expected, _ = uninterrupted(name, tmp_path / "whole")
    for at in (7, 16, 31, 32, 33, 34, 96, 97, 129, 160):
        stopped = Trained(name, tmp_path / "cut", at=at)
        stopped.close()
        assert stopped.stopped
    last = Trained(name, tmp_path / "cut")
    assert_equal(expected, last.digest())
    last.close()


# --- kills -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have imported everything when they begin."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.files.resume_runs"])
    return context


def go_on(processes: Any, name: str, folder: Path, operation: int = 0, after: float | None = None) -> int | None:
    """Train in a process; its exit code.

    :param operation: see ``train``
    :param after: seconds from its first checkpoint on, after which it is killed
    """
    process = processes.Process(target=train, args=(name, folder, operation))
    before = newest(folder)
    process.start()
    if after is not None:
        while process.is_alive() and newest(folder) == before:
            time.sleep(0.002)
        process.join(after)
        process.kill()
    process.join()
    code: int | None = process.exitcode
    return code


def newest(folder: Path) -> str:
    return max((path.name for path in folder.glob("checkpoints/checkpoint-*")), default="")


def run_to_the_end(processes: Any, name: str, folder: Path) -> Digest:
    assert go_on(processes, name, folder) == 0
    digest: Digest = json.loads((folder / "digest.json").read_text())
    return digest


@pytest.mark.parametrize("name", ["killed", "killed hindsight"])
def test_killed_while_a_checkpoint_is_written(name: str, processes: Any, tmp_path: Path) -> None:
    """Before each thing that is done to a file: before the first, in the next process before the second, ..."""
    expected, _ = uninterrupted(name, tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    codes = [go_on(processes, name, folder, operation) for operation in range(1, 33)]
    assert codes == [-signal.SIGKILL] * len(codes)
    assert_equal(expected, run_to_the_end(processes, name, folder))
    places = {path.name.partition("-")[0].partition(".")[0] for path in (folder / "checkpoints").iterdir()}
    assert places == {"run", "lock", "segments", "checkpoint"}  # nothing half-written is left


@pytest.mark.parametrize("name", ["killed episodes", "killed processes", "killed cheetah"])
def test_killed_at_random_moments(name: str, processes: Any, tmp_path: Path) -> None:
    """From outside."""
    expected, _ = uninterrupted(name, tmp_path / "whole")
    folder, generator = tmp_path / "cut", random.Random(name)
    folder.mkdir()
    codes = [go_on(processes, name, folder, after=generator.uniform(0.0, 0.08)) for _ in range(6)]
    assert codes[0] == -signal.SIGKILL
    assert set(codes) <= {0, -signal.SIGKILL}  # a busy machine may let one come to its end
    assert_equal(expected, run_to_the_end(processes, name, folder))


# --- what goes on, and what does not -----------------------------------------------------------------------------------


def callback_in(folder: Path, save_freq: int = 10, **kwargs: Any) -> ExactCheckpointCallback:
    return ExactCheckpointCallback(save_freq, folder, **kwargs)


class TestTotal:
    def test_another_one_is_taken_with_one_sentence(self, tmp_path: Path) -> None:
        """Where no option depends on the total, a longer training begins like a shorter one."""
        expected, _ = uninterrupted("constant", tmp_path / "whole", total=220)
        Trained("constant", tmp_path / "cut", at=107).close()
        with pytest.warns(UserWarning, match="goes on to 220 steps instead of 160: its schedules change") as warned:
            second = Trained("constant", tmp_path / "cut", total=220)
        assert len(warned) == 1
        assert_equal(expected, second.digest())
        second.close()

    def test_the_same_one_may_be_passed(self, tmp_path: Path) -> None:
        Trained("constant", tmp_path, at=107).close()
        second = Trained("constant", tmp_path, total=160)
        assert second.model.num_timesteps == 160
        second.close()

    def test_what_has_ended_has_nothing_to_do(self, tmp_path: Path) -> None:
        """And its last checkpoint stays as good as it was."""
        expected, _ = uninterrupted("constant", tmp_path / "whole", total=220)
        Trained("constant", tmp_path / "cut").close()
        before = {path: path.read_bytes() for path in (tmp_path / "cut/checkpoints").rglob("*.json")}
        again = Trained("constant", tmp_path / "cut")
        assert (again.resumed_at, again.model.num_timesteps) == (160, 160)
        again.close()
        assert {path: path.read_bytes() for path in (tmp_path / "cut/checkpoints").rglob("*.json")} == before
        with pytest.warns(UserWarning, match="its schedules change"):
            longer = Trained("constant", tmp_path / "cut", total=220)
        assert_equal(expected, longer.digest())
        longer.close()

    def test_a_model_that_was_not_resumed_needs_one(self) -> None:
        with pytest.raises(ValueError, match="`total_timesteps` is None, but it must be a number of steps"):
            quick_model().learn(callback=[])

    def test_a_second_learn_after_resume_needs_one(self, tmp_path: Path) -> None:
        quick_model(RandomEnv()).learn(20, callback=callback_in(tmp_path))
        model = SoftAC.resume(tmp_path, RandomEnv())
        model.learn()
        with pytest.raises(ValueError, match="`total_timesteps` is None"):
            model.learn()
        model.learn(10, reset_num_timesteps=False)
        assert model.num_timesteps == 30

    def test_what_fails_before_the_first_step_can_be_tried_again(self, tmp_path: Path) -> None:
        expected = quick_model(RandomEnv(), seed=0, learning_rate="lin_1e-3").learn(60)
        with pytest.raises(Stopped):
            quick_model(RandomEnv(), seed=0, learning_rate="lin_1e-3").learn(60, callback=[callback_in(tmp_path), Stop(33)])

        class Refusing(BaseCallback):
            def _on_training_start(self) -> None:
                raise ValueError("not yet")

            def _on_step(self) -> bool:
                return True

        model = SoftAC.resume(tmp_path, RandomEnv())
        with pytest.raises(ValueError, match="not yet"):
            model.learn(callback=Refusing())
        model.learn(callback=callback_in(tmp_path))
        assert model.num_timesteps == 60
        assert_same_parameters(model, expected)


def test_an_environment_without_a_state_begins_a_new_episode(tmp_path: Path) -> None:
    """Said once, by name; no n-step return reaches across, and the learner is exactly where it was."""
    pytest.importorskip("Box2D")
    kept: dict[str, Any] = {}

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 32:  # where the newest checkpoint is
                kept["parameters"] = [(name, value.clone()) for name, value in parameters_of(self.model)]  # type: ignore[arg-type]
                kept["rewards"] = self.model.replay_buffer.rewards.copy()  # type: ignore[attr-defined]
            return True

    def env() -> VecNormalize:
        return VecNormalize(make_vec_env("LunarLander-v3", 2, seed=0))

    kwargs: dict[str, Any] = {"n_steps": 3, "seed": 0, "gradient_steps": 0}
    model = quick_model(env(), **kwargs)
    with pytest.raises(Stopped):
        model.learn(80, callback=[callback_in(tmp_path, 8), Keep(), Stop(41)])
    with pytest.warns(UserWarning, match="LunarLander-v3 has .* new episodes begin, and the rest goes on exactly") as warned:
        resumed = SoftAC.resume(tmp_path, env())
    assert len(warned) == 1
    assert resumed.num_timesteps == 32
    for (name, value), (other, there) in zip(kept["parameters"], parameters_of(resumed), strict=True):
        assert name == other
        assert th.equal(value, there), name
    buffer, normalize = resumed.replay_buffer, resumed.get_vec_normalize_env()
    assert buffer is not None
    assert normalize is not None
    assert isinstance(normalize.obs_rms, RunningMeanStd)
    assert normalize.obs_rms.count == pytest.approx(34, abs=0.1)  # the statistics are those of the run
    assert buffer.pos == 16
    np.testing.assert_array_equal(buffer.rewards[:15], kept["rewards"][:15])
    assert not buffer.timeouts[:16].any()
    resumed.learn(callback=callback_in(tmp_path, 8))
    assert buffer.timeouts[15].all()
    assert resumed.num_timesteps == 80


class Handle(VecEnvWrapper):
    """A wrapper of the user that has something open."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self.file = Path(__file__).open()  # noqa: SIM115

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def close(self) -> None:
        self.file.close()
        super().close()


def test_a_wrapper_without_a_state_begins_a_new_episode(tmp_path: Path) -> None:
    """And the statistics around it are still those of the run."""
    first = VecNormalize(Handle(make_vec_env("Pendulum-v1", 1)))
    with pytest.raises(Stopped):
        quick_model(first).learn(60, callback=[callback_in(tmp_path), Stop(35)])
    first.close()
    second = VecNormalize(Handle(make_vec_env("Pendulum-v1", 1)))
    with pytest.warns(UserWarning, match="Handle has a TextIOWrapper in `file`.*: new episodes begin"):
        model = SoftAC.resume(tmp_path, second)
    assert isinstance(second.obs_rms, RunningMeanStd)
    assert second.obs_rms.count == pytest.approx(31, abs=0.1)
    model.learn(callback=callback_in(tmp_path))
    assert model.num_timesteps == 60
    second.close()


class TestCallbacks:
    def test_what_is_held_twice_stays_the_same(self, tmp_path: Path) -> None:
        """In each attribute; and models, buffers and environments that a callback knows are not part of it."""

        class Holding(BaseCallback):
            def __init__(self) -> None:
                super().__init__()
                self.first = [[0], {"a": 1}]
                self.others: list[Any] = [np.zeros(3)]
                self.friends: list[Any] = []

            def _on_training_start(self) -> None:
                self.friends = [{"the model": self.model}, self.training_env, self.model.replay_buffer]  # type: ignore[attr-defined]

            def _on_step(self) -> bool:
                part = [self.num_timesteps]
                self.others = [part, part]
                return True

        quick_model(RandomEnv()).learn(20, callback=[callback_in(tmp_path), Holding()])
        (newest,) = [path for path in tmp_path.iterdir() if path.name.endswith("20")]
        assert (newest / "arrays.safetensors").stat().st_size < 60_000  # the weights, and no buffer
        holding = Holding()
        with pytest.warns(UserWarning, match="its schedules change"):
            SoftAC.resume(tmp_path, RandomEnv()).learn(21, callback=[callback_in(tmp_path), Stop(22), holding])
        assert holding.others == [[21], [21]]
        assert holding.first == [[0], {"a": 1}]

    def test_an_object_that_is_not_there_yet_is_named(self, tmp_path: Path) -> None:
        class Late(BaseCallback):
            def __init__(self, at_once: bool) -> None:
                super().__init__()
                if at_once:
                    self.counts = Counts()

            def _on_step(self) -> bool:
                if not hasattr(self, "counts"):
                    self.counts = Counts()
                self.counts.n += 1
                return True

        with pytest.raises(Stopped):
            quick_model(RandomEnv()).learn(30, callback=[callback_in(tmp_path), Late(False), Stop(22)])
        model = SoftAC.resume(tmp_path, RandomEnv())
        with pytest.raises(ValueError, match=r"`counts` of Late was .*Counts, and no such object is there now: make it"):
            model.learn(callback=[callback_in(tmp_path), Late(False)])
        late = Late(True)
        model.learn(callback=[callback_in(tmp_path), late])
        assert late.counts.n == 30


class Counts:
    """An object of the user."""

    def __init__(self) -> None:
        self.n = 0


@pytest.mark.usefixtures("processes")
class TestDeadWorkers:
    def make(self) -> SubprocVecEnv:
        """With SB3's way to start them: forks hold the ends of each other's pipes, and nobody learns that one has died."""
        env = make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv)
        assert isinstance(env, SubprocVecEnv)
        return env

    @pytest.mark.parametrize("between", [False, True], ids=["in a step", "where a checkpoint is written"])
    def test_a_worker_that_is_killed(self, between: bool, tmp_path: Path) -> None:
        class Kill(BaseCallback):
            """In the last step before a checkpoint, or in one that none follows."""

            def _on_step(self) -> bool:
                if self.num_timesteps == (40 if between else 44):
                    process = env.processes[1]
                    process.kill()
                    process.join()
                return True

        env = self.make()
        model = quick_model(env, seed=0, train_freq=1)
        with pytest.raises(RuntimeError, match=r"^The worker of environment 1 \(process \d+\) has died with exit code -9\."):
            model.learn(80, callback=[callback_in(tmp_path, 10), Kill()])
        for remote in env.remotes:
            remote.close()
        buffer = model.replay_buffer
        assert buffer is not None
        assert (model.num_timesteps, buffer.pos) == ((40, 20) if between else (44, 22))
        expected = quick_model(make_vec_env("Pendulum-v1", 2), seed=0, train_freq=1).learn(80)
        other = make_vec_env("Pendulum-v1", 2)
        with pytest.raises(ValueError, match="`env` is made of DummyVecEnv, but the run had SubprocVecEnv: build"):
            SoftAC.resume(tmp_path, other)
        env = self.make()
        resumed = SoftAC.resume(tmp_path, env)
        assert resumed.num_timesteps == (20 if between else 40)
        resumed.learn(callback=callback_in(tmp_path, 10))
        assert resumed.num_timesteps == 80
        assert_same_parameters(resumed, expected)
        env.close()
