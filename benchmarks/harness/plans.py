"""What is to be run: variants, tasks, seeds and steps, from the command line or a YAML file.

output: docs/returns-mujoco.csv       # optional: --output says it, too
runs:                                 # groups; each is the product of its variants, tasks and seeds
  - variants:
      - SoftAC
      - {name: half the entropy, base: SoftAC, set: {target_entropy: auto_0.5}}
    tasks: [HalfCheetah-v5, Hopper-v5]
    seeds: 5                          # 0 to 4, or a list
    steps: 100_000
    set: {learning_starts: 5000}      # optional, as all that follows: settings of all variants of this package
    zoo: true                         # settings from the hyperparameter files
    points: 10                        # evaluations during training
    episodes: 10                      # of the last evaluation
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml

from harness.variants import OURS, VARIANTS, check_variant, settings_of
from sb3_softac.arguments.checks import check_count, check_flag, refuse

#: an algorithm, its variant, task, steps, seed and settings: what tells a run from another
Key = tuple[str, str, str, int, int, str]


def canonical(settings: Any) -> str:
    """Settings as one text, whatever their order."""
    return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True)
class Run:
    """One training.

    :param variant: what it is called in tables
    :param base: the variant that it is, or that it changes
    :param env: task
    :param seed: of everything that is drawn
    :param steps: environment steps
    :param options: settings beside those of ``base``
    :param zoo: whether it begins with the settings of the hyperparameter file
    :param points: evaluations during training
    :param episodes: of the last evaluation
    """

    variant: str
    base: str
    env: str
    seed: int
    steps: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    zoo: bool = False
    points: int = 10
    episodes: int = 10

    @property
    def algorithm(self) -> Any:
        return VARIANTS[self.base][0]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments."""
        return settings_of(self.base, self.env, self.zoo, self.options)

    @cached_property
    def key(self) -> Key:
        written = canonical(json.loads(json.dumps(self.settings)))
        return (self.algorithm.__name__, self.variant, self.env, self.steps, self.seed, written)

    @property
    def id(self) -> str:
        """A short text for it, which names files."""
        return hashlib.sha256(json.dumps(self.key).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.variant}, {self.env}, seed {self.seed}"


def as_dict(run: Run) -> dict[str, Any]:
    """What a :class:`Run` is made of, as JSON has it."""
    return asdict(run)


def from_dict(fields: dict[str, Any]) -> Run:
    return Run(**fields)


@dataclass(frozen=True)
class Plan:
    """Runs, and where their rows go."""

    runs: list[Run]
    output: Path | None = None

    def chosen(self, envs: list[str] | None, variants: list[str] | None, seeds: list[int] | None) -> "Plan":
        """Those of some tasks, variants and seeds.

        :raises ValueError: the plan has none of them
        """
        runs = self.runs
        choices: tuple[tuple[str, str, Any], ...]
        choices = (("env", "--env", envs), ("variant", "--variants", variants), ("seed", "--seeds", seeds))
        for attribute, option, wanted in choices:
            there = list(dict.fromkeys(getattr(run, attribute) for run in self.runs))
            for value in wanted or []:
                if value not in there:
                    refuse(option, value, f"one of those in the plan: {', '.join(map(str, there))}")
            runs = [run for run in runs if not wanted or getattr(run, attribute) in wanted]
        return Plan(runs, self.output)


ALLOWED: dict[str, tuple[str, ...]] = {
    "the plan": ("output", "runs"),
    "a group of runs": ("variants", "tasks", "seeds", "steps", "set", "zoo", "points", "episodes"),
    "a variant": ("name", "base", "set"),
}


def _check_keys(where: str, given: Any, what: str, needed: Iterable[str]) -> None:
    allowed = ALLOWED[what]
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {what} is {given!r}, but it must have {', '.join(allowed)}.")
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"{where}: {what} has the key {unknown[0]!r}, but it may have only {', '.join(allowed)}.")
    for key in needed:
        if key not in given:
            raise ValueError(f"{where}: {what} has no key {key!r}, which it needs.")


def _list(where: str, name: str, value: Any, kinds: Any) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(part, kinds) for part in value):
        refuse(f"{where}: {name}", value, "a list that is not empty")
    return value


def _options(where: str, given: Any) -> dict[str, Any]:
    """Settings that are JSON, as rows hold them."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        refuse(f"{where}: set", given, "settings by their names")
    try:
        json.dumps(given)
    except TypeError:
        refuse(f"{where}: set", given, "settings of texts, numbers, lists and the like")
    return dict(given)


def _named(where: str, entry: Any) -> tuple[str, str, dict[str, Any]]:
    """Name, base and settings of a variant as a plan has it."""
    if isinstance(entry, str):
        entry = {"name": entry, "base": entry}
    _check_keys(where, entry, "a variant", ("name", "base"))
    name, base, options = entry["name"], entry["base"], _options(where, entry.get("set"))
    for key, value in (("name", name), ("base", base)):
        if not isinstance(value, str) or not value.isprintable():
            refuse(f"{where}: {key} of a variant", value, "a text in one line")
    check_variant(base)
    if name != base and name in VARIANTS:
        refuse(f"{where}: name", name, f"another one, because it is that of a variant which is not {base!r}")
    if options and (name == base or VARIANTS[base][0] not in OURS):
        raise ValueError(f"{where}: {name!r} has settings, so it needs a name of its own, and a base that is of this package.")
    return name, base, options


def group(where: str, given: Any) -> list[Run]:
    """The runs of a group.

    :param where: whose it is, for errors
    :param given: its keys and values
    :raises ValueError: unknown keys, or values that make no runs
    """
    _check_keys(where, given, "a group of runs", ("variants", "tasks", "seeds", "steps"))
    seeds = given["seeds"]
    seeds = list(range(check_count(f"{where}: seeds", seeds, 1))) if not isinstance(seeds, list) else seeds
    seeds = [check_count(f"{where}: seeds", seed, 0) for seed in _list(where, "seeds", seeds, int)]
    counts = {name: check_count(f"{where}: {name}", given.get(name, 10), 1) for name in ("points", "episodes")}
    steps = check_count(f"{where}: steps", given["steps"], counts["points"])
    check_flag(f"{where}: zoo", given.get("zoo", False))
    shared = _options(where, given.get("set"))
    variants = [_named(where, entry) for entry in _list(where, "variants", given["variants"], (str, dict))]
    return [
        Run(name, base, env, seed, steps, {**shared, **options}, bool(given.get("zoo", False)), **counts)
        for seed in seeds
        for env in _list(where, "tasks", given["tasks"], str)
        for name, base, options in variants
    ]


def read_plan(path: Path) -> Plan:
    """A plan out of a file.

    :raises ValueError: it cannot be read, has unknown keys, or the same run twice with other settings
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The plan {str(path)!r} cannot be read: {' '.join(str(error).split())}") from None
    _check_keys(str(path), content, "the plan", ("runs",))
    groups = _list(str(path), "runs", content["runs"], object)
    runs = {run.key: run for given in groups for run in group(str(path), given)}
    seen: set[tuple[Any, ...]] = set()
    for run in runs.values():
        if (run.variant, run.env, run.steps, run.seed) in seen:
            raise ValueError(f"{path}: {run} is there twice with other settings: give one of the variants another name.")
        seen.add((run.variant, run.env, run.steps, run.seed))
    output = content.get("output")
    if output is not None and not isinstance(output, str):
        refuse(f"{path}: output", output, "the name of a CSV file")
    return Plan(list(runs.values()), Path(output) if output else None)


def check_tasks(envs: Iterable[str]) -> None:
    """:raises ValueError: a task cannot be made"""
    for env in envs:
        try:
            gym.make(env).close()
        except Exception as error:  # of whatever the task is made of
            reason = " ".join(str(error).split())
            raise ValueError(
                f"The task {env!r} cannot be made, and no run has begun: {reason} (The extras `mujoco` and `box2d` install "
                "tasks.)"
            ) from None


def preflight(runs: Iterable[Run]) -> None:
    """Make every model of a plan once, which trains nothing.

    :raises ValueError: a task that is not installed, or settings that an algorithm refuses
    """
    check_tasks(dict.fromkeys(run.env for run in runs))
    for run in {run.key[:3] + run.key[5:]: run for run in runs}.values():
        try:
            run.algorithm("MlpPolicy", run.env, device="cpu", **run.settings | {"buffer_size": 1000})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{run.variant} on {run.env} cannot be made, and no run has begun: {error}") from None
