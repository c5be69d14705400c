"""Large matmuls in bfloat16: what is rounded, that every way of running a step rounds the same, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC, SoftQL
from sb3_softac.engine import matmul, precision, torch_internals
from tests.graph_standin import GraphStandIn
from tests.helpers import RandomEnv, assert_same_parameters, build, fill_buffer, logged, needs_compiler, restart_generators

has_bfloat16 = precision.missing_for("bfloat16", th.device("cpu")) is None
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16, reason="needs a processor with AVX512-BF16 or AMX")
METRICS = ("critic_loss", "q_value", "actor_loss", "grad_norm_critic", "grad_norm_actor")
LARGE: dict[str, Any] = {"net_arch": [128, 128]}


def rounded_product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """By definition: factors and result rounded to the 8 significant bits of bfloat16, the sum exact."""
    return (left.bfloat16().double() @ right.bfloat16().double()).bfloat16().double()


def assert_rounded(ours: th.Tensor, left: th.Tensor, right: th.Tensor, added: th.Tensor | float = 0.0) -> None:
    """Up to one place in the last digit, where the sum is near the middle of two numbers."""
    expected = rounded_product(left, right)
    error = (ours.double() - added - expected).abs()
    assert (error > 1e-6 * expected.abs().clamp(min=1.0)).double().mean() < 0.01
    assert error.max() <= 2.0**-7 * expected.abs().max()


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processors compute the same, slowly."""
    monkeypatch.setattr(torch_internals, "has_bfloat16_instructions", lambda: True)


def random(*shape: int) -> th.Tensor:
    return th.randn(shape, generator=th.Generator().manual_seed(0))


class TestProducts:
    def test_of_every_operator(self) -> None:
        left, right, row = random(128, 128), random(128, 128), random(128)
        pair = th.stack([left, left + 1.0]), th.stack([right, right - 1.0])
        with precision.products_in("bfloat16"):
            results = left @ right, th.addmm(row, left, right), th.bmm(*pair), th.baddbmm(row.expand(2, 1, -1), *pair)
        assert all(result.dtype == th.float32 for result in results)
        assert_rounded(results[0], left, right)
        assert_rounded(results[1], left, right, row)
        for index in range(2):
            assert_rounded(results[2][index], pair[0][index], pair[1][index])
            assert_rounded(results[3][index], pair[0][index], pair[1][index], row)

    def test_of_gradients(self) -> None:
        left, right, grad = random(128, 128).requires_grad_(), random(128, 128).requires_grad_(), random(128, 128) + 1.0
        with precision.products_in("bfloat16"):
            th.autograd.backward(left @ right, grad)
        assert left.grad is not None
        assert right.grad is not None
        assert_rounded(left.grad, grad, right.detach().t())
        assert_rounded(right.grad, left.detach().t(), grad)

    @pytest.mark.skipif(torch_internals.onednn_linear() is None, reason="needs oneDNN")
    def test_of_onednn(self) -> None:
        left, right, bias = random(128, 128), random(128, 128), random(128)
        with precision.products_in("bfloat16"):
            result = matmul._linear(left, right, bias)
        assert_rounded(result, left, right.t(), bias)

    def test_small_ones_and_float64_stay_as_they_are(self) -> None:
        for factor in (random(64, 64), random(128, 128).double()):
            with precision.products_in("bfloat16"):
                result = factor @ factor
            assert th.equal(result, factor @ factor)

    def test_float32_changes_nothing(self) -> None:
        factor = random(128, 128)
        with precision.products_in("float32"):
            assert th.equal(factor @ factor, factor @ factor)

    def test_in_a_graph(self) -> None:
        """The same operators, as nodes."""
        aten: Any = th.ops.aten
        left, right, row = random(128, 128), random(128, 128), random(128)
        values = {"left": left, "right": right, "row": row, "lefts": left.unsqueeze(0), "rights": right.unsqueeze(0)}
        graph = th.fx.Graph()
        places = {name: graph.placeholder(name) for name in values}
        for name, value in values.items():
            places[name].meta["val"] = value
        nodes = [
            graph.call_function(aten.mm.default, (places["left"], places["right"])),
            graph.call_function(aten.addmm.default, (places["row"], places["left"], places["right"])),
            graph.call_function(aten.bmm.default, (places["lefts"], places["rights"])),
            graph.call_function(aten.mm.default, (places["left"], places["left"])),
        ]
        for node in nodes:
            node.meta["val"] = left if node.target is not aten.bmm.default else left.unsqueeze(0)
        nodes[3].meta["val"] = left
        graph.output(nodes)
        precision.lower_products(graph)
        assert not {aten.addmm.default} & {node.target for node in graph.nodes}
        results = th.fx.GraphModule({}, graph)(*values.values())
        for index, result in enumerate(results[:3]):
            assert_rounded(result.reshape(128, 128), left, right, row if index == 1 else 0.0)


def metrics(model: SoftAC, n_updates: int = 4) -> list[float]:
    """Those of the newest update, at learning rates of 0: rounding decides no step."""
    for network in model.policy.trained_networks().values():
        for group in network.optimizer.param_groups:
            group["lr"] = 0.0
    restart_generators()
    model.train(n_updates, batch_size=128)
    model._read_metrics()  # what is captured is read late
    return [logged(model, name) for name in METRICS]


def at_rest(compile: Any, **kwargs: Any) -> SoftAC:
    return build(compile, learning_rate=0.0, **{"policy_kwargs": LARGE, **kwargs})


@pytest.mark.usefixtures("anywhere")
class TestSteps:
    @pytest.mark.parametrize("kwargs", [{}, {"value_network": True}, {"discrete": True}], ids=["plain", "value", "discrete"])
    def test_rounding_shows_and_is_small(self, kwargs: dict[str, Any]) -> None:
        exact, rounded = (metrics(at_rest(False, precision=how, **kwargs)) for how in ("float32", "bfloat16"))
        assert exact != rounded
        np.testing.assert_allclose(rounded, exact, rtol=0.02, atol=0.01)

    @needs_compiler
    @needs_bfloat16
    def test_compiled(self) -> None:
        """As in eager mode, much closer than to float32."""
        eager, compiled = (at_rest(how, precision="bfloat16") for how in (False, True))
        np.testing.assert_allclose(metrics(compiled), metrics(eager), rtol=2e-5, atol=1e-6)
        assert compiled._engine.compiles

    def test_captured(self, standin: type[GraphStandIn]) -> None:
        eager, captured = (at_rest(how, precision="bfloat16") for how in (False, "auto"))
        np.testing.assert_allclose(metrics(captured), metrics(eager), rtol=1e-6)
        assert standin.captured > 0

    def test_set_during_training(self) -> None:
        model = at_rest(False)
        exact = metrics(model)
        model.precision = "bfloat16"
        assert metrics(model) != exact
        model.precision = "float32"
        assert metrics(model) == exact

    def test_saved_and_trained_on(self, tmp_path: Path) -> None:
        model = build(False, precision="bfloat16", policy_kwargs=LARGE)
        model.train(2, batch_size=128)
        model.save(tmp_path / "model")
        loaded = SoftAC.load(tmp_path / "model", env=RandomEnv(), device="cpu")
        assert loaded.precision == "bfloat16"
        loaded.replay_buffer = model.replay_buffer
        for either in (model, loaded):
            restart_generators()
            either.train(2, batch_size=128)
        assert_same_parameters(model, loaded)
        assert {parameter.dtype for parameter in loaded.policy.parameters()} == {th.float32}
        states: Any = loaded.critic.optimizer.state.values()
        assert {state["exp_avg"].dtype for state in states} == {th.float32}

    def test_soft_q_learning(self) -> None:
        model = SoftQL("MlpPolicy", RandomEnv(), precision="bfloat16", policy_kwargs=LARGE, compile=False, seed=0)
        fill_buffer(model)
        model.train(2, batch_size=128)
        assert np.isfinite(logged(model, "critic_loss"))  # type: ignore[arg-type]


class TestRefusals:
    def test_another_name(self) -> None:
        with pytest.raises(ValueError, match="`precision` is 'float16', but it must be one of 'float32', 'bfloat16'"):
            SoftAC("MlpPolicy", RandomEnv(), precision="float16")  # type: ignore[arg-type]

    def test_a_processor_without_the_instructions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_internals, "has_bfloat16_instructions", lambda: False)
        message = "`precision` is 'bfloat16', but it must be 'float32' here: it needs a processor with AVX512-BF16 or AMX"
        with pytest.raises(ValueError, match=message):
            SoftAC("MlpPolicy", RandomEnv(), precision="bfloat16", device="cpu")
        model = SoftAC("MlpPolicy", RandomEnv(), device="cpu", buffer_size=100)
        fill_buffer(model)
        model.precision = "bfloat16"
        with pytest.raises(ValueError, match=message):
            model.train(1, batch_size=8)
        assert str(model.precision) == "float32"

    @pytest.mark.usefixtures("anywhere")
    def test_weights_of_another_type(self) -> None:
        model = SoftAC("MlpPolicy", RandomEnv(), device="cpu", buffer_size=100)
        fill_buffer(model)
        model.policy.double()
        model.precision = "bfloat16"
        with pytest.raises(ValueError, match=r"'float32' with weights of torch\.float64"):
            model.train(1, batch_size=8)
