"""Networks that start again: new initial values in the memory of the old ones, so that whatever holds them goes on."""

import torch as th
from torch import nn

from sb3_softac.networks.base import SoftPolicy

Tensors = dict[str, th.Tensor]


def restart_networks(policy: SoftPolicy, fresh: SoftPolicy) -> None:
    """Overwrite the trained networks of ``policy`` with those of ``fresh``; its targets become copies of them.

    Nothing else that the policy has changes, even if a network has it too, and neither do frozen parameters
    (``requires_grad_(False)``).

    :param policy: a policy
    :param fresh: a new one, built with the same arguments
    :raises ValueError: a network has been replaced by one of other shapes; all are as they were
    """
    new = fresh.trained_networks()
    pairs = [(_tensors(network), _tensors(new[name]), name, network) for name, network in policy.trained_networks().items()]
    for own, theirs, name, _ in pairs:
        _refuse_other_shapes(name, own, theirs)
    of_others = _tensors_beside(policy)
    with th.no_grad():
        for own, theirs, _, network in pairs:
            for key in own.keys() - _frozen(network):
                if id(own[key]) not in of_others:
                    own[key].copy_(theirs[key])
    for online, target in policy.targets():
        target.load_state_dict(online.state_dict())


def _tensors(network: nn.Module) -> Tensors:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _tensors_beside(policy: SoftPolicy) -> set[int]:
    """Tensors of the modules of a policy that are neither trained networks nor targets, by identity."""
    rebuilt = [*policy.trained_networks().values(), *(network for pair in policy.targets() for network in pair)]
    others = [module for module in policy.children() if not any(module is network for network in rebuilt)]
    return {id(tensor) for module in others for tensor in _tensors(module).values()}


def _frozen(network: nn.Module) -> set[str]:
    """Names of parameters that are not trained, and of the buffers of modules that have no others."""
    names: set[str] = set()
    for path, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        frozen = {name for name, parameter in own.items() if not parameter.requires_grad}
        if frozen and len(frozen) == len(own):
            frozen |= dict(module.named_buffers(recurse=False)).keys()
        names |= {f"{path}.{name}" if path else name for name in frozen}
    return names


def _refuse_other_shapes(name: str, own: Tensors, theirs: Tensors) -> None:
    shapes, expected = ({key: tuple(tensor.shape) for key, tensor in tensors.items()} for tensors in (own, theirs))
    differing = [key for key in {**shapes, **expected} if shapes.get(key) != expected.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"`resets` asks for a new {name}, but it has been replaced by one that the policy does not build: {key} is "
            f"{shapes.get(key, 'missing')} there and {expected.get(key, 'missing')} in a new one. `model.resets = None` goes "
            "on without resets."
        )
