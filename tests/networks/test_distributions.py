"""The squashed Gaussian against a numerical integral, automatic differentiation and float64."""

import math

import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_softac.networks.distributions import SquashedGaussian, SquashedStateDependentNoise, log_det_tanh, squashed_log_density
from tests.helpers import InjectedNoise


def reference_log_density(u: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """log N(u; μ, σ²) − log(1 − tanh²u) in float64, with 1 − tanh²u = sech²u evaluated without cancellation."""
    u, mean, log_std = u.double(), mean.double(), log_std.double()
    gaussian = -0.5 * ((u - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return (gaussian + 2 * th.log(th.cosh(u))).sum(dim=1)


def test_float32_is_within_1e_4_of_float64_up_to_10() -> None:
    u = th.linspace(-10.0, 10.0, 4001).unsqueeze(1)
    mean, log_std = 0.3 * th.ones_like(u), -0.2 * th.ones_like(u)
    noise = (u - mean) / log_std.exp()
    exact = reference_log_density(u, mean, log_std)
    error = (squashed_log_density(noise, log_std, u).double() - exact).abs()
    # The quadratic term itself is only float32: 0.5 ε² is 85 at |u| = 10, with a spacing of 8e-6.
    assert error.max() < 1e-4


def test_the_change_of_variables_at_8_where_sb3_is_off_by_more_than_1() -> None:
    u = th.tensor([[8.0]])
    exact = 2.0 * (math.log(2.0) - 8.0 - math.log1p(math.exp(-16.0)))
    assert log_det_tanh(u).item() == pytest.approx(exact, abs=1e-4)
    sb3 = th.log(1 - th.tanh(u) ** 2 + SquashedDiagGaussianDistribution(1).epsilon).item()
    assert abs(sb3 - exact) > 1.0


def test_the_change_of_variables_against_autograd() -> None:
    """log |d tanh(u)/du|, in float64, where the derivative does not underflow."""
    u = th.linspace(-9.0, 9.0, 101, dtype=th.float64).requires_grad_()
    (derivative,) = th.autograd.grad(th.tanh(u).sum(), u)
    th.testing.assert_close(log_det_tanh(u).detach(), derivative.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.5, 0.7)])
def test_the_density_integrates_to_one(mean: float, log_std: float) -> None:
    """∫ π(ã) dã over (−1, 1), with ã = tanh(u) and dã = (1 − ã²) du."""
    u = th.linspace(-12.0, 12.0, 200_001, dtype=th.float64).unsqueeze(1)
    density = squashed_log_density((u - mean) / math.exp(log_std), th.tensor([log_std], dtype=th.float64), u).exp()
    integral = th.trapezoid(density * (1 - th.tanh(u.squeeze(1)) ** 2), u.squeeze(1))
    assert integral.item() == pytest.approx(1.0, abs=1e-6)


def test_samples_carry_their_own_density(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = InjectedNoise(0, bound=3.0)
    noise.install(monkeypatch)
    mean, log_std = th.randn(64, 3), th.linspace(-2.0, 0.5, 64).unsqueeze(1).expand(64, 3)
    distribution = SquashedGaussian(3)
    actions, log_prob = distribution.log_prob_from_params(mean, log_std)
    u = mean + log_std.exp() * noise.drawn[0]
    th.testing.assert_close(actions, th.tanh(u))
    th.testing.assert_close(log_prob.double(), reference_log_density(u, mean, log_std), rtol=1e-5, atol=1e-4)
    th.testing.assert_close(distribution.log_std, log_std)


def test_a_state_independent_log_std_broadcasts() -> None:
    actions, log_prob = SquashedGaussian(3).log_prob_from_params(th.zeros(5, 3), th.zeros(3))
    assert actions.shape == (5, 3)
    assert log_prob.shape == (5,)


def test_acting() -> None:
    """tanh μ, or draws whose atanh has mean μ and deviation 1, exact to 0.022 and 0.016 with 2,000 of them."""
    th.manual_seed(0)
    distribution, mean = SquashedGaussian(2), th.tensor([[0.5, -0.5]])
    assert th.equal(distribution.actions_from_params(mean, th.zeros(1, 2), deterministic=True), th.tanh(mean))
    draws = th.cat([distribution.actions_from_params(mean, th.zeros(1, 2)) for _ in range(2000)])
    gaussian = th.atanh(draws)
    th.testing.assert_close(gaussian.mean(0), mean[0], atol=0.1, rtol=0.0)
    th.testing.assert_close(gaussian.std(0), th.ones(2), atol=0.1, rtol=0.0)


def test_the_gradient_is_finite_far_out() -> None:
    mean = th.full((4, 1), 30.0, requires_grad=True)
    _, log_prob = SquashedGaussian(1).log_prob_from_params(mean, th.zeros(4, 1))
    (gradient,) = th.autograd.grad(log_prob.sum(), mean)
    # d/du of −log(1 − tanh²u) is 2 tanh(u) → 2
    th.testing.assert_close(gradient, th.full((4, 1), 2.0))


def test_gsde_density_is_exact_where_sb3_has_to_clip() -> None:
    """The noise matrix is drawn, then the density of u under N(μ, Σ) is evaluated at u itself, not at atanh(tanh u)."""
    distribution = SquashedStateDependentNoise(2, squash_output=True)
    _, log_std = distribution.proba_distribution_net(latent_dim=8, log_std_init=-0.5)
    latent, mean = th.randn(16, 8), th.full((16, 2), 9.0)
    distribution.sample_weights(log_std)
    actions, log_prob = distribution.log_prob_from_params(mean, log_std, latent)
    u = mean + latent @ distribution.exploration_mat
    std = th.sqrt(latent**2 @ log_std.exp() ** 2 + distribution.epsilon)
    th.testing.assert_close(actions, th.tanh(u))
    th.testing.assert_close(log_prob.double(), reference_log_density(u, mean, std.log()), rtol=1e-5, atol=1e-4)
