"""Actions for the collection of experience, without the overhead of ``predict`` and of calling modules for a few rows.

``predict`` costs several times the arithmetic of a small actor. Most actors are perceptrons on flat observations, and for
these a few functions on the same weights do the same; on a GPU one captured graph does. Everything else acts through
``predict``.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_softac import graphs
from sb3_softac.policies import Actor, CategoricalActor, CnnPolicy, MultiInputPolicy, SoftACPolicy

Array = npt.NDArray[Any]


ACTIVATIONS: dict[type[nn.Module], Callable[[th.Tensor], th.Tensor]] = {nn.ReLU: th.relu_, nn.Tanh: th.tanh_}


def _linear(layer: Any, values: th.Tensor) -> th.Tensor:
    """The layer with the weights that it has at this moment, without what calling a module costs."""
    own = layer._parameters
    result: th.Tensor = nn.functional.linear(values, own["weight"], own["bias"])
    return result


class DirectActor:
    """Samples actions as ``policy`` does, from the same random numbers.

    :param policy: one for which :meth:`can_act` holds
    """

    def __init__(self, policy: SoftACPolicy) -> None:
        self.policy = policy
        self.actor: Any = policy.actor
        self.layers: list[nn.Module] = list(self.actor.latent_pi)

    @staticmethod
    def can_act(policy: SoftACPolicy) -> bool:
        """Whether ``policy`` is a perceptron of known layers on flat observations, on the CPU, and nobody's own."""
        actor = policy.actor
        return (
            _is_own_perceptron(policy)
            and policy.device.type == "cpu"
            and all(parameter.dtype == th.float32 for parameter in actor.parameters())
        )

    def __call__(self, observations: Array) -> Array:
        """Sample an action for each observation.

        :param observations: (n, ...)
        :return: (n, A) scaled to [−1, 1], or discrete actions (n,) counted from 0
        """
        # A copy: PyTorch takes no reversed views, and warns of arrays that are read-only. NumPy does no product: its threads
        # and PyTorch's would take each other's processors while they wait for work.
        hidden = th.from_numpy(np.array(observations.reshape(len(observations), -1), dtype=np.float32, order="C"))
        with th.no_grad():
            for layer in self.layers:
                activation = ACTIVATIONS.get(type(layer))
                hidden = _linear(layer, hidden) if activation is None else activation(hidden)
            if isinstance(self.actor, CategoricalActor):
                probabilities = th.softmax(_linear(self.actor.logits, hidden), dim=1)
                return th.multinomial(probabilities, 1).squeeze(1).numpy()
            mean = _linear(self.actor.mu, hidden)
            noise = th.randn(mean.shape)
            return noise.mul_(self._log_std(hidden).exp()).add_(mean).tanh_().numpy()

    def _log_std(self, hidden: th.Tensor) -> th.Tensor:
        actor = self.actor
        raw: th.Tensor = actor.log_std if actor.log_std_mode == "free" else _linear(actor.log_std, hidden)
        low, high = actor.log_std_bounds
        if actor.log_std_bounding == "tanh":
            bounded: th.Tensor = low + 0.5 * (high - low) * (1.0 + th.tanh(raw))
            return bounded
        return raw.clamp(low, high)


class CapturedActor:
    """Samples actions as ``policy`` does, by one CUDA graph between two copies.

    :param policy: one for which :meth:`can_act` holds
    :param n_envs: n, the number of observations in each call
    """

    def __init__(self, policy: SoftACPolicy, n_envs: int) -> None:
        self.policy = policy
        shape, on_gpu = (n_envs, *(policy.observation_space.shape or ())), policy.device.type == "cuda"
        self.staging = th.zeros(shape, dtype=th.float32, device="cpu", pin_memory=on_gpu)
        self.observations = self.staging.to(policy.device, copy=True)
        self.addresses = graphs.Addresses(policy.actor.parameters())
        with th.random.fork_rng([policy.device] if on_gpu else []):  # what is built to act has not acted yet
            graphs.warm_up(policy.device, self._act)
        self.graph = graphs.CudaGraph(self._act, policy.device)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Nothing: a graph stays with its tensors. A copied model acts in SB3's way until it learns."""
        return type(None), ()

    @staticmethod
    def can_act(policy: SoftACPolicy) -> bool:
        """Whether ``policy`` is a perceptron of known layers on flat observations, on a GPU, and nobody's own."""
        return policy.device.type in graphs.CAPTURING and _is_own_perceptron(policy)

    @th.no_grad()
    def _act(self) -> th.Tensor:
        actions: th.Tensor = self.policy.actor(self.observations)
        return actions

    def __call__(self, observations: Array) -> Array:
        """As in ``DirectActor``."""
        if not self.addresses.current():  # somebody gave the weights other memory
            self.addresses = graphs.Addresses(self.policy.actor.parameters())
            self.graph = graphs.CudaGraph(self._act, self.policy.device)
        # The last call ended with a copy to the host: nothing reads the staging any more.
        self.staging.copy_(th.from_numpy(np.array(observations, order="C")))  # a copy, as in `DirectActor`
        self.observations.copy_(self.staging, non_blocking=True)
        actions: Array = self.graph.replay().to("cpu", copy=True).numpy()
        return actions


def _is_own_perceptron(policy: SoftACPolicy) -> bool:
    space, actor = policy.observation_space, policy.actor
    return (
        type(policy) in (SoftACPolicy, CnnPolicy, MultiInputPolicy)
        and type(actor) in (Actor, CategoricalActor)
        and type(actor.features_extractor) is FlattenExtractor
        and not policy.use_sde
        and isinstance(space, spaces.Box)
        and not is_image_space(space)
        and all(type(layer) is nn.Linear or type(layer) in ACTIVATIONS for layer in actor.latent_pi)
        and not any(_has_hooks(module) for module in (policy, *actor.modules()))
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def make_actor(policy: SoftACPolicy, n_envs: int, capture: bool) -> DirectActor | CapturedActor | None:
    """The fastest way to act for ``policy``, or None if there is none but ``predict``.

    :param policy: policy that acts
    :param n_envs: number of environments
    :param capture: whether CUDA graphs are allowed
    """
    if capture and CapturedActor.can_act(policy):
        try:
            return CapturedActor(policy, n_envs)
        except RuntimeError as error:
            warnings.warn(f"Acting could not be captured in a CUDA graph and takes SB3's way: {error}", stacklevel=2)
            return None
    return DirectActor(policy) if DirectActor.can_act(policy) else None
