"""A gradient step as an object: networks, a temperature and frozen settings; tensors in, tensors out.

It knows no SB3 algorithm, no logger and no counter. What depends on those comes from outside: the batch, the random numbers,
which of its parts take their turn, and the numbers that may change from step to step. So an engine may run it eagerly,
compile it, or capture it in a CUDA graph.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch as th
from torch import nn

from sb3_softac.engine import Group, Metrics, OptimizerStep, Precision, UpdateFlags, torch_internals
from sb3_softac.engine.optimizers import clip, gradients_of
from sb3_softac.engine.optimizers import step as plain_step
from sb3_softac.replay import Batch
from sb3_softac.update.statistics import batch_norm_layers, batch_statistics
from sb3_softac.update.temperature import LearnedTemperature, Temperature


class Networks(Protocol):
    """What an update needs to know of a policy; it reads the networks at each step, so that they may be replaced."""

    @property
    def device(self) -> th.device:
        """Where they are."""

    def trained_networks(self) -> dict[str, Any]:
        """Networks with an ``optimizer``, by the names of their learning rates."""

    def targets(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """Pairs of an online network and the target that follows it."""


class Numbers(NamedTuple):
    """What may change from one gradient step to the next: floats in eager mode, else tensors () that the engine fills."""

    tau: float  # Polyak coefficient of the targets
    reward_scale: float  # k
    max_grad_norm: float  # ∞ for no clipping
    target_entropy: float  # H̄, in nats
    ent_coef_max: float  # upper bound of α, ∞ for none


@dataclass(frozen=True)
class Settings:
    """What a gradient step holds as constants."""

    #: whether gradients are clipped at all
    clip_gradients: bool = False
    #: of large matmuls
    precision: Precision = "float32"


class Update(ABC):
    """Base class of gradient steps.

    :param networks: the policy
    :param temperature: α
    :param settings: options
    """

    #: whether a step computes the same every time, by tensor operations alone; ``compile="auto"`` compiles no others
    compilable: bool = True
    #: whether it needs target networks
    needs_targets: bool = True
    #: whether targets copy the running statistics of batch normalisation, or move their own in passes of their own
    targets_copy_statistics: bool = True

    def __init__(self, networks: Any, temperature: Temperature, settings: Settings) -> None:
        self.networks = networks
        self.temperature = temperature
        self.settings = settings
        self.tau = 0.005
        self.reward_scale = 1.0
        self.max_grad_norm = math.inf
        #: the ranks that train together, each on a batch of its own; None for this process alone
        self.group: Group | None = None
        self._device: th.device | None = None
        self._target_tensors: tuple[list[th.Tensor], ...] | None = None
        self._batch_norms: dict[int, list[Any]] = {}
        self._projected: dict[int, list[Any]] = {}

    @property
    def device(self) -> th.device:
        """Where it computes; SB3's policies go through all their modules to say so."""
        if self._device is None:
            self._device = self.networks.device
        return self._device

    @property
    def precision(self) -> Precision:
        """Of its large matmuls."""
        return self.settings.precision

    def modules(self) -> Sequence[nn.Module]:
        """Everything with weights that a step reads or writes."""
        return [self.networks, self.temperature]

    def optimizers(self, flags: UpdateFlags) -> Sequence[th.optim.Optimizer]:
        """The optimizers that a step uses."""
        networks = self.networks.trained_networks()
        used = [network.optimizer for name, network in networks.items() if flags.actor or name != "actor"]
        if flags.actor and isinstance(self.temperature, LearnedTemperature):
            used.append(self.temperature.optimizer)
        return used

    def obstacle(self) -> str | None:
        """Why it can run in eager mode only, or None."""
        return None

    def numbers(self) -> Numbers:
        """The numbers of the next step."""
        learned = self.temperature if isinstance(self.temperature, LearnedTemperature) else None
        return Numbers(
            tau=self.tau,
            reward_scale=self.reward_scale,
            max_grad_norm=self.max_grad_norm,
            target_entropy=0.0 if learned is None else learned.target_entropy,
            ent_coef_max=math.inf if learned is None else learned.maximum,
        )

    def refresh(self) -> None:
        """Forget what was looked up in the networks, because some of them have been replaced."""
        self._device = self._target_tensors = None
        self._batch_norms, self._projected = {}, {}

    def batch_statistics(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within it batch normalisation in ``network`` uses the statistics of its batch."""
        layers = self._batch_norms.get(id(network))
        if layers is None:
            layers = self._batch_norms[id(network)] = batch_norm_layers(network)
        return batch_statistics(layers, self.group) if layers else nullcontext()

    def projected_layers(self, network: nn.Module) -> list[Any]:
        """The layers of ``network`` whose weights are projected after each step of its optimizer."""
        layers = self._projected.get(id(network))
        if layers is None:
            layers = [module for module in network.modules() if hasattr(module, "project")]
            self._projected[id(network)] = layers
        return layers

    @abstractmethod
    def draw_noise(self, batch_size: int, flags: UpdateFlags) -> Any:
        """A named tuple of the random tensors of a step, in the order in which they would be drawn inside."""

    @abstractmethod
    def __call__(
        self,
        batch: Batch,
        noise: Any,
        flags: UpdateFlags,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> Metrics:
        """One gradient step.

        :param batch: transitions
        :param noise: what :meth:`draw_noise` returns, or None to draw it inside
        :param flags: what this step updates besides what it always does
        :param numbers: what :meth:`numbers` returns, as floats or as tensors ()
        :param optimizer_step: does the step of an optimizer
        """

    def minimise(self, loss: th.Tensor, network: Any, numbers: Numbers, optimizer_step: OptimizerStep) -> th.Tensor:
        """One optimizer step of ``network`` down ``loss``, ().

        The gradient is taken with respect to the optimizer's own parameters alone, so nothing leaks into another network.

        :return: norm of the gradient before clipping, ()
        """
        gradients = gradients_of(loss, network.optimizer)
        max_norm = numbers.max_grad_norm if self.settings.clip_gradients else None
        norm = self.apply_gradients(network.optimizer, gradients, optimizer_step, max_norm, self.projected_layers(network))
        return norm.to(loss.device)  # that of no gradients at all is on the CPU

    def apply_gradients(
        self,
        optimizer: th.optim.Optimizer,
        gradients: Sequence[th.Tensor | None],
        optimizer_step: OptimizerStep,
        max_norm: float | None = None,
        projected: Sequence[Any] = (),
    ) -> th.Tensor:
        """The one place where gradients enter parameters, those of the temperature included.

        With several ranks all see the mean of their gradients, that of a loss over all batches.

        :param optimizer: owner of the parameters
        :param gradients: one for each of its parameters, None where there is none
        :param optimizer_step: does its step
        :param max_norm: largest Euclidean norm of all gradients together
        :param projected: layers whose weights are put back onto their sphere after the step
        :return: norm of the gradients before clipping, ()
        """
        if self.group is not None:
            gradients = self.group.average(gradients)
        norm, clipped = clip(gradients, max_norm)
        optimizer_step(optimizer, clipped)
        with th.no_grad():
            for layer in projected:
                layer.project()
        return norm

    # --- what several algorithms do ------------------------------------------------------------------------------------

    def update_critics(
        self, batch: Batch, target: Any, numbers: Numbers, optimizer_step: OptimizerStep = plain_step
    ) -> dict[str, th.Tensor]:
        """One optimizer step of all critics towards y, (B,), or the distribution of y."""
        with self.batch_statistics(self.networks.critic):
            outputs = self.networks.critic.outputs(batch.observations, batch.actions)
        return self.fit_critics(outputs, target, numbers, optimizer_step)

    def fit_critics(
        self, outputs: th.Tensor, target: Any, numbers: Numbers, optimizer_step: OptimizerStep = plain_step
    ) -> dict[str, th.Tensor]:
        """One optimizer step of all critics, whose outputs at (s, a) are (N, B, k)."""
        critic = self.networks.critic
        loss = critic.head.loss(outputs, target)
        grad_norm = self.minimise(loss, critic, numbers, optimizer_step)
        q_value = critic.head.expected_value(outputs.detach()).mean()
        metrics = {"critic_loss": loss.detach(), "q_value": q_value, "grad_norm_critic": grad_norm}
        metrics.update(critic.head.target_metrics(target))
        return metrics

    def update_temperature(
        self, pi: Any, numbers: Numbers, optimizer_step: OptimizerStep = plain_step
    ) -> dict[str, th.Tensor]:
        """One step of a learned α towards the target entropy."""

        def apply(optimizer: th.optim.Optimizer, gradients: Any) -> None:
            self.apply_gradients(optimizer, gradients, optimizer_step)

        loss = self.temperature.update(pi.mean_log_prob(), numbers.target_entropy, numbers.ent_coef_max, apply)
        return {} if loss is None else {"ent_coef_loss": loss}

    @th.no_grad()
    def update_targets(self, numbers: Numbers) -> None:
        """θ̄ ← τθ + (1 − τ)θ̄, all parameters in one call."""
        if self._target_tensors is None:
            pairs = list(self.networks.targets())
            # Batch-norm statistics are averages already, see SB3's issue 996: targets copy them.
            copied = pairs if self.targets_copy_statistics else []
            self._target_tensors = (
                [parameter for _, target in pairs for parameter in target.parameters()],
                [parameter for online, _ in pairs for parameter in online.parameters()],
                [buffer for _, target in copied for buffer in batch_norm_buffers(target)],
                [buffer for online, _ in copied for buffer in batch_norm_buffers(online)],
            )
        target, online, target_buffers, online_buffers = self._target_tensors
        if target:
            torch_internals.lerp_all(target, online, numbers.tau)
        if target_buffers:
            torch_internals.copy_all(target_buffers, online_buffers)


def batch_norm_buffers(module: nn.Module) -> list[th.Tensor]:
    """Running means and variances below ``module``."""
    return [buffer for name, buffer in module.named_buffers() if "running_" in name]
