"""Critics and value network: ensembles of networks behind one features extractor."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_softac.engine import matmul
from sb3_softac.networks.actors import MakeEncoder, initialise_network
from sb3_softac.networks.encoders import MLP, are_plain, largest_layer
from sb3_softac.networks.ensemble import CriticIndices, WeightInit, apply_layer, choose, number_chosen
from sb3_softac.networks.heads import CriticHead, ScalarHead
from sb3_softac.networks.normalization import BatchRenorm
from sb3_softac.networks.preprocessing import WithPreprocessing, make_preprocess

ActionSpace = spaces.Box | spaces.Discrete


class Ensemble(nn.Module):
    """N independent networks, evaluated together: an encoder and a linear output layer.

    :param n_networks: N
    :param in_features: input dimension
    :param net_arch: units of the hidden layers; empty for linear networks
    :param activation_fn: elementwise activation
    :param encoder: makes the hidden layers
    :param n_outputs: outputs of each network
    """

    def __init__(
        self,
        n_networks: int,
        in_features: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        encoder: MakeEncoder = MLP,
        n_outputs: int = 1,
    ) -> None:
        super().__init__()
        self.n_networks = n_networks
        self.hidden = encoder(in_features, net_arch, activation_fn, n_networks=n_networks)
        self.output: Any = self.hidden.make_output(n_outputs)
        self.largest_layer = largest_layer([self.hidden, self.output])

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """Evaluate the chosen networks on the same inputs.

        :param inputs: (B, in)
        :param indices: critic indices (M,), a slice of the N networks, or None for all
        :return: (M, B, outputs)
        """
        hidden = self.hidden
        if (
            type(hidden) is MLP
            and matmul.worth_onednn(inputs, self.largest_layer)
            and "forward" not in vars(hidden)
            and not any(isinstance(layer, BatchRenorm) for layer in hidden)
            and are_plain((*hidden, self.output))
        ):
            return self._one_by_one(hidden, inputs, indices)
        return apply_layer(self.output, hidden(inputs, indices), indices)

    def _one_by_one(self, hidden: MLP, inputs: th.Tensor, indices: CriticIndices) -> th.Tensor:
        """The same, with the matmuls of each network by itself: as a batch oneDNN does not take them."""
        values = hidden.forward_one_by_one([inputs] * number_chosen(self.n_networks, indices), indices)
        weight, bias = choose(self.output.weight, indices), choose(self.output.bias, indices)
        if weight.shape[2] == 1:
            columns = [th.mv(value, column) for value, column in zip(values, weight.squeeze(2).unbind(), strict=True)]
            return (th.stack(columns) + bias.squeeze(2)).unsqueeze(2)
        return th.stack(tuple(matmul.linear(values, weight, bias)))


class _WithExtractor(WithPreprocessing, BaseModel):
    """A network behind a features extractor, which may belong to the actor."""

    features_extractor: BaseFeaturesExtractor
    share_features_extractor: bool
    optimizer: th.optim.Optimizer
    #: whether it follows another network and is not trained itself
    is_target: bool

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool,
        share_features_extractor: bool,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.preprocess = make_preprocess(observation_space, normalize_images)
        self.share_features_extractor = share_features_extractor
        self.is_target = False

    def train(self, mode: bool = True) -> Any:
        """As in PyTorch; a target has one mode, whatever is asked for.

        Its batch normalisation uses the statistics of the sources, and its dropout stays on (DroQ, 2110.02034, algorithm 2).
        """
        super().train(mode and not self.is_target)
        for module in self.modules() if self.is_target else ():
            if isinstance(module, nn.Dropout):
                module.train()
        return self

    def become_target(self) -> None:
        """From now on follow another network."""
        self.is_target = True
        self.train()

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """(B, ...) → (B, F); without gradient where the features extractor belongs to the actor."""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            return self.extract_features(obs, self.features_extractor)


def beside(features: th.Tensor, others: th.Tensor) -> th.Tensor:
    """Features (B, F) beside (B, n), or beside each of (B, K, n): (B, F + n) or (B, K, F + n)."""
    if others.ndim == 3:
        features = features.unsqueeze(1).expand(-1, others.shape[1], -1)
    return th.cat([features, others], dim=-1)


class StackedCritics(_WithExtractor):
    """N critics Q_i(s, a) as one batched network behind one features extractor.

    With ``Box`` actions the action is an input of the networks, with ``Discrete`` ones they have outputs for each.

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param n_critics: N
    :param share_features_extractor: the features extractor belongs to the actor and gets no gradient from here
    :param encoder: makes the hidden layers
    :param head: what the outputs mean
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        encoder: MakeEncoder = MLP,
        head: CriticHead | None = None,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, features_extractor, normalize_images, share_features_extractor)
        self.n_critics = n_critics
        self.head = ScalarHead() if head is None else head
        self.discrete = isinstance(action_space, spaces.Discrete)
        #: |A| values for each state, or one for each pair of state and action
        self.n_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 1
        inputs = features_dim + (0 if self.discrete else get_action_dim(action_space))
        n_outputs = self.n_actions * self.head.n_numbers
        self.q_networks = Ensemble(n_critics, inputs, net_arch, activation_fn, encoder, n_outputs)
        networks = self.q_networks
        initialise_network(networks.hidden, [networks.output], activation_fn, weight_init, final_init_scale)

    def outputs(self, obs: PyTorchObs, actions: th.Tensor | None = None, indices: CriticIndices = None) -> th.Tensor:
        """The numbers that the chosen critics put out, k of them as the head has it.

        :param obs: (B, ...)
        :param actions: (B, A), or (B, K, A) for K actions in each state, scaled to [−1, 1]; discrete ones (B,) or (B, 1),
            counted from 0, or None for all of them
        :param indices: critic indices (M,), a slice of the N critics, or None for all
        :return: (M, B, k), or (M, B, K, k), or (M, B, |A|, k) for all discrete actions
        """
        features = self.features(obs)
        if not self.discrete:
            assert actions is not None, "only discrete actions can be enumerated"
            inputs = beside(features, actions)
            numbers: th.Tensor = self.q_networks(inputs.flatten(0, -2), indices)
            return numbers if inputs.ndim == 2 else numbers.view(len(numbers), *inputs.shape[:-1], -1)
        numbers = self.q_networks(features, indices).unflatten(2, (self.n_actions, self.head.n_numbers))
        if actions is None:
            return numbers
        index = actions.reshape(1, -1, 1, 1).expand(len(numbers), -1, 1, self.head.n_numbers)
        return numbers.gather(2, index).squeeze(2)

    def q_values(self, obs: PyTorchObs, actions: th.Tensor | None = None, indices: CriticIndices = None) -> th.Tensor:
        """Q_i(s, a) of the chosen critics; arguments as in :meth:`outputs`.

        :return: (M, B), or (M, B, K) for K actions in each state, or (M, B, |A|) for all discrete actions
        """
        return self.head.expected_value(self.outputs(obs, actions, indices))

    def forward(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> tuple[th.Tensor, ...]:
        """Q_i(s, a) as SB3 returns them: N tensors (B, 1), or (B, |A|) for all discrete actions."""
        q_values = self.q_values(obs, actions)
        return tuple(q_values if q_values.ndim == 3 else q_values.unsqueeze(2))


class ValueNetwork(_WithExtractor):
    """State value V(s) (1801.01290).

    :param observation_space: observation space
    :param action_space: action space
    :param net_arch: units of the hidden layers
    :param features_extractor: network that turns observations into features
    :param features_dim: number of features
    :param activation_fn: activation of the hidden layers
    :param normalize_images: divide images by 255
    :param share_features_extractor: the features extractor belongs to the actor and gets no gradient from here
    :param encoder: makes the hidden layers
    :param weight_init: see ``SoftACPolicy``
    :param final_init_scale: see ``SoftACPolicy``
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: ActionSpace,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        share_features_extractor: bool = False,
        encoder: MakeEncoder = MLP,
        weight_init: WeightInit = "default",
        final_init_scale: float | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, features_extractor, normalize_images, share_features_extractor)
        self.v_network = Ensemble(1, features_dim, net_arch, activation_fn, encoder)
        networks = self.v_network
        initialise_network(networks.hidden, [networks.output], activation_fn, weight_init, final_init_scale)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """V(s), (B, 1) for observations (B, ...)."""
        values: th.Tensor = self.v_network(self.features(obs))
        return values.squeeze(0)
