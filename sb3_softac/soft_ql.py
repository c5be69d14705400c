"""Soft Q-learning as a Stable-Baselines3 algorithm: its options, and the update that they describe."""

import io
import pathlib
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_softac.algorithm import LearningRate, SoftAlgorithm
from sb3_softac.arguments import DEFAULT_LEARNING_RATE, DEFAULT_TARGET_ENTROPY_SCALE
from sb3_softac.arguments.checks import refuse_for_discrete_actions
from sb3_softac.arguments.soft_ql import check_architecture, check_arguments, n_updated
from sb3_softac.configuration import ConfiguredAlgorithm, require_environment
from sb3_softac.engine import Compile, Precision
from sb3_softac.files import warm_start
from sb3_softac.networks import SoftQLCnnPolicy, SoftQLMultiInputPolicy, SoftQLPolicy
from sb3_softac.update import (
    CriticReduction,
    FixedTemperature,
    Kernel,
    SoftQSettings,
    SoftQUpdate,
    Temperature,
    TemperatureUpdate,
    Update,
    ValueProposal,
    check_kernel_values,
    gaussian_kernel,
)

SelfSoftQL = TypeVar("SelfSoftQL", bound="SoftQL")


class SoftQL(SoftAlgorithm):
    """Soft Q-learning (1702.08165): energy-based policies, π(a|s) ∝ exp(Q(s, a)/α).

    Q is learned towards the optimal soft Q-function by a soft maximum over actions. The actor is a sampler a = tanh f(ξ, s),
    trained by amortised Stein variational gradient descent towards π; it does not influence Q, and it may have several modes.
    Discrete actions need no sampler: everything is an exact sum. Equations, sources and option names: docs/algorithm.md.

    The positional arguments are those of SB3's ``SAC`` in the same order, but for gSDE, which has no meaning here; the
    keyword-only ones are ours. Learning rates are what ``SoftAC`` takes, from ``"3e-4"`` to
    ``"warm_1000_cos_3e-4_1.5e-4"``.

    ``predict(deterministic=True)`` takes, of ``kernel_particles`` actions, the one with the largest Q. Their noise is fixed
    when the policy is built, and saved with it, so that the action is a function of the observation.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``SoftQLPolicy``
    :param env: environment to learn from, or its registered name; its actions must be a bounded ``Box`` or ``Discrete``
    :param learning_rate: learning rate of both networks and of the temperature, unless one has its own
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: environment steps before the first update
    :param batch_size: transitions per gradient step
    :param tau: Polyak coefficient of the targets, in [0, 1]; 1 copies them
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every n steps, or ``(n, "step")``, ``(n, "episode")``
    :param gradient_steps: gradient steps per update; −1 for as many as environment steps since the last one
    :param action_noise: noise added to the sampled actions
    :param replay_buffer_class: replay buffer, for instance ``HerReplayBuffer``; None selects SB3's by itself
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: SB3's memory-efficient replay buffer
    :param n_steps: steps of the n-step return
    :param ent_coef: temperature α, in units of scaled reward per nat: a number above 0 or a schedule; with ``Discrete``
        actions, whose entropy is exact, also ``"auto"`` (learned from 1) or ``"auto_0.1"`` (learned from 0.1)
    :param target_update_interval: gradient steps between two updates of the targets, counted over the whole training
    :param target_entropy: H̄ in nats, of a learned α; ``"auto"`` is ``target_entropy_scale``·log|A|
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder for TensorBoard logs
    :param policy_kwargs: arguments of the policy, see ``SoftQLPolicy``
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of all random generators; used at construction, and at ``load`` only if passed there again
    :param device: PyTorch device
    :param _init_setup_model: build networks and buffer now
    :param kernel_particles: K, actions of the sampler in each state of a batch
    :param kernel_update_ratio: part of them that is moved; the others are where the density is evaluated
    :param kernel: kernel of the Stein variational gradient, a function of fixed (B, J, A) and updated (B, I, A) particles that
        returns ``KernelValues``: values (B, J, I) and gradients by the fixed ones (B, J, I, A). It is compiled under
        ``compile="auto"`` if it has an attribute ``compilable = True``
    :param value_particles: M, actions over which the soft value of the next state is taken
    :param value_proposal: distribution that they come from: ``"uniform"`` on [−1, 1]^A, or ``"policy"``, which needs a sampler
        with a density (``policy_kwargs={"sampler": "gaussian"}``)
    :param noise_dim: dimension of the sampler's noise; None for that of the actions
    :param target_q: reduction over the critics, everywhere: ``"min"``, ``"mean"`` or ``"first"``
    :param ent_coef_update: how a learned α moves: ``"dual"``, ``"log"`` or ``"exp"``, as in ``SoftAC``
    :param ent_coef_max: upper bound of a learned α
    :param target_entropy_scale: the automatic H̄ as a fraction of log|A|, in [0, 1)
    :param actor_learning_rate: learning rate of the sampler; None for ``learning_rate``
    :param critic_learning_rate: learning rate of the critics; None for ``learning_rate``
    :param ent_coef_learning_rate: learning rate of a learned α; None for ``learning_rate``
    :param random_steps: uniformly random environment steps at the start; None for ``learning_starts``
    :param reward_scale: factor k on every reward in the critics' targets: the temperature as published is 1/k
    :param max_grad_norm: clip each network's gradient to this Euclidean norm
    :param precision: of large matmuls in gradient steps: ``"float32"``, or ``"bfloat16"`` on processors with
        AVX512-BF16 or AMX and on GPUs; weights, optimizer states, targets and losses stay float32
    :param overlap: do the gradient steps of a rollout while the environments take the steps of the next one, in other
        processes (``SubprocVecEnv``); the policy that acts lags by one rollout
    :param compile: compile the gradient step, as in ``SoftAC``
    :param distributed: train in several processes, as in ``SoftAC``
    :raises ValueError: a value out of range, or options that contradict each other
    """

    log_name = "SoftQL"
    policy_base = SoftQLPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SoftQLPolicy,
        "CnnPolicy": SoftQLCnnPolicy,
        "MultiInputPolicy": SoftQLMultiInputPolicy,
    }
    fixed_options = ConfiguredAlgorithm.fixed_options | {"kernel_particles", "noise_dim"}
    #: the gradient step; a subclass may replace it
    update_class: ClassVar[type[Update]] = SoftQUpdate

    def __init__(
        self,
        policy: str | type[SoftQLPolicy],
        env: GymEnv | str,
        learning_rate: LearningRate = DEFAULT_LEARNING_RATE,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float | Schedule = 1.0,
        target_update_interval: int = 1000,
        target_entropy: str | float = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kernel_particles: int = 16,
        kernel_update_ratio: float = 0.5,
        kernel: Kernel = gaussian_kernel,
        value_particles: int = 16,
        value_proposal: ValueProposal = "uniform",
        noise_dim: int | None = None,
        target_q: CriticReduction = "min",
        ent_coef_update: TemperatureUpdate = "dual",
        ent_coef_max: float | None = None,
        target_entropy_scale: float = DEFAULT_TARGET_ENTROPY_SCALE,
        actor_learning_rate: LearningRate | None = None,
        critic_learning_rate: LearningRate | None = None,
        ent_coef_learning_rate: LearningRate | None = None,
        random_steps: int | None = None,
        reward_scale: float = 1.0,
        max_grad_norm: float | None = None,
        precision: Precision = "float32",
        compile: Compile = "auto",
        overlap: bool = False,
        distributed: bool | dict[str, Any] | None = None,
    ) -> None:
        require_environment(env, _init_setup_model)
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.target_entropy = target_entropy
        self.kernel_particles = kernel_particles
        self.kernel_update_ratio = kernel_update_ratio
        self.kernel: Kernel = kernel
        self.value_particles = value_particles
        self.value_proposal: ValueProposal = value_proposal
        self.noise_dim = noise_dim
        self.target_q: CriticReduction = target_q
        self.ent_coef_update: TemperatureUpdate = ent_coef_update
        self.ent_coef_max = ent_coef_max
        self.target_entropy_scale = target_entropy_scale
        self.actor_learning_rate = actor_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.random_steps = random_steps
        self.reward_scale = reward_scale
        self.max_grad_norm = max_grad_norm
        self.precision: Precision = precision
        self.compile: Compile = compile
        self.overlap = overlap
        self.distributed = distributed
        super().__init__(
            policy,
            env,
            learning_rate=cast(float, learning_rate),  # SB3 only stores it
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
        )
        if _init_setup_model:
            self._setup_model()

    # --- the update that the options describe -------------------------------------------------------------------------

    def _check_arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.action_space, spaces.Discrete):
            refuse_for_discrete_actions(options, {"kernel": gaussian_kernel})
        weights_follow = self._runtime.set_up.weights_follow
        return check_arguments(options, self.observation_space, self.action_space, self.n_envs, weights_follow)

    def _check_architecture(self) -> None:
        self._built_for = check_architecture(self, self._built_for, self._runtime.set_up.expected_policy_kwargs)

    def _policy_options(self) -> dict[str, Any]:
        return {"kernel_particles": self.kernel_particles, "noise_dim": self.noise_dim, "target_q": self.target_q}

    def _make_temperature(self, clip_initial: bool = False) -> Temperature:
        temperature = super()._make_temperature(clip_initial)
        for progress in (1.0, 0.0):
            self._check_temperature(temperature, progress)
        return temperature

    def _check_temperature(self, temperature: Temperature, progress: float) -> None:
        """Refuse a temperature of 0 with continuous actions, where Q is divided by it."""
        if isinstance(self.action_space, spaces.Discrete) or not isinstance(temperature, FixedTemperature):
            return
        value = float(np.float32(temperature.schedule(progress)))
        if not value > 0.0:
            raise ValueError(
                f"`ent_coef` is {self.ent_coef!r}, which is {value:g} at a remaining progress of {progress:g}, but it must "
                "stay above 0 with continuous actions: Q is divided by it. A schedule with an end, such as 'lin_1_0.01', does."
            )

    def _update_schedules(self) -> None:
        self._check_temperature(self.temperature, max(self._current_progress_remaining, 0.0))
        super()._update_schedules()

    def _apply_options(self, changed: Any) -> None:
        super()._apply_options(changed)
        self._check_density()
        self._act_as_described()

    def _check_density(self) -> None:
        if self.value_proposal == "policy" and not self.policy.actor.has_density:
            raise ValueError(
                "`value_proposal` is 'policy', but it must be 'uniform': the sampler has no density. One that has it: "
                'policy_kwargs={"sampler": "gaussian"}.'
            )

    def _make_update(self) -> Update:
        self._check_density()
        settings = SoftQSettings(
            clip_gradients=self.max_grad_norm is not None,
            precision=self.precision,
            target_q=self.target_q,
            value_particles=self.value_particles,
            value_proposal=self.value_proposal,
            kernel_particles=self.kernel_particles,
            n_updated=n_updated(self.kernel_particles, self.kernel_update_ratio),
            kernel=self.kernel,
        )
        return self.update_class(self.policy, self.temperature, settings)

    def _set_numbers(self, update: Update) -> None:
        super()._set_numbers(update)
        self._act_as_described()

    def _act_as_described(self) -> None:
        """The policy also acts without the algorithm: it knows for itself which Q counts, and α for discrete actions."""
        cast(SoftQLPolicy, self.policy).target_q = self.target_q
        if isinstance(self.action_space, spaces.Discrete):
            self.policy.actor.ent_coef.copy_(self.temperature.value)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._follow_options()
        self._check_kernel()
        return super()._setup_learn(*args, **kwargs)

    def _check_kernel(self) -> None:
        """Refuse a kernel that returns other shapes than it must, before anything is collected."""
        if isinstance(self.action_space, spaces.Discrete) or self.kernel is gaussian_kernel:
            return
        n_moved = n_updated(self.kernel_particles, self.kernel_update_ratio)
        generator = th.Generator().manual_seed(0)  # the training's own random numbers are not for this
        shape = (2, self.kernel_particles, self.policy.actor.action_dim)
        particles = th.rand(shape, generator=generator).to(self.device)
        fixed, updated = particles[:, n_moved:], particles[:, :n_moved]
        check_kernel_values(self.kernel(fixed, updated), fixed, n_moved)

    # --- other models and files ---------------------------------------------------------------------------------------

    def warm_start(
        self: SelfSoftQL,
        source: "str | pathlib.Path | io.BufferedIOBase | SoftQL",
        temperature: bool = False,
        *,
        trusted: bool = False,
    ) -> SelfSoftQL:
        """Take over the weights of another model's networks and targets, to train on from its policy.

        All else is as it was constructed: optimizers start again, and a learned α at its initial value. Uniformly random
        steps at the start would hide the policy; ``random_steps=0`` skips them.

        :param source: a ``SoftQL``, or the file that one was saved to
        :param temperature: take over α too, within ``ent_coef_max``; this model must learn its temperature
        :param trusted: run whatever code the file holds, as SB3 does
        :return: this model
        :raises ValueError: another kind of source, other spaces, or networks of other shapes
        """
        self._follow_options()
        warm_start.warm_start(self, source, temperature, SoftQL, takes_sac=False, trusted=trusted)
        self._act_as_described()
        return self

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """As in ``SoftAC``."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._act_as_described()
