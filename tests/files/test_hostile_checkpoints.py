"""Checkpoints of somebody else: whatever is in them, nothing of it runs, and each is whole, or refused in one sentence."""

import contextlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import DamagedFileError, SoftAC, UntrustedFileError
from sb3_softac.checkpoint import ExactCheckpointCallback
from tests.files import hostile_checkpoints as bad
from tests.files import hostile_states as states
from tests.helpers import SMALL, RandomEnv, assert_same_parameters

FUZZER = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fuzz_files.py"))
OPTIONS: dict[str, Any] = {
    "policy_kwargs": dict(SMALL),
    "buffer_size": 60,
    "learning_starts": 10,
    "batch_size": 8,
    "seed": 0,
    "device": "cpu",
    "compile": False,
}


def make_env() -> Any:
    return VecNormalize(DummyVecEnv([lambda: Monitor(RandomEnv())]))


class Stop(BaseCallback):
    """After one step."""

    def _on_step(self) -> bool:
        return False


def train(folder: Path, env: Any, policy: str = "MlpPolicy", **options: Any) -> SoftAC:
    callbacks = [EvalCallback(make_env(), eval_freq=10, n_eval_episodes=1, verbose=0)]
    model = SoftAC(policy, env, **{**OPTIONS, **options})
    return model.learn(30, callback=[*(callbacks if policy == "MlpPolicy" else []), ExactCheckpointCallback(100, folder)])


def go_on(folder: Path, env: Any = None, callback: Any = None) -> SoftAC:
    """Resume, and do the first rollout."""
    model = SoftAC.resume(folder, make_env() if env is None else env, device="cpu")
    evaluation = EvalCallback(make_env(), eval_freq=10, n_eval_episodes=1, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The run goes on to")
        model.learn(100, callback=callback or [evaluation, Stop()])
    return model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    train(folder, make_env(), action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "touches_when_imported.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return canary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that a checkpoint is damaged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is damaged|enough memory|has the attribute)")
        yield


def refused(folder: Path, match: str | None = None, env: Any = None, callback: Any = None) -> None:
    """One of the documented errors, and no other."""
    with quiet(), pytest.raises(ValueError, match=match) as error:
        go_on(folder, env, callback)
    assert type(error.value) in (ValueError, DamagedFileError, UntrustedFileError)


def test_the_good_one_goes_on(folder: Path) -> None:
    assert go_on(folder).num_timesteps == 31


class TestAttributes:
    @pytest.mark.parametrize("kind", bad.ASKING)
    def test_nothing_runs(self, kind: str, folder: Path, canary: Path) -> None:
        name, form = bad.ASKING[kind]
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: form}))
        refused(folder)
        assert not canary.exists()
        assert "touches_when_imported" not in sys.modules

    @pytest.mark.parametrize("kind", bad.WRONG)
    def test_of_a_wrong_form(self, kind: str, folder: Path) -> None:
        name, form = bad.WRONG[kind]
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: form}))
        refused(folder)

    @pytest.mark.parametrize(
        "name", ["policy_class", "num_timesteps", "gamma", "train_freq", "_total_timesteps", "_n_updates"]
    )
    def test_that_are_missing(self, name: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].pop(name))
        if name in ("gamma", "train_freq"):  # which the constructor has set
            go_on(folder)
        else:
            refused(folder)

    @pytest.mark.parametrize("name", ["note", "policy_aliases", "batch_norm_stats"])
    def test_that_no_model_has(self, name: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: {}}))
        with pytest.warns(UserWarning, match=f"the attribute `{name}`, which a SoftAC has not"):
            model = SoftAC.resume(folder, make_env(), device="cpu")
        assert name not in vars(model)

    def test_logs_go_on_only_where_there_are_some(self, folder: Path, tmp_path: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update(tensorboard_log=str(tmp_path / "logs")))
        with pytest.warns(UserWarning, match="TensorBoard's logs of the run were in"):
            assert SoftAC.resume(folder, make_env(), device="cpu").tensorboard_log is None
        model = SoftAC.resume(folder, make_env(), device="cpu", tensorboard_log=str(tmp_path / "logs"))
        assert model.tensorboard_log == str(tmp_path / "logs")
        (tmp_path / "logs" / "SoftAC_1").mkdir(parents=True)
        (tmp_path / "logs" / "SoftAC_1" / "events.out.tfevents.1").touch()
        assert SoftAC.resume(folder, make_env(), device="cpu").tensorboard_log == str(tmp_path / "logs")

    def test_errors_do_not_change_a_terminal(self, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update(gamma={"!": "\x1b[2J" * 100_000}))
        with pytest.warns(UserWarning, match="is damaged") as caught, pytest.raises(DamagedFileError):
            go_on(folder)
        texts = [str(warning.message) for warning in caught]
        assert all("\x1b" not in text and len(text) < 2000 for text in texts)


class TestTheRest:
    @pytest.mark.parametrize("kind", states.IN_ENVIRONMENTS)
    def test_environments(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, states.IN_ENVIRONMENTS[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", states.CALLBACKS)
    def test_callbacks(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["callbacks"]["EvalCallback.1"].update(states.CALLBACKS[kind]))
        refused(folder)
        assert not Path("/tmp/elsewhere").exists()

    @pytest.mark.parametrize("kind", states.GENERATORS)
    def test_generators(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, arrays: states.GENERATORS[kind](state["generators"], arrays))
        before = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002
        refused(folder)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        th.set_rng_state(before[2])

    @pytest.mark.parametrize("kind", states.REST)
    def test_other_parts(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, states.REST[kind])
        refused(folder)

    def test_bounds_of_spaces_are_not_state(self, good: Path) -> None:
        state = json.loads((bad.newest(good) / "state.json").read_text())
        assert states.in_env(state)["action_space"].keys() == {"!", "is", "parts"}

    def test_an_obstacle_does_not_change_a_terminal(self, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["environment"].update(obstacle="\x1b[2J"))
        with pytest.warns(UserWarning, match=r"where they were \(\\x1b"):
            SoftAC.resume(folder, make_env(), device="cpu")


class TestWeightsAndBuffers:
    @pytest.mark.parametrize("kind", states.WEIGHTS)
    def test_weights(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, states.WEIGHTS[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", states.BUFFER)
    def test_attributes_of_a_buffer(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["replay_buffer"]["is"].update(states.BUFFER[kind]))
        refused(folder)

    @pytest.mark.parametrize("kind", states.SEGMENTS)
    def test_segments(self, kind: str, folder: Path) -> None:
        bad.change_segment(folder, states.SEGMENTS[kind])
        refused(folder)

    @pytest.mark.parametrize(
        "kind", [kind for kind in states.SEGMENTS if "header" in kind or "10**" in kind or "overflow" in kind]
    )
    def test_arrays(self, kind: str, folder: Path) -> None:
        checkpoint = bad.newest(folder)
        (checkpoint / "arrays.safetensors").write_bytes(states.SEGMENTS[kind]({}))
        bad.sign(checkpoint)
        refused(folder)

    def test_hindsight(self, tmp_path: Path) -> None:
        def env() -> Any:
            return BitFlippingEnv(n_bits=4, continuous=True)

        options: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
        train(tmp_path / "good", env(), "MultiInputPolicy", **options)
        go_on(tmp_path / "good", env(), Stop())
        changes: list[Any] = [
            (bad.change_segment, lambda arrays: arrays["ep_start"].fill(10**9)),
            (bad.change_segment, lambda arrays: arrays["ep_length"].fill(-1)),
            (bad.change_segment, lambda arrays: arrays["ep_length"].fill(1)),
            (bad.change_segment, lambda arrays: arrays["observations.observation"].fill(7)),
            (bad.change_state, lambda state, _: state["replay_buffer"].update(infos=[1])),
            (bad.change_state, lambda state, _: state["replay_buffer"].update(infos=[[3]] * 30)),
            (bad.change_state, lambda state, _: state["replay_buffer"]["is"].update(her_ratio=7.0)),
            (bad.change_state, lambda state, _: state["replay_buffer"]["is"].update(env=3)),
            (bad.change_state, lambda state, _: state["attributes"].update(buffer_size=10**12)),
        ]
        for number, (changing, change) in enumerate(changes):
            folder = Path(shutil.copytree(tmp_path / "good", tmp_path / str(number)))
            changing(folder, change)
            refused(folder, None, env(), Stop())


class TestFiles:
    @pytest.mark.parametrize("kind", states.MANIFESTS)
    def test_manifests(self, kind: str, folder: Path) -> None:
        bad.sign(bad.newest(folder), states.MANIFESTS[kind])
        with quiet(), pytest.raises(ValueError, match=r"^[ -~]*$"):
            go_on(folder)

    @pytest.mark.parametrize("kind", states.JSON)
    def test_states(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, arrays: states.JSON[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", states.JSON)
    def test_manifests_that_are_none(self, kind: str, folder: Path) -> None:
        (bad.newest(folder) / "manifest.json").write_bytes(states.JSON[kind])
        refused(folder)

    @pytest.mark.parametrize("name", ["manifest.json", "state.json", "arrays.safetensors"])
    def test_links(self, name: str, folder: Path, tmp_path: Path) -> None:
        path = bad.newest(folder) / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        refused(folder)

    def test_a_checkpoint_that_is_a_link(self, folder: Path, tmp_path: Path) -> None:
        checkpoint = bad.newest(folder)
        checkpoint.rename(tmp_path / "elsewhere")
        checkpoint.symlink_to(tmp_path / "elsewhere")
        refused(folder)

    @pytest.mark.parametrize("name", ["checkpoint-²", "checkpoint-١٢٣", "checkpoint-1", "checkpoint-x", "checkpoint-"])
    def test_names_that_are_no_checkpoints(self, name: str, folder: Path) -> None:
        (folder / name).mkdir()
        go_on(folder)

    @pytest.mark.parametrize("name", ["segments", "lock", "run.json"])
    def test_nothing_is_written_behind_links(self, name: str, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        path = folder / name
        if name == "segments":
            shutil.copytree(path, outside)
            shutil.rmtree(path)
            (outside / "precious").write_text("precious")
        else:
            path.unlink()
            outside.write_text("precious")
        path.symlink_to(outside)
        before = {each: each.read_bytes() for each in (outside.iterdir() if outside.is_dir() else [outside])}
        refused(folder, None, None, [ExactCheckpointCallback(1, folder, keep=1), Stop()])
        assert {each: each.read_bytes() for each in before} == before

    def test_a_lock_with_two_names(self, folder: Path, tmp_path: Path) -> None:
        (folder / "lock").unlink()
        (tmp_path / "precious").write_text("precious")
        os.link(tmp_path / "precious", folder / "lock")
        refused(folder, "which is a link", None, [ExactCheckpointCallback(1, folder), Stop()])
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
    def test_a_lock_that_is_a_pipe(self, folder: Path) -> None:
        (folder / "lock").unlink()
        os.mkfifo(folder / "lock")
        refused(folder, "no file", None, [ExactCheckpointCallback(1, folder), Stop()])

    def test_only_segments_are_removed(self, folder: Path) -> None:
        (folder / "segments" / "precious").write_text("precious")
        go_on(folder, None, [ExactCheckpointCallback(1, folder, keep=1), Stop()])
        assert (folder / "segments" / "precious").read_text() == "precious"

    def test_the_one_before_is_taken(self, tmp_path: Path) -> None:
        """Also where only building shows that the newest is damaged."""
        model = SoftAC("MlpPolicy", make_env(), **OPTIONS)
        model.learn(30, callback=ExactCheckpointCallback(20, tmp_path / "run"))
        bad.change_state(tmp_path / "run", states.WEIGHTS["NaN"])
        with pytest.warns(UserWarning, match=r"checkpoint-000000000030 is damaged.*is not finite"):
            assert SoftAC.resume(tmp_path / "run", make_env(), device="cpu").num_timesteps == 20


BOUNDED = """
import resource, sys, time, warnings
from pathlib import Path
from tests.files.test_hostile_checkpoints import go_on
go_on(Path(sys.argv[1]) / "good")
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20),) * 2)
warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).glob("bad*")):
    start = time.process_time()
    try:
        go_on(path)
    except ValueError:
        print(path.name, time.process_time() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_hostile_checkpoints_take_no_time_and_no_memory(good: Path, tmp_path: Path) -> None:
    """200 MB beyond what a good one takes, and seconds of the processor, a few of them where it is slow."""
    huge = ["net", "critics", "layers", "text", "double", "deque", "buffer"]
    names = [name for name in bad.WRONG if any(word in name for word in huge)]
    changes: list[Any] = [lambda state, _, item=bad.WRONG[name]: state["attributes"].update([item]) for name in names]
    changes.append(lambda state, _: state["attributes"].update(buffer_size=10**11))
    changes += [lambda *_: b"[" * (200 << 20), lambda *_: b"[" + b"[]," * 3_000_000 + b"[]]"]
    for number, change in enumerate(changes):
        bad.change_state(Path(shutil.copytree(good, tmp_path / f"bad{number:03d}")), change)
    for number, kind in enumerate(kind for kind in states.SEGMENTS if "10**" in kind or "2**" in kind):
        bad.change_segment(Path(shutil.copytree(good, tmp_path / f"bad_segment{number}")), states.SEGMENTS[kind])
    shutil.copytree(good, tmp_path / "good")
    n_folders = len(list(tmp_path.glob("bad*")))
    arguments = [sys.executable, "-W", "ignore", "-c", BOUNDED, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    times = {line.split()[0]: float(line.split()[1]) for line in result.stdout.splitlines()}
    assert len(times) == n_folders
    assert max(times.values()) < 10.0


def test_random_damage(tmp_path: Path) -> None:
    """Every damaged checkpoint goes on as the good one does, or is refused; the seed is another one than the benchmark's."""
    counts = FUZZER["fuzz_checkpoints"](FUZZER["small_checkpoint"](tmp_path / "good"), 200, random.Random(7), tmp_path)
    assert sum(counts.values()) == 200
    assert {name for name in counts if "inside" not in name} <= {f"checkpoint: {end}" for end in ("equal", "damaged")}
    assert counts["checkpoint: damaged"] > 50


def test_a_good_one_is_equal(folder: Path, good: Path) -> None:
    assert_same_parameters(SoftAC.resume(folder, make_env(), device="cpu"), SoftAC.resume(good, make_env(), device="cpu"))
