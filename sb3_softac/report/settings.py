"""The options of a run: RL Zoo's config.yml and args.yml, or the file that the model was saved to. Nothing in them is run."""

import ast
import base64
import inspect
import json
import math
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stable_baselines3
import yaml

from sb3_softac.report.data import Settings
from sb3_softac.soft_ac import SoftAC
from sb3_softac.soft_ql import SoftQL

#: algorithms by the names that RL Zoo has for them, in upper case
CLASSES: dict[str, Any] = {"SOFTAC": SoftAC, "SOFTQL": SoftQL} | {
    name: getattr(stable_baselines3, name) for name in ("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3")
}
NAMES = {"SOFTAC": "SoftAC", "SOFTQL": "SoftQL", "CROSSQ": "CrossQ"}
#: arguments that are no options of the algorithm
NO_OPTIONS = ("policy", "env", "verbose", "seed", "device", "tensorboard_log", "_init_setup_model", "stats_window_size")
#: files that are larger are none of these
LARGEST = 50 << 20
#: no config has so many values; aliases make billions of them out of a few lines
MOST_VALUES = 100_000
#: options whose values in files are always objects, whatever was asked for
RESOLVED = {"replay_buffer_class"}
#: parts of module names, in files of models, by which an algorithm is known
MODULES = {
    "soft_ql_policy": "SoftQL",
    "sb3_softac.": "SoftAC",
    **{f"stable_baselines3.{name}.": name.upper() for name in ("sac", "td3", "dqn")},
    "sb3_contrib.tqc.": "TQC",
    "sb3_contrib.crossq.": "CrossQ",
}


class _Loader(yaml.SafeLoader):
    """Plain values, ordered dicts and tuples; whatever else Python would build is text."""


def _python_object(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        values = loader.construct_sequence(node, deep=True)
        if suffix == "object/apply:collections.OrderedDict":
            return dict(values[0]) if values else {}
        return tuple(values) if suffix == "tuple" else f"{suffix.rpartition(':')[2]}{tuple(values)}"
    return suffix.rpartition(":")[2]


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _python_object)


def literal(text: str) -> Any:
    """A value that is written in Python, with ``dict(a=1)`` too; what is no literal stays as text."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_literal(key): _literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        values = [_literal(value) for value in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _check_size(root: yaml.Node | None) -> None:
    """:raises ValueError: too many values, where those behind an alias count each time"""
    nodes, n_values = [root] if root is not None else [], 0
    while nodes:
        node = nodes.pop()
        n_values += 1
        if n_values > MOST_VALUES:
            raise ValueError("it is too large")
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def read_yaml(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A mapping that RL Zoo has written; None if it cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        loader = _Loader(path.read_text(errors="replace"))
        node = loader.get_single_node()
        _check_size(node)
        loaded = None if node is None else loader.construct_document(node)
        if not isinstance(loaded, Mapping):
            raise ValueError("it holds no options")
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        notes.append(f"{path.name} could not be read ({type(error).__name__}): what it says is not known.")
        return None
    return {str(key): value for key, value in loaded.items()}


def defaults_of(algorithm: str | None) -> dict[str, Any] | None:
    """Default of each option of an algorithm; None if its class is not known here."""
    known = CLASSES.get((algorithm or "").upper())
    if known is None:
        return None
    parameters = inspect.signature(known.__init__).parameters
    return {name: entry.default for name, entry in parameters.items() if name not in (*NO_OPTIONS, "self")}


def of_zoo(folder: Path, notes: list[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Hyperparameters of a run of RL Zoo, None if there are none or they cannot be read; and its command line.

    :param folder: of the run, which holds a folder with ``config.yml`` and ``args.yml``
    """
    configs = [path for path in (folder / "config.yml", *sorted(folder.glob("*/config.yml"))) if path.is_file()]
    if not configs:
        return None, {}
    config = read_yaml(configs[0], notes)
    arguments = configs[0].with_name("args.yml")
    for name, value in (config or {}).items():
        if isinstance(value, str) and ("kwargs" in name or name in ("train_freq", "normalize", "callback", "env_wrapper")):
            config[name] = literal(value)  # type: ignore[index]  # it is not None, or has no items
    return config, (read_yaml(arguments, notes) if arguments.is_file() else None) or {}


@dataclass(frozen=True)
class Saved:
    """What a model file says.

    :param attributes: plain ones
    :param unread: names of the others
    """

    attributes: dict[str, Any]
    unread: frozenset[str]
    algorithm: str | None
    file: str


def _algorithm(policy: Any, attributes: Mapping[str, Any]) -> str | None:
    where = f"{policy.get('__module__', '')} {policy.get(':type:', '')}"
    named = next((name for module, name in MODULES.items() if module in where), None)
    if named is None and "stable_baselines3.common.policies" in where and "gae_lambda" in attributes:
        if {"n_epochs", "clip_range_vf"} <= {*attributes}:
            return "PPO"
        return "A2C" if not {"batch_size", "cg_max_steps"} & {*attributes} else None
    return named


def _train_freq(pickled: str) -> Any:
    """What ``TrainFreq`` in a model file says, an int or (int, unit); None if it is something else. Nothing is unpickled."""
    try:
        found = list(pickletools.genops(base64.b64decode(pickled)))
    except (ValueError, TypeError, IndexError, UnicodeError):
        return None
    counts = [argument for code, argument, _ in found if code.name in ("BININT", "BININT1", "BININT2")]
    units = [argument for _, argument, _ in found if argument in ("step", "episode")]
    if len(counts) != 1 or len(units) != 1:
        return None
    return counts[0] if units == ["step"] else (counts[0], units[0])


def of_model(folder: Path) -> Saved | None:
    """What the newest model that lies in a folder says; None if there is none."""
    files = [path for path in folder.glob("*.zip") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("data").file_size > LARGEST:
                    continue
                data = json.loads(archive.read("data"))
            algorithm = _algorithm(data["policy_class"], data)
        except Exception:  # whatever is raised by a file that is damaged, encrypted, or none of a model
            continue
        pickled = {name for name, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
        frequency = _train_freq(data["train_freq"][":serialized:"]) if "train_freq" in pickled else None
        plain = {name: value for name, value in data.items() if name not in pickled}
        plain |= {} if frequency is None else {"train_freq": frequency}
        plain["_n_dimensions"] = _n_dimensions(data.get("action_space"))
        return Saved(plain, frozenset(pickled - {*plain}), algorithm, path.name)
    return None


def _n_dimensions(space: Any) -> int | None:
    """A, how many numbers an action of ``Box`` has, by what a file says of the space."""
    shape = space.get("_shape") if isinstance(space, Mapping) else None
    sizes = isinstance(shape, list) and all(isinstance(size, int) for size in shape)
    return math.prod(shape) if sizes and shape else None


def read_settings(
    folder: Path, algorithm: str | None, notes: list[str]
) -> tuple[Settings, str | None, int | None, dict[str, Any]]:
    """Settings, algorithm, seed and RL Zoo's command line of a run."""
    (config, arguments), model = of_zoo(folder, notes), of_model(folder)
    if "algo" in arguments:
        algorithm = str(arguments["algo"]).upper()
        algorithm = NAMES.get(algorithm, algorithm)
    elif model is not None:
        algorithm = model.algorithm or algorithm
    saved = model.attributes if model is not None else {}
    seed = arguments.get("seed", saved.get("seed"))
    seed = seed if isinstance(seed, int) and seed >= 0 else None
    defaults, n_dimensions = defaults_of(algorithm), saved.get("_n_dimensions")
    if config is not None:
        return Settings(config, defaults, "config.yml", n_dimensions=n_dimensions), algorithm, seed, arguments
    if model is not None and defaults is not None:
        given = {name: value for name, value in saved.items() if name in defaults}
        if saved.get("n_envs", 1) != 1:
            given["n_envs"] = saved["n_envs"]
        unread = (model.unread & {*defaults}) - RESOLVED
        return (
            Settings(_without_resolved(given, saved), defaults, model.file, unread, n_dimensions),
            algorithm,
            seed,
            arguments,
        )
    return Settings({}, defaults, None, n_dimensions=n_dimensions), algorithm, seed, arguments


def _without_resolved(given: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was automatic when it was set, and what SB3 adds: a model file holds what an option stood for."""
    n_dimensions = data.get("_n_dimensions")
    automatic = data.get("_automatic_target_entropy", None if n_dimensions is None else -float(n_dimensions))
    values = dict(given)
    if values.get("target_entropy") == automatic:
        values.pop("target_entropy", None)
    if values.get("actor_q") == "min":
        values.pop("actor_q")
    kwargs = values.get("policy_kwargs")
    if isinstance(kwargs, dict):
        values["policy_kwargs"] = {name: value for name, value in kwargs.items() if name != "use_sde"}
    return {name: value for name, value in values.items() if not (name.endswith("_kwargs") and value == {})}
