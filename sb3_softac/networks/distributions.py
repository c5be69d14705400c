"""Action distributions of the actor, with the exact log-density of a tanh-squashed Gaussian.

They extend SB3's distributions and keep their interface, so that SB3's ``Actor`` uses them unchanged. What the actor says
about the actions at a batch of states is a :class:`SampledActions` or an :class:`ActionProbabilities`.
"""

import copy
import math
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, StateDependentNoiseDistribution
from torch.nn import functional as F

from sb3_softac.errors import TrainingDivergedError

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def log_det_tanh(pre_tanh: th.Tensor) -> th.Tensor:
    """log(d tanh(u)/du) = log(1 − tanh²u) = 2(log 2 − u − softplus(−2u)), elementwise.

    The left form loses all digits where tanh(u) rounds to ±1 (in float32 from |u| ≈ 9), and SB3's
    log(1 − tanh²u + 1e-6) is off by 0.04 at |u| = 6 and by 1.2 at 8; the right form is exact everywhere. Its derivation:
    1 − tanh²u = 4 / (e^u + e^−u)² = 4 e^−2u / (1 + e^−2u)².

    :param pre_tanh: u, any shape
    """
    return 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))


def squashed_log_density(noise: th.Tensor, log_std: th.Tensor, pre_tanh: th.Tensor) -> th.Tensor:
    """log π(ã|s) = Σ_j [−½ε_j² − log σ_j − ½ log 2π − log(1 − tanh²u_j)] (1812.05905, appendix C).

    :param noise: ε = (u − μ)/σ, (B, A)
    :param log_std: log σ, (B, A) or (A,)
    :param pre_tanh: u, (B, A)
    :return: (B,), in nats, in the scaled action space
    """
    return (-0.5 * noise.square() - log_std - HALF_LOG_2PI - log_det_tanh(pre_tanh)).sum(dim=1)


class SquashedGaussian(SquashedDiagGaussianDistribution):
    """ã = tanh(μ + σ·ε) with ε ~ N(0, I), in the scaled action space [−1, 1]^A.

    :param action_dim: A
    """

    def __init__(self, action_dim: int) -> None:
        super().__init__(action_dim)
        #: log σ (B, A) or (A,) of the newest sample, without gradient; for logging
        self.log_std = th.zeros(action_dim)

    def actions_from_params(self, mean_actions: th.Tensor, log_std: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Sample ã, or tanh(μ), from μ (B, A) and log σ (B, A) or (A,).

        :return: (B, A)
        """
        if deterministic:
            return th.tanh(mean_actions)
        return th.tanh(mean_actions + log_std.exp() * self.draw_noise(mean_actions))

    def draw_noise(self, mean_actions: th.Tensor) -> th.Tensor:
        """ε of actions, (B, A) as μ; replaced on the object where it is kept for several steps."""
        return th.randn_like(mean_actions)

    def log_prob_from_params(self, mean_actions: th.Tensor, log_std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Sample ã by reparametrisation and evaluate its own log-density at the same ε.

        :param mean_actions: μ, (B, A)
        :param log_std: log σ, (B, A), or (A,) if it does not depend on the state
        :return: actions (B, A) in [−1, 1] and log-densities (B,), in nats
        """
        self.log_std = log_std.detach()
        return self.squash(mean_actions, log_std, th.randn_like(mean_actions))

    @staticmethod
    def squash(mean_actions: th.Tensor, log_std: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """ã = tanh(μ + σ·ε) and its log-density, for given ε.

        :param mean_actions: μ, (B, A)
        :param log_std: log σ, (B, A) or (A,)
        :param noise: ε, (B, A)
        :return: as ``log_prob_from_params``
        """
        pre_tanh = mean_actions + log_std.exp() * noise
        return th.tanh(pre_tanh), squashed_log_density(noise, log_std, pre_tanh)


def _raise_if_diverged(error: ValueError, *parameters: th.Tensor) -> None:
    """PyTorch's distributions refuse parameters that are not finite as bad arguments, which they are not here."""
    if not all(bool(parameter.isfinite().all()) and bool(parameter.exp().isfinite().all()) for parameter in parameters):
        raise TrainingDivergedError(
            "The training has diverged: the policy's distribution is not finite. A lower learning rate, `max_grad_norm`, "
            "`ent_coef_max` or smaller rewards may help."
        ) from error


class SquashedStateDependentNoise(StateDependentNoiseDistribution):
    """gSDE as in SB3 (2005.05719) with the exact log-density: no inverse tanh, no additive 1e-6."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SquashedStateDependentNoise":
        """A copy with the same noise, outside of the graph in which it was drawn: PyTorch does not copy graphs."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            if isinstance(value, th.distributions.Normal):
                value = th.distributions.Normal(value.loc.detach().clone(), value.scale.detach().clone())
            copied.__dict__[name] = value.detach().clone() if isinstance(value, th.Tensor) else copy.deepcopy(value, memo)
        return copied

    def sample_weights(self, log_std: th.Tensor, batch_size: int = 1) -> None:
        """Draw the noise matrix, (F, A), and ``batch_size`` of them."""
        try:
            super().sample_weights(log_std, batch_size)
        except ValueError as error:
            _raise_if_diverged(error, log_std)
            raise

    def proba_distribution(
        self, mean_actions: th.Tensor, log_std: th.Tensor, latent_sde: th.Tensor
    ) -> "SquashedStateDependentNoise":
        """As in SB3."""
        try:
            super().proba_distribution(mean_actions, log_std, latent_sde)
        except ValueError as error:
            _raise_if_diverged(error, mean_actions, log_std)
            raise
        return self

    def log_prob_from_params(
        self, mean_actions: th.Tensor, log_std: th.Tensor, latent_sde: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """Sample ã = tanh(μ + noise matrix · features) and evaluate its log-density.

        :param mean_actions: μ, (B, A)
        :param log_std: log of the noise matrix's standard deviation, (F, A)
        :param latent_sde: features, (B, F)
        :return: actions (B, A) in [−1, 1] and log-densities (B,), in nats
        """
        self.proba_distribution(mean_actions, log_std, latent_sde)
        std = self.distribution.stddev
        deviation = self.get_noise(self._latent_sde)
        pre_tanh = mean_actions + deviation
        return th.tanh(pre_tanh), squashed_log_density(deviation / std, std.log(), pre_tanh)


class SampledActions(NamedTuple):
    """One reparametrised action per state: an expectation over π is its one-sample estimate."""

    actions: th.Tensor  # (B, A), scaled to [−1, 1]
    log_prob: th.Tensor  # (B,), in nats
    log_std: th.Tensor  # log σ, (B, A) or (A,); with gSDE that of the noise matrix, (F, A)
    has_noise_matrix: bool = False

    def mean_log_prob(self) -> th.Tensor:
        """Estimate of E_π[log π(·|s)], the negative entropy in each state, (B,)."""
        return self.log_prob

    def first(self, n_states: int) -> "SampledActions":
        """Those of the first states alone."""
        is_of_states = self.log_std.ndim == 2 and not self.has_noise_matrix
        log_std = self.log_std[:n_states] if is_of_states else self.log_std
        return SampledActions(self.actions[:n_states], self.log_prob[:n_states], log_std, self.has_noise_matrix)

    def metrics(self) -> dict[str, th.Tensor]:
        """Entropy Ĥ and mean log σ."""
        return {"entropy": -self.log_prob.detach().mean(), "log_std": self.log_std.detach().mean()}


class ActionProbabilities(NamedTuple):
    """π(a|s) of every discrete action: an expectation over π is an exact sum."""

    log_prob: th.Tensor  # (B, |A|), in nats
    actions: None = None  # no choice among them: the critics return the values of all

    def mean_log_prob(self) -> th.Tensor:
        """Σ_a π(a|s) log π(a|s), the negative entropy in each state, (B,)."""
        return (self.log_prob.exp() * self.log_prob).sum(dim=1)

    def first(self, n_states: int) -> "ActionProbabilities":
        """Those of the first states alone."""
        return ActionProbabilities(self.log_prob[:n_states])

    def metrics(self) -> dict[str, th.Tensor]:
        """Entropy Ĥ."""
        return {"entropy": -self.mean_log_prob().detach().mean()}
