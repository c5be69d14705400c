"""The whole state of a training, between two rollouts: out of a model, and into one of a new process.

Most of it is put in place when the model is made. What ``learn`` itself sets up again (environments, action noise, callbacks)
and what anything in between might use (random generators) follows where the first rollout begins, as it was taken there.
"""

import pathlib
import random
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import get_device, set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_softac.collect import StoredUpTo
from sb3_softac.errors import DamagedFileError, TrainingDivergedError, UntrustedFileError
from sb3_softac.files import environments, generators, segments
from sb3_softac.files.allowed import FUNCTION_FIELDS, Allowed
from sb3_softac.files.callback_state import restore_callbacks, state_of_callbacks
from sb3_softac.files.checkpoint import Checkpoint, Folder
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.environments import captured, with_prefix
from sb3_softac.files.model_state import (
    check_logged,
    check_noise,
    check_parameters,
    check_rows,
    check_values_of,
    is_logged,
    kept_logs,
)
from sb3_softac.files.plain import Arrays, Encoder, Form, UnsavableError
from sb3_softac.files.reading import built_from, check_optimizers
from sb3_softac.files.rebuilding import require
from sb3_softac.files.segments import BufferLog
from sb3_softac.files.settling import check_values
from sb3_softac.files.unpickling import Damage, Refusal, printable
from sb3_softac.runtime import Resumption, Runtime, SetUp

#: attributes of a model that others are made of, or that the environment has
NOT_SAVED = frozenset(("observation_space", "action_space", "lr_schedule", "replay_buffer", "action_noise", "n_envs"))
#: values in one attribute
MAX_VALUES = 10_000_000
#: what a model may have beside what its constructor makes
ADDED = frozenset(("_automatic_target_entropy", "_n_resets", "_kept_noise", "_kept_steps", "_owed_steps"))


# --- out of a model ----------------------------------------------------------------------------------------------------


def attributes_of(model: Any, arrays: Arrays) -> dict[str, Form]:
    """The attributes of a model.

    :raises ValueError: one of them has no form
    """
    left_out = {*model._excluded_save_params(), *NOT_SAVED}
    forms = {}
    for name, value in vars(model).items():
        if name not in left_out:
            try:
                forms[name] = Encoder(arrays, "attribute")(value, name)
            except UnsavableError as error:
                raise ValueError(
                    f"`{error.path or name}` is {error.what}, but a checkpoint holds numbers, texts, arrays, and classes "
                    f"and functions with a name at the top of a module{error.advice}."
                ) from None
    return forms


def _generators(model: Any) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # the one that SB3 draws from
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if model.device.type == "cuda" else [],
    }


def take(model: Any, folder: pathlib.Path, log: BufferLog, run: dict[str, Any]) -> Checkpoint:
    """Everything that a training is at, between two rollouts; the replay buffer is written.

    :param model: the model
    :param folder: of the checkpoints
    :param log: what of the replay buffer is on the disk
    :param run: which training it is
    """
    model._read_metrics()
    model._follow_options()
    arrays: Arrays = {}
    state = state_of(model, arrays)
    own_steps = model.num_timesteps // run.get("ranks", 1)
    return Checkpoint(folder, run, model.num_timesteps, state, arrays, log.write(model.replay_buffer, own_steps))


def state_of(model: Any, arrays: Arrays) -> dict[str, Form]:
    """What :func:`take` takes, but for the transitions.

    :param model: the model
    :param arrays: where arrays go
    :raises ValueError: something has no form
    """
    runtime = model._runtime
    state: dict[str, Form] = {"attributes": attributes_of(model, arrays)}
    state["parameters"] = Encoder(arrays, "parameter")(model.get_parameters())
    state["engine"] = runtime.engine.n_steps
    if model.action_noise is not None:
        state["action_noise"] = Encoder(arrays, "noise")(model.action_noise, "action_noise")
    state["environment"] = captured(model.env, arrays, "env/")
    state["wrappers"] = [type(layer).__name__ for layer in environments.vec_layers(model.env)]
    state["callbacks"] = state_of_callbacks(runtime.callback, arrays)
    logger = model.logger
    logged = {name for name, value in logger.name_to_value.items() if is_logged(value)}
    state["logger"] = Encoder(arrays, "logger")(
        {
            each: {name: value for name, value in getattr(logger, each).items() if name in logged}
            for each in ("name_to_value", "name_to_count", "name_to_excluded")
        }
    )
    state["dumped"] = runtime.dumped
    state["space"] = Encoder(arrays, "space")(model.action_space._np_random)
    state["replay_buffer"] = segments.state_of(model.replay_buffer, arrays)
    state["generators"] = Encoder(arrays, "generator")(_generators(model))
    return state


# --- into a model ------------------------------------------------------------------------------------------------------


def _decoded(checkpoint: Checkpoint, replaced: dict[str, Any]) -> dict[str, Any]:
    forms: Any = checkpoint.state.get("attributes")
    require(type(forms) is dict, "there are no attributes")
    values = {}
    for name, form in forms.items():
        if name in replaced:
            values[name] = replaced[name]
            continue
        rules = Allowed(functions=name in FUNCTION_FIELDS)
        with _trusted(checkpoint, printable(name)):
            values[name] = Decoder(checkpoint.arrays, rules, replaced)(form)
        check_values(values[name], rules.created, MAX_VALUES)
    return values


@contextmanager
def _trusted(checkpoint: Checkpoint, name: str | None = None) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        where = f"whose attribute `{name}`" if name else "which"
        instead = f", or pass `custom_objects={{{name!r}: ...}}`" if name else ""
        raise UntrustedFileError(
            f"`folder` has the checkpoint {checkpoint.path.name!r}, {where} asks for {printable(refusal)}. That is not on the "
            f"list of what files may use, so nothing of it has run. If it is yours, import its module before{instead}."
        ) from None


def _check_run(cls: type[Any], checkpoint: Checkpoint, env: Any) -> None:
    """:raises ValueError: it is a run of another algorithm, or for other environments"""
    run, path = checkpoint.run, str(checkpoint.path)
    if run.get("algorithm") != cls.__name__:
        raise ValueError(
            f"`folder` has the checkpoint {path!r} of {printable(run.get('algorithm'))}, but this is {cls.__name__}: "
            f"{printable(run.get('algorithm'))}.resume goes on with it."
        )
    for name, what in (("observation_space", "observation space"), ("action_space", "action space"), ("n_envs", "number")):
        theirs, ours = run.get(name), environment_of(env)[name]
        if theirs != ours:
            theirs = printable(theirs)
            raise ValueError(
                f"`env` has {ours} as {what} of environments, but the checkpoint {path!r} is of {theirs}: build it as it was."
                if name == "n_envs"
                else f"`env` has the {what} {ours}, but the checkpoint {path!r} is of {theirs}: build it as it was."
            )


def environment_of(env: VecEnv) -> dict[str, Any]:
    """What must be alike where a training goes on."""
    inner = getattr(env.unwrapped, "envs", [None])[0]
    spec = getattr(inner, "spec", None)
    name = spec.id if spec is not None else "environments" if inner is None else type(inner.unwrapped).__name__
    spaces = {"observation_space": str(env.observation_space), "action_space": str(env.action_space)}
    return {"environment": name, **spaces, "n_envs": env.num_envs}


def refuse_unknown(cls: type[Any], expected: dict[str, Any]) -> None:
    """:raises ValueError: names that are no options"""
    unknown = sorted(set(expected) - set(cls._option_names()))
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no option of {cls.__name__}: a run goes on with the options that it had.")


def resume(
    cls: type[Any],
    folder: str | pathlib.Path,
    env: Any,
    device: th.device | str,
    custom_objects: dict[str, Any] | None,
    expected: dict[str, Any],
) -> Any:
    """See ``SavedAlgorithm.resume``."""
    refuse_unknown(cls, expected)
    device = get_device(device)  # a wrong one is no damage of the files
    place = Folder(folder)
    wrapped = cls._wrap_env(maybe_make_env(env, 0), 0)
    damages: list[str] = []
    for checkpoint in place.whole():
        try:
            return build_from(cls, place, checkpoint, wrapped, device, custom_objects or {}, expected)
        except DamagedFileError as damage:
            damages.append(str(damage))
            warnings.warn(f"{checkpoint.path.name} is damaged: {damage} The one before it is tried.", stacklevel=3)
    raise DamagedFileError(f"`folder` is {str(folder)!r}, but no checkpoint in it is whole: {' '.join(damages[:5])}")


def build_from(
    cls: type[Any],
    place: Folder,
    checkpoint: Checkpoint,
    env: VecEnv,
    device: th.device | str,
    replaced: dict[str, Any],
    expected: dict[str, Any],
) -> Any:
    """The model of one checkpoint.

    :raises ValueError: another algorithm, environment or option
    :raises DamagedFileError: no model can be made of it
    """
    _check_run(cls, checkpoint, env)
    with built_from(str(checkpoint.path)), _trusted(checkpoint):
        return _build(cls, place, checkpoint, env, device, replaced, expected)


def _build(
    cls: type[Any],
    place: Folder,
    checkpoint: Checkpoint,
    env: VecEnv,
    device: th.device | str,
    replaced: dict[str, Any],
    expected: dict[str, Any],
) -> Any:
    state, arrays = checkpoint.state, checkpoint.arrays
    wrappers = [type(layer).__name__ for layer in environments.vec_layers(env)]
    if state["wrappers"] != wrappers:
        theirs = printable(" in ".join(reversed(state["wrappers"])))
        raise ValueError(f"`env` is made of {' in '.join(reversed(wrappers))}, but the run had {theirs}: build it as it was.")
    model = _set_up(cls, checkpoint, env, device, replaced, expected)
    parameters = Decoder(arrays)(state["parameters"])
    check_parameters(model, parameters)
    model.set_parameters(parameters, exact_match=True, device=device)
    check_optimizers(model)
    runtime, log = model._runtime, BufferLog(place.segments)
    log.n_steps = model.num_timesteps // checkpoint.run.get("ranks", 1)
    segments.restore(place.segments, checkpoint.segments, model.replay_buffer, state["replay_buffer"], arrays, log)
    require(type(state["engine"]) is int and 0 <= state["engine"] < 1 << 62, "the number of gradient steps is none")
    runtime.engine.n_steps = state["engine"]
    runtime.run, runtime.buffer_log = checkpoint.run, log
    runtime.stored = StoredUpTo(model.replay_buffer, model._last_obs)
    runtime.resumption = Resumption(checkpoint, model._total_timesteps, replaced)
    obstacle = state["environment"].get("obstacle")
    if obstacle is not None:
        model._last_obs = None  # `learn` resets
        _restore_environment(model, checkpoint)
        warnings.warn(
            f"The environments cannot be put where they were ({printable(obstacle)}): new episodes begin, and the rest goes "
            "on exactly. An environment with `get_state()` and `set_state(state)` can.",
            stacklevel=5,
        )
    return model


def _set_up(
    cls: type[Any],
    checkpoint: Checkpoint,
    env: VecEnv,
    device: th.device | str,
    replaced: dict[str, Any],
    expected: dict[str, Any],
) -> Any:
    """A model with the attributes that it had, whose weights and replay buffer are still to be filled."""
    state, arrays = checkpoint.state, checkpoint.arrays
    values = _decoded(checkpoint, replaced)
    n_bytes = sum(array.nbytes for array in arrays.values())
    check_values_of(cls, values, env, n_bytes, checkpoint.n_steps)
    check_rows(values, expected, sum(segment.last - segment.first for segment in checkpoint.segments))
    model = cls(policy=values["policy_class"], env=env, device=device, _init_setup_model=False)
    left_out = {*model._excluded_save_params(), *NOT_SAVED}
    require(left_out.isdisjoint(values), "it has attributes that no checkpoint has")
    constructed = {name for name in values if name in vars(model) or name in ADDED}
    model.__dict__.update({name: values[name] for name in constructed})
    for name, value in expected.items():
        _compare(model, name, value)
    model.tensorboard_log = kept_logs(values, expected)
    model._runtime = Runtime(SetUp(seeds=False, weights_follow=True))
    if "action_noise" in state:
        model.action_noise = Decoder(arrays, Allowed(), replaced)(state["action_noise"])
        check_noise(model.action_noise, env.num_envs, int(np.prod(env.action_space.shape or ())))
    model._setup_model()
    for name in values.keys() - constructed:
        if name in vars(model):
            setattr(model, name, values[name])
        else:
            warnings.warn(f"The run has the attribute `{printable(name)}`, which a {cls.__name__} has not.", stacklevel=6)
    return model


def _compare(model: Any, name: str, value: Any) -> None:
    saved, given = getattr(model, f"_{name}" if name == "stats_window_size" else name), value
    if name in ("policy_kwargs", "replay_buffer_kwargs"):
        given = dict(value or {})
        saved = {key: saved[key] for key in saved if key in given or name != "policy_kwargs"}
    elif name == "target_entropy" and value == "auto" and saved == model._automatic_target_entropy:
        saved = value
    elif name == "target_entropy" and isinstance(value, str) and value != "auto":
        given = model._target_entropy(value)  # "auto_0.5" and the like are kept as the number that they mean
    elif isinstance(saved, TrainFreq):
        saved, given = (saved.frequency, saved.unit.value), (value, "step") if isinstance(value, int) else value
    if repr(_lists(saved)) != repr(_lists(given)):
        raise ValueError(
            f"`{name}` is {value!r}, but the run has {getattr(model, name, saved)!r}: `resume` goes on with what the run has; "
            "a new model with the other value can `warm_start` from it."
        )


def _lists(value: Any) -> Any:
    """With lists in the place of tuples, and keys in order."""
    if isinstance(value, dict):
        return {key: _lists(value[key]) for key in sorted(value, key=str)}
    return [_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


def _restore_environment(model: Any, checkpoint: Checkpoint) -> None:
    environments.restore(model.env, checkpoint.state["environment"], with_prefix(checkpoint.arrays, "env/"))


def finish(model: Any) -> None:
    """Put in place what `learn` has set up again, where the first rollout begins.

    :raises ValueError: environments that are built differently, or a callback that lacks an object which it had
    """
    resumption = model._runtime.resumption
    checkpoint, rules = resumption.checkpoint, Allowed()
    state, arrays = checkpoint.state, checkpoint.arrays
    if "obstacle" not in state["environment"]:
        model.env.reset()
    try:
        if "obstacle" not in state["environment"]:
            _restore_environment(model, checkpoint)
        if model.action_noise is not None:
            Decoder(arrays, rules, resumption.custom_objects)(state["action_noise"], model.action_noise)
        restore_callbacks(model._runtime.callback, state["callbacks"], arrays, resumption.custom_objects)
        logged = Decoder(arrays)(state["logger"])
        check_logged(logged)
        for name, values in logged.items():
            getattr(model.logger, name).update(values)
        require(type(state["dumped"]) is bool, "it does not say whether logs were written")
        model._runtime.dumped = state["dumped"]
        generator = Decoder(arrays)(state["space"], model.action_space._np_random)
        require(generator is None or isinstance(generator, np.random.Generator), "the action space has no generator")
        model.action_space._np_random = generator
        _restore_generators(Decoder(arrays)(state["generators"]), model)
        if resumption.seed is not None:
            set_random_seed(resumption.seed)
            model.action_space.seed(resumption.seed)
    except Exception as problem:  # all of it is about what is in the files, and what of it has a place here
        raise ValueError(describe_failure(checkpoint, problem)) from problem
    model._runtime.resumption = None


def describe_failure(checkpoint: Checkpoint, problem: Exception) -> str:
    known = isinstance(problem, (Damage, Refusal))
    reason = printable(problem if known else f"{type(problem).__name__}: {problem}")
    return f"The run in {str(checkpoint.path)!r} cannot go on here: {reason}."


def is_about_state(error: Exception) -> bool:
    """Whether an environment has failed as it would in a state that it cannot be in."""
    if isinstance(error.__cause__, (EOFError, ConnectionError)):  # in another process, which has ended
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_environment = any(isinstance(frame.f_locals.get("self"), (VecEnv, gym.Env)) for frame in frames)
    return in_environment and not isinstance(error, (ValueError, OSError, EOFError, TrainingDivergedError))


def _restore_generators(states: Mapping[str, Any], model: Any) -> None:
    generators.set_python(random, states["python"])
    generators.set_legacy(np.random, states["numpy"])
    generators.set_torch(states["torch"])
    if model.device.type == "cuda" and len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all(states["cuda"])
