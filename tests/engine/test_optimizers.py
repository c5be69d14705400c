"""Steps on tensors against PyTorch's own optimizers, clipping against its own function."""

import copy
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_softac.engine import optimizers
from sb3_softac.engine.optimizers import TensorOptimizers
from tests.helpers import fill_buffer, make_model, parameters_of, restart_generators

MAKERS: dict[str, Any] = {
    "Adam": lambda parameters: th.optim.Adam(parameters, lr=0.1, fused=True),
    "Adam with options": lambda parameters: th.optim.Adam(
        parameters, lr=0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, maximize=True, fused=True
    ),
    "AdamW": lambda parameters: th.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True),
    "SGD": lambda parameters: th.optim.SGD(parameters, lr=0.1),
    "two groups": lambda parameters: th.optim.Adam(
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3, "eps": 0.1}], lr=0.1, fused=True
    ),
}


def parameters() -> list[th.nn.Parameter]:
    th.manual_seed(0)
    return [th.nn.Parameter(th.randn(shape)) for shape in ((3, 2), (2,), (4,))]


def gradients(step: int) -> list[th.Tensor | None]:
    th.manual_seed(step)
    return [th.randn(3, 2), th.randn(2), None]  # nothing reaches the last one


@pytest.mark.parametrize("mode", ["eager", "compiled", "captured"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_steps_are_those_of_the_optimizer(name: str, mode: Any) -> None:
    """Also after its learning rate has changed, and back and forth between both; in eager mode bit for bit."""
    # What is compiled computes the corrections of the biases in float32, of which little is left in the first steps.
    tolerance = {"eager": 0.0, "compiled": 3e-5, "captured": 1e-6}[mode]
    ours, theirs = parameters(), parameters()
    own, reference = MAKERS[name](ours), MAKERS[name](theirs)
    for optimizer in (own, reference):
        optimizers.step(optimizer, gradients(0))
    assert optimizers.can_replace(own)
    tensors = TensorOptimizers([own], mode)
    for step in range(1, 9):
        for optimizer in (own, reference):
            optimizer.param_groups[0]["lr"] = 0.1 / step
        assert tensors.follow([own])
        optimizers.step(reference, gradients(step))
        (optimizers.step if step == 4 else tensors)(own, gradients(step))
        for left, right in zip(ours, theirs, strict=True):
            th.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    for parameter, other in zip(ours, theirs, strict=True):
        assert own.state[parameter].keys() == reference.state[other].keys()
        for key, value in own.state[parameter].items():
            th.testing.assert_close(value, reference.state[other][key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("momentum", lambda p: th.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("amsgrad", lambda p: th.optim.Adam(p, amsgrad=True)),
        ("another class", lambda p: th.optim.RMSprop(p)),
        ("a subclass", lambda p: type("Own", (th.optim.Adam,), {})(p)),
    ],
)
def test_others_are_not_replaced(name: str, optimizer: Any) -> None:
    assert not optimizers.can_replace(optimizer(parameters()))


def test_one_with_hooks_is_not_replaced() -> None:
    optimizer = th.optim.Adam(parameters())
    optimizer.register_step_post_hook(lambda *_: None)
    assert not optimizers.can_replace(optimizer)


def test_it_notices_what_it_cannot_follow() -> None:
    optimizer = th.optim.Adam(parameters())
    optimizers.step(optimizer, gradients(0))
    tensors = TensorOptimizers([optimizer], "eager")
    assert tensors.follow([optimizer])
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    assert not tensors.follow([optimizer])
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    assert tensors.follow([optimizer])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not tensors.follow([optimizer])
    tensors = TensorOptimizers([optimizer], "eager")
    assert tensors.follow([optimizer])
    assert not tensors.follow([th.optim.Adam(optimizer.param_groups[0]["params"])])
    optimizer.register_step_post_hook(lambda *_: None)
    assert not tensors.follow([optimizer])
    with pytest.raises(RuntimeError, match="none of the optimizers that were expected"):
        tensors(th.optim.SGD(parameters(), lr=0.1), gradients(1))
    tensors = TensorOptimizers([optimizer], "eager")
    optimizer.state.clear()
    assert not tensors.follow([optimizer])


@pytest.mark.parametrize("mode", ["compiled", "captured"])
def test_a_gradient_that_comes_later_is_refused_by_a_graph(mode: Any) -> None:
    """PyTorch's optimizer would create a state for it, which no graph knows."""
    optimizer = th.optim.Adam(parameters(), fused=True)
    optimizers.step(optimizer, gradients(0))
    with pytest.raises(RuntimeError, match="a parameter that it had not reached in the first step"):
        TensorOptimizers([optimizer], mode)(optimizer, [th.ones(3, 2), th.ones(2), th.ones(4)])


def test_a_gradient_that_comes_later_is_left_to_the_optimizer_in_eager_mode() -> None:
    """Bit for bit PyTorch's own step; the states are then looked at again."""
    ours, theirs = parameters(), parameters()
    own, reference = (th.optim.Adam(each, lr=0.1, fused=True) for each in (ours, theirs))
    for optimizer in (own, reference):
        optimizers.step(optimizer, gradients(0))
    tensors = TensorOptimizers([own], "eager")
    later = [th.ones(3, 2), th.ones(2), th.ones(4)]
    tensors(own, later)
    optimizers.step(reference, later)
    assert all(map(th.equal, ours, theirs))
    assert len(own.state) == 3
    assert not tensors.follow([own])
    assert TensorOptimizers([own], "eager").follow([own])


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_pytorch(max_norm: float) -> None:
    ours = gradients(1)
    theirs = parameters()
    for parameter, gradient in zip(theirs, gradients(1), strict=True):
        parameter.grad = gradient
    expected = th.nn.utils.clip_grad_norm_(theirs, max_norm)
    norm, clipped = optimizers.clip(ours, max_norm)
    assert th.equal(norm, expected)
    for gradient, parameter in zip(clipped, theirs, strict=True):
        assert (gradient is None) == (parameter.grad is None)
        if gradient is not None and parameter.grad is not None:
            assert th.equal(gradient, parameter.grad)
    assert optimizers.clip(ours, None)[1] is ours


class Tied(th.nn.Module):
    """A loss whose gradients lie in memory otherwise than the parameters: transposed, and one number for all elements."""

    def __init__(self) -> None:
        super().__init__()
        th.manual_seed(0)
        self.weight = th.nn.Parameter(th.randn(40, 30))
        self.shift = th.nn.Parameter(th.randn(20))

    def forward(self) -> th.Tensor:
        return (self.weight.t().contiguous() - 0.5).square().sum() + self.shift.sum()


def test_gradients_lie_in_memory_as_their_parameters() -> None:
    """PyTorch's fused Adam reads them as if they did, and beyond their end if they are shorter."""
    ours, theirs = Tied(), Tied()
    raw = th.autograd.grad(ours(), list(ours.parameters()))
    assert all(gradient.stride() != parameter.stride() for gradient, parameter in zip(raw, ours.parameters(), strict=True))
    fused = th.optim.Adam(ours.parameters(), lr=0.1, fused=True)
    plain = th.optim.Adam(theirs.parameters(), lr=0.1, fused=False, foreach=False)
    for _ in range(5):
        optimizers.step(fused, optimizers.gradients_of(ours(), fused))
        plain.zero_grad()
        theirs().backward()
        plain.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        th.testing.assert_close(left, right)


@pytest.mark.parametrize("mode", ["eager", "compiled", "captured"])
def test_a_group_that_nothing_reaches_stays(mode: Any) -> None:
    ours = parameters()
    optimizer = th.optim.Adam([{"params": ours[:2]}, {"params": ours[2:]}], lr=0.1, fused=True)
    optimizers.step(optimizer, gradients(0))
    before = [parameter.detach().clone() for parameter in ours]
    TensorOptimizers([optimizer], mode)(optimizer, gradients(1))
    assert [th.equal(old, new) for old, new in zip(before, ours, strict=True)] == [False, False, True]


class TransposedExtractor(BaseFeaturesExtractor):
    """The gradient of its parameter lies in memory transposed."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 16)
        self.weight = th.nn.Parameter(0.3 * th.randn(space.shape[0], 16))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.nn.functional.linear(observations, self.weight.t().contiguous())


def test_a_model_trains_alike_with_the_fused_optimizer_and_without() -> None:
    models = []
    for optimizer_kwargs in ({}, {"fused": False, "foreach": False}):
        policy_kwargs = {"features_extractor_class": TransposedExtractor, "optimizer_kwargs": optimizer_kwargs}
        models.append(make_model(policy_kwargs={"net_arch": [16], **policy_kwargs}, learning_rate=1e-2))
        fill_buffer(models[-1])
        restart_generators()
        models[-1].train(5, batch_size=32)
    for (name, left), (_, right) in zip(*map(parameters_of, models), strict=True):
        th.testing.assert_close(left, right, rtol=1e-4, atol=1e-4, msg=name)
