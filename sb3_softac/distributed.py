"""Data-parallel training: several processes (ranks), each with environments and a replay buffer of its own, and one model.

Gradients, batch statistics and metrics are means over the ranks (``engine/group.py``). What is decided here is when ranks are
alike: at the beginning of ``learn``, and where a rollout ends. Every rank does as many rollouts and gradient steps as the
others.
"""

import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from tqdm.rich import tqdm

from sb3_softac.arguments.options import check_distributed
from sb3_softac.collect import PooledStatistics
from sb3_softac.collect.step_infos import StepInfos
from sb3_softac.engine import Group, GroupError
from sb3_softac.engine.group import LAUNCHED, is_launched, is_open, open_group, own_rank
from sb3_softac.files import ranked
from sb3_softac.ranks import check_alike, settings_of, state_tensors
from sb3_softac.temperature_options import TemperedAlgorithm
from sb3_softac.update import Update

#: what each rank says where a rollout ends: it has failed, a callback stops it, steps, ended episodes
FAILED, STOPPED, N_STEPS, N_EPISODES, N_FACTS = 0, 1, 2, 3, 4


SelfDistributedAlgorithm = TypeVar("SelfDistributedAlgorithm", bound="DistributedAlgorithm")


class _Opened:
    """The group that this package has opened in this process."""

    #: its time-out in seconds, None for PyTorch's; -1 if it has opened none
    timeout: float | None = -1.0


def join_launched(timeout: float | None) -> None:
    """Join the group that torchrun describes, if this process is in none.

    :param timeout: seconds that a rank waits for the others; None for PyTorch's
    """
    if is_open():
        return
    open_group(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), timeout)
    _Opened.timeout = timeout


def _warn_of_others(wanted: Any) -> None:
    """Say that this process goes on by itself, though it is one of several."""
    if wanted is None and not is_open() and is_launched(os.environ) and int(os.environ["WORLD_SIZE"]) > 1:
        warnings.warn(
            f"This process is one of {os.environ['WORLD_SIZE']} that torchrun has started, but the run, which was one of one "
            "process, goes on in each by itself: `resume(..., distributed=True)` lets them train one model.",
            stacklevel=3,
        )


def _join_wanted(wanted: Any, timeout: float | None) -> None:
    """See ``_open_group``."""
    if is_open():
        if timeout is not None and timeout != _Opened.timeout:
            raise ValueError(
                f"`distributed` is {wanted!r}, but it must be True here: this process is in a group already, whose "
                "time-out cannot be changed."
            )
        return
    if not is_launched(os.environ):
        missing = ", ".join(name for name in LAUNCHED if name not in os.environ)
        raise ValueError(
            f"`distributed` is {wanted!r}, but it must be None or False in a process that torchrun has not started "
            f"({missing} not set): start the script with `torchrun --nproc-per-node=2 script.py`."
        )
    join_launched(timeout)


class Progress(ProgressBarCallback):
    """The progress bar of rank 0, which counts the steps of all ranks.

    It takes the place of the bars ``replaced``. Who closes one of them closes it: RL Zoo does so after a training that
    has failed.
    """

    def __init__(self, group: Group, replaced: Sequence[ProgressBarCallback] = ()) -> None:
        super().__init__()
        self.group, self.replaced = group, replaced

    def _on_training_start(self) -> None:
        if self.group.rank == 0:
            super()._on_training_start()
        else:
            self.pbar = tqdm(disable=True)
        for bar in self.replaced:
            bar.pbar = self.pbar

    def _on_step(self) -> bool:
        self.pbar.update(self.training_env.num_envs * self.group.size)
        return True


class DistributedAlgorithm(TemperedAlgorithm):
    """An algorithm that may train on several ranks."""

    #: whether to, and how; the constructor of each algorithm sets it
    distributed: bool | dict[str, Any] | None = None

    # --- the group ----------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        if not self._runtime.set_up.weights_follow:  # a model that is loaded may only act
            self._open_group()
        super()._setup_model()

    def _open_group(self) -> None:
        """Join the group that the option asks for.

        :raises ValueError: there is none, or one with another time-out
        """
        wanted = check_distributed(self.distributed)
        timeout = wanted.get("timeout") if isinstance(wanted, dict) else None
        if wanted is None or wanted is False:
            return
        self._refuse_overlap()
        _join_wanted(wanted, timeout)

    def _present_group(self) -> Group | None:
        """The ranks that this model trains with, or None for this process alone."""
        if self.distributed is False or not is_open():
            return None
        known = self._runtime.group
        group = known if known is not None and known.is_present() else Group()
        return group if group.size > 1 else None

    @property
    def _rank(self) -> int:
        group = self._runtime.group
        return 0 if group is None else group.rank

    def set_random_seed(self, seed: int | None = None) -> None:
        """As in SB3; rank r has the seeds from ``seed`` + r · ``n_envs`` on, so that no two environments have the same."""
        rank = 0 if self.distributed is False else own_rank()
        super().set_random_seed(seed if seed is None else seed + rank * self.n_envs)

    def _set_numbers(self, update: Update) -> None:
        super()._set_numbers(update)
        update.group = self._runtime.group

    def _join(self, total_timesteps: int | None = None) -> None:
        """Make all ranks alike: the same settings, or an error; the networks, optimizers and statistics of rank 0.

        :raises ValueError: a rank has other settings, networks, spaces or versions
        """
        runtime = self._runtime
        if not runtime.set_up.weights_follow or total_timesteps is not None:
            self._open_group()
        group = self._present_group()
        if group is not runtime.group:
            runtime.group, runtime.update = group, None  # another step than before
        if group is None:
            return
        group.told = False
        check_alike(group, {**settings_of(self), "total_timesteps": total_timesteps})
        group.told = True  # what follows is the same on all ranks
        self._refuse_what_differs_by_rank()
        group.told = False
        self._equalise()
        runtime.statistics = PooledStatistics(self)

    def _join_if_open(self) -> None:
        """Before gradient steps outside of ``learn``."""
        if is_open() and self._present_group() is not None:
            self._join()

    def _refuse_overlap(self) -> None:
        if self.overlap:
            raise ValueError(
                "`overlap` is True, but it must be False with `distributed`: a rank that a callback stops would do "
                "other gradient steps than the rest, which would wait for it."
            )

    def _refuse_what_differs_by_rank(self) -> None:
        if isinstance(self.train_freq, TrainFreq) and self.train_freq.unit is TrainFrequencyUnit.EPISODE:
            raise ValueError(
                "`train_freq` counts episodes, but it must count steps with several ranks, whose episodes have other lengths."
            )
        self._refuse_overlap()
        if self._vec_normalize_env is not None:
            raise ValueError(
                "`env` has VecNormalize, whose statistics are those of one rank: with several ranks "
                "`normalize_observations=True` and `normalize_rewards` do it, with those of all."
            )

    def _equalise(self) -> None:
        """Take over the weights, statistics and optimizer states of rank 0.

        :raises GroupError: they differ all the same
        """
        group = self._runtime.group
        if group is not None:
            group.broadcast(state_tensors(self))
            check_alike(group, {"weights": state_tensors(self)})

    @classmethod
    def resume(
        cls: type[SelfDistributedAlgorithm],
        folder: str | pathlib.Path,
        env: Any,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **expected: Any,
    ) -> SelfDistributedAlgorithm:
        """As described there; with all processes that torchrun has started, if there are several.

        So go on a run of several ranks, and a run of one process whose ``distributed`` was True, or where ``distributed`` is
        passed here, which takes effect. With another number of ranks than before replay buffers are redistributed.
        """
        said = "distributed" in expected
        asked = check_distributed(expected.pop("distributed", None))
        of_ranks = bool(ranked.ranks_in(folder))
        wanted = asked if said else of_ranks or ranked.option_of(folder)
        if asked:
            _join_wanted(asked, asked.get("timeout") if isinstance(asked, dict) else None)
        elif wanted and not is_open() and is_launched(os.environ):
            join_launched(ranked.timeout_of(folder))
        group = Group() if is_open() and wanted is not False else None
        alone = group is None or group.size == 1
        if alone and not of_ranks:
            _warn_of_others(wanted)
            model = super().resume(folder, env, device, custom_objects, **expected)
        else:
            model = ranked.resume(cls, folder, env, device, custom_objects, expected, group)
        kept: Any = asked if said else model.distributed
        if alone and not said and kept and group is None:
            kept = None  # there is nobody to join
        model.distributed = kept if alone else kept or True
        model._runtime.options = model._option_values()  # nobody has set it
        if not alone:
            model._refuse_what_differs_by_rank()
        return model

    # --- learn --------------------------------------------------------------------------------------------------------

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        """As in SB3. If this rank fails where it could not tell the others, it leaves the group, so that they fail, too."""
        try:
            return super().learn(*args, **kwargs)
        except BaseException:
            group = self._runtime.group
            if group is not None and not group.told and _Opened.timeout != -1.0:
                group.leave()
                _Opened.timeout = -1.0
            raise

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._join(total_timesteps)
        if self._rank == 0:
            return super()._setup_learn(total_timesteps, *args, **kwargs)
        held = self.verbose, self.tensorboard_log
        self.verbose, self.tensorboard_log = 0, None  # rank 0 writes for all
        try:
            result = super()._setup_learn(total_timesteps, *args, **kwargs)
        finally:
            self.verbose, self.tensorboard_log = held
        if not self._custom_logger:
            self._logger = Logger(folder=None, output_formats=[])
        return result

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        group = self._runtime.group
        if group is None:
            return super()._init_callback(callback, progress_bar)
        if callable(callback):
            callback = ConvertCallback(callback)
        wanted = [*callback] if isinstance(callback, list) else [] if callback is None else [callback]
        bars = [each for each in wanted if type(each) is ProgressBarCallback]  # RL Zoo passes it so
        if bars or progress_bar:
            callback = [each for each in wanted if each not in bars] + [Progress(group, bars)]
        return super()._init_callback(callback, False)

    def _sample_action(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._sample_action(*args, **kwargs)
        if self._runtime.group is not None:  # SB3 adds the steps of this rank
            self.num_timesteps += (self._runtime.group.size - 1) * self.n_envs
        return result

    def _update_info_buffer(self, infos: Any, dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self._runtime.group is not None:
            if isinstance(infos, StepInfos):  # the others have nothing to tell
                infos, dones = infos.of_ended(), np.ones(len(infos.ended), dtype=bool)
            ended = [False] * len(infos) if dones is None else dones
            self._runtime.new_episodes += [
                (info.get("episode"), info.get("is_success") if done else None)
                for info, done in zip(infos, ended, strict=True)
                if info.get("episode") is not None or done
            ]

    def collect_rollouts(self, env: Any, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3; then the ranks tell each other what has happened.

        :raises GroupError: another rank has failed, or is gone
        """
        group = self._runtime.group
        if group is None:
            return super().collect_rollouts(env, callback, *args, **kwargs)
        before = self.num_timesteps
        try:
            rollout = super().collect_rollouts(env, callback, *args, **kwargs)
        except BaseException as error:
            if not (group.told or isinstance(error, GroupError)):
                self._tell(group, error)
            raise
        return self._exchange(group, before, rollout)

    def _exchange(self, group: Group, before: int, rollout: RolloutReturn) -> RolloutReturn:
        """What all ranks have done since ``before`` steps, as if this one had done it."""
        runtime = self._runtime
        facts = np.zeros(N_FACTS)
        facts[STOPPED] = not rollout.continue_training
        facts[N_STEPS], facts[N_EPISODES] = rollout.episode_timesteps, len(runtime.new_episodes)
        assert runtime.statistics is not None, "made where the ranks have joined"
        every = group.gather(np.concatenate([facts, runtime.statistics.read()]))
        if every[:, FAILED].any():
            self._fail(group, group.gather_objects(None))
        runtime.statistics.write(every[:, N_FACTS:])
        n_steps = int(every[:, N_STEPS].sum())
        self.num_timesteps = before + n_steps
        if every[:, N_EPISODES].any():
            self._add_episodes(group.gather_objects(runtime.new_episodes), group.rank)
        runtime.new_episodes = []
        return RolloutReturn(n_steps, rollout.n_episodes, not every[:, STOPPED].any())

    def _add_episodes(self, every: list[list[Any]], rank: int) -> None:
        """Let logs count the episodes of the other ranks."""
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        for episode, success in (each for other, episodes in enumerate(every) if other != rank for each in episodes):
            if episode is not None:
                self.ep_info_buffer.append(episode)
            if success is not None:
                self.ep_success_buffer.append(success)

    def _tell(self, group: Group, error: BaseException) -> None:
        """Let the other ranks know that this one fails."""
        statistics = self._runtime.statistics
        assert statistics is not None, "made where the ranks have joined"
        facts = np.zeros(N_FACTS + len(statistics.base))
        facts[FAILED] = 1.0
        try:
            group.gather(facts)
            group.gather_objects(f"{type(error).__name__}: {error}")
            group.told = True
        except GroupError:
            pass  # they are gone already

    def _fail(self, group: Group, reports: list[str | None]) -> None:
        """Stop because others have.

        :raises GroupError: what they report
        """
        group.told = True
        problems = " ".join(f"Rank {rank} has failed: {report}" for rank, report in enumerate(reports) if report is not None)
        last = self._runtime.newest_checkpoint
        kept = "" if last is None else f" The last checkpoint is {last}."
        raise GroupError(f"Training stopped at step {self.num_timesteps:,}. {problems}{kept}")
