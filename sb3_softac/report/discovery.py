"""Folders as runs: which logs belong to one training, and which trainings belong together."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_softac.report.data import ReportError, Run
from sb3_softac.report.matching import Place, match
from sb3_softac.report.settings import NAMES, defaults_of, read_settings
from sb3_softac.report.tables import read_evaluations, read_monitor, read_progress
from sb3_softac.report.tensorboard import PATTERN, read_events

#: metrics by which an algorithm is known, the surest first
SIGNS = (
    ("train/stein_norm", "SoftQL"),
    ("train/entropy", "SoftAC"),
    ("train/ent_coef", "SAC"),
    ("train/clip_fraction", "PPO"),
    ("rollout/exploration_rate", "DQN"),
    ("train/entropy_loss", "A2C"),
)
WHAT_COUNTS = "monitor.csv, progress.csv, evaluations.npz or event files of TensorBoard"


def holds_logs(names: Sequence[str]) -> bool:
    """Whether a folder with these files is that of a run."""
    known = ("progress.csv", "evaluations.npz")
    return any(name in known or name.endswith("monitor.csv") or name.startswith("events.out.tfevents.") for name in names)


def find_folders(root: Path) -> list[Path]:
    """Folders below ``root``, itself included, that hold logs.

    :raises ReportError: there is no such folder, or it holds none
    """
    try:
        if not root.exists():
            raise ReportError(f"LOGDIR is {str(root)!r}, but there is no such folder.")
        if not root.is_dir():
            raise ReportError(f"LOGDIR is {str(root)!r}, which is a file: give the folder that it lies in.")
        next(root.iterdir(), None)
    except OSError as error:
        raise ReportError(f"LOGDIR is {str(root)!r}, which cannot be read: {error.strerror}.") from error
    found = [Path(folder) for folder, _, names in os.walk(root) if holds_logs(names)]
    if not found:
        raise ReportError(f"{str(root)!r} holds no logs: neither it nor a folder in it has {WHAT_COUNTS}.")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[Any]:
    return [[(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", piece)] for piece in path.parts]


def _monitors(folder: Path, notes: list[str]) -> list[Path]:
    """The monitor files of the environments of one run: ``monitor.csv``, or numbered; or one that has another name."""
    found = sorted(folder.glob("*monitor.csv"))
    own = [path for path in found if re.fullmatch(r"(\d+\.)?monitor\.csv", path.name)] or found[:1]
    others = [path.name for path in found if path not in own]
    if others:
        notes.append(f"{', '.join(others)} left out: only monitor.csv and numbered files are of one run.")
    return own


def read_run(folder: Path, name: str) -> Run:
    """Everything that lies in one folder.

    :raises ReportError: event files, but no TensorBoard to read them
    """
    run = Run(name, folder)
    run.episodes, run.env_id = read_monitor(_monitors(folder, run.notes), run.notes)
    if (folder / "progress.csv").is_file():
        run.metrics = read_progress(folder / "progress.csv", run.notes)
    if (folder / "evaluations.npz").is_file():
        run.evaluations = read_evaluations(folder / "evaluations.npz", run.notes)
    if not any(metric.startswith("train/") for metric in run.metrics) and any(folder.glob(PATTERN)):
        run.metrics = read_events(folder, run.notes) | run.metrics
    return run


def _complete(run: Run) -> Place:
    """Add settings, and say where RL Zoo has put the logs of TensorBoard."""
    run.settings, run.algorithm, run.seed, arguments = read_settings(run.folder, _guess(run), run.notes)
    run.env_id = str(arguments["env"]) if isinstance(arguments.get("env"), str) else run.env_id
    place = arguments.get("tensorboard_log")
    if not place or not isinstance(place, str):
        return Place(is_none="tensorboard_log" in arguments)
    bases = [Path(), *run.folder.resolve().parents] if not Path(place).is_absolute() else [Path()]
    below = f"{glob.escape(run.env_id or '*').strip('/')}/*/{PATTERN}"
    found = {path.parent.resolve(): path.parent for base in bases for path in (base / place).glob(below)}
    return Place(list(found.values()))


def _name_algorithm(run: Run) -> None:
    """By what it logs, where no file says it."""
    if run.algorithm is None:
        run.algorithm = _guess(run)
        run.settings = replace(run.settings, defaults=defaults_of(run.algorithm))


def _guess(run: Run) -> str | None:
    """The algorithm, by what it logs or by the folder that ``learn`` gives its name."""
    named = re.fullmatch(r"([A-Za-z0-9]+)_\d+", run.folder.name)
    upper = named.group(1).upper() if named else ""
    if upper and defaults_of(upper) is not None:
        return NAMES.get(upper, upper)
    return next((name for metric, name in SIGNS if metric in run.metrics), None)


def _attach(runs: Sequence[tuple[Run, Place]], tensorboards: dict[Path, Run]) -> set[Path]:
    """Give runs without metrics those of their event files; the folders of these."""
    read = {folder.resolve(): run for folder, run in tensorboards.items()}

    def logs_in(folder: Path) -> Run:
        if folder.resolve() not in read:
            read[folder.resolve()] = read_run(folder, folder.name)
        return read[folder.resolve()]

    without = [pair for pair in runs if not any(name.startswith("train/") for name in pair[0].metrics)]
    matched = match(without, list(tensorboards), logs_in)
    for run, _ in without:
        if run.folder in matched:
            source = logs_in(matched[run.folder])
            run.metrics = source.metrics | run.metrics
            run.notes += source.notes
    return {folder.resolve() for folder in matched.values()}


def _is_part(run: Run) -> bool:
    """Whether a folder holds no training of its own: evaluations, or logs of TensorBoard only."""
    return not run.episodes and not any(name.startswith("train/") for name in run.metrics)


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """The runs below the given folders.

    :raises ReportError: no logs, or event files without TensorBoard to read them
    """
    folders: dict[Path, Path] = {}
    for root in roots:
        for folder in find_folders(root):
            folders.setdefault(folder.resolve(), folder)
    names = _short_names(list(folders.values()))
    read = {folder: read_run(folder, name) for folder, name in zip(folders.values(), names, strict=True)}
    tensorboards = {folder: run for folder, run in read.items() if run.episodes is None and any(folder.glob(PATTERN))}
    monitored = [run for run in read.values() if run.folder not in tensorboards]
    attached = _attach([(run, _complete(run)) for run in monitored], tensorboards)
    others = [run for folder, run in tensorboards.items() if folder.resolve() not in attached]
    for run in others:
        _complete(run)
    runs = monitored + others
    for run in runs:
        _name_algorithm(run)
    kept = _with_evaluations(runs)
    for run in kept:
        _place_episodes(run)
    return kept


def _place_episodes(run: Run) -> None:
    """Where metrics know of far more steps than the Monitor: what it has seen.

    If they begin no earlier than its episodes can have begun, both were begun anew in the middle of the training. If not, it
    has watched one of several environments or processes, or nobody can tell.
    """
    ends = [series.steps[-1] for series in run.metrics.values() if len(series) > 0]
    if run.episodes is None or len(run.episodes) == 0 or not ends:
        return
    n_envs = max(run.episodes.n_envs, run.settings.number("n_envs") or 1)
    missing = max(ends) - run.episodes.steps[-1]
    if missing <= n_envs * run.episodes.lengths.max():  # of episodes that have not ended
        return
    is_new = min(series.steps[0] for series in run.metrics.values() if len(series) > 0) >= missing
    run.notes.append(
        f"The Monitor knows of {run.episodes.lengths.sum():,.0f} of {max(ends):,.0f} steps: "
        + (
            "its file was begun anew, and its episodes are taken for the last ones."
            if is_new
            else "it has seen a part of the training, and at which steps its episodes ended is not known."
        )
    )
    run.episodes = replace(run.episodes, before=float(missing)) if is_new else replace(run.episodes, is_whole=False)


def _with_evaluations(runs: list[Run]) -> list[Run]:
    """Let evaluations in a folder of their own belong to the run whose folder that lies in."""
    kept = []
    for run in runs:
        above = [other for other in runs if other is not run and other.folder.resolve() in run.folder.resolve().parents]
        owner = max(above, key=lambda other: len(other.folder.parts), default=None)
        if owner is None or not _is_part(run) or (owner.evaluations is not None and run.evaluations is not None):
            kept.append(run)
            continue
        owner.evaluations = owner.evaluations or run.evaluations
        owner.metrics = run.metrics | owner.metrics
        owner.notes += run.notes
    return kept


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Names of folders without what all have in common."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    parts = [folder.resolve().parts for folder in folders]
    common = len(Path(os.path.commonpath([folder.resolve() for folder in folders])).parts)
    return ["/".join(part[common:]) or part[-1] for part in parts]


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone, by a name for each group."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    members = list(groups.values())
    heads = [f"{group[0].algorithm or 'unknown algorithm'}, {group[0].env_id or 'unknown task'}" for group in members]
    labels = []
    for group, head in zip(members, heads, strict=True):
        same = [other for other, name in zip(members, heads, strict=True) if name == head]
        difference = [] if len(same) == 1 else [_difference(group, same)]
        labels.append(", ".join([*([head] if len({*heads}) > 1 or not difference else []), *difference]))
    unique = [label if labels.count(label) == 1 else f"{label} ({index + 1})" for index, label in enumerate(labels)]
    return dict(zip(unique, members, strict=True))


def _key(run: Run) -> str:
    given = {name: value for name, value in run.settings.given.items() if name != "n_timesteps"}
    if run.settings.known:
        return repr((run.algorithm, run.env_id, sorted(given.items(), key=str)))
    logged = sorted(name for name in run.metrics if name.startswith("train/"))
    return repr((run.algorithm, run.env_id, logged, str(run.folder.resolve().parent)))


def _difference(group: Sequence[Run], others: Sequence[Sequence[Run]]) -> str:
    """What sets a group apart from others of the same algorithm and task."""
    settings = group[0].settings
    if not settings.known:
        return group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more"
    given = [other[0].settings.given for other in others if other[0].settings.known]
    own = {name: value for name, (value, _) in settings.differing().items() if name != "n_timesteps"}
    names = [name for name in own if any(entry.get(name) != own[name] for entry in given)]
    text = ", ".join(f"{name}={own[name]}" for name in names[:3]) + (", …" if len(names) > 3 else "")
    return text or "no further options"
