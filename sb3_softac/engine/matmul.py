"""Large matmuls by oneDNN, where that is faster than what PyTorch uses.

PyTorch's builds for x86 multiply float32 matrices with MKL, which on AMD processors whose units are 512 bits wide (Zen 5)
reaches half of what they can do; oneDNN, a part of the same builds, reaches all of it, and adds the bias on the way. Zen 4 has
halves of 256 bits: there both are equally fast. ``benchmarks/ablation.py`` shows what it is worth.
"""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

from sb3_softac.engine import torch_internals

#: matmuls with fewer multiplications do not repay what a call of oneDNN costs
LARGE = 1.5e6
#: in eager mode, networks whose largest layer has fewer do not repay the evaluation of one network after the other
LARGE_NETWORK = 1e7
#: the "cpu family" of Zen 5 in /proc/cpuinfo
ZEN_5 = 26


def _onednn_is_faster() -> bool:
    has_onednn: Any = th.backends.mkldnn.is_available
    if os.environ.get("SB3_SOFTAC_NO_ONEDNN") or not has_onednn() or torch_internals.onednn_linear() is None:
        return False
    information = Path("/proc/cpuinfo")
    processor = information.read_text() if information.exists() else platform.processor()  # on Windows "AMD64 Family 26 ..."
    family = re.search(r"family\s*:?\s*(\d+)", processor, re.IGNORECASE)
    is_wide = family is not None and int(family[1]) >= ZEN_5
    return "AuthenticAMD" in processor and is_wide and th.backends.cpu.get_cpu_capability() == "AVX512"


#: whether this is an AMD processor of Zen 5 or later, and PyTorch has oneDNN; ``SB3_SOFTAC_NO_ONEDNN=1`` says no
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
    seen = th.is_autocast_enabled("cpu") or torch_internals.has_function_transforms()
    return len(inputs) * weights >= LARGE_NETWORK and not seen


def is_large(left: th.Tensor, weights: int) -> bool:
    """Whether the matmul of ``left``, (m, k), and a matrix of ``weights`` = k·n numbers repays a call of oneDNN."""
    return len(left) * weights >= LARGE and left.dtype == th.float32 and left.device.type == "cpu"


def _linear(left: th.Tensor, right: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """left·rightᵀ + bias: (m, k), (n, k) and (n,) → (m, n)."""
    # It could apply the ReLU as well, but oneDNN's turns NaN into 0, and a training that has diverged would go on.
    result: th.Tensor = torch_internals.onednn_linear()(left, right, bias, "none", [], "")
    return result


def has_operator() -> bool:
    """Define ``sb3_softac::linear``, once in a process, and say whether it is there.

    In a compiled graph the matmul is an operator of its own, so that the compiler's rules for PyTorch's do not apply.
    """
    operators: Any = th.ops.sb3_softac
    if not hasattr(operators, "linear"):
        make_library: Any = th.library.Library  # torch ships it without annotations
        library = make_library("sb3_softac", "FRAGMENT")
        library.define("linear(Tensor left, Tensor right, Tensor? bias) -> Tensor")
        library.impl("linear", lambda left, right, bias: left.new_empty(left.shape[0], right.shape[0]), "Meta")
        operators.library = library  # it lives as long as the operator, also if this module is loaded again
    return hasattr(operators, "linear")


def _multiply(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """left·rightᵀ, (m, k) and (n, k) → (m, n). Where its own gradients are asked for, it is PyTorch's."""
    ours = not th.is_grad_enabled() and is_large(left, right.numel())
    return _linear(left, right) if ours else th.mm(left, right.t())


class _Layer(th.autograd.Function):
    """One linear layer of every network of an ensemble, with its ReLU; shapes as in :func:`linear`."""

    @staticmethod
    def forward(ctx: Any, relu: bool, weight: th.Tensor, bias: th.Tensor, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        outputs = _forward(relu, weight, bias, inputs)
        ctx.relu, ctx.n_networks = relu, len(inputs)
        ctx.save_for_backward(weight, *inputs, *(outputs if relu else ()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        inputs, outputs = saved[: ctx.n_networks], saved[ctx.n_networks :]
        if ctx.relu:
            grads = tuple(th.ops.aten.threshold_backward(grad, output, 0) for grad, output in zip(grads, outputs, strict=True))
        # The actor loss asks for no gradient of the critics' weights, although these require one.
        for_weight, for_bias, *for_inputs = torch_internals.wanted(node for node, _ in ctx.next_functions)
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
    networks = zip(inputs, weight.transpose(1, 2).unbind(), bias.squeeze(1).unbind(), strict=True)
    outputs = tuple(_linear(*network) for network in networks)
    return tuple(map(th.relu_, outputs)) if relu else outputs


def _weight_gradient(inputs: Sequence[th.Tensor], grads: Sequence[th.Tensor], transposed: bool) -> th.Tensor:
    """xᵀg of every network, with the strides of the weights, which may be transposed ones."""
    pairs = [(values.t(), grad.t()) for values, grad in zip(inputs, grads, strict=True)]
    if transposed:
        return th.stack([_multiply(grad, values) for values, grad in pairs]).transpose(1, 2)
    return th.stack([_multiply(values, grad) for values, grad in pairs])


def linear(inputs: Sequence[th.Tensor], weight: th.Tensor, bias: th.Tensor, relu: bool = False) -> Sequence[th.Tensor]:
    """One linear layer of every network of an ensemble, y_i = x_i W_i + b_i, or ReLU(y_i).

    :param inputs: N tensors (B, in)
    :param weight: (N, in, out)
    :param bias: (N, 1, out)
    :param relu: apply a ReLU
    :return: N tensors (B, out)
    """
    # In a compiled graph matmuls are replaced later.
    if th.compiler.is_compiling() or not is_large(inputs[0], weight.shape[1] * weight.shape[2]):
        results = [th.addmm(*network) for network in zip(bias.unbind(), inputs, weight.unbind(), strict=True)]
        return [result.relu() for result in results] if relu else results
    if not th.is_grad_enabled():
        return _forward(relu, weight, bias, inputs)
    # Of a view PyTorch knows during the backward pass whether its gradient is wanted, of a parameter itself it does not.
    views = [tensor.view_as(tensor) if tensor.is_leaf else tensor for tensor in (weight, bias, *inputs)]
    outputs: Any = _Layer.apply(relu, *views)  # type: ignore[no-untyped-call]  # torch ships it without annotations
    return outputs  # type: ignore[no-any-return]


def replace_large_products(graph: th.fx.Graph) -> None:
    """Let oneDNN compute large matmuls."""
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
            matmul = graph.call_function(th.ops.sb3_softac.linear.default, (left, transposed, bias))
            matmul.meta["val"] = node.meta["val"]
            if added is not None and not is_bias:
                matmul = graph.call_function(aten.add.Tensor, (matmul, added))
                matmul.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(matmul)
        graph.erase_node(node)


def large_products_pass() -> Any:
    """:func:`replace_large_products` as an option of ``torch.compile``; None if this PyTorch does not take it."""
    return torch_internals.onednn_graph_pass(replace_large_products, __file__) if has_operator() else None
