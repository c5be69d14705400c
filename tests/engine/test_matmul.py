"""Matmuls by oneDNN against PyTorch's own, with their gradients; and that networks and compiled steps use them."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_softac.engine import matmul
from sb3_softac.networks.critics import Ensemble
from sb3_softac.networks.encoders import MLP
from tests.helpers import assert_close, fill_buffer, make_model, needs_compiler, net, restart_generators

pytestmark = pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="needs oneDNN")  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(matmul, "LARGE_NETWORK", matmul.LARGE)  # small ones will do


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the results that oneDNN computes."""
    shapes: list[tuple[int, ...]] = []
    by_onednn = matmul._linear

    def watched(*args: Any, **kwargs: Any) -> th.Tensor:
        result = by_onednn(*args, **kwargs)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setattr(matmul, "_linear", watched)
    return shapes


def assert_near(ours: th.Tensor, reference: th.Tensor) -> None:
    th.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=1e-3 * reference.abs().max().item())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("transposed", [False, True], ids=["as an ensemble", "as nn.Linear"])
@pytest.mark.parametrize(
    ("n", "rows", "inner", "columns"), [(2, 128, 120, 130), (3, 200, 256, 100), (1, 256, 300, 400), (2, 256, 23, 256)]
)
def test_values_and_gradients_of_first_and_second_order(
    n: int, rows: int, inner: int, columns: int, transposed: bool, relu: bool, calls: list[tuple[int, ...]]
) -> None:
    """The networks have inputs of their own, or, with fewer columns, the same, as in the first layer of an ensemble."""
    th.manual_seed(0)
    shared = inner < columns
    inputs = [th.randn(rows, inner) for _ in range(1 if shared else n)]
    weight = th.randn(n, columns, inner).transpose(1, 2) if transposed else th.randn(n, inner, columns)
    bias = th.randn(n, 1, columns)
    results: list[list[th.Tensor]] = []
    for dtype in (th.float64, th.float32):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (weight, bias, *inputs)]
        of_each = leaves[2:] * (n if shared else 1)
        if dtype == th.float64:
            values = (th.stack(of_each) @ leaves[0] + leaves[1]).unbind()
            values = tuple(value.relu() for value in values) if relu else values
        else:
            values = tuple(matmul.linear(of_each, leaves[0], leaves[1], relu))
        stacked = th.stack(tuple(values))
        first = th.autograd.grad(stacked.tanh().sum(), leaves, create_graph=True)
        plain = th.autograd.grad(stacked.tanh().sum(), leaves, retain_graph=True)
        second = th.autograd.grad(th.stack([gradient.square().mean() for gradient in first]).sum(), leaves)
        results.append([*values, *first, *plain, *second])
    for ours, reference in zip(results[1], results[0], strict=True):
        assert_near(ours, reference)
    assert len(calls) == 5 * n  # forward, and two in both backward passes that are not differentiated themselves


def test_only_gradients_that_are_asked_for_are_computed(calls: list[tuple[int, ...]]) -> None:
    weight, bias = th.randn(2, 128, 256, requires_grad=True), th.randn(2, 1, 256, requires_grad=True)
    inputs = th.randn(100, 128, requires_grad=True)
    loss = th.stack(tuple(matmul.linear([inputs, inputs], weight, bias))).square().sum()
    calls.clear()
    th.autograd.grad(loss, [inputs], retain_graph=True)
    assert calls == [(100, 128)] * 2
    calls.clear()
    th.autograd.grad(loss, [weight, bias], retain_graph=True)
    assert calls == [(128, 256)] * 2
    calls.clear()
    loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without annotations
    assert len(calls) == 4
    assert inputs.grad is not None
    assert weight.grad is not None


def ensemble(
    n_networks: int, in_features: int, net_arch: list[int], activation_fn: Any = nn.ReLU, n_outputs: int = 1, **options: Any
) -> Ensemble:
    return Ensemble(n_networks, in_features, net_arch, activation_fn, functools.partial(MLP, **options), n_outputs)


@pytest.mark.parametrize("kwargs", [{}, {"activation_fn": nn.Tanh}, {"layer_norm": True}, {"n_outputs": 5}])
@pytest.mark.parametrize("indices", [None, slice(0, 1), th.tensor([2, 0])], ids=["all", "slice", "indices"])
def test_an_ensemble_computes_the_same(kwargs: dict[str, Any], indices: Any, calls: list[tuple[int, ...]]) -> None:
    th.manual_seed(0)
    network = ensemble(3, 23, [128, 128], **kwargs)
    inputs = th.randn(200, 23, requires_grad=True)
    reference = ensemble(3, 23, [128, 128], **kwargs).double()
    reference.load_state_dict(network.state_dict())
    wide = inputs.detach().double().requires_grad_()
    ours, theirs = network(inputs, indices), reference(wide, indices)
    assert len(calls) == len(ours)  # the second layer is large
    assert_near(ours, theirs)
    leaves, references = [inputs, *network.parameters()], [wide, *reference.parameters()]
    for left, right in zip(th.autograd.grad(ours.sum(), leaves), th.autograd.grad(theirs.sum(), references), strict=True):
        assert_near(left, right)


def test_dropout_has_other_masks_in_each_network_of_an_ensemble(calls: list[tuple[int, ...]]) -> None:
    th.manual_seed(0)
    network = ensemble(2, 128, [256], dropout_rate=0.3)
    for parameter in network.parameters():
        parameter.data[1] = parameter.data[0]
    inputs = th.randn(2000, 128)
    values = network(inputs)
    assert calls
    assert not th.equal(values[0], values[1])
    network.eval()
    th.testing.assert_close(network(inputs)[0], network(inputs)[1])
    network.output.weight.data.fill_(1.0)
    network.output.bias.data.zero_()
    expected = network(inputs).mean().item()
    network.train()
    assert network(inputs).mean().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.Tanh])
def test_an_mlp_computes_the_same(activation_fn: type[nn.Module], calls: list[tuple[int, ...]]) -> None:
    th.manual_seed(0)
    layers = MLP(23, [128, 256], activation_fn)
    inputs = th.randn(100, 23, requires_grad=True)
    leaves = [inputs, *layers.parameters()]
    ours, theirs = layers(inputs), nn.Sequential(*layers)(inputs)
    assert len(calls) == 1
    th.testing.assert_close(ours, theirs)
    for left, right in zip(th.autograd.grad(ours.sum(), leaves), th.autograd.grad(theirs.sum(), leaves), strict=True):
        th.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
        assert left.stride() == right.stride()


@pytest.mark.parametrize("how", ["forward", "forward_pre", "full_backward", "full_backward_pre", "everywhere"])
def test_layers_with_hooks_are_called(how: str, calls: list[tuple[int, ...]]) -> None:
    seen: list[bool] = []
    networks: list[Any] = [ensemble(2, 128, [256]), MLP(128, [256])]
    for network in networks:
        inputs = th.randn(100, 128, requires_grad=True)
        layer: Any = network.hidden[0] if isinstance(network, Ensemble) else network[0]
        register = getattr(layer, f"register_{how}_hook", nn.modules.module.register_module_forward_hook)
        handle = register(lambda module, *_, layer=layer: seen.append(module is layer))
        network(inputs).sum().backward()
        handle.remove()
        assert not calls
        assert any(seen)
        network(inputs)
        assert calls
        calls.clear()
        seen.clear()


def test_what_is_not_a_plain_large_layer_is_left_to_pytorch(calls: list[tuple[int, ...]]) -> None:
    class Doubled(nn.Linear):
        def forward(self, values: th.Tensor) -> th.Tensor:
            return 2.0 * super().forward(values)

    network, layers, inputs = ensemble(2, 128, [256]), MLP(128, [256], nn.Identity), th.randn(100, 128)
    layers(inputs[0]), layers(inputs.expand(3, 100, 128)), network(inputs[:40])
    network.double()(inputs.double())
    network.float()
    doubled = Doubled(128, 256)
    with_doubled, without_bias = MLP(128, [256], nn.Identity), MLP(128, [256], nn.Identity)
    with_doubled[0], without_bias[0] = doubled, nn.Linear(128, 256, bias=False)
    expected = 2.0 * nn.functional.linear(inputs, doubled.weight, doubled.bias)
    th.testing.assert_close(with_doubled(inputs), expected)
    assert without_bias(inputs).shape == (100, 256)
    with th.autocast("cpu"):
        assert network(inputs).shape == (2, 100, 1)
        assert layers(inputs).dtype == th.bfloat16
    th.func.grad(lambda values: network(values).sum())(inputs)
    assert not calls
    network(inputs)
    assert calls


def test_in_eager_mode_only_large_networks_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", True)
    assert not matmul.worth_onednn(th.zeros(64, 256), 256 * 256)
    assert matmul.worth_onednn(th.zeros(256, 256), 256 * 256)


def test_nothing_hides_a_nan(calls: list[tuple[int, ...]]) -> None:
    """oneDNN's own ReLU would make it 0."""
    network, layers, inputs = ensemble(2, 128, [256]), MLP(128, [256]), th.ones(100, 128)
    with th.no_grad():
        next(network.parameters())[1, 3, 4] = np.nan
        next(layers.parameters())[3, 4] = np.nan
    assert network(inputs).isnan().all(dim=1).flatten().tolist() == [False, True]
    assert layers(inputs).isnan().sum() == 100
    assert calls


def test_what_is_added_need_not_be_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has as many numbers as there are columns."""
    assert matmul.has_operator()
    graph = th.fx.Graph()
    left, right = th.randn(128, 128), th.randn(128, 128)
    added = {"a row": th.randn(1, 128), "a column": th.randn(128, 1), "a vector": th.randn(128), "all": th.randn(128, 128)}
    places = [graph.placeholder(name) for name in ("left", "right", "c", "d", "e", "f")]
    for place, value in zip(places, [left, right, *added.values()], strict=True):
        place.meta["val"] = value
    results = [graph.call_function(th.ops.aten.addmm.default, (place, *places[:2])) for place in places[2:]]
    for result in results:
        result.meta["val"] = left
    graph.output(results)
    matmul.replace_large_products(graph)
    targets = [node.target for node in graph.nodes]
    assert targets.count(th.ops.sb3_softac.linear.default) == 4
    assert targets.count(th.ops.aten.add.Tensor) == 2
    for node in graph.nodes:
        if node.target is th.ops.sb3_softac.linear.default:
            node.target = lambda left, right, bias: nn.functional.linear(left, right, bias)
    outputs = th.fx.GraphModule({}, graph)(left, right, *added.values())
    for output, value in zip(outputs, added.values(), strict=True):
        th.testing.assert_close(output, value + left @ right, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_compiled_step_uses_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same training as in eager mode; ten large matmuls and more in each step."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a cached graph would not be looked through again
    counts: list[int] = []
    replace = matmul.replace_large_products

    def count(graph: th.fx.Graph) -> None:
        replace(graph)
        counts.append(sum(str(node.target).startswith("sb3_softac.") for node in graph.nodes))

    monkeypatch.setattr(matmul, "replace_large_products", count)
    network = net(net_arch=[128, 128], layer_norm=True, dropout_rate=0.01, n_critics=3)
    models = [make_model(compile=compile, value_network=True, actor_q="mean", **network) for compile in (True, False)]
    for model in models:
        fill_buffer(model)
        restart_generators()
        model.train(10, batch_size=128)
    assert models[0]._engine.compiles
    assert len(counts) == 1
    assert counts[0] >= 10
    assert_close(models[0], models[1])


def test_it_is_for_one_kind_of_processor_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    zen_5, zen_4 = (f"vendor_id : AuthenticAMD\ncpu family\t: {family}\nmodel\t: 17\n" for family in (26, 25))
    intel = "vendor_id : GenuineIntel\ncpu family\t: 26\n"
    processor = {"vendor": zen_5, "capability": "AVX512"}
    monkeypatch.setattr(th.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: processor["capability"])
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    monkeypatch.setattr(Path, "read_text", lambda _path: processor["vendor"])
    monkeypatch.delenv("SB3_SOFTAC_NO_ONEDNN", raising=False)
    assert matmul._onednn_is_faster()
    for name, other in (("vendor", intel), ("vendor", zen_4), ("vendor", "AuthenticAMD"), ("capability", "AVX2")):
        with monkeypatch.context() as patch:
            patch.setitem(processor, name, other)
            assert not matmul._onednn_is_faster()
    monkeypatch.setenv("SB3_SOFTAC_NO_ONEDNN", "1")
    assert not matmul._onednn_is_faster()
