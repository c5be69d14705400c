"""Products by oneDNN against PyTorch's own, with their gradients; and that a compiled step uses them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch as th

from sb3_softac import products
from tests.helpers import fill_buffer, make_model, needs_compiler, parameters_of
from tests.test_engine import assert_close, restart_generators

pytestmark = pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="needs oneDNN")  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def one_thread_and_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("shape", [(2, 128, 120, 130), (3, 100, 256, 100), (1, 256, 300, 400)])
def test_values_and_gradients_of_first_and_second_order(shape: tuple[int, int, int, int], expanded: bool) -> None:
    """The first layer of an ensemble reads the same inputs for all members: its left factor is expanded."""
    n, rows, inner, columns = shape
    th.manual_seed(0)
    left = th.randn(rows, inner) if expanded else th.randn(n, rows, inner)
    factors = [left, th.randn(n, inner, columns), th.randn(n, 1, columns)]
    results = []
    for dtype, product in ((th.float64, th.baddbmm), (th.float32, products.baddbmm)):
        left, right, bias = leaves = [factor.to(dtype).requires_grad_() for factor in factors]
        value = product(bias, left.expand(n, rows, inner) if expanded else left, right)
        first = th.autograd.grad(value.tanh().sum(), leaves, create_graph=True)
        second = th.autograd.grad(th.stack([gradient.square().mean() for gradient in first]).sum(), leaves)
        results.append([value, *first, *second])
    for ours, reference in zip(results[1], results[0], strict=True):
        th.testing.assert_close(ours.double(), reference, rtol=1e-3, atol=1e-3 * reference.abs().max().item())


def test_small_products_other_types_and_several_threads_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product", lambda *_: pytest.fail("was called"))

    def multiply(size: int, dtype: th.dtype = th.float32) -> None:
        left, right, bias = th.randn(2, 256, size).to(dtype), th.randn(2, size, 256).to(dtype), th.randn(2, 1, 256).to(dtype)
        assert th.equal(products.baddbmm(bias, left, right), th.baddbmm(bias, left, right))

    multiply(products.SMALLEST - 1)
    multiply(256, th.float64)
    th.set_num_threads(2)
    multiply(256)
    th.set_num_threads(1)
    with pytest.raises(pytest.fail.Exception):
        multiply(256)


@needs_compiler
@pytest.mark.parametrize("kwargs", [{}, {"value_network": True, "actor_q": "mean"}])
def test_a_compiled_step_uses_them(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The same training as line by line without them; ten large products and more in each step."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a cached graph would not be looked through again
    counts: list[int] = []
    replace = products.replace_large_products

    def count(graph: th.fx.Graph) -> None:
        replace(graph)
        names = [str(node.target) for node in graph.nodes]
        counts.append(sum(name.startswith("sb3_softac.") for name in names))

    monkeypatch.setattr(products, "replace_large_products", count)
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [128, 128]}, **kwargs}
    models = [make_model(compile=True, **arguments)]
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    models.append(make_model(compile=False, **arguments))
    for model, faster in zip(models, (True, False), strict=True):
        monkeypatch.setattr(products, "onednn_is_faster", lambda faster=faster: faster)
        fill_buffer(model)
        restart_generators()
        model.train(10, batch_size=128)
    assert models[0]._engine.compiles
    assert counts == [counts[0]]
    assert counts[0] >= 10
    assert_close(models[0], models[1])
    assert any(not th.equal(left, right) for (_, left), (_, right) in zip(*map(parameters_of, models), strict=True))


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert isinstance(products.onednn_is_faster(), bool)
    products.onednn_is_faster.cache_clear()
    monkeypatch.setenv("SB3_SOFTAC_NO_ONEDNN", "1")
    assert not products.onednn_is_faster()
    products.onednn_is_faster.cache_clear()
