"""The options of a run: RL Zoo's config.yml and args.yml, or the file that the model was saved to. Nothing in them is run."""

import ast
import inspect
import json
import math
import zipfile
from collections.abc import Mapping
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


def read_yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    """A mapping that RL Zoo has written; empty if it cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        loaded = yaml.load(path.read_text(errors="replace"), Loader=_Loader)  # a SafeLoader
        if not isinstance(loaded, Mapping):
            raise ValueError("it holds no options")
    except (OSError, ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        notes.append(f"{path.name} could not be read ({type(error).__name__}): settings may be missing.")
        return {}
    return {str(key): value for key, value in loaded.items()}


def defaults_of(algorithm: str | None) -> dict[str, Any] | None:
    """Default of each option of an algorithm; None if its class is not known here."""
    known = CLASSES.get((algorithm or "").upper())
    if known is None:
        return None
    parameters = inspect.signature(known.__init__).parameters
    return {name: entry.default for name, entry in parameters.items() if name not in (*NO_OPTIONS, "self")}


def of_zoo(folder: Path, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Hyperparameters and command line of a run of RL Zoo; None if it was none.

    :param folder: of the run, which holds a folder with ``config.yml`` and ``args.yml``
    """
    configs = [path for path in (folder / "config.yml", *sorted(folder.glob("*/config.yml"))) if path.is_file()]
    if not configs:
        return None
    config = read_yaml(configs[0], notes)
    arguments = configs[0].with_name("args.yml")
    for name, value in config.items():
        if isinstance(value, str) and ("kwargs" in name or name in ("train_freq", "normalize", "callback", "env_wrapper")):
            config[name] = literal(value)
    return config, read_yaml(arguments, notes) if arguments.is_file() else {}


def of_model(folder: Path) -> tuple[dict[str, Any], str | None, str] | None:
    """Plain attributes, algorithm and file name of the newest model that lies in a folder; None if there is none."""
    files = [path for path in folder.glob("*.zip") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("data").file_size > LARGEST:
                    continue
                data = json.loads(archive.read("data"))
            policy = data["policy_class"]
            where = f"{policy.get('__module__', '')} {policy.get(':type:', '')}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile, EOFError):
            continue
        algorithm = next((name for module, name in MODULES.items() if module in where), None)
        plain = {name: value for name, value in data.items() if not (isinstance(value, dict) and ":serialized:" in value)}
        plain["_minus_dimensions"] = _minus_dimensions(data.get("action_space"))
        return plain, algorithm, path.name
    return None


def _minus_dimensions(space: Any) -> float | None:
    """-A, the automatic target entropy of ``Box`` actions, by what a file says of their space."""
    shape = space.get("_shape") if isinstance(space, Mapping) else None
    sizes = isinstance(shape, list) and all(isinstance(size, int) for size in shape)
    return -float(math.prod(shape)) if sizes and shape else None


def read_settings(
    folder: Path, algorithm: str | None, notes: list[str]
) -> tuple[Settings, str | None, int | None, dict[str, Any]]:
    """Settings, algorithm, seed and RL Zoo's command line of a run."""
    zoo, model = of_zoo(folder, notes), of_model(folder)
    arguments = zoo[1] if zoo else {}
    if "algo" in arguments:
        algorithm = str(arguments["algo"]).upper()
        algorithm = NAMES.get(algorithm, algorithm)
    elif model is not None:
        algorithm = model[1] or algorithm
    seed = arguments.get("seed", model[0].get("seed") if model else None)
    seed = seed if isinstance(seed, int) and seed >= 0 else None
    defaults = defaults_of(algorithm)
    if zoo is not None:
        return Settings(zoo[0], defaults, "config.yml"), algorithm, seed, arguments
    if model is not None and defaults is not None:
        given = {name: value for name, value in model[0].items() if name in defaults}
        return Settings(_without_resolved(given, model[0]), defaults, model[2]), algorithm, seed, arguments
    return Settings({}, defaults, None), algorithm, seed, arguments


def _without_resolved(given: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was automatic when it was set, and what SB3 adds: a model file holds what an option stood for."""
    automatic = data.get("_automatic_target_entropy", data.get("_minus_dimensions"))
    values = dict(given)
    if values.get("target_entropy") == automatic:
        values.pop("target_entropy", None)
    if values.get("actor_q") == "min":
        values.pop("actor_q")
    kwargs = values.get("policy_kwargs")
    if isinstance(kwargs, dict):
        values["policy_kwargs"] = {name: value for name, value in kwargs.items() if name != "use_sde"}
    return {name: value for name, value in values.items() if not (name.endswith("_kwargs") and value == {})}
