"""One file that maps raw observations to actions of the environment, as ONNX or TorchScript.

Observations enter as the environment of the model returns them (images as SB3 stores them, channels first), a batch at a time;
normalisation, one-hot encoding, rescaling to the action bounds and clipping are part of the file.
"""

import copy
import io
import json
import pathlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_softac.arguments import check_choice, check_flag
from sb3_softac.files.atomic import replacing
from sb3_softac.files.exported import METADATA, ExportedPolicy, Observations, describe, quiet, require_onnx
from sb3_softac.networks import SoftPolicy

Format = Literal["onnx", "torchscript"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt"}
#: largest difference between the file and ``predict()``, in units of each action's larger bound, or of 1 if that is smaller
TOLERANCE = 1e-5
#: of two actions whose values differ by less, in units of 1 plus the larger one, either may be taken for the best
AS_GOOD = 1e-5
#: what is allowed where float32 itself is worse than these two, in units of its rounding error
ROUNDING_ERRORS = 16.0


class Rounding(NamedTuple):
    """Largest rounding errors of float32."""

    actions: float = 0.0  # as ``_Exported.distance`` measures them
    values: float = 0.0  # of actions among which the best is taken


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


def _to_double(obs: Any) -> Any:
    return {key: part.double() for key, part in obs.items()} if isinstance(obs, dict) else obs.double()


class _Exported(nn.Module):
    """What is written to the file: raw observations (B, ...) → actions of the environment (B, A), or (B,) if discrete."""

    normalisations: nn.ModuleList
    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: SoftPolicy, deterministic: bool, vec_normalize: VecNormalize | None, algorithm: str) -> None:
        super().__init__()
        self.deterministic = deterministic
        self.acting = policy.acting_module()
        self.algorithm, self.action_rule = algorithm, policy.action_rule(deterministic)
        self.observation_space, self.action_space = policy.observation_space, policy.action_space
        #: names of the observations that are normalised, in the order of ``normalisations``
        self.normalised: list[str] = []
        self.normalisations = nn.ModuleList()
        if vec_normalize is not None and vec_normalize.norm_obs:
            self._add_normalisations(vec_normalize)
        if isinstance(self.action_space, spaces.Box):
            precision = np.result_type(self.action_space.low, np.float32)  # that of SB3's predict
            self.register_buffer("low", th.as_tensor(self.action_space.low.astype(precision)))
            self.register_buffer("high", th.as_tensor(self.action_space.high.astype(precision)))
        self.to("cpu").eval().requires_grad_(False)

    def _add_normalisations(self, vec_normalize: VecNormalize) -> None:
        statistics = vec_normalize.obs_rms
        by_key = statistics if isinstance(statistics, dict) else {"observation": statistics}
        shapes = {"observation": self.observation_space.shape}
        if isinstance(self.observation_space, spaces.Dict):
            shapes = {key: part.shape for key, part in self.observation_space.spaces.items()}
        for key, rms in by_key.items():
            if key not in shapes or rms.mean.shape != shapes[key]:
                raise ValueError(
                    f"`vec_normalize` has statistics of shape {rms.mean.shape} for {key!r}, but the observations of the model "
                    f"have the shapes {shapes}."
                )
            self.normalised.append(key)
            self.normalisations.append(_Normalisation(rms, vec_normalize.epsilon, vec_normalize.clip_obs))

    @property
    def input_names(self) -> list[str]:
        return list(self.observation_space.spaces) if isinstance(self.observation_space, spaces.Dict) else ["observation"]

    def _normalise(self, name: str, obs: th.Tensor) -> th.Tensor:
        normalised: th.Tensor = self.normalisations[self.normalised.index(name)](obs) if name in self.normalised else obs
        return normalised

    def forward(self, *observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Observations in the order of ``input_names``, or a dict of them."""
        return self._to_environment(self.acting(self._to_networks(observations), self.deterministic))

    def _to_networks(self, observations: tuple[th.Tensor | dict[str, th.Tensor], ...]) -> PyTorchObs:
        if isinstance(observations[0], dict):
            parts = observations[0]
        else:
            parts = dict(zip(self.input_names, cast(tuple[th.Tensor, ...], observations), strict=True))
        normalised = {name: self._normalise(name, part) for name, part in parts.items()}
        return normalised if isinstance(self.observation_space, spaces.Dict) else normalised["observation"]

    def _to_environment(self, actions: th.Tensor) -> th.Tensor:
        if isinstance(self.action_space, spaces.Discrete):
            return actions + int(self.action_space.start)
        # As SB3's unscale_action; rounding may leave the bounds.
        actions = actions.reshape(-1, *self.low.shape).to(self.low.dtype)
        actions = self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return th.maximum(th.minimum(actions, self.high), self.low)

    def exact(self) -> "_Exported":
        """A copy that computes in float64."""
        double = copy.deepcopy(self).double()
        for module in double.modules():  # SB3's preprocessing ends in float32
            if isinstance(module, BaseModel) and module.features_extractor is not None:
                module.features_extractor.register_forward_pre_hook(lambda _, inputs: (_to_double(inputs[0]),))
        return double

    def distance(self, actions: Any, expected: Any, observations: Observations, slack: float = 0.0) -> Any:
        """How far each action is from the expected one, (B,), in units of the larger bound of its component, or of 1.

        Where the best of several is taken, rounding may prefer another one that is as good. If both are among these, or near
        to one of them, this distance to them counts.

        :param actions: (B, ...)
        :param expected: (B, ...)
        :param observations: (B, ...), to which they belong
        :param slack: by how much the value of an action may be below the best, besides ``AS_GOOD``
        """
        both = np.asarray(actions, np.float64), np.asarray(expected, np.float64)
        apart = self._apart(*both)
        choices = self.choices(observations)
        if choices is None:
            return apart
        candidates, values = choices
        best = values.max(axis=1, keepdims=True)
        as_good = values >= best - AS_GOOD * (1.0 + np.abs(best)) - slack
        nearest = [np.where(as_good, self._apart(each[:, None], candidates), np.inf).min(axis=1) for each in both]
        return np.minimum(apart, np.maximum(*nearest))

    def rounding(self, exact: "_Exported", observations: Observations) -> Rounding:
        """Largest rounding errors of deterministic actions; ``exact`` is this module in float64."""
        here, there = self.choices(observations), exact.choices(observations)
        if (here is None or there is None) and isinstance(self.action_space, spaces.Discrete):
            return Rounding()  # one that flips would say nothing of the others
        if here is None or there is None:
            return Rounding(self._apart(self.act(observations), exact.act(observations)).max())
        # Of all actions, because the best may be another one there.
        return Rounding(self._apart(here[0], there[0]).max(), np.abs(here[1] - there[1]).max())

    def _apart(self, left: Any, right: Any) -> Any:
        """How far actions (..., A) are from one another, (...), as in :meth:`distance`."""
        unit = np.ones(())
        if isinstance(self.action_space, spaces.Box):
            unit = np.maximum(1.0, np.maximum(np.abs(self.action_space.low), np.abs(self.action_space.high)))
        difference = np.abs(left - right) / unit
        return difference.reshape(*difference.shape[: difference.ndim - len(self.action_space.shape or ())], -1).max(axis=-1)

    @th.no_grad()
    def choices(self, observations: Observations) -> tuple[Any, Any] | None:
        """Actions of the environment among which the best is taken, (B, n, ...), and their values, (B, n); None if none is."""
        if not self.deterministic or not hasattr(self.acting, "candidates"):
            return None
        candidates, values = self.acting.candidates(self._to_networks(self.tensors(observations)))  # type: ignore[operator]
        actions = self._to_environment(candidates.flatten(0, 1)).double().numpy()
        return actions.reshape(*values.shape, *(self.action_space.shape or ())), values.double().numpy()

    def act(self, observations: Observations) -> Any:
        """Actions, as an array."""
        with th.no_grad():
            return self(*self.tensors(observations)).numpy()

    def tensors(self, observations: Observations) -> tuple[Any, ...]:
        """The arguments of :meth:`forward` for a batch of observations: one tensor, or one dict."""
        if isinstance(self.observation_space, spaces.Dict):
            return ({name: th.as_tensor(observations[name]) for name in self.input_names},)
        return (th.as_tensor(observations),)

    def example(self) -> tuple[Any, ...]:
        """Arguments of :meth:`forward`, for a batch of two."""
        space = copy.deepcopy(self.observation_space)
        space.seed(0)
        return self.tensors(_sample(space, 2))

    def metadata(self) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "action": self.action_rule,
            "version": version("sb3-softac"),
            "deterministic": self.deterministic,
            "normalised": sorted({*self.normalised, *getattr(getattr(self.acting, "normalizer", None), "names", ())}),
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


#: dtypes of observations that the exporter knows
ONNX_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def _check_for_onnx(space: spaces.Space[Any]) -> None:
    parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    for name, part in parts.items():
        if name == "action" or name.isdigit():
            raise ValueError(f"`format` is 'onnx', but the observation {name!r} needs 'torchscript': ONNX cannot name it so.")
        if str(part.dtype) not in ONNX_DTYPES:
            raise ValueError(f"`format` is 'onnx', but the dtype {part.dtype} of {name!r} needs 'torchscript'.")


def _write_onnx(module: _Exported, path: pathlib.Path) -> None:
    import onnx

    (tensors,) = module.example()
    inputs = tuple(tensors.values()) if isinstance(tensors, dict) else (tensors,)
    # The exporter by tracing: the one of torch.export needs onnxscript, and takes seconds where this takes hundredths.
    stream = io.BytesIO()
    th.onnx.export(
        module,
        inputs,
        stream,  # type: ignore[arg-type]  # of a tracer that knows more than its signature says
        input_names=module.input_names,
        output_names=["action"],
        dynamic_axes={name: {0: "batch"} for name in [*module.input_names, "action"]},
        opset_version=17,
        dynamo=False,
    )
    graph = onnx.load_model_from_string(stream.getvalue())
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(module.metadata())})
    onnx.save(graph, path)


def _write_torchscript(module: _Exported, path: pathlib.Path) -> None:
    # What is random differs from call to call, so the tracer's own check would fail; ours is in `write`.
    traced = th.jit.trace(module, module.example(), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
    stream = io.BytesIO()  # PyTorch's own writing has other errors than Python's where the disk is full
    th.jit.save(traced, stream, _extra_files={METADATA: json.dumps(module.metadata())})
    path.write_bytes(stream.getbuffer())


def _compare(
    act: Callable[[Observations], Any], expected: Callable[[Observations], Any], module: _Exported, exact: _Exported
) -> None:
    """Compare on batches of other sizes than the one that was traced.

    Where float32 itself is worse than the tolerance, as for observations in the thousands, some times its rounding error is
    allowed: the difference between ``module`` and ``exact``, the same in float64.

    :raises RuntimeError: the actions differ
    """
    space = copy.deepcopy(module.observation_space)  # sampling from the model's own would change its random numbers
    space.seed(0)
    rounding = Rounding()
    if module.deterministic:
        # The largest of many: of a few it may be small by chance. Not all at once: for each there may be many actions.
        rounding = Rounding(*np.max([module.rounding(exact, _sample(space, 100)) for _ in range(10)], axis=0))
    allowed = max(TOLERANCE, ROUNDING_ERRORS * rounding.actions)
    slack = ROUNDING_ERRORS * rounding.values
    for size in (1, 17, 64):
        observations = _sample(space, size)
        difference = module.distance(act(observations), expected(observations), observations, slack)
        if not difference.max() <= allowed:
            raise RuntimeError(
                f"The exported file was not written: its actions differ from those of the model by {difference.max():g} "
                f"times the action bounds (or 1), which is more than {allowed:g}."
            )


def write(
    policy: SoftPolicy,
    path: str | pathlib.Path,
    format: Format,
    deterministic: bool,
    vec_normalize: VecNormalize | None,
    algorithm: str,
) -> pathlib.Path:
    """See ``SoftAlgorithm.export``; ``algorithm`` is its name."""
    check_choice("format", format, tuple(SUFFIX))
    check_flag("deterministic", deterministic)
    if vec_normalize is not None and not isinstance(vec_normalize, VecNormalize):
        raise ValueError(f"`vec_normalize` is a {type(vec_normalize).__name__}, but it must be None or a VecNormalize.")
    if vec_normalize is not None and vec_normalize.norm_obs and policy.normalizer is not None:
        raise ValueError(
            "`vec_normalize` normalises observations, but it must be None: the policy does it by itself, and so does its file."
        )
    if not deterministic and format == "onnx":
        raise ValueError('`deterministic` is False, but it must be True with `format="onnx"`: TorchScript files can sample.')
    if format == "onnx":
        _check_for_onnx(policy.observation_space)
    if not deterministic and getattr(policy, "use_sde", False):
        raise ValueError("`deterministic` is False, but it must be True with gSDE, whose noise lasts for a rollout.")
    if format == "onnx":
        require_onnx()
    path = pathlib.Path(path)
    path = path.with_name(f"{path.name}{SUFFIX[format]}") if path.suffix == "" else path
    if path.is_dir():
        raise IsADirectoryError(f"`path` is {str(path)!r}, which is a folder, but it must be the name of a file.")

    def predict(observations: Observations) -> Any:
        return policy.predict(_normalise(observations, vec_normalize), deterministic=True)[0]

    training = {module: module.training for module in policy.modules()}
    policy.set_training_mode(False)
    try:
        # On a GPU, convolutions would be rounded to TensorFloat-32 in `predict`, and differ from every other device.
        float32 = th.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with replacing(path) as unfinished, quiet(), th.no_grad(), th.random.fork_rng(devices=[]), float32:
            module = _Exported(policy, deterministic, vec_normalize, algorithm)
            exact = module.exact()
            (_write_onnx if format == "onnx" else _write_torchscript)(module, unfinished)
            file = ExportedPolicy(unfinished)
            if deterministic:
                _compare(file, predict, module, exact)
            else:
                # The samples must be those of the module at the same random numbers, and its mean that of the model.
                _compare(_reseeded(file), _reseeded(module.act), module, exact)
                module.deterministic = exact.deterministic = True
                _compare(module.act, predict, module, exact)
    finally:
        for part, mode in training.items():
            part.training = mode
    return path


def _reseeded(act: Callable[[Observations], Any]) -> Callable[[Observations], Any]:
    """``act`` with the same random numbers at every call."""

    def call(observations: Observations) -> Any:
        with th.random.fork_rng(devices=[]):
            th.manual_seed(0)
            return act(observations)

    return call
