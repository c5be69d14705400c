"""Checkpoints from which a killed training goes on bit for bit: ``ExactCheckpointCallback`` writes, ``resume`` reads them."""

import errno
import pathlib
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_softac.arguments import check_count
from sb3_softac.files import SavedAlgorithm, ranked, resuming
from sb3_softac.files.checkpoint import Checkpoint, Folder, Lock, new_run
from sb3_softac.files.segments import BufferLog

__all__ = ["ExactCheckpointCallback", "newest_step"]


def newest_step(folder: str | pathlib.Path) -> int | None:
    """The step that ``resume`` would go on from, or None if there is no whole checkpoint: a new run begins then.

    :param folder: what ``ExactCheckpointCallback`` writes to; with several ranks all must see the same folder
    """
    if ranked.ranks_in(folder):
        return next((source.n_steps for source in ranked.sources(folder)), None)
    newest = Folder(folder).newest_whole()
    return None if newest < 0 else newest


class ExactCheckpointCallback(BaseCallback):
    """Write the whole state of the training, every ``save_freq`` steps and at its end.

    ``SoftAC.resume(folder, env).learn(callback=...)`` goes on from the newest one as if nothing had happened. A checkpoint
    is written where the next rollout begins, so that nothing is under way. Of the replay buffer only what is new is written.

    :param save_freq: steps of each environment between two checkpoints, at least 1
    :param folder: where they are written, one run in each folder; made if it is missing
    :param keep: number of checkpoints that are kept, at least 1
    :param verbose: 1 says what was written
    :raises ValueError: at the beginning of ``learn``: the folder has checkpoints of another run, another process writes there,
        or the model has something that cannot be written
    :raises OSError: a checkpoint cannot be written; those before it, and the model, are as they were
    """

    model: Any

    def __init__(self, save_freq: int, folder: str | pathlib.Path, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.save_freq = check_count("save_freq", save_freq, 1)
        self.keep = check_count("keep", keep, 1)
        if not isinstance(folder, str | pathlib.Path) or not str(folder):
            raise ValueError(f"`folder` is {folder!r}, but it must be the name of a folder.")
        self.folder = pathlib.Path(folder)
        self._is_due = False
        self._lock: Lock | None = None
        #: step of the newest checkpoint
        self._newest = -1

    def _on_training_start(self) -> None:
        model = self.model
        if not isinstance(model, SavedAlgorithm):
            raise ValueError(
                f"ExactCheckpointCallback is for the algorithms of sb3_softac, but the model is a {type(model).__name__}: "
                "SB3's CheckpointCallback saves it."
            )
        assert model.env is not None, "it learns"
        if model.replay_buffer is None:
            raise ValueError("ExactCheckpointCallback needs the replay buffer of the model, but it is None.")
        resuming.state_of(model, {})  # refuses what cannot be written before a step is done
        runtime = model._runtime
        if runtime.run is None:
            runtime.run = new_run(type(model).__name__, resuming.environment_of(model.env))
        group, place = runtime.group, self._place()
        option: Any = vars(model).get("distributed")
        timeout = option["timeout"] if isinstance(option, dict) else None
        if group is None:
            if "ranks" not in runtime.run:
                joins = option if option is None else bool(option)
                runtime.run = {**runtime.run, "distributed": joins, "timeout": timeout}
            if "ranks" not in runtime.run and ranked.common_steps(self.folder):
                raise ValueError(
                    f"`folder` is {str(self.folder)!r}, which holds checkpoints of several ranks: choose another folder, or "
                    "go on with that run by `resume`."
                )
            self._claim(place)
        else:
            runtime.run = {**group.gather_objects(runtime.run)[0], "ranks": group.size, "timeout": timeout}
            self._refuse_another_run_of_one_process()
            none_whole = group.all_agree(not ranked.common_steps(self.folder))
            try:
                ranked.agree(group, "begin to write checkpoints", lambda: self._claim_of_rank(place, none_whole))
            except BaseException:
                self.release()
                raise
        if runtime.buffer_log is None or runtime.buffer_log.folder.resolve() != place.segments.resolve():
            runtime.buffer_log = BufferLog(place.segments)
        self._is_due, self._newest = False, -1
        runtime.between_rollouts.append(self._between_rollouts)

    def _place(self) -> Folder:
        """Where this process writes."""
        runtime = self.model._runtime
        if runtime.group is None and "ranks" not in (runtime.run or {}):
            return Folder(self.folder)
        return Folder(ranked.folder_of(self.folder, 0 if runtime.group is None else runtime.group.rank))

    def _claim(self, place: Folder) -> None:
        lock = place.claim(self.model._runtime.run)
        try:
            self._refuse_a_later_one(place)
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def _claim_of_rank(self, place: Folder, none_whole: bool) -> None:
        if none_whole:
            ranked.forget_incomplete(place)
        single = Folder(self.folder)
        self._lock = place.claim(self.model._runtime.run)
        if place.path == ranked.folder_of(self.folder, 0) and single.checkpoints():
            self._lock.another = Lock(single.path)  # one process might go on from there, too
        newest = max((steps for steps, _ in ranked.common_steps(self.folder)), default=-1)
        self._refuse_later_steps(max(newest, single.newest_whole()))

    def _refuse_another_run_of_one_process(self) -> None:
        present = Folder(self.folder).run()
        if present is not None and present.get("id") != self.model._runtime.run["id"]:
            raise ValueError(
                f"`folder` is {str(self.folder)!r}, which holds checkpoints of a run of one process, but it must be another "
                "one here: choose another folder, or go on with that run by `resume(..., distributed=True)`."
            )

    def _refuse_a_later_one(self, place: Folder) -> None:
        """It would be removed, or be taken for the newest."""
        n_steps = self.model.num_timesteps
        self._refuse_later_steps(place.newest_whole() if any(number > n_steps for number in place.numbers()) else -1)

    def _refuse_later_steps(self, newest: int) -> None:
        n_steps = self.model.num_timesteps
        if newest > n_steps:
            raise ValueError(
                f"`folder` is {str(self.folder)!r}, where this run has a checkpoint at {newest:,} steps, but the model is at "
                f"{n_steps:,}: `resume` goes on from there; what begins again needs another folder."
            )

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            self._is_due = True
        return True

    def _between_rollouts(self) -> None:
        if self._is_due:
            self.save()

    def save(self) -> pathlib.Path:
        """Write a checkpoint now; only between two rollouts is it exact.

        :return: its folder
        """
        model, place = self.model, self._place()
        runtime = model._runtime
        if self._lock is None:
            raise ValueError("`save` writes checkpoints while `learn` runs, but it does not.")
        self._is_due, lock = False, self._lock

        def take() -> Checkpoint:
            self._refuse_another_place(lock)
            return resuming.take(model, place.path, runtime.buffer_log, runtime.run)

        if runtime.group is None:
            path = place.write(take(), self.keep)
            ranked.remove_others(place, 1)
        else:
            path = ranked.write(runtime.group, place, take, self.keep)
        self._newest, runtime.newest_checkpoint = model.num_timesteps, path
        if self.verbose >= 1 and (runtime.group is None or runtime.group.rank == 0):
            print(f"Checkpoint: {path}")
        return path

    def _refuse_another_place(self, lock: Lock) -> None:
        if not lock.holds():
            raise ValueError(
                f"`folder` is {str(self.folder)!r}, but another model of this process writes its checkpoints there."
            )
        if not lock.is_in_place():
            raise FileNotFoundError(
                errno.ENOENT, "the folder was removed during the training, and nothing was saved", str(self.folder)
            )

    def _on_training_end(self) -> None:
        model = self.model
        try:
            # What is resumed and has nothing to do is still as it was read.
            if model._runtime.resumption is None and self._newest != model.num_timesteps and model._last_obs is not None:
                self.save()
        finally:
            self.release()

    def release(self) -> None:
        """Let others write to the folder."""
        if self._between_rollouts in self.model._runtime.between_rollouts:
            self.model._runtime.between_rollouts.remove(self._between_rollouts)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
