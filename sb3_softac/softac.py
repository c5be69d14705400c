"""Soft actor-critic as a Stable-Baselines3 algorithm."""

import inspect
import io
import math
import pathlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import (
    check_for_correct_spaces,
    get_parameters_by_name,
    update_learning_rate,
)
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import batches, conversion, export, files, graphs, losses, optimizers
from sb3_softac.acting import CapturedActor, DirectActor, make_actor
from sb3_softac.arguments import (
    DEFAULT_LEARNING_RATE,
    DEFAULT_TARGET_ENTROPY_SCALE,
    check_action_space,
    check_arguments,
    check_count,
    check_flag,
)
from sb3_softac.batches import Batch, BlockSampler
from sb3_softac.distributions import ActionProbabilities, SampledActions
from sb3_softac.engine import DRAWN_INSIDE, Compile, Engine, Metrics, Noise, Turns, missing_for_compilation, why_only_eager
from sb3_softac.losses import CriticReduction
from sb3_softac.networks import Members
from sb3_softac.optimizers import Descend
from sb3_softac.policies import (
    SB3_EQUIVALENTS,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SoftACPolicy,
    StackedCritics,
    ValueNetwork,
)
from sb3_softac.schedules import check_rate, parse_schedule
from sb3_softac.temperature import LearnedTemperature, Temperature, TemperatureUpdate, make_temperature

ActorQ = Literal["min", "mean", "first", "target_min"]
Rate = float | str | Schedule
SelfSoftAC = TypeVar("SelfSoftAC", bound="SoftAC")

FIRST_CRITIC = slice(0, 1)
LARGEST_FLOAT32 = np.finfo(np.float32).max  # not a float: NumPy would round it to the type of what it is compared with
#: the methods that compute a gradient step
STEP = (
    *("_update", "_bellman_target", "_target_reduction", "_update_value_network", "_update_critics", "_update_actor"),
    *("_update_temperature", "_update_targets", "_minimise", "_draw_noise", "_draw_members"),
)


class SoftAC(OffPolicyAlgorithm):
    """Soft actor-critic with every published variant as an option.

    Equations, sources and option names: docs/algorithm.md. The positional arguments are those of SB3's ``SAC``, with the
    same names, order and defaults; the keyword-only ones are ours. Rates are numbers, callables of the remaining progress
    (1 to 0) or strings: ``"3e-4"``, ``"lin_3e-4"`` (to 0), ``"lin_3e-4_1e-10"``, ``"exp_3e-4_1e-10"``, and
    ``"lin_3e-4_1e-10_100"`` to decay in 100 stairs, by epoch.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``SoftACPolicy``
    :param env: environment to learn from, or its registered name; its actions must be a bounded ``Box`` or ``Discrete``
    :param learning_rate: rate of every network and of the temperature, unless one has its own
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
    :param target_entropy: H̄ in nats, in the action space scaled to [−1, 1]; ``"auto"`` is minus the action dimension,
        for discrete actions ``target_entropy_scale``·log|A|
    :param use_sde: generalized state-dependent exploration
    :param sde_sample_freq: steps between two draws of the gSDE noise matrix; −1 for one per rollout
    :param use_sde_at_warmup: gSDE in place of uniform random actions at the start
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder for TensorBoard logs
    :param policy_kwargs: arguments of the policy, see ``SoftACPolicy``
    :param verbose: 0 silent, 1 information, 2 debug
    :param seed: seed of all random generators; used at construction, and at ``load`` only if passed there again
    :param device: PyTorch device
    :param _init_setup_model: build networks and buffer now
    :param value_network: learn V(s) and bootstrap from a target V in place of target critics (1801.01290)
    :param actor_q: Q of the actor loss: ``"min"``, ``"mean"``, ``"first"`` of the critics, or ``"target_min"``, the minimum
        over the target critics
    :param target_q: reduction over the critics in targets: ``"min"``, ``"mean"`` or ``"first"``
    :param target_subset: take it over this many critics, drawn at random at each gradient step (REDQ, 2101.05982);
        ``"first"`` is then the first that was drawn
    :param ent_coef_update: how a learned α moves: ``"dual"`` is projected dual ascent on α itself, ``"log"`` SB3's Adam on
        log α, ``"exp"`` softlearning's
    :param ent_coef_max: upper bound of a learned α
    :param actor_learning_rate: rate of the actor; None for ``learning_rate``
    :param critic_learning_rate: rate of the critics; None for ``learning_rate``
    :param value_learning_rate: rate of the value network; None for ``learning_rate``
    :param ent_coef_learning_rate: rate of a learned α; None for ``learning_rate``
    :param random_steps: uniformly random environment steps at the start; None for ``learning_starts``
    :param policy_delay: gradient steps per update of actor and temperature, counted over the whole training
    :param target_entropy_scale: the automatic H̄ of ``Discrete`` actions as a fraction of log|A|, the entropy of the uniform
        policy, in [0, 1); ``Box`` actions have −A at any scale
    :param reward_scale: factor k on every reward in the critics' targets; negative turns a reward into a cost
    :param max_grad_norm: clip each network's gradient to this Euclidean norm
    :param compile: compile the gradient step: True, False, or ``"auto"`` where the gradient steps of a ``learn()`` are so many
        that it pays off. On CUDA devices anything but False also captures it in a CUDA graph. Results differ in rounding
    :raises ValueError: a value out of range, or options that contradict each other
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: SoftACPolicy
    actor: Any  #: Actor, or CategoricalActor for discrete actions: a union would hide the attributes of each
    critic: StackedCritics
    critic_target: StackedCritics | None
    value_net: ValueNetwork | None
    value_net_target: ValueNetwork | None
    temperature: Temperature

    def __init__(
        self,
        policy: str | type[SoftACPolicy],
        env: GymEnv | str,
        learning_rate: Rate = DEFAULT_LEARNING_RATE,
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
        actor_q: ActorQ = "min",
        target_q: CriticReduction = "min",
        target_subset: int | None = None,
        ent_coef_update: TemperatureUpdate = "dual",
        ent_coef_max: float | None = None,
        target_entropy_scale: float = DEFAULT_TARGET_ENTROPY_SCALE,
        actor_learning_rate: Rate | None = None,
        critic_learning_rate: Rate | None = None,
        value_learning_rate: Rate | None = None,
        ent_coef_learning_rate: Rate | None = None,
        random_steps: int | None = None,
        policy_delay: int = 1,
        reward_scale: float = 1.0,
        max_grad_norm: float | None = None,
        compile: Compile = "auto",
    ) -> None:
        if env is None and _init_setup_model:  # `load` builds a model without one, and sets it up later
            raise ValueError("`env` is None, but it must be an environment or the name of a registered one.")
        if env is not None:
            env = self._wrap_env(maybe_make_env(env, verbose), verbose)
            check_action_space(env.action_space, use_sde)  # SB3 asserts some of it
        for name, value in (("use_sde", use_sde), ("value_network", value_network)):
            if (policy_kwargs or {}).get(name, value) != value:
                raise ValueError(f"`policy_kwargs` contains {name}, but it must be an argument of SoftAC itself.")
        super().__init__(
            self._resolve_policy(policy),
            env,
            cast(float, learning_rate),  # SB3 only stores it; `_setup_lr_schedule` is ours
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            # SB3 writes into both dicts: what the user passed stays as it was.
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=dict(policy_kwargs or {}),
            stats_window_size=check_count("stats_window_size", stats_window_size, 1),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            support_multi_env=True,
        )
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.target_entropy = target_entropy
        self.value_network = value_network
        self.actor_q: ActorQ = actor_q
        self.target_q: CriticReduction = target_q
        self.target_subset = target_subset
        self.ent_coef_update: TemperatureUpdate = ent_coef_update
        self.ent_coef_max = ent_coef_max
        self.target_entropy_scale = target_entropy_scale
        self.actor_learning_rate = actor_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.value_learning_rate = value_learning_rate
        self.ent_coef_learning_rate = ent_coef_learning_rate
        self.random_steps = random_steps
        self.policy_delay = policy_delay
        self.reward_scale = reward_scale
        self.max_grad_norm = max_grad_norm
        self.compile: Compile = compile
        self._engine = Engine()
        self._block_sampler: BlockSampler | None = None
        #: what the newest ``train()`` has to report, while it is still on the device: sums by names, and numbers of steps
        self._unread_metrics: list[tuple[tuple[str, ...], graphs.Report, int]] = []
        self._automatic_replay_buffer = replay_buffer_class is None
        #: what samples actions in place of `predict`, while `learn` runs
        self._direct_actor: DirectActor | CapturedActor | None = None
        #: what the weights in a saved file were built for; None until they are built
        self._built_for: dict[str, Any] | None = None
        #: the target entropy that replaced "auto", so that `load` can tell it from one that was asked for
        self._automatic_target_entropy: float | None = None
        self._seed_at_setup = True
        #: whether weights are put in place after the setup, by `load` or `from_sb3`
        self._weights_follow = False
        #: policy arguments that were passed to `load`, and must be those of the file
        self._expected_policy_kwargs: dict[str, Any] | None = None
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _resolve_policy(cls, policy: str | type[BasePolicy]) -> str | type[BasePolicy]:
        """Map SB3's own policy classes to ours, and refuse what is no policy of ours."""
        if isinstance(policy, str):
            if policy in cls.policy_aliases:
                return policy
        elif isinstance(policy, type) and issubclass(resolved := SB3_EQUIVALENTS.get(policy, policy), SoftACPolicy):
            return resolved
        raise ValueError(
            f"`policy` is {policy!r}, but it must be one of {', '.join(map(repr, cls.policy_aliases))} "
            "or a subclass of SoftACPolicy."
        )

    def _setup_model(self) -> None:
        self._refuse_other_architecture()
        check_action_space(self.action_space, self.use_sde)
        if self.target_entropy == self._automatic_target_entropy:
            self.target_entropy = "auto"
        arguments = {"automatic_replay_buffer": self._automatic_replay_buffer}
        arguments |= {name: getattr(self, name) for name in self._option_names() if hasattr(self, name)}
        self.__dict__.update(check_arguments(arguments, self.observation_space, self.action_space, self.n_envs))
        if not self._weights_follow:
            self._refuse_an_unused_rate()
        self.policy_kwargs = {**self.policy_kwargs, "use_sde": self.use_sde}
        if self.value_network:
            self.policy_kwargs["value_network"] = True
        self._setup_host()
        self._create_aliases()
        self._setup_temperature()
        self._engine = Engine()  # `load` leaves the constructor's one behind
        if not self._weights_follow:
            self._refuse_impossible_compilation()
        if self.target_subset is not None and self.target_subset > self.critic.n_critics:
            raise ValueError(
                f"`target_subset` is {self.target_subset}, but it must be at most `n_critics`={self.critic.n_critics}."
            )
        if self.env is not None and self.replay_buffer is None:
            self._allocate_replay_buffer()

    def _setup_host(self) -> None:
        """Run SB3's setup, but without three of its effects."""
        held = self.replay_buffer, self.replay_buffer_kwargs, self.seed
        # SB3 allocates a buffer whenever there is none; a model that is loaded only to act needs none.
        self.replay_buffer = cast(ReplayBuffer, object()) if self.replay_buffer is None else self.replay_buffer
        # SB3 writes n_steps and gamma into the user's dict. They would be saved with it, and outlive a change of either.
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)
        if self._automatic_replay_buffer:
            self.replay_buffer_class = None
        # SB3 seeds everything again at `load`, and training would repeat the random numbers of its beginning.
        self.seed = self.seed if self._seed_at_setup else None
        try:
            super()._setup_model()
        finally:
            self.replay_buffer, self.replay_buffer_kwargs, self.seed = held

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = parse_schedule("learning_rate", self.learning_rate)
        self._own_lr_schedules: dict[str, Schedule] = {
            name: parse_schedule(f"{name}_learning_rate", rate)
            for name in ("actor", "critic", "value", "ent_coef")
            if (rate := getattr(self, f"{name}_learning_rate")) is not None
        }

    def _setup_temperature(self) -> None:
        self.temperature = make_temperature(
            self.ent_coef,
            self.ent_coef_update,
            self.ent_coef_max,
            self._target_entropy(),
            self._own_lr_schedules.get("ent_coef", self.lr_schedule),
            clip_initial=self._weights_follow,
        ).to(self.device)
        if isinstance(self.temperature, LearnedTemperature):
            self._automatic_target_entropy = self.temperature.target_entropy if self.target_entropy == "auto" else None
            self.target_entropy = self.temperature.target_entropy

    def _target_entropy(self) -> float:
        """H̄ in nats, the one that was asked for or the automatic one."""
        if not isinstance(self.action_space, spaces.Discrete):
            return -float(get_action_dim(self.action_space)) if self.target_entropy == "auto" else float(self.target_entropy)
        highest = math.log(self.action_space.n)
        if self.target_entropy == "auto":
            return self.target_entropy_scale * highest
        if not float(self.target_entropy) < highest:
            raise ValueError(
                f"`target_entropy` is {self.target_entropy}, but it must be below log|A| = {highest:.4f}, the entropy of the "
                f"uniform policy over {self.action_space.n} actions: the temperature would grow without end."
            )
        return float(self.target_entropy)

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target
        self.value_net = self.policy.value_net
        self.value_net_target = self.policy.value_net_target
        online, target = (self.value_net, self.value_net_target) if self.value_network else (self.critic, self.critic_target)
        assert online is not None
        assert target is not None
        self._tracked: tuple[list[th.Tensor], list[th.Tensor]] = (list(online.parameters()), list(target.parameters()))
        # Batch normalisation's statistics are averages already, see SB3's issue 996: targets copy them.
        self._copied = (get_parameters_by_name(online, ["running_"]), get_parameters_by_name(target, ["running_"]))

    def _refuse_other_architecture(self) -> None:
        """A saved model can be loaded with other options, but not with ones that its weights have no place for."""
        if "batch_norm_stats" in self.__dict__:  # an attribute of SAC; others that have it have policies that are refused
            raise ValueError("The file was saved by SB3's SAC: SoftAC.from_sb3(SAC.load(path)) takes it over.")
        ent_coef = self.ent_coef
        learned = isinstance(ent_coef, str) and ent_coef.startswith("auto")
        built_for = {
            "value_network": self.value_network,
            "use_sde": self.use_sde,
            "ent_coef": ent_coef if learned else "fixed",
            "ent_coef_update": self.ent_coef_update,
        }
        for name, saved in (self._built_for or built_for).items():
            if built_for[name] != saved:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, but the saved model needs {name} {saved!r}.")
        self._built_for = built_for
        if self._expected_policy_kwargs is not None:
            expected, saved = (
                {name: value for name, value in kwargs.items() if name not in ("use_sde", "value_network")}
                for kwargs in (self._expected_policy_kwargs, self.policy_kwargs)
            )
            if _with_lists(expected) != _with_lists(saved):
                raise ValueError(f"`policy_kwargs` is {expected}, but the saved model needs {saved}.")

    def _refuse_an_unused_rate(self) -> None:
        """``learning_rate`` counts where a network or a learned temperature has no rate of its own."""
        learned = isinstance(self.ent_coef, str) and self.ent_coef.startswith("auto")
        owners = ["actor", "critic"] + ["value"] * self.value_network + ["ent_coef"] * learned
        if self.learning_rate != DEFAULT_LEARNING_RATE and all(
            getattr(self, f"{owner}_learning_rate") is not None for owner in owners
        ):
            names = ", ".join(f"{owner}_learning_rate" for owner in owners)
            raise ValueError(
                f"`learning_rate` is {self.learning_rate!r}, but it must be left out where all have their own: {names}."
            )

    def _refuse_impossible_compilation(self) -> None:
        if self.compile is not True:
            return
        missing = missing_for_compilation(self.device)
        obstacle = why_only_eager(self) or (missing and f"it needs {missing}")
        if obstacle:
            raise ValueError(f"`compile` is True, but it must be 'auto' or False here: {obstacle}.")

    def _allocate_replay_buffer(self) -> None:
        assert self.replay_buffer_class is not None
        kwargs = dict(self.replay_buffer_kwargs)
        if self._automatic_replay_buffer and self.n_steps > 1:
            kwargs |= {"n_steps": self.n_steps, "gamma": self.gamma}
        if issubclass(self.replay_buffer_class, HerReplayBuffer):
            kwargs["env"] = self.env
        self.replay_buffer = self.replay_buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **kwargs,
        )
        self._match_returns(self.replay_buffer)

    def _match_returns(self, replay_buffer: ReplayBuffer) -> None:
        """Make the buffer compute this model's n-step returns, or refuse it."""
        if self._automatic_replay_buffer and isinstance(replay_buffer, NStepReplayBuffer):
            replay_buffer.n_steps, replay_buffer.gamma = self.n_steps, self.gamma
        elif self.n_steps > 1:
            raise ValueError(f"`n_steps` is {self.n_steps}, but the {type(replay_buffer).__name__} has one-step returns.")
        gamma = getattr(replay_buffer, "gamma", self.gamma)
        if gamma != self.gamma:
            raise ValueError(f"`gamma` is {self.gamma}, but the replay buffer discounts with {gamma}: both must be equal.")

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As in SB3; a model that was loaded without an environment gets its replay buffer here."""
        super().set_env(env, force_reset)
        if self.replay_buffer is None:
            self._allocate_replay_buffer()
        elif isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.env = self.env  # it computes the rewards of relabelled goals

    def learn(
        self: SelfSoftAC,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "SoftAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSoftAC:
        """Train for ``total_timesteps`` environment steps; 1e6 is as good as 1_000_000. Otherwise as in SB3."""
        super().learn(
            check_count("total_timesteps", total_timesteps, 0),
            callback=callback,
            log_interval=cast(int, log_interval),  # None, for no logging by episodes, is missing in SB3's annotation
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
        self._read_metrics()
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._refuse_spoilt_statistics()
        self._refuse_impossible_compilation()
        self._engine.decided = False
        result = super()._setup_learn(*args, **kwargs)
        self._refuse_non_finite("observation", self._last_obs)
        own_predict = type(self).predict is not SoftAC.predict or "predict" in vars(self) or "predict" in vars(self.policy)
        capture = self.compile is not False
        self._direct_actor = None if own_predict else make_actor(self.policy, self.n_envs, capture)
        assert self.ep_info_buffer is not None
        if self.ep_info_buffer.maxlen != self._stats_window_size:  # replaced at `load`
            self.ep_info_buffer = deque(self.ep_info_buffer, maxlen=self._stats_window_size)
            self.ep_success_buffer = deque(self.ep_success_buffer or (), maxlen=self._stats_window_size)
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        random_steps = learning_starts if self.random_steps is None else self.random_steps
        actor = self._direct_actor
        if self.num_timesteps < random_steps or actor is None or actor.policy is not self.policy:
            return super()._sample_action(random_steps, action_noise, n_envs)
        assert isinstance(self._last_obs, np.ndarray)
        actions = actor(self._last_obs)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions + self.action_space.start
            return actions, actions
        assert isinstance(self.action_space, spaces.Box)
        precision = np.result_type(self.action_space.low, actions)  # that of SB3's rescaling
        actions = actions.reshape(-1, *self.action_space.shape).astype(precision, copy=False)
        if action_noise is not None:
            actions = np.clip(actions + action_noise(), -1, 1)
        return self.policy.unscale_action(actions), actions

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
        if self._vec_normalize_env is not None:
            stored_obs = self._vec_normalize_env.get_original_obs()
            stored_reward = self._vec_normalize_env.get_original_reward()
        self._refuse_non_finite("reward", stored_reward)
        self._refuse_non_finite("observation", stored_obs)
        for info, done in zip(infos, dones, strict=True):
            if done and info.get("terminal_observation") is not None:
                self._refuse_non_finite("terminal observation", info["terminal_observation"])
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _refuse_non_finite(self, cause: str, values: Any) -> None:
        """One NaN in the replay buffer ruins every network, long after its cause is gone."""
        if isinstance(values, dict):
            for key, part in values.items():
                self._refuse_non_finite(f"{cause} {key!r}", part)
            return
        values = np.asarray(values)  # a terminal observation is whatever the environment returned
        if values.dtype.kind != "f" or (np.abs(values) <= LARGEST_FLOAT32).all():
            return
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32, copy=False))  # as the networks will see them
        if not finite.all():
            first = tuple(np.argwhere(~finite)[0])
            self._interrupt_episode()
            spoilt = "" if self._vec_normalize_env is None else " VecNormalize has taken it into its statistics: reload those."
            raise ValueError(
                f"Training stopped at step {self.num_timesteps}: the environment returned a non-finite {cause} "
                f"({values[first]} at index {list(map(int, first))}). "
                f"Nothing of this step was stored in the replay buffer.{spoilt}"
            )

    def _refuse_spoilt_statistics(self) -> None:
        """After one NaN, VecNormalize would turn everything into NaN, and the environment would be blamed for it."""
        if self._vec_normalize_env is None:
            return
        statistics = getattr(self._vec_normalize_env, "obs_rms", {})
        each = statistics.values() if isinstance(statistics, dict) else [statistics]
        if not all(
            np.isfinite(rms.mean).all() and np.isfinite(rms.var).all() for rms in [*each, self._vec_normalize_env.ret_rms]
        ):
            raise ValueError(
                "The statistics of VecNormalize are not finite, as after a NaN in an observation or reward: "
                "reload them with VecNormalize.load, or start with a new VecNormalize."
            )

    def _interrupt_episode(self) -> None:
        """Begin the next ``learn`` with a reset, and let no n-step return or hindsight goal reach across it."""
        self._last_obs = None
        buffer = self.replay_buffer
        if buffer is None or not (buffer.full or buffer.pos > 0):
            return
        if isinstance(buffer, HerReplayBuffer):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the trajectory is truncated is what is wanted here
                buffer.truncate_last_trajectory()
            return
        last = (buffer.pos - 1) % buffer.buffer_size
        if buffer.optimize_memory_usage:
            buffer.dones[last] = True  # as SB3 does: the next observation will be overwritten
        else:
            buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], np.logical_not(buffer.dones[last]))

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do ``gradient_steps`` gradient steps on batches from the replay buffer, and log their means.

        :param gradient_steps: number of gradient steps
        :param batch_size: transitions per gradient step
        :raises ValueError: the training has diverged
        """
        self.policy.set_training_mode(True)
        if not self._engine.decided:
            way = self._engine.decide(self, self._planned_gradient_steps())
            if self.verbose >= 1:
                print(f"Gradient steps: {way}")
        self._update_schedules()
        self._record([self._gradient_step(batch) for batch in self._batches(gradient_steps, batch_size)])

    def _planned_gradient_steps(self) -> int | None:
        """How many gradient steps are still to come in this ``learn()``; None outside of one, or if nobody knows."""
        transitions = self._total_timesteps - max(self.num_timesteps, self.learning_starts)
        if transitions <= 0:
            return None
        if self.gradient_steps < 0:
            return transitions
        assert isinstance(self.train_freq, TrainFreq)
        per_rollout = float(self.train_freq.frequency * self.n_envs)
        if self.train_freq.unit is TrainFrequencyUnit.EPISODE:
            lengths = [float(episode["l"]) for episode in self.ep_info_buffer or ()]
            if not lengths:
                return None
            per_rollout *= sum(lengths) / len(lengths)
        return int(transitions / per_rollout * self.gradient_steps)

    def _batches(self, n_batches: int, batch_size: int) -> Iterator[Batch]:
        buffer = self.replay_buffer
        assert buffer is not None
        if not BlockSampler.can_sample(buffer, self._vec_normalize_env):
            yield from (self._sample_batch(batch_size) for _ in range(n_batches))
            return
        if self._block_sampler is None or self._block_sampler.buffer is not buffer or self._block_sampler.gamma != self.gamma:
            self._block_sampler = BlockSampler(buffer, self.gamma)
        yield from self._block_sampler(n_batches, batch_size)

    def _sample_batch(self, batch_size: int) -> Batch:
        assert self.replay_buffer is not None
        return batches.sample(self.replay_buffer, batch_size, self.gamma, self._vec_normalize_env)

    def _gradient_step(self, batch: Batch) -> Metrics:
        self._n_updates += 1
        turns = Turns(
            actor=self._n_updates % self.policy_delay == 0, targets=self._n_updates % self.target_update_interval == 0
        )
        return self._engine.run(self, batch, turns)

    def _replaced_step_methods(self) -> list[str]:
        """What a subclass or somebody else has put in place of a part of :meth:`_update`."""
        return [name for name in STEP if name in vars(self) or getattr(type(self), name) is not getattr(SoftAC, name)]

    def _draw_noise(self, batch_size: int, turns: Turns) -> Noise:
        """What :meth:`_update` would draw by itself, in the same order (but for dropout, which is drawn in between)."""
        normal = not (self.use_sde or isinstance(self.action_space, spaces.Discrete))
        shape = (batch_size, math.prod(self.action_space.shape or ()))
        draw_here, draw_next = normal and (turns.actor or self.value_network), normal and not self.value_network
        return Noise(
            observations=th.randn(shape, device=self.device) if draw_here else None,
            next_observations=th.randn(shape, device=self.device) if draw_next else None,
            members=None if self.target_subset is None else self._draw_members(),
        )

    def _draw_members(self) -> th.Tensor:
        return th.randperm(self.critic.n_critics, device=self.device)[: self.target_subset]

    def _update(self, batch: Batch, turns: Turns, noise: Noise = DRAWN_INSIDE, descend: Descend = optimizers.step) -> Metrics:
        """The algorithm box. Every loss uses the temperature and the actor from before the step.

        It is a function of tensors: what depends on counters, rates or random numbers comes from outside, so that an engine
        may compile or capture it.

        :param batch: transitions
        :param turns: what this gradient step updates besides critics and value network
        :param noise: random numbers; None for each that is to be drawn here
        :param descend: moves parameters along their gradients
        """
        ent_coef = self.temperature.value.clone()
        metrics = {"ent_coef": ent_coef}
        if self.use_sde:
            self.actor.reset_noise()
        if turns.actor or self.value_net is not None:
            policy = self.actor.policy_at(batch.observations, noise.observations)
            metrics |= policy.metrics()
        target = self._bellman_target(batch, ent_coef, noise)
        if self.value_net is not None:
            metrics |= self._update_value_network(self.value_net, batch, policy, ent_coef, noise.members, descend)
        metrics |= self._update_critics(batch, target, descend)
        if turns.actor:
            metrics |= self._update_actor(batch, policy, ent_coef, descend)
            metrics |= self._update_temperature(policy.log_prob, descend)
        if turns.targets:
            self._update_targets()
        return Metrics(tuple(metrics), th.stack(tuple(metrics.values())))

    @th.no_grad()
    def _bellman_target(self, batch: Batch, ent_coef: th.Tensor, noise: Noise = DRAWN_INSIDE) -> th.Tensor:
        """y = k·r + γ(1 − d)·V(s'), with V the target value network or the soft value of the target critics."""
        observations = batch.next_observations
        if self.value_net_target is not None:
            next_value = self.value_net_target(observations).squeeze(1)
        else:
            assert self.critic_target is not None
            policy = self.actor.policy_at(observations, noise.next_observations)
            next_q = self._target_reduction(self.critic_target, observations, policy.actions, noise.members)
            next_value = policy.soft_value(next_q, ent_coef)
        return losses.bellman_target(batch.rewards, batch.dones, batch.discounts, next_value, self.reward_scale)

    def _target_reduction(
        self, critics: StackedCritics, observations: PyTorchObs, actions: th.Tensor | None, members: th.Tensor | None
    ) -> th.Tensor:
        """R_i Q_i(s, a) over all critics or over a random subset; only the critics that count are evaluated.

        :return: (B,), or (B, |A|) for all discrete actions, where ``actions`` is None
        """
        chosen: Members = FIRST_CRITIC if self.target_q == "first" else None
        if self.target_subset is not None:
            chosen = self._draw_members() if members is None else members
        return losses.reduce_critics(critics.q_values(observations, actions, chosen), self.target_q)

    def _update_value_network(
        self,
        value_net: ValueNetwork,
        batch: Batch,
        policy: SampledActions | ActionProbabilities,
        ent_coef: th.Tensor,
        members: th.Tensor | None = None,
        descend: Descend = optimizers.step,
    ) -> dict[str, th.Tensor]:
        with th.no_grad():
            q = self._target_reduction(self.critic, batch.observations, policy.actions, members)
            target = policy.soft_value(q, ent_coef)
        loss = losses.value_loss(value_net(batch.observations).squeeze(1), target)
        self._minimise(loss, value_net.optimizer, descend)
        return {"value_loss": loss.detach()}

    def _update_critics(self, batch: Batch, target: th.Tensor, descend: Descend = optimizers.step) -> dict[str, th.Tensor]:
        q_values = self.critic.q_values(batch.observations, batch.actions)
        loss = losses.critic_loss(q_values, target)
        grad_norm = self._minimise(loss, self.critic.optimizer, descend)
        return {"critic_loss": loss.detach(), "q_value": q_values.detach().mean(), "grad_norm_critic": grad_norm}

    def _update_actor(
        self,
        batch: Batch,
        policy: SampledActions | ActionProbabilities,
        ent_coef: th.Tensor,
        descend: Descend = optimizers.step,
    ) -> dict[str, th.Tensor]:
        critics = self.critic
        if self.actor_q == "target_min":
            assert self.critic_target is not None
            critics = self.critic_target
        members = FIRST_CRITIC if self.actor_q == "first" else None
        how: CriticReduction = "min" if self.actor_q == "target_min" else self.actor_q
        with th.set_grad_enabled(policy.actions is not None):  # without a sampled action no gradient runs through Q
            q = losses.reduce_critics(critics.q_values(batch.observations, policy.actions, members), how)
        loss = policy.actor_loss(q, ent_coef)
        grad_norm = self._minimise(loss, self.actor.optimizer, descend)
        return {"actor_loss": loss.detach(), "grad_norm_actor": grad_norm}

    def _update_temperature(self, log_prob: th.Tensor, descend: Descend = optimizers.step) -> dict[str, th.Tensor]:
        loss = self.temperature.update(log_prob, descend)
        return {} if loss is None else {"ent_coef_loss": loss}

    @th.no_grad()
    def _update_targets(self) -> None:
        """θ̄ ← τθ + (1 − τ)θ̄, all parameters in one call."""
        (online, target), (statistics, target_statistics) = self._tracked, self._copied
        th._foreach_lerp_(target, online, self.tau)
        if statistics:
            th._foreach_copy_(target_statistics, statistics)

    def _minimise(self, loss: th.Tensor, optimizer: th.optim.Optimizer, descend: Descend) -> th.Tensor:
        """One step of ``optimizer`` down ``loss``: the one place where gradients enter parameters.

        The gradient is taken with respect to the optimizer's own parameters alone, so nothing can leak into another network.

        :return: norm of the gradient before clipping, ()
        """
        gradients = optimizers.gradients_of(loss, optimizer)
        norm, clipped = optimizers.clip(gradients, self.max_grad_norm)
        descend(optimizer, clipped)
        return norm

    def _update_schedules(self) -> None:
        """Move learning rates and a scheduled temperature to the current progress, and log the rates."""
        # The last rollout may run past the planned end, where a linear rate would turn negative.
        progress = max(self._current_progress_remaining, 0.0)
        self.logger.record("train/learning_rate", self.lr_schedule(progress))
        for name, schedule in self._own_lr_schedules.items():
            self.logger.record(f"train/{name}_learning_rate", schedule(progress))
        networks = {"actor": self.actor, "critic": self.critic, "value": self.value_net}
        for name, network in networks.items():
            if network is not None:
                own = self._own_lr_schedules.get(name)
                rate = (own or self.lr_schedule)(progress)
                update_learning_rate(network.optimizer, check_rate(f"{name}_learning_rate" if own else "learning_rate", rate))
        self.temperature.set_progress(progress)

    def _record(self, steps: list[Metrics]) -> None:
        """Hand the metrics of one ``train()`` to the logger.

        Where the gradient steps are captured, nothing waits for them: they are logged at the next ``train()``, or before logs
        are dumped.
        """
        self._read_metrics()
        rows: dict[tuple[str, ...], list[th.Tensor]] = {}
        for names, values in steps:
            rows.setdefault(names, []).append(values)
        self._unread_metrics = [
            (names, graphs.Report(th.stack(values).sum(dim=0)), len(values)) for names, values in rows.items()
        ]
        if not self._engine.captures:
            self._read_metrics()

    def _read_metrics(self) -> None:
        """Log the mean of each metric over the gradient steps of the newest ``train()``.

        :raises ValueError: the training has diverged
        """
        if not self._unread_metrics:
            return
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, totals, count in self._unread_metrics:
            for name, total in zip(names, totals.read(), strict=True):
                sums[name], counts[name] = sums.get(name, 0.0) + total, counts.get(name, 0) + count
        self._unread_metrics = []
        means = {name: total / counts[name] for name, total in sums.items()}
        diverged = {name: mean for name, mean in means.items() if not math.isfinite(mean)}
        if diverged:
            raise ValueError(
                f"Training has diverged after {self._n_updates} gradient steps: {diverged}. A lower learning rate, "
                "`max_grad_norm`, `ent_coef_max` or smaller rewards may help."
            )
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean)
        if isinstance(self.temperature, LearnedTemperature):
            self.logger.record("train/target_entropy", self.temperature.target_entropy)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def dump_logs(self) -> None:
        """As in SB3."""
        self._read_metrics()
        super().dump_logs()

    @classmethod
    def _option_names(cls) -> list[str]:
        """The constructor arguments, also of a subclass, that ``load`` can replace."""
        fixed = {"self", "args", "kwargs", "policy", "env", "device", "_init_setup_model"}
        constructors = [base.__init__ for base in cls.__mro__ if issubclass(base, SoftAC)]
        names = [name for constructor in reversed(constructors) for name in inspect.signature(constructor).parameters]
        return [name for name in dict.fromkeys(names) if name not in fixed]

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """As in SB3, and with the temperature; what is loaded is brought below ``ent_coef_max``.

        :param load_path_or_dict: file name, or what ``get_parameters`` returns
        :param exact_match: refuse anything but the state of every network, optimizer and the temperature
        :param device: PyTorch device
        :raises ValueError: unknown or missing names
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._engine.reset()
        if isinstance(self.temperature, LearnedTemperature):
            with th.no_grad():
                self.temperature.project()

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "critic", "critic_target", "value_net", "value_net_target", "temperature"]
        rebuilt = ["_tracked", "_copied", "_own_lr_schedules"]
        rebuilt += [
            "_engine",
            "_block_sampler",
            "_unread_metrics",
            "_direct_actor",
            "_seed_at_setup",
            "_weights_follow",
            "_expected_policy_kwargs",
        ]
        return [*super()._excluded_save_params(), *networks, *rebuilt]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.value_net is not None:
            state_dicts.append("value_net.optimizer")
        if isinstance(self.temperature, LearnedTemperature):
            state_dicts += ["temperature", "temperature.optimizer"]
        return state_dicts, []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model in SB3's format. A file that exists is replaced only once the new one is complete.

        :param path: file name (``.zip`` is added if it has no suffix; missing folders are made) or a binary stream
        :param exclude: names of attributes to leave out
        :param include: names of attributes to keep although they are left out by default
        """
        if not isinstance(path, str | pathlib.Path):
            super().save(path, exclude, include)
            return
        path = pathlib.Path(path)
        if path.suffix == "":
            path = path.with_name(f"{path.name}.zip")
        if path.is_dir():
            warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=2)
            path = path.with_name(f"{path.name}_2")
        stream = io.BytesIO()
        super().save(stream, exclude, include)
        with files.replacing(path) as unfinished:
            unfinished.write_bytes(stream.getbuffer())

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
        compared with ``predict()`` on random observations before it takes its place. ``sb3_softac.export.ExportedPolicy``
        loads it again.

        :param path: file name; ``.onnx`` or ``.pt`` is added if it has no suffix
        :param format: ``"onnx"``, which needs the extra ``export``, or ``"torchscript"``
        :param deterministic: the mean or most probable action; False samples, with TorchScript only
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
        return export.write(self.policy, path, format, deterministic, vec_normalize)

    @classmethod
    def load(
        cls: type[SelfSoftAC],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSoftAC:
        """Load a model as SB3 does, with three differences.

        The random generators are seeded only if ``seed`` is passed; without an environment no replay buffer is allocated
        (``set_env`` does it later); an argument that the constructor does not know is refused.

        :param path: file name or binary stream
        :param env: environment to continue with
        :param device: PyTorch device
        :param custom_objects: replacements for saved attributes
        :param print_system_info: print the versions with which the model was saved
        :param force_reset: reset the environment before training
        :param kwargs: constructor arguments that replace the saved ones
        :raises ValueError: unknown argument, or one that the saved weights have no place for
        """
        if isinstance(path, str | pathlib.Path) and export.is_exported(pathlib.Path(path)):
            raise ValueError(f"`path` is {str(path)!r}, an exported policy: sb3_softac.export.ExportedPolicy loads it.")
        unknown = sorted(set(kwargs) - set(cls._option_names()))
        if unknown:
            raise ValueError(f"`{unknown[0]}` cannot be replaced at loading: allowed are {', '.join(cls._option_names())}.")
        if kwargs.get("target_entropy", "auto") != "auto":
            kwargs.setdefault("target_entropy_scale", DEFAULT_TARGET_ENTROPY_SCALE)  # the saved one no longer counts
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = check_count("stats_window_size", kwargs.pop("stats_window_size"), 1)
        if "policy_kwargs" in kwargs:
            # SB3 would compare them with saved ones that hold more, and lists in place of tuples.
            kwargs["_expected_policy_kwargs"] = dict(kwargs.pop("policy_kwargs") or {})
        if "replay_buffer_kwargs" in kwargs:
            kwargs["replay_buffer_kwargs"] = dict(kwargs["replay_buffer_kwargs"] or {})
        if "replay_buffer_class" in (custom_objects or {}):
            kwargs["_automatic_replay_buffer"] = False
        if "replay_buffer_class" in kwargs:
            kwargs["_automatic_replay_buffer"] = kwargs["replay_buffer_class"] is None
        return super().load(
            path,
            env=env,
            device=device,
            custom_objects=custom_objects,
            print_system_info=print_system_info,
            force_reset=force_reset,
            _seed_at_setup="seed" in kwargs,
            _weights_follow=True,
            **kwargs,
        )

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a replay buffer as SB3 does; the n-step return then follows this model's ``n_steps`` and ``gamma``.

        :param path: pickle file or binary stream
        :param truncate_last_traj: with ``HerReplayBuffer``, end the last trajectory
        :raises ValueError: this model needs n-step returns that the buffer cannot compute, or another discount
        """
        previous = getattr(self, "replay_buffer", None)  # `del model.replay_buffer` frees memory before loading
        super().load_replay_buffer(path, truncate_last_traj)
        assert self.replay_buffer is not None
        try:
            self._match_returns(self.replay_buffer)
        except ValueError:
            self.replay_buffer = previous
            raise

    def warm_start(
        self: SelfSoftAC, source: "str | pathlib.Path | io.BufferedIOBase | SoftAC | SAC", temperature: bool = False
    ) -> SelfSoftAC:
        """Take over the weights of another model's networks and targets, to train on from its policy.

        All else stays as it was constructed: optimizers start anew, and α at its initial value. Uniformly random steps at the
        start would hide the policy; ``random_steps=0`` skips them.

        :param source: a ``SoftAC`` or SB3 ``SAC``, or the file that one was saved to
        :param temperature: take over α too, within ``ent_coef_max``; this model must learn its temperature
        :return: this model
        :raises ValueError: another kind of source, networks of other shapes, or an α that has no place here
        """
        check_flag("temperature", temperature)
        learned = self.temperature
        if temperature and not isinstance(learned, LearnedTemperature):
            raise ValueError(f"`temperature` is True, but `ent_coef`={self.ent_coef!r} is fixed: there is none to start from.")
        source = conversion.load_source(source)
        ent_coef = conversion.ent_coef_of(source)
        if temperature and ent_coef == 0.0 and self.ent_coef_update != "dual":
            raise ValueError(
                "`temperature` is True, but the temperature of the source is 0, where "
                f"`ent_coef_update`={self.ent_coef_update!r} cannot start."
            )
        conversion.copy_weights(source, self.policy)
        if temperature:
            cast(LearnedTemperature, learned).set_value(ent_coef)
        if self.use_sde:
            self.policy.reset_noise()  # from the weights that were copied
        return self

    @classmethod
    def from_sb3(cls: type[SelfSoftAC], sac: SAC, **ours: Any) -> SelfSoftAC:
        """Take over a model of SB3's ``SAC``: weights, targets, optimizers, temperature and counters.

        Environment and replay buffer are handed over, not copied. A learned temperature continues in SB3's form
        (``ent_coef_update="log"``), so that training goes on as SB3 would, unless another form is asked for.

        :param sac: the model
        :param ours: arguments of ``SoftAC`` that replace those of ``sac``
        :return: the new model
        :raises ValueError: ``sac`` is no SB3 ``SAC``, or it has no weights or no buffer for what ``ours`` asks for
        """
        if not isinstance(sac, SAC):
            raise ValueError(f"`sac` is a {type(sac).__name__}, but it must be a stable_baselines3.SAC.")
        if ours.get("value_network"):
            raise ValueError("`value_network` is True, but it must be False: SB3's SAC has no value network to take over.")
        arguments = conversion.sac_arguments(sac) | {"env": sac.env} | ours
        conversion.refuse_what_is_handed_over(sac, ours)
        if not str(arguments["ent_coef"]).startswith("auto"):
            for unused in {"ent_coef_update", "target_entropy"} - set(ours):
                arguments.pop(unused, None)
        model = cls(_init_setup_model=False, **arguments)
        if model.env is not None:
            check_for_correct_spaces(model.env, sac.observation_space, sac.action_space)
        if model.env is not None and model.n_envs != sac.n_envs:
            raise ValueError(f"`env` has {model.n_envs} environments, but the replay buffer of `sac` is for {sac.n_envs}.")
        model.observation_space, model.action_space, model.n_envs = sac.observation_space, sac.action_space, sac.n_envs
        model.replay_buffer = sac.replay_buffer
        model._seed_at_setup, model._weights_follow = "seed" in ours, True
        model._setup_model()
        if model.replay_buffer is not None:
            model._match_returns(model.replay_buffer)
            model.replay_buffer.device = model.device
        conversion.copy_networks(sac, model.policy)
        conversion.copy_temperature(sac, model.temperature)
        model.__dict__.update({name: getattr(sac, name) for name in conversion.PROGRESS})
        if model.env is not sac.env:
            model._interrupt_episode()
            if isinstance(model.replay_buffer, HerReplayBuffer):
                model.replay_buffer.env = model.env
        if model.use_sde:
            model.policy.reset_noise()  # from the weights that were copied
        if sac._custom_logger:
            model.set_logger(sac.logger)
        return model


def _with_lists(value: Any) -> Any:
    """``value`` with lists in place of tuples, as the file format keeps them."""
    if isinstance(value, dict):
        return {key: _with_lists(entry) for key, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
