"""Every private name of PyTorch that this package uses, each behind one function with a public fallback.

PyTorch may rename or remove them in any release. What is gone costs speed and one warning, never a result: a function that
asks whether something stands in the way of a shortcut then answers yes.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th
from torch import nn

#: what was found, by path; a plain dict, because the compiler looks into it while it traces a step
_FOUND: dict[str, Any] = {}


def _private(path: str, instead: str) -> Any:
    """The object at ``path`` below ``torch``, or None with one warning if this PyTorch has none.

    :param path: dotted path
    :param instead: what is done without it, for the warning
    """
    if path not in _FOUND:
        _FOUND[path] = _look_up(path, instead)
    return _FOUND[path]


def _look_up(path: str, instead: str) -> Any:
    parent, _, name = path.rpartition(".")
    try:
        try:
            return getattr(importlib.import_module(f"torch.{parent}" if parent else "torch"), name)
        except ModuleNotFoundError:  # an object with attributes, such as a namespace of operators
            return functools.reduce(getattr, path.split("."), th)
    except (AttributeError, ImportError):
        warnings.warn(f"PyTorch {th.__version__} has no torch.{path}: {instead}.", stacklevel=5)
        return None


def look_up_all() -> None:
    """Look up what a step uses before a compiler traces it: it could not follow the import of modules."""
    some = [th.zeros(1)]
    lerp_all(some, some, 0.5)
    copy_all(some, some)
    wanted([])
    has_global_hooks()
    has_function_transforms()
    functional_adam()
    onednn_linear()


def forget() -> None:
    """Look everything up again, for a PyTorch that has changed meanwhile."""
    _FOUND.clear()


# --- many tensors in one call ------------------------------------------------------------------------------------------


def may_update_together(tensors: Sequence[th.Tensor]) -> bool:
    """Whether one call may update all of these in place.

    Not in a step that is compiled for a GPU: there PyTorch 2.11 reads biases after such a call where it should before, so
    that the temperature's gradient and the metrics see the actor of the next step; or it stops with an assertion where it
    would reorder the loops of such a call.
    """
    return not (th.compiler.is_compiling() and any(tensor.device.type == "cuda" for tensor in tensors))


def lerp_all(targets: Sequence[th.Tensor], sources: Sequence[th.Tensor], weight: float | th.Tensor) -> None:
    """target ← target + weight·(source − target) for each pair, in place; exact for the weights 0 and 1.

    :param targets: tensors to move
    :param sources: as many tensors of the same shapes
    :param weight: in [0, 1]; a tensor () where it may change after the call was compiled or captured
    """
    foreach = None if isinstance(weight, th.Tensor) else _private("_foreach_lerp_", "target networks are updated one by one")
    if foreach is not None and may_update_together(targets):
        foreach(targets, sources, weight)
        return
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, weight.to(target.dtype) if isinstance(weight, th.Tensor) else weight)


def copy_all(targets: Sequence[th.Tensor], sources: Sequence[th.Tensor]) -> None:
    """target ← source for each pair, in place."""
    foreach = _private("_foreach_copy_", "buffers of target networks are copied one by one")
    if foreach is not None and may_update_together(targets):
        foreach(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


# --- hooks -------------------------------------------------------------------------------------------------------------

MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hook_dicts(module: nn.Module) -> list[dict[Any, Any]] | None:
    """The dicts in which ``module`` keeps its hooks, or None if they are not where they used to be."""
    found = [getattr(module, name, None) for name in MODULE_HOOKS]
    return None if any(hooks is None for hooks in found) else found  # type: ignore[return-value]  # no None is left


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules calls something besides its own code."""
    return any(hooks is None or any(hooks) for hooks in map(hook_dicts, modules))


def has_global_hooks() -> bool:
    """Whether every module calls something besides its own code."""
    asked: Any = _private("nn.modules.module._has_any_global_hook", "layers are called one by one")
    return True if asked is None else bool(asked())


def has_tensor_hooks(tensors: Iterable[th.Tensor]) -> bool:
    """Whether the gradient of one of the tensors is passed through a user-defined function."""
    return any(getattr(tensor, "_backward_hooks", True) for tensor in tensors)


def has_step_hooks(optimizer: th.optim.Optimizer) -> bool:
    """Whether something is called before or after each step of ``optimizer``."""
    return any(getattr(optimizer, f"_optimizer_step_{when}_hooks", True) for when in ("pre", "post"))


# --- automatic differentiation -----------------------------------------------------------------------------------------


def wanted(nodes: Iterable[Any]) -> list[bool]:
    """For each node of the graph, during a backward pass: whether its gradient is asked for; True if PyTorch does not say."""
    asked: Any = _private("_C._will_engine_execute_node", "all gradients of large layers are computed, wanted or not")
    return [node is not None and (asked is None or bool(asked(node))) for node in nodes]


def has_function_transforms() -> bool:
    """Whether the code runs inside ``torch.func``, which would not look into a custom function."""
    asked: Any = _private("_C._are_functorch_transforms_active", "layers are called one by one")
    return True if asked is None else bool(asked())


# --- optimizers --------------------------------------------------------------------------------------------------------


def functional_adam() -> Callable[..., None] | None:
    """Adam's step as a function of tensors, or None."""
    function: Any = _private("optim.adam.adam", "optimizers do their own steps")
    return function  # type: ignore[no-any-return]


def _dispatch_mode() -> Any:
    return _private("utils._python_dispatch.TorchDispatchMode", "no matmuls in bfloat16")


def can_intercept() -> bool:
    """Whether :func:`intercepting` works with this PyTorch."""
    return _dispatch_mode() is not None


def intercepting(call: Callable[[Any, Any, Any], Any]) -> AbstractContextManager[Any]:
    """Within it ``call(function, args, kwargs)`` takes the place of each operator, those of backward passes too."""

    class Mode(_dispatch_mode()):  # type: ignore[misc]  # known only at run time
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return call(function, args, kwargs or {})

    return Mode()


def has_bfloat16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 numbers; others would do so in float32, slowly."""
    avx512: Any = _private("cpu._is_avx512_bf16_supported", "no matmuls in bfloat16")
    amx: Any = _private("cpu._is_amx_tile_supported", "no matmuls in bfloat16")
    return any(asked is not None and asked() for asked in (avx512, amx))


# --- oneDNN ------------------------------------------------------------------------------------------------------------


def onednn_linear() -> Any:
    """oneDNN's x·Wᵀ + b as an operator, or None."""
    operator = _private("ops.mkldnn._linear_pointwise", "PyTorch's own matmuls are used")
    return None if operator is None else operator.default


def onednn_graph_pass(replace: Callable[[th.fx.Graph], None], source: str) -> Any:
    """``replace`` as an option of ``torch.compile`` that runs on each graph, or None if this PyTorch does not take it.

    :param replace: puts the operator ``sb3_softac::linear`` into a graph
    :param source: as in :func:`graph_pass`
    """
    call = onednn_linear()
    try:
        from torch._inductor import ir, lowering  # here: they load the compiler

        fall_back: Any = lowering.fallback_handler
        register: Any = lowering.register_lowering
    except (ImportError, AttributeError):
        return None
    if call is None:
        return None
    call_onednn = fall_back(call, add_to_fallback_set=False)

    @register(th.ops.sb3_softac.linear.default, type_promotion_kind=None)  # type: ignore[untyped-decorator]
    def lower(left: Any, right: Any, bias: Any) -> Any:
        # oneDNN takes the second factor as it lies in memory. It would copy a transposed first one, slowly: the loop that
        # makes that factor can write it in order.
        return call_onednn(ir.ExternKernel.require_contiguous(left), right, bias, "none", [], "")

    return graph_pass(replace, source)


def graph_pass(replace: Callable[[th.fx.Graph], None], source: str) -> Any:
    """``replace`` as an option of ``torch.compile`` that runs on each graph, or None if this PyTorch does not take it.

    :param source: file whose text tells this pass from another one in the compiler's cache
    """
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
    except (ImportError, AttributeError):
        return None

    class Replacement(CustomGraphPass):
        def __call__(self, graph: th.fx.Graph) -> None:
            replace(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((source,))

    return Replacement()


# --- the compiler ------------------------------------------------------------------------------------------------------


def can_trace_gradients() -> bool:
    """Whether ``torch.compile`` can put ``th.autograd.grad`` and optimizer steps into one graph, without guards."""
    config = _dynamo_config()
    return hasattr(config, "trace_autograd_ops") and hasattr(th.compiler, "skip_all_guards_unsafe")


def _dynamo_config() -> Any:
    try:
        return th._dynamo.config
    except (AttributeError, ImportError):
        return None


def tracing_gradients() -> AbstractContextManager[Any]:
    """Settings of the compiler under which gradients become part of a graph, and a process may hold many graphs."""
    config = _dynamo_config()
    settings: dict[str, Any] = {"trace_autograd_ops": True, "recompile_limit": 256, "accumulated_recompile_limit": 4096}
    return nullcontext() if config is None else config.patch(settings)
