"""The equations of soft actor-critic and soft Q-learning, one function each: tensors in, tensors out.

Shapes, the same everywhere: B batch size, N critics, A discrete actions. Everything that an equation holds constant is
detached inside its function, so that a loss can only reach what it is meant to train. Sources are given by arXiv number.
"""

import math
from typing import Literal

import torch as th

CriticReduction = Literal["min", "mean", "first"]


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
    :param next_value: (B,) soft value of the next state
    :param reward_scale: k; negative turns a reward into a cost
    :return: (B,), without gradient
    """
    _check(rewards=rewards, dones=dones, discounts=discounts, next_value=next_value)
    return (reward_scale * rewards + discounts * (1.0 - dones) * next_value).detach()


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
