"""Three ways to run the same gradient step: line by line, compiled, or captured in a CUDA graph.

``SoftAC._update`` is written once, as a function of tensors. An :class:`Engine` decides how it runs; it belongs to the
running process, not to the model: it is neither saved nor copied, and rebuilds what it has built when something that was
relied on changes.
"""

import operator
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_softac import graphs, optimizers, products
from sb3_softac.batches import Batch
from sb3_softac.memory import keep_freed_memory
from sb3_softac.optimizers import Descend, TensorOptimizers
from sb3_softac.policies import Actor, CategoricalActor

if TYPE_CHECKING:
    from sb3_softac.softac import SoftAC

Compile: TypeAlias = Literal["auto"] | bool

#: gradient steps from which on compiling, which takes 15 to 60 seconds, pays off; see docs/benchmarks.md
WORTH_COMPILING = 20_000
#: gradient steps of a kind that run line by line: the first creates the states of the optimizers
WARM_UP = 1
#: the same before a capture, during which libraries must not allocate what they need at first use
CAPTURE_WARM_UP = 3
#: how often one kind of step is built before it is taken for one that cannot be
MOST_BUILT = 5
#: features extractors that compute the same in every step
KNOWN_EXTRACTORS = (FlattenExtractor, NatureCNN, CombinedExtractor)


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
    if type(actor) not in (Actor, CategoricalActor) or {"action_log_prob", "policy_at"} & vars(actor).keys():
        return "the actor is not SoftAC's own"
    for optimizer in _optimizers(model, Turns(actor=True, targets=True)):
        if not TensorOptimizers.can_replace(optimizer):
            return (
                f"the optimizer {type(optimizer).__name__}, with its options, is none of Adam, AdamW (without amsgrad) and "
                "SGD (without momentum), or it has hooks"
            )
    return None


def why_ask_first(model: "SoftAC") -> str | None:
    """What in ``model`` is somebody's own, and might do in every step what a graph would do only once; or None.

    ``compile=True`` says that it does not.
    """
    for module in model.policy.modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"a {type(module).__name__} has hooks"
        if isinstance(module, BaseFeaturesExtractor) and type(module) not in KNOWN_EXTRACTORS:
            return f"the features extractor {type(module).__name__} is not known; compile=True takes it"
    replaced = model._replaced_step_methods()
    return f"{replaced[0]} is not SoftAC's own; compile=True takes it" if replaced else None


def _optimizers(model: "SoftAC", turns: Turns) -> list[th.optim.Optimizer]:
    """The optimizers that a gradient step uses."""
    owners: list[Any] = [model.critic, model.value_net, *([model.actor, model.temperature] if turns.actor else [])]
    return [owner.optimizer for owner in owners if hasattr(owner, "optimizer")]


def _is_fused(optimizer: th.optim.Optimizer) -> bool:
    return type(optimizer) is th.optim.SGD or all(group["fused"] for group in optimizer.param_groups)


class Reliance:
    """What a compiled or captured step holds as constants although a user may replace it."""

    def __init__(self, model: "SoftAC") -> None:
        temperature: Any = model.temperature
        networks = (model.actor, model.critic, model.value_net, model.critic_target, model.value_net_target)
        self.objects: tuple[Any, ...] = (*networks, temperature, model._tracked, model._copied)
        self.values = (
            *(model.tau, model.reward_scale, model.actor_q, model.target_q, model.target_subset, model.max_grad_norm),
            *(getattr(temperature, "target_entropy", None), getattr(temperature, "maximum", None)),
            *(getattr(model.actor, name, None) for name in ("log_std_bounds", "log_std_bounding", "log_std_mode")),
            *(network is not None and network.training for network in networks),
        )

    def same(self, other: "Reliance") -> bool:
        """Whether both were made of the same objects and values."""
        identical = len(self.objects) == len(other.objects) and all(map(operator.is_, self.objects, other.objects))
        return identical and self.values == other.values


def _run(model: "SoftAC", batch: Batch, turns: Turns, noise: Noise, descend: TensorOptimizers) -> Metrics:
    return model._update(batch, turns, noise, descend)


class CompiledStep:
    """The gradient step as one graph of ``torch.compile``; its first call compiles."""

    def __init__(self, model: "SoftAC", turns: Turns, descend: TensorOptimizers) -> None:
        # Whatever could change is watched by the engine. PyTorch would look at every attribute of every module in each call;
        # without that, each compiled step needs a code object of its own.
        own = FunctionType(_run.__code__.replace(), globals())
        options: dict[str, Any] = {
            "fallback_random": True,  # with PyTorch's own random numbers dropout draws the same masks as line by line
            "guard_filter_fn": th.compiler.skip_all_guards_unsafe,
            "size_asserts": False,
        }
        if model.device.type == "cpu":
            options["cpp_wrapper"] = sys.platform == "linux"  # what starts the kernels is compiled, too; elsewhere it may fail
            replacement = products.large_products_pass() if products.ONEDNN_IS_FASTER else None
            if replacement is not None:
                options["post_grad_custom_post_pass"] = replacement
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
    :param tensors: all else that the step reads and writes
    """

    def __init__(self, step: Step, batch: Batch, noise: Noise, tensors: Iterable[th.Tensor]) -> None:
        self.step = step  # a compiled one owns tensors that the graph uses
        self.batch, self.noise = graphs.copied(batch), graphs.copied(noise)
        self.addresses = graphs.Addresses(tensors)
        self.names: tuple[str, ...] = ()

        def function() -> th.Tensor:
            self.names, values = step(self.batch, self.noise)
            return values

        self.graph = graphs.CudaGraph(function, batch.rewards.device)

    def __call__(self, batch: Batch, noise: Noise) -> Metrics:
        graphs.overwrite(self.batch, batch)
        graphs.overwrite(self.noise, noise)
        return Metrics(self.names, self.graph.replay().clone())


class Variant:
    """One kind of gradient step, by its turns and shapes."""

    def __init__(self) -> None:
        self.n_warm_up = 0
        self.n_built = 0
        self.reliance: Reliance | None = None
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

    def __reduce__(self) -> tuple[type["Engine"], tuple[()]]:
        return Engine, ()

    def decide(self, model: "SoftAC", planned: int | None) -> str:
        """Choose the way of the gradient steps to come.

        :param model: the model that is trained
        :param planned: the number of gradient steps to come, or None if nobody knows
        :return: what was chosen and why, in words
        """
        if model.device.type == "cpu":
            keep_freed_memory()
        before = self.compiles, self.captures
        obstacle = why_only_eager(model) or (why_ask_first(model) if model.compile == "auto" else None)
        if model.compile is False:
            obstacle = "compile=False"
        elif self._failed:
            obstacle = "it failed before"
        self.compiles, reason = (False, obstacle) if obstacle else self._whether_to_compile(model, planned)
        self.captures = model.device.type in graphs.CAPTURING and obstacle is None
        if before != (self.compiles, self.captures):
            self._variants.clear()
        self.decided = True
        way = "compiled" if self.compiles else "eager"
        return f"{way} and captured in a CUDA graph ({reason})" if self.captures else f"{way} ({reason})"

    @staticmethod
    def _whether_to_compile(model: "SoftAC", planned: int | None) -> tuple[bool, str]:
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
        variant = self._variants.setdefault((turns, tuple(map(_layout, batch))), Variant())
        optimizers_now = _optimizers(model, turns)
        if not all(map(TensorOptimizers.has_begun, optimizers_now)):
            variant.n_warm_up = 0
        if variant.n_warm_up < (CAPTURE_WARM_UP if self.captures else WARM_UP):
            variant.n_warm_up += 1
            if not self.captures:
                return model._update(batch, turns)
            return graphs.warm_up(model.device, lambda: model._update(batch, turns))  # type: ignore[no-any-return]
        if not (self.compiles or self.captures):
            return model._update(batch, turns, DRAWN_INSIDE, self._eager_descent(variant, optimizers_now))
        noise = model._draw_noise(len(batch.rewards), turns)
        step = self._built_step(variant, model, turns, optimizers_now)
        if step is not None:
            return step(batch, noise)
        try:  # compilers fail in many ways, before they have changed anything
            return self._build(variant, model, batch, turns, noise, optimizers_now)(batch, noise)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            self._give_up(f"The gradient step could not be compiled or captured: {type(error).__name__}: {reason}")
            return model._update(batch, turns, noise)  # fails again if the step itself is at fault

    def _give_up(self, reason: str) -> None:
        self.compiles = self.captures = False
        self._failed = True
        self._variants.clear()
        warnings.warn(f"{reason}. It runs line by line from now on.", stacklevel=2)

    @staticmethod
    def _eager_descent(variant: Variant, optimizers_now: list[th.optim.Optimizer]) -> Descend:
        """The optimizers themselves, or what they compute, without the overhead of ``step()``."""
        if variant.descend is None or not variant.descend.current(optimizers_now):
            variant.descend = None
            if all(TensorOptimizers.can_replace(optimizer) and _is_fused(optimizer) for optimizer in optimizers_now):
                variant.descend = TensorOptimizers(optimizers_now, "eager")
        return variant.descend or optimizers.step

    def _built_step(
        self, variant: Variant, model: "SoftAC", turns: Turns, optimizers_now: list[th.optim.Optimizer]
    ) -> Step | None:
        """The step that was built before, if everything is still as it was then."""
        step, reliance = variant.step, variant.reliance
        if step is None or reliance is None or variant.descend is None or not variant.descend.current(optimizers_now):
            return None
        if not reliance.same(Reliance(model)):
            return None
        if isinstance(step, CapturedStep):
            return step if step.addresses.current() else None
        return None if self.captures else step

    def _build(
        self,
        variant: Variant,
        model: "SoftAC",
        batch: Batch,
        turns: Turns,
        noise: Noise,
        optimizers_now: list[th.optim.Optimizer],
    ) -> Step:
        """The step in the way that was decided. Where it is compiled and captured, it runs once in between."""
        compiled = variant.step if isinstance(variant.step, CompiledStep) else None
        descend, reliance = variant.descend, Reliance(model)
        same = variant.reliance is not None and reliance.same(variant.reliance)
        if compiled is None or descend is None or not same or not descend.current(optimizers_now):
            variant.n_built += 1
            if variant.n_built > MOST_BUILT:
                raise RuntimeError("something that it holds as a constant changes again and again")
            if not all(map(TensorOptimizers.can_replace, optimizers_now)):
                raise RuntimeError("an optimizer has options or hooks that only its own step knows")
            descend = TensorOptimizers(optimizers_now, "compiled" if self.compiles else "captured")
            variant.descend, variant.reliance, variant.step = descend, reliance, None
            if self.compiles:
                variant.step = CompiledStep(model, turns, descend)
                return variant.step
        step: Step = compiled or (lambda batch, noise: model._update(batch, turns, noise, descend))
        tensors = [*model.policy.parameters(), *model.policy.buffers(), *model.temperature.parameters()]
        variant.step = CapturedStep(step, batch, noise, tensors)
        return variant.step


def _layout(value: Any) -> Any:
    """What a step may rely on of one field of a batch."""
    if isinstance(value, dict):
        return tuple((name, _layout(value[name])) for name in sorted(value))
    return value.shape, value.stride(), value.dtype
