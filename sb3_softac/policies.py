"""Actor, critics, value network and their targets, as an SB3 policy."""

import math
from typing import Any, ClassVar, Literal, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac import policies as sb3_policies
from torch import nn

from sb3_softac.arguments import DEFAULT_LOG_STD_BOUNDS, check_policy_arguments
from sb3_softac.distributions import ActionProbabilities, SampledActions, SquashedGaussian, SquashedStateDependentNoise
from sb3_softac.networks import Members, Perceptron, StackedMLP, WeightInit, initialise, scale_outputs

LogStdMode = Literal["state", "free"]
LogStdBounding = Literal["clamp", "tanh"]
ActionSpace = spaces.Box | spaces.Discrete


def _initialise_network(
    hidden: nn.Module,
    outputs: list[nn.Module],
    activation_fn: type[nn.Module],
    weight_init: WeightInit,
    final_init_scale: float | None,
) -> None:
    initialise(hidden, weight_init, gain=math.sqrt(2.0) if issubclass(activation_fn, nn.ReLU) else 1.0)
    for output in outputs:
        initialise(output, weight_init)
        if final_init_scale is not None:
            scale_outputs(output, final_init_scale)


class Actor(sb3_policies.Actor):
    """Squashed Gaussian policy: SB3's ``Actor`` with the exact log-density and a configurable standard deviation.

    Its parameters carry the names that they have in SB3.

    :param log_std_mode: ``"state"``: log σ(s) is a head of the network; ``"free"``: one learned vector
    :param log_std_bounds: lowest and highest log σ
    :param log_std_bounding: ``"clamp"``, or ``"tanh"``: lo + ½(hi − lo)(1 + tanh raw)
    :param log_std_init: initial log σ, see ``SoftACPolicy``
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    :param kwargs: the arguments of SB3's ``Actor``
    """

    action_dist: SquashedGaussian | SquashedStateDependentNoise  # type: ignore[assignment]  # SB3 declares no common base
    log_std: Any  # a linear head, or a parameter

    def __init__(
        self,
        *,
        log_std_mode: LogStdMode = "state",
        log_std_bounds: tuple[float, float] = DEFAULT_LOG_STD_BOUNDS,
        log_std_bounding: LogStdBounding = "clamp",
        log_std_init: float | None = None,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(log_std_init=-3.0 if log_std_init is None else log_std_init, **kwargs)
        self.log_std_mode = log_std_mode
        self.log_std_bounds = log_std_bounds
        self.log_std_bounding = log_std_bounding
        self.init_kwargs = {"log_std_init": log_std_init, "weight_init": weight_init, "final_init_scale": final_init_scale}
        self.latent_pi = Perceptron(*self.latent_pi)
        heads: list[nn.Module] = [self.mu] if self.use_sde else [self.mu, self.log_std]
        _initialise_network(self.latent_pi, heads, self.activation_fn, weight_init, final_init_scale)
        action_dim = get_action_dim(self.action_space)
        if self.use_sde:
            self.action_dist = SquashedStateDependentNoise(
                action_dim, full_std=self.full_std, use_expln=self.use_expln, learn_features=True, squash_output=True
            )
            self.action_dist.latent_sde_dim = self.log_std.shape[0]
            self.action_dist.sample_weights(self.log_std)
        else:
            self.action_dist = SquashedGaussian(action_dim)
            self._set_initial_log_std(action_dim, log_std_init)

    def _set_initial_log_std(self, action_dim: int, log_std_init: float | None) -> None:
        low, high = self.log_std_bounds
        # Outside of its bounds a clamped log σ would get no gradient.
        default = 0.0 if low < 0.0 < high else 0.5 * (low + high)
        raw = default if log_std_init is None else log_std_init
        if self.log_std_bounding == "tanh":
            raw = math.atanh(2.0 * (raw - low) / (high - low) - 1.0)
        if self.log_std_mode == "free":
            del self.log_std
            self.log_std = nn.Parameter(th.full((action_dim,), raw))
        elif log_std_init is not None:
            nn.init.zeros_(self.log_std.weight)
            nn.init.constant_(self.log_std.bias, raw)
        elif raw != 0.0:
            nn.init.constant_(self.log_std.bias, raw)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.init_kwargs,
            "log_std_mode": self.log_std_mode,
            "log_std_bounds": self.log_std_bounds,
            "log_std_bounding": self.log_std_bounding,
        }

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Parameters of π(·|s) before the squashing.

        :param obs: (B, ...)
        :return: μ (B, A), log σ (B, A) or (A,), and the features (B, F) under ``"latent_sde"`` with gSDE
        """
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        mean_actions = self.mu(latent)
        if self.use_sde:
            return mean_actions, self.log_std, {"latent_sde": latent}
        raw = self.log_std if self.log_std_mode == "free" else self.log_std(latent)
        low, high = self.log_std_bounds
        if self.log_std_bounding == "tanh":
            return mean_actions, low + 0.5 * (high - low) * (1.0 + th.tanh(raw)), {}
        return mean_actions, raw.clamp(low, high), {}

    def policy_at(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> SampledActions:
        """π(·|s) as one sampled action per state.

        :param obs: (B, ...)
        :param noise: ε ~ N(0, I), (B, A); None to draw it here. Not for gSDE, whose noise is a function of the state
        """
        if noise is not None:
            assert isinstance(self.action_dist, SquashedGaussian)
            mean_actions, log_std, _ = self.get_action_dist_params(obs)
            return SampledActions(*self.action_dist.squash(mean_actions, log_std, noise), log_std)
        sample = self.action_log_prob(obs)
        if isinstance(self.action_dist, SquashedGaussian):
            return SampledActions(*sample, self.action_dist.log_std)
        return SampledActions(*sample, self.get_std().log())


class CategoricalActor(BasePolicy):
    """Policy over discrete actions, π(a|s) = softmax(logits(s)) (1910.07207). Actions count from 0.

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    action_space: spaces.Discrete
    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.latent_pi = Perceptron(*create_mlp(features_dim, -1, net_arch, activation_fn))
        self.logits = nn.Linear(net_arch[-1] if net_arch else features_dim, int(action_space.n))
        _initialise_network(self.latent_pi, [self.logits], activation_fn, weight_init, final_init_scale)

    def log_probs(self, obs: PyTorchObs) -> th.Tensor:
        """log π(a|s) of every action, (B, |A|) for observations (B, ...)."""
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        return th.log_softmax(self.logits(latent), dim=1)

    def policy_at(self, obs: PyTorchObs, noise: None = None) -> ActionProbabilities:
        """π(·|s) as the probabilities of all actions, for observations (B, ...); nothing is drawn."""
        return ActionProbabilities(self.log_probs(obs))

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Sample an action for each state.

        :param obs: (B, ...)
        :return: actions (B,) and their log π(a|s) (B,), in nats
        """
        log_probs = self.log_probs(obs)
        actions = th.multinomial(log_probs.exp(), 1)
        return actions.squeeze(1), log_probs.gather(1, actions).squeeze(1)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """The most probable action of each state, or a sampled one, (B,)."""
        return self.log_probs(obs).argmax(dim=1) if deterministic else self.action_log_prob(obs)[0]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


class StackedCritics(BaseModel):
    """N critics Q_i(s, a) as one batched network behind one features extractor.

    With ``Box`` actions the action is an input of the networks, with ``Discrete`` ones they have an output for each.

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param n_critics: N
    :param share_features_extractor: the features extractor belongs to the actor and gets no gradient from here
    :param layer_norm: normalise the hidden layers
    :param dropout_rate: dropout of the hidden layers
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        self.discrete = isinstance(action_space, spaces.Discrete)
        inputs = features_dim + (0 if self.discrete else get_action_dim(action_space))
        n_outputs = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 1
        self.q_networks = StackedMLP(n_critics, inputs, net_arch, activation_fn, layer_norm, dropout_rate, n_outputs)
        _initialise_network(self.q_networks.hidden, [self.q_networks.output], activation_fn, weight_init, final_init_scale)

    def q_values(self, obs: PyTorchObs, actions: th.Tensor | None = None, members: Members = None) -> th.Tensor:
        """Q_i(s, a) of the chosen critics.

        :param obs: (B, ...)
        :param actions: (B, A), scaled to [−1, 1]; discrete ones (B,) or (B, 1), counted from 0, or None for all of them
        :param members: indices (M,), a slice of the N critics, or None for all
        :return: (M, B), or (M, B, |A|) for all discrete actions
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        if not self.discrete:
            assert actions is not None, "only discrete actions can be enumerated"
            q_values: th.Tensor = self.q_networks(th.cat([features, actions], dim=1), members)
            return q_values.squeeze(2)
        q_values = self.q_networks(features, members)
        if actions is None:
            return q_values
        return q_values.gather(2, actions.reshape(1, -1, 1).expand(len(q_values), -1, 1)).squeeze(2)

    def forward(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> tuple[th.Tensor, ...]:
        """Q_i(s, a) as SB3 returns them: N tensors (B, 1), or (B, |A|) for all discrete actions."""
        q_values = self.q_values(obs, actions)
        return tuple(q_values if q_values.ndim == 3 else q_values.unsqueeze(2))


class ValueNetwork(BaseModel):
    """State value V(s) (1801.01290).

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param share_features_extractor: the features extractor belongs to the actor and gets no gradient from here
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        share_features_extractor: bool = False,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.share_features_extractor = share_features_extractor
        self.v_network = StackedMLP(1, features_dim, net_arch, activation_fn)
        _initialise_network(self.v_network.hidden, [self.v_network.output], activation_fn, weight_init, final_init_scale)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """V(s), (B, 1) for observations (B, ...)."""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        values: th.Tensor = self.v_network(features)
        return values.squeeze(0)


Network = TypeVar("Network", StackedCritics, ValueNetwork)


class SoftACPolicy(sb3_policies.SACPolicy):
    """Policy of ``SoftAC``: SB3's ``SACPolicy`` with stacked critics, an optional value network and more choices.

    :param observation_space: observation space
    :param action_space: a ``Box``, or a ``Discrete``, for which the options of log σ and gSDE have no meaning
    :param lr_schedule: learning rate at construction; ``SoftAC`` sets each network's own rate before it trains
    :param net_arch: units of the hidden layers of all networks, or ``dict(pi=..., qf=..., vf=...)`` for actor, critics and
        value network (``vf`` by default as ``qf``); default [256, 256]
    :param activation_fn: elementwise activation of the hidden layers, without parameters
    :param use_sde: generalized state-dependent exploration (2005.05719)
    :param log_std_init: initial log σ, for all states. None: about 0 (about the middle of the bounds if 0 is outside), −3 for
        gSDE
    :param use_expln: gSDE only: ``expln`` in place of ``exp``
    :param clip_mean: gSDE only: bound of the mean
    :param features_extractor_class: network that turns observations into features; None flattens them (``CnnPolicy``:
        ``NatureCNN``, ``MultiInputPolicy``: ``CombinedExtractor``)
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer of actor, critics and value network
    :param optimizer_kwargs: its arguments, without the learning rate
    :param n_critics: number of critics
    :param share_features_extractor: critics and value network use the actor's features extractor, which then learns from
        the actor loss only
    :param value_network: V and a target V in place of target critics; set by ``SoftAC``
    :param log_std_mode: ``"state"`` for a log σ that depends on the state, ``"free"`` for one learned vector
    :param log_std_bounds: lowest and highest log σ
    :param log_std_bounding: how log σ is kept there: ``"clamp"`` or ``"tanh"``
    :param layer_norm: layer normalisation in the critics' hidden layers
    :param dropout_rate: dropout in the hidden layers of the critics and their targets (2110.02034)
    :param weight_init: linear layers of all networks behind the features extractor: ``"default"`` (PyTorch's),
        ``"orthogonal"`` or ``"xavier"``
    :param final_init_scale: factor on the initial weights and biases of all output layers, or None
    :raises ValueError: a value out of range, or options that contradict each other
    """

    actor: Any  #: Actor, or CategoricalActor for discrete actions: a union would hide the attributes of each
    critic: StackedCritics  # type: ignore[assignment]  # SB3 declares its own unstacked critics here
    critic_target: StackedCritics | None  # type: ignore[assignment]  # None with a value network
    value_net: ValueNetwork | None
    value_net_target: ValueNetwork | None
    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float | None = None,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        *,
        value_network: bool = False,
        log_std_mode: LogStdMode = "state",
        log_std_bounds: tuple[float, float] = DEFAULT_LOG_STD_BOUNDS,
        log_std_bounding: LogStdBounding = "clamp",
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        n_critics, net_arch = check_policy_arguments(locals(), action_space)
        # SB3's constructor ends by building the networks, which needs these.
        self.value_network = value_network
        self.use_sde = use_sde
        self.init_kwargs = {"weight_init": weight_init, "final_init_scale": final_init_scale}
        self.log_std_kwargs = {
            "log_std_init": log_std_init,
            "log_std_mode": log_std_mode,
            "log_std_bounds": tuple(log_std_bounds),
            "log_std_bounding": log_std_bounding,
        }
        self.regularisation_kwargs = {"layer_norm": layer_norm, "dropout_rate": dropout_rate}
        super().__init__(
            observation_space,
            action_space,  # type: ignore[arg-type]  # SB3 only passes it on
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            use_sde=use_sde,
            use_expln=use_expln,
            clip_mean=clip_mean,
            features_extractor_class=features_extractor_class or self.default_features_extractor_class,
            # SB3 writes into this dict when images come normalised
            features_extractor_kwargs=dict(features_extractor_kwargs or {}),
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self._add_optimizer(self.actor, lr_schedule)
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared)
        self._add_optimizer(self.critic, lr_schedule)
        self.critic_target = self.value_net = self.value_net_target = None
        if self.value_network:
            self.value_net = self.make_value_network(shared)
            self._add_optimizer(self.value_net, lr_schedule)
            self.value_net_target = self._follow(self.make_value_network(), self.value_net)
        else:
            self.critic_target = self._follow(self.make_critic(), self.critic)

    def _add_optimizer(self, network: Actor | CategoricalActor | StackedCritics | ValueNetwork, lr_schedule: Schedule) -> None:
        shared = network is not self.actor and self.share_features_extractor
        parameters = [p for name, p in network.named_parameters() if not (shared and name.startswith("features_extractor"))]
        kwargs = dict(self.optimizer_kwargs)
        if self.optimizer_class in (th.optim.Adam, th.optim.AdamW) and not {"foreach", "capturable", "differentiable"} & set(
            kwargs
        ):
            kwargs.setdefault("fused", True)  # one kernel for all parameters, the same numbers
        make_optimizer: Any = self.optimizer_class  # the base class declares no learning rate
        network.optimizer = make_optimizer(parameters, lr=lr_schedule(1), **kwargs)

    @staticmethod
    def _follow(target: Network, online: Network) -> Network:
        """Make ``target`` start as a copy of ``online``."""
        target.load_state_dict(online.state_dict())
        # Batch normalisation in a target uses the copied statistics, never its own batch ...
        target.set_training_mode(False)
        for module in target.modules():
            if isinstance(module, nn.Dropout):
                module.train()  # ... but DroQ's targets are drawn with dropout (2110.02034, algorithm 2)
        return target

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor | CategoricalActor:  # type: ignore[override]  # SB3 has no discrete one
        if isinstance(self.action_space, spaces.Discrete):
            kwargs = {**self.net_args, **self.init_kwargs}
            return CategoricalActor(**self._update_features_extractor(kwargs, features_extractor)).to(self.device)
        kwargs = {**self.actor_kwargs, **self.log_std_kwargs, **self.init_kwargs}
        return Actor(**self._update_features_extractor(kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> StackedCritics:  # type: ignore[override]  # SB3 names its own class
        kwargs = {**self.critic_kwargs, **self.regularisation_kwargs, **self.init_kwargs}
        return StackedCritics(**self._update_features_extractor(kwargs, features_extractor)).to(self.device)

    def make_value_network(self, features_extractor: BaseFeaturesExtractor | None = None) -> ValueNetwork:
        kwargs = {**self.net_args, **self.init_kwargs, "share_features_extractor": self.share_features_extractor}
        kwargs["net_arch"] = self.critic_kwargs["net_arch"]
        if isinstance(self.net_arch, dict):
            kwargs["net_arch"] = self.net_arch.get("vf", self.net_arch["qf"])
        return ValueNetwork(**self._update_features_extractor(kwargs, features_extractor)).to(self.device)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions: th.Tensor = self.actor(observation, deterministic)
        return actions + int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else actions

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.log_std_kwargs,
            **self.init_kwargs,
            **self.regularisation_kwargs,
            "share_features_extractor": self.share_features_extractor,
            "value_network": self.value_network,
        }

    def set_training_mode(self, mode: bool) -> None:
        """Switch batch normalisation and dropout of actor, critics and value network; targets stay as they are."""
        for network in (self.actor, self.critic, self.value_net):
            # It is asked for in each step of an environment, mostly for what is already so.
            if network is not None and any(part.training != mode for part in (network, *network.children())):
                network.set_training_mode(mode)
        self.training = mode


MlpPolicy = SoftACPolicy


class CnnPolicy(SoftACPolicy):
    """``SoftACPolicy`` for images, with SB3's ``NatureCNN``."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(SoftACPolicy):
    """``SoftACPolicy`` for Dict observations, with SB3's ``CombinedExtractor``."""

    default_features_extractor_class = CombinedExtractor


#: Who passes one of SB3's policy classes gets the same one here.
SB3_EQUIVALENTS: dict[type[Any], type[SoftACPolicy]] = {
    sb3_policies.SACPolicy: SoftACPolicy,
    sb3_policies.CnnPolicy: CnnPolicy,
    sb3_policies.MultiInputPolicy: MultiInputPolicy,
}
