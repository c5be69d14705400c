"""Batch normalisation whose statistics are those of the batch only where an update asks for it.

In reinforcement learning it matters which pass normalises by its own batch (1902.05605). So the mode of the module decides
nothing here: layers use their running statistics, and ``Update.batch_statistics`` says for which passes they do not.
"""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_softac.networks.ensemble import CriticIndices, choose

#: training passes before batch renormalisation begins; plain batch statistics until then
WARM_UP_STEPS = 100_000


class BatchRenorm(nn.Module):
    """Batch renormalisation (1702.03275) of one network or of each of an ensemble, as in sb3-contrib.

    After the warm-up the batch's own statistics are corrected towards the running ones, within bounds.

    :param features: dimension that is normalised
    :param n_networks: N networks in an ensemble, or None for a single one
    :param warmup_steps: training passes before the correction begins; None for plain batch normalisation
    :param momentum: weight of a batch in the running statistics
    :param eps: added to variances
    """

    #: bounds of the correction: r in [1/r_max, r_max], d in [−d_max, d_max]
    r_max, d_max = 3.0, 5.0
    running_mean: th.Tensor
    running_var: th.Tensor
    running_steps: th.Tensor

    def __init__(
        self,
        features: int,
        n_networks: int | None = None,
        warmup_steps: int | None = WARM_UP_STEPS,
        momentum: float = 0.01,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.n_networks, self.warmup_steps, self.momentum, self.eps = n_networks, warmup_steps, momentum, eps
        self.takes_indices = n_networks is not None
        shape = (features,) if n_networks is None else (n_networks, 1, features)
        self.weight = nn.Parameter(th.ones(shape))
        self.bias = nn.Parameter(th.zeros(shape))
        self.register_buffer("running_mean", th.zeros(shape))
        self.register_buffer("running_var", th.ones(shape))
        self.register_buffer("running_steps", th.zeros((), dtype=th.long))
        #: whether the statistics are those of the batch, and move the running ones
        self.uses_batch = False

    def forward(self, inputs: th.Tensor, indices: CriticIndices = None) -> th.Tensor:
        """Normalise each feature.

        :param inputs: (B, features), or (M, B, features) for the M chosen networks of an ensemble
        :param indices: which networks; all of them where the statistics are those of the batch
        """
        if self.uses_batch:
            centred, shift, var = self._batch_moments(inputs)
        elif self.n_networks is None:  # the same in one call
            return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            centred, shift = inputs - choose(self.running_mean, indices), None
            var = choose(self.running_var, indices)
        # Of all that has the batch's size, this makes one: the rest are vectors of features.
        scale = choose(self.weight, indices) / (var + self.eps).sqrt()
        bias = choose(self.bias, indices)
        return th.addcmul(bias if shift is None else bias + shift * scale, centred, scale)

    def _batch_moments(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor | None, th.Tensor]:
        """What is normalised is (x − m + shift)/√(variance + ε): x − m with the mean m of the batch, shift, variance."""
        over, keep = (0, False) if self.n_networks is None else (1, True)
        # Not var_mean, which takes ten times as long on a CPU: its reduction over rows is not vectorised.
        mean = inputs.mean(over, keepdim=keep)
        centred = inputs - mean
        var = centred.square().sum(over, keepdim=keep) / (inputs.shape[over] - 1)
        shift, used_var = None, var
        if self.warmup_steps is not None:
            begun = self.running_steps > self.warmup_steps
            running_std = (self.running_var + self.eps).sqrt()
            r = ((var + self.eps).sqrt() / running_std).detach().clamp(1.0 / self.r_max, self.r_max)
            d = ((mean - self.running_mean) / running_std).detach().clamp(-self.d_max, self.d_max)
            std = var.clamp(min=1e-12).sqrt()  # at 0, as of a unit that is never active, the root has no derivative
            shift = th.where(begun, d * std / r, 0.0)
            used_var = th.where(begun, var / r.square(), var)
        with th.no_grad():
            self.running_mean.add_(self.momentum * (mean - self.running_mean))
            self.running_var.add_(self.momentum * (var - self.running_var))
            self.running_steps.add_(1)
        return centred, shift, used_var
