"""What callbacks have counted and remembered: out of them, and into new ones of the same classes."""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_softac.files import environments
from sb3_softac.files.allowed import Allowed
from sb3_softac.files.checking import check_alike
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.environments import captured, with_prefix
from sb3_softac.files.plain import Arrays, Encoder, Form, UnsavableError, is_place, kind_of
from sb3_softac.files.unpickling import Refusal

#: what has a state of its own: a callback that holds it does not bring it into its own
LIVING = (BaseAlgorithm, BaseBuffer, BaseCallback, VecEnv, gym.Env)
#: attributes of callbacks that the model gives them
OF_CALLBACKS = ("model", "locals", "globals", "parent", "training_env", "verbose", "logger", "eval_env")


def callbacks_below(root: BaseCallback | None) -> Iterator[BaseCallback]:
    """A callback and all callbacks that it calls, in order."""
    if root is None:
        return
    yield root
    for value in vars(root).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, BaseCallback) and part is not getattr(root, "parent", None):
                yield from callbacks_below(part)


def _keys(root: BaseCallback | None) -> Iterator[tuple[str, BaseCallback]]:
    """Callbacks by their class, and by their place among those of the same one."""
    counts: dict[str, int] = {}
    for callback in callbacks_below(root):
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield f"{name}.{counts[name]}", callback


def _settings_of(callback: BaseCallback) -> set[str]:
    """What its constructors take: the new one has its own."""
    names: set[str] = set()
    for cls in type(callback).__mro__:
        code = getattr(vars(cls).get("__init__"), "__code__", None)
        names |= set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) if code else set()
    return names


class _OfCallbacks(Encoder):
    """Refuses what lives beside a callback, before it is copied."""

    def _object(self, value: Any, path: str, depth: int) -> Form:
        if isinstance(value, LIVING):
            raise UnsavableError(path, kind_of(value))
        return super()._object(value, path, depth)


def state_of_callbacks(root: BaseCallback | None, arrays: Arrays) -> dict[str, Form]:
    """Of a callback and all below it, by their keys, what can be written down.

    :param arrays: where arrays go
    """
    forms = {}
    for key, callback in _keys(root):
        skip = {*OF_CALLBACKS, *_settings_of(callback)}
        form: dict[str, Form] = {}
        for name, value in vars(callback).items():
            if name in skip or is_place(name, value):
                continue
            own: Arrays = {}
            try:
                form[name] = _OfCallbacks(own, f"{key}/{name}/", leave_out_code=True)(value, name)
            except UnsavableError:
                continue  # a progress bar, an open file
            arrays |= own
        env = getattr(callback, "eval_env", None)
        if isinstance(env, VecEnv):
            form["eval_env"] = captured(env, arrays, f"{key}/")
        forms[key] = form
    return forms


def restore_callbacks(
    root: BaseCallback | None, forms: Mapping[str, Form], arrays: Arrays, custom_objects: dict[str, Any]
) -> None:
    """Give callbacks what :func:`state_of_callbacks` has taken, but for what their constructors take.

    :param custom_objects: what the caller has for names in the files
    :raises Refusal: an object that a callback lacks
    """
    for key, callback in _keys(root):
        form = dict(forms.get(key, {}))
        env, there = form.pop("eval_env", None), getattr(callback, "eval_env", None)
        before = dict(vars(callback))
        skip = {*OF_CALLBACKS, *_settings_of(callback)}
        for name, value in form.items():
            try:  # each by itself, as it was written
                Decoder(arrays, Allowed(), custom_objects, skip=skip).fill(callback, {name: value})
            except Refusal as refusal:
                raise Refusal(
                    f"`{name}` of {type(callback).__name__} was {refusal}, and no such object is there now: make it in the "
                    "constructor, and it gets its state"
                ) from None
        if type(callback).__module__.startswith(("stable_baselines3.", "sb3_softac.")):
            check_alike(key, before, vars(callback))
        if env is not None and isinstance(there, VecEnv):
            there.reset()
            environments.restore(there, env, with_prefix(arrays, f"{key}/"))
