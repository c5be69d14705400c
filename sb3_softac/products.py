"""Large matrix products by oneDNN, where that is faster than what PyTorch uses.

PyTorch's builds for x86 multiply float32 matrices with MKL, which on AMD processors with AVX-512 reaches half of what they can
do; oneDNN, a part of the same builds, reaches all of it, and adds the bias on the way. ``SB3_SOFTAC_NO_ONEDNN=1`` in front of
``benchmarks/speed.py`` shows what it is worth.
"""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

#: products with fewer multiplications do not repay what a call of oneDNN costs
LARGE = 1.5e6
#: line by line, networks whose largest layer has fewer do not repay the evaluation of one member after the other
LARGE_NETWORK = 1e7


def _onednn_is_faster() -> bool:
    has_onednn: Any = th.backends.mkldnn.is_available
    if os.environ.get("SB3_SOFTAC_NO_ONEDNN") or not has_onednn():
        return False
    information = Path("/proc/cpuinfo")
    vendor = information.read_text() if information.exists() else platform.processor()
    return "AuthenticAMD" in vendor and th.backends.cpu.get_cpu_capability() == "AVX512"


#: whether this is an AMD processor with AVX-512, and PyTorch has oneDNN; ``SB3_SOFTAC_NO_ONEDNN=1`` says no
ONEDNN_IS_FASTER = _onednn_is_faster()


def worth_onednn(inputs: th.Tensor, weights: int) -> bool:
    """Whether a network is faster with oneDNN, and nothing stands in its way.

    :param inputs: (B, in)
    :param weights: number of weights of its largest layer, in·out
    """
    if not ONEDNN_IS_FASTER or inputs.ndim != 2 or not is_large(inputs, weights):
        return False
    if th.compiler.is_compiling():
        return True
    # Autocast and function transforms would not see what a custom function multiplies.
    seen = th.is_autocast_enabled("cpu") or th._C._are_functorch_transforms_active()
    return len(inputs) * weights >= LARGE_NETWORK and not seen


def is_large(left: th.Tensor, weights: int) -> bool:
    """Whether the product of ``left``, (m, k), and a matrix of ``weights`` = k·n numbers repays a call of oneDNN."""
    return len(left) * weights >= LARGE and left.dtype == th.float32 and left.device.type == "cpu"


def _linear(left: th.Tensor, right: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """left·rightᵀ + bias: (m, k), (n, k) and (n,) → (m, n)."""
    # It could apply the ReLU as well, but oneDNN's turns NaN into 0, and nobody would see that a training has diverged.
    result: th.Tensor = th.ops.mkldnn._linear_pointwise.default(left, right, bias, "none", [], "")
    return result


# In a compiled graph it is an operator of its own, so that the compiler's own ideas of PyTorch's do not apply.
_make_library: Any = th.library.Library  # torch ships it without annotations
_LIBRARY = _make_library("sb3_softac", "DEF")
_LIBRARY.define("linear(Tensor left, Tensor right, Tensor? bias) -> Tensor")
_LIBRARY.impl("linear", lambda left, right, bias: left.new_empty(left.shape[0], right.shape[0]), "Meta")


def _multiply(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """left·rightᵀ, (m, k) and (n, k) → (m, n). Where its own gradients are asked for, the product is PyTorch's."""
    ours = not th.is_grad_enabled() and is_large(left, right.numel())
    return _linear(left, right) if ours else th.mm(left, right.t())


class _Layer(th.autograd.Function):
    """One linear layer of every member of an ensemble, with its ReLU; shapes as in :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, relu: bool, weight: th.Tensor, bias: th.Tensor, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        outputs = _forward(relu, weight, bias, inputs)
        ctx.relu, ctx.n_members = relu, len(inputs)
        ctx.save_for_backward(weight, *inputs, *(outputs if relu else ()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        inputs, outputs = saved[: ctx.n_members], saved[ctx.n_members :]
        if ctx.relu:
            grads = tuple(th.ops.aten.threshold_backward(grad, output, 0) for grad, output in zip(grads, outputs, strict=True))
        # What requires a gradient is not always asked for: the actor loss does not move the critics' weights.
        asked: Any = th._C._will_engine_execute_node
        for_weight, for_bias, *for_inputs = [node is not None and asked(node) for node, _ in ctx.next_functions]
        weights = weight.unbind() if any(for_inputs) else [weight] * len(grads)
        return (
            None,
            _weight_gradient(inputs, grads, transposed=weight.stride(1) == 1) if for_weight else None,
            th.stack([grad.sum(dim=0, keepdim=True) for grad in grads]) if for_bias else None,
            *(
                _multiply(grad, weight_i) if wanted else None
                for grad, weight_i, wanted in zip(grads, weights, for_inputs, strict=True)
            ),
        )


def _forward(relu: bool, weight: th.Tensor, bias: th.Tensor, inputs: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
    members = zip(inputs, weight.transpose(1, 2).unbind(), bias.squeeze(1).unbind(), strict=True)
    outputs = tuple(_linear(*member) for member in members)
    return tuple(map(th.relu_, outputs)) if relu else outputs


def _weight_gradient(inputs: Sequence[th.Tensor], grads: Sequence[th.Tensor], transposed: bool) -> th.Tensor:
    """xᵀg of every member, in memory as the weights, which may be transposed ones."""
    pairs = [(values.t(), grad.t()) for values, grad in zip(inputs, grads, strict=True)]
    if transposed:
        return th.stack([_multiply(grad, values) for values, grad in pairs]).transpose(1, 2)
    return th.stack([_multiply(values, grad) for values, grad in pairs])


def linear(inputs: Sequence[th.Tensor], weight: th.Tensor, bias: th.Tensor, relu: bool = False) -> Sequence[th.Tensor]:
    """One linear layer of every member of an ensemble, y_i = x_i W_i + b_i, or ReLU(y_i).

    :param inputs: N tensors (B, in)
    :param weight: (N, in, out)
    :param bias: (N, 1, out)
    :param relu: apply a ReLU
    :return: N tensors (B, out)
    """
    # In a compiled graph the products are replaced later.
    if th.compiler.is_compiling() or not is_large(inputs[0], weight.shape[1] * weight.shape[2]):
        results = [th.addmm(*member) for member in zip(bias.unbind(), inputs, weight.unbind(), strict=True)]
        return [result.relu() for result in results] if relu else results
    if not th.is_grad_enabled():
        return _forward(relu, weight, bias, inputs)
    # Of a view PyTorch knows during the backward pass whether its gradient is wanted, of a parameter itself it does not.
    views = [tensor.view_as(tensor) if tensor.is_leaf else tensor for tensor in (weight, bias, *inputs)]
    outputs: Any = _Layer.apply(relu, *views)  # type: ignore[no-untyped-call]  # torch ships it without annotations
    return outputs  # type: ignore[no-any-return]


def replace_large_products(graph: th.fx.Graph) -> None:
    """Put oneDNN in the place of large products."""
    aten: Any = th.ops.aten
    for node in list(graph.nodes):
        if node.target not in (aten.addmm.default, aten.mm.default) or node.kwargs:
            continue
        left, right = node.args[-2:]
        if not is_large(left.meta["val"], right.meta["val"].numel()):
            continue
        added = node.args[0] if node.target is aten.addmm.default else None
        n_columns = right.meta["val"].shape[1]
        is_bias = added is not None and tuple(added.meta["val"].shape) in ((n_columns,), (1, n_columns))
        with graph.inserting_before(node):
            transposed = graph.call_function(aten.permute.default, (right, [1, 0]))
            transposed.meta["val"] = right.meta["val"].t()
            bias = None
            if added is not None and is_bias:
                bias = graph.call_function(aten.view.default, (added, [-1]))
                bias.meta["val"] = added.meta["val"].view(-1)
            product = graph.call_function(th.ops.sb3_softac.linear.default, (left, transposed, bias))
            product.meta["val"] = node.meta["val"]
            if added is not None and not is_bias:
                product = graph.call_function(aten.add.Tensor, (product, added))
                product.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def large_products_pass() -> Any:
    """:func:`replace_large_products` as an option of ``torch.compile``; None if this PyTorch does not take it."""
    try:
        from torch._inductor import ir, lowering  # here: they load the compiler
        from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

        fall_back: Any = lowering.fallback_handler
        register: Any = lowering.register_lowering
    except (ImportError, AttributeError):
        return None

    call_onednn = fall_back(th.ops.mkldnn._linear_pointwise.default, add_to_fallback_set=False)

    @register(th.ops.sb3_softac.linear.default, type_promotion_kind=None)  # type: ignore[untyped-decorator]
    def lower(left: Any, right: Any, bias: Any) -> Any:
        # oneDNN takes the second factor as it lies in memory. It would copy a transposed first one, slowly: the loop that
        # makes that factor can write it in order.
        return call_onednn(ir.ExternKernel.require_contiguous(left), right, bias, "none", [], "")

    class LargeProducts(CustomGraphPass):
        def __call__(self, graph: th.fx.Graph) -> None:
            replace_large_products(graph)

        def uuid(self) -> Any:
            """What tells this pass from another one in the compiler's cache."""
            return get_hash_for_files((__file__,))

    return LargeProducts()
