"""Soft Q-learning (1702.08165): the algorithm box, read from top to bottom.

Equations, sources and the option that chooses each: docs/algorithm.md.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch as th
from gymnasium import spaces

from sb3_softac.engine import Metrics, OptimizerStep, UpdateFlags
from sb3_softac.engine.optimizers import step as plain_step
from sb3_softac.replay import Batch
from sb3_softac.update import losses
from sb3_softac.update.base import Numbers, Settings, Update
from sb3_softac.update.losses import CriticReduction
from sb3_softac.update.svgd import Kernel, gaussian_kernel, stein_direction
from sb3_softac.update.temperature import Temperature

ValueProposal = Literal["uniform", "policy"]


@dataclass(frozen=True)
class SoftQSettings(Settings):
    """Options of soft Q-learning that a gradient step holds as constants."""

    target_q: CriticReduction = "min"
    value_particles: int = 16
    value_proposal: ValueProposal = "uniform"
    kernel_particles: int = 16
    #: how many of them are moved
    n_updated: int = 8
    kernel: Kernel = gaussian_kernel


class SoftQNoise(NamedTuple):
    """Random numbers of one gradient step; None for those that it does not need."""

    proposals: th.Tensor | None = None  # actions uniform in [−1, 1], (B, M, A), or ξ of the sampler's, (B, M, noise_dim)
    particles: th.Tensor | None = None  # ξ of the particles, (B, K, noise_dim)


class SoftQUpdate(Update):
    """One gradient step of soft Q-learning.

    A subclass may override any method; what it returns is compiled like ours if it is made of tensor operations.

    :param networks: a policy with ``actor``, ``critic`` and ``critic_target``
    :param temperature: α
    :param settings: options
    """

    settings: SoftQSettings

    def __init__(self, networks: Any, temperature: Temperature, settings: SoftQSettings) -> None:
        super().__init__(networks, temperature, settings)
        self.discrete = isinstance(networks.action_space, spaces.Discrete)
        own = settings.kernel is gaussian_kernel or getattr(settings.kernel, "compilable", False)
        self.compilable = type(self).compilable and own

    # --- the algorithm box -----------------------------------------------------------------------------------------

    def __call__(
        self,
        batch: Batch,
        noise: SoftQNoise | None,
        flags: UpdateFlags,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> Metrics:
        """One gradient step. Every loss uses the temperature from before it; parameters as in ``Update``."""
        noise = self.draw_noise(len(batch.rewards), flags) if noise is None else noise
        ent_coef = self.temperature.at_most(numbers.ent_coef_max).clone()
        metrics = {"ent_coef": ent_coef}
        target = self.bellman_target(batch, ent_coef, noise, numbers)
        metrics |= self.update_critics(batch, target, numbers, optimizer_step)
        if self.discrete:
            pi = self.boltzmann(batch, ent_coef)
            metrics |= pi.metrics() | self.update_temperature(pi, numbers, optimizer_step)
            self.set_acting_temperature(numbers)
        else:
            metrics |= self.update_sampler(batch, ent_coef, noise, numbers, optimizer_step)
        if flags.targets:
            self.update_targets(numbers)
        return Metrics(tuple(metrics), th.stack(tuple(metrics.values())))

    # --- its parts -------------------------------------------------------------------------------------------------

    @th.no_grad()
    def bellman_target(self, batch: Batch, ent_coef: th.Tensor, noise: SoftQNoise, numbers: Numbers) -> th.Tensor:
        """y = k·r + γ(1 − d)·V(s'), (B,), with the soft value of the target critics."""
        next_value = self.next_value(batch, ent_coef, noise)
        return losses.bellman_target(batch.rewards, batch.dones, batch.discounts, next_value, numbers.reward_scale)

    def next_value(self, batch: Batch, ent_coef: th.Tensor, noise: SoftQNoise) -> th.Tensor:
        """V(s') = α·log ∫ exp(Q̄(s', a)/α) da, (B,): by importance sampling, or exactly for discrete actions."""
        networks, observations = self.networks, batch.next_observations
        assert networks.critic_target is not None, "target critics are missing"
        if self.discrete:
            return losses.boltzmann_value(self.reduced_q(networks.critic_target, observations), ent_coef)
        assert noise.proposals is not None
        if self.settings.value_proposal == "policy":
            proposals, log_density = networks.actor.particles(observations, noise.proposals)
        else:
            proposals, log_density = noise.proposals, -noise.proposals.shape[2] * math.log(2.0)
        return losses.particle_value(self.reduced_q(networks.critic_target, observations, proposals), log_density, ent_coef)

    def reduced_q(self, critics: Any, observations: Any, actions: th.Tensor | None = None) -> th.Tensor:
        """R_i Q_i(s, a), (B, K) for actions (B, K, A), or (B, |A|) for all discrete ones."""
        return losses.reduce_critics(critics.q_values(observations, actions), self.settings.target_q)

    def update_sampler(
        self,
        batch: Batch,
        ent_coef: th.Tensor,
        noise: SoftQNoise,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> dict[str, th.Tensor]:
        """One optimizer step of the sampler along Δ, on the critics after their update."""
        actor, observations, n_updated = self.networks.actor, batch.observations, self.settings.n_updated
        assert noise.particles is not None
        n_fixed = noise.particles.shape[1] - n_updated
        # By themselves: the backward pass of the loss then has no zeros to carry through the network.
        fixed = actor.particles(observations, noise.particles[:, :n_fixed]).actions
        with self.batch_statistics(actor):
            updated = actor.particles(observations, noise.particles[:, n_fixed:]).actions
        direction = self.stein_direction(observations, fixed, updated.detach(), ent_coef)
        loss = losses.sampler_loss(updated, direction)
        grad_norm = self.minimise(loss, actor, numbers, optimizer_step)
        return {
            "actor_loss": loss.detach(),
            "grad_norm_actor": grad_norm,
            "stein_norm": direction.square().sum(dim=2).mean().sqrt(),
            "particle_std": th.cat([fixed, updated], dim=1).detach().std(dim=1).mean(),
        }

    def stein_direction(self, observations: Any, fixed: th.Tensor, updated: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        """Δ of the updated particles, (B, I, A), for fixed ones (B, J, A); nothing is trained."""
        with th.enable_grad():
            # PyTorch 2.11 compiles no `requires_grad_`; those of a sampler that is trained have a gradient anyway.
            fixed = fixed if fixed.requires_grad else fixed.detach().requires_grad_()
            q = self.reduced_q(self.networks.critic, observations, fixed)
            (scores,) = th.autograd.grad(losses.squashed_target_log_density(q, fixed, ent_coef).sum(), fixed)
        with th.no_grad():
            return stein_direction(scores, self.settings.kernel(fixed.detach(), updated))

    # --- discrete actions --------------------------------------------------------------------------------------------

    @th.no_grad()
    def boltzmann(self, batch: Batch, ent_coef: th.Tensor) -> Any:
        """π(·|s) ∝ exp(Q(s, ·)/α) of the critics after their update, at the temperature of this step."""
        actor = self.networks.actor
        actor.ent_coef.copy_(ent_coef)
        return actor.action_distribution(batch.observations)

    @th.no_grad()
    def set_acting_temperature(self, numbers: Numbers) -> None:
        """Let discrete actions be sampled at the present α."""
        self.networks.actor.ent_coef.copy_(self.temperature.at_most(numbers.ent_coef_max))

    # --- random numbers --------------------------------------------------------------------------------------------

    def draw_noise(self, batch_size: int, flags: UpdateFlags) -> SoftQNoise:
        """What a step draws."""
        if self.discrete:
            return SoftQNoise()
        actor, settings = self.networks.actor, self.settings
        if settings.value_proposal == "policy":
            proposals = actor.draw_noise(batch_size, settings.value_particles)
        else:
            shape = (batch_size, settings.value_particles, math.prod(self.networks.action_space.shape))
            proposals = th.rand(shape, device=self.device).mul_(2.0).sub_(1.0)
        return SoftQNoise(proposals, actor.draw_noise(batch_size, settings.kernel_particles))
