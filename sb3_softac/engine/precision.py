"""Matmuls in bfloat16: both factors and the result are rounded to it, sums inside of a matmul are float32.

All else stays float32: weights, optimizer states, targets, losses, and matmuls too small to repay the rounding. The same
matmuls are replaced in eager mode, where each operator is looked at as it is called, and in the graph of a compiled step: both
train the same model, up to rounding.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch as th

from sb3_softac.engine import torch_internals

Precision = Literal["float32", "bfloat16"]

#: matmuls of fewer multiplications do not repay the rounding of their factors, and stay in float32
LARGE = 1.5e6


def missing_for(precision: Precision, device: th.device) -> str | None:
    """What matmuls of this precision need and ``device`` has not, or None."""
    if precision == "float32":
        return None
    if not torch_internals.can_intercept():
        return "a PyTorch with TorchDispatchMode"
    if device.type == "cuda":
        return None if th.cuda.is_bf16_supported() else "a GPU that computes in bfloat16"
    if device.type == "cpu" and torch_internals.has_bfloat16_instructions():
        return None
    return "a processor with AVX512-BF16 or AMX, or a GPU that computes in bfloat16"


def is_lowered(left: th.Tensor, right: th.Tensor) -> bool:
    """Whether the matmul of (m, k) and (k, n), or of a batch of these, is computed in bfloat16."""
    n_multiplications = left.shape[-2] * left.shape[-1] * right.shape[-1]
    return n_multiplications >= LARGE and left.dtype == right.dtype == th.float32


@functools.cache
def _matmuls() -> dict[Any, int]:
    """Operators that multiply matrices, with the place of the first factor among their arguments."""
    aten: Any = th.ops.aten
    return {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    """Call an operator, a large matmul in bfloat16."""
    first = _matmuls().get(function)
    if first is not None and not kwargs and is_lowered(args[first], args[first + 1]):
        matmul = args[first].bfloat16() @ args[first + 1].bfloat16()
        return matmul.float() if first == 0 else matmul.float() + args[0]
    if function is torch_internals.onednn_linear() and is_lowered(args[0], args[1].t()):
        matmul = (args[0].bfloat16() @ args[1].t().bfloat16()).float()
        return matmul if args[2] is None else matmul + args[2]
    return function(*args, **kwargs)


def products_in(precision: Precision) -> AbstractContextManager[Any]:
    """Within it matmuls have this precision, those of gradients too, in eager mode."""
    return nullcontext() if precision == "float32" else torch_internals.intercepting(_call)


def lower_products(graph: th.fx.Graph) -> None:
    """Let large matmuls of a graph be computed in bfloat16."""
    aten: Any = th.ops.aten
    convert: Any = th.ops.prims.convert_element_type.default
    matmuls = _matmuls()

    def cast(value: Any, dtype: th.dtype) -> Any:
        node = graph.call_function(convert, (value, dtype))
        node.meta["val"] = value.meta["val"].to(dtype)
        return node

    for node in list(graph.nodes):
        first = matmuls.get(node.target)
        if first is None or node.kwargs:
            continue
        left, right = node.args[first], node.args[first + 1]
        if not is_lowered(left.meta["val"], right.meta["val"]):
            continue
        multiply = aten.mm.default if left.meta["val"].ndim == 2 else aten.bmm.default
        with graph.inserting_before(node):
            matmul = graph.call_function(multiply, (cast(left, th.bfloat16), cast(right, th.bfloat16)))
            matmul.meta["val"] = node.meta["val"].to(th.bfloat16)
            matmul = cast(matmul, th.float32)
            if first == 1:
                matmul = graph.call_function(aten.add.Tensor, (matmul, node.args[0]))
                matmul.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(matmul)
        graph.erase_node(node)
