"""The equations against float64 formulas written in NumPy, and proof of where gradients go."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th

from sb3_softac.update import losses

N, B = 3, 7
GENERATOR = np.random.default_rng(0)
Q = GENERATOR.normal(size=(N, B))
LOG_PROB, REWARDS, NEXT_VALUE, TARGET, VALUES = GENERATOR.normal(size=(5, B))
DONES = (GENERATOR.uniform(size=B) < 0.5).astype(float)
DISCOUNTS = GENERATOR.uniform(size=B)
ALPHA, TARGET_ENTROPY = 0.3, -1.5


def tensor(values: Any, requires_grad: bool = False) -> th.Tensor:
    return th.tensor(values, dtype=th.float32, requires_grad=requires_grad)


def assert_close(actual: th.Tensor, expected: npt.NDArray[np.float64] | np.floating[Any] | float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_reduce_critics() -> None:
    assert_close(losses.reduce_critics(tensor(Q), "min"), Q.min(axis=0))
    assert_close(losses.reduce_critics(tensor(Q), "mean"), Q.mean(axis=0))
    assert_close(losses.reduce_critics(tensor(Q), "first"), Q[0])


def test_soft_value() -> None:
    assert_close(losses.soft_value(tensor(Q[0]), tensor(LOG_PROB), tensor(ALPHA)), Q[0] - ALPHA * LOG_PROB)


class TestDiscreteActions:
    """Exact sums against a loop over states and actions in float64."""

    LOGITS, Q_ALL = GENERATOR.normal(size=(2, B, 4))
    PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)

    def brute_force(self) -> list[float]:
        """V(s) for each state."""
        return [
            sum(p * (q - ALPHA * np.log(p)) for p, q in zip(probs, values, strict=True))
            for probs, values in zip(self.PROBS, self.Q_ALL, strict=True)
        ]

    def test_soft_value(self) -> None:
        value = losses.discrete_soft_value(tensor(self.Q_ALL), tensor(np.log(self.PROBS)), tensor(ALPHA))
        assert_close(value, np.array(self.brute_force()))

    def test_soft_value_of_an_impossible_action(self) -> None:
        """0 log 0 = 0."""
        log_probs = th.log_softmax(th.tensor([[0.0, -200.0]]), dim=1)
        value = losses.discrete_soft_value(th.tensor([[1.0, 5.0]]), log_probs, tensor(ALPHA))
        assert value.item() == pytest.approx(1.0)

    def test_actor_loss_and_its_gradient(self) -> None:
        """d/dlogit_a of Σ π(α log π − Q) is π_a (α log π_a − Q_a + V), by the derivative of the softmax."""
        logits, q, alpha = tensor(self.LOGITS, True), tensor(self.Q_ALL, True), tensor(ALPHA, True)
        loss = losses.discrete_actor_loss(q, th.log_softmax(logits, dim=1), alpha)
        assert_close(loss, -np.mean(self.brute_force()))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        values = np.array(self.brute_force())[:, None]
        assert logits.grad is not None
        assert_close(logits.grad, self.PROBS * (ALPHA * np.log(self.PROBS) - self.Q_ALL + values) / B)
        assert q.grad is None
        assert alpha.grad is None

    def test_reduction_over_the_critics(self) -> None:
        q_values = GENERATOR.normal(size=(N, B, 4))
        assert_close(losses.reduce_critics(tensor(q_values), "min"), q_values.min(axis=0))

    @pytest.mark.parametrize("shape", [(B, 3), (B,), (B, 4, 1)])
    def test_wrong_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected one common \(B, A\)"):
            losses.discrete_soft_value(tensor(self.Q_ALL), th.zeros(shape), tensor(ALPHA))


@pytest.mark.parametrize("reward_scale", [1.0, 5.0, -0.5])
def test_bellman_target(reward_scale: float) -> None:
    target = losses.bellman_target(
        tensor(REWARDS), tensor(DONES), tensor(DISCOUNTS), tensor(NEXT_VALUE, requires_grad=True), reward_scale
    )
    assert_close(target, reward_scale * REWARDS + DISCOUNTS * (1 - DONES) * NEXT_VALUE)
    assert not target.requires_grad


def test_critic_loss() -> None:
    assert_close(losses.critic_loss(tensor(Q), tensor(TARGET)), sum(0.5 * np.mean((q - TARGET) ** 2) for q in Q))


def test_value_loss() -> None:
    assert_close(losses.value_loss(tensor(VALUES), tensor(TARGET)), 0.5 * np.mean((VALUES - TARGET) ** 2))


def test_actor_loss() -> None:
    assert_close(losses.actor_loss(tensor(Q[0]), tensor(LOG_PROB), tensor(ALPHA)), np.mean(ALPHA * LOG_PROB - Q[0]))


def test_temperature_losses() -> None:
    entropy_gap = -LOG_PROB.mean() - TARGET_ENTROPY
    log_alpha = np.log(ALPHA)
    assert_close(losses.dual_temperature_loss(tensor(ALPHA), tensor(LOG_PROB), TARGET_ENTROPY), ALPHA * entropy_gap)
    assert_close(losses.log_temperature_loss(tensor(log_alpha), tensor(LOG_PROB), TARGET_ENTROPY), log_alpha * entropy_gap)
    assert_close(losses.exp_temperature_loss(tensor(log_alpha), tensor(LOG_PROB), TARGET_ENTROPY), ALPHA * entropy_gap)


def test_analytic_gradients() -> None:
    """d/dα and d/dlog α of the temperature losses, d/dQ of the critic loss, d/dlog π of the actor loss."""
    entropy_gap = -LOG_PROB.mean() - TARGET_ENTROPY
    alpha, log_alpha = tensor(ALPHA, requires_grad=True), tensor(np.log(ALPHA), requires_grad=True)
    dual = losses.dual_temperature_loss(alpha, tensor(LOG_PROB), TARGET_ENTROPY)
    assert_close(th.autograd.grad(dual, alpha)[0], entropy_gap)
    log = losses.log_temperature_loss(log_alpha, tensor(LOG_PROB), TARGET_ENTROPY)
    assert_close(th.autograd.grad(log, log_alpha)[0], entropy_gap)
    exp = losses.exp_temperature_loss(log_alpha, tensor(LOG_PROB), TARGET_ENTROPY)
    assert_close(th.autograd.grad(exp, log_alpha)[0], ALPHA * entropy_gap)
    q_values = tensor(Q, requires_grad=True)
    assert_close(th.autograd.grad(losses.critic_loss(q_values, tensor(TARGET)), q_values)[0], (Q - TARGET) / B)
    log_prob = tensor(LOG_PROB, requires_grad=True)
    assert_close(th.autograd.grad(losses.actor_loss(tensor(VALUES), log_prob, alpha), log_prob)[0], np.full(B, ALPHA / B))


def test_what_an_equation_holds_constant_gets_no_gradient() -> None:
    """Targets in the residuals, α in the actor loss, log π in the temperature losses."""

    def constant(loss: th.Tensor, held: th.Tensor) -> bool:
        return not loss.requires_grad or th.autograd.grad(loss, held, allow_unused=True)[0] is None

    target, log_prob = tensor(TARGET, requires_grad=True), tensor(LOG_PROB, requires_grad=True)
    alpha, trained = tensor(ALPHA, requires_grad=True), tensor(Q, requires_grad=True)
    assert constant(losses.critic_loss(trained, target), target)
    assert constant(losses.value_loss(trained[0], target), target)
    assert constant(losses.actor_loss(trained[0], tensor(LOG_PROB), alpha), alpha)
    for temperature_loss in (losses.dual_temperature_loss, losses.log_temperature_loss, losses.exp_temperature_loss):
        assert constant(temperature_loss(alpha, log_prob, TARGET_ENTROPY), log_prob)


def test_a_column_next_to_a_vector_is_refused() -> None:
    """(B, 1) and (B,) would broadcast to (B, B)."""
    column = tensor(TARGET).unsqueeze(1)
    with pytest.raises(ValueError, match=r"target has shape \(7, 1\), expected \(B,\)"):
        losses.critic_loss(tensor(Q), column)
    with pytest.raises(ValueError, match="log_prob has shape"):
        losses.soft_value(tensor(VALUES), column, tensor(ALPHA))
    with pytest.raises(ValueError, match="q_values has shape"):
        losses.reduce_critics(tensor(VALUES), "min")
    with pytest.raises(ValueError, match="dones has shape"):
        losses.bellman_target(tensor(REWARDS), column, tensor(DISCOUNTS), tensor(NEXT_VALUE))
