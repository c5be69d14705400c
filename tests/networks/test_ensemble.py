"""Ensembles against networks that are evaluated one after the other."""

import functools
import math

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_softac.networks import MLP
from sb3_softac.networks.critics import Ensemble
from sb3_softac.networks.ensemble import EnsembleLayerNorm, EnsembleLinear, initialise, scale_outputs


def evaluate(mlp: Ensemble, index: int, inputs: th.Tensor) -> th.Tensor:
    """One of the networks, layer by layer, with PyTorch's own functions."""
    hidden = inputs
    for layer in [*mlp.hidden, mlp.output]:
        if isinstance(layer, EnsembleLinear):
            hidden = F.linear(hidden, layer.weight[index].T, layer.bias[index, 0])
        elif isinstance(layer, EnsembleLayerNorm):
            hidden = F.layer_norm(hidden, hidden.shape[-1:], layer.weight[index, 0], layer.bias[index, 0])
        else:
            hidden = layer(hidden)
    return hidden


@pytest.mark.parametrize("net_arch", [[], [8], [16, 8]])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("n_networks", "n_outputs"), [(1, 1), (3, 1), (3, 4)])
def test_the_networks_are_independent(net_arch: list[int], layer_norm: bool, n_networks: int, n_outputs: int) -> None:
    mlp = Ensemble(n_networks, 5, net_arch, nn.Tanh, functools.partial(MLP, layer_norm=layer_norm), n_outputs)
    with th.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    inputs = th.randn(7, 5)
    expected = th.stack([evaluate(mlp, i, inputs) for i in range(n_networks)])
    assert expected.shape == (n_networks, 7, n_outputs)
    th.testing.assert_close(mlp(inputs), expected)
    chosen = th.tensor([n_networks - 1, 0])
    th.testing.assert_close(mlp(inputs, chosen), expected[chosen])
    th.testing.assert_close(mlp(inputs, slice(0, 1)), expected[:1])


def test_the_networks_start_as_linear_layers_do() -> None:
    """Uniform in ±b with b = 1/√in, whose standard deviation is b/√3; that of 8,000 biases is exact to 0.5 %."""
    th.manual_seed(0)
    layer = EnsembleLinear(500, 16, 16)
    bound = 1 / math.sqrt(16)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not th.equal(layer.weight[0], layer.weight[1])


def test_dropout_is_drawn_for_each_network_and_only_in_training() -> None:
    mlp = Ensemble(2, 4, [256], nn.ReLU, functools.partial(MLP, dropout_rate=0.5))
    inputs = th.randn(1, 4)
    assert not th.equal(mlp(inputs), mlp(inputs))
    dropped = mlp.hidden[1](th.ones(2, 1, 256))
    assert not th.equal(dropped[0], dropped[1])
    mlp.eval()
    assert th.equal(mlp(inputs), mlp(inputs))


def test_orthogonal() -> None:
    mlp, gain = Ensemble(3, 6, [6], nn.ReLU), 2.0
    initialise(mlp, "orthogonal", gain)
    first = mlp.hidden[0]
    assert isinstance(first, EnsembleLinear)
    for weight in first.weight:
        th.testing.assert_close(weight @ weight.T, gain**2 * th.eye(6), atol=1e-5, rtol=0.0)
    assert not th.equal(first.weight[0], first.weight[1])
    assert first.bias.abs().max() == 0.0


def test_xavier() -> None:
    linear = nn.Linear(50, 150)
    initialise(linear, "xavier")
    assert linear.weight.abs().max() <= math.sqrt(6 / 200)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.05)
    assert linear.bias.abs().max() == 0.0


def test_default_changes_nothing() -> None:
    linear = nn.Linear(3, 3)
    before = linear.weight.clone()
    initialise(linear, "default")
    assert th.equal(linear.weight, before)


def test_scale_outputs() -> None:
    linear, inputs = nn.Linear(3, 2), th.randn(4, 3)
    before = linear(inputs)
    scale_outputs(linear, 0.01)
    th.testing.assert_close(linear(inputs), 0.01 * before)
