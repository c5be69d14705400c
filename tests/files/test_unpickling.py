"""What a file may name and what not: nothing in a file runs, whatever it asks for; what models are made of comes back."""

import base64
import contextlib
import functools
import io
import os
import pathlib
import pickle
import sys
from collections import OrderedDict, deque
from enum import Enum
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from torch import nn

from sb3_softac import ExponentialSchedule, SoftAC, SoftQL, StaircaseSchedule, UntrustedFileError
from sb3_softac.files.buffers import read_buffer
from sb3_softac.files.reading import MAX_STEPS, unpickle_field
from tests.files import hostile
from tests.helpers import SMALL, RandomEnv, assert_same_parameters, falling_rate, fill_buffer, make_model

RUNNING = [*hostile.that_run("x")]
PREPARING = hostile.that_prepare()
#: those that Python's own unpickler does not come to the end of
ONLY_PARTS = {"dotted name of torch", "an import"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The members of good files."""
    folder = tmp_path_factory.mktemp("good")
    make_model().save(folder / "ours.zip")
    SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=10).save(folder / "sac.zip")
    return {name: hostile.members(folder / f"{name}.zip") for name in ("ours", "sac")}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if something has run."""
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "touches_when_imported.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return canary


def unpickle(value: Any, name: str = "anything") -> Any:
    """Through the restricted machine, out of what SB3 writes."""
    return unpickle_field(name, base64.b64encode(cloudpickle.dumps(value)).decode(), MAX_STEPS)[0]


class TestNothingRuns:
    @pytest.mark.parametrize("kind", [kind for kind in RUNNING if kind not in ONLY_PARTS])
    def test_the_pickles_do_run_where_nothing_is_refused(self, kind: str, canary: Path) -> None:
        """Otherwise the tests below would prove nothing."""
        content = hostile.that_run(str(canary))[kind]
        with contextlib.suppress(Exception):
            pickle.loads(content)
        assert canary.exists()

    @pytest.mark.parametrize("kind", RUNNING)
    def test_in_every_kind_of_file(self, kind: str, files: Any, canary: Path, tmp_path: Path) -> None:
        self.check(hostile.that_run(str(canary))[kind], files, tmp_path)
        assert not canary.exists()
        assert "touches_when_imported" not in sys.modules

    @pytest.mark.parametrize("kind", PREPARING)
    def test_what_would_run_later(self, kind: str, files: Any, tmp_path: Path) -> None:
        before = dict(vars(nn.ReLU))
        self.check(PREPARING[kind], files, tmp_path)
        assert dict(vars(nn.ReLU)) == before

    def check(self, content: bytes, files: Any, folder: Path) -> None:
        for field in ("observation_space", "learning_rate", "policy_kwargs", "an_unknown_one"):
            path = hostile.write(folder / "ours.zip", hostile.with_attributes(files["ours"], **{field: content}))
            with pytest.raises(
                UntrustedFileError, match=rf"ours\.zip'.*in its attribute `{field}`.*trusted=True.*custom_objects"
            ):
                SoftAC.load(path)
        path = hostile.write(folder / "sac.zip", hostile.with_attributes(files["sac"], action_noise=content))
        with pytest.raises(UntrustedFileError, match=r"sac\.zip'.*`action_noise`.*trusted=True"):
            SoftAC.from_sb3(path)
        model = make_model()
        with pytest.raises(UntrustedFileError, match=r"sac\.zip'.*`action_noise`.*trusted=True"):
            model.warm_start(path)
        path = hostile.write(folder / "ours.zip", hostile.with_attributes(files["ours"], policy_class=content))
        with pytest.raises(UntrustedFileError, match=r"ours\.zip'.*`policy_class`.*trusted=True"):
            model.warm_start(path)
        (folder / "buffer.pkl").write_bytes(content)
        before = model.replay_buffer
        with pytest.raises(UntrustedFileError, match=r"buffer\.pkl'.*trusted=True"):
            model.load_replay_buffer(folder / "buffer.pkl")
        assert model.replay_buffer is before
        with pytest.raises(UntrustedFileError):
            model.load_replay_buffer(io.BytesIO(content))

    def test_weights(self, files: Any, canary: Path, tmp_path: Path) -> None:
        """They are read by PyTorch, without pickles that call anything."""
        weights = hostile.saved({"policy": hostile.Call(os.system, f"touch {canary}")})
        path = hostile.write(tmp_path / "model.zip", {**files["ours"], "policy.pth": weights})
        with pytest.raises(ValueError, match=r"model\.zip'"):
            SoftAC.load(path)
        assert not canary.exists()

    def test_the_error_shows_no_control_characters(self, files: Any, tmp_path: Path) -> None:
        content = hostile.called("os", "\x1b[31m" + "x" * 100)
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(files["ours"], extra=content))
        with pytest.raises(UntrustedFileError) as raised:
            SoftAC.load(path)
        assert "\x1b" not in str(raised.value)

    def test_a_file_that_changes_while_it_is_read(self, files: Any, canary: Path, tmp_path: Path) -> None:
        """SB3 gets the bytes that were looked at: a stream is read once."""

        good = hostile.write(tmp_path / "model.zip", {**files["ours"], "more": bytes(100_000)}).read_bytes()
        system = hostile.that_run(str(canary))["os.system, protocol 4"]
        bad = hostile.write(tmp_path / "bad.zip", hostile.with_attributes(files["ours"], action_noise=system)).read_bytes()

        class Changing(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                content = super().read(size)
                if len(content) == len(good):
                    self.seek(0)
                    self.write(bad)
                return content

        stream = Changing(good)
        SoftAC.load(stream)
        assert stream.getvalue()[: len(bad)] == bad
        assert not canary.exists()


class TestFunctionsAreValues:
    def test_a_schedule_of_the_user(self, tmp_path: Path) -> None:
        model = make_model(learning_rate=falling_rate, actor_learning_rate=hostile.Decay(1e-3))
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip")
        assert loaded.learning_rate is falling_rate
        assert loaded.actor_learning_rate(0.5) == 5e-4  # type: ignore[operator, misc]

    @pytest.mark.parametrize("value", [falling_rate, hostile.Decay, hostile.Decay(1.0)])
    def test_only_where_they_are_called_with_a_number(self, value: Any, files: Any, tmp_path: Path) -> None:
        """In the arguments of a policy they would be called with what the file says."""
        content = cloudpickle.dumps({"features_extractor_class": value})
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(files["ours"], policy_kwargs=content))
        with pytest.raises(UntrustedFileError, match="policy_kwargs"):
            SoftAC.load(path)

    @pytest.mark.parametrize("name", ["os.path.exists", "shutil.rmtree", "numpy.savetxt", "torch.hub.load"])
    def test_of_no_library(self, name: str, files: Any, tmp_path: Path) -> None:
        module, _, function = name.rpartition(".")
        content = b"\x80\x04" + hostile.named({"os.path": "genericpath"}.get(module, module), function) + b"."
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(files["ours"], learning_rate=content))
        with pytest.raises(UntrustedFileError, match="learning_rate"):
            SoftAC.load(path)

    def test_the_progress_is_a_number(self, files: Any, tmp_path: Path) -> None:
        """Otherwise the file would choose what a schedule is called with."""
        attributes = {"_current_progress_remaining": "touch canary", "learning_rate": cloudpickle.dumps(falling_rate)}
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(files["ours"], **attributes))
        with pytest.raises(ValueError, match="`_current_progress_remaining` is 'touch canary'"):
            SoftAC.load(path)

    @pytest.mark.parametrize("kernel", [None, hostile.kernel])
    def test_a_kernel(self, kernel: Any, tmp_path: Path) -> None:
        kwargs = {} if kernel is None else {"kernel": kernel}
        model = SoftQL("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=10, **kwargs)
        model.save(tmp_path / "model.zip")
        assert SoftQL.load(tmp_path / "model.zip").kernel is model.kernel


class TestCodeInFiles:
    def test_a_lambda_is_warned_of_once_and_refused(self, tmp_path: Path) -> None:
        model, path = make_model(learning_rate=lambda progress: 1e-3 * progress), tmp_path / "model.zip"
        with pytest.warns(UserWarning, match=r"`learning_rate` is saved with.*trusted=True.*schedule string") as warnings:
            model.save(path)
        assert len(warnings) == 1
        assert warnings[0].filename == __file__
        model.save(path)
        with pytest.raises(UntrustedFileError, match="in its attribute `learning_rate` holds code"):
            SoftAC.load(path)
        trusted = SoftAC.load(path, trusted=True)
        assert trusted.learning_rate(0.5) == 5e-4  # type: ignore[operator]
        assert_same_parameters(model, trusted)
        assert SoftAC.load(path, custom_objects={"learning_rate": 1e-4}).learning_rate == 1e-4
        with pytest.raises(UntrustedFileError, match="learning_rate"):
            make_model().warm_start(path)
        started = make_model().warm_start(path, trusted=True)
        assert th.equal(started.actor.mu.weight, model.actor.mu.weight)

    def test_a_file_of_sac_with_a_lambda(self, tmp_path: Path) -> None:
        sac = SAC("MlpPolicy", RandomEnv(), lambda progress: 1e-3 * progress, policy_kwargs=dict(SMALL), buffer_size=10)
        sac.save(tmp_path / "sac.zip")
        with pytest.raises(UntrustedFileError, match=r"`learning_rate` holds code"):
            SoftAC.from_sb3(tmp_path / "sac.zip")
        assert SoftAC.from_sb3(tmp_path / "sac.zip", trusted=True).lr_schedule(0.5) == 5e-4
        make_model().warm_start(tmp_path / "sac.zip", trusted=True)

    def test_the_schedule_that_is_made_again_is_not_read(self, files: Any, tmp_path: Path) -> None:
        """SB3 has saved it with its code before 2.6."""
        content = cloudpickle.dumps(lambda progress: 1e-3)
        for name in files:
            path = hostile.write(tmp_path / f"{name}.zip", hostile.with_attributes(files[name], lr_schedule=content))
            loaded = SoftAC.load(path) if name == "ours" else SoftAC.from_sb3(path)
            assert loaded.lr_schedule(1.0) == 3e-4

    def test_a_buffer_with_code_is_warned_of(self, tmp_path: Path) -> None:
        model = make_model(replay_buffer_class=hostile.TouchesAtSetItem)
        model.save_replay_buffer(tmp_path / "good.pkl")
        model.replay_buffer = hostile.TouchesAtSetState(10, model.observation_space, model.action_space)
        with pytest.warns(UserWarning, match=r"`replay_buffer` is saved with.*TouchesAtSetState.__setstate__"):
            model.save_replay_buffer(tmp_path / "bad.pkl")
        model.load_replay_buffer(tmp_path / "good.pkl")
        with pytest.raises(UntrustedFileError, match="__setstate__"):
            model.load_replay_buffer(tmp_path / "bad.pkl")

    def test_trusted_loads_a_buffer_as_sb3_does(self, canary: Path, tmp_path: Path) -> None:
        (tmp_path / "buffer.pkl").write_bytes(hostile.called(hostile.__name__, "touch", str(canary)))
        with pytest.raises(AssertionError, match="must inherit"):
            make_model().load_replay_buffer(tmp_path / "buffer.pkl", trusted=True)
        assert canary.exists()

    def test_trusted_is_true_or_false(self, tmp_path: Path) -> None:
        model = make_model()
        wrong: Any = "no"
        for call in (SoftAC.load, SoftAC.from_sb3, model.warm_start, model.load_replay_buffer):
            with pytest.raises(ValueError, match="`trusted` is 'no'"):
                call(tmp_path / "model.zip", trusted=wrong)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return type(right) is np.ndarray and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, th.Tensor):
        return type(left) is type(right) and th.equal(left, right) and left.requires_grad == right.requires_grad
    if isinstance(left, functools.partial):
        return (left.func, left.args, left.keywords) == (right.func, right.args, right.keywords)
    if isinstance(left, (dict, list, tuple, deque)):
        pairs = zip(
            left.items() if isinstance(left, dict) else left, right.items() if isinstance(right, dict) else right, strict=True
        )
        return type(left) is type(right) and all(equal(a, b) for a, b in pairs)
    has_state = type(left).__module__.startswith(("stable_baselines3.common.", "sb3_softac"))
    if not isinstance(left, type) and has_state and hasattr(left, "__dict__") and not isinstance(left, (tuple, Enum)):
        return type(left) is type(right) and equal(vars(left), vars(right))
    return bool(left == right) and type(left) is type(right)


def sampled(space: Any) -> Any:
    space.sample()
    return space


VALUES: list[Any] = [
    *(None, True, 1, -(10**30), 1.5, float("inf"), "text", b"bytes", bytearray(b"bytes"), 1j, range(3), slice(1, 2)),
    *((1, "a"), [1, [2]], {"a": 1, 2: {"b": None}}, {1, 2}, frozenset((1, 2)), OrderedDict(a=1), deque([1, 2], maxlen=3)),
    *(np.float32(1.5), np.int64(3), np.bool_(True), np.str_("a"), np.float32, np.dtype("f8"), np.dtype("U5")),
    *(np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.zeros((2, 3, 4)).transpose(1, 0, 2), np.zeros((0, 3))),
    *(
        np.array(1.0),
        np.arange(8)[::2],
        np.array(["ab", "c"]),
        np.array([{}, {"a": 1}], object),
        np.array([True]),
        np.zeros(2, "c16"),
    ),
    *(th.device("cpu"), th.float32, th.Size([2, 3]), th.arange(6.0).reshape(2, 3).T, nn.Parameter(th.ones(2))),
    *(pathlib.Path("a") / "b", TrainFreq(1, TrainFrequencyUnit.STEP), GoalSelectionStrategy.FUTURE),
    *(
        nn.ReLU,
        nn.LeakyReLU,
        th.optim.Adam,
        ReplayBuffer,
        NStepReplayBuffer,
        DictReplayBuffer,
        hostile.Features,
        hostile.Buffer,
    ),
    *(functools.partial(nn.LeakyReLU, negative_slope=0.1), functools.partial(nn.GELU, "tanh")),
    *(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)),
    spaces.Dict(a=spaces.Box(0, 255, (3, 4, 4), np.uint8), b=spaces.Discrete(2)),
    *(FloatSchedule(1e-3), FloatSchedule(LinearSchedule(1.0, 0.0, 0.5)), ExponentialSchedule(1.0, 0.1)),
    StaircaseSchedule(ExponentialSchedule(1.0, 0.1), 3),
    *(NormalActionNoise(np.zeros(2), np.ones(2)), OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2))),
    VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.ones(2)), 2),
]


class TestWhatModelsAreMadeOf:
    @pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {value}"[:40])
    def test_it_comes_back_equal(self, value: Any) -> None:
        if isinstance(value, VectorizedActionNoise):
            assert [equal(a, b) for a, b in zip(value.noises, unpickle(value).noises, strict=True)] == [True, True]
            return
        assert equal(value, unpickle(value))

    def test_running_statistics(self) -> None:
        statistics = RunningMeanStd(shape=(2,))
        statistics.update(np.random.default_rng(0).normal(size=(5, 2)))
        assert equal(vars(statistics), vars(unpickle(statistics)))

    def test_objects_that_appear_twice_are_one(self) -> None:
        shared = np.zeros(2)
        one, two = unpickle([shared, shared])
        assert one is two

    @pytest.mark.parametrize("seed", [None, 3])
    def test_random_generators_go_on_alike(self, seed: int | None) -> None:
        space = spaces.Box(-1.0, 1.0, (2,))
        space.seed(seed)
        copied = unpickle(sampled(space))
        for _ in range(3):
            np.testing.assert_array_equal(space.sample(), copied.sample())
        children = [each.np_random.spawn(1)[0].normal() for each in (space, copied)]
        assert children[0] == children[1]

    def test_arrays_can_be_written_to(self) -> None:
        array = unpickle(np.zeros(3))
        array[0] = 1.0
        assert array.flags.writeable

    def test_the_formats_of_older_numpy(self) -> None:
        """Its modules had other names, and its generators got their state otherwise."""
        content = pickle.dumps(np.arange(3), protocol=4).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        content = content[:2] + content[11:].replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
        array = unpickle_field("x", base64.b64encode(content).decode(), MAX_STEPS)[0]
        np.testing.assert_array_equal(array, np.arange(3))
        expected = np.random.default_rng(5)
        names = [hostile.named("numpy.random._pickle", f"__{kind}_ctor") for kind in ("generator", "bit_generator")]
        state = pickle.dumps(expected.bit_generator.state, protocol=4)
        call = names[0] + hostile.text("PCG64") + names[1] + pickle.TUPLE2 + pickle.REDUCE + state[11:-1] + b"b."
        generator = unpickle_field("x", base64.b64encode(b"\x80\x04" + call).decode(), MAX_STEPS)[0]
        assert generator.normal() == expected.normal()

    def test_classes_of_the_user(self, tmp_path: Path) -> None:
        kwargs = {"policy_kwargs": {"net_arch": [8], "features_extractor_class": hostile.Features}}
        model = make_model(replay_buffer_class=hostile.Buffer, **kwargs)
        fill_buffer(model)
        model.save(tmp_path / "model.zip")
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        assert type(loaded.actor.features_extractor) is hostile.Features
        assert type(loaded.replay_buffer) is hostile.Buffer
        np.testing.assert_array_equal(loaded.replay_buffer.observations, model.replay_buffer.observations)  # type: ignore[union-attr]

    def test_a_buffer_in_a_stream_with_something_behind_it(self) -> None:
        model, stream = make_model(), io.BytesIO()
        fill_buffer(model)
        model.save_replay_buffer(stream)
        end = stream.tell()
        stream.write(b"something else")
        stream.seek(0)
        np.testing.assert_array_equal(read_buffer(stream).actions, model.replay_buffer.actions)  # type: ignore[union-attr]
        assert stream.tell() == end
