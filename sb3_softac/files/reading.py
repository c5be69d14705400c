"""Model files of SB3's format, read without running anything in them.

SB3 keeps attributes as JSON in the member ``data`` of a zip archive, and what JSON has no form for as a base64 pickle in it.
Here each of these is read by a machine that asks a list, and handed to SB3 as ``custom_objects``: SB3 unpickles nothing. The
state dicts beside it go through ``torch.load(weights_only=True)``, as SB3 does it.
"""

import base64
import binascii
import contextlib
import io
import json
import pathlib
import stat
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from stable_baselines3.common.save_util import open_path

from sb3_softac.errors import DamagedFileError, UntrustedFileError
from sb3_softac.files.allowed import FUNCTION_FIELDS, Allowed
from sb3_softac.files.fields import check_fields, check_sizes, refuse_nan
from sb3_softac.files.rebuilding import require
from sb3_softac.files.settling import check_values
from sb3_softac.files.unpickling import Damage, Machine, Refusal, Source, printable

#: more than any model has
MAX_MEMBERS = 64
MAX_STEPS = 1_000_000
#: how much smaller than its contents a member may be, beside one megabyte that is always allowed
MAX_RATIO, FREE = 20, 1 << 20
SERIALIZED = ":serialized:"
#: packages whose errors are about what they read, not about an argument
READERS = frozenset(("torch", "numpy", "zipfile", "json", "pickle"))
#: attributes that are made of others when the model is set up; SB3 has saved code in them before 2.6
DERIVED = frozenset(("lr_schedule",))
#: what optimizers keep for each number of a parameter
AVERAGES = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg"))


def damaged(name: str, problem: Any) -> DamagedFileError:
    return DamagedFileError(f"`path` is {name!r}, which is damaged, or no file of this kind: {printable(problem)}.")


def untrusted(name: str, what: Any, field: str | None, replaceable: bool) -> UntrustedFileError:
    """The error for a file that asks for what is not on the list.

    :param name: of the file
    :param what: it asks for
    :param field: attribute of the model
    :param replaceable: whether the caller takes ``custom_objects``
    """
    what = printable(what)
    code = "cloudpickle" in what
    asked = f"holds code ({what})" if code else f"asks for {what}"
    where = "" if field is None else f" in its attribute `{field}`"
    instead = f", and `custom_objects={{{field!r}: ...}}` puts something else in its place" if replaceable and field else ""
    return UntrustedFileError(
        f"`path` is {name!r}, which{where} {asked}. That is not on the list of what files may use, so nothing of it has run. "
        f"`trusted=True` loads it as SB3 does, with all the code it may hold, if you know where it comes from{instead}."
    )


@contextlib.contextmanager
def explained(name: str, field: str | None = None, replaceable: bool = False) -> Iterator[None]:
    """Turn what is found in a file into an error that names it; ``field`` and ``replaceable`` as in :func:`untrusted`."""
    try:
        yield
    except Refusal as refusal:
        raise untrusted(name, refusal, field, replaceable) from None
    except Damage as damage:
        raise damaged(name, f"in its attribute `{field}`, {damage}" if field else damage) from damage


@contextlib.contextmanager
def unreadable() -> Iterator[None]:
    """Archives and JSON can be wrong in so many ways that Python has many errors for them."""
    try:
        yield
    except Damage:
        raise
    except Exception as error:
        raise Damage(f"{type(error).__name__}: {error}") from error


def _raised_in(error: BaseException) -> str:
    """The package whose code has raised an error."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


@contextlib.contextmanager
def built_from(name: str) -> Iterator[None]:
    """What SB3 cannot make a model of is a damaged file, or one for other classes; a refused argument stays what it is."""
    try:
        yield
    except (UntrustedFileError, DamagedFileError):
        raise
    except Damage as damage:
        raise damaged(name, damage) from damage
    except ValueError as error:
        if type(error) is ValueError and _raised_in(error) not in READERS:
            raise
        raise damaged(name, f"{type(error).__name__}: {error}") from error
    except (
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RuntimeError,
        AssertionError,
        MemoryError,
        ArithmeticError,
    ) as error:
        raise damaged(name, f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if _raised_in(error) in READERS:
            raise damaged(name, f"{type(error).__name__}: {error}") from error
        raise


def check_optimizers(model: Any) -> None:
    """PyTorch compares no shape when it takes over the averages of an optimizer.

    :raises Damage: averages of another shape than their parameter's
    """
    owners = [*model.policy.modules(), getattr(model, "temperature", None)]
    for optimizer in filter(None, (getattr(owner, "optimizer", None) for owner in owners)):
        for parameter, state in optimizer.state.items():
            for name in AVERAGES & state.keys():
                shape = getattr(state[name], "shape", parameter.shape)
                require(
                    shape == parameter.shape, f"`{name}` of an optimizer has the shape {tuple(shape)} in the place of another"
                )


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Look at what an archive says of its members, before any is read.

    :param size: of the file
    :raises Damage: members outside of the archive's folder, twice, encrypted, or far larger than what there is of them
    """
    members = archive.infolist()
    require(0 < len(members) <= MAX_MEMBERS, f"an archive with {len(members)} members")
    names = [member.filename for member in members]
    require(len({name.casefold() for name in names}) == len(names), "an archive with a member twice")
    for member in members:
        name, kind = member.filename, member.external_attr >> 16
        path = pathlib.PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and not any(c in name for c in "\\:\0")
        require(inside and bool(name), f"an archive with a member called {name!r}")
        require(not (name.endswith("/") or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)), f"its member {name!r} is no file")
        require(not member.flag_bits & 0x1, f"its member {name!r} is encrypted")
        require(member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"its member {name!r} is compressed")
        ratio = 1 if member.compress_type == zipfile.ZIP_STORED else MAX_RATIO
        free = 0 if ratio == 1 else FREE
        require(member.file_size <= ratio * member.compress_size + free, f"its member {name!r} is a zip bomb")
    # Also members that overlap would be more than there is.
    require(sum(member.compress_size for member in members) <= size, "its members are larger than the file")


def check_directory(file: BinaryIO, size: int, limit: int) -> None:
    """Python reads the whole directory of an archive when it is opened.

    :raises Damage: it is larger than ``limit`` bytes
    """
    start = max(0, size - 65557)  # the end record and the longest comment
    file.seek(start)
    tail = file.read(size - start)
    end = tail.rfind(b"PK\5\6")
    require(end >= 0 and len(tail) >= end + 22, "it is no zip archive")
    declared = int.from_bytes(tail[end + 12 : end + 16], "little")
    if declared == 0xFFFFFFFF and (record := tail.rfind(b"PK\6\6")) >= 0:  # of archives above 4 GB
        declared = int.from_bytes(tail[record + 40 : record + 48], "little")
    require(declared <= limit, "its directory is larger than that of any model")
    file.seek(0)


def check_json(content: bytes) -> None:
    """A list of nothing takes three bytes in a file and fifty in memory.

    :raises Damage: far more values than bytes for them
    """
    n_values = sum(content.count(sign) for sign in (b"[", b"{", b","))
    require(n_values <= MAX_STEPS + len(content) // 8, "its attributes have far more values than any model's")


def check_state_dict(name: str, content: bytes) -> None:
    """A state dict is an archive too; PyTorch allocates what that one declares.

    :raises Damage: another format, or sizes that are not there
    """
    stream = io.BytesIO(content)
    check_directory(stream, len(content), 16 << 20)
    with zipfile.ZipFile(stream) as archive:
        require(len(archive.infolist()) < 100_000, f"{name!r} has too many members")
        for member in archive.infolist():
            stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
            require(stored and member.file_size <= len(content), f"{name!r} has compressed members")
            if member.filename.endswith("data.pkl"):
                require(member.file_size <= (2 << 20) + len(content) // 8, f"{name!r} has far more instructions than weights")


class ModelFile:
    """A file in SB3's format, in memory.

    :param path: file name or binary stream
    :param replaced: attributes that the caller has something else for
    :raises DamagedFileError: it cannot be read
    """

    def __init__(self, path: str | pathlib.Path | io.BufferedIOBase, replaced: dict[str, Any] | None = None) -> None:
        self.name = str(path)
        self.replaced = replaced
        self.stream = io.BytesIO(_read_archive(path))
        self.weights, self.steps = 0, 0
        with explained(self.name), unreadable(), zipfile.ZipFile(self.stream) as archive:
            for name in archive.namelist():
                content = archive.read(name)  # compares the checksum
                if name.endswith(".pth"):
                    check_state_dict(name, content)
                    self.weights += len(content)
                if name == "data":
                    check_json(content)
                    self.attributes: dict[str, Any] = json.loads(content.decode())
            require(hasattr(self, "attributes"), "it has no attributes of a model")
            require(type(self.attributes) is dict, "its attributes have no names")

    def read(self, name: str) -> Any:
        """One attribute."""
        value = self.attributes[name]
        if not isinstance(value, dict) or SERIALIZED not in value:
            with explained(self.name, name):
                refuse_nan(value)
            return value
        with explained(self.name, name, replaceable=self.replaced is not None):
            value, steps = unpickle_field(name, value[SERIALIZED], MAX_STEPS - self.steps)
            self.steps += steps
        return value

    def objects(self, algorithm: type[Any]) -> dict[str, Any]:
        """All attributes, for ``custom_objects`` of ``algorithm.load``; those that are replaced are not read.

        :raises UntrustedFileError: it asks for what is not on the list
        :raises DamagedFileError: values that contradict each other, or that no model has
        """
        replaced = self.replaced or {}
        replaced = {**dict.fromkeys(DERIVED & self.attributes.keys()), **replaced}
        values = {name: self.read(name) for name in self.attributes if name not in replaced}
        with explained(self.name), unreadable():
            check_fields(algorithm, values)
            check_sizes({**values, **replaced}, self.weights)
        self.stream.seek(0)
        return {**values, **replaced}


def unpickle_field(name: str, serialized: Any, max_steps: int) -> tuple[Any, int]:
    """An attribute out of its base64 pickle, and how many instructions that took.

    :raises Refusal: it asks for what is not on the list
    :raises Damage: it cannot be read
    """
    require(isinstance(serialized, str), "there is no pickle")
    try:
        content = base64.b64decode(serialized, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Damage(f"the pickle is no base64: {error}") from error
    rules = Allowed(functions=name in FUNCTION_FIELDS)
    machine = Machine(Source(io.BytesIO(content)), rules, max_steps)
    value = machine.run()
    check_values(value, rules.created, machine.steps + 1000)
    return value, machine.steps


def _read_archive(path: str | pathlib.Path | io.BufferedIOBase) -> bytes:
    """The bytes of an archive that has been looked at; SB3 gets the same ones."""
    is_stream = not isinstance(path, (str, pathlib.Path))
    file = cast(BinaryIO, open_path(path, "r", suffix="zip"))
    try:
        with explained(str(path)):
            size = file.seek(0, 2)
            check_directory(file, size, 1 << 20)
            with unreadable(), zipfile.ZipFile(file) as archive:
                check_archive(archive, size)
                needed = archive.start_dir + (1 << 20)
            require(size <= needed, "it has more behind its end")
        file.seek(0)
        return file.read()
    finally:
        file.seek(0) if is_stream else file.close()


def attribute_names(path: str | pathlib.Path) -> set[str]:
    """The names of the attributes in a model file; nothing is unpickled.

    :raises DamagedFileError: another file
    """
    return set(ModelFile(path).attributes)
