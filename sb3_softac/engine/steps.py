"""A gradient step as it is run: what it is called with, and the same step compiled, or captured in a CUDA graph."""

import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch as th
from torch import nn

from sb3_softac.engine import graphs, matmul, precision, torch_internals
from sb3_softac.engine.group import Group
from sb3_softac.engine.optimizers import OptimizerStep, TensorOptimizers


class UpdateFlags(NamedTuple):
    """What a gradient step updates besides what it always does."""

    actor: bool  # actor and temperature, every `policy_delay`-th step
    targets: bool  # every `target_update_interval`-th step


class Metrics(NamedTuple):
    """What one gradient step reports; the values stay on the device."""

    names: tuple[str, ...]
    values: th.Tensor  # (len(names),)


class Update(Protocol):
    """A gradient step, and what it says of itself."""

    #: whether it computes the same in every step, by tensor operations alone
    compilable: bool
    #: the ranks that do it together, or None
    group: Group | None

    @property
    def settings(self) -> Hashable:
        """All options that the step holds as constants."""

    @property
    def device(self) -> th.device:
        """Where it computes."""

    @property
    def precision(self) -> precision.Precision:
        """Of its large matmuls."""

    def modules(self) -> Sequence[nn.Module]:
        """Everything with weights that it reads or writes."""

    def optimizers(self, flags: UpdateFlags) -> Sequence[th.optim.Optimizer]:
        """The optimizers that a step uses."""

    def obstacle(self) -> str | None:
        """Why it can run in eager mode only, or None."""

    def refresh(self) -> None:
        """Called where its modules have changed since it ran."""

    def numbers(self) -> Any:
        """A named tuple of the floats that may change in every step."""

    def draw_noise(self, batch_size: int, flags: UpdateFlags) -> Any:
        """A named tuple of the random tensors of a step; None for those that it draws by itself."""

    def __call__(self, batch: Any, noise: Any, flags: UpdateFlags, numbers: Any, optimizer_step: OptimizerStep) -> Metrics:
        """One gradient step. Noise may be None: all is then drawn inside."""


BuiltStep: TypeAlias = Callable[[Any, Any], Metrics]


def _run(update: Update, batch: Any, noise: Any, flags: UpdateFlags, numbers: Any, optimizer_step: OptimizerStep) -> Metrics:
    return update(batch, noise, flags, numbers, optimizer_step)


def call(update: Update, batch: Any, noise: Any, flags: UpdateFlags, numbers: Any, optimizer_step: OptimizerStep) -> Metrics:
    """One gradient step as it is, in eager mode or while it is captured."""
    with precision.products_in(update.precision):
        return update(batch, noise, flags, numbers, optimizer_step)


def products_pass(update: Update) -> Any:
    """What replaces matmuls in the graph of a compiled step, or None.

    :raises RuntimeError: this PyTorch takes no such pass, and matmuls were to have another precision
    """
    if update.precision != "float32":
        replacement = torch_internals.graph_pass(precision.lower_products, precision.__file__)
        if replacement is None:
            raise RuntimeError(f"PyTorch {th.__version__} takes no pass that would lower the precision of matmuls")
        return replacement
    on_cpu = update.device.type == "cpu"
    return matmul.large_products_pass() if on_cpu and matmul.ONEDNN_IS_FASTER else None


class CompiledStep:
    """The gradient step as one graph of ``torch.compile``; its first call compiles."""

    def __init__(self, update: Update, flags: UpdateFlags, numbers: Any, optimizer_step: TensorOptimizers) -> None:
        torch_internals.look_up_all()
        # The engine watches whatever could change. PyTorch would look at every attribute of every module in each call;
        # without that, each compiled step needs a code object of its own.
        own = FunctionType(_run.__code__.replace(), globals())
        options: dict[str, Any] = {
            "fallback_random": True,  # with PyTorch's own random numbers dropout draws the same masks as in eager mode
            "guard_filter_fn": th.compiler.skip_all_guards_unsafe,
            "size_asserts": False,
        }
        if update.device.type == "cpu":
            options["cpp_wrapper"] = sys.platform == "linux"  # what starts the kernels is compiled, too; elsewhere it may fail
        replacement = products_pass(update)
        if replacement is not None:
            options["post_grad_custom_post_pass"] = replacement
        compiled = th.compile(own, fullgraph=True, dynamic=False, options=options)
        self.step: BuiltStep = lambda batch, noise: compiled(update, batch, noise, flags, numbers, optimizer_step)
        self.has_run = False

    def __call__(self, batch: Any, noise: Any) -> Metrics:
        if self.has_run:
            return self.step(batch, noise)
        with graphs.BUILD_LOCK, torch_internals.tracing_gradients(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own code
            metrics = self.step(batch, noise)
        self.has_run = True
        return metrics


class CapturedStep:
    """The gradient step as one CUDA graph, on inputs of its own.

    :param step: the step to capture
    :param batch: a batch of the right shapes
    :param noise: noise of the right shapes
    :param tensors: all else that the step reads and writes
    """

    def __init__(self, step: BuiltStep, batch: Any, noise: Any, tensors: Iterable[th.Tensor]) -> None:
        self.step = step  # a compiled one owns tensors that the graph uses
        self.batch, self.noise = graphs.clone_inputs(batch), graphs.clone_inputs(noise)
        self.addresses = graphs.MemoryAddresses(tensors)
        self.names: tuple[str, ...] = ()

        def function() -> th.Tensor:
            self.names, values = step(self.batch, self.noise)
            return values

        self.graph = graphs.CudaGraph(function, batch.rewards.device)

    def __call__(self, batch: Any, noise: Any) -> Metrics:
        graphs.overwrite_inputs(self.batch, batch)
        graphs.overwrite_inputs(self.noise, noise)
        return Metrics(self.names, self.graph.replay().clone())


class StepState:
    """A copy of everything that a gradient step changes, to put it back after one that failed half-way."""

    def __init__(self, update: Update, optimizers_now: Sequence[th.optim.Optimizer]) -> None:
        tensors = [*tensors_of(update)]
        tensors += [v for o in optimizers_now for s in o.state.values() for v in s.values() if isinstance(v, th.Tensor)]
        self.copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.device = update.device
        self.rng = th.get_rng_state()
        self.cuda_rng = th.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    @th.no_grad()
    def restore(self) -> None:
        for tensor, copy in self.copies:
            tensor.copy_(copy)
        th.set_rng_state(self.rng)
        if self.cuda_rng is not None:
            th.cuda.set_rng_state(self.cuda_rng, self.device)


def tensors_of(update: Update) -> list[th.Tensor]:
    return [tensor for module in update.modules() for tensor in (*module.parameters(), *module.buffers())]
