"""Hidden layers: what actor, critics and value network have in common.

An encoder maps features to the inputs of an output layer. One class serves a single network as well as an ensemble: it builds
its layers with :func:`~sb3_softac.networks.ensemble.make_linear` and the like, which make either. ``policy_kwargs["encoder"]``
takes the name of one, or a user-defined class.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_softac.engine import matmul, torch_internals
from sb3_softac.networks.ensemble import (
    CriticIndices,
    Dropout,
    EnsembleLayerNorm,
    EnsembleLinear,
    WeightInit,
    apply_layer,
    choose,
    initialise,
    linear_layers,
    make_layer_norm,
    make_linear,
    number_chosen,
)
from sb3_softac.networks.normalization import WARM_UP_STEPS, BatchRenorm

MakeActivation = Callable[[], nn.Module]


class Encoder(nn.Sequential, ABC):
    """Base class of hidden layers.

    A subclass builds its layers in :meth:`build` and may override :meth:`forward`, :meth:`make_output` and
    :meth:`initialise`. Its own modules may be anything that takes (B, features), or (M, B, features) for an ensemble; one with
    ``takes_indices`` is told which networks. A module with a method ``project()`` is asked for it after each optimizer step.

    :param in_features: input dimension F
    :param net_arch: width of each layer, or of each residual block
    :param activation_fn: makes an activation without parameters
    :param n_networks: N networks in an ensemble, or None for a single network
    :param options: options of the subclass
    """

    #: whether the encoder computes the same in every call, by tensor operations alone, so that it may be compiled
    compilable: bool = True
    #: whether ``weight_init="default"`` stands for weights of its own, also in the output layers
    has_own_weights: bool = False

    @property
    def normalizes(self) -> bool:
        """Whether it keeps values in bounds, so that critics bear many updates per environment step."""
        return True

    def __init__(
        self,
        in_features: int,
        net_arch: Sequence[int],
        activation_fn: MakeActivation = nn.ReLU,
        n_networks: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.n_networks = n_networks
        #: dimension of what comes out
        self.out_features = self.build(in_features, list(net_arch), activation_fn, **options)
        self.largest_layer = largest_layer([self])

    @abstractmethod
    def build(self, in_features: int, net_arch: list[int], activation_fn: MakeActivation, **options: Any) -> int:
        """Add the layers; return the dimension of what comes out."""

    def make_output(self, n_outputs: int) -> nn.Module:
        """An output layer behind the hidden ones, of one network or of each of an ensemble.

        :param n_outputs: what each network puts out
        """
        return make_linear(self.out_features, n_outputs, self.n_networks)

    def initialise(self, how: WeightInit, gain: float) -> None:
        """Initialise the weights as ``policy_kwargs["weight_init"]`` asks for.

        :param how: ``"default"``, ``"orthogonal"`` or ``"xavier"``
        :param gain: factor of the weights in front of the activation
        """
        initialise(self, how, gain)

    def expand(self, inputs: th.Tensor, indices: CriticIndices) -> th.Tensor:
        """The same inputs for each chosen network: (B, F) → (M, B, F); as they are for a single network."""
        if self.n_networks is None:
            return inputs
        return inputs.expand(number_chosen(self.n_networks, indices), *inputs.shape)

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """Evaluate the layers one after the other.

        :param inputs: (B, F), the same for all networks of an ensemble
        :param indices: which networks of an ensemble are evaluated
        :return: (B, out_features), for an ensemble (M, B, out_features)
        """
        values = self.expand(inputs, indices)
        for layer in self:
            values = apply_layer(layer, values, indices)
        return values


class MLP(Encoder):
    """Linear layers with an activation after each.

    Hidden layers are linear → dropout → layer normalisation → activation, the order of DroQ (2110.02034). Batch normalisation
    comes before each linear layer, and once at the end, as in CrossQ (1902.05605).
    """

    def build(  # type: ignore[override]  # of all options it has these
        self,
        in_features: int,
        net_arch: list[int],
        activation_fn: MakeActivation,
        layer_norm: bool = False,
        dropout_rate: float = 0.0,
        normalization: str | None = None,
    ) -> int:
        """Add the layers.

        :param layer_norm: the same as ``normalization="layer"``
        :param normalization: ``"layer"``, ``"batch"``, ``"batch_renorm"`` or None
        :param dropout_rate: probability of dropping a hidden unit, 0 for no dropout
        """
        of_batches = normalization in ("batch", "batch_renorm")
        warmup_steps = WARM_UP_STEPS if normalization == "batch_renorm" else None
        for units in net_arch:
            if of_batches:
                self.append(BatchRenorm(in_features, self.n_networks, warmup_steps))
            self.append(make_linear(in_features, units, self.n_networks))
            if dropout_rate > 0.0:
                self.append(Dropout(dropout_rate))
            if layer_norm or normalization == "layer":
                self.append(make_layer_norm(units, self.n_networks))
            self.append(activation_fn())
            in_features = units
        if of_batches:
            self.append(BatchRenorm(in_features, self.n_networks, warmup_steps))
        return in_features

    @property
    def normalizes(self) -> bool:
        """As in ``Encoder``; of a subclass it is not known."""
        return type(self) is not MLP or any(
            isinstance(layer, nn.LayerNorm | EnsembleLayerNorm | BatchRenorm) for layer in self
        )

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """As in ``Encoder``, with faster matmuls where there are any."""
        # In a compiled graph matmuls are replaced later.
        if (
            self.n_networks is not None
            or th.compiler.is_compiling()
            or not matmul.worth_onednn(inputs, self.largest_layer)
            or not are_plain(self)
        ):
            return super().forward(inputs, indices)
        for layer, relu in _with_relus(self):
            if isinstance(layer, nn.Linear) and layer.bias is not None and matmul.is_large(inputs, layer.weight.numel()):
                (inputs,) = matmul.linear([inputs], layer.weight.t().unsqueeze(0), layer.bias[None, None], relu)
            else:
                inputs = layer(inputs).relu() if relu else layer(inputs)
        return inputs

    def forward_one_by_one(self, values: Sequence[th.Tensor], indices: CriticIndices) -> Sequence[th.Tensor]:
        """The networks of an ensemble one after the other, because oneDNN takes no batched matmuls.

        :param values: M tensors (B, F)
        :return: M tensors (B, out_features)
        """
        for layer, relu in _with_relus(self):
            if isinstance(layer, EnsembleLinear):
                values = matmul.linear(values, choose(layer.weight, indices), choose(layer.bias, indices), relu)
            elif isinstance(layer, EnsembleLayerNorm):
                scales, shifts = (choose(p, indices).squeeze(1).unbind() for p in (layer.weight, layer.bias))
                triples = zip(values, scales, shifts, strict=True)
                values = [F.layer_norm(value, scale.shape, scale, shift) for value, scale, shift in triples]
            else:
                values = [layer(value) for value in values]
        return values


def largest_layer(modules: Iterable[nn.Module]) -> int:
    """Most weights of a linear layer, of one network."""
    return max((layer.weight.shape[-2] * layer.weight.shape[-1] for layer in linear_layers(modules)), default=0)


def _with_relus(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, bool]]:
    """The layers, each with whether a ReLU belongs to it: one that follows a linear layer does, and is left out."""
    belongs = False
    for layer, following in itertools.pairwise([*layers, None]):
        assert layer is not None
        if not belongs:
            belongs = isinstance(layer, nn.Linear | EnsembleLinear) and type(following) is nn.ReLU
            yield layer, belongs
        else:
            belongs = False


def is_traced() -> bool:
    """Whether a file is being exported, which records what is computed."""
    traced: Any = th.jit.is_tracing  # type: ignore[attr-defined]  # torch does not list it
    return bool(traced())


#: layers that are not called where oneDNN multiplies
_REPLACED = (nn.Linear, nn.ReLU, EnsembleLinear, EnsembleLayerNorm)


def are_plain(layers: Iterable[nn.Module]) -> bool:
    """Whether these layers need not be called: they have no hooks, are no subclasses, and their methods are their own.

    While a file is exported they are called: other programs do not know what takes their place.
    """
    layers = [layer for layer in layers if isinstance(layer, _REPLACED)]
    if is_traced() or torch_internals.has_global_hooks() or torch_internals.has_hooks(layers):
        return False
    return all(type(layer) in _REPLACED and "forward" not in vars(layer) for layer in layers)
