"""Actor, critics, value network and their targets, as an SB3 policy."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac import policies as sb3_policies
from torch import nn

from sb3_softac.arguments.policy import DEFAULT_LOG_STD_BOUNDS, check_gaussian_arguments, check_network_arguments
from sb3_softac.networks.actors import Actor, CategoricalActor, LogStdBounding, LogStdMode, refuse_nan
from sb3_softac.networks.base import SoftPolicy, make_target
from sb3_softac.networks.catalogue import ENCODERS
from sb3_softac.networks.critics import ActionSpace, StackedCritics, ValueNetwork
from sb3_softac.networks.encoders import Encoder
from sb3_softac.networks.ensemble import WeightInit
from sb3_softac.networks.heads import HEADS, CriticHead


class SoftACPolicy(SoftPolicy, sb3_policies.SACPolicy):  # type: ignore[misc]  # SB3 builds its own critics
    """Policy of ``SoftAC``: SB3's ``SACPolicy`` with stacked critics, an optional value network and more choices.

    :param observation_space: observation space
    :param action_space: a ``Box``, or a ``Discrete``, for which the options of log σ and gSDE have no meaning
    :param lr_schedule: learning rate at construction; ``SoftAC`` sets each network's learning rate before it trains
    :param net_arch: units of the hidden layers of all networks, or ``dict(pi=..., qf=..., vf=...)`` for actor, critics and
        value network (``vf`` by default as ``qf``); default [256, 256]
    :param activation_fn: makes the elementwise activation of the hidden layers, without parameters: a class such as
        ``nn.ReLU``, or ``functools.partial(nn.LeakyReLU, 0.2)``
    :param use_sde: generalized state-dependent exploration (2005.05719)
    :param log_std_init: initial log σ, for all states. None: about 0 (about the middle of the bounds if 0 is outside), −3 for
        gSDE
    :param use_expln: gSDE only: ``expln`` instead of ``exp``
    :param clip_mean: gSDE only: bound of the mean
    :param features_extractor_class: network that turns observations into features; None flattens them (``CnnPolicy``:
        ``NatureCNN``, ``MultiInputPolicy``: ``CombinedExtractor``)
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer of all networks, or ``dict(pi=..., qf=..., vf=...)`` for actor, critics and value network
        (``vf`` by default as ``qf``), where one that is left out has Adam
    :param optimizer_kwargs: its arguments, without the learning rate, or ``dict(pi=..., qf=..., vf=...)`` of such dicts, where
        a network that is left out has none. AdamW's ``weight_decay`` shrinks all parameters, biases and those of norms too
    :param n_critics: number of critics
    :param share_features_extractor: critics and value network use the actor's features extractor, which then learns from
        the actor loss only
    :param value_network: V and a target V instead of target critics; set by ``SoftAC``
    :param normalize_observations: all networks see observations normalised by running statistics; set by ``SoftAC``
    :param target_networks: target critics, or a target V; False for an algorithm that bootstraps without them
    :param encoder: hidden layers of all networks: ``"mlp"``, a subclass of ``Encoder``, or ``dict(pi=..., qf=...)`` for
        actor, and critics and value network
    :param critic_head: what the numbers mean that a critic puts out: ``"scalar"``, ``"quantile"``, ``"categorical"``, or a
        subclass of ``CriticHead``
    :param n_quantiles: quantiles of each quantile critic
    :param n_atoms: atoms of each categorical critic
    :param value_range: the smallest and the largest return that a categorical critic knows
    :param log_std_mode: ``"state"`` for a log σ that depends on the state, ``"free"`` for one learned vector
    :param log_std_bounds: lowest and highest log σ
    :param log_std_bounding: how log σ is kept there: ``"clamp"`` or ``"tanh"``
    :param normalization: of the hidden layers: ``"layer"``, ``"batch"``, ``"batch_renorm"``, None, or ``dict(pi=..., qf=...)``
    :param layer_norm: layer normalisation in the critics' hidden layers, ``normalization=dict(qf="layer")``
    :param dropout_rate: dropout in the hidden layers of the critics and their targets (2110.02034)
    :param weight_init: linear layers of all networks behind the features extractor: ``"default"`` (PyTorch's),
        ``"orthogonal"`` or ``"xavier"``
    :param final_init_scale: factor on the initial weights and biases of all output layers, or None
    :raises ValueError: a value out of range, or options that contradict each other
    """

    critic: StackedCritics  # type: ignore[assignment]  # SB3 declares its own unstacked critics here
    critic_target: StackedCritics | None  # type: ignore[assignment]  # None with a value network
    value_net: ValueNetwork | None
    value_net_target: ValueNetwork | None

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
        optimizer_class: type[th.optim.Optimizer] | dict[str, type[th.optim.Optimizer]] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        *,
        value_network: bool = False,
        normalize_observations: bool = False,
        target_networks: bool = True,
        encoder: str | type[Encoder] | dict[str, Any] = "mlp",
        critic_head: str | type[CriticHead] = "scalar",
        n_quantiles: int = 25,
        n_atoms: int = 101,
        value_range: tuple[float, float] = (-5.0, 5.0),
        log_std_mode: LogStdMode = "state",
        log_std_bounds: tuple[float, float] = DEFAULT_LOG_STD_BOUNDS,
        log_std_bounding: LogStdBounding = "clamp",
        normalization: str | dict[str, str | None] | None = None,
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        checked = check_network_arguments(locals(), tuple(ENCODERS), tuple(HEADS), value_network)
        check_gaussian_arguments(locals(), action_space)
        # SB3's constructor ends by building the networks, which needs these.
        self.value_network = value_network
        self.normalize_observations = normalize_observations
        self.target_networks = target_networks
        self.encoder, self.critic_head = encoder, critic_head
        self.head_kwargs = checked.head
        self.use_sde = use_sde
        self.init_kwargs = {"weight_init": weight_init, "final_init_scale": final_init_scale}
        self.log_std_kwargs = {
            "log_std_init": log_std_init,
            "log_std_mode": log_std_mode,
            "log_std_bounds": tuple(log_std_bounds),
            "log_std_bounding": log_std_bounding,
        }
        self.regularisation_kwargs = {
            "normalization": normalization,
            "layer_norm": layer_norm,
            "dropout_rate": dropout_rate,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=checked.net_arch,
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
            n_critics=checked.n_critics,
            share_features_extractor=share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.add_optimizer(self.actor, lr_schedule(1))
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared)
        self.add_optimizer(self.critic, lr_schedule(1))
        self.critic_target = self.value_net = self.value_net_target = None
        if self.value_network:
            self.value_net = self.make_value_network(shared)
            self.add_optimizer(self.value_net, lr_schedule(1))
        if not self.target_networks:
            return
        if self.value_net is not None:
            self.value_net_target = make_target(self.make_value_network(), self.value_net)
        else:
            self.critic_target = make_target(self.make_critic(), self.critic)

    def networks(self) -> tuple[nn.Module | None, ...]:
        """All networks, targets too; None for one that this policy does not have."""
        return *super().networks(), self.value_net, self.value_net_target

    def trained_networks(self) -> dict[str, Any]:
        """Actor, critics and value network by the names that their learning rates have."""
        return super().trained_networks() | ({} if self.value_net is None else {"value": self.value_net})

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of an online network and the target that follows it."""
        pairs = super().targets()
        if self.value_net is not None and self.value_net_target is not None:
            pairs.append((self.value_net, self.value_net_target))
        return pairs

    def action_rule(self, deterministic: bool) -> str:
        """As in ``SoftPolicy``."""
        if not deterministic:
            return "sampled"
        return "most probable" if isinstance(self.action_space, spaces.Discrete) else "mean"

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor | CategoricalActor:  # type: ignore[override]  # SB3 has no discrete one
        if isinstance(self.action_space, spaces.Discrete):
            kwargs = {**self.net_args, **self.init_kwargs, "encoder": self._encoder("pi", **self._regularisation("pi"))}
            categorical = CategoricalActor(**self._update_features_extractor(kwargs, features_extractor))
            return self.with_normalizer(categorical.to(self.device))
        kwargs = {
            **self.actor_kwargs,
            **self.log_std_kwargs,
            **self.init_kwargs,
            "encoder": self._encoder("pi", **self._regularisation("pi")),
        }
        actor = Actor(**self._update_features_extractor(kwargs, features_extractor))
        return self.with_normalizer(actor.to(self.device))

    def make_value_network(self, features_extractor: BaseFeaturesExtractor | None = None) -> ValueNetwork:
        kwargs = {**self.net_args, **self.init_kwargs, "share_features_extractor": self.share_features_extractor}
        kwargs["encoder"] = self._encoder("qf", **self._regularisation("vf"))
        kwargs["net_arch"] = self.critic_kwargs["net_arch"]
        if isinstance(self.net_arch, dict):
            kwargs["net_arch"] = self.net_arch.get("vf", self.net_arch["qf"])
        value_net = ValueNetwork(**self._update_features_extractor(kwargs, features_extractor))
        return self.with_normalizer(value_net.to(self.device))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions: th.Tensor = self.actor(observation, deterministic)
        refuse_nan(actions)
        return actions + int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else actions

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.log_std_kwargs,
            **self.init_kwargs,
            **self.regularisation_kwargs,
            "share_features_extractor": self.share_features_extractor,
            "value_network": self.value_network,
            "normalize_observations": self.normalize_observations,
            "target_networks": self.target_networks,
            "encoder": self.encoder,
            "critic_head": self.critic_head,
            **self.head_kwargs,
        }


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
