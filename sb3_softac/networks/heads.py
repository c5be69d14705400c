"""What the numbers mean that a critic puts out for one state and action.

A head has no weights: it says how many numbers there are, how they give a value, what is bootstrapped from them, and the loss
that trains them. ``policy_kwargs["critic_head"]`` takes the name of one, or a user-defined class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch as th

from sb3_softac.update import losses
from sb3_softac.update.losses import Atoms, CriticReduction


class CriticHead(ABC):
    """Base class of critic heads."""

    #: numbers for one state and action, k
    n_numbers: int
    #: whether targets are distributions, which :meth:`soft_atoms` gives
    is_distribution: bool = False
    #: whether its numbers are quantiles, of which ``top_quantiles_to_drop_per_net`` leaves out some in targets
    drops_quantiles: bool = False

    @abstractmethod
    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        """Q of each output: (..., k) → (...)."""

    @abstractmethod
    def loss(self, outputs: th.Tensor, target: Any) -> th.Tensor:
        """Loss of the critics at the replayed actions.

        :param outputs: (N, B, k)
        :param target: y, (B,), held constant; or the ``Atoms`` of a distribution
        :return: ()
        """

    def soft_atoms(
        self, outputs: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor, how: CriticReduction, n_dropped: int
    ) -> Atoms:
        """The distribution of Q − α log π at the next state, of a head that :attr:`is_distribution`.

        :param outputs: of the target critics, (M, B, k), or (M, B, |A|, k) for all discrete actions
        :param log_prob: log π of the action, (B,), or of all discrete ones, (B, |A|)
        :param ent_coef: α, ()
        :param how: reduction over the critics
        :param n_dropped: quantiles of each critic that are left out at the top
        """
        raise NotImplementedError

    def target_metrics(self, target: Any) -> dict[str, th.Tensor]:
        """What is worth logging of a target."""
        return {}


class ScalarHead(CriticHead):
    """One number, Q itself, and the squared Bellman error."""

    n_numbers = 1

    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.squeeze(-1)

    def loss(self, outputs: th.Tensor, target: th.Tensor) -> th.Tensor:
        """J_Q = Σ_i ½·mean_B (Q_i(s, a) − y)² (1812.05905, eq. 5)."""
        return losses.critic_loss(self.expected_value(outputs), target)


class QuantileHead(CriticHead):
    """Quantiles of the return at (m + ½)/M; their mean is the value (2005.04269).

    :param n_quantiles: M
    """

    is_distribution = True
    drops_quantiles = True

    def __init__(self, n_quantiles: int = 25) -> None:
        self.n_numbers = n_quantiles

    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.mean(dim=-1)

    def soft_atoms(
        self, outputs: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor, how: CriticReduction, n_dropped: int
    ) -> Atoms:
        if how == "mean":  # quantile by quantile, as in BRO (2405.16158); else those of all critics are pooled
            outputs = outputs.mean(dim=0, keepdim=True)
        if outputs.ndim == 3:
            return losses.truncated_quantiles(outputs, log_prob, ent_coef, n_dropped)
        return losses.discrete_truncated_quantiles(outputs, log_prob, ent_coef, n_dropped)

    def loss(self, outputs: th.Tensor, target: th.Tensor | Atoms) -> th.Tensor:
        """The quantile Huber loss."""
        return losses.quantile_huber_loss(outputs, losses.as_atoms(target))


class CategoricalHead(CriticHead):
    """Probabilities of fixed returns, evenly spaced on a range (1707.06887), as softmax of the outputs.

    :param n_atoms: K
    :param value_range: the smallest and the largest return
    """

    is_distribution = True

    def __init__(self, n_atoms: int = 101, value_range: tuple[float, float] = (-5.0, 5.0)) -> None:
        self.n_numbers = n_atoms
        self.low, self.high = map(float, value_range)

    def support(self, like: th.Tensor) -> th.Tensor:
        """z, (K,)."""
        return th.linspace(self.low, self.high, self.n_numbers, dtype=like.dtype, device=like.device)

    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        return (outputs.softmax(dim=-1) * self.support(outputs)).sum(dim=-1)

    def soft_atoms(
        self, outputs: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor, how: CriticReduction, n_dropped: int
    ) -> Atoms:
        probabilities = losses.reduce_distributions(outputs.softmax(dim=-1), self.support(outputs), how)
        return losses.soft_categories(probabilities, self.support(outputs), log_prob, ent_coef)

    def loss(self, outputs: th.Tensor, target: th.Tensor | Atoms) -> th.Tensor:
        """The cross-entropy to the target, projected onto the fixed returns."""
        projected = losses.project(losses.as_atoms(target), self.low, self.high, self.n_numbers)
        return losses.categorical_loss(outputs, projected)

    def target_metrics(self, target: th.Tensor | Atoms) -> dict[str, th.Tensor]:
        """The share of the target that lies outside of the range."""
        return {"target_clipped": losses.share_outside(losses.as_atoms(target), self.low, self.high)}


#: heads by the names that ``policy_kwargs["critic_head"]`` takes, with the policy arguments that they are made with
HEADS: dict[str, tuple[Callable[..., CriticHead], tuple[str, ...]]] = {
    "scalar": (ScalarHead, ()),
    "quantile": (QuantileHead, ("n_quantiles",)),
    "categorical": (CategoricalHead, ("n_atoms", "value_range")),
}


def make_head(chosen: str | type[CriticHead], options: Mapping[str, Any]) -> CriticHead:
    """A head by its name, or of a user's class.

    :param options: ``n_quantiles``, ``n_atoms``, ``value_range``
    """
    if not isinstance(chosen, str):
        return chosen()
    make, names = HEADS[chosen]
    return make(**{name: options[name] for name in names})
