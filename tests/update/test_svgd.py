"""Stein variational gradient descent and the losses of soft Q-learning, against float64 loops, numbers worked out by hand and
quadrature; every reference is written here, from 1608.04471 and 1702.08165.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch as th

from sb3_softac.update import losses
from sb3_softac.update.svgd import KernelValues, check_kernel_values, gaussian_kernel, stein_direction

Array = npt.NDArray[np.float64]
LOG2 = math.log(2.0)
ALPHA = 0.3


def tensor(values: Any, requires_grad: bool = False) -> th.Tensor:
    return th.tensor(np.asarray(values), dtype=th.float64, requires_grad=requires_grad)


def particles(b: int, j: int, i: int, a: int, seed: int = 0) -> tuple[Array, Array]:
    """Fixed ones (B, J, A) and updated ones (B, I, A)."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (b, j, a)), rng.uniform(-1, 1, (b, i, a))


def bandwidth_by_sorting(fixed: Array, updated: Array) -> float:
    """h of one state: of n sorted distances the one at the place (n − 1)//2, counted from 0, over log J."""
    distances = sorted(float(((x - y) ** 2).sum()) for x in fixed for y in updated)
    return max(distances[(len(distances) - 1) // 2] / math.log(max(len(fixed), 2)), 1e-3)


def kernel_by_loops(fixed: Array, updated: Array) -> tuple[Array, Array]:
    """κ(a_j, a_i) and −2/h·(a_j − a_i)·κ(a_j, a_i), one pair at a time."""
    (n_states, n_fixed, dim), n_updated = fixed.shape, updated.shape[1]
    values, gradients = np.zeros((n_states, n_fixed, n_updated)), np.zeros((n_states, n_fixed, n_updated, dim))
    for b in range(n_states):
        h = bandwidth_by_sorting(fixed[b], updated[b])
        for j in range(n_fixed):
            for i in range(n_updated):
                difference = fixed[b, j] - updated[b, i]
                values[b, j, i] = math.exp(-float(difference @ difference) / h)
                gradients[b, j, i] = -2.0 / h * difference * values[b, j, i]
    return values, gradients


def direction_by_loops(scores: Array, values: Array, gradients: Array) -> Array:
    n_states, n_fixed, n_updated, dim = gradients.shape
    direction = np.zeros((n_states, n_updated, dim))
    for b in range(n_states):
        for i in range(n_updated):
            for j in range(n_fixed):
                direction[b, i] += (values[b, j, i] * scores[b, j] + gradients[b, j, i]) / n_fixed
    return direction


def by_finite_differences(fixed: Array, updated: Array, h: float, step: float = 1e-6) -> Array:
    """∇_{a_j} κ(a_j, a_i) of one state at a fixed h, by central differences."""
    gradients = np.zeros((len(fixed), *updated.shape))
    for a in range(fixed.shape[1]):
        shift = np.zeros(fixed.shape[1])
        shift[a] = step
        for j, x in enumerate(fixed):
            for i, y in enumerate(updated):
                above, below = (math.exp(-float(((x + s - y) ** 2).sum()) / h) for s in (shift, -shift))
                gradients[j, i, a] = (above - below) / (2 * step)
    return gradients


#: B, J, I, A with an even and an odd number of pairs, more fixed than updated particles and fewer
SHAPES = [(3, 4, 4, 2), (2, 3, 5, 1), (4, 6, 2, 3), (2, 5, 3, 2), (1, 2, 1, 1), (2, 1, 3, 2), (1, 1, 1, 1)]


class TestByHand:
    """Fixed particles at 0 and 1, the updated one at 1/4: squared distances 1/16 and 9/16, the lower median is 1/16, log J is
    log 2. So h = 1/(16 log 2), κ = 2^(−16 d²), that is 2^−1 and 2^−9.
    """

    FIXED, UPDATED = tensor([[[0.0], [1.0]]]), tensor([[[0.25]]])

    def test_kernel(self) -> None:
        values, gradients = gaussian_kernel(self.FIXED, self.UPDATED)
        th.testing.assert_close(values, tensor([[[0.5], [0.001953125]]]))
        # −2/h·(a_j − a_i)·κ: −32 log 2·(−1/4)/2 = 4 log 2 = 2.7725887, and −32 log 2·(3/4)/512 = −(3/64) log 2 = −0.0324913
        th.testing.assert_close(gradients, tensor([[[[2.772588722239781]], [[-0.03249127408874744]]]]))

    def test_direction(self) -> None:
        """½[½·1 + 4 log 2 + 2^−9·(−2) − (3/64) log 2] with scores 1 and −2."""
        direction = stein_direction(tensor([[[1.0], [-2.0]]]), gaussian_kernel(self.FIXED, self.UPDATED))
        th.testing.assert_close(direction, tensor([[[0.5 * (0.5 + 2.772588722239781 - 0.00390625 - 0.03249127408874744)]]]))

    def test_particles_repel_each_other(self) -> None:
        """Without a density, the updated particle moves away from the nearer fixed one, that is to the right."""
        assert stein_direction(th.zeros(1, 2, 1).double(), gaussian_kernel(self.FIXED, self.UPDATED)).item() > 1.0

    def test_one_fixed_particle_counts_as_two(self) -> None:
        """log 1 = 0 would make h infinite, and κ = 1 without repulsion; with log 2, κ is ½ at the median."""
        values, gradients = gaussian_kernel(tensor([[[0.0]]]), tensor([[[0.5]]]))
        assert values.item() == pytest.approx(0.5)
        assert gradients.item() == pytest.approx(2 * 4 * LOG2 * 0.5 * 0.5)

    def test_two_dimensions_have_one_bandwidth(self) -> None:
        """‖(0.3, 0.4)‖² = 1/4, so κ = ½; the gradient is −8 log 2·½·(0.3, 0.4)."""
        values, gradients = gaussian_kernel(tensor([[[0.3, 0.4]]]), tensor([[[0.0, 0.0]]]))
        assert values.item() == pytest.approx(0.5)
        th.testing.assert_close(gradients, tensor([[[[-1.2 * LOG2, -1.6 * LOG2]]]]))


class TestBandwidth:
    @pytest.mark.parametrize(
        ("fixed", "expected"),
        [
            ([1.0, 2.0, 3.0], 4.0),  # 1 4 9
            ([3.0, 1.0, 2.0, 4.0], 4.0),  # 1 4 9 16: neither 9, nor 6.5
            ([1.0, 4.0], 1.0),  # 1 16
            ([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], 9.0),  # 1 4 9 16 25 36
        ],
    )
    def test_the_median_is_the_lower_of_two(self, fixed: list[float], expected: float) -> None:
        """One updated particle at 0: the distances are the squares. h follows from κ = exp(−d²/h)."""
        values = gaussian_kernel(tensor(fixed).view(1, -1, 1), tensor([[[0.0]]])).values.flatten()
        h = -(tensor(fixed) ** 2) / values.log()
        th.testing.assert_close(h, th.full_like(h, expected / math.log(len(fixed))))

    def test_it_is_over_all_pairs(self) -> None:
        """Fixed 0 and 1, updated 0 and 3: 0, 9, 1, 4; the lower median of all is 1, that of a row is 0."""
        values = gaussian_kernel(tensor([[[0.0], [1.0]]]), tensor([[[0.0], [3.0]]])).values
        th.testing.assert_close(values, tensor([[[1.0, 2.0**-9], [0.5, 2.0**-4]]]))

    def test_each_state_has_its_own(self) -> None:
        """The second state is the first one ten times as wide: κ is the same, its gradient a tenth."""
        fixed, updated = particles(1, 4, 3, 2)
        both = gaussian_kernel(tensor(np.concatenate([fixed, 10 * fixed])), tensor(np.concatenate([updated, 10 * updated])))
        th.testing.assert_close(both.values[1], both.values[0])
        th.testing.assert_close(both.gradients[1], 0.1 * both.gradients[0])

    @pytest.mark.parametrize("dtype", [th.float32, th.float64])
    def test_it_is_at_least_a_thousandth(self, dtype: th.dtype) -> None:
        """Particles in one place: κ = 1 and no gradient, but no 0/0. A hundredth apart, κ = exp(−1e-4/1e-3)."""
        values, gradients = gaussian_kernel(th.full((2, 3, 2), 0.7, dtype=dtype), th.full((2, 2, 2), 0.7, dtype=dtype))
        assert (values == 1.0).all()
        assert (gradients == 0.0).all()
        near, slope = gaussian_kernel(tensor([[[0.01]] * 2]).to(dtype), tensor([[[0.0]]]).to(dtype))
        assert near.flatten().tolist() == pytest.approx([math.exp(-0.1)] * 2, rel=1e-5)
        assert slope.flatten().tolist() == pytest.approx([-2e3 * 0.01 * math.exp(-0.1)] * 2, rel=1e-5)

    @pytest.mark.parametrize("shape", [(3, 4, 4, 2), (2, 3, 5, 1), (4, 6, 2, 3), (1, 1, 1, 1), (2, 32, 32, 1)])
    def test_it_is_the_same_while_compiling(self, shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        """A compiler takes another way to the median, also of distances that are equal, and of many."""
        fixed, updated = (each.round(1) for each in particles(*shape))
        monkeypatch.setattr(th.compiler, "is_compiling", lambda: True)
        for dtype in (th.float32, th.float64):
            actual = gaussian_kernel(tensor(fixed).to(dtype), tensor(updated).to(dtype)).values
            np.testing.assert_allclose(actual, kernel_by_loops(fixed, updated)[0], rtol=2e-4, atol=1e-6)

    def test_just_above_and_below_the_floor(self) -> None:
        """With J = 2, h = d²/log 2: κ at the median is ½ as long as d² is above 1e-3·log 2."""
        for distance, expected in ((0.0270, 0.5), (0.0260, math.exp(-(0.0260**2) / 1e-3))):
            values = gaussian_kernel(tensor([[[0.0], [0.0]]]), tensor([[[distance]]])).values
            assert values.flatten().tolist() == pytest.approx([expected] * 2), distance

    def test_most_particles_in_one_place(self) -> None:
        """The median is 0, and the one that is apart has κ = 0 instead of NaN."""
        values, gradients = gaussian_kernel(tensor([[[0.0], [0.0], [0.0]]]), tensor([[[0.0], [1.0]]]))
        th.testing.assert_close(values[0], tensor([[1.0, 0.0]] * 3))
        assert (gradients == 0.0).all()


class TestKernel:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_values_and_gradients_by_loops(self, shape: tuple[int, int, int, int]) -> None:
        fixed, updated = particles(*shape)
        values, gradients = gaussian_kernel(tensor(fixed), tensor(updated))
        expected_values, expected_gradients = kernel_by_loops(fixed, updated)
        np.testing.assert_allclose(values, expected_values, rtol=1e-12)
        np.testing.assert_allclose(gradients, expected_gradients, rtol=1e-11, atol=1e-14)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_in_float32(self, shape: tuple[int, int, int, int]) -> None:
        fixed, updated = particles(*shape)
        actual = gaussian_kernel(tensor(fixed).float(), tensor(updated).float())
        for part, expected in zip(actual, kernel_by_loops(fixed, updated), strict=True):
            assert part.dtype == th.float32
            np.testing.assert_allclose(part, expected, rtol=2e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_gradient_is_that_of_automatic_differentiation(self, shape: tuple[int, int, int, int]) -> None:
        """Of κ by its first argument, with h held constant: of the fixed particle, not of the updated one."""
        fixed, updated = particles(*shape, seed=1)
        leaf = tensor(fixed, requires_grad=True)
        actual = gaussian_kernel(tensor(fixed), tensor(updated)).gradients
        for b in range(shape[0]):
            h = bandwidth_by_sorting(fixed[b], updated[b])
            for i in range(shape[2]):
                kappa = (-((leaf[b] - tensor(updated[b, i])) ** 2).sum(dim=1) / h).exp()
                (expected,) = th.autograd.grad(kappa.sum(), leaf)
                th.testing.assert_close(actual[b, :, i], expected[b])

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        fixed, updated = particles(1, 4, 3, 2, seed=2)
        expected = by_finite_differences(fixed[0], updated[0], bandwidth_by_sorting(fixed[0], updated[0]))
        np.testing.assert_allclose(gaussian_kernel(tensor(fixed), tensor(updated)).gradients[0], expected, atol=1e-8)

    def test_both_sides_exchanged(self) -> None:
        """κ is symmetric, and its gradient changes sign; J = I, so that log J is the same."""
        fixed, updated = (tensor(each) for each in particles(2, 4, 4, 3))
        forth, back = gaussian_kernel(fixed, updated), gaussian_kernel(updated, fixed)
        th.testing.assert_close(back.values, forth.values.transpose(1, 2))
        th.testing.assert_close(back.gradients, -forth.gradients.transpose(1, 2))

    def test_moving_all_particles_together_changes_nothing(self) -> None:
        fixed, updated = (tensor(each) for each in particles(2, 4, 3, 2))
        shift = tensor([0.3, -0.7])
        for here, there in zip(gaussian_kernel(fixed, updated), gaussian_kernel(fixed + shift, updated + shift), strict=True):
            th.testing.assert_close(here, there)


class TestDirection:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_by_loops(self, shape: tuple[int, int, int, int]) -> None:
        fixed, updated = particles(*shape)
        values, gradients = kernel_by_loops(fixed, updated)
        scores = np.random.default_rng(3).normal(size=fixed.shape)
        actual = stein_direction(tensor(scores), gaussian_kernel(tensor(fixed), tensor(updated)))
        np.testing.assert_allclose(actual, direction_by_loops(scores, values, gradients), rtol=1e-10, atol=1e-12)

    def test_another_kernel_need_not_be_symmetric(self) -> None:
        """Values and gradients that have nothing to do with each other, so that no index can be mixed up unnoticed."""
        rng = np.random.default_rng(4)
        scores, values, gradients = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 4, 4, 3))
        actual = stein_direction(tensor(scores), KernelValues(tensor(values), tensor(gradients)))
        np.testing.assert_allclose(actual, direction_by_loops(scores, values, gradients), rtol=1e-12)

    def test_the_order_of_particles_does_not_count(self) -> None:
        """Δ is a mean over the fixed ones; the updated ones do not know each other but for the common h."""
        fixed, updated = (tensor(each) for each in particles(2, 5, 4, 2))
        scores = tensor(np.random.default_rng(5).normal(size=fixed.shape))
        plain = stein_direction(scores, gaussian_kernel(fixed, updated))
        order = th.tensor([3, 0, 4, 1, 2])
        th.testing.assert_close(stein_direction(scores[:, order], gaussian_kernel(fixed[:, order], updated)), plain)
        order = th.tensor([2, 0, 3, 1])
        th.testing.assert_close(stein_direction(scores, gaussian_kernel(fixed, updated[:, order])), plain[:, order])
        order = th.tensor([1, 0])
        th.testing.assert_close(stein_direction(scores[order], gaussian_kernel(fixed[order], updated[order])), plain[order])

    def test_steins_identity(self) -> None:
        """E_{x~p}[κ(x, y)·∇log p(x) + ∇_x κ(x, y)] = 0 for every y (1608.04471, eq. 2): with the quantiles of a standard
        normal density as fixed particles nothing moves, with those of a wider one all move inwards.
        """
        quantiles = th.distributions.Normal(0.0, 1.0).icdf((th.arange(2000).double() + 0.5) / 2000)  # type: ignore[no-untyped-call]  # torch's own
        updated = tensor([[[-2.0], [-0.5], [1.0], [1.5]]])
        for spread, moves in ((1.0, False), (1.5, True)):
            fixed = (spread * quantiles).view(1, -1, 1)
            direction = stein_direction(-fixed, gaussian_kernel(fixed, updated))
            largest = gaussian_kernel(fixed, updated).gradients.abs().mean(dim=1).max().item()  # ~0.3: it does not vanish
            if moves:
                assert (direction.sign() == -updated.sign()).all()
                assert direction.abs().max().item() > 0.2 * largest
            else:
                assert direction.abs().max().item() < 0.005 * largest

    def test_it_lowers_the_divergence_from_the_density(self) -> None:
        """Particles that all start off a normal density follow Δ to its mean and variance, without any noise."""
        x = th.linspace(1.5, 2.5, 60).double().view(1, -1, 1)
        for _ in range(1500):
            x = x + 0.5 * stein_direction(-x, gaussian_kernel(x, x))
        assert x.mean().item() == pytest.approx(0.0, abs=0.02)
        assert x.var().item() == pytest.approx(1.0, abs=0.1)


class TestShapes:
    @pytest.mark.parametrize(
        ("values", "gradients"),
        [
            ((2, 3, 4), (2, 4, 3, 2)),  # I and J exchanged
            ((2, 4), (2, 4, 3, 2)),
            ((2, 4, 3, 1), (2, 4, 3, 2)),
            ((2, 4, 3), (2, 4, 3)),
            ((2, 4, 3), (2, 4, 3, 1)),  # would broadcast
            ((2, 4, 3), (2, 4, 1, 2)),
            ((2, 4, 3), (2, 3, 4, 2)),
            ((1, 4, 3), (1, 4, 3, 2)),
            ((2, 1, 3), (2, 1, 3, 2)),
            ((2, 4, 1), (2, 4, 3, 2)),
            ((), (2, 4, 3, 2)),
        ],
    )
    def test_of_a_kernel(self, values: tuple[int, ...], gradients: tuple[int, ...]) -> None:
        kernel = KernelValues(th.zeros(values), th.zeros(gradients))
        with pytest.raises(ValueError, match=r"`kernel` returned values and gradients of the shapes"):
            stein_direction(th.zeros(2, 4, 2), kernel)
        with pytest.raises(ValueError, match=r"`kernel` returned .* but they must be \[\(2, 4, 3\), \(2, 4, 3, 2\)\]"):
            check_kernel_values(kernel, th.zeros(2, 4, 2), 3)

    def test_the_right_ones(self) -> None:
        kernel = KernelValues(th.zeros(2, 4, 3), th.zeros(2, 4, 3, 2))
        check_kernel_values(kernel, th.zeros(2, 4, 2), 3)
        assert stein_direction(th.zeros(2, 4, 2), kernel).shape == (2, 3, 2)

    def test_another_number_of_updated_particles(self) -> None:
        kernel = KernelValues(th.zeros(2, 4, 5), th.zeros(2, 4, 5, 2))
        with pytest.raises(ValueError, match="`kernel` returned"):
            check_kernel_values(kernel, th.zeros(2, 4, 2), 3)

    @pytest.mark.parametrize(
        ("q", "actions"),
        [((2, 3), (2, 4, 1)), ((2, 3), (3, 3, 1)), ((2, 3), (2, 3)), ((2, 3, 1), (2, 3, 1)), ((6,), (2, 3, 1))],
    )
    def test_of_the_density(self, q: tuple[int, ...], actions: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"q has shape .* expected \(B, J\) and \(B, J, A\)"):
            losses.squashed_target_log_density(th.zeros(q), th.zeros(actions), th.tensor(1.0))

    @pytest.mark.parametrize(("actions", "direction"), [((2, 3, 1), (2, 3)), ((2, 3), (2, 3)), ((2, 3, 2), (2, 3, 1))])
    def test_of_the_samplers_loss(self, actions: tuple[int, ...], direction: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"actions have shape .*, direction .*, expected \(B, I, A\)"):
            losses.sampler_loss(th.zeros(actions), th.zeros(direction))

    @pytest.mark.parametrize(
        ("q", "density"), [((2, 3), (2,)), ((2, 3), (2, 1)), ((2, 3), (3, 2)), ((6,), (6,)), ((2, 3), ())]
    )
    def test_of_the_particles_value(self, q: tuple[int, ...], density: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"q has shape .*, log_density .*, expected one \(B, M\)"):
            losses.particle_value(th.zeros(q), th.zeros(density), th.tensor(1.0))

    @pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
    @pytest.mark.parametrize("function", [losses.boltzmann_value, losses.boltzmann_log_probs])
    def test_of_discrete_actions(self, function: Callable[..., th.Tensor], shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"q has shape .* expected \(B, A\)"):
            function(th.zeros(shape), th.tensor(1.0))


class TestValueFromParticles:
    """V = α·log ∫ exp(Q(a)/α) da, for a Q with two bumps, by the trapezoidal rule on 200,001 points."""

    LIMIT = 2_000  # draws over which errors are averaged

    @staticmethod
    def q(a: Any) -> Any:
        return 0.8 * np.sin(5 * a) - 0.5 * a**2 + 0.3 * a

    def exact(self) -> tuple[float, float]:
        """V, and the coefficient of variation of w = exp(Q/α)/q(a) under a uniform a."""
        grid = np.linspace(-1, 1, 200_001)
        weights = 2 * np.exp(self.q(grid) / ALPHA)  # q(a) = ½
        mean, square = np.trapezoid(weights, grid) / 2, np.trapezoid(weights**2, grid) / 2
        return ALPHA * math.log(mean), math.sqrt(square / mean**2 - 1)

    def estimates(self, n_particles: int, n_draws: int = LIMIT) -> Array:
        a = np.random.default_rng(n_particles).uniform(-1, 1, (n_draws, n_particles))
        return losses.particle_value(tensor(self.q(a)), -LOG2, tensor(ALPHA)).numpy()

    def test_its_error_falls_as_one_over_the_root_of_the_number(self) -> None:
        """Var(log w̄) → cv²/M by the delta method: slope −½, and the constant is α·cv. Over ten other seeds of the draws the
        slope was −0.507 to −0.526, and the constant 0.97 to 1.03 of that.
        """
        value, variation = self.exact()
        counts = [32, 128, 512, 2048]
        errors = [math.sqrt(np.mean((self.estimates(n) - value) ** 2)) for n in counts]
        slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert slope == pytest.approx(-0.5, abs=0.06)
        assert errors[-1] == pytest.approx(ALPHA * variation / math.sqrt(2048), rel=0.1)

    def test_it_is_below_the_integral_on_average(self) -> None:
        """Jensen: E[log w̄] < log E[w̄]. To second order the bias is −α·cv²/(2M); over ten seeds 0.90 to 1.15 of that."""
        value, variation = self.exact()
        biases = []
        for n in (1, 4, 16, 64):
            estimates = self.estimates(n, 20_000)
            biases.append(estimates.mean() - value)
            assert biases[-1] < -4 * estimates.std() / math.sqrt(len(estimates)), n  # four standard errors
        assert biases == sorted(biases)  # the more particles, the smaller
        assert biases[-1] == pytest.approx(-ALPHA * variation**2 / (2 * 64), rel=0.3)

    @pytest.mark.parametrize("dim", [1, 2, 5])
    def test_a_constant_needs_no_average(self, dim: int) -> None:
        """α·log ∫ exp(c/α) = c + α·A·log 2, the value of the uniform distribution, for any number of particles."""
        value = losses.particle_value(th.full((3, 4), 1.7).double(), -dim * LOG2, tensor(ALPHA))
        th.testing.assert_close(value, tensor([1.7 + ALPHA * dim * LOG2] * 3))

    def test_one_particle(self) -> None:
        """Q − α·log q."""
        value = losses.particle_value(tensor([[0.4], [-2.0]]), tensor([[0.3], [-1.0]]), tensor(ALPHA))
        th.testing.assert_close(value, tensor([0.4 - 0.3 * 0.3, -2.0 + 0.3 * 1.0]))

    def test_two_particles_by_hand(self) -> None:
        """α = ½, exp(Q/α) = 2 and 8, q = ½ and 2: V = ½·log ½(4 + 4) = ½·log 4."""
        q, density = tensor([[0.5 * math.log(2), 0.5 * math.log(8)]]), tensor([[math.log(0.5), math.log(2.0)]])
        th.testing.assert_close(losses.particle_value(q, density, tensor(0.5)), tensor([0.5 * math.log(4)]))

    def test_any_proposal_estimates_the_same_integral(self) -> None:
        """a = tanh(ξ/2), whose density is N(2·artanh(a); 0, 1)·2/(1 − a²); the quantiles of ξ instead of random ones."""
        xi = th.distributions.Normal(0.0, 1.0).icdf((th.arange(100_000).double() + 0.5) / 100_000)  # type: ignore[no-untyped-call]  # torch's own
        a = th.tanh(xi / 2)
        log_density = -0.5 * xi**2 - 0.5 * math.log(2 * math.pi) + LOG2 - (1 - a**2).log()
        estimate = losses.particle_value(tensor(self.q(a.numpy())).unsqueeze(0), log_density.unsqueeze(0), tensor(ALPHA))
        assert estimate.item() == pytest.approx(self.exact()[0], abs=1e-3)

    @pytest.mark.parametrize("shift", [-3e4, 3e4])
    def test_large_values_do_not_overflow(self, shift: float) -> None:
        """V(Q + c) = V(Q) + c; exp(3e4/α) would be infinite, exp(−3e4/α) zero."""
        q = th.tensor([[0.1, -0.4, 0.9]])
        value = losses.particle_value(q, -LOG2, th.tensor(ALPHA))
        shifted = losses.particle_value(q + shift, -LOG2, th.tensor(ALPHA))
        assert shifted.item() == pytest.approx(value.item() + shift, abs=0.02)


class TestSamplersLosses:
    def test_the_gradient_moves_each_particle_along_its_direction(self) -> None:
        """∂/∂a_i of −Σ⟨a_i, Δ_i⟩/(B·I) is −Δ_i/(B·I), not over A as well; Δ is held constant."""
        rng = np.random.default_rng(6)
        actions, direction = rng.uniform(-1, 1, (3, 5, 2)), rng.normal(size=(3, 5, 2))
        leaf, held = tensor(actions, requires_grad=True), tensor(direction, requires_grad=True)
        loss = losses.sampler_loss(leaf, held)
        assert loss.item() == pytest.approx(-(actions * direction).sum() / 15)
        (gradient,) = th.autograd.grad(loss, leaf)
        np.testing.assert_allclose(gradient, -direction / 15)
        assert th.autograd.grad(losses.sampler_loss(leaf, held), held, allow_unused=True)[0] is None

    def test_log_density(self) -> None:
        rng = np.random.default_rng(7)
        q, actions = rng.normal(size=(3, 4)), rng.uniform(-1, 1, (3, 4, 2))
        expected = q / ALPHA + np.log(1 - actions[..., 0] ** 2 + 1e-6) + np.log(1 - actions[..., 1] ** 2 + 1e-6)
        np.testing.assert_allclose(losses.squashed_target_log_density(tensor(q), tensor(actions), tensor(ALPHA)), expected)

    def test_score(self) -> None:
        """∇_a of a Q with the gradient 2a − 1: (2a − 1)/α − 2a/(1 − a² + 1e-6)."""
        actions = np.random.default_rng(8).uniform(-1, 1, (3, 4, 2))
        leaf = tensor(actions, requires_grad=True)
        density = losses.squashed_target_log_density((leaf**2 - leaf).sum(dim=2), leaf, tensor(ALPHA))
        (score,) = th.autograd.grad(density.sum(), leaf)
        np.testing.assert_allclose(score, (2 * actions - 1) / ALPHA - 2 * actions / (1 - actions**2 + 1e-6))

    @pytest.mark.parametrize("bound", [-1.0, 1.0])
    def test_at_the_bounds_the_score_points_inwards_and_is_finite(self, bound: float) -> None:
        """In float32, where 1 − a² of a saturated tanh is exactly 0: log 1e-6, and a score of ∓2e6."""
        leaf = th.full((1, 2, 1), bound, requires_grad=True)
        density = losses.squashed_target_log_density(th.zeros(1, 2), leaf, th.tensor(1.0))
        assert density.tolist() == [pytest.approx([math.log(1e-6)] * 2, rel=1e-4)]
        (score,) = th.autograd.grad(density.sum(), leaf)
        assert score.flatten().tolist() == pytest.approx([-bound * 2e6] * 2, rel=1e-4)

    def test_everything_is_finite_for_particles_in_a_corner(self) -> None:
        leaf = th.ones(2, 4, 3, requires_grad=True)
        density = losses.squashed_target_log_density(leaf.sum(dim=2) * 1e3, leaf, th.tensor(0.01))
        (score,) = th.autograd.grad(density.sum(), leaf)
        direction = stein_direction(score, gaussian_kernel(leaf.detach(), th.ones(2, 3, 3)))
        assert th.isfinite(direction).all()
        assert th.isfinite(losses.sampler_loss(th.ones(2, 3, 3), direction))


class TestBoltzmann:
    Q = np.random.default_rng(9).normal(size=(6, 4))

    @pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 20.0])
    def test_by_sums(self, alpha: float) -> None:
        for row in self.Q:
            weights = [math.exp((q - row.max()) / alpha) for q in row]
            value = losses.boltzmann_value(tensor(row).unsqueeze(0), tensor(alpha))
            assert value.item() == pytest.approx(row.max() + alpha * math.log(sum(weights)), rel=1e-12)
            probs = losses.boltzmann_log_probs(tensor(row).unsqueeze(0), tensor(alpha)).exp()
            np.testing.assert_allclose(probs[0], np.array(weights) / sum(weights), rtol=1e-10, atol=1e-300)

    @pytest.mark.parametrize("alpha", [0.3, 2.0])
    def test_the_value_is_that_of_its_policy(self, alpha: float) -> None:
        """V = Σ_a π(a)·(Q(a) − α log π(a)), the largest that any policy reaches."""
        q = tensor(self.Q)
        log_probs, value = losses.boltzmann_log_probs(q, tensor(alpha)), losses.boltzmann_value(q, tensor(alpha))

        def soft_value(log_pi: th.Tensor) -> th.Tensor:
            return (log_pi.exp() * (q - alpha * log_pi)).sum(dim=1)

        th.testing.assert_close(value, soft_value(log_probs))
        for seed in range(20):
            other = (log_probs + tensor(np.random.default_rng(seed).normal(size=q.shape))).log_softmax(dim=1)
            assert (soft_value(other) < value).all()

    @pytest.mark.parametrize("dtype", [th.float32, th.float64])
    @pytest.mark.parametrize("alpha", [0.0, 1e-30, 1e-12])
    def test_no_temperature_is_the_greedy_limit(self, alpha: float, dtype: th.dtype) -> None:
        """The value is max Q, the entropy 0; two actions that are equally good share the probability."""
        q = th.tensor([[1.0, 3.0, 2.0], [-5.0, -5.0, -6.0], [1e6, -1e6, 0.0]], dtype=dtype)
        temperature = th.tensor(alpha, dtype=dtype)
        th.testing.assert_close(losses.boltzmann_value(q, temperature), th.tensor([3.0, -5.0, 1e6], dtype=dtype))
        log_probs = losses.boltzmann_log_probs(q, temperature)
        expected = th.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=dtype)
        th.testing.assert_close(log_probs.exp(), expected)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        th.testing.assert_close(entropy, th.tensor([0.0, LOG2, 0.0], dtype=dtype))

    def test_the_limit_is_continuous(self) -> None:
        """As α falls, V falls to max Q from above, by at most α·log|A|."""
        q = tensor(self.Q)
        largest, before = q.max(dim=1).values, th.full((6,), math.inf, dtype=th.float64)
        for alpha in (1.0, 0.1, 0.01, 1e-3, 1e-6, 0.0):
            value = losses.boltzmann_value(q, tensor(alpha))
            assert (value >= largest).all()
            assert (value <= largest + alpha * math.log(4) + 1e-12).all()
            assert (value <= before).all()
            before = value

    @pytest.mark.parametrize("function", [losses.boltzmann_value, losses.boltzmann_log_probs])
    @pytest.mark.parametrize("scale", [1e8, 1e30])
    def test_large_values_are_finite(self, function: Callable[..., th.Tensor], scale: float) -> None:
        for alpha in (0.0, 1e-20, 1.0):
            assert th.isfinite(function(th.tensor([[scale, -scale, 0.0]]), th.tensor(alpha))).all(), alpha
