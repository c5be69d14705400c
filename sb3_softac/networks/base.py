"""What the policies of all algorithms have in common: critics with their targets, an actor, and an optimizer for each."""

import copy
import functools
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn

from sb3_softac.arguments.policy import for_network
from sb3_softac.networks.catalogue import ENCODERS
from sb3_softac.networks.critics import StackedCritics, ValueNetwork
from sb3_softac.networks.encoders import Encoder
from sb3_softac.networks.heads import CriticHead, make_head
from sb3_softac.networks.normalizers import ObservationNormalizer, attach

Network = TypeVar("Network", bound=nn.Module)
Target = TypeVar("Target", StackedCritics, ValueNetwork)
#: the methods that do no more than set ``training`` everywhere, in networks that are no targets
PLAIN_TRAIN: tuple[Any, ...] = (nn.Module.train, StackedCritics.train)


class SoftPolicy(BasePolicy):
    """Base class of our policies. A subclass builds the networks, and says what else of them is trained."""

    compilable: bool = True  #: as in ``Actor``
    actor: Any  #: one of several classes: a union would hide the attributes of each
    critic: StackedCritics
    critic_target: StackedCritics | None
    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    # What the constructor of a subclass sets before it builds the networks.
    encoder: str | type[Encoder] | dict[str, Any]
    critic_head: str | type[CriticHead]
    head_kwargs: dict[str, Any]
    net_args: dict[str, Any]  # what all networks are made with
    critic_kwargs: dict[str, Any]
    init_kwargs: dict[str, Any]
    regularisation_kwargs: dict[str, Any]
    share_features_extractor: bool = False
    normalize_observations: bool = False
    #: statistics of the observations, one for all networks; None where these see observations as they are
    normalizer: ObservationNormalizer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.normalizer = None  # not of the class, which would hide the module
        super().__init__(*args, **kwargs)

    def networks(self) -> tuple[nn.Module | None, ...]:
        """All networks, targets too; None for one that this policy does not have."""
        return self.actor, self.critic, self.critic_target

    def trained_parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """The parameters of actor, critics or value network that its own loss trains."""
        shared = network is not self.actor and self.share_features_extractor
        return [p for name, p in network.named_parameters() if not (shared and name.startswith("features_extractor"))]

    def add_optimizer(self, network: Any, learning_rate: float) -> None:
        """Give ``network`` a new optimizer, as ``optimizer_class`` and ``optimizer_kwargs`` say of it.

        :param network: actor, critics or value network
        :param learning_rate: of its first step
        """
        name = (
            "pi" if network is getattr(self, "actor", None) else "vf" if network is getattr(self, "value_net", None) else "qf"
        )
        make_optimizer: Any = for_network(self.optimizer_class, name, th.optim.Adam)  # which declares no learning rate
        kwargs = dict(for_network(self.optimizer_kwargs, name, None) or {})
        if make_optimizer in (th.optim.Adam, th.optim.AdamW) and not {"foreach", "capturable", "differentiable"} & set(kwargs):
            kwargs.setdefault("fused", True)  # one kernel for all parameters, the same numbers
        network.optimizer = make_optimizer(self.trained_parameters(network), lr=learning_rate, **kwargs)

    def trained_networks(self) -> dict[str, Any]:
        """Networks with an optimizer, by the names that their learning rates have."""
        return {"actor": self.actor, "critic": self.critic}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of an online network and the target that follows it."""
        return [] if self.critic_target is None else [(self.critic, self.critic_target)]

    def acting_module(self) -> nn.Module:
        """What maps observations to actions, as a copy that stands alone: ``forward(obs, deterministic)``.

        Actions are scaled to [−1, 1], discrete ones count from 0. A module that takes the best of several has a method
        ``candidates(obs)``: all of them, (B, n, A) or (B, n), and their values (B, n).
        """
        actor: nn.Module = self.make_actor()
        actor.load_state_dict(self.actor.state_dict())
        if self.normalizer is not None:
            actor.normalizer = copy.deepcopy(self.normalizer)  # a part of it, which goes where it goes
            attach(actor, actor.normalizer)
        return actor

    def action_rule(self, deterministic: bool) -> str:
        """How :meth:`acting_module` comes to an action, in words."""
        raise NotImplementedError

    def make_actor(self) -> Any:
        """A new actor."""
        raise NotImplementedError

    def with_normalizer(self, network: Network) -> Network:
        """``network``, which sees normalised observations where the policy normalises them.

        :raises ValueError: it cannot, or there is nothing to normalise
        """
        if self.normalize_observations:
            if self.normalizer is None:
                self.normalizer = ObservationNormalizer(self.observation_space).to(self.device)
            attach(network, self.normalizer)
        return network

    def _encoder(self, network: str, **options: Any) -> Any:
        """The class of hidden layers of actor (``"pi"``) or critics (``"qf"``), with its options."""
        chosen = self.encoder.get(network, "mlp") if isinstance(self.encoder, dict) else self.encoder
        return functools.partial(ENCODERS[chosen] if isinstance(chosen, str) else chosen, **options)

    def _regularisation(self, network: str) -> dict[str, Any]:
        """Options of the hidden layers of actor (``"pi"``), critics (``"qf"``) or value network (``"vf"``), without defaults.

        ``layer_norm`` and ``dropout_rate`` are of the critics alone.
        """
        chosen = self.regularisation_kwargs["normalization"]
        normalization = chosen.get(network) if isinstance(chosen, dict) else chosen
        of_critics = network == "qf"
        if of_critics and self.regularisation_kwargs["layer_norm"]:
            normalization = "layer"
        dropout_rate = self.regularisation_kwargs["dropout_rate"] if of_critics else 0.0
        options = {"normalization": normalization, "dropout_rate": dropout_rate}
        return {name: value for name, value in options.items() if value}

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> StackedCritics:
        kwargs = {**self.critic_kwargs, **self.init_kwargs, "encoder": self._encoder("qf", **self._regularisation("qf"))}
        kwargs["head"] = make_head(self.critic_head, self.head_kwargs)
        critic = StackedCritics(**self._update_features_extractor(kwargs, features_extractor))
        return self.with_normalizer(critic.to(self.device))

    def set_training_mode(self, mode: bool) -> None:
        """Switch batch normalisation and dropout of all networks but targets. Those keep theirs."""
        for network in self.trained_networks().values():
            # It is asked for in each step of an environment, mostly for what is already so.
            parts = (network, *network.children(), *network.features_extractor.modules())
            if any(part.training != mode for part in parts):
                _switch(network, mode)
        self.training = mode


def _switch(network: Any, mode: bool) -> None:
    """``network.set_training_mode(mode)`` for one that is no target, without the detour over ``nn.Module.__setattr__``.

    Between two steps of an environment all modules change twice. Those with a ``train`` of their own are asked.
    """
    if not isinstance(network, BaseModel) or type(network).set_training_mode is not BaseModel.set_training_mode:
        network.set_training_mode(mode)
        return
    pending: list[nn.Module | None] = [network]
    for module in pending:  # which grows meanwhile
        if module is None:
            continue
        if type(module).train in PLAIN_TRAIN and "train" not in vars(module):
            vars(module)["training"] = mode
            pending.extend(vars(module)["_modules"].values())
        else:
            module.train(mode)


def make_target(target: Target, online: Target) -> Target:
    """Make ``target`` start as a copy of ``online``."""
    target.load_state_dict(online.state_dict())
    target.become_target()
    return target
