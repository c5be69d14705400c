"""Soft actor-critic as a Stable-Baselines3 algorithm: its options, and the update that they describe."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_softac.algorithm import LearningRate, SoftAlgorithm
from sb3_softac.arguments import DEFAULT_LEARNING_RATE, DEFAULT_TARGET_ENTROPY_SCALE
from sb3_softac.arguments.checks import refuse
from sb3_softac.arguments.soft_ac import (
    check_architecture,
    check_arguments,
    check_critics,
    warn_of_joint_bootstrap,
    warn_of_many_updates,
)
from sb3_softac.configuration import ConfiguredAlgorithm, policy_network, require_environment
from sb3_softac.engine import Compile, Precision
from sb3_softac.files import conversion, to_sb3, warm_start
from sb3_softac.networks import SB3_EQUIVALENTS, CnnPolicy, Encoder, MlpPolicy, MultiInputPolicy, SoftACPolicy, ValueNetwork
from sb3_softac.update import (
    ActorCriticSettings,
    ActorCriticUpdate,
    ActorQ,
    Bootstrap,
    CriticReduction,
    TemperatureUpdate,
    Update,
    batch_norm_layers,
)

SelfSoftAC = TypeVar("SelfSoftAC", bound="SoftAC")


class SoftAC(SoftAlgorithm):
    """Soft actor-critic with every published variant as an option.

    Equations, sources and option names: docs/algorithm.md. The positional arguments are those of SB3's ``SAC``, with the
    same names, order and defaults; the keyword-only ones are ours. Learning rates are numbers, callables of the remaining
    progress (1 to 0) or strings: ``"3e-4"``, ``"lin_3e-4"`` (to 0), ``"lin_3e-4_1e-10"``, ``"exp_3e-4_1e-10"``,
    ``"cos_3e-4_1.5e-4"``, and ``"lin_3e-4_1e-10_100"`` to decay in 100 steps, by epoch. ``"warm_1000_"`` before any of them
    lets the rate rise linearly from 0 over the first 1000 environment steps: ``"warm_1000_cos_3e-4_1.5e-4"``.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``SoftACPolicy``
    :param env: environment to learn from, or its registered name; its actions must be a bounded ``Box`` or ``Discrete``
    :param learning_rate: learning rate of every network and of the temperature, unless one has its own
    :param buffer_size: capacity of the replay buffer, in transitions
    :param learning_starts: environment steps before the first update
    :param batch_size: transitions per gradient step
    :param tau: Polyak coefficient of the targets, in [0, 1]
    :param gamma: discount factor, in [0, 1]
    :param train_freq: update every n steps, or ``(n, "step")``, ``(n, "episode")``
    :param gradient_steps: gradient steps per update; −1 for as many as environment steps since the last one
    :param action_noise: noise added to the sampled actions, also to those of gSDE
    :param replay_buffer_class: replay buffer, for instance ``HerReplayBuffer``; None selects SB3's by itself
    :param replay_buffer_kwargs: its arguments
    :param optimize_memory_usage: SB3's memory-efficient replay buffer
    :param n_steps: steps of the n-step return
    :param ent_coef: temperature α, in units of reward per nat: a number, a schedule, ``"auto"`` (learned from 1) or
        ``"auto_0.1"`` (learned from 0.1)
    :param target_update_interval: gradient steps between two updates of the targets, counted over the whole training
    :param target_entropy: H̄ in nats, in the action space scaled to [−1, 1]; ``"auto"`` is minus the action dimension A,
        for discrete actions ``target_entropy_scale``·log|A|; ``"auto_0.5"`` is −A/2, ``"std_0.15"`` A/2·log(2πe·0.15²), the
        entropy of a Gaussian of this σ
    :param use_sde: generalized state-dependent exploration
    :param sde_sample_freq: steps between two draws of the gSDE noise matrix; −1 for one per rollout
    :param use_sde_at_warmup: gSDE instead of uniform random actions at the start
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder for TensorBoard logs
    :param policy_kwargs: arguments of the policy, see ``SoftACPolicy``
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of all random generators; used at construction, and at ``load`` only if passed there again
    :param device: PyTorch device
    :param _init_setup_model: build networks and buffer now
    :param value_network: learn V(s) and bootstrap from a target V instead of target critics (1801.01290)
    :param bootstrap: from ``"target"`` networks; ``"joint"``: from the critics themselves, in one pass with the values that
        are trained, which needs batch normalisation (CrossQ, 1902.05605); ``"joint_target"``: such a pass, through target
        networks too (FlashSAC, 2604.04539)
    :param actor_q: Q of the actor loss: ``"min"``, ``"mean"``, ``"first"`` of the critics, or ``"target_min"``, the minimum
        over the target critics; None is ``"min"``, with quantile critics ``"mean"``
    :param target_q: reduction over the critics in targets: ``"min"``, ``"mean"`` or ``"first"``; with quantile critics
        ``"min"`` pools the quantiles of all, ``"mean"`` averages them one by one
    :param target_subset: take it over this many critics, drawn at random at each gradient step (REDQ, 2101.05982);
        ``"first"`` is then the first that was drawn
    :param top_quantiles_to_drop_per_net: with quantile critics: how many of the largest quantiles targets leave out, for
        each critic (TQC, 2005.04269)
    :param ent_coef_update: how a learned α moves: ``"dual"`` is projected dual ascent on α itself, ``"log"`` SB3's Adam on
        log α, ``"exp"`` softlearning's
    :param ent_coef_max: upper bound of a learned α
    :param actor_learning_rate: learning rate of the actor; None for ``learning_rate``
    :param critic_learning_rate: learning rate of the critics; None for ``learning_rate``
    :param value_learning_rate: learning rate of the value network; None for ``learning_rate``
    :param ent_coef_learning_rate: learning rate of a learned α; None for ``learning_rate``
    :param random_steps: uniformly random environment steps at the start; None for ``learning_starts``
    :param noise_repeat: keep the noise ε of an action tanh(μ(s) + σ(s)·ε) for n steps, n at most this number, drawn from the
        zeta distribution with exponent 2; each environment by itself, with new noise where an episode begins (FlashSAC, 2026).
        Random steps at the start and ``action_noise``, which is added, are as without it; gSDE and ``Discrete`` actions have
        no such noise
    :param policy_delay: gradient steps per update of actor and temperature, counted over the whole training
    :param resets: after how many gradient steps, counted over the whole training, networks (features extractors too), targets
        and optimizers start again, and a learned α at its initial value: increasing numbers, or n for every n-th. It happens
        when exactly n updates have been done, before update n + 1. New weights come from PyTorch's present random generator.
        Replay buffer, counters, schedules and frozen parameters stay (2205.07802; BRO, 2405.16158)
    :param target_entropy_scale: the automatic H̄ of ``Discrete`` actions as a fraction of log|A|, the entropy of the uniform
        policy, in [0, 1); ``Box`` actions have −A at any scale
    :param soft_n_step: with ``n_steps`` above 1: count the entropies of the states inside the return, too
    :param reward_scale: factor k on every reward in the critics' targets; negative turns a reward into a cost
    :param normalize_observations: networks see (x − mean)/√(variance + 1e-8) of each feature, by the statistics of all
        observations that were collected; they are part of the policy, and nothing is clipped (SimBa, 2410.09754)
    :param normalize_rewards: G_max > 0: divide rewards in the critics' targets by the standard deviation of the discounted
        return G, and by no less than max|G|/G_max (SimbaV2, 2502.15280); None for rewards as they are
    :param max_grad_norm: clip each network's gradient to this Euclidean norm
    :param precision: of large matmuls in gradient steps: ``"float32"``, or ``"bfloat16"`` on processors with
        AVX512-BF16 or AMX and on GPUs; weights, optimizer states, targets and losses stay float32
    :param overlap: do the gradient steps of a rollout while the environments take the steps of the next one, in other
        processes (``SubprocVecEnv``); the policy that acts lags by one rollout
    :param compile: compile the gradient step: True, False, or ``"auto"`` where the gradient steps that were done in this
        process and are to come are so many that it pays off. On CUDA devices anything but False also captures it in a CUDA
        graph. Results differ in rounding
    :param distributed: train one model in several processes, each with environments and a replay buffer of its own: True
        joins the group that torchrun describes, ``dict(timeout=60.0)`` with this time-out in seconds; None does so if the
        process is in a group of ``torch.distributed`` already; False never does. See docs/distributed.md
    :raises ValueError: a value out of range, or options that contradict each other
    """

    log_name = "SoftAC"
    policy_base = SoftACPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    sb3_equivalents = SB3_EQUIVALENTS
    fixed_options = ConfiguredAlgorithm.fixed_options.union(
        ("value_network", "bootstrap", "use_sde", "soft_n_step", "normalize_observations")
    )
    value_net: ValueNetwork | None = policy_network("value_net")
    value_net_target: ValueNetwork | None = policy_network("value_net_target")
    #: the gradient step; a subclass may replace it
    update_class: ClassVar[type[Update]] = ActorCriticUpdate

    def __init__(
        self,
        policy: str | type[SoftACPolicy],
        env: GymEnv | str,
        learning_rate: LearningRate = DEFAULT_LEARNING_RATE,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float | Schedule = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        value_network: bool = False,
        bootstrap: Bootstrap = "target",
        actor_q: ActorQ | None = None,
        target_q: CriticReduction = "min",
        target_subset: int | None = None,
        top_quantiles_to_drop_per_net: int = 2,
        ent_coef_update: TemperatureUpdate = "dual",
        ent_coef_max: float | None = None,
        target_entropy_scale: float = DEFAULT_TARGET_ENTROPY_SCALE,
        actor_learning_rate: LearningRate | None = None,
        critic_learning_rate: LearningRate | None = None,
        value_learning_rate: LearningRate | None = None,
        ent_coef_learning_rate: LearningRate | None = None,
        random_steps: int | None = None,
        noise_repeat: int | None = None,
        policy_delay: int = 1,
        resets: int | Sequence[int] | None = None,
        soft_n_step: bool = False,
        reward_scale: float = 1.0,
        normalize_observations: bool = False,
        normalize_rewards: float | None = None,
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
        self.value_network = value_network
        self.bootstrap: Bootstrap = bootstrap
        self.actor_q: ActorQ | None = actor_q
        self.target_q: CriticReduction = target_q
        self.target_subset = target_subset
        self.top_quantiles_to_drop_per_net = top_quantiles_to_drop_per_net
        self.ent_coef_update: TemperatureUpdate = ent_coef_update
        self.ent_coef_max = ent_coef_max
        self.target_entropy_scale = target_entropy_scale
        self.actor_learning_rate = actor_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.value_learning_rate = value_learning_rate
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.random_steps = random_steps
        self.noise_repeat = noise_repeat
        self.policy_delay = policy_delay
        self.resets = resets
        self.soft_n_step = soft_n_step
        self.reward_scale = reward_scale
        self.normalize_observations = normalize_observations
        self.normalize_rewards = normalize_rewards
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
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
        )
        if _init_setup_model:
            self._setup_model()

    # --- the update that the options describe -------------------------------------------------------------------------

    def _check_arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        weights_follow = self._runtime.set_up.weights_follow
        return check_arguments(options, self.observation_space, self.action_space, self.n_envs, weights_follow)

    def _check_architecture(self) -> None:
        self._built_for = check_architecture(self, self._built_for, self._runtime.set_up.expected_policy_kwargs)

    def _policy_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("use_sde", "value_network", "normalize_observations")}

    def _setup_model(self) -> None:
        if self.bootstrap == "joint":
            if self.policy_kwargs.get("target_networks"):
                refuse("policy_kwargs['target_networks']", True, "False with `bootstrap='joint'`, which has none")
            self.policy_kwargs = {**self.policy_kwargs, "target_networks": False}
        super()._setup_model()
        warn_of_joint_bootstrap(self.bootstrap, bool(batch_norm_layers(self.critic)))
        self._check_critics(warn=not self._runtime.set_up.weights_follow)  # a new model

    def _check_critics(self, warn: bool) -> None:
        options = self._options()
        check_critics(options, self.critic, self.policy.critic_head)
        if options["batch_size"] == 1 and any(
            batch_norm_layers(network) for network in self.policy.trained_networks().values()
        ):
            raise ValueError("`batch_size` is 1, but it must be at least 2 with batch normalisation, which needs a variance.")
        if warn:
            encoders = [module for module in self.critic.modules() if isinstance(module, Encoder)]
            warn_of_many_updates(options, self.n_envs, all(encoder.normalizes for encoder in encoders))

    def _apply_options(self, changed: Any) -> None:
        super()._apply_options(changed)
        self._check_critics(warn=not changed.isdisjoint(("gradient_steps", "train_freq")))

    def _make_update(self) -> Update:
        settings = ActorCriticSettings(
            clip_gradients=self.max_grad_norm is not None,
            precision=self.precision,
            actor_q=self.actor_q or "min",
            target_q=self.target_q,
            target_subset=self.target_subset,
            n_dropped=self.top_quantiles_to_drop_per_net,
            bootstrap=self.bootstrap,
        )
        return self.update_class(self.policy, self.temperature, settings)

    # --- other models and files ---------------------------------------------------------------------------------------

    def warm_start(
        self: SelfSoftAC,
        source: str | pathlib.Path | io.BufferedIOBase | OffPolicyAlgorithm,
        temperature: bool = False,
        *,
        trusted: bool = False,
    ) -> SelfSoftAC:
        """Take over the weights of another model's networks and targets, to train on from its policy.

        All else is as it was constructed: optimizers start again, and α at its initial value. Uniformly random steps at the
        start would hide the policy; ``random_steps=0`` skips them.

        :param source: a ``SoftAC``, SB3 ``SAC``, sb3-contrib ``TQC`` or ``CrossQ``, or the file that one was saved to
        :param temperature: take over α too, within ``ent_coef_max``; this model must learn its temperature
        :param trusted: run whatever code the file holds, as SB3 does
        :return: this model
        :raises ValueError: another kind of source, other spaces, networks of other shapes, or an α that has no place here
        """
        self._follow_options()
        warm_start.warm_start(self, source, temperature, SoftAC, takes_sac=True, trusted=trusted)
        return self

    @classmethod
    def from_sb3(
        cls: type[SelfSoftAC],
        sac: OffPolicyAlgorithm | str | pathlib.Path | io.BufferedIOBase,
        *,
        trusted: bool = False,
        **ours: Any,
    ) -> SelfSoftAC:
        """Take over a model of SB3's ``SAC``, or of sb3-contrib's ``TQC`` or ``CrossQ``, to train on.

        What it has learned and counted comes along: weights, targets, statistics of batch renormalisation, optimizers,
        temperature, counters. Environment and replay buffer are handed over, not copied; a file has none. A learned
        temperature continues in SB3's form (``ent_coef_update="log"``), so that training goes on as it would there, unless
        another form is asked for.

        :param sac: the model, or the file that it was saved to, as a name or a binary stream
        :param trusted: run whatever code the file holds, as SB3 does
        :param ours: arguments of ``SoftAC`` that replace those of ``sac``, such as ``env``
        :return: the new model
        :raises ValueError: ``sac`` is another model, has an option that has no place here, or has no weights or no buffer for
            what ``ours`` asks for
        """
        return cast(SelfSoftAC, conversion.continue_sac(cls, sac, ours, trusted))

    def to_sb3(self) -> SAC:
        """Give an SB3 ``SAC`` that continues this model: weights, targets, optimizers, temperature and counters.

        Environment and replay buffer are handed over, not copied.

        :return: the new model
        :raises ValueError: an option that SB3's ``SAC`` does not have; the message lists all
        """
        self._follow_options()
        return to_sb3.to_sac(self)
