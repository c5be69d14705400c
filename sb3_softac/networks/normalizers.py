"""Observations that networks see normalised, by statistics which are part of the policy.

Each feature becomes (x − m)/√(v + ε), with mean m and variance v of everything that the environments have returned so far, and
ε = 1e-8. Nothing is clipped, as in SimBa (2410.09754).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_softac.arguments.policy import normalized_shapes

EPSILON = 1e-8

Array = npt.NDArray[Any]


class RunningMoments(nn.Module):
    """Mean and variance of each feature, in float64. The first batch defines them; before it they are 0 and 1.

    :param shape: of one value
    """

    mean: th.Tensor
    var: th.Tensor  # of the population: divided by the number of values
    count: th.Tensor  # ()

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(shape, dtype=th.float64))
        self.register_buffer("var", th.ones(shape, dtype=th.float64))
        self.register_buffer("count", th.zeros((), dtype=th.float64))

    @th.no_grad()
    def update(self, values: Array | th.Tensor) -> None:
        """Count more values, (n, *shape). Compiled and captured steps see it: the buffers stay where they are."""
        tensor = values if isinstance(values, th.Tensor) else th.from_numpy(np.array(values, dtype=np.float64))
        new = tensor.to(self.mean.device, th.float64)
        var, mean = th.var_mean(new, dim=0, correction=0)
        share = len(new) / self.count.add_(len(new))
        # The parallel algorithm of Chan, Golub and LeVeque (1979), with the share that the new values have in all.
        between = (mean - self.mean).square_().mul_(share * (1.0 - share))
        self.var.lerp_(var, share).add_(between)
        self.mean.lerp_(mean, share)

    def forward(self, values: th.Tensor) -> th.Tensor:
        """(B, *shape) → the same in float32, normalised."""
        return ((values.double() - self.mean) / (self.var + EPSILON).sqrt()).float()


class ObservationNormalizer(nn.Module):
    """The statistics of all observations; of a Dict those of each key with a mean, the others stay as they are.

    :param space: observation space
    :raises ValueError: nothing in it has a mean
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        shapes = normalized_shapes(space)
        self.by_key = isinstance(space, spaces.Dict)
        #: what is normalised, in the order of ``moments``; outside of a Dict there is one, "observation"
        self.names = tuple(shapes)
        self.moments = nn.ModuleList([RunningMoments(shape) for shape in shapes.values()])

    def update(self, observations: Any) -> None:
        """Count observations, (n, ...), or a dict of them."""
        for name, moments in zip(self.names, self.moments, strict=True):
            moments.update(observations[name] if self.by_key else observations)  # type: ignore[operator]  # a RunningMoments

    def forward(self, observations: Any) -> Any:
        """Observations (B, ...) after the preprocessing of their space, or a dict of them, normalised."""
        if not self.by_key:
            return self.moments[0](observations)
        normalized = {name: moments(observations[name]) for name, moments in zip(self.names, self.moments, strict=True)}
        return {**observations, **normalized}


class Normalized:
    """The preprocessing of a network, with a normaliser behind it that belongs to the policy.

    Not a module: each network would count the statistics among its own.

    :param preprocess: preprocessing of the observation space
    :param normalizer: the policy's
    """

    def __init__(self, preprocess: Any, normalizer: ObservationNormalizer) -> None:
        self.preprocess, self.normalizer = preprocess, normalizer

    def __call__(self, obs: Any) -> Any:
        return self.normalizer(self.preprocess(obs))


def attach(network: Any, normalizer: ObservationNormalizer) -> None:
    """Let a network see what ``normalizer`` makes of observations.

    :raises ValueError: it has no preprocessing of ours
    """
    preprocess = getattr(network, "preprocess", None)
    if preprocess is None:
        raise ValueError(
            f"`normalize_observations` is True, but a {type(network).__name__} has no `preprocess` that could do it: "
            "derive it from a network of sb3_softac.networks."
        )
    if not isinstance(preprocess, Normalized):
        network.preprocess = Normalized(preprocess, normalizer)
    elif preprocess.normalizer is not normalizer:  # of a copy, or of another policy
        network.preprocess = Normalized(preprocess.preprocess, normalizer)
