"""What a gradient step of several ranks takes: formulas fitted to measurements, and what they say of other machines.

A step of one rank takes ``base + per_product·P·B + per_parameter·P`` seconds, with P trained parameters and a batch of B:
fixed costs, matmuls, and optimizers. A mean of n numbers over R ranks goes around a ring, as gloo does it, in
2(R − 1) rounds of n/R numbers: ``per_message + per_hop·(R − 1) + per_number·2n(R − 1)/R``. Where there are fewer cores than
ranks, these wait for each other: both terms are multiplied by R/cores. A single number does not need all the rounds, and has
coefficients of its own. All are fitted by least squares of relative errors, with coefficients that are not negative.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Floats = npt.NDArray[np.float64]


def fit(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> Floats:
    """Coefficients (k,) ≥ 0 of the terms (n, k) that come closest to ``seconds`` (n,), by relative errors."""
    rows, values = np.asarray(terms, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    scales = np.abs(rows).max(axis=0)  # terms of very different sizes
    coefficients: Floats = nnls(rows / scales / values[:, None], np.ones(len(values)))[0] / scales
    return coefficients


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a gradient step of one rank."""

    base: float
    per_product: float
    per_parameter: float

    @staticmethod
    def terms(n_parameters: float, batch_size: float) -> list[float]:
        return [1.0, n_parameters * batch_size, n_parameters]

    @classmethod
    def fitted(cls, rows: Sequence[dict[str, Any]]) -> "Step":
        """:param rows: with ``numbers`` (trained parameters), ``batch`` and ``seconds``"""
        terms = [cls.terms(row["numbers"], row["batch"]) for row in rows]
        return cls(*map(float, fit(terms, [row["seconds"] for row in rows])))

    def seconds(self, n_parameters: float, batch_size: float) -> float:
        return float(np.dot(self.terms(n_parameters, batch_size), dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class Ring:
    """Seconds of a mean over ranks.

    :param cores: that ranks share; None where each has its own
    """

    per_message: float
    per_hop: float
    per_number: float
    cores: int | None = None

    @staticmethod
    def terms(numbers: float, ranks: int, cores: int | None) -> list[float]:
        shared = 1.0 if cores is None else max(1.0, ranks / cores)
        return [1.0, (ranks - 1.0) * shared, 2.0 * numbers * (ranks - 1.0) / ranks * shared]

    @classmethod
    def fitted(cls, rows: Sequence[dict[str, Any]], cores: int) -> "Ring":
        """:param rows: with ``numbers``, ``ranks`` and ``seconds``"""
        terms = [cls.terms(row["numbers"], row["ranks"], cores) for row in rows]
        per_message, per_hop, per_number = map(float, fit(terms, [row["seconds"] for row in rows]))
        return cls(per_message, per_hop, per_number, cores)

    def seconds(self, numbers: float, ranks: int) -> float:
        if ranks == 1:
            return 0.0
        coefficients = (self.per_message, self.per_hop, self.per_number)
        return float(np.dot(self.terms(numbers, ranks, self.cores), coefficients))


@dataclasses.dataclass(frozen=True)
class Tree:
    """Seconds of a mean over ranks by two passes through a binary tree, which NCCL prefers between many machines."""

    per_message: float
    per_hop: float
    per_number: float

    def seconds(self, numbers: float, ranks: int) -> float:
        if ranks == 1:
            return 0.0
        return self.per_message + 2.0 * self.per_hop * float(np.ceil(np.log2(ranks))) + self.per_number * 2.0 * numbers


@dataclasses.dataclass(frozen=True)
class Means:
    """Those of one gradient step, one after the other: none is hidden behind computation.

    :param gradients: how the means of gradients travel
    :param single: how one number travels, the gradient of α
    """

    gradients: Ring | Tree
    single: Ring | Tree

    def seconds(self, n_parameters: int, ranks: int) -> float:
        """:param n_parameters: of critics and actor together; with two critics they have about two thirds of them"""
        of_critics = n_parameters * 2 // 3
        both = (self.gradients.seconds(numbers, ranks) for numbers in (of_critics, n_parameters - of_critics))
        return sum(both) + self.single.seconds(1, ranks)


def efficiency(step: float, means: float) -> float:
    """Transitions per second of ranks with a batch each, as a share of as many times those of one."""
    return step / (step + means)


def largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number of ranks, up to ``limit``, at which something holds that holds for all smaller ones."""
    low, high = 1, 2
    while high < limit and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def fastest(seconds: Callable[[int], float], limit: int) -> int:
    """The number of ranks, up to ``limit``, with the shortest step."""
    return min(range(1, limit + 1), key=seconds)
