"""Large matrix products by oneDNN, where that is faster than what PyTorch uses.

PyTorch's builds for x86 multiply float32 matrices with MKL, which on AMD processors with AVX-512 reaches half of what they can
do; oneDNN, a part of the same builds, reaches all of it. ``benchmarks/speed.py`` measures both.
"""

import functools
import os
import platform
from pathlib import Path
from typing import Any

import torch as th

#: products with a smaller dimension gain nothing
SMALLEST = 100


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and PyTorch has oneDNN; ``SB3_SOFTAC_NO_ONEDNN=1`` says no."""
    has_onednn: Any = th.backends.mkldnn.is_available
    if os.environ.get("SB3_SOFTAC_NO_ONEDNN") or not has_onednn():
        return False
    information = Path("/proc/cpuinfo")
    vendor = information.read_text() if information.exists() else platform.processor()
    return "AuthenticAMD" in vendor and th.backends.cpu.get_cpu_capability() == "AVX512"


def _mm(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """(m, k) times (k, n)."""
    # A linear layer without bias: its weight is the second factor, transposed.
    result: th.Tensor = th.ops.mkldnn._linear_pointwise.default(left, right.t(), None, "none", [], "")
    return result


def _bmm(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """(N, m, k) times (N, k, n)."""
    result = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    for target, first, second in zip(result.unbind(), left.unbind(), right.unbind(), strict=True):
        target.copy_(_mm(first, second))
    return result


# As operators of their own the products can stand in a compiled graph.
_make_library: Any = th.library.Library  # torch ships it without annotations
_LIBRARY = _make_library("sb3_softac", "DEF")
_LIBRARY.define("mm(Tensor left, Tensor right) -> Tensor")
_LIBRARY.define("bmm(Tensor left, Tensor right) -> Tensor")
_LIBRARY.impl("mm", _mm, "CPU")
_LIBRARY.impl("bmm", _bmm, "CPU")
_LIBRARY.impl("mm", lambda left, right: left.new_empty(left.shape[0], right.shape[1]), "Meta")
_LIBRARY.impl("bmm", lambda left, right: left.new_empty(*left.shape[:2], right.shape[2]), "Meta")


def _is_large(left: th.Tensor, right: th.Tensor) -> bool:
    return (
        left.dtype == right.dtype == th.float32
        and left.device.type == "cpu"
        and min(left.shape[-2], left.shape[-1], right.shape[-1]) >= SMALLEST
    )


class _Product(th.autograd.Function):
    """A batched product, with gradients of any order."""

    @staticmethod
    def forward(ctx: Any, left: th.Tensor, right: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(left, right)
        return _bmm(left, right)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, th.Tensor | None]:
        left, right = ctx.saved_tensors
        for_left, for_right = ctx.needs_input_grad
        return (
            _product(grad, right.transpose(1, 2)) if for_left else None,
            _product(left.transpose(1, 2), grad) if for_right else None,
        )


_product: Any = _Product.apply  # torch ships it without annotations


def baddbmm(bias: th.Tensor, left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """left·right + bias, batched: (N, m, k), (N, k, n) and (N, 1, n) → (N, m, n)."""
    # In a compiled graph all products are replaced, see below. Otherwise two threads gain more from one call for all N.
    if th.compiler.is_compiling() or th.get_num_threads() > 1 or not onednn_is_faster() or not _is_large(left, right):
        return th.baddbmm(bias, left, right)
    product: th.Tensor = _product(left, right)
    return product + bias


def replace_large_products(graph: th.fx.Graph) -> None:
    """Put oneDNN in the place of large products."""
    aten: Any = th.ops.aten
    added = {aten.addmm.default, aten.baddbmm.default}
    for node in list(graph.nodes):
        if node.target not in added | {aten.mm.default, aten.bmm.default} or node.kwargs:
            continue
        left, right = node.args[-2:]
        if not _is_large(left.meta["val"], right.meta["val"]):
            continue
        batched = left.meta["val"].ndim == 3
        operator: Any = th.ops.sb3_softac.bmm.default if batched else th.ops.sb3_softac.mm.default
        with graph.inserting_before(node):
            product = graph.call_function(operator, (left, right))
            product.meta["val"] = node.meta["val"]
            if node.target in added:
                product = graph.call_function(aten.add.Tensor, (product, node.args[0]))
                product.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def large_products_pass() -> Any:
    """:func:`replace_large_products` as an option of ``torch.compile``."""
    from torch._inductor.custom_graph_pass import CustomGraphPass  # here: it loads the compiler

    class LargeProducts(CustomGraphPass):
        def __call__(self, graph: th.fx.Graph) -> None:
            replace_large_products(graph)

        def uuid(self) -> Any:
            """What tells this pass from another one in the compiler's cache."""
            return f"sb3_softac.products {SMALLEST}".encode()

    return LargeProducts()
