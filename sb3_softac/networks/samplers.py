"""Actors of soft Q-learning: samplers of continuous actions, and the Boltzmann distribution of discrete ones.

A sampler turns noise into actions, a = tanh f(ξ, s) with ξ ~ N(0, I) (1702.08165, section 3.3). It may represent any
distribution, also one with several modes, and mostly has no density.
"""

from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_softac.networks.actors import ActsDirectly, ApplyLinear, Check, Layer, MakeEncoder, initialise_network, refuse_nan
from sb3_softac.networks.critics import beside
from sb3_softac.networks.distributions import ActionProbabilities, squashed_log_density
from sb3_softac.networks.encoders import MLP
from sb3_softac.networks.ensemble import WeightInit
from sb3_softac.networks.preprocessing import WithPreprocessing, make_preprocess
from sb3_softac.update import losses


class Particles(NamedTuple):
    """K actions in each state."""

    actions: th.Tensor  # (B, K, A), scaled to [−1, 1]
    log_density: th.Tensor | None = None  # (B, K), in nats; None where the sampler has no density


class Sampler(ActsDirectly, WithPreprocessing, BasePolicy):
    """a = tanh f(ξ, s) with an MLP f on state and noise (1702.08165).

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param noise_dim: dimension of ξ; None for that of the actions
    :param n_particles: K, actions among which ``predict(deterministic=True)`` chooses
    :param encoder: makes the hidden layers
    :param weight_init: see ``SoftQLPolicy``
    :param final_init_scale: see ``SoftQLPolicy``
    """

    compilable: bool = True  #: as in ``Actor``
    #: whether :meth:`particles` gives densities
    has_density: bool = False
    features_extractor: BaseFeaturesExtractor
    optimizer: th.optim.Optimizer
    fixed_noise: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        noise_dim: int | None = None,
        n_particles: int = 16,
        encoder: MakeEncoder = MLP,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.preprocess = make_preprocess(observation_space, normalize_images)
        self.action_dim = get_action_dim(action_space)
        self.noise_dim = self.action_dim if noise_dim is None else noise_dim
        self.latent_pi = encoder(features_dim + self.n_noise_inputs, net_arch, activation_fn)
        self.mu = self.latent_pi.make_output(self.action_dim)
        self.build_outputs(self.latent_pi.out_features)
        outputs = [module for name, module in self.named_children() if name not in ("features_extractor", "latent_pi")]
        initialise_network(self.latent_pi, outputs, activation_fn, weight_init, final_init_scale)
        # The same noise at every call, and in every copy: deterministic actions are a function of the state.
        self.register_buffer("fixed_noise", th.randn(n_particles, self.noise_dim))

    @property
    def n_noise_inputs(self) -> int:
        """How many inputs of the hidden layers are noise."""
        return self.noise_dim

    def build_outputs(self, features: int) -> None:
        """Add output layers besides ``mu``, for ``features`` inputs."""

    def draw_noise(self, batch_size: int, n_particles: int) -> th.Tensor:
        """ξ for each particle of each state, (B, K, noise_dim)."""
        return th.randn((batch_size, n_particles, self.noise_dim), device=self.fixed_noise.device)

    def particles(self, obs: PyTorchObs, noise: th.Tensor) -> Particles:
        """Actions for given noise.

        :param obs: (B, ...)
        :param noise: ξ, (B, K, noise_dim)
        """
        features = self.extract_features(obs, self.features_extractor)
        inputs = beside(features, noise)
        outputs: th.Tensor = self.mu(self.latent_pi(inputs.flatten(0, 1)))
        return Particles(th.tanh(outputs).view(noise.shape[0], noise.shape[1], -1))

    def output_layers(self) -> list[nn.Module]:
        """As in ``ActsDirectly``."""
        return [self.mu]

    def sample_directly(
        self, flat: th.Tensor, hidden: Layer, linear: ApplyLinear, check: Check, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """As in ``ActsDirectly``."""
        noise = self.draw_noise(len(flat), 1).squeeze(1)
        return linear(self.mu, hidden(th.cat([flat, noise], dim=1))).tanh_()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """One sampled action for each state, (B, A); which one is best is not for the sampler to say.

        :raises ValueError: ``deterministic`` is True
        """
        if deterministic:
            raise ValueError("`deterministic` is True, but a sampler has no best action: the policy's `predict` chooses by Q.")
        n_states = (next(iter(obs.values())) if isinstance(obs, dict) else obs).shape[0]
        return self.particles(obs, self.draw_noise(n_states, 1)).actions.squeeze(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


class GaussianSampler(Sampler):
    """a = tanh(μ(s) + σ(s)·ξ): one mode, and a density, which ``value_proposal="policy"`` needs. σ is within e^±5."""

    has_density = True
    log_std: nn.Module

    @property
    def n_noise_inputs(self) -> int:
        """The noise is no input: it scales the deviation from the mean."""
        if self.noise_dim != self.action_dim:
            raise ValueError(
                f"`noise_dim` is {self.noise_dim}, but it must be None or {self.action_dim}, the dimension of the actions, "
                "with a `sampler` that is a Gaussian."
            )
        return 0

    def build_outputs(self, features: int) -> None:
        self.log_std = self.latent_pi.make_output(self.action_dim)

    def output_layers(self) -> list[nn.Module]:
        return [self.mu, self.log_std]

    def sample_directly(
        self, flat: th.Tensor, hidden: Layer, linear: ApplyLinear, check: Check, noise: th.Tensor | None = None
    ) -> th.Tensor:
        noise, values = self.draw_noise(len(flat), 1).squeeze(1), hidden(flat)
        return (linear(self.mu, values) + self._bounded(linear(self.log_std, values)).exp() * noise).tanh_()

    @staticmethod
    def _bounded(raw: th.Tensor) -> th.Tensor:
        return 5.0 * th.tanh(raw / 5.0)

    def particles(self, obs: PyTorchObs, noise: th.Tensor) -> Particles:
        hidden = self.latent_pi(self.extract_features(obs, self.features_extractor))
        log_std = self._bounded(self.log_std(hidden))
        log_std = log_std.unsqueeze(1).expand_as(noise)
        pre_tanh = self.mu(hidden).unsqueeze(1) + log_std.exp() * noise
        flat = [tensor.flatten(0, 1) for tensor in (noise, log_std, pre_tanh)]
        return Particles(th.tanh(pre_tanh), squashed_log_density(*flat).view(noise.shape[:2]))


#: samplers by the names that ``policy_kwargs["sampler"]`` takes
SAMPLERS: dict[str, type[Sampler]] = {"mlp": Sampler, "gaussian": GaussianSampler}


class BoltzmannActor(nn.Module):
    """π(a|s) ∝ exp(Q(s, a)/α) over discrete actions, counted from 0. It has no weights: it reads the critics.

    :param policy: owner of the critics
    """

    compilable: bool = True  #: as in ``Actor``
    ent_coef: th.Tensor

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self._policy = (policy,)  # hidden in a tuple: it is no part of the actor
        self.register_buffer("ent_coef", th.ones(()))

    def log_probs(self, obs: PyTorchObs) -> th.Tensor:
        """log π(a|s) of every action, (B, |A|) for observations (B, ...)."""
        return losses.boltzmann_log_probs(self._policy[0].reduced_q(obs), self.ent_coef)

    def action_distribution(self, obs: PyTorchObs) -> ActionProbabilities:
        """π(·|s) as the probabilities of all actions, for observations (B, ...)."""
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
        """The action of the largest Q in each state, or a sampled one, (B,)."""
        return choose(self._policy[0].reduced_q(obs), self.ent_coef, deterministic)


def choose(q: th.Tensor, ent_coef: th.Tensor, deterministic: bool) -> th.Tensor:
    """The best action of each state, or one drawn from the Boltzmann distribution, (B,).

    :param q: (B, |A|)
    :param ent_coef: () temperature α
    :param deterministic: whether to take the best
    :raises TrainingDivergedError: Q is NaN
    """
    refuse_nan(q)
    if deterministic:
        return q.argmax(dim=1)
    return th.multinomial(losses.boltzmann_log_probs(q, ent_coef).exp(), 1).squeeze(1)
