"""Three ways to run the same gradient step: eager, compiled, or captured in a CUDA graph.

An update is written once, as a function of tensors; an :class:`Engine` decides how it runs. It belongs to the running
process, not to the model: it is neither saved nor copied. It knows of an update what :class:`Update` says, and of its
networks what :class:`ModuleGuards` sees; when that changes it builds the step again.
"""

import os
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeAlias

import torch as th

from sb3_softac.engine import graphs, optimizers, torch_internals
from sb3_softac.engine.allocator import keep_freed_memory
from sb3_softac.engine.group import Group
from sb3_softac.engine.guards import ModuleGuards, obstacle_in, tensor_hook_in
from sb3_softac.engine.optimizers import OptimizerStep, TensorOptimizers
from sb3_softac.engine.steps import (
    BuiltStep,
    CapturedStep,
    CompiledStep,
    Metrics,
    StepState,
    Update,
    UpdateFlags,
    call,
    tensors_of,
)

Compile: TypeAlias = Literal["auto"] | bool

#: gradient steps from which on compiling, which takes 15 to 60 seconds, pays off; see docs/benchmarks.md
WORTH_COMPILING = 20_000
#: gradient steps that run eagerly where optimizers have no state yet
WARM_UP = 1
#: the same before a capture, during which libraries must not allocate what they need at first use
CAPTURE_WARM_UP = 3
#: after so many builds of one kind of step, it is run eagerly: something changes again and again
MOST_BUILDS = 5


def missing_for_compilation(device: th.device) -> str | None:
    """What ``torch.compile`` needs on this machine and does not find, or None."""
    if not torch_internals.can_trace_gradients():
        return f"PyTorch 2.11 or newer, and this is {th.__version__}"
    if device.type == "cuda":
        return None  # triton comes with PyTorch; whether it works shows at the first call
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"] + ["cl"] * (sys.platform == "win32")
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"a C++ compiler on PATH ({' or '.join(compilers)})"
    return None


def why_only_eager(update: Update) -> str | None:
    """Why the step can be neither compiled nor captured, or None."""
    obstacle = update.obstacle() or tensor_hook_in(module for root in update.modules() for module in root.modules())
    if obstacle is not None:
        return obstacle
    for optimizer in update.optimizers(UpdateFlags(actor=True, targets=True)):
        if not optimizers.can_replace(optimizer):
            return (
                f"the optimizer {type(optimizer).__name__}, with its options, is none of Adam, AdamW (without amsgrad) and "
                "SGD (without momentum), or it has hooks"
            )
    return None


def why_ask_first(update: Update) -> str | None:
    """What might do in every step what a graph would do only once, or None; ``compile=True`` says that nothing does."""
    obstacle = obstacle_in(module for root in update.modules() for module in root.modules())
    if obstacle is None and not update.compilable:
        obstacle = f"{type(update).__name__} says `compilable = False`"
    return obstacle and f"{obstacle}; compile=True compiles it all the same"


class _CachedStep:
    """One kind of gradient step, by its flags and the shapes of its batch."""

    def __init__(self) -> None:
        self.n_warm_up = 0
        self.optimizer_step: TensorOptimizers | None = None
        self.step: BuiltStep | None = None


class Engine:
    """Runs the gradient steps of one update, or of the one that replaces it."""

    def __init__(self) -> None:
        self.decided = False
        self.compiles = False
        self.captures = False
        #: gradient steps that have run, and how many of the fast kinds of step have been built
        self.n_steps = 0
        self.n_builds = 0
        #: tells the user what takes long
        self.announce: Callable[[str], None] | None = None
        self._failed = False
        self._cannot_compile = False
        self._asks_first = True
        self._forget()

    def _forget(self) -> None:
        """Drop everything that was built."""
        self._update: Update | None = None
        self._settings: Hashable = None
        self._guards: ModuleGuards | None = None
        self._cached: dict[Any, _CachedStep] = {}
        self._builds: Counter[Any] = Counter()
        self._numbers: Any = None
        self._number_tensors: Any = None

    def reset(self) -> None:
        """Drop everything that was built, and decide again."""
        self.decided = False
        self._forget()

    def decide(self, update: Update, compile: Compile, planned: int | None) -> str:
        """Choose how the gradient steps to come are run.

        :param update: the gradient step
        :param compile: the user's choice
        :param planned: number of gradient steps to come, or None if it is unknown
        :return: what was chosen and why, in words
        """
        if update.device.type == "cpu":
            keep_freed_memory()
        before = self.compiles, self.captures
        self._asks_first = compile == "auto"
        obstacle = why_only_eager(update) or (why_ask_first(update) if self._asks_first else None)
        if compile is False:
            obstacle = "compile=False"
        elif self._failed:
            obstacle = "it failed before"
        self.compiles, reason = (False, obstacle) if obstacle else self._whether_to_compile(update, compile, planned)
        group = update.group
        if group is not None and not group.all_agree(self.compiles) and self.compiles:
            self.compiles, reason = False, "another rank does not compile"
        self.captures = update.device.type in graphs.CAPTURING and obstacle is None and group is None
        if before != (self.compiles, self.captures):
            self._forget()
        self.decided = True
        way = "compiled" if self.compiles else "eager"
        return f"{way} and captured in a CUDA graph ({reason})" if self.captures else f"{way} ({reason})"

    def _whether_to_compile(self, update: Update, compile: Compile, planned: int | None) -> tuple[bool, str]:
        if self._cannot_compile:
            return False, "compiling failed before"
        reason = "compile=True"
        if compile == "auto":
            if planned is None and self.n_steps < WORTH_COMPILING:
                return False, "how many gradient steps will follow is not known"
            # What has run counts, too: whoever trains in many short calls goes on doing so.
            steps = self.n_steps + (planned or 0)
            reason = f"{steps:,} gradient steps done and to come; compiling pays off from {WORTH_COMPILING:,}"
            if steps < WORTH_COMPILING:
                return False, reason
        missing = missing_for_compilation(update.device)  # last: it loads the compiler
        return missing is None, reason if missing is None else f"compiling needs {missing}"

    def prepare(self, update: Update) -> None:
        """Look at everything that may have changed since the last call; done before a number of steps."""
        guards = self._guards
        if update is not self._update or update.settings != self._settings or guards is None or not guards.hold():
            fast = self.decided and (self.compiles or self.captures)
            if fast and (why_only_eager(update) or (self._asks_first and why_ask_first(update))):
                self.decided = False  # such as a hook that no graph would call
                return
            for cached in self._cached.values():
                cached.step = None
            update.refresh()
            self._update, self._settings = update, update.settings
            self._guards = ModuleGuards(update.modules())
        numbers = update.numbers()
        if numbers != self._numbers:
            self._numbers = numbers
            self._fill(numbers)

    def _fill(self, numbers: Any) -> None:
        """Write the numbers of the step to the device; compiled and captured steps read them there."""
        if not (self.compiles or self.captures):
            return
        if self._number_tensors is None or type(self._number_tensors) is not type(numbers):
            device = self._update.device if self._update is not None else None
            self._number_tensors = type(numbers)(*[th.tensor(number, dtype=th.float32, device=device) for number in numbers])
        for tensor, number in zip(self._number_tensors, numbers, strict=True):
            tensor.fill_(number)

    def run(self, batch: Any, flags: UpdateFlags) -> Metrics:
        """Do one gradient step of the update that was prepared.

        :param batch: named tuple of tensors, or dicts of tensors
        :param flags: what it updates
        """
        update = self._update
        assert update is not None, "prepare() comes first"
        self.n_steps += 1
        cached = self._cached.setdefault((flags, tuple(map(_layout, batch))), _CachedStep())
        optimizers_now = update.optimizers(flags)
        n_warm_up = CAPTURE_WARM_UP if self.captures else 0
        if not all(map(optimizers.has_begun, optimizers_now)):
            cached.n_warm_up, n_warm_up = 0, max(n_warm_up, WARM_UP)
        if cached.n_warm_up < n_warm_up:
            cached.n_warm_up += 1
            return self._warm_up(update, batch, flags)
        if not (self.compiles or self.captures) or th.is_autocast_enabled(update.device.type):
            return call(update, batch, None, flags, self._numbers, self._eager_step(cached, optimizers_now))
        noise = update.draw_noise(len(batch.rewards), flags)
        step = self._usable_step(cached, optimizers_now)
        if step is not None:
            return step(batch, noise)
        before = StepState(update, optimizers_now)
        if update.group is not None:
            return self._run_together(update.group, cached, update, batch, noise, flags, before)
        try:  # compilers fail in many ways, and memory may end in the middle of the first step
            return self._run_first(self._build(cached, update, batch, noise, flags, optimizers_now), batch, noise)
        except Exception as error:
            before.restore()
            self._give_up(error)
            # fails again if the step itself is at fault
            return call(update, batch, noise, flags, self._numbers, optimizers.step)

    def _run_together(
        self, group: Group, cached: _CachedStep, update: Update, batch: Any, noise: Any, flags: UpdateFlags, before: StepState
    ) -> Metrics:
        """The first of a kind of step on several ranks: each compiles and tries it by itself; all use it, or none does."""
        failure: Exception | None = None
        try:
            with group.silent():
                self._run_first(self._build(cached, update, batch, noise, flags, update.optimizers(flags)), batch, noise)
        except Exception as error:  # as in `run`
            failure = error
        before.restore()
        if group.all_agree(failure is None):
            assert cached.step is not None, "it has just been built"
            return cached.step(batch, noise)
        self._give_up(failure or RuntimeError("another rank could not do it"))
        return call(update, batch, noise, flags, self._numbers, optimizers.step)

    def _run_first(self, step: BuiltStep, batch: Any, noise: Any) -> Metrics:
        """The first call of a step, which compiles it."""
        if self.announce is None or not isinstance(step, CompiledStep):
            return step(batch, noise)
        self.announce("Compiling the gradient step, which takes 15 to 60 seconds ...")
        start = time.perf_counter()
        metrics = step(batch, noise)
        self.announce(f"Compiled the gradient step in {time.perf_counter() - start:.1f} s")
        return metrics

    def _warm_up(self, update: Update, batch: Any, flags: UpdateFlags) -> Metrics:
        def step() -> Metrics:
            return call(update, batch, None, flags, self._numbers, optimizers.step)

        metrics: Metrics = graphs.warm_up(update.device, step) if self.captures else step()
        return metrics

    def _give_up(self, error: Exception) -> None:
        """Go on in the next best way: what cannot be compiled may still be captured."""
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
        self._cached.clear()
        if self.compiles and self.captures:
            self.compiles, self._cannot_compile = False, True
            self._builds.clear()
            warnings.warn(
                f"The gradient step could not be compiled: {reason}. It is captured in a CUDA graph as it is.", stacklevel=2
            )
            return
        self.compiles = self.captures = False
        self._failed = True
        warnings.warn(
            f"The gradient step could not be compiled or captured: {reason}. It runs in eager mode from now on.", stacklevel=2
        )

    @staticmethod
    def _eager_step(cached: _CachedStep, optimizers_now: Sequence[th.optim.Optimizer]) -> OptimizerStep:
        """The optimizers themselves, or what they compute, without the overhead of ``step()``."""
        if cached.optimizer_step is None or not cached.optimizer_step.follow(optimizers_now):
            cached.optimizer_step = None
            if all(map(optimizers.can_replace_in_eager_mode, optimizers_now)):
                cached.optimizer_step = TensorOptimizers(optimizers_now, "eager")
        return cached.optimizer_step or optimizers.step

    def _usable_step(self, cached: _CachedStep, optimizers_now: Sequence[th.optim.Optimizer]) -> BuiltStep | None:
        """The step that was built before, if everything is still as it was then."""
        step = cached.step
        if step is None or cached.optimizer_step is None or not cached.optimizer_step.follow(optimizers_now):
            return None
        if isinstance(step, CapturedStep):
            return step if step.addresses.hold() else None
        return None if self.captures else step

    def _build(
        self,
        cached: _CachedStep,
        update: Update,
        batch: Any,
        noise: Any,
        flags: UpdateFlags,
        optimizers_now: Sequence[th.optim.Optimizer],
    ) -> BuiltStep:
        """The step in the way that was decided. One that is compiled and captured runs once in between."""
        compiled = cached.step if isinstance(cached.step, CompiledStep) else None
        optimizer_step = cached.optimizer_step
        if compiled is None or optimizer_step is None or not optimizer_step.follow(optimizers_now):
            self._count_build((flags, tuple(map(_layout, batch))))
            if not all(map(optimizers.can_replace, optimizers_now)):
                raise RuntimeError("an optimizer has options or hooks that only its own step knows")
            optimizer_step = TensorOptimizers(optimizers_now, "compiled" if self.compiles else "captured")
            cached.optimizer_step, cached.step = optimizer_step, None
            if self.compiles:
                cached.step = CompiledStep(update, flags, self._number_tensors, optimizer_step)
                return cached.step
        step_in_use, numbers = optimizer_step, self._number_tensors
        step: BuiltStep = compiled or (lambda batch, noise: call(update, batch, noise, flags, numbers, step_in_use))
        cached.step = CapturedStep(step, batch, noise, tensors_of(update))
        return cached.step

    def _count_build(self, kind: Any) -> None:
        self.n_builds += 1
        self._builds[kind] += 1
        if self._builds[kind] > MOST_BUILDS:
            raise RuntimeError("something that it holds as a constant changes again and again")


def _layout(value: Any) -> Any:
    """What a step may rely on of one field of a batch."""
    if isinstance(value, dict):
        return tuple((name, _layout(value[name])) for name in sorted(value))
    return None if value is None else (value.shape, value.stride(), value.dtype)
