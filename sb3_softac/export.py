"""One file that maps raw observations to actions of the environment, as ONNX or TorchScript, and how to use it again.

Observations enter as the environment of the model returns them (images as SB3 stores them, channels first), a batch at a time;
normalisation, one-hot encoding, rescaling to the action bounds and clipping are part of the file.
"""

import contextlib
import importlib
import json
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_softac import files
from sb3_softac.arguments import check_choice, check_flag
from sb3_softac.policies import SoftACPolicy

Format = Literal["onnx", "torchscript"]
Observations = Any  # an array (B, ...), or a dict of them
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt"}
METADATA = "sb3_softac.json"
#: largest difference between the file and ``predict()``, in units of the largest action bound, or of 1 if that is smaller
TOLERANCE = 1e-5


def describe(space: spaces.Space[Any]) -> dict[str, Any]:
    """``space`` as JSON, with all that two equal spaces have in common."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: describe(part) for key, part in space.spaces.items()}}
    description: dict[str, Any] = {"type": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    for name in ("low", "high", "nvec", "n", "start"):
        if hasattr(space, name):
            value = np.asarray(getattr(space, name))
            # JSON has no infinity
            description[name] = value.astype(str).tolist() if value.dtype.kind == "f" else value.tolist()
    return description


class _Normalisation(nn.Module):
    """VecNormalize's (obs − mean) / √(var + ε), clipped, in float64 as there."""

    def __init__(self, statistics: RunningMeanStd, epsilon: float, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", th.as_tensor(statistics.mean, dtype=th.float64))
        self.register_buffer("scale", th.as_tensor(np.sqrt(statistics.var + epsilon), dtype=th.float64))
        self.mean: th.Tensor
        self.scale: th.Tensor

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return ((obs.double() - self.mean) / self.scale).clamp(-self.clip, self.clip).float()


class _Exported(nn.Module):
    """What is written to the file: raw observations (B, ...) → actions of the environment (B, A), or (B,) if discrete."""

    normalisations: nn.ModuleDict
    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: SoftACPolicy, deterministic: bool, vec_normalize: VecNormalize | None) -> None:
        super().__init__()
        self.deterministic = deterministic
        self.actor = policy.make_actor()
        self.actor.load_state_dict(policy.actor.state_dict())
        self.observation_space, self.action_space = policy.observation_space, policy.action_space
        self.normalisations = nn.ModuleDict()
        if vec_normalize is not None and vec_normalize.norm_obs:
            all_statistics = vec_normalize.obs_rms
            by_key = all_statistics if isinstance(all_statistics, dict) else {"observation": all_statistics}
            for key, statistics in by_key.items():
                shape = self._space_of(key).shape
                if statistics.mean.shape != shape:
                    raise ValueError(
                        f"`vec_normalize` has statistics of shape {statistics.mean.shape} for {key!r}, but the model's "
                        f"observations have shape {shape}."
                    )
                self.normalisations[key] = _Normalisation(statistics, vec_normalize.epsilon, vec_normalize.clip_obs)
        if isinstance(self.action_space, spaces.Box):
            self.register_buffer("low", th.as_tensor(self.action_space.low))
            self.register_buffer("high", th.as_tensor(self.action_space.high))
        self.to("cpu").eval().requires_grad_(False)

    def _space_of(self, key: str) -> spaces.Space[Any]:
        return self.observation_space[key] if isinstance(self.observation_space, spaces.Dict) else self.observation_space

    @property
    def input_names(self) -> list[str]:
        return list(self.observation_space.spaces) if isinstance(self.observation_space, spaces.Dict) else ["observation"]

    def _normalise(self, name: str, obs: th.Tensor) -> th.Tensor:
        normalised: th.Tensor = self.normalisations[name](obs) if name in self.normalisations else obs
        return normalised

    def forward(self, *observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Observations in the order of ``input_names``, or a dict of them."""
        if isinstance(observations[0], dict):
            parts = observations[0]
        else:
            parts = dict(zip(self.input_names, cast(tuple[th.Tensor, ...], observations), strict=True))
        normalised = {name: self._normalise(name, part) for name, part in parts.items()}
        obs: PyTorchObs = normalised
        if not isinstance(self.observation_space, spaces.Dict):
            obs = normalised["observation"]
        actions: th.Tensor = self.actor(obs, self.deterministic)
        if isinstance(self.action_space, spaces.Discrete):
            return actions + int(self.action_space.start)
        # As SB3's unscale_action; rounding may leave the bounds.
        actions = self.low + 0.5 * (actions.to(self.low.dtype) + 1.0) * (self.high - self.low)
        return th.maximum(th.minimum(actions, self.high), self.low)

    def tensors(self, observations: Observations) -> tuple[Any, ...]:
        """The arguments of :meth:`forward` for a batch of observations: one tensor, or one dict."""
        if isinstance(self.observation_space, spaces.Dict):
            return ({name: th.as_tensor(observations[name]) for name in self.input_names},)
        return (th.as_tensor(observations),)

    def metadata(self) -> dict[str, Any]:
        from sb3_softac import __version__

        return {
            "algorithm": "SoftAC",
            "version": __version__,
            "deterministic": self.deterministic,
            "normalised": sorted(self.normalisations),
            "inputs": self.input_names,
            "observation_space": describe(self.observation_space),
            "action_space": describe(self.action_space),
        }


def _sample(space: spaces.Space[Any], size: int) -> Observations:
    """A batch of random observations."""
    samples = [space.sample() for _ in range(size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([np.asarray(sample[key]) for sample in samples]) for key in space.spaces}
    return np.stack([np.asarray(sample) for sample in samples])


def _normalise(observations: Observations, vec_normalize: VecNormalize | None) -> Observations:
    """By SB3's own method, but images are channels first here and last in VecNormalize, which copies even what it leaves."""
    if vec_normalize is None or not vec_normalize.norm_obs:
        return observations
    statistics = vec_normalize.obs_rms
    if not isinstance(statistics, dict):
        return vec_normalize.normalize_obs(observations)
    return observations | {key: vec_normalize._normalize_obs(observations[key], rms) for key, rms in statistics.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns that both formats' tracers are deprecated, and about every Python number that it meets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", th.jit.TracerWarning)  # type: ignore[attr-defined]  # torch does not list it
        yield


def _require_onnx() -> None:
    for module in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f'ONNX files need {module}: pip install "sb3-softac[export]"') from error


def _write_onnx(module: _Exported, example: Observations, path: pathlib.Path) -> None:
    import onnx

    (tensors,) = module.tensors(example)
    inputs = tuple(tensors.values()) if isinstance(tensors, dict) else (tensors,)
    # The exporter by tracing: the one of torch.export needs onnxscript, and takes seconds where this takes hundredths.
    th.onnx.export(
        module,
        inputs,
        str(path),
        input_names=module.input_names,
        output_names=["action"],
        dynamic_axes={name: {0: "batch"} for name in [*module.input_names, "action"]},
        opset_version=17,
        dynamo=False,
    )
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(module.metadata())})
    onnx.save(graph, path)


def _write_torchscript(module: _Exported, example: Observations, path: pathlib.Path) -> None:
    # What is random differs from call to call, so the tracer's own check would fail; ours is in `write`.
    traced = th.jit.trace(module, module.tensors(example), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
    th.jit.save(traced, str(path), _extra_files={METADATA: json.dumps(module.metadata())})


def _compare(act: Callable[[Observations], Any], expected: Callable[[Observations], Any], module: _Exported) -> None:
    """Compare on batches of other sizes than the one that was traced.

    :raises RuntimeError: the actions differ
    """
    space = module.action_space
    unit = max(1.0, float(np.abs([space.low, space.high]).max())) if isinstance(space, spaces.Box) else 1.0
    for size in (1, 17, 64):
        observations = _sample(module.observation_space, size)
        difference = float(np.abs(np.subtract(act(observations), expected(observations), dtype=np.float64)).max())
        if not difference <= TOLERANCE * unit:
            raise RuntimeError(
                f"The exported file was not written: its actions differ from those of the model by {difference:g}, "
                f"which is more than {TOLERANCE * unit:g}."
            )


def write(
    policy: SoftACPolicy,
    path: str | pathlib.Path,
    format: Format,
    deterministic: bool,
    vec_normalize: VecNormalize | None,
) -> pathlib.Path:
    """See ``SoftAC.export``."""
    check_choice("format", format, tuple(SUFFIX))
    check_flag("deterministic", deterministic)
    if vec_normalize is not None and not isinstance(vec_normalize, VecNormalize):
        raise ValueError(f"`vec_normalize` is a {type(vec_normalize).__name__}, but it must be None or a VecNormalize.")
    if not deterministic and format == "onnx":
        raise ValueError('`deterministic` is False, but it must be True with `format="onnx"`: TorchScript files can sample.')
    if not deterministic and policy.use_sde:
        raise ValueError("`deterministic` is False, but it must be True with gSDE, whose noise lasts for a rollout.")
    if format == "onnx":
        _require_onnx()
    path = pathlib.Path(path)
    path = path.with_name(f"{path.name}{SUFFIX[format]}") if path.suffix == "" else path
    if path.is_dir():
        raise IsADirectoryError(f"`path` is {str(path)!r}, which is a folder, but it must be the name of a file.")

    def predict(observations: Observations) -> Any:
        return policy.predict(_normalise(observations, vec_normalize), deterministic=True)[0]

    training = policy.actor.training
    policy.actor.set_training_mode(False)
    try:
        with files.replacing(path) as unfinished, _quiet(), th.no_grad():
            module = _Exported(policy, deterministic, vec_normalize)
            example = _sample(module.observation_space, 2)
            (_write_onnx if format == "onnx" else _write_torchscript)(module, example, unfinished)
            file = ExportedPolicy(unfinished)
            if deterministic:
                _compare(file, predict, module)
            else:
                # The samples must be those of the module at the same random numbers, and its mean that of the model.
                _compare(_reseeded(file), _reseeded(lambda obs: module(*module.tensors(obs)).numpy()), module)
                module.deterministic = True
                _compare(lambda obs: module(*module.tensors(obs)).numpy(), predict, module)
    finally:
        policy.actor.set_training_mode(training)
    return path


def _reseeded(act: Callable[[Observations], Any]) -> Callable[[Observations], Any]:
    """``act`` with the same random numbers at every call."""

    def call(observations: Observations) -> Any:
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            return act(observations)

    return call


def read_metadata(path: str | pathlib.Path) -> dict[str, Any] | None:
    """What the file says of itself, or None if it is no exported policy."""
    path = pathlib.Path(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}")]
            return json.loads(archive.read(names[0])) if names else None
    return None


class ExportedPolicy:
    """An exported file, for use without ``SoftAC``'s networks: ``predict()`` as in SB3, so ``evaluate_policy`` takes it.

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
        metadata = read_metadata(path)
        if metadata is not None:
            with _quiet():
                self._module: Any = th.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            self._run = self._run_torchscript
        else:
            _require_onnx()
            import onnxruntime

            try:
                self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                metadata = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
            except FileNotFoundError:
                raise
            except Exception as error:
                raise ValueError(f"`path` is {str(path)!r}, which is no file that SoftAC.export wrote.") from error
            self._run = self._run_onnx
        self.metadata: dict[str, Any] = metadata
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if space is not None and describe(space) != metadata[name]:
                raise ValueError(f"`{name}` is {describe(space)}, but the file was exported for {metadata[name]}.")

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
        if all(named[name].ndim == len(of_each[name]["shape"]) for name in named):
            return self._run({name: part[np.newaxis] for name, part in named.items()})[0]
        return self._run(named)

    def predict(
        self,
        observation: Observations,
        state: tuple[Any, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, tuple[Any, ...] | None]:
        """Actions for a batch of observations, as SB3's ``predict``.

        :raises ValueError: another ``deterministic`` than at the export
        """
        if deterministic != self.metadata["deterministic"]:
            raise ValueError(
                f"`deterministic` is {deterministic}, but it must be {self.metadata['deterministic']}, as at the export."
            )
        return self(observation), state
