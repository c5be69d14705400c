"""Actions for the collection of experience, without the overhead of ``predict`` and of calling modules for a few rows.

``predict`` costs several times the arithmetic of a small actor. Most actors are MLPs on flat observations, and for these a few
functions on the same weights do the same; other hidden layers of ours are called as they are. On a GPU one captured graph does
it. Whatever is not exactly our own actor, made of known layers, falls back to ``predict()``, also if it is changed meanwhile.
How an actor samples from what its layers put out, it says itself (``networks.ActsDirectly``).
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_softac import networks
from sb3_softac.collect.noise import sampling_with
from sb3_softac.engine import ModuleGuards, graphs, torch_internals
from sb3_softac.errors import TrainingDivergedError
from sb3_softac.networks import MLP, Normalized, ObservationNormalizer, SoftPolicy
from sb3_softac.networks.actors import ActsDirectly
from sb3_softac.networks.preprocessing import Floats

Array = npt.NDArray[Any]

ACTIVATIONS: dict[type[nn.Module], Callable[[th.Tensor], th.Tensor]] = {nn.ReLU: th.relu_, nn.Tanh: th.tanh_}
#: what acting by ``predict`` calls of a policy
POLICY_METHODS = (
    *("predict", "_predict", "forward", "obs_to_tensor", "set_training_mode"),
    *("scale_action", "unscale_action", "is_vectorized_observation"),
)
#: packages whose methods are known
KNOWN = (f"{networks.__name__}.", "stable_baselines3.", "torch.")


def _linear(layer: Any, values: th.Tensor) -> th.Tensor:
    """The layer with the weights that it has at this moment, without what calling a module costs."""
    if type(layer) is not nn.Linear:
        return layer(values)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
    own: Any = layer._parameters
    result: th.Tensor = nn.functional.linear(values, own["weight"], own["bias"])
    return result


class DirectActor:
    """Samples actions as ``policy`` does, from the same random numbers.

    :param policy: one for which :meth:`can_act` holds
    """

    def __init__(self, policy: SoftPolicy) -> None:
        self.policy = policy
        self.actor: Any = policy.actor
        hidden = self.actor.latent_pi
        #: hidden layers that are evaluated one by one; None if they are called together
        self.layers: list[nn.Module] | None = list(hidden) if is_plain_mlp(hidden) else None
        self.normalizer = normalizer_of(self.actor)
        self._guards = ModuleGuards(_roots(self.actor))

    @staticmethod
    def can_act(policy: SoftPolicy) -> bool:
        """Whether ``policy`` is made of known layers, on flat observations and the CPU, and nothing in it is user-defined."""
        return (
            is_ours(policy)
            and policy.device.type == "cpu"
            and all(parameter.dtype == th.float32 for parameter in policy.actor.parameters())
        )

    def holds(self, policy: SoftPolicy) -> bool:
        """Whether it still acts as ``policy`` does."""
        return self.policy is policy and policy.actor is self.actor and self._guards.hold() and has_own_methods(policy)

    def __call__(self, observations: Array, noise: Array | None = None) -> Array:
        """Sample an action for each observation.

        :param observations: (n, ...)
        :param noise: ε, (n, A); None to draw it
        :return: (n, A) scaled to [−1, 1], or discrete actions (n,) counted from 0
        :raises TrainingDivergedError: the actions are NaN
        """
        # A copy: PyTorch takes no reversed views, and warns of arrays that are read-only. NumPy does no matmul: its threads
        # and PyTorch's would take each other's processors while they wait for work.
        values = th.from_numpy(np.array(observations, dtype=np.float32, order="C"))
        given = None if noise is None else th.from_numpy(noise)
        with th.no_grad():
            flat = (values if self.normalizer is None else self.normalizer(values)).reshape(len(values), -1)
            actions: Array = self.actor.sample_directly(flat, self._hidden, _linear, _refuse_nan_tensor, given).numpy()
        refuse_nan(actions)
        return actions

    def _hidden(self, values: th.Tensor) -> th.Tensor:
        if self.layers is None:
            return self.actor.latent_pi(values)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
        for layer in self.layers:
            activation = ACTIVATIONS.get(type(layer))
            values = _linear(layer, values) if activation is None else activation(values)
        return values


class CapturedActor:
    """Samples actions as ``policy`` does, by one CUDA graph between two copies.

    :param policy: one for which :meth:`can_act` holds
    :param n_envs: n, the number of observations in each call
    :param takes_noise: whether it is given ε, instead of drawing it
    """

    def __init__(self, policy: SoftPolicy, n_envs: int, takes_noise: bool = False) -> None:
        self.policy = policy
        self.actor: Any = policy.actor
        self._guards = ModuleGuards(_roots(self.actor))
        on_gpu = policy.device.type == "cuda"
        space = policy.observation_space
        dtype = th.from_numpy(np.zeros(0, space.dtype)).dtype
        self.staging = th.zeros((n_envs, *(space.shape or ())), dtype=dtype, device="cpu", pin_memory=on_gpu)
        self.observations = self.staging.to(policy.device, copy=True)
        self.noise: th.Tensor | None = None
        if takes_noise:
            self.noise = th.zeros((n_envs, get_action_dim(policy.action_space)), device=policy.device)
        self.addresses = graphs.MemoryAddresses(self._tensors())
        with th.random.fork_rng([policy.device] if on_gpu else []):  # what is built to act has not acted yet
            graphs.warm_up(policy.device, self._act)
        self.graph = graphs.CudaGraph(self._act, policy.device)

    @staticmethod
    def can_act(policy: SoftPolicy) -> bool:
        """Whether ``policy`` is made of known layers, on flat observations and a GPU, and nothing in it is user-defined."""
        return policy.device.type in graphs.CAPTURING and is_ours(policy)

    def holds(self, policy: SoftPolicy) -> bool:
        """Whether it still acts as ``policy`` does."""
        return self.policy is policy and policy.actor is self.actor and self._guards.hold() and has_own_methods(policy)

    def _tensors(self) -> list[th.Tensor]:
        """What the graph reads besides its input."""
        normalizer = normalizer_of(self.actor)
        return [*self.actor.parameters(), *(() if normalizer is None else normalizer.buffers())]

    @th.no_grad()
    def _act(self) -> th.Tensor:
        kept = nullcontext() if self.noise is None else sampling_with(self.policy, self.noise)
        with kept:
            actions: th.Tensor = self.actor.sample_on_device(self.observations)
        return actions

    def __call__(self, observations: Array, noise: Array | None = None) -> Array:
        """As in ``DirectActor``."""
        self._follow_weights()
        # The last call ended with a copy to the host: nothing reads the staging any more.
        self.staging.copy_(th.from_numpy(np.array(observations, order="C")))  # a copy, as in `DirectActor`
        self.observations.copy_(self.staging, non_blocking=True)
        actions: Array = self._replay(noise).to("cpu", copy=True).numpy()
        refuse_nan(actions if actions.dtype.kind == "f" else np.where(actions < 0, np.nan, 0.0))
        return actions

    def on_device(self, observations: th.Tensor, noise: Array | None = None) -> th.Tensor:
        """The same for tensors on the device; whether actions are NaN is left to the caller."""
        self._follow_weights()
        self.observations.copy_(observations)
        return self._replay(noise).clone()

    def _follow_weights(self) -> None:
        if not self.addresses.hold():  # the weights have been given other memory
            self.addresses = graphs.MemoryAddresses(self._tensors())
            self.graph = graphs.CudaGraph(self._act, self.policy.device)

    def _replay(self, noise: Array | None) -> th.Tensor:
        if self.noise is not None and noise is not None:
            self.noise.copy_(th.from_numpy(noise))
        actions: th.Tensor = self.graph.replay()
        return actions


def _refuse_nan_tensor(values: th.Tensor) -> None:
    refuse_nan(values.numpy())


def refuse_nan(values: Array) -> None:
    """Actions, or the probabilities that they are drawn from, which must not reach an environment.

    :param values: none of them infinite
    :raises TrainingDivergedError: NaN among them
    """
    total = np.add.reduce(values, axis=None)  # NaN if one of them is; this is asked at every step, and takes half of `isnan`
    if total != total:
        raise TrainingDivergedError(
            "The training has diverged: the policy's actions are NaN. None of them was sent to the environment. A lower "
            "learning rate, `max_grad_norm`, `ent_coef_max` or smaller rewards may help."
        )


def is_plain_mlp(hidden: nn.Module) -> bool:
    """Whether these hidden layers are linear ones and activations alone."""
    return type(hidden) is MLP and all(type(layer) is nn.Linear or type(layer) in ACTIVATIONS for layer in hidden)


def is_known(layer: nn.Module) -> bool:
    """Whether a layer is one of ours, or of PyTorch's, that computes the same in every mode; dropout does not."""
    kind = type(layer)
    ours = kind.__module__.startswith(f"{networks.__name__}.") and not isinstance(layer, nn.Dropout)
    return ours or kind in (nn.Linear, nn.LayerNorm, *ACTIVATIONS)


def is_ours(policy: SoftPolicy) -> bool:
    """Whether the policy is made of known layers, on flat observations, and nothing in it is user-defined."""
    space, actor = policy.observation_space, policy.actor
    return (
        type(policy).__module__.startswith(networks.__name__)
        # A subclass without a method of its own samples in another way, or not: nobody knows.
        and "sample_directly" in vars(type(actor))
        and type(actor).__module__.startswith(networks.__name__)
        and type(actor.features_extractor) is FlattenExtractor
        and isinstance(space, spaces.Box)
        and not is_image_space(space)
        and all(is_known(layer) for part in (actor.latent_pi, *actor.output_layers()) for layer in part.modules())
        and not torch_internals.has_hooks((policy, *_modules(actor)))
        and not any(map(hides_a_method, _modules(actor)))
        and type(actor.features_extractor.flatten) is nn.Flatten
        and is_plain_preprocess(actor.preprocess)
        and has_own_methods(policy)
    )


def normalizer_of(actor: Any) -> ObservationNormalizer | None:
    """What normalises the observations of an actor, which is no part of it; None if nothing does."""
    preprocess = getattr(actor, "preprocess", None)
    return preprocess.normalizer if type(preprocess) is Normalized else None


def _roots(actor: Any) -> list[nn.Module]:
    return [module for module in (actor, normalizer_of(actor)) if module is not None]


def _modules(actor: Any) -> list[nn.Module]:
    """All modules that an actor samples with."""
    return [module for root in _roots(actor) for module in root.modules()]


def is_plain_preprocess(preprocess: Any) -> bool:
    """Whether observations become float32, and at most normalised by us."""
    if type(preprocess) is Normalized and type(preprocess.normalizer) is ObservationNormalizer:
        preprocess = preprocess.preprocess
    return type(preprocess) is Floats


def hides_a_method(module: nn.Module) -> bool:
    """Whether a method of a module has been replaced on the object."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


def has_own_methods(policy: SoftPolicy) -> bool:
    """Whether no method that ``predict`` would call has been replaced on an object: the guards do not see all of these."""
    if torch_internals.has_global_hooks() or not vars(policy).keys().isdisjoint(POLICY_METHODS):
        return False
    unaltered: bool = policy.actor.is_unaltered()
    return unaltered


def acts_as_made(policy: SoftPolicy) -> bool:
    """Whether to ask the actor of a policy for actions is what ``predict`` does: nothing on the way is user-defined."""
    kind: Any = type(policy)
    methods = (getattr(getattr(kind, name), "__module__", "") or "" for name in POLICY_METHODS)
    return (
        all(module.startswith(KNOWN) for module in methods)
        and vars(policy).keys().isdisjoint(POLICY_METHODS)
        and _asks_forward(policy.actor)
    )


def _asks_forward(actor: Any) -> bool:
    """Whether ``sample_on_device`` of an actor calls its ``forward``, or belongs to it."""
    kinds = type(actor).mro()
    own = next((kind for kind in kinds if "sample_on_device" in vars(kind)), None)
    if own is None or own is ActsDirectly:
        return True
    newer = kinds[: kinds.index(own)]  # a subclass that samples in another way without saying so here
    changed = any(not {"forward", "sample"}.isdisjoint(vars(kind)) for kind in newer)
    return not (changed or hides_a_method(actor) or torch_internals.has_hooks((actor,)) or torch_internals.has_global_hooks())


def make_actor(
    policy: SoftPolicy, n_envs: int, capture: bool, takes_noise: bool = False
) -> DirectActor | CapturedActor | None:
    """The fastest way to act for ``policy``, or None if there is none but ``predict``.

    :param policy: policy that acts
    :param n_envs: number of environments
    :param capture: whether CUDA graphs are allowed
    :param takes_noise: whether it is given ε, instead of drawing it
    """
    if capture and CapturedActor.can_act(policy):
        try:
            return CapturedActor(policy, n_envs, takes_noise)
        except RuntimeError as error:
            warnings.warn(f"Acting could not be captured in a CUDA graph and falls back to predict(): {error}", stacklevel=2)
            return None
    return DirectActor(policy) if DirectActor.can_act(policy) else None
