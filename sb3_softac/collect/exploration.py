"""What differs from SB3's ``OffPolicyAlgorithm`` between two updates: how actions are sampled, and what is stored."""

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_softac.collect import on_device
from sb3_softac.collect.acting import acts_as_made, make_actor
from sb3_softac.collect.episodes import describe
from sb3_softac.collect.noise import advance, keeping_exploration, sampling_with
from sb3_softac.collect.overlap import Overlapped, asks_no_environment, refuse_own_step, refuse_own_train, share
from sb3_softac.collect.returns import count_returns
from sb3_softac.collect.step_infos import StepInfos, each, is_tensor
from sb3_softac.collect.validation import StoredUpTo, close_trajectory, find_non_finite


class CollectingAlgorithm(OffPolicyAlgorithm):
    """An off-policy algorithm that acts directly on the weights of its policy, and stores whole trajectories."""

    _runtime: Any
    random_steps: int | None
    compile: Any
    #: number, mean, variance and largest magnitude of the returns, and those that run; None where nothing normalises rewards
    _return_moments: np.ndarray[Any, Any] | None = None
    _running_returns: np.ndarray[Any, Any] | None = None
    noise_repeat: int | None = None
    overlap: bool = False
    #: gradient steps of the last rollout that run while the next one is collected
    _owed_steps: int = 0
    #: exploration noise that is kept, (n_envs, A), and for how many more steps, (n_envs,); None where there is none
    _kept_noise: np.ndarray[Any, Any] | None = None
    _kept_steps: np.ndarray[Any, Any] | None = None

    def _has_own_predict(self) -> bool:
        return type(self).predict is not BaseAlgorithm.predict or "predict" in vars(self)

    def _choose_actor(self) -> None:
        """Find the fastest way to act that samples what ``predict`` would."""
        capture = self.compile is not False
        repeats = self.noise_repeat is not None
        self._runtime.noise_repeat = self.noise_repeat
        own = self._has_own_predict()
        self._runtime.actor = None if own else make_actor(self.policy, self.n_envs, capture, repeats)  # type: ignore[arg-type]  # ours

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        random_steps = learning_starts if self.random_steps is None else self.random_steps
        if self.noise_repeat is not self._runtime.noise_repeat:  # it was set since the last step
            self._follow_options()
            self._choose_actor()
        actor = self._runtime.actor
        if actor is not None and (self._has_own_predict() or not actor.holds(self.policy)):
            self._choose_actor()
            actor = self._runtime.actor
        is_random, in_tensors = self.num_timesteps < random_steps, is_tensor(self._last_obs)
        if is_random and not (in_tensors and on_device.draws_uniformly(self.action_space)):
            return self._sample_as_sb3(random_steps, action_noise, n_envs, None)
        noise = None if is_random or self.noise_repeat is None else self._next_noise(self.noise_repeat, n_envs)
        if in_tensors:
            is_random = is_random and not (self.use_sde and self.use_sde_at_warmup)
            policy: Any = self.policy
            if is_random or actor is not None or (not self._has_own_predict() and acts_as_made(policy)):
                return on_device.sample(self, actor, is_random, action_noise, n_envs, noise)  # type: ignore[return-value]  # tensors
        if actor is None or in_tensors:
            return self._sample_as_sb3(random_steps, action_noise, n_envs, noise)
        assert isinstance(self._last_obs, np.ndarray)
        actions = actor(self._last_obs) if noise is None else actor(self._last_obs, noise)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions + self.action_space.start
            return actions, actions
        assert isinstance(self.action_space, spaces.Box)
        precision = np.result_type(self.action_space.low, actions)  # that of SB3's rescaling
        actions = actions.reshape(-1, *self.action_space.shape).astype(precision, copy=False)
        if action_noise is not None:
            actions = np.clip(actions + action_noise(), -1, 1)
        return self.policy.unscale_action(actions), actions

    def _sample_as_sb3(
        self, random_steps: int, action_noise: ActionNoise | None, n_envs: int, noise: np.ndarray[Any, Any] | None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """As in SB3, by ``predict``, which takes arrays."""
        policy, held = self.policy, self._last_obs
        kept = nullcontext() if noise is None else sampling_with(policy, th.from_numpy(noise).to(self.device))  # type: ignore[arg-type]  # ours
        if is_tensor(held):
            self._last_obs = each(held, lambda part: part.cpu().numpy())
        try:
            with kept:
                return super()._sample_action(random_steps, action_noise, n_envs)
        finally:
            self._last_obs = held

    def _next_noise(self, longest: int, n_envs: int) -> np.ndarray[Any, Any]:
        """ε of the next actions, (n_envs, A)."""
        if self._kept_noise is None or self._kept_steps is None or len(self._kept_steps) != n_envs:
            self._kept_noise = np.zeros((n_envs, get_action_dim(self.action_space)), np.float32)
            self._kept_steps = np.zeros(n_envs, np.int64)
        advance(self._kept_noise, self._kept_steps, longest)
        return self._kept_noise

    def _forget_noise(self) -> None:
        """Let the next action have new noise in all environments."""
        for name in ("_kept_noise", "_kept_steps"):
            self.__dict__.pop(name, None)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3, but the step after which a callback stops the training is stored, too.

        SB3 leaves it out: the next transition would then start one step later than the stored one ends. What is interrupted
        in another way begins again with a reset.

        :raises RuntimeError: an environment in another process has died
        """
        try:
            self._before_rollout()
            try:
                rollout = super().collect_rollouts(self._stepping(env), callback, *args, **kwargs)
                if not rollout.continue_training:
                    self._store_last_step(callback.locals)
                    self._pay(self._owed_steps)  # there is no next step
            except BaseException:
                self._interrupt_episode()
                raise
        except (EOFError, ConnectionError) as error:
            if dead := dead_workers(env):
                kept = self.replay_buffer.size() if self.replay_buffer is not None else 0
                last = self._runtime.newest_checkpoint
                raise RuntimeError(
                    f"{dead} Model and replay buffer ({kept:,} rows, up to step {self.num_timesteps:,}) are whole, and so is "
                    f"{'what was saved before' if last is None else f'the last checkpoint, {last}'}. The model needs new "
                    "environments: `set_env`, or `resume` from a checkpoint."
                ) from error
            raise
        starts = self.num_timesteps > max(self.learning_starts, 0)
        self._runtime.between = rollout.continue_training and starts and self.gradient_steps != 0  # SB3 asks for them
        return rollout

    # --- gradient steps while environments step -------------------------------------------------------------------------

    def _stepping(self, env: VecEnv) -> VecEnv:
        """The environments of a rollout: with ``overlap`` ones that do gradient steps on the way."""
        runtime = self._runtime
        runtime.between = False
        if not self.overlap:
            self._pay(self._owed_steps)  # it was switched off meanwhile
            return env
        runtime.n_collected, runtime.n_owed, runtime.drawn = 0, self._owed_steps, None
        wrapped = runtime.overlapped
        if wrapped is None or wrapped.venv is not env:
            self._check_overlap(env)  # it may have been switched on since `learn` began
            wrapped = runtime.overlapped = Overlapped(env, self._draw_ahead, self._pay_share)
        return wrapped  # type: ignore[no-any-return]  # the runtime's type is not known here

    def _check_overlap(self, env: VecEnv | None) -> None:
        """:raises ValueError: ``overlap``, and something of which nobody knows what it does between two halves of a step"""
        if self.overlap:
            refuse_own_train(self)
            refuse_own_step(env)

    def _share(self) -> int:
        train_freq: Any = self.train_freq
        return share(self._runtime.n_owed, self._runtime.n_collected, train_freq.frequency)

    def _draw_ahead(self) -> None:
        """Sample a buffer that asks the environments while they can answer."""
        n_steps = self._share()
        if n_steps > 0 and not asks_no_environment(self.replay_buffer):
            self._follow_options()
            self._runtime.drawn = list(self._batches(n_steps, self.batch_size))

    def _pay_share(self) -> None:
        n_steps = self._share()
        self._runtime.n_collected += 1
        self._pay(n_steps)

    def _pay(self, n_steps: int) -> None:
        """Do gradient steps of the last rollout, and go on acting."""
        if n_steps > 0:
            self._owed_steps -= n_steps
            with keeping_exploration(self.policy) if self.use_sde else nullcontext():
                self.train(n_steps, self.batch_size)
            self.policy.set_training_mode(False)
            self.logger.record("train/lag", 1)

    def _puts_off(self, gradient_steps: int) -> bool:
        """Whether these gradient steps, which SB3 asks for behind a rollout, run while the next one is collected."""
        runtime = self._runtime
        behind_rollout, runtime.between = runtime.between, False
        if not (self.overlap and behind_rollout and self.num_timesteps < self._total_timesteps):
            return False
        self._owed_steps = gradient_steps
        return True

    @abstractmethod
    def _batches(self, n_batches: int, batch_size: int) -> Any:
        """Batches from the replay buffer."""

    @abstractmethod
    def _follow_options(self) -> None:
        """Let options that were set since the last look take effect, or refuse them."""

    def _before_rollout(self) -> None:
        """Called where a rollout begins: nothing is under way."""

    def _store_last_step(self, step: dict[str, Any]) -> None:
        """Do for the step before a stop what SB3 does after all others; ``step`` holds its local variables."""
        self._update_info_buffer(step["infos"], step["dones"])
        self._store_transition(
            step["replay_buffer"], step["buffer_actions"], step["new_obs"], step["rewards"], step["dones"], step["infos"]
        )
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._on_step()
        ended = np.flatnonzero(step["dones"])
        self._episode_num += len(ended)
        if self.action_noise is not None and len(ended) > 0:
            self.action_noise.reset(**({"indices": ended.tolist()} if self.n_envs > 1 else {}))

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray[Any, Any],
        new_obs: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        reward: np.ndarray[Any, Any],
        dones: np.ndarray[Any, Any],
        infos: list[dict[str, Any]],
    ) -> None:
        stored_obs, stored_reward = new_obs, reward
        if isinstance(infos, StepInfos):
            infos.settle()
        if self._vec_normalize_env is not None:
            stored_obs = self._vec_normalize_env.get_original_obs()
            stored_reward = self._vec_normalize_env.get_original_reward()
        self._refuse_non_finite("reward", stored_reward)
        self._refuse_non_finite("observation", stored_obs)
        at_once = isinstance(infos, StepInfos) and self._vec_normalize_env is None
        for last in [infos.final] if at_once else terminal_observations(infos, dones):  # type: ignore[attr-defined]  # they are
            if last is not None:
                self._refuse_non_finite("terminal observation", last)
        if at_once:
            next_obs = infos.next_observations(new_obs)  # type: ignore[attr-defined]  # likewise
            self._last_original_obs = self._last_obs
            replay_buffer.add(self._last_obs, next_obs, buffer_action, reward, dones, infos)  # type: ignore[arg-type]  # as SB3
            self._last_obs = new_obs
        else:
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._runtime.stored = StoredUpTo(replay_buffer, self._last_obs)
        self._count_observations(stored_obs, dones, infos)
        self._describe_episodes(replay_buffer, infos, dones)
        if self._return_moments is not None and self._running_returns is not None:
            skipped = getattr(infos, "skipped", None)
            stepped: Any = slice(None) if skipped is None else ~skipped
            running = self._running_returns[stepped]
            if len(running) > 0:
                count_returns(self._return_moments, running, stored_reward[stepped], dones[stepped], self.gamma)
                self._running_returns[stepped] = running
        if self._kept_steps is not None:
            self._kept_steps[np.asarray(dones, dtype=bool)] = 0  # a new episode has noise of its own

    def _update_info_buffer(self, infos: Any, dones: Any = None) -> None:
        """As in SB3, which looks at each environment; those whose episodes go on have nothing to tell here."""
        if isinstance(infos, StepInfos):
            infos, dones = infos.of_ended(), np.ones(len(infos.ended), dtype=bool)
        super()._update_info_buffer(infos, dones)

    def _describe_episodes(self, buffer: Any, infos: list[dict[str, Any]], dones: np.ndarray[Any, Any]) -> None:
        """Add what the replay buffer knows of the episodes that have ended to what their Monitor says of them.

        SB3 keeps the same dict in ``ep_info_buffer``, whose means are logged.
        """
        if isinstance(infos, StepInfos):
            found = list(zip(infos.ended.tolist(), infos.episodes, strict=False))  # no episodes, if nobody counts them
        else:
            asked = ((index, infos[index].get("episode")) for index in np.flatnonzero(dones).tolist())
            found = [(index, episode) for index, episode in asked if episode is not None]
        found = found[-self._stats_window_size :]  # no more are kept
        if found:
            indices, lengths = (np.array(part, np.int64) for part in zip(*((i, each["l"]) for i, each in found), strict=True))
            facts = describe(buffer, indices, lengths, self.gamma, self.action_space, self._vec_normalize_env)
            for (_, episode), of_one in zip(found, facts, strict=True):
                episode.update(of_one)

    def _count_observations(self, new_obs: Any, dones: Any, infos: list[dict[str, Any]]) -> None:
        """Each observation that a step has brought enters the statistics of the policy once, last ones of episodes too."""
        normalizer: Any = self.policy.normalizer
        if normalizer is None:
            return
        normalizer.update(new_obs)
        if isinstance(infos, StepInfos):
            if infos.final is not None:
                normalizer.update(infos.final)
            return
        last = terminal_observations(infos, dones)
        if last and normalizer.by_key:
            normalizer.update({name: np.stack([obs[name] for obs in last]) for name in normalizer.names})
        elif last:
            normalizer.update(np.stack(last))

    def _begin_episodes(self) -> None:
        """The environments have been reset: their first observations count, and returns begin at 0."""
        normalizer: Any = self.policy.normalizer
        if normalizer is not None:
            normalizer.update(self._last_obs)
        if self._return_moments is not None:
            self._running_returns = np.zeros(self.n_envs)

    def _refuse_non_finite(self, cause: str, values: Any) -> None:
        """One NaN in the replay buffer ruins every network, long after its cause is gone."""
        found = find_non_finite(cause, values)
        if found is None:
            return
        self._interrupt_episode()
        advice = "" if self._vec_normalize_env is None else " VecNormalize has counted it in its statistics: reload those."
        raise ValueError(
            f"Training stopped at step {self.num_timesteps}: the environment returned a non-finite {found}. "
            f"Nothing of this step was stored in the replay buffer.{advice}"
        )

    def _interrupt_episode(self) -> None:
        """Begin the next ``learn`` with a reset, and let no n-step return or hindsight goal reach across it."""
        self._last_obs = None
        close_trajectory(self.replay_buffer)

    def _continue_or_close_trajectory(self) -> None:
        """What is stored next must start where the newest stored transition ends, or the trajectory ends there."""
        if not self._runtime.stored.continues(self.replay_buffer, self._last_obs):
            close_trajectory(self.replay_buffer)
            self._forget_noise()


def terminal_observations(infos: Any, dones: Any) -> list[Any]:
    """The last observations of the episodes that have ended, where they are told."""
    ended = (infos[index] for index in np.flatnonzero(dones))
    return [info["terminal_observation"] for info in ended if info.get("terminal_observation") is not None]


def dead_workers(env: VecEnv) -> str:
    """The environments that have died in their processes, in words."""
    inner = env.unwrapped
    processes = inner.processes if isinstance(inner, SubprocVecEnv) else []
    for process in processes:
        process.join(timeout=0.1)  # it may be about to end
    dead = [(i, process) for i, process in enumerate(processes) if not process.is_alive()]
    return " ".join(
        f"The worker of environment {i} (process {process.pid}) has died with exit code {process.exitcode}."
        for i, process in dead
    )
