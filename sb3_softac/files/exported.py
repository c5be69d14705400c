"""Exported policies: how a file is recognised, loaded and used, without any network of ours."""

import contextlib
import importlib
import json
import pathlib
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

Observations = Any  # an array (B, ...), or a dict of them
#: where a file says what it is
METADATA = "sb3_softac.json"
#: bytes that the bounds of large spaces may take
LARGEST_METADATA = 16 << 20


def describe(space: spaces.Space[Any]) -> dict[str, Any]:
    """``space`` as JSON, with all that two equal spaces have in common."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: describe(part) for key, part in space.spaces.items()}}
    description: dict[str, Any] = {"type": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    for name in ("low", "high", "nvec", "n", "start"):
        if hasattr(space, name):
            value = np.asarray(getattr(space, name))
            if value.ndim > 0 and (value == value.flat[0]).all():
                value = value.flat[0]  # the bounds of an image would fill pages
            description[name] = np.asarray(value).astype(str).tolist()  # JSON has no infinity
    return description


def _difference(here: dict[str, Any], there: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of two descriptions that are not the same, and the type of the space."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name) or name == "type"]
    return {name: here.get(name) for name in names}, {name: there.get(name) for name in names}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PyTorch warns that both formats' tracers are deprecated, and about every Python number that it meets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", th.jit.TracerWarning)  # type: ignore[attr-defined]  # torch does not list it
        yield


def require_onnx() -> None:
    for module in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"ONNX files need {module}: pip install onnx onnxruntime") from error


def _torchscript_metadata(path: pathlib.Path) -> dict[str, Any] | None:
    """What a TorchScript file says of itself, or None if it is no exported policy."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(f"/extra/{METADATA}")]
            if not members or members[0].file_size > LARGEST_METADATA:
                return None
            metadata: dict[str, Any] = json.loads(archive.read(members[0]))
            return metadata
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError):
        return None  # whoever loads it as something else says what is wrong


def is_exported(path: pathlib.Path) -> bool:
    """Whether ``path`` is a file that ``export`` wrote."""
    if not path.is_file():
        return False
    return METADATA.encode() in path.read_bytes() if path.suffix == ".onnx" else _torchscript_metadata(path) is not None


class ExportedPolicy:
    """An exported file, for use without our networks: ``predict()`` as in SB3, so ``evaluate_policy`` takes it.

    :param path: the file
    :param observation_space: that of the environment to act in, to be compared with that of the file
    :param action_space: that of the environment to act in, to be compared with that of the file
    :raises ValueError: no exported file, or one for other spaces
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> None:
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`path` is {str(path)!r}, where there is no file.")
        metadata = _torchscript_metadata(path)
        if metadata is not None:
            with quiet():
                self._module: Any = th.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            self._run = self._run_torchscript
        else:
            if METADATA.encode() not in path.read_bytes():
                raise ValueError(f"`path` is {str(path)!r}, which is no file that SoftAC.export wrote.")
            require_onnx()
            import onnxruntime

            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            metadata = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
            self._run = self._run_onnx
        self.metadata: dict[str, Any] = metadata
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if space is not None and describe(space) != metadata[name]:
                here, there = _difference(describe(space), metadata[name])
                raise ValueError(f"`{name}` is {here}, but the file was exported for {there}.")

    def _run_torchscript(self, named: dict[str, Any]) -> Any:
        tensors = {name: th.as_tensor(part) for name, part in named.items()}
        with th.no_grad():
            return self._module(tensors if self._dict_observations else tensors["observation"]).numpy()

    def _run_onnx(self, named: dict[str, Any]) -> Any:
        return self._session.run(["action"], named)[0]

    @property
    def _dict_observations(self) -> bool:
        return bool(self.metadata["observation_space"]["type"] == "Dict")

    def __call__(self, observations: Observations) -> Any:
        """Actions (B, A), or (B,) if discrete, for a batch of observations (B, ...), or a dict of them.

        A single observation, without the batch dimension, gives a single action.
        """
        space = self.metadata["observation_space"]
        parts = observations if self._dict_observations else {"observation": observations}
        of_each = space["spaces"] if self._dict_observations else {"observation": space}
        named = {name: np.asarray(parts[name], dtype=of_each[name]["dtype"]) for name in self.metadata["inputs"]}
        shapes = {name: tuple(of_each[name]["shape"]) for name in named}
        if all(named[name].shape == shapes[name] for name in named):
            return self._run({name: part[np.newaxis] for name, part in named.items()})[0]
        for name, part in named.items():
            if part.shape[1:] != shapes[name] or part.ndim == 0:
                raise ValueError(
                    f"`observation` has the shape {part.shape} for {name!r}, but it must be (B, *{shapes[name]})."
                )
        return self._run(named)

    def predict(
        self,
        observation: Observations,
        state: tuple[Any, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool | None = None,
    ) -> tuple[Any, tuple[Any, ...] | None]:
        """Actions for a batch of observations or a single one, as SB3's ``predict``.

        :raises ValueError: another ``deterministic`` than at the export, or observations of another shape
        """
        if deterministic is not None and deterministic != self.metadata["deterministic"]:
            raise ValueError(
                f"`deterministic` is {deterministic}, but it must be {self.metadata['deterministic']}, as at the export."
            )
        return self(observation), state
