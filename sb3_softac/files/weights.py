"""Weights and optimizer states of SB3 and sb3-contrib under our names and in our shapes, and back."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from torch import nn

Tensors = dict[str, th.Tensor]
Convert = Callable[[Mapping[str, th.Tensor]], Tensors]

#: what sb3-contrib's batch renormalisation calls its parameters and statistics, and what ours does
RENORM_NAMES = {"scale": "weight", "ra_mean": "running_mean", "ra_var": "running_var", "steps": "running_steps"}


def rename_layers(tensors: Mapping[str, th.Tensor]) -> Tensors:
    """Rename what belongs to the hidden layers of an actor: batch renormalisation has other names here."""
    renamed = {}
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition(".")
        own = RENORM_NAMES.get(kind, kind) if re.fullmatch(r"latent_pi\.\d+", place) else kind
        renamed[f"{place}.{own}" if place else own] = tensor
    return renamed


def stack_critics(tensors: Mapping[str, th.Tensor]) -> Tensors:
    """Rename and stack what belongs to SB3's critics, by parameter name: weights, or optimizer states such as ``exp_avg``.

    SB3's ``qf{i}.{layer}.weight`` (out, in) becomes row i of a (N, in, out) tensor, a vector (out,), such as a bias or a
    running mean, row i of (N, 1, out). All critics have been normalised equally often: of their counters one stays.
    """
    stacked = {name: tensor for name, tensor in tensors.items() if not name.startswith("qf")}
    of_first = [match for name in tensors if (match := re.fullmatch(r"qf0\.(\d+)\.(\w+)", name))]
    n_critics = len({name.split(".")[0] for name in tensors if name.startswith("qf")})
    last = max((int(match[1]) for match in of_first), default=0)
    for match in of_first:
        layer, kind = int(match[1]), match[2]
        prefix = "q_networks.output" if layer == last else f"q_networks.hidden.{layer}"
        parts = [tensors[f"qf{i}.{layer}.{kind}"] for i in range(n_critics)]
        rows = [part.T if part.ndim == 2 else part.unsqueeze(0) for part in parts]
        stacked[f"{prefix}.{RENORM_NAMES.get(kind, kind)}"] = th.stack(rows) if parts[0].ndim else parts[0]
    return stacked


def unstack_critics(tensors: Mapping[str, th.Tensor]) -> Tensors:
    """The reverse of :func:`stack_critics`: names and shapes of SB3's critics."""
    hidden = [int(match[1]) for name in tensors if (match := re.match(r"q_networks\.hidden\.(\d+)\.weight", name))]
    places = {f"q_networks.hidden.{layer}": layer for layer in hidden}
    places["q_networks.output"] = max(hidden) + 2 if hidden else 0  # behind the last activation
    unstacked = {name: tensor for name, tensor in tensors.items() if not name.startswith("q_networks.")}
    for prefix, layer in places.items():
        for i, (weight, bias) in enumerate(zip(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"], strict=True)):
            unstacked[f"qf{i}.{layer}.weight"] = weight.T.contiguous()
            unstacked[f"qf{i}.{layer}.bias"] = bias.squeeze(0)
    return unstacked


def _trained_parameters(network: nn.Module, optimizer: th.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that ``optimizer`` holds, by their name in ``network``."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in network.named_parameters() if id(parameter) in held}


def load_state(optimizer: th.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    """Give copies of ``states`` to the parameters, in order; PyTorch takes each to the device where it belongs."""
    groups = optimizer.state_dict()["param_groups"]
    # One copy each: a step counter that all parameters shared would be counted up by every one of them.
    own = {index: copy.deepcopy(state) for index, state in enumerate(states)}
    optimizer.load_state_dict({"state": own, "param_groups": groups})


def copy_optimizer(
    source: nn.Module,
    source_optimizer: th.optim.Optimizer,
    target: nn.Module,
    target_optimizer: th.optim.Optimizer,
    convert: Convert,
) -> None:
    """Take over the optimizer's state, with every average rearranged as its parameter is."""
    states = {
        name: source_optimizer.state[parameter]
        for name, parameter in _trained_parameters(source, source_optimizer).items()
        if parameter in source_optimizer.state
    }
    if not states:
        return
    # Adam's averages have the shape of their parameter; step counters and the like are the same for all parameters.
    shapes = {name: parameter.shape for name, parameter in source.named_parameters()}
    some_name, some_state = next(iter(states.items()))
    shaped = {
        key: convert({name: state[key] for name, state in states.items()})
        for key, entry in some_state.items()
        if isinstance(entry, th.Tensor) and entry.shape == shapes[some_name]
    }
    shared = {key: entry for key, entry in some_state.items() if key not in shaped}
    copied = [
        {**shared, **{key: tensors[name] for key, tensors in shaped.items() if name in tensors}}
        for name in _trained_parameters(target, target_optimizer)
    ]
    load_state(target_optimizer, copied)
