"""A file is complete, or it is the old one: full disks, folders that cannot be written to, files that are no files."""

import errno
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_softac import SoftAC
from sb3_softac.files import atomic
from tests.helpers import assert_same_parameters, fill_buffer, make_model

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
SAVES: dict[str, Any] = {
    "model.zip": lambda model, path: model.save(path),
    "buffer.pkl": lambda model, path: model.save_replay_buffer(path),
    "policy.pt": lambda model, path: model.export(path, format="torchscript"),
}
each = pytest.mark.parametrize("name", SAVES)


@pytest.fixture
def model() -> SoftAC:
    model = make_model(buffer_size=50)
    fill_buffer(model, 40)
    return model


@each
class TestEveryKindOfFile:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    @pytest.mark.parametrize("at", ["fsync", "replace"])
    def test_a_failure_keeps_the_old_file(
        self, name: str, code: int, at: str, model: SoftAC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / name
        path.write_bytes(b"old")

        def fail(*_: Any) -> None:
            raise OSError(code, os.strerror(code), "a temporary name")

        with monkeypatch.context() as patch:
            patch.setattr(f"os.{at}" if at == "fsync" else f"pathlib.Path.{at}", fail)
            with pytest.raises(OSError, match="the older file is as it was") as raised:
                SAVES[name](model, path)
        assert (raised.value.errno, raised.value.filename) == (code, str(path))
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == [name]
        SAVES[name](model, tmp_path / f"again {name}")  # the model is unharmed

    def test_the_content_and_the_name_are_on_the_disk(
        self, name: str, model: SoftAC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In this order: the file, its new name, the folder."""
        calls: list[str] = []
        fsync, replace = os.fsync, Path.replace

        def recorded_fsync(descriptor: int) -> None:
            calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            fsync(descriptor)

        def recorded_replace(self: Path, target: Path) -> Path:
            calls.append("name")
            return replace(self, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "replace", recorded_replace)
        SAVES[name](model, tmp_path / name)
        assert calls == ["file", "name", "folder"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
    def test_permissions_are_kept(self, name: str, mode: int, model: SoftAC, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(b"old")
        path.chmod(mode)
        SAVES[name](model, path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.stat().st_size > 100

    def test_a_symbolic_link_stays_one(self, name: str, model: SoftAC, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
        SAVES[name](model, tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert [file.name for file in (tmp_path / "there").iterdir()] == [name]

    def test_a_link_to_itself(self, name: str, model: SoftAC, tmp_path: Path) -> None:
        (tmp_path / name).symlink_to(tmp_path / name)
        with pytest.raises(OSError, match="could not be written"):
            SAVES[name](model, tmp_path / name)

    def test_folders_are_made(self, name: str, model: SoftAC, tmp_path: Path) -> None:
        SAVES[name](model, tmp_path / "new" / "folder" / name)
        assert (tmp_path / "new" / "folder" / name).is_file()

    def test_a_file_in_the_place_of_a_folder(self, name: str, model: SoftAC, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        with pytest.raises(OSError, match="could not be written") as raised:
            SAVES[name](model, tmp_path / "file" / name)
        assert raised.value.filename == str(tmp_path / "file" / name)
        assert (tmp_path / "file").read_bytes() == b"old"

    @pytest.mark.skipif(AS_ROOT, reason="root writes everywhere")
    def test_a_folder_that_cannot_be_written_to(self, name: str, model: SoftAC, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"old")
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError, match="the older file is as it was"):
                SAVES[name](model, tmp_path / name)
        finally:
            tmp_path.chmod(0o700)
        assert (tmp_path / name).read_bytes() == b"old"


def test_the_folder_is_removed_while_the_file_is_written(model: SoftAC, tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write() -> None:
        with atomic.writing(folder / "file") as file:
            file.write(b"content")
            shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError, match="nothing was saved"):
        write()
    model.save(folder / "model.zip")


def test_a_write_that_fails_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def write() -> None:
        with atomic.writing(tmp_path / "file") as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic.writing(tmp_path / "pipe") as file:
            file.write(b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_names_as_in_sb3(model: SoftAC, tmp_path: Path) -> None:
    model.save_replay_buffer(tmp_path / "buffer")
    assert (tmp_path / "buffer.pkl").is_file()
    (tmp_path / "folder.pkl").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead to"):
        model.save_replay_buffer(tmp_path / "folder")
    assert (tmp_path / "folder.pkl_2").is_file()
    with (tmp_path / "stream.pkl").open("wb") as stream:
        model.save_replay_buffer(stream)
    assert model.replay_buffer is not None
    loaded = pickle.loads((tmp_path / "stream.pkl").read_bytes())
    np.testing.assert_array_equal(loaded.actions, model.replay_buffer.actions)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.helpers import fill_buffer, make_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
model = make_model(buffer_size=5000)
fill_buffer(model)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for name, save in (("model.zip", model.save), ("buffer.pkl", model.save_replay_buffer)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        save(folder / name)
    except OSError as error:
        print(name, error.filename == str(folder / name))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    save(folder / f"elsewhere {name}")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of the file size")
def test_a_real_limit(tmp_path: Path) -> None:
    """The system itself refuses to write more than 4 kB."""
    for name in ("model.zip", "buffer.pkl"):
        (tmp_path / name).write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["model.zip", "True", "buffer.pkl", "True"]
    assert (tmp_path / "model.zip").read_bytes() == (tmp_path / "buffer.pkl").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("buffer.pkl", "elsewhere buffer.pkl", "elsewhere model.zip", "model.zip"),
    ]
    SoftAC.load(tmp_path / "elsewhere model.zip")


def test_a_model_saved_twice_is_the_same(model: SoftAC, tmp_path: Path) -> None:
    model.save(tmp_path / "model.zip")
    model.save(tmp_path / "model.zip")
    assert_same_parameters(model, SoftAC.load(tmp_path / "model.zip"))
