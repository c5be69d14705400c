"""Building blocks of the networks: a batched ensemble of perceptrons, and initialisation."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from sb3_softac import products

WeightInit = Literal["default", "orthogonal", "xavier"]
#: which members of an ensemble are evaluated: indices (M,), a slice, or None for all
Members = th.Tensor | slice | None


def _choose(parameter: th.Tensor, members: Members) -> th.Tensor:
    # Indexing with a full slice would copy the gradient of the whole parameter.
    return parameter if members is None else parameter[members]


class StackedLinear(nn.Module):
    """N independent linear layers as one batched product: y_i = x_i W_i + b_i.

    Each member starts as a ``torch.nn.Linear`` would: weights and biases uniform in ±1/√in.

    :param n_members: N
    :param in_features: input dimension
    :param out_features: output dimension
    """

    def __init__(self, n_members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(th.empty(n_members, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(n_members, 1, out_features).uniform_(-bound, bound))

    def forward(self, inputs: th.Tensor, members: Members) -> th.Tensor:
        """(M, B, in) → (M, B, out) for the M chosen members."""
        weight, bias = _choose(self.weight, members), _choose(self.bias, members)
        if weight.shape[2] == 1:  # batched matrix products are slow with a single column
            return (inputs * weight.transpose(1, 2)).sum(dim=2, keepdim=True) + bias
        return th.baddbmm(bias, inputs, weight)


class StackedLayerNorm(nn.Module):
    """N independent layer normalisations with their own scale and shift (1607.06450).

    :param n_members: N
    :param features: dimension that is normalised
    """

    def __init__(self, n_members: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(n_members, 1, features))
        self.bias = nn.Parameter(th.zeros(n_members, 1, features))

    def forward(self, inputs: th.Tensor, members: Members) -> th.Tensor:
        """(M, B, features) → the same shape, for the M chosen members."""
        return F.layer_norm(inputs, inputs.shape[-1:]) * _choose(self.weight, members) + _choose(self.bias, members)


class StackedMLP(nn.Module):
    """N independent perceptrons, evaluated together.

    Hidden layers are linear → dropout → layer normalisation → activation, the order of DroQ (2110.02034).

    :param n_members: N
    :param in_features: input dimension
    :param net_arch: units of the hidden layers; empty for linear members
    :param activation_fn: elementwise activation
    :param layer_norm: normalise the hidden layers
    :param dropout_rate: probability of dropping a hidden unit, 0 for no dropout
    :param n_outputs: outputs of each member
    """

    def __init__(
        self,
        n_members: int,
        in_features: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        n_outputs: int = 1,
    ) -> None:
        super().__init__()
        self.n_members = n_members
        self.hidden = nn.ModuleList()
        for units in net_arch:
            self.hidden.append(StackedLinear(n_members, in_features, units))
            if dropout_rate > 0.0:
                self.hidden.append(nn.Dropout(dropout_rate))
            if layer_norm:
                self.hidden.append(StackedLayerNorm(n_members, units))
            self.hidden.append(activation_fn())
            in_features = units
        self.output = StackedLinear(n_members, in_features, n_outputs)
        self.largest_layer = _largest_layer(self)

    def forward(self, inputs: th.Tensor, members: Members = None) -> th.Tensor:
        """Evaluate the chosen members on the same inputs.

        :param inputs: (B, in)
        :param members: indices (M,), a slice of the N members, or None for all
        :return: (M, B, outputs)
        """
        n_chosen = len(members) if isinstance(members, th.Tensor) else len(range(self.n_members)[members or slice(None)])
        if products.worth_onednn(inputs, self.largest_layer) and _are_plain((*self.hidden, self.output)):
            return self._one_by_one([inputs] * n_chosen, members)
        hidden = inputs.expand(n_chosen, *inputs.shape)
        for layer in self.hidden:
            stacked = isinstance(layer, StackedLinear | StackedLayerNorm)
            hidden = layer(hidden, members) if stacked else layer(hidden)
        output: th.Tensor = self.output(hidden, members)
        return output

    def _one_by_one(self, hidden: Sequence[th.Tensor], members: Members) -> th.Tensor:
        """The same, with the products of each member by itself: as a batch oneDNN does not take them."""
        for layer, relu in _with_relus(self.hidden):
            if isinstance(layer, StackedLinear):
                hidden = products.linear(hidden, _choose(layer.weight, members), _choose(layer.bias, members), relu)
            elif isinstance(layer, StackedLayerNorm):
                scales, shifts = (_choose(p, members).squeeze(1).unbind() for p in (layer.weight, layer.bias))
                triples = zip(hidden, scales, shifts, strict=True)
                hidden = [F.layer_norm(values, scale.shape, scale, shift) for values, scale, shift in triples]
            else:
                hidden = [layer(values) for values in hidden]
        weight, bias = _choose(self.output.weight, members), _choose(self.output.bias, members)
        if weight.shape[2] == 1:
            columns = [th.mv(values, column) for values, column in zip(hidden, weight.squeeze(2).unbind(), strict=True)]
            return (th.stack(columns) + bias.squeeze(2)).unsqueeze(2)
        return th.stack(tuple(products.linear(hidden, weight, bias)))


class Perceptron(nn.Sequential):
    """``torch.nn.Sequential`` of linear layers and activations, by faster products where there are any."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.largest_layer = _largest_layer(self)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """(B, in) → (B, out)."""
        # In a compiled graph the products are replaced behind the scenes.
        if th.compiler.is_compiling() or not products.worth_onednn(inputs, self.largest_layer) or not _are_plain(self):
            return super().forward(inputs)  # type: ignore[no-any-return, no-untyped-call]  # torch ships it without
        for layer, relu in _with_relus(self):
            if isinstance(layer, nn.Linear) and layer.bias is not None and products.is_large(inputs, layer.weight.numel()):
                (inputs,) = products.linear([inputs], layer.weight.t().unsqueeze(0), layer.bias[None, None], relu)
            else:
                inputs = layer(inputs).relu() if relu else layer(inputs)
        return inputs


def _largest_layer(module: nn.Module) -> int:
    """Most weights of a linear layer, of one member."""
    return max((layer.weight.shape[-2] * layer.weight.shape[-1] for layer in _linear_layers(module)), default=0)


def _with_relus(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, bool]]:
    """The layers, each with whether a ReLU belongs to it: one that follows a linear layer does, and is left out."""
    belongs = False
    for layer, following in itertools.pairwise([*layers, None]):
        assert layer is not None
        if not belongs:
            belongs = isinstance(layer, nn.Linear | StackedLinear) and type(following) is nn.ReLU
            yield layer, belongs
        else:
            belongs = False


#: layers that are not called where oneDNN multiplies
_REPLACED = (nn.Linear, nn.ReLU, StackedLinear, StackedLayerNorm)


def _are_plain(layers: Iterable[nn.Module]) -> bool:
    """Whether nobody would miss a call of these layers: they have no hooks, and are no subclasses."""
    if _has_any_global_hook():  # type: ignore[no-untyped-call]  # torch ships it without annotations
        return False
    return not any(
        type(layer) not in _REPLACED
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        for layer in layers
        if isinstance(layer, _REPLACED)
    )


def _linear_layers(module: nn.Module) -> list[nn.Linear | StackedLinear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | StackedLinear)]


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
    for layer in _linear_layers(module):
        # A stacked weight is (N, in, out): its members are initialised one by one.
        for weight in layer.weight if isinstance(layer, StackedLinear) else [layer.weight]:
            initialiser(weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@th.no_grad()
def scale_outputs(module: nn.Module, scale: float) -> None:
    """Multiply the weights and biases of the linear layers below ``module`` by ``scale``, and so its initial outputs."""
    for layer in _linear_layers(module):
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.mul_(scale)
