"""Files that are incomplete, contradict themselves, or ask for more than there is: one error, soon, and no memory taken."""

import contextlib
import io
import json
import pickle
import random
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import DamagedFileError, SoftAC, UntrustedFileError
from tests.files import hostile
from tests.helpers import SMALL, RandomEnv, fill_buffer, make_model

Members = dict[str, bytes]
FUZZER = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fuzz_files.py"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    folder = tmp_path_factory.mktemp("good")
    model = make_model()
    fill_buffer(model)
    model.train(2, batch_size=8)
    model.save(folder / "model.zip")
    return hostile.members(folder / "model.zip")


def refused(path: Path, match: str = "") -> None:
    with pytest.raises(DamagedFileError, match=rf"{path.name}'.*{match}"):
        SoftAC.load(path)


class TestArchives:
    @pytest.mark.parametrize("name", ["/absolute", "../above", "a/../../b", "c:\\windows", "a\\b", "folder/"])
    def test_members_outside_of_the_archive(self, name: str, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", {**good, name: b""}), "(called|is no file)")

    def test_a_symbolic_link(self, good: Members, tmp_path: Path) -> None:
        path = hostile.write(tmp_path / "model.zip", good)
        with zipfile.ZipFile(path, "a") as archive:
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        refused(path, "'link' is no file")

    @pytest.mark.parametrize("name", ["data", "DATA", "policy.pth"])
    def test_a_member_twice(self, name: str, good: Members, tmp_path: Path) -> None:
        path = hostile.write(tmp_path / "model.zip", good)
        with (
            zipfile.ZipFile(path, "a") as archive,
            contextlib.nullcontext() if name == "DATA" else pytest.warns(UserWarning, match="Duplicate"),
        ):
            archive.writestr(name, b"{}")
        refused(path, "a member twice")

    def test_a_zip_bomb(self, good: Members, tmp_path: Path) -> None:
        path = hostile.write(tmp_path / "model.zip", good)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("more", bytes(100 << 20))
        refused(path, "zip bomb")

    def test_a_zip_bomb_inside(self, good: Members, tmp_path: Path) -> None:
        """PyTorch would allocate what the archive of the weights declares."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/0", bytes(100 << 20))
        refused(hostile.write(tmp_path / "model.zip", {**good, "policy.pth": stream.getvalue()}), "compressed")

    def test_compressed_but_no_bomb(self, good: Members, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in good.items():
                archive.writestr(name, content)
        SoftAC.load(tmp_path / "model.zip")

    def test_too_many_members(self, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", good | {f"more{n}": b"" for n in range(100)}), "members")

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\5\6" + bytes(18), b"PK\3\4" * 10])
    def test_no_archive(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "model.zip").write_bytes(content)
        refused(tmp_path / "model.zip")

    @pytest.mark.parametrize("missing", ["data", "policy.pth", "actor.optimizer.pth", "temperature.pth"])
    def test_a_missing_member(self, missing: str, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", {name: content for name, content in good.items() if name != missing}))

    def test_a_missing_file_is_no_damaged_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            SoftAC.load(tmp_path / "model.zip")


class TestAttributes:
    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"[" * 100_000, "Recursion"),
            (b"[1, 2]", "no names"),
            (b"{}", ""),
            (b"\xff", "Unicode"),
            (b'{"a": 1', "JSON"),
            (b"{" + b'"a": [' + b"[]," * 3_000_000 + b"1]}", "far more values"),
        ],
    )
    def test_no_attributes(self, data: bytes, match: str, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", {**good, "data": data}), match)

    @pytest.mark.parametrize(
        ("attributes", "match"),
        [
            ({"gamma": float("nan")}, "`gamma`, a number is NaN"),
            ({"policy_kwargs": {"log_std_init": float("nan")}}, "NaN"),
            ({"tau": "a"}, "`tau` is 'a'"),
            ({"buffer_size": True}, "`buffer_size` is True"),
            ({"n_envs": None}, "`n_envs` is None"),
            ({"policy_kwargs": [1]}, r"`policy_kwargs` is \[1\]"),
            ({"policy_kwargs": {"net_arch": [10**9, 10**9]}}, "far larger than its weights"),
            ({"policy_kwargs": {"n_critics": 10**12}}, "far larger than its weights"),
            ({"policy_kwargs": {"net_arch": [1] * 10_000}}, "1000 layers"),
            ({"policy_kwargs": {"net_arch": [5]}}, "size mismatch|Missing"),
            ({"policy_kwargs": {"no_such_option": 1}}, ""),
            ({"train": 1}, "'train' would hide a method"),
            ({"_setup_model": None}, "would hide a method"),
            ({"__class__": 1}, "called '__class__'"),
            ({"a b": 1}, "called 'a b'"),
            ({"env": {"a": 1}}, "`env` is"),
            ({"_logger": 3}, "`_logger` is"),
            ({"fixed_options": []}, "`fixed_options` is"),
            ({"observation_space": 3}, "a space is none"),
            ({"observation_space": None}, "a space is none"),
            ({"policy_class": "MlpPolicy"}, "`policy_class` is"),
            ({"action_noise": 1}, "`action_noise` is"),
            ({"observation_space": {":serialized:": "no base64!"}}, "no base64"),
            ({"observation_space": {":serialized:": 3}}, "there is no pickle"),
        ],
    )
    def test_of_a_wrong_form(self, attributes: Any, match: str, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", hostile.with_attributes(good, **attributes)), match)

    def test_what_is_refused_as_an_argument_stays_so(self, good: Members, tmp_path: Path) -> None:
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(good, gamma=7.0))
        with pytest.raises(ValueError, match=r"`gamma` is 7\.0"):
            SoftAC.load(path)

    @pytest.mark.parametrize("kind", hostile.that_are_damaged())
    def test_pickles(self, kind: str, good: Members, tmp_path: Path) -> None:
        content = hostile.that_are_damaged()[kind]
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(good, learning_rate=content))
        refused(path, "`learning_rate`")
        (tmp_path / "buffer.pkl").write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"buffer\.pkl'"):
            make_model().load_replay_buffer(tmp_path / "buffer.pkl")

    @pytest.mark.parametrize(
        "change",
        [
            {"low": np.zeros(3, np.float32)},
            {"_shape": (10**15,)},
            {"_shape": (-4,)},
            {"_shape": [4]},
            {"low": "a"},
            {"dtype": None},
        ],
    )
    def test_spaces_that_contradict_themselves(self, change: dict[str, Any], good: Members, tmp_path: Path) -> None:
        space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        space.__dict__.update(change)
        path = tmp_path / "model.zip"
        refused(hostile.write(path, hostile.with_attributes(good, observation_space=pickle.dumps(space))))

    def test_a_space_of_10_to_the_15_values(self, good: Members, tmp_path: Path) -> None:
        content = pickle.dumps(spaces.Discrete(10**15))
        path = hostile.write(tmp_path / "model.zip", hostile.with_attributes(good, observation_space=content))
        refused(path, "far larger than its weights")


class TestWeights:
    def change(self, good: Members, member: str, change: Any) -> Members:
        content = th.load(io.BytesIO(good[member]), weights_only=True)
        return {**good, member: hostile.saved(change(content))}

    def test_another_shape(self, good: Members, tmp_path: Path) -> None:
        changed = self.change(good, "policy.pth", lambda state: {name: th.zeros(3) for name in state})
        refused(hostile.write(tmp_path / "model.zip", changed), "size mismatch")

    def test_another_shape_in_an_optimizer(self, good: Members, tmp_path: Path) -> None:
        def shrink(state: Any) -> Any:
            for entry in state["state"].values():
                entry["exp_avg"] = th.zeros(3)
            return state

        changed = self.change(good, "critic.optimizer.pth", shrink)
        refused(hostile.write(tmp_path / "model.zip", changed), "`exp_avg` of an optimizer has the shape")

    @pytest.mark.parametrize("value", [3, [], {"a": 1}, {1: th.zeros(1)}, None])
    def test_no_weights(self, value: Any, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", {**good, "policy.pth": hostile.saved(value)}))

    @pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x80\x02}q\x00."])
    def test_another_format(self, content: bytes, good: Members, tmp_path: Path) -> None:
        refused(hostile.write(tmp_path / "model.zip", {**good, "policy.pth": content}))


class TestSac:
    def test_damaged_files_of_sac(self, tmp_path: Path) -> None:
        SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL), buffer_size=10).save(tmp_path / "sac.zip")
        good = hostile.members(tmp_path / "sac.zip")
        for change in ({"gamma": "a"}, {"observation_space": 3}, {"policy_kwargs": {"net_arch": [3]}}, {"_setup_model": 1}):
            hostile.write(tmp_path / "sac.zip", hostile.with_attributes(good, **change))
            for load in (SoftAC.from_sb3, make_model().warm_start):
                with pytest.raises(DamagedFileError, match=r"sac\.zip'"):
                    load(tmp_path / "sac.zip")


class TestBuffers:
    @pytest.mark.parametrize(
        "change",
        [
            {"pos": 10**9},
            {"pos": -1},
            {"pos": "a"},
            {"full": "no"},
            {"buffer_size": 3},
            {"n_envs": 5},
            {"observations": np.zeros((200, 1, 3), np.float32)},
            {"actions": None},
            {"rewards": np.zeros(200)},
            {"observation_space": None},
            {"sample": 1},
        ],
    )
    def test_that_contradict_themselves(self, change: dict[str, Any], tmp_path: Path) -> None:
        model = make_model(buffer_size=200)
        fill_buffer(model)
        assert model.replay_buffer is not None
        model.replay_buffer.__dict__.update(change)
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        with pytest.raises(DamagedFileError, match=r"buffer\.pkl'"):
            make_model().load_replay_buffer(tmp_path / "buffer.pkl")

    def test_no_buffer(self, tmp_path: Path) -> None:
        save_to_pkl(tmp_path / "buffer.pkl", {"a": 1})
        with pytest.raises(DamagedFileError, match="holds a dict, and no replay buffer"):
            make_model().load_replay_buffer(tmp_path / "buffer.pkl")

    def test_one_bit(self, tmp_path: Path) -> None:
        """A pickle has no checksum; here its last bytes are one, where SB3 does not look."""
        model, path = make_model(), tmp_path / "buffer.pkl"
        fill_buffer(model)
        model.save_replay_buffer(path)
        assert isinstance(load_from_pkl(path), ReplayBuffer)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="checksum"):
            model.load_replay_buffer(path)

    def test_files_of_sb3_have_none(self, tmp_path: Path) -> None:
        model = make_model()
        fill_buffer(model)
        assert model.replay_buffer is not None
        save_to_pkl(tmp_path / "buffer.pkl", model.replay_buffer)
        before = model.replay_buffer.observations
        model.load_replay_buffer(tmp_path / "buffer.pkl")
        np.testing.assert_array_equal(model.replay_buffer.observations, before)

    def test_hindsight(self, tmp_path: Path) -> None:
        env = BitFlippingEnv(n_bits=4, continuous=True)
        kwargs: Any = {
            "replay_buffer_class": HerReplayBuffer,
            "policy_kwargs": SMALL,
            "buffer_size": 50,
            "learning_starts": 100,
        }
        model = SoftAC("MultiInputPolicy", env, device="cpu", **kwargs).learn(30)
        model.save_replay_buffer(tmp_path / "buffer")
        before = model.replay_buffer
        model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
        assert isinstance(before, HerReplayBuffer)
        assert isinstance(model.replay_buffer, HerReplayBuffer)
        np.testing.assert_array_equal(model.replay_buffer.ep_length, before.ep_length)
        assert model.replay_buffer.goal_selection_strategy is before.goal_selection_strategy


BOUNDED = """
import resource, sys, time
from pathlib import Path
from sb3_softac import DamagedFileError, SoftAC
SoftAC.load(sys.argv[2])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).glob("bad*.zip")):
    start = time.process_time()
    try:
        SoftAC.load(path)
    except DamagedFileError:
        print(path.name, time.process_time() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_hostile_files_take_no_time_and_no_memory(good: Members, tmp_path: Path) -> None:
    """200 MB beyond what a good file takes, and seconds of the processor, a few of them where it is slow."""
    changes: list[Any] = [{"learning_rate": content} for content in hostile.that_are_damaged().values()]
    changes += [{"policy_kwargs": {"net_arch": [10**9, 10**9]}}, {"policy_kwargs": {"n_critics": 10**12}}]
    for n, change in enumerate(changes):
        hostile.write(tmp_path / f"bad{n}.zip", hostile.with_attributes(good, **change))
    hostile.write(tmp_path / "bad_json.zip", {**good, "data": b'{"a": [' + b"[]," * 3_000_000 + b"1]}"})
    hostile.write(tmp_path / "good.zip", good)
    arguments = [sys.executable, "-c", BOUNDED, str(tmp_path), str(tmp_path / "good.zip")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    times = {line.split()[0]: float(line.split()[1]) for line in result.stdout.splitlines()}
    assert len(times) == len(changes) + 1
    assert max(times.values()) < 10.0


def test_random_damage(tmp_path: Path) -> None:
    """Every damaged file loads equal, or is one of the two errors; the seed is another one than the benchmark's."""
    counts = FUZZER["fuzz"](FUZZER["small_files"](tmp_path), 150, random.Random(7), tmp_path)
    assert sum(counts.values()) == 150
    ends = {f"{kind}: {end}" for kind in ("model", "buffer") for end in ("equal", "damaged", "untrusted")}
    assert {name for name in counts if "inside" not in name} <= ends  # inside of checksums it may be another file
    assert counts["model: damaged"] > 20
    assert counts["buffer: damaged"] > 20


def test_errors_are_value_errors() -> None:
    assert issubclass(DamagedFileError, ValueError)
    assert issubclass(UntrustedFileError, ValueError)
    assert json.loads("NaN") != json.loads("NaN")  # what makes the check of numbers necessary
