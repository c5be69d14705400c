"""Residual hidden layers: SimBa (2410.09754) and BRO (2405.16158)."""

import math

import torch as th
from torch import nn

from sb3_softac.networks.encoders import Encoder, MakeActivation
from sb3_softac.networks.ensemble import (
    CriticIndices,
    EnsembleLinear,
    WeightInit,
    apply_layer,
    initialise,
    linear_layers,
    make_layer_norm,
    make_linear,
)

#: inner width of a block of SimBa, as a multiple of the outer one
EXPANSION = 4
#: added to the variances of layer normalisation, as in the authors' code
EPSILON = 1e-6


class Residual(nn.Sequential):
    """x + f(x), with f the layers one after the other, of one network or of each of an ensemble.

    :param layers: f
    """

    takes_indices = True

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """(B, width) or (M, B, width) → the same shape."""
        values = inputs
        for layer in self:
            values = apply_layer(layer, values, indices)
        return inputs + values


class SimBa(Encoder):
    """A linear layer, blocks x + W₂ φ(W₁ LN(x)) with W₁ four times as wide, and layer normalisation (2410.09754).

    Embedding and output layers start orthogonal, those of the blocks as He initialisation has it; biases are 0.
    """

    has_own_weights = True

    def build(self, in_features: int, net_arch: list[int], activation_fn: MakeActivation) -> int:  # type: ignore[override]  # it has no options
        """Add the layers: one block for each number of ``net_arch``, which are all the width."""
        width, n_networks = net_arch[0], self.n_networks
        self.append(make_linear(in_features, width, n_networks))
        for _ in net_arch:
            block = Residual(
                make_layer_norm(width, n_networks, EPSILON),
                make_linear(width, EXPANSION * width, n_networks),
                activation_fn(),
                make_linear(EXPANSION * width, width, n_networks),
            )
            self.append(block)
        self.append(make_layer_norm(width, n_networks, EPSILON))
        return width

    def make_output(self, n_outputs: int) -> nn.Module:
        """A linear layer that starts orthogonal."""
        output = super().make_output(n_outputs)
        initialise(output, "orthogonal")
        return output

    def initialise(self, how: WeightInit, gain: float) -> None:
        """As in ``Encoder``, ``"default"`` as in the paper."""
        if how != "default":
            super().initialise(how, gain)
            return
        initialise(self[0], "orthogonal")
        he_initialise(self)


class BRO(Encoder):
    """Linear, LN, φ, and blocks x + LN(W₂ φ(LN(W₁ x))) (2405.16158).

    All weights start orthogonal with the gain √2, those of the output layers too, and biases at 0.
    """

    has_own_weights = True

    def build(self, in_features: int, net_arch: list[int], activation_fn: MakeActivation) -> int:  # type: ignore[override]  # it has no options
        """Add the layers: one block for each number of ``net_arch``, which are all the width."""
        width, n_networks = net_arch[0], self.n_networks
        self.append(make_linear(in_features, width, n_networks))
        self.append(make_layer_norm(width, n_networks, EPSILON))
        self.append(activation_fn())
        for _ in net_arch:
            block = Residual(
                make_linear(width, width, n_networks),
                make_layer_norm(width, n_networks, EPSILON),
                activation_fn(),
                make_linear(width, width, n_networks),
                make_layer_norm(width, n_networks, EPSILON),
            )
            self.append(block)
        return width

    def make_output(self, n_outputs: int) -> nn.Module:
        """A linear layer that starts orthogonal."""
        output = super().make_output(n_outputs)
        initialise(output, "orthogonal", math.sqrt(2.0))
        return output

    def initialise(self, how: WeightInit, gain: float) -> None:
        """As in ``Encoder``, ``"default"`` as in the authors' code."""
        super().initialise("orthogonal" if how == "default" else how, math.sqrt(2.0) if how == "default" else gain)


@th.no_grad()
def he_initialise(encoder: nn.Module) -> None:
    """Normal weights of variance 2/in in the blocks of ``encoder``, and biases of 0 (1502.01852)."""
    blocks = [module for module in encoder.modules() if isinstance(module, Residual)]
    for layer in linear_layers(blocks):
        # An ensemble's weight is (N, in, out).
        of_ensemble = isinstance(layer, EnsembleLinear)
        for weight in layer.weight if of_ensemble else [layer.weight.t()]:
            weight.normal_(0.0, (2.0 / weight.shape[0]) ** 0.5)
        nn.init.zeros_(layer.bias)
