"""What the numbers mean that a critic puts out for one state and action.

A head has no weights: it says how many numbers there are, how they give a value, and the loss that trains them.
``policy_kwargs["critic_head"]`` takes the name of one, or a user-defined class.
"""

from abc import ABC, abstractmethod

import torch as th

from sb3_softac.update import losses


class CriticHead(ABC):
    """Base class of critic heads."""

    #: numbers for one state and action, k
    n_numbers: int

    @abstractmethod
    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        """Q of each output: (..., k) → (...)."""

    @abstractmethod
    def loss(self, outputs: th.Tensor, target: th.Tensor) -> th.Tensor:
        """Loss of the critics at the replayed actions.

        :param outputs: (N, B, k)
        :param target: y, (B,), held constant
        :return: ()
        """


class ScalarHead(CriticHead):
    """One number, Q itself, and the squared Bellman error."""

    n_numbers = 1

    def expected_value(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.squeeze(-1)

    def loss(self, outputs: th.Tensor, target: th.Tensor) -> th.Tensor:
        """J_Q = Σ_i ½·mean_B (Q_i(s, a) − y)² (1812.05905, eq. 5)."""
        return losses.critic_loss(self.expected_value(outputs), target)


#: heads by the names that ``policy_kwargs["critic_head"]`` takes
HEADS: dict[str, type[CriticHead]] = {"scalar": ScalarHead}
