"""From options to a model: set-up, and what happens when an option or a network is replaced later."""

import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac.arguments import LEARNING_RATE_OWNERS, check_action_space, check_count
from sb3_softac.arguments.policy import check_policy_kwargs
from sb3_softac.collect import check_normalizers, check_wrappers, no_returns
from sb3_softac.engine import Compile, Engine, Precision, missing_for, missing_for_compilation, why_only_eager
from sb3_softac.files import SavedAlgorithm
from sb3_softac.networks import SoftPolicy, StackedCritics
from sb3_softac.runtime import Runtime
from sb3_softac.schedules import parse_schedule
from sb3_softac.update import Temperature, Update


def policy_network(name: str) -> Any:
    """A network of the policy, under the name that it has in SB3's algorithms; replaced here, it is replaced there."""

    def get(self: "ConfiguredAlgorithm") -> Any:
        return getattr(self.policy, name)

    def put(self: "ConfiguredAlgorithm", network: Any) -> None:
        setattr(self.policy, name, network if network is None else self.policy.with_normalizer(network))

    return property(get, put)


def require_environment(env: Any, init_setup_model: bool) -> None:
    """Only ``load`` builds a model without an environment, and sets it up later.

    :raises ValueError: no environment
    """
    if env is None and init_setup_model:
        raise ValueError("`env` is None, but it must be an environment or the name of a registered one.")


class ConfiguredAlgorithm(SavedAlgorithm):
    """An algorithm that is built from options, and follows them and its networks when they change.

    A subclass names its options in its constructor, and says what they describe: :meth:`_check_options`,
    :meth:`_make_temperature`, :meth:`_make_update`, :meth:`_set_numbers`.

    :param policy: name of a policy, or its class
    :param env: environment to learn from, or its registered name
    :param replay_buffer_kwargs: arguments of the replay buffer
    :param policy_kwargs: arguments of the policy
    :param sb3: arguments of SB3's ``OffPolicyAlgorithm``
    """

    #: base class of the algorithm's policies, and which of them stand for SB3's own
    policy_base: ClassVar[type[SoftPolicy]]
    sb3_equivalents: ClassVar[Mapping[type[Any], type[SoftPolicy]]] = {}
    #: its name, also of its runs in TensorBoard
    log_name: ClassVar[str]
    #: options that are chosen once: what was built for one value has no place for another
    fixed_options: ClassVar[frozenset[str]] = frozenset(
        (
            "n_steps",
            "policy_kwargs",
            "buffer_size",
            "replay_buffer_class",
            "replay_buffer_kwargs",
            "optimize_memory_usage",
            "distributed",
        )
    )
    _cached_options: ClassVar[list[str] | None] = None
    policy: SoftPolicy
    temperature: Temperature
    actor: Any = policy_network("actor")
    critic: StackedCritics = policy_network("critic")
    critic_target: StackedCritics | None = policy_network("critic_target")

    # Options that the methods of this class read; the constructor of each algorithm sets them.
    learning_rate: float | str | Schedule  # type: ignore[assignment]  # SB3 takes no strings
    target_update_interval: int
    # And those that not every algorithm has.
    soft_n_step: bool = False
    policy_delay: int = 1
    precision: Precision
    normalize_observations: bool = False
    normalize_rewards: float | None = None
    resets: int | Sequence[int] | None = None
    #: how many there have been
    _n_resets: int = 0
    compile: Compile

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        replay_buffer_kwargs: dict[str, Any] | None,
        policy_kwargs: dict[str, Any] | None,
        stats_window_size: int,
        **sb3: Any,
    ) -> None:
        self._runtime = Runtime()
        if env is not None:
            env = self._wrap_env(maybe_make_env(env, sb3["verbose"]), sb3["verbose"])
            check_action_space(env.action_space, sb3.get("use_sde", False), self.log_name)  # SB3 asserts some of it
            check_wrappers(env)
        resolved = self._resolve_policy(policy)
        super().__init__(
            resolved,
            cast(GymEnv, env),  # None while a model is loaded
            # SB3 writes into both dicts: what the user passed stays as it was.
            replay_buffer_kwargs=dict(replay_buffer_kwargs or {}),
            policy_kwargs=dict(policy_kwargs or {}),
            stats_window_size=check_count("stats_window_size", stats_window_size, 1),
            support_multi_env=True,
            **sb3,
        )
        policy_class = self.policy_aliases[resolved] if isinstance(resolved, str) else resolved
        check_policy_kwargs(policy_class, policy_kwargs or {}, self._policy_options(), type(self).__name__)
        self._automatic_replay_buffer = self.replay_buffer_class is None
        #: what the weights in a saved file were built for; None until they are built
        self._built_for: dict[str, Any] | None = None

    # --- what an algorithm says of itself -----------------------------------------------------------------------------

    @abstractmethod
    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Refuse values out of range and contradictions; return those that have one normal form in it."""

    @abstractmethod
    def _check_architecture(self) -> None:
        """Refuse options that the weights of a loaded model have no place for."""

    @abstractmethod
    def _policy_options(self) -> dict[str, Any]:
        """Options that the policy is built with, by the names of its arguments."""

    @abstractmethod
    def _make_temperature(self) -> Temperature:
        """The temperature that the options describe."""

    @abstractmethod
    def _make_update(self) -> Update:
        """The gradient step that the options describe."""

    @abstractmethod
    def _set_numbers(self, update: Update) -> None:
        """Give ``update`` and the temperature the numbers that may change during the training."""

    # --- set-up -------------------------------------------------------------------------------------------------------

    @classmethod
    def _resolve_policy(cls, policy: str | type[BasePolicy]) -> str | type[BasePolicy]:
        """Map SB3's own policy classes to ours, and refuse all others."""
        if isinstance(policy, str):
            if policy in cls.policy_aliases:
                return policy
        elif isinstance(policy, type) and issubclass(resolved := cls.sb3_equivalents.get(policy, policy), cls.policy_base):
            return resolved
        raise ValueError(
            f"`policy` is {policy!r}, but it must be one of {', '.join(map(repr, cls.policy_aliases))} "
            f"or a subclass of {cls.policy_base.__name__}. What another algorithm has saved is loaded by that one."
        )

    def _setup_model(self) -> None:
        self._check_architecture()
        check_action_space(self.action_space, self.use_sde, self.log_name)
        self.__dict__.update(self._check_options(self._options()))
        self._check_normalizers(self.env)
        self._check_overlap(self.env)
        options = self._policy_options()
        chosen = {name: value for name, value in options.items() if value not in (None, False)}
        self.policy_kwargs = {name: value for name, value in self.policy_kwargs.items() if name not in options} | chosen
        self._setup_host()
        self.temperature = self._make_temperature().to(self.device)
        self._runtime = Runtime(self._runtime.set_up)  # `load` leaves the constructor's one behind
        self._current_update()
        self._refuse_impossible_precision()
        if not self._runtime.set_up.weights_follow:
            self._refuse_impossible_compilation()
        if self.env is not None and self.replay_buffer is None:
            self._allocate_replay_buffer()
        self._set_up_returns()
        self._runtime.options = self._option_values()

    def _check_normalizers(self, env: VecEnv | None) -> None:
        check_normalizers(env, self.normalize_observations, self.normalize_rewards is not None)

    def _set_up_returns(self) -> None:
        """Statistics of returns exist where rewards are normalised, and begin where that begins."""
        if self.normalize_rewards is None:
            self.__dict__.pop("_return_moments", None)
            self.__dict__.pop("_running_returns", None)
            return
        if self._return_moments is None:
            self._return_moments = no_returns()
        if self._running_returns is None or len(self._running_returns) != self.n_envs:
            self._running_returns = np.zeros(self.n_envs)

    def _options(self) -> dict[str, Any]:
        """All options as they are now, whether the replay buffer was left to SB3, and the name of the algorithm."""
        options = {name: getattr(self, name) for name in self._option_names() if hasattr(self, name)}
        return {**options, "automatic_replay_buffer": self._automatic_replay_buffer, "algorithm": self.log_name}

    def _option_values(self) -> tuple[Any, ...]:
        return tuple(map(self.__dict__.get, self._cached_option_names()))

    @classmethod
    def _cached_option_names(cls) -> list[str]:
        if "_cached_options" not in vars(cls) or cls._cached_options is None:  # a subclass may have more
            cls._cached_options = [name for name in cls._option_names() if name != "seed"]
        return cls._cached_options

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
        self.seed = self.seed if self._runtime.set_up.seeds else None
        try:
            super()._setup_model()
        finally:
            self.replay_buffer, self.replay_buffer_kwargs, self.seed = held

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = parse_schedule("learning_rate", self.learning_rate)
        self._own_learning_rates()  # they are checked, too

    def _own_learning_rates(self) -> dict[str, Schedule]:
        """Schedules of the networks and of the temperature that do not follow ``learning_rate``, by owner."""
        values = {owner: getattr(self, f"{owner}_learning_rate", None) for owner in LEARNING_RATE_OWNERS}
        key = tuple(values.values())
        cached: Any = self._runtime.schedules
        if cached is None or any(map(operator.is_not, cached[0], key)):
            parsed: dict[str, Schedule] = {
                owner: parse_schedule(f"{owner}_learning_rate", value) for owner, value in values.items() if value is not None
            }
            self._runtime.schedules = cached = (key, parsed)
        return cached[1]  # type: ignore[no-any-return]

    def _refuse_impossible_precision(self) -> None:
        missing = missing_for(self.precision, self.device)
        if missing is not None:
            raise ValueError(f"`precision` is {self.precision!r}, but it must be 'float32' here: it needs {missing}.")
        others = {parameter.dtype for parameter in self.policy.parameters()} - {th.float32}
        if self.precision != "float32" and others:
            raise ValueError(
                f"`precision` is {self.precision!r}, but it must be 'float32' with weights of {others.pop()}: matmuls of "
                "float32 factors are rounded to it."
            )

    def _refuse_impossible_compilation(self) -> None:
        if self.compile is not True:
            return
        missing = missing_for_compilation(self.device)
        obstacle = why_only_eager(self._current_update()) or (missing and f"it needs {missing}")
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
            raise ValueError(
                f"`gamma` is {self.gamma}, but the replay buffer discounts with {gamma}: both must be equal. That of the "
                "buffer is in `replay_buffer_kwargs`."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As in SB3; a model that was loaded without an environment gets its replay buffer here."""
        wrapped = self._wrap_env(env, 0)
        check_wrappers(wrapped)
        self._check_normalizers(wrapped)
        self._check_overlap(wrapped)
        super().set_env(env, force_reset)
        if self.replay_buffer is None:
            self._allocate_replay_buffer()
        elif isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.env = self.env  # it computes the rewards of relabelled goals

    @property
    def _engine(self) -> Engine:
        """What runs the gradient steps in this process."""
        return self._runtime.engine

    # --- options and networks that change -----------------------------------------------------------------------------

    def _follow_options(self) -> None:
        """Let options that were set since the last look take effect, or refuse them."""
        values, before = self._option_values(), self._runtime.options
        if all(map(operator.is_, values, before)):
            return
        names = self._cached_option_names()
        changed = {
            name: old for name, new, old in zip(names, values, before, strict=True) if new is not old and not _same(new, old)
        }
        derived = (
            "lr_schedule",
            "target_entropy",
            "target_entropy_scale",
            "temperature",
            "_automatic_target_entropy",
            "_built_for",
        )
        held = {name: self.__dict__[name] for name in derived if name in self.__dict__} | changed
        try:
            fixed = sorted(changed.keys() & self.fixed_options)
            if fixed:
                raise ValueError(
                    f"`{fixed[0]}` was set to {getattr(self, fixed[0])!r}, but it must stay {changed[fixed[0]]!r}, for which "
                    "the model was built: a new model with the other value can `warm_start` from this one."
                )
            self._apply_options(changed.keys())
            present, described = self._runtime.update, self._make_update()
            if present is not None and present.settings == described.settings:
                self._set_numbers(present)  # another number is no reason to build a step again
            else:
                self._runtime.update = None
        except BaseException:
            self.__dict__.update(held)  # nothing has happened
            if "gamma" in changed and self.replay_buffer is not None:
                self._match_returns(self.replay_buffer)
            raise
        self._set_up_returns()
        self._runtime.options = self._option_values()

    def _apply_options(self, changed: Any) -> None:
        self.__dict__.update(self._check_options(self._options()))
        self._check_normalizers(self.env)
        self._check_overlap(self.env)
        self._convert_train_freq()
        self._setup_lr_schedule()
        if "gamma" in changed and self.replay_buffer is not None:
            self._match_returns(self.replay_buffer)
        if "precision" in changed:
            self._refuse_impossible_precision()
        if "noise_repeat" in changed:
            self._forget_noise()
        if "compile" in changed:
            self._refuse_impossible_compilation()
            self._runtime.engine.decided = False

    def _current_update(self) -> Update:
        """The gradient step of the networks, the temperature and the options that the model has now."""
        runtime, policy = self._runtime, self.policy
        networks = policy.networks()
        if len(runtime.networks) != len(networks) or any(map(operator.is_not, networks, runtime.networks)):
            self._adopt_networks()
            runtime.networks = networks
        update = runtime.update
        if update is None or update.networks is not policy or update.temperature is not self.temperature:
            update = self._make_update()
            if update.needs_targets and not policy.targets():
                raise ValueError(
                    "`policy_kwargs['target_networks']` is False, but it must be True: "
                    f"{type(update).__name__} bootstraps from target networks."
                )
            self._set_numbers(update)
            runtime.update = update
        return update

    def _adopt_networks(self) -> None:
        """Networks that a user has put in the place of others get what they lack."""
        for network in self.policy.networks():
            if network is not None:
                self.policy.with_normalizer(network)
        for _, target in self.policy.targets():
            if not getattr(target, "is_target", True):
                target.become_target()  # type: ignore[operator]  # of ours, which have it
        for network in self.policy.trained_networks().values():
            held = {id(p) for group in getattr(network, "optimizer", _NONE).param_groups for p in group["params"]}
            if not any(id(parameter) in held for parameter in self.policy.trained_parameters(network)):
                self.policy.add_optimizer(network, float(self.lr_schedule(1.0)))


class _NoOptimizer:
    param_groups: ClassVar[list[dict[str, Any]]] = []


_NONE = _NoOptimizer()


def _same(left: Any, right: Any) -> bool:
    """Whether two values of an option are equal; arrays and the like count as different."""
    try:
        return bool(left == right)
    except (ValueError, TypeError):
        return False
