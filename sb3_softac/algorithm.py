"""What every algorithm of the family does in SB3's place: learn, train, schedules, metrics."""

import math
import pathlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import replay
from sb3_softac.arguments import check_count
from sb3_softac.collect import FACTS, check_statistics, check_vector, warn_of_no_overlap
from sb3_softac.distributed import DistributedAlgorithm
from sb3_softac.engine import AsyncMetrics, Engine, Metrics, UpdateFlags, restart_optimizer
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.files import export
from sb3_softac.networks import restart_networks
from sb3_softac.replay import Batch, BlockSampler
from sb3_softac.schedules import check_rate, value_at
from sb3_softac.update import LearnedTemperature, Update, initial_value

LearningRate = float | str | Schedule
#: share of a categorical critic's targets outside of its range from which on a warning says so
MOST_CLIPPED = 0.05
SelfSoftAlgorithm = TypeVar("SelfSoftAlgorithm", bound="SoftAlgorithm")


class SoftAlgorithm(DistributedAlgorithm):
    """Base class of maximum-entropy off-policy algorithms.

    A subclass names its options in its constructor, and says what they describe; see ``ConfiguredAlgorithm``.
    """

    # --- learn --------------------------------------------------------------------------------------------------------

    def learn(
        self: SelfSoftAlgorithm,
        total_timesteps: float | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSoftAlgorithm:
        """Train for ``total_timesteps`` environment steps; floats such as 1e6 are allowed. Otherwise as in SB3.

        ``tb_log_name`` is the name of the algorithm if it is None. The first call after ``resume`` goes on to the steps that
        were asked for, or to ``total_timesteps`` of the whole run; ``reset_num_timesteps`` has no meaning then.

        :raises TrainingDivergedError: losses, weights or actions are no longer finite
        """
        total_timesteps, reset_num_timesteps = self._steps_to_do(total_timesteps, reset_num_timesteps)
        super().learn(
            total_timesteps,
            callback=callback,
            log_interval=cast(int, log_interval),  # None, for no logging by episodes, is missing in SB3's annotation
            tb_log_name=self.log_name if tb_log_name is None else tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        self._finish_resumption()  # if there was nothing to do, it is not done yet
        self._read_metrics()
        if log_interval is not None and not self._runtime.dumped and self.logger.name_to_value:
            self.dump_logs()  # no episode has ended that would have done it
        return self

    def _steps_to_do(self, total_timesteps: float | None, resets: bool) -> tuple[int, bool]:
        """How many steps this ``learn`` does, and whether they are counted from 0."""
        resumption = self._runtime.resumption
        if resumption is None:
            if total_timesteps is None:
                raise ValueError("`total_timesteps` is None, but it must be a number of steps: only a resumed model knows it.")
            return check_count("total_timesteps", total_timesteps, 0), resets
        total = resumption.total_timesteps
        if total_timesteps is not None and total != (total := check_count("total_timesteps", total_timesteps, 0)):
            warnings.warn(
                f"The run goes on to {total:,} steps instead of {resumption.total_timesteps:,}: its schedules change.",
                stacklevel=3,
            )
        return max(0, total - self.num_timesteps), False

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._follow_options()
        check_statistics(self._vec_normalize_env)
        self._check_normalizers(self.env)
        self._refuse_impossible_compilation()
        self._runtime.engine.decided = False
        self._runtime.dumped = False
        self._runtime.between_rollouts.clear()
        if self.env is not None:
            check_vector(self.env, self.replay_buffer)
            self._check_overlap(self.env)
            if self.overlap:
                warn_of_no_overlap(self.env)
        if self._runtime.resumption is None:
            self.__dict__.pop("_owed_steps", None)  # of a training that was interrupted
        last_obs = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        self._runtime.callback = result[1]
        self._refuse_non_finite("observation", self._last_obs)
        if self._last_obs is not last_obs:
            self._begin_episodes()
        if self.replay_buffer is not None and self.replay_buffer is not self._runtime.stored.buffer:
            self._match_returns(self.replay_buffer)  # it may be another one than at the last call
        self._continue_or_close_trajectory()
        self._warn_of_an_empty_buffer()
        self._choose_actor()
        assert self.ep_info_buffer is not None
        if self.ep_info_buffer.maxlen != self._stats_window_size:  # replaced at `load`
            self.ep_info_buffer = deque(self.ep_info_buffer, maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(self.ep_success_buffer or (), maxlen=self._stats_window_size)
        return result

    def _warn_of_an_empty_buffer(self) -> None:
        buffer = self.replay_buffer
        if buffer is None or self._n_updates == 0 or self.gradient_steps == 0 or buffer.size() > 0:
            return
        if self.num_timesteps >= self.learning_starts:
            warnings.warn(
                "The replay buffer of this trained model is empty, and its next updates will draw from very few transitions. "
                "`load_replay_buffer` brings the old ones back; `model.learning_starts = model.num_timesteps + 1000` with "
                "`model.random_steps = 0` collects 1,000 steps of its policy first.",
                stacklevel=4,
            )

    # --- train --------------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do ``gradient_steps`` gradient steps on batches from the replay buffer, and log their means.

        :param gradient_steps: number of gradient steps
        :param batch_size: transitions per gradient step
        :raises TrainingDivergedError: a loss or another metric is no longer finite
        """
        if self._puts_off(gradient_steps):
            return
        self.policy.set_training_mode(True)
        self._follow_options()
        if self._runtime.group is None:
            self._join_if_open()
        update, engine = self._current_update(), self._runtime.engine
        self._update_schedules()
        self._scale_rewards(update)
        engine.prepare(update)
        if not engine.decided:
            self._decide(engine, update)
            engine.prepare(update)
        steps = []
        for batch in self._batches(gradient_steps, batch_size):
            if self.resets is not None and self._reset_is_due(self.resets):
                self._start_again()
            self._n_updates += 1
            flags = UpdateFlags(
                actor=self._n_updates % self.policy_delay == 0, targets=self._n_updates % self.target_update_interval == 0
            )
            steps.append(engine.run(batch, flags))
        self._record(steps)

    def _scale_rewards(self, update: Update) -> None:
        """Let the step divide rewards by what the returns are at now, and log it."""
        if self.normalize_rewards is not None:
            divisor = self._reward_divisor()
            update.reward_scale = self.reward_scale / divisor
            self.logger.record("train/reward_divisor", divisor)

    def _reset_is_due(self, resets: Any) -> bool:
        """Whether exactly so many gradient steps are done as ``resets`` says."""
        done = self._n_updates
        return done > 0 and (done in resets if isinstance(resets, tuple) else done % resets == 0)

    def _start_again(self) -> None:
        """New networks and targets, optimizers without a state, and a learned α where it began; all else goes on."""
        fresh: Any = self.policy_class
        arguments = self.observation_space, self.action_space, self.lr_schedule
        restart_networks(self.policy, fresh(*arguments, **self.policy_kwargs))
        for network in self.policy.trained_networks().values():
            restart_optimizer(network.optimizer)
        temperature = self.temperature
        if isinstance(temperature, LearnedTemperature) and any(p.requires_grad for p in temperature.parameters()):
            temperature.set_value(initial_value(str(self.ent_coef), self.ent_coef_update))
            restart_optimizer(temperature.optimizer)
        self._equalise()
        self._n_resets += 1
        if self.verbose >= 1 and self._rank == 0:
            print(f"Reset {self._n_resets} after {self._n_updates:,} gradient steps: networks and optimizers start again")

    def _decide(self, engine: Engine, update: Update) -> None:
        way = engine.decide(update, self.compile, self._planned_gradient_steps())
        speaks = self.verbose >= 1 and self._rank == 0
        engine.announce = print if speaks else None
        if speaks:
            print(f"Gradient steps: {way}")

    def _planned_gradient_steps(self) -> int | None:
        """How many gradient steps are still to come in this ``learn()``; None outside of one, or if it is unknown."""
        transitions = self._total_timesteps - max(self.num_timesteps, self.learning_starts)
        if transitions <= 0:
            return None
        if self.gradient_steps < 0:
            return transitions
        assert isinstance(self.train_freq, TrainFreq)
        group = self._runtime.group
        per_rollout = float(self.train_freq.frequency * self.n_envs * (1 if group is None else group.size))
        if self.train_freq.unit is TrainFrequencyUnit.EPISODE:
            lengths = [float(episode["l"]) for episode in self.ep_info_buffer or ()]
            if not lengths and self._episode_num == 0:
                return None
            # Without a Monitor no lengths are known, but their mean is.
            per_rollout *= sum(lengths) / len(lengths) if lengths else self.num_timesteps / self._episode_num
        return int(transitions / per_rollout * self.gradient_steps)

    def _batches(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        buffer, runtime = self.replay_buffer, self._runtime
        assert buffer is not None
        if runtime.drawn is not None:
            drawn, runtime.drawn = runtime.drawn, None
            yield from drawn
            return
        if not BlockSampler.can_sample(buffer, self._vec_normalize_env):
            yield from (self._sample_batch(batch_size) for _ in range(n_batches))
            return
        sampler = runtime.block_sampler
        if sampler is None or sampler.buffer is not buffer or sampler.gamma != self.gamma:
            sampler = runtime.block_sampler = BlockSampler(buffer, self.gamma)
        yield from sampler(n_batches, batch_size)

    def _sample_batch(self, batch_size: int) -> Batch:
        assert self.replay_buffer is not None
        soft = self.soft_n_step and isinstance(self.replay_buffer, NStepReplayBuffer)
        return replay.sample(self.replay_buffer, batch_size, self.gamma, self._vec_normalize_env, soft)

    # --- schedules and metrics ----------------------------------------------------------------------------------------

    @property
    def logger(self) -> Logger:
        """The logger; one that writes nothing if ``train()`` is called before any ``learn()``."""
        if not hasattr(self, "_logger"):
            self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def _update_schedules(self) -> None:
        """Move learning rates and a scheduled temperature to the current progress, and log the learning rates."""
        # The last rollout may run past the planned end, where a linear learning rate would turn negative.
        progress, done = max(self._current_progress_remaining, 0.0), self.num_timesteps
        common, own = value_at(self.lr_schedule, progress, done), self._own_learning_rates()
        self.logger.record("train/learning_rate", common)
        values = {owner: value_at(schedule, progress, done) for owner, schedule in own.items()}
        for owner, value in values.items():
            self.logger.record(f"train/{owner}_learning_rate", value)
        for owner, network in self.policy.trained_networks().items():
            name = f"{owner}_learning_rate" if owner in own else "learning_rate"
            update_learning_rate(network.optimizer, check_rate(name, values.get(owner, common)))
        if isinstance(self.temperature, LearnedTemperature):
            self.temperature.schedule = own.get("ent_coef", self.lr_schedule)
        self.temperature.set_progress(progress, done)

    def _record(self, steps: list[Metrics]) -> None:
        """Hand the metrics of one ``train()`` to the logger.

        Where the gradient steps are captured, nothing waits for them: they are logged at the next ``train()``, or before logs
        are dumped.
        """
        self._read_metrics()
        rows: dict[tuple[str, ...], list[th.Tensor]] = {}
        for names, values in steps:
            rows.setdefault(names, []).append(values)
        runtime = self._runtime
        sums = {names: th.stack(values).sum(dim=0) if len(values) > 1 else values[0] for names, values in rows.items()}
        if runtime.group is not None:
            sums = {names: runtime.group.mean(total) for names, total in sums.items()}
        runtime.unread_metrics = [(names, AsyncMetrics(total), len(rows[names])) for names, total in sums.items()]
        if not runtime.engine.captures:
            self._read_metrics()

    def _read_metrics(self) -> None:
        """Log what is unread, as means over its gradient steps.

        :raises TrainingDivergedError: one of them is not finite
        """
        unread, self._runtime.unread_metrics = self._runtime.unread_metrics, []
        if not unread:
            return
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, report, count in unread:
            for name, total in zip(names, report.read(), strict=True):
                sums[name], counts[name] = sums.get(name, 0.0) + total, counts.get(name, 0) + count
        means = {name: total / counts[name] for name, total in sums.items()}
        diverged = {name: mean for name, mean in means.items() if not math.isfinite(mean)}
        if diverged:
            if self._runtime.group is not None:
                self._runtime.group.told = True  # means over all ranks are the same on each
            raise TrainingDivergedError(
                f"Training has diverged after {self._n_updates} gradient steps: {diverged}. A lower learning rate, "
                "`max_grad_norm`, `ent_coef_max` or smaller rewards may help."
            )
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean)
        self._warn_of_clipped_targets(means.get("target_clipped", 0.0))
        if isinstance(self.temperature, LearnedTemperature):
            self.logger.record("train/target_entropy", self.temperature.target_entropy)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.resets is not None:
            self.logger.record("train/n_resets", self._n_resets)

    def _warn_of_clipped_targets(self, share: float) -> None:
        """A categorical critic cannot learn a return that it does not know."""
        if share <= MOST_CLIPPED or "target_clipped" in self._runtime.warned:
            return
        self._runtime.warned.add("target_clipped")
        bounds = self.policy.head_kwargs["value_range"]
        warnings.warn(
            f"{share:.0%} of the targets lie outside of `value_range`={bounds} and are clamped to it: a larger "
            "`policy_kwargs['value_range']`, or a smaller `reward_scale`, lets the critics see them.",
            stacklevel=5,
        )

    def dump_logs(self) -> None:
        """As in SB3, with what the replay buffer knows of the same episodes."""
        self._read_metrics()
        self._log_episodes()
        self._runtime.dumped = True
        super().dump_logs()

    def _log_episodes(self) -> None:
        """Means over the episodes of ``ep_info_buffer``; the discounted return in the units of the critics."""
        scale = {"discounted_return": self.reward_scale / self._reward_divisor()}
        for name in FACTS:
            values = [episode[name] for episode in self.ep_info_buffer or () if name in episode]
            if values:
                self.logger.record(f"rollout/{name}", scale.get(name, 1.0) * float(np.mean(values)))

    # --- files --------------------------------------------------------------------------------------------------------

    def export(
        self,
        path: str | pathlib.Path,
        format: export.Format = "onnx",
        deterministic: bool = True,
        vec_normalize: VecNormalize | None = None,
    ) -> pathlib.Path:
        """Write the policy as one file that maps raw observations to actions of the environment.

        Observations enter in batches, as ``observation_space`` has them (images channels first, as SB3 stores them), Dict
        ones by the names of their keys; the output ``action`` is rescaled to the action bounds and clipped. The file is
        compared with ``predict()`` on random observations before it replaces an older file.
        ``sb3_softac.export.ExportedPolicy`` loads it again; its ``metadata`` say how it comes to an action.

        :param path: file name; ``.onnx`` or ``.pt`` is added if it has no suffix
        :param format: ``"onnx"``, which needs the extra ``export``, or ``"torchscript"``
        :param deterministic: the mean or most probable action; with ``SoftQL`` the one of the largest Q, of
            ``kernel_particles`` that are made of the noise that the policy keeps. False samples, with TorchScript only
        :param vec_normalize: statistics that normalise the observations inside the file, if the model was trained with them
        :return: the file
        :raises ValueError: a value out of range, or options that contradict each other
        :raises ImportError: ONNX is not installed
        :raises RuntimeError: the file differs from the model by more than 1e-5 (for action bounds above 1, times the bound),
            or where float32 itself is not so exact, by more than a few times its rounding error
        """
        if vec_normalize is None and self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            warnings.warn(
                "The model was trained with normalised observations, but the file will not normalise them: "
                "`vec_normalize=model.get_vec_normalize_env()` makes it do so.",
                stacklevel=2,
            )
        return export.write(self.policy, path, format, deterministic, vec_normalize, self.log_name)
