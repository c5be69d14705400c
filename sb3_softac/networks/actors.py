"""Actors: policies over continuous actions (squashed Gaussian, gSDE) and over discrete ones."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac import policies as sb3_policies
from torch import nn

from sb3_softac.arguments import DEFAULT_LOG_STD_BOUNDS
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.networks.distributions import (
    ActionProbabilities,
    SampledActions,
    SquashedGaussian,
    SquashedStateDependentNoise,
)
from sb3_softac.networks.encoders import MLP, Encoder, is_traced
from sb3_softac.networks.ensemble import WeightInit, initialise, scale_outputs
from sb3_softac.networks.preprocessing import WithPreprocessing, make_preprocess

LogStdMode = Literal["state", "free"]
LogStdBounding = Literal["clamp", "tanh"]
MakeEncoder = Callable[..., Encoder]
# What an actor is given to act directly: its hidden layers, any of its linear layers, and a check of numbers for NaN.
Layer = Callable[[th.Tensor], th.Tensor]
ApplyLinear = Callable[[nn.Module, th.Tensor], th.Tensor]
Check = Callable[[th.Tensor], None]
#: methods of the distribution of an actor: an attribute of one of these names would hide it
DISTRIBUTION_METHODS = frozenset(name for name in dir(SquashedGaussian) if callable(getattr(SquashedGaussian, name)))


def refuse_nan(values: th.Tensor) -> None:
    """Actions of a policy whose weights are NaN must not reach an environment. While a file is exported all pass.

    :param values: actions, or the log-probabilities that they are drawn from
    :raises TrainingDivergedError: NaN among them
    """
    if values.is_floating_point() and not is_traced() and bool(values.isnan().any()):
        raise TrainingDivergedError(
            "The policy's actions are NaN, because its weights or the observation are. After a training that has diverged, "
            "load an earlier checkpoint and train with a lower learning rate, `max_grad_norm`, `ent_coef_max` or smaller "
            "rewards."
        )


def initialise_network(
    hidden: Encoder,
    outputs: list[nn.Module],
    activation_fn: Callable[[], nn.Module],
    weight_init: WeightInit,
    final_init_scale: float | None,
) -> None:
    """Initialise the hidden and the output layers as ``SoftACPolicy``'s options say."""
    hidden.initialise(weight_init, gain=math.sqrt(2.0) if isinstance(activation_fn(), nn.ReLU) else 1.0)
    for output in outputs:
        initialise(output, weight_init)
        if final_init_scale is not None:
            scale_outputs(output, final_init_scale)


class ActsDirectly:
    """What ``collect`` asks of an actor to sample actions without ``predict``, from the same random numbers.

    It asks only a class that has a ``sample_directly`` of its own: a subclass without one may sample in another way.
    """

    def output_layers(self) -> list[nn.Module]:
        """The layers behind the hidden ones."""
        raise NotImplementedError

    def sample_directly(
        self, flat: th.Tensor, hidden: Layer, linear: ApplyLinear, check: Check, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """Sample actions without calling modules.

        :param flat: observations, (n, F)
        :param hidden: evaluates the hidden layers
        :param linear: evaluates a linear layer
        :param check: raises an error if there is NaN in what it is given
        :param noise: ε, (n, A), of a squashed Gaussian; None to draw it
        :return: (n, A), scaled to [−1, 1], or discrete actions (n,) counted from 0
        """
        raise NotImplementedError

    def sample_on_device(self: Any, obs: PyTorchObs) -> th.Tensor:
        """Sample actions without looking at any number, as a CUDA graph must. Where the policy is NaN discrete ones are −1."""
        actions: th.Tensor = self(obs)
        return actions

    def is_unaltered(self) -> bool:
        """Whether all that it samples with, and that is no module, is as we made it."""
        return True


class Actor(ActsDirectly, WithPreprocessing, sb3_policies.Actor):
    """Squashed Gaussian policy: SB3's ``Actor`` with the exact log-density and a configurable standard deviation.

    Its parameters carry the names that they have in SB3.

    :param log_std_mode: ``"state"``: log σ(s) is a head of the network; ``"free"``: one learned vector
    :param log_std_bounds: lowest and highest log σ
    :param log_std_bounding: ``"clamp"``, or ``"tanh"``: lo + ½(hi − lo)(1 + tanh raw)
    :param log_std_init: initial log σ, see ``SoftACPolicy``
    :param encoder: makes the hidden layers
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    :param kwargs: the arguments of SB3's ``Actor``
    """

    #: whether the actor computes the same in every call, by tensor operations alone, so that it may be compiled
    compilable: bool = True
    action_dist: SquashedGaussian | SquashedStateDependentNoise  # type: ignore[assignment]  # SB3 declares no common base
    log_std: Any  # a linear head, or a parameter

    def __init__(
        self,
        *,
        log_std_mode: LogStdMode = "state",
        log_std_bounds: tuple[float, float] = DEFAULT_LOG_STD_BOUNDS,
        log_std_bounding: LogStdBounding = "clamp",
        log_std_init: float | None = None,
        encoder: MakeEncoder = MLP,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        with th.random.fork_rng(devices=[]):  # SB3 builds output layers without hidden ones, which give way to ours
            super().__init__(log_std_init=-3.0 if log_std_init is None else log_std_init, **{**kwargs, "net_arch": []})
        self.net_arch = kwargs["net_arch"]
        self.preprocess = make_preprocess(self.observation_space, self.normalize_images)
        self.log_std_mode = log_std_mode
        self.log_std_bounds = log_std_bounds
        self.log_std_bounding = log_std_bounding
        self.init_kwargs = {"log_std_init": log_std_init, "weight_init": weight_init, "final_init_scale": final_init_scale}
        hidden = encoder(self.features_dim, self.net_arch, self.activation_fn)
        self.latent_pi = hidden
        self._build_outputs(hidden)
        heads: list[nn.Module] = [self.mu] if self.use_sde else [self.mu, self.log_std]
        initialise_network(hidden, heads, self.activation_fn, weight_init, final_init_scale)
        if not self.use_sde:
            self._set_initial_log_std(get_action_dim(self.action_space), log_std_init)

    def _build_outputs(self, hidden: Encoder) -> None:
        action_dim, features = get_action_dim(self.action_space), hidden.out_features
        if self.use_sde:
            self.action_dist = SquashedStateDependentNoise(
                action_dim, full_std=self.full_std, use_expln=self.use_expln, learn_features=True, squash_output=True
            )
            self.mu, self.log_std = self.action_dist.proba_distribution_net(
                latent_dim=features, latent_sde_dim=features, log_std_init=self.log_std_init
            )
            if self.clip_mean > 0.0:
                self.mu = nn.Sequential(self.mu, nn.Hardtanh(min_val=-self.clip_mean, max_val=self.clip_mean))
            return
        self.action_dist = SquashedGaussian(action_dim)
        self.mu, self.log_std = hidden.make_output(action_dim), hidden.make_output(action_dim)

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
        elif raw != 0.0 and not (self.latent_pi.has_own_weights and self.log_std_bounding == "tanh"):
            output: Any = list(self.log_std.modules())[-1]  # the last layer, where there are several
            nn.init.constant_(output.bias, raw)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **self.init_kwargs,
            "log_std_mode": self.log_std_mode,
            "log_std_bounds": self.log_std_bounds,
            "log_std_bounding": self.log_std_bounding,
        }

    def output_layers(self) -> list[nn.Module]:
        """As in ``ActsDirectly``."""
        return [self.mu] if self.log_std_mode == "free" else [self.mu, self.log_std]

    def is_unaltered(self) -> bool:
        """As in ``ActsDirectly``; with gSDE it is not."""
        return type(self.action_dist) is SquashedGaussian and DISTRIBUTION_METHODS.isdisjoint(vars(self.action_dist))

    def sample_directly(
        self, flat: th.Tensor, hidden: Layer, linear: ApplyLinear, check: Check, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """As in ``ActsDirectly``."""
        values = hidden(flat)
        mean_actions = linear(self.mu, values)
        noise = th.randn(mean_actions.shape) if noise is None else noise.clone()
        raw = self.log_std if self.log_std_mode == "free" else linear(self.log_std, values)
        return noise.mul_(self._bounded(raw).exp()).add_(mean_actions).tanh_()

    def _bounded(self, raw: th.Tensor) -> th.Tensor:
        """log σ within its bounds."""
        low, high = self.log_std_bounds
        if self.log_std_bounding == "tanh":
            return low + 0.5 * (high - low) * (1.0 + th.tanh(raw))
        return raw.clamp(low, high)

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
        return mean_actions, self._bounded(raw), {}

    @property
    def draws_own_noise(self) -> bool:
        """Whether the noise of the actions is drawn by ``action_log_prob`` alone: with gSDE, or where that is replaced."""
        replaced = type(self).action_log_prob is not Actor.action_log_prob or "action_log_prob" in vars(self)
        return self.use_sde or replaced or type(self.action_dist) is not SquashedGaussian

    def action_distribution(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> SampledActions:
        """π(·|s) as one sampled action per state.

        :param obs: (B, ...)
        :param noise: ε ~ N(0, I), (B, A); None to draw it here
        """
        if noise is not None:
            assert isinstance(self.action_dist, SquashedGaussian)
            mean_actions, log_std, _ = self.get_action_dist_params(obs)
            return SampledActions(*self.action_dist.squash(mean_actions, log_std, noise), log_std)
        sample = self.action_log_prob(obs)
        if isinstance(self.action_dist, SquashedGaussian):
            return SampledActions(*sample, self.action_dist.log_std)
        return SampledActions(*sample, self.get_std().log(), has_noise_matrix=True)


class CategoricalActor(ActsDirectly, WithPreprocessing, BasePolicy):
    """Policy over discrete actions, π(a|s) = softmax(logits(s)) (1910.07207). Actions count from 0.

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param encoder: makes the hidden layers
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    compilable: bool = True  #: as in ``Actor``
    #: no noise: nothing is drawn for the losses, whose expectations are exact sums
    draws_own_noise = False
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
        encoder: MakeEncoder = MLP,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.preprocess = make_preprocess(observation_space, normalize_images)
        self.latent_pi = encoder(features_dim, net_arch, activation_fn)
        self.logits = self.latent_pi.make_output(int(action_space.n))
        initialise_network(self.latent_pi, [self.logits], activation_fn, weight_init, final_init_scale)

    def output_layers(self) -> list[nn.Module]:
        """As in ``ActsDirectly``."""
        return [self.logits]

    def sample_directly(
        self, flat: th.Tensor, hidden: Layer, linear: ApplyLinear, check: Check, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """As in ``ActsDirectly``."""
        probabilities = th.softmax(linear(self.logits, hidden(flat)), dim=1)
        check(probabilities)
        return th.multinomial(probabilities, 1).squeeze(1)

    def sample_on_device(self, obs: PyTorchObs) -> th.Tensor:
        """As in ``ActsDirectly``: a device fails for good when it draws from NaN."""
        probabilities = self.log_probs(obs).exp()
        broken = probabilities.isnan().any(dim=1)
        drawn = th.multinomial(probabilities.nan_to_num(nan=1.0), 1).squeeze(1)
        return drawn.masked_fill(broken, -1)

    def log_probs(self, obs: PyTorchObs) -> th.Tensor:
        """log π(a|s) of every action, (B, |A|) for observations (B, ...)."""
        latent = self.latent_pi(self.extract_features(obs, self.features_extractor))
        return th.log_softmax(self.logits(latent), dim=1)

    def candidates(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """All actions and their log π(a|s), both (B, |A|), for observations (B, ...)."""
        log_probs = self.log_probs(obs)
        return th.arange(log_probs.shape[1], device=log_probs.device).expand_as(log_probs), log_probs

    def action_distribution(self, obs: PyTorchObs, noise: None = None) -> ActionProbabilities:
        """π(·|s) as the probabilities of all actions, for observations (B, ...); nothing is drawn."""
        return ActionProbabilities(self.log_probs(obs))

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Sample an action for each state.

        :param obs: (B, ...)
        :return: actions (B,) and their log π(a|s) (B,), in nats
        """
        log_probs = self.log_probs(obs)
        actions = self.sample(log_probs)
        return actions, log_probs.gather(1, actions.unsqueeze(1)).squeeze(1)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """The most probable action of each state, or a sampled one, (B,).

        :raises TrainingDivergedError: the probabilities are NaN
        """
        log_probs = self.log_probs(obs)
        refuse_nan(log_probs)
        return log_probs.argmax(dim=1) if deterministic else self.sample(log_probs)

    @staticmethod
    def sample(log_probs: th.Tensor) -> th.Tensor:
        """Draw an action for each row of (B, |A|) log-probabilities, (B,)."""
        return th.multinomial(log_probs.exp(), 1).squeeze(1)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
