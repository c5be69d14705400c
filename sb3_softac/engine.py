"""Three ways to run the same gradient step: line by line, compiled, or captured in a CUDA graph.

``SoftAC._update`` is written once, as a function of tensors. An :class:`Engine` decides how it runs; it belongs to the
running process, not to the model: it is neither saved nor copied, and rebuilds what it has built when something that was
relied on changes.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch as th

from sb3_softac import graphs, optimizers
from sb3_softac.batches import Batch
from sb3_softac.optimizers import Descend, TensorOptimizers
from sb3_softac.policies import Actor, CategoricalActor

if TYPE_CHECKING:
    from sb3_softac.softac import SoftAC

Compile: TypeAlias = Literal["auto"] | bool

#: gradient steps from which on compiling, which takes about half a minute, pays off; see docs/benchmarks.md
WORTH_COMPILING = 20_000
#: gradient steps of a kind that run line by line: the first creates the states of the optimizers
WARM_UP = 1
#: the same before a capture, during which libraries must not allocate what they need at first use
CAPTURE_WARM_UP = 3


class Turns(NamedTuple):
    """What a gradient step updates besides critics and value network."""

    actor: bool  # actor and temperature, every `policy_delay`-th step
    targets: bool  # every `target_update_interval`-th step


class Noise(NamedTuple):
    """Random numbers of one gradient step; None for those that it does not need, or draws by itself."""

    observations: th.Tensor | None = None  # ε of the actions at s, (B, A)
    next_observations: th.Tensor | None = None  # ε of the actions at s', (B, A)
    members: th.Tensor | None = None  # the critics of the targets, (M,)


DRAWN_INSIDE = Noise()


class Metrics(NamedTuple):
    """What one gradient step reports; the values stay on the device."""

    names: tuple[str, ...]
    values: th.Tensor  # (len(names),)


Step = Callable[[Batch, Noise], Metrics]


def missing_for_compilation(device: th.device) -> str | None:
    """What ``torch.compile`` needs on this machine and does not find, or None."""
    if not (hasattr(th._dynamo.config, "trace_autograd_ops") and hasattr(th.compiler, "skip_all_guards_unsafe")):
        return f"PyTorch 2.11 or newer, and this is {th.__version__}"
    if device.type == "cuda":
        return None  # triton comes with PyTorch; whether it works shows at the first call
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"] + ["cl"] * (sys.platform == "win32")
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"a C++ compiler on PATH ({' or '.join(compilers)})"
    return None


def why_only_eager(model: "SoftAC") -> str | None:
    """What in ``model`` keeps its gradient step from being compiled or captured, or None."""
    if model.use_sde:
        return "gSDE keeps its noise between the steps"
    actor = model.actor
    if type(actor) not in (Actor, CategoricalActor) or {"action_log_prob", "policy_at"} & set(vars(actor)):
        return "the actor is not SoftAC's own"
    for optimizer in _optimizers(model, Turns(actor=True, targets=True)):
        if not TensorOptimizers.can_replace(optimizer):
            return (
                f"the optimizer {type(optimizer).__name__}, with its options, is none of Adam, AdamW (without amsgrad) and "
                "SGD (without momentum)"
            )
    return None


def _optimizers(model: "SoftAC", turns: Turns) -> list[th.optim.Optimizer]:
    """The optimizers that a gradient step uses."""
    owners: list[Any] = [model.critic, model.value_net, *([model.actor, model.temperature] if turns.actor else [])]
    return [owner.optimizer for owner in owners if hasattr(owner, "optimizer")]


def _is_fused(optimizer: th.optim.Optimizer) -> bool:
    return type(optimizer) is th.optim.SGD or all(group["fused"] for group in optimizer.param_groups)


def _constants(model: "SoftAC") -> tuple[Any, ...]:
    """What a compiled or captured step holds as constants, and the user may write."""
    temperature: Any = model.temperature
    networks = (model.actor, model.critic, model.value_net)
    return (
        *(model.tau, model.reward_scale, model.actor_q, model.target_q, model.target_subset, model.max_grad_norm),
        *(getattr(temperature, "target_entropy", None), getattr(temperature, "maximum", None), id(temperature)),
        *((id(network), network is not None and network.training) for network in networks),
    )


def _run(model: "SoftAC", batch: Batch, turns: Turns, noise: Noise, descend: TensorOptimizers) -> Metrics:
    return model._update(batch, turns, noise, descend)


class CompiledStep:
    """The gradient step as one graph of ``torch.compile``; its first call compiles."""

    def __init__(self, model: "SoftAC", turns: Turns, descend: TensorOptimizers) -> None:
        # With PyTorch's own random numbers dropout draws the same masks as line by line.
        # Whatever could change is watched by the engine. PyTorch would look at every attribute of every module in each call;
        # without that, each compiled step needs a code object of its own.
        own = FunctionType(_run.__code__.replace(), globals())
        options: dict[str, Any] = {
            "fallback_random": True,
            "guard_filter_fn": th.compiler.skip_all_guards_unsafe,
            "size_asserts": False,
        }
        compiled = th.compile(own, fullgraph=True, dynamic=False, options=options)
        self.step: Step = lambda batch, noise: compiled(model, batch, turns, noise, descend)
        self.has_run = False

    def __call__(self, batch: Batch, noise: Noise) -> Metrics:
        if self.has_run:
            return self.step(batch, noise)
        # `th.autograd.grad` becomes part of the graph. Each model counts against the limit: there may be many in a process.
        settings: dict[str, Any] = {"trace_autograd_ops": True, "recompile_limit": 256, "accumulated_recompile_limit": 4096}
        with th._dynamo.config.patch(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own code
            metrics = self.step(batch, noise)
        self.has_run = True
        return metrics


class CapturedStep:
    """The gradient step as one CUDA graph, on inputs of its own.

    :param step: the step to capture
    :param batch: a batch of the right shapes
    :param noise: noise of the right shapes
    """

    def __init__(self, step: Step, batch: Batch, noise: Noise) -> None:
        self.batch, self.noise = graphs.copied(batch), graphs.copied(noise)
        self.names: tuple[str, ...] = ()

        def function() -> th.Tensor:
            self.names, values = step(self.batch, self.noise)
            return values

        self.graph = graphs.CudaGraph(function)

    def __call__(self, batch: Batch, noise: Noise) -> Metrics:
        graphs.overwrite(self.batch, batch)
        graphs.overwrite(self.noise, noise)
        return Metrics(self.names, self.graph.replay().clone())


class Variant:
    """One kind of gradient step, by its turns and shapes."""

    def __init__(self) -> None:
        self.n_steps = 0
        self.constants: tuple[Any, ...] = ()
        self.descend: TensorOptimizers | None = None
        self.step: Step | None = None


class Engine:
    """Runs the gradient steps of one model. A copy of the model gets an engine of its own."""

    def __init__(self) -> None:
        self.decided = False
        self.compiles = False
        self.captures = False
        self._failed = False
        self._variants: dict[Any, Variant] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Engine":
        return Engine()

    def __reduce__(self) -> tuple[type["Engine"], tuple[()]]:
        return Engine, ()

    def decide(self, model: "SoftAC", planned: int | None) -> str:
        """Choose the way of the gradient steps to come.

        :param model: the model that is trained
        :param planned: the number of gradient steps to come, or None if nobody knows
        :return: what was chosen and why, in words
        """
        self.decided = True
        self.compiles, reason = self._whether_to_compile(model, planned)
        self.captures = (
            model.device.type in graphs.CAPTURING
            and model.compile is not False
            and not self._failed
            and why_only_eager(model) is None
        )
        way = "compiled" if self.compiles else "eager"
        return f"{way} and captured in a CUDA graph ({reason})" if self.captures else f"{way} ({reason})"

    def _whether_to_compile(self, model: "SoftAC", planned: int | None) -> tuple[bool, str]:
        if model.compile is False:
            return False, "compile=False"
        if self._failed:
            return False, "it failed before"
        obstacle = why_only_eager(model)
        if obstacle is not None:
            return False, obstacle
        reason = "compile=True"
        if model.compile == "auto":
            if planned is None:
                return False, "how many gradient steps will follow is not known"
            reason = f"{planned:,} gradient steps to come; compiling pays off from {WORTH_COMPILING:,}"
            if planned < WORTH_COMPILING:
                return False, reason
        missing = missing_for_compilation(model.device)  # last: it loads the compiler
        return missing is None, reason if missing is None else f"compiling needs {missing}"

    def reset(self) -> None:
        """Forget what was built, and how to run."""
        self.decided = False
        self._variants.clear()

    def run(self, model: "SoftAC", batch: Batch, turns: Turns) -> Metrics:
        """Do one gradient step."""
        variant = self._variants.setdefault((turns, tuple(map(_shapes, batch))), Variant())
        variant.n_steps += 1
        if variant.n_steps <= (CAPTURE_WARM_UP if self.captures else WARM_UP):
            if not self.captures:
                return model._update(batch, turns)
            return graphs.warm_up(model.device, lambda: model._update(batch, turns))  # type: ignore[no-any-return]
        if not (self.compiles or self.captures):
            return model._update(batch, turns, DRAWN_INSIDE, self._eager_descent(variant, model, turns))
        noise = model._draw_noise(len(batch.rewards), turns)
        try:
            return self._step_of(variant, model, batch, turns, noise)(batch, noise)
        except Exception as error:  # compilers fail in many ways, before they have changed anything
            self.compiles = self.captures = False
            self._failed = True
            self._variants.clear()
            metrics = model._update(batch, turns, noise)  # fails again if the step itself is at fault
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"The gradient step could not be compiled or captured and runs line by line: {type(error).__name__}: {reason}",
                stacklevel=2,
            )
            return metrics

    @staticmethod
    def _eager_descent(variant: Variant, model: "SoftAC", turns: Turns) -> Descend:
        """The optimizers themselves, or what they compute, without the overhead of ``step()``."""
        if variant.descend is None or not variant.descend.current():
            candidates = _optimizers(model, turns)
            variant.descend = None
            if all(TensorOptimizers.can_replace(optimizer) and _is_fused(optimizer) for optimizer in candidates):
                variant.descend = TensorOptimizers(candidates, "eager")
        return variant.descend or optimizers.step

    def _step_of(self, variant: Variant, model: "SoftAC", batch: Batch, turns: Turns, noise: Noise) -> Step:
        """The way in which this kind of step runs now."""
        constants = _constants(model)
        if not (variant.descend is not None and variant.descend.current() and variant.constants == constants):
            variant.descend = descend = TensorOptimizers(
                _optimizers(model, turns), "compiled" if self.compiles else "captured"
            )
            variant.constants = constants
            variant.step = None
            if self.compiles:
                variant.step = CompiledStep(model, turns, descend)
                return variant.step
        assert variant.descend is not None
        if self.captures and not isinstance(variant.step, CapturedStep):
            compiled, descend = variant.step, variant.descend
            step = compiled or (lambda batch, noise: model._update(batch, turns, noise, descend))
            variant.step = CapturedStep(step, batch, noise)
        assert variant.step is not None
        return variant.step


def _shapes(value: Any) -> Any:
    return tuple(sorted((name, part.shape) for name, part in value.items())) if isinstance(value, dict) else value.shape
