"""Hidden layers whose weights stay on spheres: SimbaV2 (2502.15280) and FlashSAC (2604.04539).

After each step of their optimizer layers are projected: the update asks whatever has a method ``project()`` for it.
"""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_softac.networks.encoders import Encoder, MakeActivation
from sb3_softac.networks.ensemble import CriticIndices, apply_layer, choose
from sb3_softac.networks.normalization import BatchRenorm
from sb3_softac.networks.residual import EXPANSION, Residual

#: shorter vectors than this are not stretched to length 1, and added to activations so that none is 0
EPSILON = 1e-8


def unit(values: th.Tensor) -> th.Tensor:
    """ℓ2: each row at length 1."""
    return F.normalize(values, dim=-1, eps=EPSILON)


def _shape(features: int, n_networks: int | None) -> tuple[int, ...]:
    """Of one number for each feature of one network, or of each of an ensemble."""
    return (features,) if n_networks is None else (n_networks, 1, features)


class UnitLinear(nn.Module):
    """A linear layer, of one network or of each of an ensemble, in which the weights of each output have length 1.

    They start orthogonal.

    :param in_features: input dimension
    :param out_features: output dimension
    :param n_networks: N networks in an ensemble, or None for a single one
    :param bias: whether a bias is added, which is free and starts at 0
    """

    def __init__(self, in_features: int, out_features: int, n_networks: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.takes_indices = n_networks is not None
        weight = th.empty(1 if n_networks is None else n_networks, in_features, out_features)
        for each in weight:
            nn.init.orthogonal_(each)
        self.weight = nn.Parameter(weight[0].clone() if n_networks is None else weight)
        self.bias = nn.Parameter(th.zeros(_shape(out_features, n_networks))) if bias else None
        self.project()

    @th.no_grad()
    def project(self) -> None:
        """Put the weights of each output back to length 1."""
        self.weight.copy_(F.normalize(self.weight, dim=-2, eps=EPSILON))

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """(B, in) → (B, out), or (M, B, in) → (M, B, out) for the M chosen networks of an ensemble."""
        outputs = inputs @ choose(self.weight, indices)
        return outputs if self.bias is None else outputs + choose(self.bias, indices)


class Scaler(nn.Module):
    """Learned factors of each feature. The parameter starts at ``scale`` and counts init/scale times.

    So ``scale`` sets how fast Adam, whose steps have one size, moves the factor.

    :param features: dimension
    :param init: initial factor
    :param scale: initial value of the parameter
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    def __init__(self, features: int, init: float, scale: float, n_networks: int | None = None) -> None:
        super().__init__()
        self.takes_indices = n_networks is not None
        self.weight = nn.Parameter(th.full(_shape(features, n_networks), scale))
        self.ratio = init / scale

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """Any (..., features) → the same shape."""
        return choose(self.weight, indices) * self.ratio * inputs


class UnitBatchNorm(BatchRenorm):
    """Batch normalisation in which scale and shift together have the length √d, of d features.

    :param features: d
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    def __init__(self, features: int, n_networks: int | None = None) -> None:
        super().__init__(features, n_networks, warmup_steps=None, momentum=0.01, eps=1e-5)

    def _batch_moments(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor | None, th.Tensor]:
        centred, shift, var = super()._batch_moments(inputs)
        n_rows = inputs.shape[-2]
        return centred, shift, var * ((n_rows - 1) / n_rows)  # the running variance is the unbiased one

    @th.no_grad()
    def project(self) -> None:
        """Put scale and shift back to their length."""
        square = (self.weight.square() + self.bias.square()).sum(dim=-1, keepdim=True)
        factor = math.sqrt(self.weight.shape[-1]) * th.rsqrt(square + EPSILON)
        self.weight.mul_(factor)
        self.bias.mul_(factor)


class UnitRMSNorm(nn.Module):
    """x / √(mean x² + 1e-6), times scales that together have the length √d (1910.07467).

    :param features: d
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    def __init__(self, features: int, n_networks: int | None = None) -> None:
        super().__init__()
        self.takes_indices = n_networks is not None
        self.weight = nn.Parameter(th.ones(_shape(features, n_networks)))

    @th.no_grad()
    def project(self) -> None:
        """Put the scales back to their length."""
        square = self.weight.square().sum(dim=-1, keepdim=True)
        self.weight.mul_(math.sqrt(self.weight.shape[-1]) * th.rsqrt(square + EPSILON))

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """Any (..., features) → the same shape."""
        return inputs * th.rsqrt(inputs.square().mean(dim=-1, keepdim=True) + 1e-6) * choose(self.weight, indices)


class Embedding(nn.Sequential):
    """ℓ2(s ⊙ W ℓ2[x; 3]): the constant keeps what the length of x has said.

    :param in_features: input dimension
    :param width: output dimension
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    takes_indices = True
    shift = 3.0

    def __init__(self, in_features: int, width: int, n_networks: int | None) -> None:
        init = math.sqrt(2.0 / width)
        super().__init__(UnitLinear(in_features + 1, width, n_networks), Scaler(width, init, init, n_networks))

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """(..., in) → (..., width)."""
        values = unit(th.cat([inputs, th.full_like(inputs[..., :1], self.shift)], dim=-1))
        for layer in self:
            values = apply_layer(layer, values, indices)
        return unit(values)


class LerpBlock(nn.Module):
    """x ← ℓ2(x + α ⊙ (ℓ2(W₂(φ(s ⊙ W₁ x) + 1e-8)) − x)): a step on the sphere towards what two layers make of x.

    :param width: dimension
    :param n_blocks: blocks of the network: α starts at 1/(n + 1)
    :param activation: φ
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    takes_indices = True

    def __init__(self, width: int, n_blocks: int, activation: nn.Module, n_networks: int | None) -> None:
        super().__init__()
        inner = EXPANSION * width
        init = math.sqrt(2.0 / inner)
        self.first, self.second = UnitLinear(width, inner, n_networks), UnitLinear(inner, width, n_networks)
        self.scaler, self.activation = Scaler(inner, init, init, n_networks), activation
        self.step = Scaler(width, 1.0 / (n_blocks + 1), 1.0 / math.sqrt(width), n_networks)

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """(B, width) or (M, B, width) → the same shape."""
        hidden = apply_layer(self.scaler, apply_layer(self.first, inputs, indices), indices)
        aim = unit(apply_layer(self.second, self.activation(hidden) + EPSILON, indices))
        return unit(inputs + apply_layer(self.step, aim - inputs, indices))


class SphereOutput(nn.Sequential):
    """W₂(s ⊙ W₁ x) + b.

    :param width: input dimension
    :param n_outputs: output dimension
    :param n_networks: N networks in an ensemble, or None for a single one
    """

    takes_indices = True

    def __init__(self, width: int, n_outputs: int, n_networks: int | None) -> None:
        first, scaler = UnitLinear(width, width, n_networks), Scaler(width, 1.0, 1.0, n_networks)
        super().__init__(first, scaler, UnitLinear(width, n_outputs, n_networks, bias=True))

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """(B, width) or (M, B, width) → (..., outputs)."""
        values = inputs
        for layer in self:
            values = apply_layer(layer, values, indices)
        return values


class SimbaV2(Encoder):
    """Features and weights of length 1, blocks that step along the sphere (2502.15280)."""

    has_own_weights = True

    def build(self, in_features: int, net_arch: list[int], activation_fn: MakeActivation) -> int:  # type: ignore[override]  # it has no options
        """Add the layers: one block for each number of ``net_arch``, which are all the width."""
        width, n_networks = net_arch[0], self.n_networks
        self.append(Embedding(in_features, width, n_networks))
        for _ in net_arch:
            self.append(LerpBlock(width, len(net_arch), activation_fn(), n_networks))
        return width

    def make_output(self, n_outputs: int) -> nn.Module:
        """Two layers, with a bias at the end."""
        return SphereOutput(self.out_features, n_outputs, self.n_networks)


class FlashSAC(Encoder):
    """Unit-norm linear layers and batch normalisation in inverted residual blocks, RMS normalisation (2604.04539).

    BN, linear, blocks x + φ(BN(W₂ φ(BN(W₁ x)))) with W₁ four times as wide, RMS norm.
    """

    has_own_weights = True

    def build(self, in_features: int, net_arch: list[int], activation_fn: MakeActivation) -> int:  # type: ignore[override]  # it has no options
        """Add the layers: one block for each number of ``net_arch``, which are all the width."""
        width, inner, n_networks = net_arch[0], EXPANSION * net_arch[0], self.n_networks
        self.append(UnitBatchNorm(in_features, n_networks))
        self.append(UnitLinear(in_features, width, n_networks))
        for _ in net_arch:
            block = Residual(
                UnitLinear(width, inner, n_networks),
                UnitBatchNorm(inner, n_networks),
                activation_fn(),
                UnitLinear(inner, width, n_networks),
                UnitBatchNorm(width, n_networks),
                activation_fn(),
            )
            self.append(block)
        self.append(UnitRMSNorm(width, n_networks))
        return width

    def make_output(self, n_outputs: int) -> nn.Module:
        """A unit-norm linear layer with a bias."""
        return UnitLinear(self.out_features, n_outputs, self.n_networks, bias=True)
