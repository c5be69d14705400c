"""For which passes batch normalisation uses the statistics of its batch: an update says so, module by module."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sb3_softac.engine import Group


def batch_norm_layers(network: nn.Module) -> list[Any]:
    """The layers below ``network`` that can use the statistics of their batch."""
    return [module for module in network.modules() if hasattr(module, "uses_batch")]


@contextlib.contextmanager
def batch_statistics(layers: list[Any], group: Group | None = None) -> Iterator[None]:
    """Within it the layers normalise by their batch, and move their running statistics.

    :param layers: what :func:`batch_norm_layers` has found
    :param group: ranks whose batches count as one
    """
    for layer in layers:
        layer.uses_batch = True
        if group is not None:
            layer.group = group
    try:
        yield
    finally:
        for layer in layers:
            layer.uses_batch = False
            if group is not None:
                layer.group = None
