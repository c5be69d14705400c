"""Running statistics of several processes as one: what each has counted by itself since they were last alike."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pool(every: Array, base: Array) -> Array:
    """Number, means and variances of all values that any process has counted.

    :param every: of each process, (R, 1 + 2d): number, d means, d variances; float64
    :param base: what all of them had when they were last alike, (1 + 2d,); it counts once
    :return: (1 + 2d,)
    """
    n_features = (len(base) - 1) // 2
    parts = np.vstack([every, base])
    counts, means, variances = parts[:, :1], parts[:, 1 : 1 + n_features], parts[:, 1 + n_features :]
    weights = counts * np.array([[1.0]] * len(every) + [[1.0 - len(every)]])
    total = weights.sum()
    if total <= 0.0:
        return base
    mean = (weights * means).sum(axis=0) / total
    var = (weights * (variances + (means - mean) ** 2)).sum(axis=0) / total
    return np.concatenate([[total], mean, np.maximum(var, 0.0)])


class PooledStatistics:
    """All running statistics of a model as one row of numbers, to be exchanged with other processes.

    :param model: an algorithm with ``policy.normalizer`` and statistics of returns, each of which may be None
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = self.read()

    def _moments(self) -> list[Any]:
        normalizer = self.model.policy.normalizer
        return [] if normalizer is None else list(normalizer.moments)

    def read(self) -> Array:
        """All numbers, float64."""
        parts = [np.zeros(0)]
        for moments in self._moments():
            parts += [moments.count.cpu().numpy().reshape(1), moments.mean.cpu().numpy().ravel()]
            parts.append(moments.var.cpu().numpy().ravel())
        if self.model._return_moments is not None:
            parts.append(self.model._return_moments)
        return np.concatenate(parts)

    def write(self, every: Array) -> None:
        """Take over what all processes have counted.

        :param every: what :meth:`read` has returned in each of them, (R, n)
        """
        first = 0
        for moments in self._moments():
            size = 1 + 2 * moments.mean.numel()
            pooled = pool(every[:, first : first + size], self.base[first : first + size])
            n_features = (size - 1) // 2
            moments.count.fill_(float(pooled[0]))
            for buffer, part in ((moments.mean, pooled[1 : 1 + n_features]), (moments.var, pooled[1 + n_features :])):
                buffer.copy_(_tensor_like(buffer, part))
            first += size
        if self.model._return_moments is not None:
            returns = every[:, first : first + 4]
            self.model._return_moments[:3] = pool(returns[:, :3], self.base[first : first + 3])
            self.model._return_moments[3] = returns[:, 3].max()
        self.base = self.read()


def _tensor_like(buffer: Any, values: Array) -> Any:
    return buffer.new_tensor(values).view(buffer.shape)
