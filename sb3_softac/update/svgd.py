"""Stein variational gradient descent (1608.04471): the direction in which particles move towards a density.

Shapes: B states, J fixed particles, I updated ones, A action dimension.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th

#: smallest bandwidth of :func:`gaussian_kernel`
SMALLEST_BANDWIDTH = 1e-3


#: numbers of values up to which a compiled :func:`lower_median` counts, which is quadratic in them
MOST_COUNTED = 256


class KernelValues(NamedTuple):
    """A kernel at all pairs of a fixed and an updated particle."""

    values: th.Tensor  # κ(a_j, a_i), (B, J, I)
    gradients: th.Tensor  # ∇_{a_j} κ(a_j, a_i), (B, J, I, A)


#: a kernel is a function of fixed particles (B, J, A) and updated ones (B, I, A)
Kernel = Callable[[th.Tensor, th.Tensor], KernelValues]


def gaussian_kernel(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    """Isotropic Gaussian, κ(x, y) = exp(−‖x − y‖²/h), with a bandwidth h for each state.

    h is the median of the squared distances over log J, so that the J terms of a sum add up to about one (1608.04471,
    section 5), and at least 1e-3. Of an even number of distances the median is the lower one of the two in the middle, as in
    the authors' code. For J = 1, log J is replaced by log 2: 0 would leave no repulsion.

    :param fixed: x, (B, J, A)
    :param updated: y, (B, I, A)
    """
    differences = fixed.unsqueeze(2) - updated.unsqueeze(1)
    squared = differences.square().sum(dim=3)
    bandwidth = lower_median(squared.flatten(1)) / math.log(max(fixed.shape[1], 2))
    bandwidth = bandwidth.clamp(min=SMALLEST_BANDWIDTH).view(-1, 1, 1)
    values = (-squared / bandwidth).exp()
    return KernelValues(values, (-2.0 / bandwidth * values).unsqueeze(3) * differences)


def lower_median(values: th.Tensor) -> th.Tensor:
    """The median of each row of (B, n), (B,); of an even number the lower one of the two in the middle.

    The compiler knows no median. It can call ``topk``, but its threads would wait for that one; so where there are few values
    it counts instead: the median is the smallest value that half of them do not exceed.
    """
    n_values = values.shape[1]
    if not th.compiler.is_compiling() or n_values > MOST_COUNTED:
        return values.topk(n_values // 2 + 1, dim=1, sorted=False).values.amin(dim=1)
    n_below = (values.unsqueeze(2) >= values.unsqueeze(1)).sum(dim=2, dtype=values.dtype)
    return values.masked_fill(n_below < (n_values + 1) // 2, math.inf).amin(dim=1)


def stein_direction(scores: th.Tensor, kernel: KernelValues) -> th.Tensor:
    """Δ_i = mean_j [κ(a_j, a_i)·∇_{a_j} log p(a_j) + ∇_{a_j} κ(a_j, a_i)] (1608.04471, eq. 8; 1702.08165, eq. 13).

    :param scores: ∇_{a_j} log p(a_j) of the fixed particles, (B, J, A)
    :param kernel: at the fixed and the updated particles
    :return: (B, I, A)
    :raises ValueError: shapes that do not belong together
    """
    check_kernel_values(kernel, scores)
    values, gradients = kernel
    return (th.einsum("bji,bja->bia", values, scores) + gradients.sum(dim=1)) / scores.shape[1]


def check_kernel_values(kernel: KernelValues, fixed: th.Tensor, n_updated: int | None = None) -> None:
    """Refuse what a kernel must not return.

    :param kernel: what it returned
    :param fixed: fixed particles, or something of their shape, (B, J, A)
    :param n_updated: I, if it is known
    :raises ValueError: other shapes than in ``KernelValues``, or another precision
    """
    if not isinstance(kernel, tuple) or not all(isinstance(part, th.Tensor) for part in kernel):
        raise ValueError(f"`kernel` returned a {type(kernel).__name__}, but it must return `KernelValues`, two tensors.")
    shapes = [tuple(part.shape) for part in kernel]
    batch, n_fixed, action_dim = fixed.shape
    if n_updated is None:
        n_updated = shapes[0][2] if len(shapes[0]) == 3 else 0
    expected = [(batch, n_fixed, n_updated), (batch, n_fixed, n_updated, action_dim)]
    if shapes != expected:
        raise ValueError(
            f"`kernel` returned values and gradients of the shapes {shapes}, but they must be {expected}: values (B, J, I) "
            "and gradients by the fixed particles (B, J, I, A) for B states, J fixed and I updated particles."
        )
    if any(part.dtype != fixed.dtype for part in kernel):
        raise ValueError(f"`kernel` returned {[str(part.dtype) for part in kernel]}, but both must be {fixed.dtype}.")
