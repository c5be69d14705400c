"""Sampler and critics of soft Q-learning, as an SB3 policy."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_softac.arguments.policy import check_network_arguments, check_sampler_arguments
from sb3_softac.networks.actors import refuse_nan
from sb3_softac.networks.base import SoftPolicy, make_target
from sb3_softac.networks.catalogue import ENCODERS
from sb3_softac.networks.critics import ActionSpace, StackedCritics
from sb3_softac.networks.encoders import Encoder
from sb3_softac.networks.ensemble import WeightInit
from sb3_softac.networks.heads import HEADS, CriticHead
from sb3_softac.networks.samplers import SAMPLERS, BoltzmannActor, Sampler, choose
from sb3_softac.update import CriticReduction, losses


def judged_particles(
    actor: Sampler, critic: StackedCritics, target_q: CriticReduction, obs: PyTorchObs
) -> tuple[th.Tensor, th.Tensor]:
    """The actions that the sampler makes of its fixed noise, (B, K, A), and their reduced Q, (B, K); as in :func:`best_of`."""
    # `len` would be a constant in an exported file.
    n_states = (next(iter(obs.values())) if isinstance(obs, dict) else obs).shape[0]
    actions = actor.particles(obs, actor.fixed_noise.expand(n_states, -1, -1)).actions
    return actions, losses.reduce_critics(critic.q_values(obs, actions), target_q)


def best_of(actor: Sampler, critic: StackedCritics, target_q: CriticReduction, obs: PyTorchObs) -> th.Tensor:
    """Of the actions that the sampler makes of its fixed noise, the one with the largest Q in each state, (B, A).

    :param actor: sampler with K vectors of noise
    :param critic: judges them
    :param target_q: reduction over the critics
    :param obs: (B, ...)
    """
    actions, q = judged_particles(actor, critic, target_q, obs)
    refuse_nan(q)
    best = q.argmax(dim=1)
    return actions.gather(1, best.view(-1, 1, 1).expand(-1, 1, actions.shape[2])).squeeze(1)


class ActingModule(nn.Module):
    """Sampler and critics together, or the critics alone where actions are discrete: what acts.

    :param actor: sampler, or ``BoltzmannActor``, whose temperature counts
    :param critic: critics
    :param target_q: reduction over the critics
    """

    def __init__(self, actor: Any, critic: StackedCritics, target_q: CriticReduction) -> None:
        super().__init__()
        self.critic, self.target_q = critic, target_q
        self.actor: Any = None
        if isinstance(actor, BoltzmannActor):
            self.register_buffer("ent_coef", actor.ent_coef)
        else:
            self.actor = actor

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Actions (B, A) scaled to [−1, 1], or (B,), for observations (B, ...)."""
        if self.actor is None:
            q = losses.reduce_critics(self.critic.q_values(obs), self.target_q)
            return choose(q, self.ent_coef, deterministic)  # type: ignore[arg-type]  # a buffer
        return best_of(self.actor, self.critic, self.target_q, obs) if deterministic else self.actor(obs)

    def candidates(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """The actions among which the best is taken, (B, K, A), or (B, |A|) if discrete, and their Q, (B, K) or (B, |A|)."""
        if self.actor is not None:
            return judged_particles(self.actor, self.critic, self.target_q, obs)
        q = losses.reduce_critics(self.critic.q_values(obs), self.target_q)
        return th.arange(q.shape[1], device=q.device).expand_as(q), q


class SoftQLPolicy(SoftPolicy):
    """Policy of ``SoftQL``: critics, and a sampler of continuous actions; discrete ones need none.

    :param observation_space: observation space
    :param action_space: a ``Box``, or a ``Discrete``
    :param lr_schedule: learning rate at construction; ``SoftQL`` sets each network's learning rate before it trains
    :param net_arch: units of the hidden layers of both networks, or ``dict(pi=..., qf=...)`` for sampler and critics; default
        [256, 256]
    :param activation_fn: makes the elementwise activation of the hidden layers, without parameters
    :param features_extractor_class: network that turns observations into features; None flattens them (``CnnPolicy``:
        ``NatureCNN``, ``MultiInputPolicy``: ``CombinedExtractor``). Sampler and critics have one each
    :param features_extractor_kwargs: its arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimizer of both networks, or ``dict(pi=..., qf=...)`` for sampler and critics, where one that is
        left out has Adam
    :param optimizer_kwargs: its arguments, without the learning rate, or ``dict(pi=..., qf=...)`` of such dicts, where a
        network that is left out has none. AdamW's ``weight_decay`` shrinks all parameters, biases and those of norms too
    :param n_critics: number of critics
    :param noise_dim: dimension of the sampler's noise; set by ``SoftQL``
    :param kernel_particles: K, actions among which ``predict(deterministic=True)`` chooses; set by ``SoftQL``
    :param target_q: reduction over the critics; set by ``SoftQL``
    :param sampler: ``"mlp"``, any distribution; ``"gaussian"``, one with a density; or a subclass of ``Sampler``
    :param target_networks: target critics
    :param encoder: hidden layers: ``"mlp"``, a subclass of ``Encoder``, or ``dict(pi=..., qf=...)``
    :param critic_head: what the numbers mean that a critic puts out: ``"scalar"``, ``"quantile"``, ``"categorical"``, or a
        subclass of ``CriticHead``
    :param n_quantiles: quantiles of each quantile critic
    :param n_atoms: atoms of each categorical critic
    :param value_range: the smallest and the largest return that a categorical critic knows
    :param normalization: of the hidden layers: ``"layer"``, ``"batch"``, ``"batch_renorm"``, None, or ``dict(pi=..., qf=...)``
    :param layer_norm: layer normalisation in the critics' hidden layers, ``normalization=dict(qf="layer")``
    :param dropout_rate: dropout in the hidden layers of the critics and their targets
    :param weight_init: linear layers behind the features extractor: ``"default"`` (PyTorch's), ``"orthogonal"`` or
        ``"xavier"``
    :param final_init_scale: factor on the initial weights and biases of all output layers, or None
    :raises ValueError: a value out of range, or options that contradict each other
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] | dict[str, type[th.optim.Optimizer]] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        *,
        noise_dim: int | None = None,
        kernel_particles: int = 16,
        target_q: CriticReduction = "min",
        sampler: str | type[Sampler] = "mlp",
        target_networks: bool = True,
        encoder: str | type[Encoder] | dict[str, Any] = "mlp",
        critic_head: str | type[CriticHead] = "scalar",
        n_quantiles: int = 25,
        n_atoms: int = 101,
        value_range: tuple[float, float] = (-5.0, 5.0),
        normalization: str | dict[str, str | None] | None = None,
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        n_critics, net_arch, head_kwargs = check_network_arguments(locals(), tuple(ENCODERS), tuple(HEADS))
        check_sampler_arguments(locals(), action_space, tuple(SAMPLERS))
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor_class,
            # SB3 writes into this dict when images come normalised
            dict(features_extractor_kwargs or {}),
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=isinstance(action_space, spaces.Box),
            normalize_images=normalize_images,
        )
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.target_networks, self.target_q = target_networks, target_q
        self.encoder, self.critic_head, self.sampler = encoder, critic_head, sampler
        self.head_kwargs = head_kwargs
        self.init_kwargs = {"weight_init": weight_init, "final_init_scale": final_init_scale}
        self.regularisation_kwargs = {
            "normalization": normalization,
            "layer_norm": layer_norm,
            "dropout_rate": dropout_rate,
        }
        self.sampler_kwargs = {"noise_dim": noise_dim, "n_particles": kernel_particles}
        sampler_arch, critic_arch = get_actor_critic_arch(net_arch)
        self.net_args = {
            "observation_space": observation_space,
            "action_space": action_space,
            "net_arch": sampler_arch,
            "activation_fn": activation_fn,
            "normalize_images": normalize_images,
        }
        self.critic_kwargs = {**self.net_args, "net_arch": critic_arch, "n_critics": n_critics}
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.critic = self.make_critic()
        self.critic_target = make_target(self.make_critic(), self.critic) if self.target_networks else None
        for network in self.trained_networks().values():
            self.add_optimizer(network, lr_schedule(1))

    def make_actor(self) -> Sampler | BoltzmannActor:
        """A sampler, or the Boltzmann distribution of discrete actions."""
        if isinstance(self.action_space, spaces.Discrete):
            return BoltzmannActor(self).to(self.device)
        sampler = SAMPLERS[self.sampler] if isinstance(self.sampler, str) else self.sampler
        kwargs = {
            **self.net_args,
            **self.init_kwargs,
            **self.sampler_kwargs,
            "encoder": self._encoder("pi", **self._regularisation("pi")),
        }
        return sampler(**self._update_features_extractor(kwargs)).to(self.device)

    def trained_networks(self) -> dict[str, Any]:
        """Sampler and critics by the names that their learning rates have; discrete actions need no sampler."""
        networks = super().trained_networks()
        return {"critic": self.critic} if isinstance(self.actor, BoltzmannActor) else networks

    def reduced_q(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> th.Tensor:
        """R_i Q_i(s, a), (B,), or (B, K) for actions (B, K, A), or (B, |A|) for all discrete ones."""
        return losses.reduce_critics(self.critic.q_values(obs, actions), self.target_q)

    def acting_module(self) -> nn.Module:
        """As in ``SoftPolicy``."""
        actor, critic = self.make_actor(), self.make_critic()
        actor.load_state_dict(self.actor.state_dict())
        critic.load_state_dict(self.critic.state_dict())
        return ActingModule(actor, critic, self.target_q)

    def action_rule(self, deterministic: bool) -> str:
        """As in ``SoftPolicy``."""
        if not deterministic:
            return "sampled"
        discrete = isinstance(self.action_space, spaces.Discrete)
        return "largest Q" if discrete else f"best of {self.sampler_kwargs['n_particles']} particles by Q"

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """As ``_predict``."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if isinstance(self.action_space, spaces.Discrete):
            chosen: th.Tensor = self.actor(observation, deterministic)
            return chosen + int(self.action_space.start)
        actions = best_of(self.actor, self.critic, self.target_q, observation) if deterministic else self.actor(observation)
        refuse_nan(actions)
        return actions

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.init_kwargs,
            **self.regularisation_kwargs,
            "lr_schedule": self._dummy_schedule,  # none is needed to load a policy alone
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "n_critics": self.critic_kwargs["n_critics"],
            "noise_dim": self.sampler_kwargs["noise_dim"],
            "kernel_particles": self.sampler_kwargs["n_particles"],
            "target_q": self.target_q,
            "sampler": self.sampler,
            "target_networks": self.target_networks,
            "encoder": self.encoder,
            "critic_head": self.critic_head,
            **self.head_kwargs,
        }


class SoftQLCnnPolicy(SoftQLPolicy):
    """``SoftQLPolicy`` for images, with SB3's ``NatureCNN``."""

    default_features_extractor_class = NatureCNN


class SoftQLMultiInputPolicy(SoftQLPolicy):
    """``SoftQLPolicy`` for Dict observations, with SB3's ``CombinedExtractor``."""

    default_features_extractor_class = CombinedExtractor
