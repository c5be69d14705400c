"""Where the weights of SimbaV2 and FlashSAC lie."""

import math

import torch as th
from torch import nn

from sb3_softac import SoftAC
from sb3_softac.networks.hypersphere import UnitRMSNorm


def lengths(network: nn.Module, encoder: str) -> dict[str, th.Tensor]:
    """Of each vector that is projected, as a multiple of the length that it is projected to, (...).

    Weights that are matrices or stacks of them count by the inputs of each output; of batch normalisation (scale, shift) is
    one vector; of the RMS norm the scales are.
    """
    state = {name: value for name, value in network.state_dict().items() if value.ndim > 0}
    found = {}
    vectors = {name for name, value in state.items() if value.ndim == 1 or value.shape[-2] == 1}
    for name, value in state.items():
        kind = name.rpartition(".")[2]
        if name not in vectors and kind == "weight":
            found[name] = value.norm(dim=-2)
        elif encoder == "flash" and kind == "running_mean":
            scale, shift = (state[name.replace("running_mean", part)] for part in ("weight", "bias"))
            found[name] = (scale.square() + shift.square()).sum(dim=-1).sqrt() / math.sqrt(value.shape[-1])
    if encoder == "flash":
        (rms,) = (module for module in network.modules() if isinstance(module, UnitRMSNorm))
        found["rms"] = rms.weight.norm(dim=-1) / math.sqrt(rms.weight.shape[-1])
    return found


def assert_on_spheres(model: SoftAC, encoder: str) -> None:
    """Within 1e-6 for actor and critics; targets, which are means, inside of the ball."""
    for network in (model.actor, model.critic):
        found = lengths(network, encoder)
        assert len(found) >= 5
        for name, length in found.items():
            th.testing.assert_close(length, th.ones_like(length), atol=1e-6, rtol=0.0, msg=name)
    assert model.critic_target is not None
    for name, length in lengths(model.critic_target, encoder).items():
        assert length.max() <= 1.0 + 1e-6, name
