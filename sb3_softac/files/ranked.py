"""Checkpoints of several ranks: each has a folder of its own (rank-0, rank-1, ...), and they count only together.

The folder of a rank is like that of a run of one process, with its replay buffer, environments and random generators. Its
weights are those of all ranks. The manifest says how many ranks there are. A run of one process, which lies in the folder
itself, counts as one rank.
"""

import hashlib
import pathlib
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.utils import get_device

from sb3_softac.collect import StoredUpTo, close_trajectory
from sb3_softac.engine import Group, GroupError
from sb3_softac.errors import DamagedFileError
from sb3_softac.files import resuming, segments
from sb3_softac.files.checkpoint import Checkpoint, Folder, Lock, name_of, steps_of
from sb3_softac.files.segments import BufferLog, by_field, rows_of
from sb3_softac.files.unpickling import Damage
from sb3_softac.replay import TensorReplayBuffer

#: buffers whose transitions stand for themselves, or belong to trajectories that may be closed anywhere
DEALT = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, TensorReplayBuffer)


class Source(NamedTuple):
    """A checkpoint that a run can go on from, and where each of its ranks has written."""

    n_steps: int
    n_ranks: int
    places: list[Folder]


def folder_of(folder: str | pathlib.Path, rank: int) -> pathlib.Path:
    """Where a rank writes."""
    return pathlib.Path(folder) / f"rank-{rank}"


def ranks_in(folder: str | pathlib.Path) -> list[int]:
    """The ranks that have a folder, in order."""
    path = pathlib.Path(folder)
    names = [each.name for each in path.iterdir() if each.is_dir()] if path.is_dir() else []
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"rank-\d{1,6}", name, re.ASCII))


def common_steps(folder: str | pathlib.Path) -> list[tuple[int, int]]:
    """Steps and numbers of ranks of the checkpoints that all their ranks have written, the newest first.

    Only manifests are looked at: files may still be damaged.
    """
    found = []
    for path in Folder(folder_of(folder, 0)).checkpoints():
        first = _run_of(folder_of(folder, 0), path.name)
        n_ranks = first.get("ranks")
        if type(n_ranks) is not int or not 0 < n_ranks <= 1 << 20:
            continue
        runs = [_run_of(folder_of(folder, rank), path.name) for rank in range(n_ranks)]
        if all(run.get("id") == first["id"] and run.get("ranks") == n_ranks for run in runs):
            found.append((steps_of(path), n_ranks))
    return found


def sources(folder: str | pathlib.Path) -> list[Source]:
    """All checkpoints that a run can go on from, the newest first; those of one process if they are of the same run.

    Only manifests are looked at: files may still be damaged.
    """
    of_ranks = [
        Source(n_steps, n_ranks, [Folder(folder_of(folder, rank)) for rank in range(n_ranks)])
        for n_steps, n_ranks in common_steps(folder)
    ]
    run_id = _run_of(of_ranks[0].places[0].path, name_of(of_ranks[0].n_steps)).get("id") if of_ranks else None
    place, found = Folder(folder), []
    for path in place.checkpoints():
        run = _run_of(place.path, path.name)
        if "id" in run and "ranks" not in run and run_id in (None, run["id"]):
            found.append(Source(steps_of(path), 1, [place]))
    return sorted(of_ranks + found, key=lambda source: -source.n_steps)


def _newest_run(folder: str | pathlib.Path) -> dict[str, Any]:
    """What the newest checkpoint says of its run; nothing if there is none."""
    found = sources(folder)
    return _run_of(found[0].places[0].path, name_of(found[0].n_steps)) if found else {}


def option_of(folder: str | pathlib.Path) -> bool | None:
    """Whether the newest run of one process would have trained with others, had there been any; None if it has not said."""
    option = _newest_run(folder).get("distributed")
    return option if isinstance(option, bool) else None


def _run_of(folder: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        return Folder(folder)._manifest(folder / name).run
    except (Damage, DamagedFileError):  # DamagedFileError: of a newer version, which `resume` names
        return {}


def timeout_of(folder: str | pathlib.Path) -> float | None:
    """The time-out that the newest run had asked for, of one process or of several."""
    timeout = _newest_run(folder).get("timeout")
    return timeout if isinstance(timeout, float) else None


# --- writing -----------------------------------------------------------------------------------------------------------


def agree(group: Group, what: str, do: Callable[[], Any]) -> Any:
    """Do something on all ranks; if it fails on one, all fail.

    :raises GroupError: another rank has failed
    """
    failure: BaseException | None = None
    result = None
    try:
        result = do()
    except BaseException as error:  # also Ctrl-C on one of them: the others wait for its report
        failure = error
    reports = group.gather_objects(None if failure is None else f"{type(failure).__name__}: {failure}")
    group.told = any(report is not None for report in reports)
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report is not None:
            raise GroupError(f"Rank {rank} could not {what}: {report}")
    return result


def forget_incomplete(place: Folder) -> None:
    """Remove what a run has left that was killed before all ranks had written a first checkpoint.

    :raises ValueError: another process writes there
    """
    if place.checkpoints():
        lock = Lock(place.path)
        try:
            for path in place.checkpoints():
                shutil.rmtree(path, ignore_errors=True)
        finally:
            lock.release()


def write(group: Group, place: Folder, take: Callable[[], Checkpoint], keep: int) -> pathlib.Path:
    """Write the part of this rank; older ones are removed once all ranks have written theirs.

    :raises GroupError: another rank could not
    """
    path: pathlib.Path = agree(group, "write its checkpoint", lambda: place.put(take()))
    place.clean(path, keep)
    if group.rank == 0:
        remove_others(place, group.size)
        _remove_single(place)
    return path


def remove_others(place: Folder, size: int) -> None:
    """Remove the folders of ranks that there are no longer; nothing where ``place`` is that of a run of one process.

    :param place: where rank 0 writes
    :param size: how many ranks there are
    """
    folder = place.path.parent
    if place.path == folder_of(folder, 0):
        for rank in ranks_in(folder):
            if rank >= size:
                shutil.rmtree(folder_of(folder, rank), ignore_errors=True)


def _remove_single(place: Folder) -> None:
    """Remove the checkpoints of one process from which ranks have gone on, and which would be taken for a run of its own.

    :param place: where rank 0 writes
    """
    single = Folder(place.path.parent)
    run, own = single.run(), place.run()
    if run is not None and own is not None and run.get("id") == own.get("id"):
        for path in [*single.checkpoints(), single.segments]:
            shutil.rmtree(path, ignore_errors=True)
        (single.path / "run.json").unlink(missing_ok=True)


# --- reading -----------------------------------------------------------------------------------------------------------


def resume(
    cls: type[Any],
    folder: str | pathlib.Path,
    env: Any,
    device: Any,
    custom_objects: dict[str, Any] | None,
    expected: dict[str, Any],
    group: Group | None,
) -> Any:
    """See ``SavedAlgorithm.resume``; with another number of ranks replay buffers are redistributed.

    :param group: the ranks that go on, None for one process
    """
    rank, size = (0, 1) if group is None else (group.rank, group.size)

    def together(do: Callable[[], Any]) -> Any:
        return do() if group is None else agree(group, "go on", do)

    def prepare() -> tuple[Any, Any, list[Source]]:
        resuming.refuse_unknown(cls, expected)
        return get_device(device), cls._wrap_env(maybe_make_env(env, 0), 0), _sources_or_refuse(folder)

    chosen, wrapped, found = together(prepare)
    seen = [(source.n_steps, source.n_ranks) for source in found]
    if group is not None and any(theirs != seen for theirs in group.gather_objects(seen)):
        raise ValueError(
            f"`folder` is {str(folder)!r}, but it must be the same one on all ranks, which see other checkpoints."
        )
    for source in found:
        arguments = cls, wrapped, chosen, custom_objects or {}, expected

        def build(source: Source = source, arguments: Any = arguments) -> tuple[Any, str | None]:
            """The model, or what is damaged on this rank."""
            mine = source.places if source.n_ranks != size else [source.places[rank]]
            try:
                parts = [_read(place, source.n_steps) for place in mine]
                if source.n_ranks == size:
                    return _build(mine[0], parts[0], arguments), None
                return _dealt(source, rank, size, parts, arguments), None
            except (Damage, DamagedFileError) as damage:
                return None, str(damage).rstrip(".")

        model, problem = together(build)
        problems = [problem] if group is None else group.gather_objects(problem)
        if not any(problems):
            if source.n_ranks != size and rank == 0:
                warnings.warn(
                    f"The run had {_ranks(source.n_ranks)} and goes on with {size}: replay buffers are redistributed, and "
                    "new episodes begin.",
                    stacklevel=3,
                )
            return model
        reason = next(filter(None, problems))
        warnings.warn(
            f"The checkpoint at step {source.n_steps:,} is damaged: {reason}. The one before it is tried.", stacklevel=3
        )
    raise DamagedFileError(f"`folder` is {str(folder)!r}, but no checkpoint in it is whole on all ranks.")


def _sources_or_refuse(folder: str | pathlib.Path) -> list[Source]:
    found, ranks = sources(folder), ranks_in(folder)
    if not found and not ranks:
        next(Folder(folder).whole())  # says what is wrong with a run of one process
    if not found:
        raise ValueError(
            f"`folder` is {str(folder)!r}, but it must hold a checkpoint that all ranks have written; it has parts of "
            f"rank {', '.join(map(str, ranks))} only."
        )
    return found


def _read(place: Folder, n_steps: int) -> Checkpoint:
    return place.read(next(path for path in place.checkpoints() if steps_of(path) == n_steps))


def _build(place: Folder, part: Checkpoint, arguments: Any) -> Any:
    cls, env, device, custom_objects, expected = arguments
    return resuming.build_from(cls, place, part, env, device, custom_objects, expected)


def _dealt(source: Source, rank: int, size: int, parts: list[Checkpoint], arguments: Any) -> Any:
    """A model with its share of each replay buffer. New episodes begin, with random numbers of their own."""
    n_ranks, chosen = len(parts), rank % len(parts)
    part, folder = parts[chosen], source.places[0].path
    part.state["environment"] = {**part.state["environment"], "obstacle": f"{n_ranks} ranks go on as {size}"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The environments cannot be put where they were")
        model = _build(source.places[chosen], part, arguments)
    kind = type(model.replay_buffer)
    if kind not in DEALT or model.optimize_memory_usage:
        raise ValueError(
            f"`folder` is {str(folder)!r}, a run of {_ranks(n_ranks)}, and must go on with as many, not {size}: a "
            f"{kind.__name__}{' of optimized memory' if model.optimize_memory_usage else ''} cannot be redistributed."
        )
    shares = [_share(model, place, each, n_ranks, rank, size) for place, each in zip(source.places, parts, strict=True)]
    _fill(model, shares)
    runtime = model._runtime
    runtime.run = {**part.run, "ranks": size}
    text = f"{part.run.get('id')} {part.n_steps} {rank} {size}"
    runtime.resumption.seed = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
    model.env.seed(runtime.resumption.seed)
    return model


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def _share(model: Any, place: Folder, part: Checkpoint, n_ranks: int, rank: int, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """The rows of one buffer, of ``n_ranks``, that belong to ``rank``, of ``size``, from the oldest to the newest."""
    model._allocate_replay_buffer()
    buffer = model.replay_buffer
    segments.restore(
        place.segments, part.segments, buffer, part.state["replay_buffer"], part.arrays, BufferLog(place.segments)
    )
    n_rows, length = buffer.size(), buffer.buffer_size
    oldest = buffer.pos if buffer.full else 0
    first, last = rank * n_rows // size, (rank + 1) * n_rows // size
    most = max(1, length // n_ranks)
    chosen = (oldest + np.arange(max(first, last - most), last)) % length
    close_trajectory(buffer)
    share = {name: rows[chosen].copy() for name, rows in rows_of(buffer).items()}
    if len(chosen) and "timeouts" in share:  # what follows there is another rank's
        share["timeouts"][-1] = np.logical_or(share["timeouts"][-1], np.logical_not(share["dones"][-1]))
    return share


def _fill(model: Any, shares: list[dict[str, np.ndarray[Any, Any]]]) -> None:
    """Put shares into a new buffer, one behind the other."""
    model._allocate_replay_buffer()
    buffer, start = model.replay_buffer, 0
    rows = rows_of(buffer)
    for share in shares:
        n_rows = len(next(iter(share.values())))
        for name, part in rows.items():
            part[start : start + n_rows] = share[name]
        start += n_rows
    if isinstance(buffer, TensorReplayBuffer):
        buffer.put_rows(by_field(rows))
    buffer.pos, buffer.full = start % buffer.buffer_size, start == buffer.buffer_size
    model._runtime.buffer_log = None
    model._runtime.stored = StoredUpTo(buffer, None)
