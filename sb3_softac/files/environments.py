"""What environments are in the middle of: taken out of them, and put into new ones.

Of each environment in each layer: its attributes, where all of them are plain values or objects of such, as in classic
control; the whole of MuJoCo's state; or what the environment says itself, by two methods, ``get_state()``, which returns plain
values and arrays, and ``set_state(state)``. Environments in other processes are asked there.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from sb3_softac.files.checking import check_alike, check_vector, is_finite
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.plain import Arrays, Encoder, Form, UnsavableError, kind_of
from sb3_softac.files.rebuilding import require

#: attributes that are no state: what other entries hold, how windows are drawn, what was passed to constructors, when a file
#: of times was begun
NO_STATE = (
    *("env", "envs", "venv", "metadata", "spec", "class_attributes", "reset_infos", "buf_infos", "actions"),
    *("remotes", "work_remotes", "processes", "waiting", "closed", "results_writer", "render_mode"),
    *("screen", "clock", "surf", "viewer", "window", "isopen", "font", "mujoco_renderer", "renderer", "_saved_kwargs"),
    *("sb3_softac_state", "_cached_spec", "num_envs", "keys", "t_start"),
)
#: those among them that earlier checkpoints hold
NO_LONGER = ("t_start",)
#: Gymnasium's spaces: their generators are state, their bounds are not
SPACES = ("Box", "Discrete", "MultiBinary", "MultiDiscrete", "Text", "Dict", "Tuple", "Sequence", "Graph", "OneOf")
#: parts of MuJoCo's model that no environment changes, and that may be large
LARGE = ("tex_", "mesh_", "skin_", "hfield_", "flex_", "name", "text", "path", "bvh_", "oct_")
#: parts of MuJoCo's data that are as long as there are contacts or constraints; each step computes them
PER_CONTACT = (
    "efc_",
    "iefc_",
    "contact",
    "island",
    "dof_island",
    "map_",
    "tree_",
    "ifrc",
    "iM_",
    "iacc",
    "bvh_",
    "moment_",
    "flexedge",
)


def layers_of(env: Any) -> Iterator[Any]:
    """An environment, from its outermost wrapper to itself."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _numbers_in(value: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a MuJoCo object that are state.

    Whole numbers are addresses in other arrays: MuJoCo knows them, and would read anywhere if they were others.
    """
    skip = LARGE if type(value).__name__ == "MjModel" else PER_CONTACT
    found = {}
    for name in dir(value):
        if not name.startswith(("_", *skip)):
            part = getattr(value, name, None)
            if isinstance(part, np.ndarray) and (part.dtype.kind == "f" or name == "eq_active") and part.size:
                found[name] = part
    return found


def _parts_of_space(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """The spaces that a space is made of."""
    inner = vars(space).get("spaces", ())
    below = [*vars(space).values(), *(inner.values() if isinstance(inner, dict) else inner)]
    return [part for part in below if isinstance(part, gym.Space)]


def _form_of_space(encoder: Encoder, space: Any) -> Form:
    if not isinstance(space, gym.Space):
        raise UnsavableError("", kind_of(space))
    return {"!": "space", "is": encoder(space._np_random), "parts": [encoder(part) for part in _parts_of_space(space)]}


def _fill_space(decoder: Decoder, form: Form, present: Any) -> Any:
    require(isinstance(present, gym.Space), "there is no space where one was")
    parts = _parts_of_space(present)
    require(type(form["parts"]) is list and len(form["parts"]) == len(parts), "a space is another one")
    generator = decoder(form["is"], present._np_random)
    require(generator is None or isinstance(generator, np.random.Generator), "a space has no random generator")
    present._np_random = generator
    for part, own in zip(form["parts"], parts, strict=True):
        decoder(part, own)
    return present


def _own_state(layer: Any) -> bool:
    """Whether an environment says by itself what it is in the middle of."""
    return all(callable(getattr(type(layer), name, None)) for name in ("get_state", "set_state"))


def _encoder(arrays: Arrays, prefix: str = "env") -> Encoder:
    encoder = Encoder(arrays, prefix, NO_STATE, leave_out_code=True)
    encoder.others["EnvSpec"] = lambda _: {"!": "left"}
    encoder.others["MjModel"] = lambda model: {"!": "mujoco", "is": encoder(_numbers_in(model))}
    encoder.others["MjData"] = lambda data: {"!": "mujoco", "is": encoder(_numbers_in(data)), "time": data.time}
    encoder.others |= dict.fromkeys(SPACES, functools.partial(_form_of_space, encoder))
    return encoder


def _fill_mujoco(decoder: Decoder, form: Form, present: Any) -> Any:
    require(present is not None, "there is no MuJoCo where it was")
    require(type(present).__name__ in ("MjModel", "MjData"), "there is no MuJoCo where it was")
    there = _numbers_in(present)
    values = decoder(form["is"], there)  # writes into MuJoCo's own memory
    require(type(values) is dict, "MuJoCo's model is another one")
    for name, value in values.items():
        require(value is there.get(name) and is_finite(value), "MuJoCo's model is another one")
    if "time" in form:
        require(type(form["time"]) in (int, float), "MuJoCo has no time")
        present.time = form["time"]
    return present


def _decoder(arrays: Arrays) -> Decoder:
    decoder = Decoder(arrays, skip=NO_STATE)
    decoder.others["left"] = lambda _, present: present
    decoder.others["mujoco"] = functools.partial(_fill_mujoco, decoder)
    decoder.others["space"] = functools.partial(_fill_space, decoder)
    return decoder


def _name_of(layer: Any) -> str:
    spec = getattr(layer, "spec", None)
    return spec.id if isinstance(spec, EnvSpec) else type(layer).__name__


def get_state(env: Any) -> tuple[list[Form], Arrays]:
    """The state of one environment, outermost wrapper first.

    :raises UnsavableError: it has something that cannot be written down
    """
    arrays: Arrays = {}
    encoder, states = _encoder(arrays), []
    for layer in layers_of(env):
        if _own_state(layer) and not hasattr(layer, "mujoco_renderer"):  # MuJoCo's `set_state` is another one
            states.append(encoder(layer.get_state(), "get_state()"))
            break
        states.append({"class": type(layer).__name__, "is": encoder.attributes(vars(layer), "")})
    return states, arrays


def set_state(env: Any, states: list[Form], arrays: Arrays) -> None:
    """Put a state into an environment that is built alike, and was reset.

    :raises Damage: it is built differently
    """
    decoder, n_states = _decoder(arrays), 0
    for state, layer in zip(states, layers_of(env), strict=False):
        n_states += 1
        if _own_state(layer) and not hasattr(layer, "mujoco_renderer"):
            layer.set_state(decoder(state))
            break
        _fill_layer(decoder, layer, state)
    else:
        require(n_states == len(list(layers_of(env))), "it has other wrappers")
    require(n_states == len(states), "it has other wrappers")


def _fill_layer(decoder: Decoder, layer: Any, state: Form) -> None:
    """One wrapper, or what is in it; what those of SB3 are made of is known."""
    whose = type(layer).__name__
    require(type(state) is dict and state.get("class") == whose, f"a wrapper is now {whose}")
    if "is" not in state:  # it could not say what it is in the middle of
        return
    before, forms = dict(vars(layer)), state["is"]
    decoder.fill(layer, {name: forms[name] for name in forms if name not in NO_LONGER} if type(forms) is dict else forms)
    if type(layer).__module__.startswith("stable_baselines3."):
        check_alike(whose, before, vars(layer))
        check_vector(layer)


def exchange(env: Any, given: tuple[list[Form], Arrays] | None = None) -> Any:
    """Give the state of an environment, or what stands in the way, in words; or take one."""
    try:
        return get_state(env) if given is None else set_state(env, *given)
    except UnsavableError as error:
        return f"{_name_of(env)} has {error.what} in `{error.path}`"
    except Exception as error:  # in another process it would end that one
        return f"{_name_of(env)}: {type(error).__name__}: {error}"


class _Reaching(type):
    """An environment in another process is only asked for attributes by name, and whether it is wrapped in a class."""

    def __instancecheck__(cls, env: Any) -> bool:
        vars(env)["sb3_softac_state"] = functools.partial(exchange, env)
        return True


class Reachable(metaclass=_Reaching):
    """Whoever asks whether an environment is wrapped in this gives it an attribute to exchange its state by."""


def vec_layers(env: VecEnv | None) -> Iterator[Any]:
    """A vector of environments, from its outermost wrapper to itself."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    if env is not None:
        yield env


def _ask(env: Any, given: list[Any] | None = None) -> list[Any]:
    """What :func:`exchange` answers for each environment of a vector."""
    if isinstance(env, DummyVecEnv):
        return [exchange(each, None if given is None else given[i]) for i, each in enumerate(env.envs)]
    if not isinstance(env, SubprocVecEnv):
        return [f"its environments are in {kind_of(env)}"] * env.num_envs
    anything: Any = Reachable
    if not all(env.env_is_wrapped(anything)):
        return ["it is in another process without any wrapper: in a Monitor it could be asked"] * env.num_envs
    if given is None:
        return env.env_method("sb3_softac_state")
    return [env.env_method("sb3_softac_state", state, indices=i)[0] for i, state in enumerate(given)]


def capture(env: VecEnv) -> tuple[Form, Arrays]:
    """What a vector of environments is in the middle of.

    :return: a form with ``"obstacle"``, a sentence, where a layer or an environment cannot say it; then only the wrappers of
        the vector are in it, as statistics of observations are, and of these only those that can
    """
    arrays: Arrays = {}
    *above, vector = vec_layers(env)
    layers = [_state_of_layer(layer, arrays, f"layer{i}.") for i, layer in enumerate(above)]
    of_vector = _state_of_layer(vector, arrays, "vector.")
    states = _ask(vector)
    obstacles = [layer["obstacle"] for layer in (*layers, of_vector) if "obstacle" in layer]
    obstacles += [state for state in states if isinstance(state, str)]
    if obstacles:
        return {"layers": layers, "obstacle": obstacles[0]}, arrays
    each = []
    for index, (forms, own) in enumerate(states):
        arrays |= {f"{index}.{name}": value for name, value in own.items()}
        each.append(forms)
    return {"layers": layers, "vector": of_vector, "environments": each}, arrays


def _state_of_layer(layer: Any, arrays: Arrays, prefix: str) -> dict[str, Form]:
    """The attributes of a vector or of a wrapper around it, or what stands in the way."""
    own: Arrays = {}
    form: dict[str, Form] = {"class": type(layer).__name__}
    try:
        form["is"] = _encoder(own, prefix).attributes(vars(layer), "")
    except UnsavableError as error:
        return form | {"obstacle": f"{type(layer).__name__} has {error.what} in `{error.path}`"}
    arrays |= own
    return form


def restore(env: VecEnv, form: Form, arrays: Arrays) -> str | None:
    """Put back what :func:`capture` has taken.

    :param env: environments that are built alike, and were reset
    :return: why they begin new episodes, or None
    :raises Damage: they are built differently
    """
    *above, vector = vec_layers(env)
    require(type(form) is dict, "it has no environments")
    layers, each = form.get("layers"), form.get("environments")
    require(type(layers) is list and len(layers) == len(above), "the environment has other wrappers")
    for layer, state in zip(above, layers, strict=True):
        _fill_layer(_decoder(arrays), layer, state)
    if "obstacle" in form:
        return str(form["obstacle"])
    _fill_layer(_decoder(arrays), vector, form.get("vector"))
    is_list = type(each) is list and all(type(states) is list for states in each)
    require(is_list and len(each) == env.num_envs, "there were other environments")
    given = [
        (states, {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{index}.")})
        for index, states in enumerate(each)
    ]
    for problem in _ask(vector, given):
        require(problem is None, problem)
    return None


def captured(env: VecEnv, arrays: Arrays, prefix: str) -> Form:
    """As :func:`capture`, with its arrays among others, under names with a prefix."""
    form, own = capture(env)
    arrays.update({f"{prefix}{name}": value for name, value in own.items()})
    return form


def with_prefix(arrays: Mapping[str, Any], prefix: str) -> Arrays:
    """Those arrays again, under the names that they had."""
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
