"""The equations of soft actor-critic and soft Q-learning, one function each: tensors in, tensors out.

Shapes, the same everywhere: B batch size, N critics, A discrete actions. Everything that an equation holds constant is
detached inside its function, so that a loss can only reach what it is meant to train. Sources are given by arXiv number.
"""

import math
from typing import Literal, NamedTuple

import torch as th
from torch.nn import functional as F

CriticReduction = Literal["min", "mean", "first"]


class Atoms(NamedTuple):
    """A distribution of n values for each state."""

    values: th.Tensor  # (B, n)
    weights: th.Tensor | None = None  # (B, n), each row adds up to 1; None where all are equal


def _check(q_values: th.Tensor | None = None, **vectors: th.Tensor) -> None:
    """Refuse anything but (N, B) for ``q_values`` and one common (B,) for the vectors.

    A (B, 1) tensor next to a (B,) one would broadcast to (B, B) and train on nonsense without an error.
    """
    if q_values is not None and q_values.ndim != 2:
        raise ValueError(f"q_values has shape {tuple(q_values.shape)}, expected (N, B).")
    batch = q_values.shape[1:] if q_values is not None else next(iter(vectors.values())).shape
    for name, vector in vectors.items():
        if vector.ndim != 1 or vector.shape != batch:
            raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected (B,) with B = {tuple(batch)}.")


def _check_all_actions(**matrices: th.Tensor) -> None:
    """Refuse anything but one common shape (B, A)."""
    shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"The shapes are {shapes}, expected one common (B, A).")


def reduce_critics(q_values: th.Tensor, how: CriticReduction) -> th.Tensor:
    """R_i Q_i: one estimate out of N critics, elementwise.

    The minimum is clipped double Q-learning (1802.09477, eq. 10, taken over N), the mean is what softlearning's code and
    REDQ's actor use (2101.05982), the first critic alone is Spinning Up's page.

    :param q_values: (N, B), or (N, B, A) for every discrete action
    :param how: ``"min"``, ``"mean"`` or ``"first"``
    :return: (B,) or (B, A)
    """
    if q_values.ndim not in (2, 3):
        raise ValueError(f"q_values has shape {tuple(q_values.shape)}, expected (N, B) or (N, B, A).")
    if how == "min":
        return q_values.amin(dim=0)
    if how == "mean":
        return q_values.mean(dim=0)
    return q_values[0]


def soft_value(q: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """One-sample estimate of the soft state value, V(s) = Q(s, ã) − α log π(ã|s) with ã ~ π (1812.05905, eq. 3).

    :param q: (B,) reduced action value at ã
    :param log_prob: (B,) log π(ã|s), in nats
    :param ent_coef: () temperature α
    :return: (B,)
    """
    _check(q=q, log_prob=log_prob)
    return q - ent_coef * log_prob


def discrete_soft_value(q: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """Soft state value as an exact sum, V(s) = Σ_a π(a|s)·(Q(s, a) − α log π(a|s)) (1910.07207, eq. 10).

    :param q: (B, A) reduced value of every action
    :param log_probs: (B, A) log π(a|s), in nats
    :param ent_coef: () temperature α
    :return: (B,)
    """
    _check_all_actions(q=q, log_probs=log_probs)
    return (log_probs.exp() * (q - ent_coef * log_probs)).sum(dim=1)


def boltzmann_log_probs(q: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """log π(a|s) of the Boltzmann distribution π(a|s) ∝ exp(Q(s, a)/α) over discrete actions (1702.08165, eq. 4).

    α = 0 is the limit: all the probability is on the largest Q. Log-probabilities are cut at −1000, where the probability is
    0, so that p·log p is 0 there, too.

    :param q: (B, A) reduced value of every action
    :param ent_coef: () temperature α
    :return: (B, A), in nats
    """
    return th.log_softmax(_above_maximum(q, ent_coef), dim=1)


def boltzmann_value(q: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """Soft value of discrete actions, exactly, V(s) = α·log Σ_a exp(Q(s, a)/α) (1702.08165, eq. 3).

    :param q: (B, A) reduced value of every action
    :param ent_coef: () temperature α; the largest Q at 0
    :return: (B,)
    """
    above = _above_maximum(q, ent_coef)
    return q.amax(dim=1) + ent_coef * above.logsumexp(dim=1)


def _above_maximum(q: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """(Q − max Q)/α ≤ 0, cut at −1000."""
    if q.ndim != 2:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected (B, A).")
    return ((q - q.amax(dim=1, keepdim=True)) / ent_coef.clamp(min=th.finfo(q.dtype).tiny)).clamp(min=-1000.0)


def particle_value(q: th.Tensor, log_density: float | th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """Soft value by importance sampling, V(s) = α·log (1/M Σ_j exp(Q(s, a_j)/α)/q(a_j)) with a_j ~ q (1702.08165, eq. 10).

    Its expectation is below the integral, by Jensen's inequality; it becomes exact as M grows.

    :param q: (B, M) reduced value of each particle
    :param log_density: log q(a_j), (B, M) or one number, in nats; −A·log 2 for a uniform proposal on [−1, 1]^A
    :param ent_coef: () temperature α, above 0
    :return: (B,)
    """
    if q.ndim != 2 or (isinstance(log_density, th.Tensor) and log_density.shape != q.shape):
        density = tuple(log_density.shape) if isinstance(log_density, th.Tensor) else ()
        raise ValueError(f"q has shape {tuple(q.shape)}, log_density {density}, expected one (B, M).")
    return ent_coef * ((q / ent_coef - log_density).logsumexp(dim=1) - math.log(q.shape[1]))


def squashed_target_log_density(q: th.Tensor, actions: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """log p of the density that the sampler follows, Q(s, a)/α + Σ log(1 − a² + 1e-6), up to a constant.

    The sum is the authors' squash correction (1702.08165, code). It keeps particles off the bounds, and makes the density of
    the samples exp(Q/α)·Π(1 − a²) on [−1, 1]^A; see docs/algorithm.md.

    :param q: (B, J) reduced value at the actions
    :param actions: (B, J, A), scaled to [−1, 1]
    :param ent_coef: () temperature α, above 0
    :return: (B, J)
    """
    if actions.ndim != 3 or q.shape != actions.shape[:2]:
        raise ValueError(f"q has shape {tuple(q.shape)}, actions {tuple(actions.shape)}, expected (B, J) and (B, J, A).")
    return q / ent_coef + (1.0 - actions.square() + 1e-6).log().sum(dim=2)


def sampler_loss(actions: th.Tensor, direction: th.Tensor) -> th.Tensor:
    """−mean_{B, I} ⟨a_i, Δ_i⟩, whose gradient moves the sampler's actions along Δ (1702.08165, eq. 14).

    Deviation from the authors' code: a mean instead of a sum over states and particles, which Adam does not feel.

    :param actions: a_i = tanh f(ξ_i, s), (B, I, A)
    :param direction: Δ_i, (B, I, A), held constant
    :return: ()
    """
    if actions.ndim != 3 or actions.shape != direction.shape:
        raise ValueError(f"actions have shape {tuple(actions.shape)}, direction {tuple(direction.shape)}, expected (B, I, A).")
    return -(actions * direction.detach()).sum(dim=2).mean()


def bellman_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor,
    next_value: th.Tensor,
    reward_scale: float | th.Tensor = 1.0,
) -> th.Tensor:
    """Regression target of the critics, y = k·r + γ(1 − d)·V(s') (1801.01290, eq. 8; 1812.05905, eq. 5).

    Deviation: the papers scale the reward inside the environment; here k multiplies it at this one place.

    :param rewards: (B,) r, or the n-step return
    :param dones: (B,) 1 for a true termination, 0 otherwise (also after a time-out)
    :param discounts: (B,) γ, or γ^n for n-step returns
    :param next_value: (B,) soft value of the next state, or (B, n) values that it may have
    :param reward_scale: k; negative turns a reward into a cost
    :return: the shape of ``next_value``, without gradient
    """
    _check(
        rewards=rewards, dones=dones, discounts=discounts, next_value=next_value[:, 0] if next_value.ndim == 2 else next_value
    )
    rewards, discounts = reward_scale * rewards, discounts * (1.0 - dones)
    if next_value.ndim == 2:
        rewards, discounts = rewards.unsqueeze(1), discounts.unsqueeze(1)
    return (rewards + discounts * next_value).detach()


def later_entropies(log_probs: th.Tensor, discounts: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """Entropies that a soft n-step return has between s and s', Σ_{k=1}^{n−1} γ^k·α·H(π(·|s_k)).

    The soft value of a state contains the entropy of every state that follows (1812.05905, eq. 3); an n-step return of
    rewards alone leaves out those of the n − 1 states in between.

    :param log_probs: (B, n − 1) log π(ã_k|s_k) of a fresh action, or Σ_a π log π of discrete ones, in nats
    :param discounts: (B, n − 1) γ^k where the trajectory goes on to s_k, 0 where it has ended before
    :param ent_coef: () temperature α
    :return: (B,), without gradient
    """
    if log_probs.ndim != 2 or log_probs.shape != discounts.shape:
        raise ValueError(
            f"log_probs has shape {tuple(log_probs.shape)}, discounts {tuple(discounts.shape)}, expected one (B, n - 1)."
        )
    return -(ent_coef * discounts * log_probs).sum(dim=1).detach()


def critic_loss(q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
    """Soft Bellman residual, J_Q = Σ_i ½·mean_B (Q_i(s, a) − y)² (1812.05905, eq. 5).

    :param q_values: (N, B) Q_i(s, a) of the replayed actions
    :param target: (B,) y, held constant
    :return: ()
    """
    _check(q_values, target=target)
    return 0.5 * (q_values - target.detach()).square().mean(dim=1).sum()


def as_atoms(target: th.Tensor | Atoms) -> Atoms:
    """A target that is one value for each state, (B,), as a distribution of one."""
    return Atoms(target.unsqueeze(1)) if isinstance(target, th.Tensor) else target


def truncated_quantiles(quantiles: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor, n_dropped: int) -> Atoms:
    """Quantiles of all critics together, without the largest, each minus α log π (2005.04269, eqs. 11 and 12).

    :param quantiles: (M, B, k) of the next action
    :param log_prob: (B,) of that action, in nats
    :param ent_coef: () temperature α
    :param n_dropped: d; the d·M largest are left out
    """
    _check(quantiles[:, :, 0], log_prob=log_prob)
    n_critics, _, n_quantiles = quantiles.shape
    pooled = quantiles.transpose(0, 1).flatten(1).sort(dim=1).values
    return Atoms(pooled[:, : n_critics * (n_quantiles - n_dropped)] - (ent_coef * log_prob).unsqueeze(1))


def discrete_truncated_quantiles(quantiles: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor, n_dropped: int) -> Atoms:
    """The same for all discrete actions: the mixture of Q(s, a) − α log π(a|s) over π, without its largest part.

    :param quantiles: (M, B, A, k)
    :param log_probs: (B, A) log π(a|s), in nats
    :param ent_coef: () temperature α
    :param n_dropped: d; the largest part, with the probability d/k, is left out
    """
    n_critics, batch, n_actions, n_quantiles = quantiles.shape
    if log_probs.shape != (batch, n_actions):
        raise ValueError(f"log_probs has shape {tuple(log_probs.shape)}, expected {(batch, n_actions)}.")
    values = quantiles.permute(1, 2, 0, 3).flatten(2) - (ent_coef * log_probs).unsqueeze(2)
    weights = (log_probs.exp() / (n_critics * n_quantiles)).unsqueeze(2).expand_as(values)
    ordered, order = values.flatten(1).sort(dim=1)
    weights = weights.flatten(1).gather(1, order)
    kept = 1.0 - n_dropped / n_quantiles
    before = weights.cumsum(dim=1) - weights
    weights = th.minimum(weights, (kept - before).clamp(min=0.0)) if n_dropped else weights
    return Atoms(ordered, weights / weights.sum(dim=1, keepdim=True))


def quantile_huber_loss(quantiles: th.Tensor, target: Atoms) -> th.Tensor:
    """Quantile regression, mean over critics, quantiles, batch and target, with the Huber loss at κ = 1 (1710.10044, eq. 10).

    :param quantiles: (N, B, k) θ_m(s, a), quantiles at (m + ½)/k
    :param target: (B, n), held constant
    :return: ()
    """
    values = target.values.detach()
    if quantiles.ndim != 3 or values.shape[0] != quantiles.shape[1]:
        raise ValueError(f"quantiles has shape {tuple(quantiles.shape)}, target {tuple(values.shape)}: (N, B, k) and (B, n).")
    n_quantiles = quantiles.shape[2]
    midpoints = (th.arange(n_quantiles, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n_quantiles
    error = values.unsqueeze(1) - quantiles.unsqueeze(3)  # (N, B, k, n)
    size = error.abs()
    huber = th.where(size > 1.0, size - 0.5, 0.5 * error.square())
    loss = (midpoints.unsqueeze(1) - (error.detach() < 0.0).to(error.dtype)).abs() * huber
    if target.weights is None:
        return loss.mean()
    return (loss * target.weights.detach().unsqueeze(1)).sum(dim=3).mean()


def reduce_distributions(probabilities: th.Tensor, support: th.Tensor, how: CriticReduction) -> th.Tensor:
    """One distribution out of N: that of the smallest value (2502.15280), the mixture of all, or the first.

    :param probabilities: (N, ..., K)
    :param support: (K,) values of the atoms
    :return: (..., K)
    """
    if how == "mean":
        return probabilities.mean(dim=0)
    if how == "first":
        return probabilities[0]
    smallest = (probabilities * support).sum(dim=-1).argmin(dim=0, keepdim=True).unsqueeze(-1)
    return probabilities.gather(0, smallest.expand(1, *probabilities.shape[1:])).squeeze(0)


def soft_categories(probabilities: th.Tensor, support: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor) -> Atoms:
    """The distribution of Q − α log π, for one action or as the mixture of all discrete ones over π.

    :param probabilities: (B, K), or (B, A, K) for all discrete actions
    :param support: (K,) values of the atoms
    :param log_prob: (B,) or (B, A), in nats
    :param ent_coef: () temperature α
    """
    if log_prob.shape != probabilities.shape[:-1]:
        raise ValueError(f"log_prob has shape {tuple(log_prob.shape)}, expected {tuple(probabilities.shape[:-1])}.")
    values = support - (ent_coef * log_prob).unsqueeze(-1)
    if probabilities.ndim == 2:
        return Atoms(values, probabilities)
    return Atoms(values.flatten(1), (log_prob.exp().unsqueeze(2) * probabilities).flatten(1))


def project(target: Atoms, low: float, high: float, n_atoms: int) -> th.Tensor:
    """Share each value, clamped to the range, between the two atoms beside it, so that the mean is kept (1707.06887, eq. 7).

    :param target: (B, n)
    :param low: value of the first atom
    :param high: value of the last one
    :param n_atoms: K
    :return: (B, K) probabilities, without gradient
    """
    values = target.values.detach()
    weights = th.full_like(values, 1.0 / values.shape[1]) if target.weights is None else target.weights.detach()
    place = (values.clamp(low, high) - low) * ((n_atoms - 1) / (high - low))
    below = place.floor().clamp(max=n_atoms - 2)
    upper = place - below
    index = below.long()
    projected = th.zeros(len(values), n_atoms, dtype=values.dtype, device=values.device)
    return projected.scatter_add(1, index, weights * (1.0 - upper)).scatter_add(1, index + 1, weights * upper)


def categorical_loss(logits: th.Tensor, target: th.Tensor) -> th.Tensor:
    """Cross-entropy, mean over critics and batch (1707.06887, algorithm 1).

    :param logits: (N, B, K)
    :param target: (B, K) probabilities, held constant
    :return: ()
    """
    if logits.ndim != 3 or target.shape != logits.shape[1:]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, target {tuple(target.shape)}, expected (N, B, K) and (B, K)."
        )
    return -(target.detach() * F.log_softmax(logits, dim=2)).sum(dim=2).mean()


def share_outside(target: Atoms, low: float, high: float) -> th.Tensor:
    """Probability of values outside of a range, mean over the batch, ()."""
    outside = ((target.values < low) | (target.values > high)).to(target.values.dtype)
    return outside.mean() if target.weights is None else (outside * target.weights).sum(dim=1).mean()


def value_loss(values: th.Tensor, target: th.Tensor) -> th.Tensor:
    """J_V = ½·mean_B (V(s) − [Q(s, ã) − α log π(ã|s)])² with ã drawn from π (1801.01290, eq. 5).

    :param values: (B,) V(s)
    :param target: (B,) soft value of a fresh action, held constant
    :return: ()
    """
    _check(values=values, target=target)
    return 0.5 * (values - target.detach()).square().mean()


def actor_loss(q: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """J_π = mean_B (α log π(ã|s) − Q(s, ã)) with a reparametrised ã (1812.05905, eq. 7).

    :param q: (B,) reduced action value at ã; its gradient runs through ã into the actor
    :param log_prob: (B,) log π(ã|s), in nats
    :param ent_coef: () temperature α, held constant
    :return: ()
    """
    return -soft_value(q, log_prob, ent_coef.detach()).mean()


def discrete_actor_loss(q: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """J_π = mean_B Σ_a π(a|s)·(α log π(a|s) − Q(s, a)) (1910.07207, eq. 12).

    :param q: (B, A) reduced value of every action, held constant
    :param log_probs: (B, A) log π(a|s), in nats
    :param ent_coef: () temperature α, held constant
    :return: ()
    """
    return -discrete_soft_value(q.detach(), log_probs, ent_coef.detach()).mean()


def entropy_gap(log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
    """Ĥ − H̄ with Ĥ = −mean_B log π: dJ(α)/dα of the dual form, dJ(log α)/dlog α of SB3's.

    :param log_prob: (B,) log π(ã|s), or Σ_a π log π of discrete actions, in nats, held constant
    :param target_entropy: H̄, in nats
    :return: ()
    """
    _check(log_prob=log_prob)
    return -log_prob.detach().mean() - target_entropy


def dual_temperature_loss(ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
    """J(α) = α·(Ĥ − H̄) with Ĥ = −mean_B log π (1812.05905, eqs. 17 and 18), so that dJ/dα = Ĥ − H̄.

    :param ent_coef: () α itself, the Lagrange multiplier
    :param log_prob: (B,) log π(ã|s), or Σ_a π log π of discrete actions, in nats, held constant
    :param target_entropy: H̄, in nats
    :return: ()
    """
    return ent_coef * entropy_gap(log_prob, target_entropy)


def log_temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
    """J(log α) = −log α · mean_B (log π + H̄), the form of SB3 and SBX.

    Deviation from 1812.05905, eq. 18: α is replaced by log α, which drops a factor α from the gradient.

    :param log_ent_coef: () log α
    :param log_prob: (B,) log π(ã|s), or Σ_a π log π of discrete actions, in nats, held constant
    :param target_entropy: H̄, in nats
    :return: ()
    """
    return dual_temperature_loss(log_ent_coef, log_prob, target_entropy)


def exp_temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float | th.Tensor) -> th.Tensor:
    """J(log α) = −α · mean_B (log π + H̄) with α = e^{log α}, the form of softlearning and CleanRL.

    :param log_ent_coef: () log α
    :param log_prob: (B,) log π(ã|s), or Σ_a π log π of discrete actions, in nats, held constant
    :param target_entropy: H̄, in nats
    :return: ()
    """
    return dual_temperature_loss(log_ent_coef.exp(), log_prob, target_entropy)
