"""Soft actor-critic: the algorithm box of the papers, read from top to bottom.

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
from sb3_softac.update.losses import Atoms, CriticReduction
from sb3_softac.update.temperature import Temperature

ActorQ = Literal["min", "mean", "first", "target_min"]
Bootstrap = Literal["target", "joint", "joint_target"]

FIRST_CRITIC = slice(0, 1)


@dataclass(frozen=True)
class ActorCriticSettings(Settings):
    """Options of soft actor-critic that a gradient step holds as constants."""

    actor_q: ActorQ = "min"
    target_q: CriticReduction = "min"
    target_subset: int | None = None
    #: quantiles of each critic that are left out of targets, at the top
    n_dropped: int = 0
    #: from target networks; or "joint", from the critics themselves, in one pass with the values that are trained; or
    #: "joint_target", from target networks in such a pass
    bootstrap: Bootstrap = "target"


class Noise(NamedTuple):
    """Random numbers of one gradient step; None for those that it does not need, or draws by itself."""

    observations: th.Tensor | None = None  # ε of the actions at s, (B, A)
    next_observations: th.Tensor | None = None  # ε of the actions at s', (B, A)
    later_observations: th.Tensor | None = None  # ε of the actions between s and s', (B·(n − 1), A)
    critic_indices: th.Tensor | None = None  # the critics of the targets, (M,)


DRAWN_INSIDE = Noise()


class ActorCriticUpdate(Update):
    """One gradient step of soft actor-critic.

    A subclass may override any method; what it returns is compiled like ours if it is made of tensor operations.

    :param networks: a policy with ``actor``, ``critic``, ``critic_target``, ``value_net`` and ``value_net_target``, of which
        some may be None
    :param temperature: α
    :param settings: options
    """

    settings: ActorCriticSettings

    def __init__(self, networks: Any, temperature: Temperature, settings: ActorCriticSettings) -> None:
        super().__init__(networks, temperature, settings)
        discrete = isinstance(networks.action_space, spaces.Discrete)
        self.discrete = discrete
        self.needs_targets = settings.bootstrap != "joint"
        self.joint = settings.bootstrap != "target"
        self.targets_copy_statistics = settings.bootstrap != "joint_target"
        self._soft_value = losses.discrete_soft_value if discrete else losses.soft_value
        self._actor_loss = losses.discrete_actor_loss if discrete else losses.actor_loss

    def obstacle(self) -> str | None:
        """Why it can run in eager mode only, or None."""
        return "gSDE keeps its noise between the steps" if self.networks.use_sde else None

    # --- the algorithm box -----------------------------------------------------------------------------------------

    def __call__(
        self,
        batch: Batch,
        noise: Noise | None,
        flags: UpdateFlags,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> Metrics:
        """One gradient step. Every loss uses the temperature and the actor from before it; parameters as in ``Update``."""
        if noise is None:  # where it is drawn inside, it comes in the order of `draw_noise`
            noise = self.draw_noise(len(batch.rewards), flags) if self.joint else DRAWN_INSIDE
        networks = self.networks
        ent_coef = self.temperature.at_most(numbers.ent_coef_max).clone()
        metrics = {"ent_coef": ent_coef}
        if networks.use_sde:
            networks.actor.reset_noise()
        pi = None
        if not self.joint and (flags.actor or networks.value_net is not None):
            pi = self.act(batch, noise)
        if self.joint:
            outputs, target = self.joint_pass(batch, ent_coef, noise, numbers)
            metrics |= self.fit_critics(outputs, target, numbers, optimizer_step)
        else:
            target = self.bellman_target(batch, ent_coef, noise, numbers)
            if networks.value_net is not None:
                metrics |= self.update_value_network(batch, pi, ent_coef, noise, numbers, optimizer_step)
            metrics |= self.update_critics(batch, target, numbers, optimizer_step)
        if flags.actor:
            pi = self.act(batch, noise) if pi is None else pi
            metrics |= pi.metrics()
            metrics |= self.update_actor(batch, pi, ent_coef, numbers, optimizer_step)
            metrics |= self.update_temperature(pi, numbers, optimizer_step)
        if flags.targets:
            self.update_targets(numbers)
        return Metrics(tuple(metrics), th.stack(tuple(metrics.values())))

    # --- its parts -------------------------------------------------------------------------------------------------

    def act(self, batch: Batch, noise: Noise) -> Any:
        """π(·|s), with a fresh action.

        The statistics of batch normalisation are those of s; with ``"joint_target"`` of the mixture of s and s' (FlashSAC).
        """
        actor, observations, epsilon = self.networks.actor, batch.observations, noise.observations
        mixed = self.settings.bootstrap == "joint_target"
        if mixed:
            observations = both(observations, batch.next_observations)
            epsilon = None if epsilon is None else th.cat([epsilon, epsilon])
        with self.batch_statistics(actor):
            pi = actor.action_distribution(observations, epsilon)
        return pi.first(len(batch.rewards)) if mixed else pi

    def joint_pass(self, batch: Batch, ent_coef: th.Tensor, noise: Noise, numbers: Numbers) -> tuple[th.Tensor, Any]:
        """Outputs of the critics at (s, a), (N, B, k), and y from those at (s', ã'), out of one pass (1902.05605).

        So the statistics of batch normalisation are those of the mixture of both; the pass of the next action keeps to the
        running ones. With ``"joint_target"`` y comes from the same pass through the targets, which moves their own statistics.
        """
        networks, size = self.networks, len(batch.rewards)
        with th.no_grad():
            pi = networks.actor.action_distribution(batch.next_observations, noise.next_observations)
        observations = both(batch.observations, batch.next_observations)
        actions = None if self.discrete else th.cat([batch.actions, pi.actions])
        with self.batch_statistics(networks.critic):
            outputs = networks.critic.outputs(observations, actions)
        current, following = outputs[:, :size], outputs[:, size:].detach()
        if self.needs_targets:
            with th.no_grad(), self.batch_statistics(networks.critic_target):
                following = networks.critic_target.outputs(observations, actions)[:, size:]
        if self.discrete:
            index = batch.actions.reshape(1, -1, 1, 1).expand(len(current), -1, 1, current.shape[-1])
            current = current.gather(2, index).squeeze(2)
        with th.no_grad():
            next_value = self.joint_value(following, pi, ent_coef, noise)
            return current, self.discounted(batch, next_value, ent_coef, noise, numbers)

    def joint_value(self, outputs: th.Tensor, pi: Any, ent_coef: th.Tensor, noise: Noise) -> Any:
        """V(s'), (B,), or its distribution, of what all critics put out at the next action."""
        head, settings = self.networks.critic.head, self.settings
        chosen = self.target_critics(noise.critic_indices)
        outputs = outputs if chosen is None else outputs[chosen]
        if head.is_distribution:
            return head.soft_atoms(outputs, pi.log_prob, ent_coef, settings.target_q, settings.n_dropped)
        q = losses.reduce_critics(head.expected_value(outputs), settings.target_q)
        return self._soft_value(q, pi.log_prob, ent_coef)

    @th.no_grad()
    def bellman_target(self, batch: Batch, ent_coef: th.Tensor, noise: Noise, numbers: Numbers) -> Any:
        """y = k·r + γ(1 − d)·V(s'), (B,), with V the target value network or the soft value of the target critics.

        With critics that are distributions V(s') and y are, too.
        """
        return self.discounted(batch, self.next_value(batch, ent_coef, noise), ent_coef, noise, numbers)

    def discounted(self, batch: Batch, next_value: Any, ent_coef: th.Tensor, noise: Noise, numbers: Numbers) -> Any:
        """y out of V(s') or its distribution."""
        values, weights = next_value if isinstance(next_value, Atoms) else (next_value, None)
        target = losses.bellman_target(batch.rewards, batch.dones, batch.discounts, values, numbers.reward_scale)
        if batch.later_observations is not None:
            assert batch.later_discounts is not None
            later = self.networks.actor.action_distribution(batch.later_observations, noise.later_observations)
            log_prob = later.mean_log_prob().view_as(batch.later_discounts)
            entropies = losses.later_entropies(log_prob, batch.later_discounts, ent_coef)
            target = target + (entropies if target.ndim == 1 else entropies.unsqueeze(1))
        return Atoms(target, weights) if isinstance(next_value, Atoms) else target

    def next_value(self, batch: Batch, ent_coef: th.Tensor, noise: Noise) -> Any:
        """V(s'), (B,), or its distribution."""
        networks, observations = self.networks, batch.next_observations
        if networks.value_net_target is not None:
            value: th.Tensor = networks.value_net_target(observations).squeeze(1)
            return value
        assert networks.critic_target is not None, "target critics are missing"
        pi = networks.actor.action_distribution(observations, noise.next_observations)
        critics, settings = networks.critic_target, self.settings
        if critics.head.is_distribution:
            outputs = critics.outputs(observations, pi.actions, self.target_critics(noise.critic_indices))
            atoms: Atoms = critics.head.soft_atoms(outputs, pi.log_prob, ent_coef, settings.target_q, settings.n_dropped)
            return atoms
        next_q = self.target_reduction(critics, observations, pi.actions, noise.critic_indices)
        return self._soft_value(next_q, pi.log_prob, ent_coef)

    def target_reduction(
        self, critics: Any, observations: Any, actions: th.Tensor | None, critic_indices: th.Tensor | None
    ) -> th.Tensor:
        """R_i Q_i(s, a) over all critics or over a random subset.

        :return: (B,), or (B, |A|) for all discrete actions, where ``actions`` is None
        """
        q_values = critics.q_values(observations, actions, self.target_critics(critic_indices))
        return losses.reduce_critics(q_values, self.settings.target_q)

    def target_critics(self, critic_indices: th.Tensor | None) -> th.Tensor | slice | None:
        """The critics that a target is taken over; no others are evaluated.

        :param critic_indices: the random subset, if it has been drawn
        """
        if self.settings.target_subset is not None:
            return self.draw_critic_indices() if critic_indices is None else critic_indices
        return FIRST_CRITIC if self.settings.target_q == "first" else None

    def update_value_network(
        self,
        batch: Batch,
        pi: Any,
        ent_coef: th.Tensor,
        noise: Noise,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> dict[str, th.Tensor]:
        """One optimizer step of V towards the soft value of a fresh action."""
        networks = self.networks
        with th.no_grad():
            q = self.target_reduction(networks.critic, batch.observations, pi.actions, noise.critic_indices)
            target = self._soft_value(q, pi.log_prob, ent_coef)
        with self.batch_statistics(networks.value_net):
            values = networks.value_net(batch.observations).squeeze(1)
        loss = losses.value_loss(values, target)
        self.minimise(loss, networks.value_net, numbers, optimizer_step)
        return {"value_loss": loss.detach()}

    def update_actor(
        self,
        batch: Batch,
        pi: Any,
        ent_coef: th.Tensor,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> dict[str, th.Tensor]:
        """One optimizer step of the actor, on the critics after their update."""
        networks, actor_q = self.networks, self.settings.actor_q
        critics = networks.critic_target if actor_q == "target_min" else networks.critic
        indices = FIRST_CRITIC if actor_q == "first" else None
        how: CriticReduction = "min" if actor_q == "target_min" else actor_q
        with th.set_grad_enabled(pi.actions is not None):  # without a sampled action no gradient runs through Q
            q = losses.reduce_critics(critics.q_values(batch.observations, pi.actions, indices), how)
        loss = self._actor_loss(q, pi.log_prob, ent_coef)
        grad_norm = self.minimise(loss, networks.actor, numbers, optimizer_step)
        return {"actor_loss": loss.detach(), "grad_norm_actor": grad_norm}

    # --- random numbers --------------------------------------------------------------------------------------------

    def draw_noise(self, batch_size: int, flags: UpdateFlags) -> Noise:
        """What a step would draw by itself, in the same order (but for dropout, which is drawn in between)."""
        networks = self.networks
        outside = not (networks.actor.draws_own_noise or isinstance(networks.action_space, spaces.Discrete))
        action_dim = math.prod(networks.action_space.shape or ())
        draw_here = outside and (flags.actor or networks.value_net is not None)
        draw_next = outside and networks.value_net is None

        def normal() -> th.Tensor:
            return th.randn((batch_size, action_dim), device=self.device)

        return Noise(
            observations=normal() if draw_here else None,
            next_observations=normal() if draw_next else None,
            critic_indices=None if self.settings.target_subset is None else self.draw_critic_indices(),
        )

    def draw_critic_indices(self) -> th.Tensor:
        """The random subset of critics that a target is taken over, (M,)."""
        indices = th.randperm(self.networks.critic.n_critics, device=self.device)[: self.settings.target_subset]
        return indices if self.group is None else self.group.from_first(indices)  # of the joint batch there is one subset


def both(observations: Any, others: Any) -> Any:
    """Two batches of observations as one."""
    if isinstance(observations, dict):
        return {key: th.cat([part, others[key]]) for key, part in observations.items()}
    return th.cat([observations, others])
