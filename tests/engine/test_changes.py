"""Modules that a user changes after the step was built: fast ways follow, as eager mode does, or give way to it."""

import copy
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_softac import SoftAC
from sb3_softac.engine import engine
from tests.graph_standin import GraphStandIn
from tests.helpers import assert_close, build, restart_generators


def train(model: SoftAC, n_steps: int = 6) -> None:
    restart_generators()
    model.train(n_steps, batch_size=32)


class TestFrozenParameters:
    def test_between_two_calls_of_learn(self, fast: Any) -> None:
        models = [build(compile, learning_starts=0, batch_size=32) for compile in (fast, False)]
        for model in models:
            weight = model.actor.latent_pi[0].weight
            seen = [weight.clone()]
            for trained in (True, False, True):
                weight.requires_grad_(trained)
                restart_generators()
                assert model.env is not None
                model.env.seed(0)
                model.learn(8, reset_num_timesteps=False)
                seen.append(weight.detach().clone())
            assert [left.equal(right) for left, right in zip(seen[1:], seen[:-1], strict=True)] == [False, True, False]
        assert models[0]._engine.compiles or models[0]._engine.captures
        assert_close(models[0], models[1])

    def test_between_two_calls_of_train(self, standin: type[GraphStandIn]) -> None:
        models = [build("auto"), build(False)]
        for model in models:
            train(model)
            model.critic.requires_grad_(False)
            before = model.critic.q_networks.output.weight.clone()
            train(model)
            assert before.equal(model.critic.q_networks.output.weight)
            model.critic.requires_grad_(True)
            train(model)
            assert not before.equal(model.critic.q_networks.output.weight)
        assert_close(models[0], models[1])


def forward_hook(model: SoftAC, calls: list[int]) -> None:
    model.critic.q_networks.output.register_forward_hook(lambda *_: calls.append(1))


def backward_pre_hook(model: SoftAC, calls: list[int]) -> None:
    model.actor.mu.register_full_backward_pre_hook(lambda *_: calls.append(1))


def tensor_hook(model: SoftAC, calls: list[int]) -> None:
    model.actor.mu.weight.register_hook(lambda _: calls.append(1))


class TestHooks:
    """Registered after the step was built, they are called in every step, as in eager mode."""

    @pytest.mark.parametrize("register", [forward_hook, backward_pre_hook, tensor_hook])
    @pytest.mark.parametrize("between", ["learn", "train"])
    def test_captured_steps_fall_back(self, register: Any, between: str, standin: type[GraphStandIn]) -> None:
        self.check(register, between)
        assert standin.captured > 0

    @pytest.mark.traced
    @pytest.mark.parametrize("register", [forward_hook, backward_pre_hook, tensor_hook])
    def test_compiled_steps_fall_back(self, register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "WORTH_COMPILING", 0)
        self.check(register, "train")

    def check(self, register: Any, between: str) -> None:
        models, calls = [build("auto"), build(False)], [list[int](), list[int]()]
        for model, called in zip(models, calls, strict=True):
            train(model)
            register(model, called)
            if between == "learn":
                model.learn(0, reset_num_timesteps=False)
                called.clear()
            train(model)
        assert len(calls[0]) == len(calls[1]) > 0
        assert not models[0]._engine.compiles
        assert not models[0]._engine.captures
        assert_close(models[0], models[1])


class TestReplacedModules:
    """Each gets an optimizer and a target like the one before it; the old one stays as it is."""

    def check(self, name: str, fast: Any, **kwargs: Any) -> list[SoftAC]:
        models = [build(compile, **kwargs) for compile in (fast, False)]
        for model in models:
            train(model)
            old = getattr(model, name)
            values = {key: value.clone() for key, value in old.state_dict().items()}
            new = copy.deepcopy(old)
            for parameter in new.parameters():
                parameter.data.mul_(0.5)
            setattr(model, name, new)
            start = {key: value.clone() for key, value in new.state_dict().items()}
            train(model, 8)
            assert getattr(model.policy, name) is new
            assert all(value.equal(values[key]) for key, value in old.state_dict().items()), "the old one was trained"
            assert any(not value.equal(start[key]) for key, value in new.state_dict().items()), "the new one stays"
        assert models[0]._engine.compiles or models[0]._engine.captures
        assert_close(models[0], models[1])
        return models

    @pytest.mark.parametrize("name", ["actor", "critic", "critic_target"])
    def test_networks(self, name: str, fast: Any) -> None:
        for model in self.check(name, fast, tau=0.5):
            assert model.critic_target is not None
            online, target = model.critic.q_networks.output.weight, model.critic_target.q_networks.output.weight
            th.testing.assert_close(online, target, rtol=0.0, atol=1e-2)

    @pytest.mark.parametrize("name", ["value_net", "value_net_target"])
    def test_value_networks(self, name: str, fast: Any) -> None:
        for model in self.check(name, fast, value_network=True, tau=0.5):
            assert model.value_net is not None
            assert model.value_net_target is not None
            online, target = model.value_net.v_network.output.weight, model.value_net_target.v_network.output.weight
            th.testing.assert_close(online, target, rtol=0.0, atol=1e-2)

    def test_a_network_without_an_optimizer_gets_one(self, fast: Any) -> None:
        models = [build(fast), build(False)]
        for model in models:
            train(model)
            model.critic = model.policy.make_critic()
            before = model.critic.q_networks.output.weight.clone()
            train(model, 8)
            assert not before.equal(model.critic.q_networks.output.weight)
        assert_close(models[0], models[1])

    def test_layers(self, fast: Any) -> None:
        """The optimizer keeps the old parameters until the user gives it others; target networks follow the new ones."""
        models = [build(fast, tau=0.5), build(False, tau=0.5)]
        for model in models:
            train(model)
            output = copy.deepcopy(model.critic.q_networks.output)
            output.weight.data.fill_(0.25)
            model.critic.q_networks.output = output
            model.actor.latent_pi[1] = nn.Tanh()
            train(model, 20)
            assert model.critic_target is not None
            target = model.critic_target.q_networks.output.weight
            th.testing.assert_close(target, th.full_like(target, 0.25), rtol=0.0, atol=1e-4)
        assert_close(models[0], models[1])
