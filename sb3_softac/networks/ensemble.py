"""Layers of N independent networks as one batched operation, and initialisation.

Critic indices choose among the networks of an ensemble: indices (M,), a slice, or None for all N.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch as th
from torch import nn
from torch.nn import functional as F

WeightInit = Literal["default", "orthogonal", "xavier"]
#: which networks of an ensemble are evaluated
CriticIndices: TypeAlias = th.Tensor | slice | None


def choose(parameter: th.Tensor, indices: CriticIndices) -> th.Tensor:
    """(N, ...) → (M, ...)."""
    # Indexing with a full slice would copy the gradient of the whole parameter.
    return parameter if indices is None else parameter[indices]


def number_chosen(n_networks: int, indices: CriticIndices) -> int:
    """M, the number of networks that ``indices`` choose out of N."""
    return len(indices) if isinstance(indices, th.Tensor) else len(range(n_networks)[indices or slice(None)])


class EnsembleLinear(nn.Module):
    """N independent linear layers as one batched matmul: y_i = x_i W_i + b_i.

    Each starts as a ``torch.nn.Linear`` would: weights and biases uniform in ±1/√in.

    :param n_networks: N
    :param in_features: input dimension
    :param out_features: output dimension
    """

    def __init__(self, n_networks: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(th.empty(n_networks, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(n_networks, 1, out_features).uniform_(-bound, bound))

    def forward(self, inputs: th.Tensor, indices: CriticIndices) -> th.Tensor:
        """(M, B, in) → (M, B, out) for the M chosen networks."""
        weight, bias = choose(self.weight, indices), choose(self.bias, indices)
        if weight.shape[2] == 1:  # batched matmuls are slow with a single column
            return (inputs * weight.transpose(1, 2)).sum(dim=2, keepdim=True) + bias
        return th.baddbmm(bias, inputs, weight)


class EnsembleLayerNorm(nn.Module):
    """N independent layer normalisations with their own scale and shift (1607.06450).

    :param n_networks: N
    :param features: dimension that is normalised
    :param eps: added to variances
    """

    def __init__(self, n_networks: int, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(th.ones(n_networks, 1, features))
        self.bias = nn.Parameter(th.zeros(n_networks, 1, features))

    def forward(self, inputs: th.Tensor, indices: CriticIndices) -> th.Tensor:
        """(M, B, features) → the same shape, for the M chosen networks."""
        return F.layer_norm(inputs, inputs.shape[-1:], eps=self.eps) * choose(self.weight, indices) + choose(
            self.bias, indices
        )


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` whose rate may change after a step was compiled or captured: it is read from a tensor.

    :param p: probability of dropping a unit, in [0, 1]
    """

    rate: th.Tensor

    def __init__(self, p: float) -> None:
        # Kept aside: an attribute that is replaced would make an engine build its step again.
        self.__dict__["_given"] = {"p": float(p)}
        super().__init__(p)
        self.register_buffer("rate", th.tensor(float(p)), persistent=False)

    @property
    def p(self) -> float:
        """Probability of dropping a unit."""
        return float(self.__dict__["_given"]["p"])

    @p.setter
    def p(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`p` is {value!r}, but it must be a probability, from 0 to 1.")
        self.__dict__["_given"]["p"] = float(value)
        if "_buffers" in self.__dict__ and "rate" in self._buffers:
            self.rate.fill_(value)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Any shape."""
        return dropout(inputs, self.rate) if self.training else inputs


def dropout(inputs: th.Tensor, rate: th.Tensor) -> th.Tensor:
    """Drop each number with probability ``rate``, (), and scale the others by 1/(1 − rate)."""
    kept = th.rand_like(inputs) >= rate
    return inputs * kept / (1.0 - rate).clamp(min=th.finfo(rate.dtype).tiny)


def make_linear(in_features: int, out_features: int, n_networks: int | None) -> nn.Linear | EnsembleLinear:
    """A linear layer of one network (None) or of each network of an ensemble."""
    return (
        nn.Linear(in_features, out_features) if n_networks is None else EnsembleLinear(n_networks, in_features, out_features)
    )


def make_layer_norm(features: int, n_networks: int | None, eps: float = 1e-5) -> nn.LayerNorm | EnsembleLayerNorm:
    """A layer normalisation of one network (None) or of each network of an ensemble."""
    return nn.LayerNorm(features, eps=eps) if n_networks is None else EnsembleLayerNorm(n_networks, features, eps)


def apply_layer(layer: nn.Module, values: th.Tensor, indices: CriticIndices) -> th.Tensor:
    """Call a layer of one network or of an ensemble."""
    takes_indices = isinstance(layer, EnsembleLinear | EnsembleLayerNorm) or getattr(layer, "takes_indices", False)
    result: Any = layer(values, indices) if takes_indices else layer(values)
    return result  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any


def linear_layers(modules: Iterable[nn.Module]) -> list[nn.Linear | EnsembleLinear]:
    """All linear layers among the modules and below them."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | EnsembleLinear)]


@th.no_grad()
def initialise(module: nn.Module, how: WeightInit, gain: float = 1.0) -> None:
    """Initialise every linear layer below ``module``; biases become 0. ``"default"`` leaves PyTorch's choice.

    :param module: network whose linear layers are changed; convolutions keep PyTorch's initialisation
    :param how: ``"default"``, ``"orthogonal"`` (1312.6120) or ``"xavier"`` (Glorot uniform)
    :param gain: factor of the weights, √2 for layers in front of a ReLU
    """
    if how == "default":
        return
    initialiser = nn.init.orthogonal_ if how == "orthogonal" else nn.init.xavier_uniform_
    for layer in linear_layers([module]):
        # An ensemble's weight is (N, in, out): its networks are initialised one by one.
        for weight in layer.weight if isinstance(layer, EnsembleLinear) else [layer.weight]:
            initialiser(weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@th.no_grad()
def scale_outputs(module: nn.Module, scale: float) -> None:
    """Multiply the weights and biases of the linear layers below ``module`` by ``scale``, and so its initial outputs."""
    for layer in linear_layers([module]):
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.mul_(scale)
