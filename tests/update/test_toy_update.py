"""A user-defined gradient step, wired by a small subclass of ``SoftAC``, without a change of the package."""

import io
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC
from sb3_softac.engine import Metrics, OptimizerStep, UpdateFlags
from sb3_softac.engine.optimizers import step as plain_step
from sb3_softac.replay import Batch
from sb3_softac.update import Numbers, Update
from tests.helpers import BOTH_WAYS, SMALL, RandomEnv, assert_same_parameters, fill_buffer, logged


class ToyNoise(NamedTuple):
    """Smoothing of the next actions, (B, A)."""

    smoothing: th.Tensor


class ToyUpdate(Update):
    """Deterministic policy gradient: y = k·r + γ(1 − d)·min_i Q̄_i(s', tanh μ(s') + ε), and μ climbs Q_1."""

    def draw_noise(self, batch_size: int, flags: UpdateFlags) -> ToyNoise:
        return ToyNoise(0.1 * th.randn((batch_size, 2), device=self.device))

    def act(self, observations: Any) -> th.Tensor:
        mean: th.Tensor = self.networks.actor.get_action_dist_params(observations)[0]
        return mean.tanh()

    def __call__(
        self,
        batch: Batch,
        noise: ToyNoise | None,
        flags: UpdateFlags,
        numbers: Numbers,
        optimizer_step: OptimizerStep = plain_step,
    ) -> Metrics:
        networks = self.networks
        smoothing = (noise or self.draw_noise(len(batch.rewards), flags)).smoothing
        with th.no_grad():
            next_actions = (self.act(batch.next_observations) + smoothing).clamp(-1.0, 1.0)
            next_q = networks.critic_target.q_values(batch.next_observations, next_actions).amin(dim=0)
            target = numbers.reward_scale * batch.rewards + batch.discounts * (1.0 - batch.dones) * next_q
        q_values = networks.critic.q_values(batch.observations, batch.actions)
        critic_loss = (q_values - target).square().mean()
        self.minimise(critic_loss, networks.critic, numbers, optimizer_step)
        metrics = {"critic_loss": critic_loss.detach()}
        if flags.actor:
            q = networks.critic.q_values(batch.observations, self.act(batch.observations), slice(0, 1))
            actor_loss = -q.mean()
            self.minimise(actor_loss, networks.actor, numbers, optimizer_step)
            metrics["actor_loss"] = actor_loss.detach()
        if flags.targets:
            self.update_targets(numbers)
        return Metrics(tuple(metrics), th.stack(tuple(metrics.values())))


class ToyAC(SoftAC):
    """``SoftAC`` with another gradient step."""

    update_class = ToyUpdate


def toy_model(**kwargs: Any) -> ToyAC:
    arguments = {"policy_kwargs": SMALL, "buffer_size": 500, "device": "cpu", "seed": 0, "ent_coef": 0.1, **kwargs}
    return ToyAC("MlpPolicy", RandomEnv(), **arguments)


def seed_everything() -> None:
    th.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # the generator that SB3's buffers draw from


def test_it_trains_saves_and_loads() -> None:
    model = toy_model(policy_delay=2)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(140)
    assert model._n_updates == 40
    assert isinstance(model._current_update(), ToyUpdate)
    unchanged = {name for name, value in model.policy.state_dict().items() if th.equal(value, before[name])}
    assert unchanged == {"actor.log_std.weight", "actor.log_std.bias"}  # nothing of it enters this loss
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = ToyAC.load(stream, env=RandomEnv(), device="cpu")
    assert_same_parameters(model, loaded)
    loaded.replay_buffer = model.replay_buffer
    for either in (model, loaded):
        seed_everything()
        either.train(4, batch_size=16)
    assert_same_parameters(model, loaded)


@pytest.mark.parametrize("compile", BOTH_WAYS)
def test_the_engine_runs_it_with_the_noise_and_the_numbers_of_the_host(compile: bool) -> None:
    """Options that are set between two steps take effect, compiled or not."""
    models = [toy_model(compile=how) for how in (False, compile)]
    for model in models:
        fill_buffer(model)
        seed_everything()
        model.train(3, batch_size=16)
        model.tau, model.reward_scale, model.learning_rate = 0.5, -2.0, 1e-2
        model.train(3, batch_size=16)
    assert models[1]._engine.compiles is compile
    assert logged(models[1], "actor_loss") == pytest.approx(logged(models[0], "actor_loss"), rel=1e-4)
    for name, value in models[0].policy.state_dict().items():
        th.testing.assert_close(models[1].policy.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_its_first_loss_by_hand() -> None:
    model = toy_model()
    fill_buffer(model)
    seed_everything()
    batch = model._sample_batch(16)
    assert model.critic_target is not None
    with th.no_grad():
        mean = model.actor.get_action_dist_params(batch.next_observations)[0]
        th.manual_seed(3)
        actions = (mean.tanh() + 0.1 * th.randn(16, 2)).clamp(-1.0, 1.0)
        next_q = th.stack(model.critic_target(batch.next_observations, actions)).min(dim=0).values.squeeze(1)
        target = batch.rewards + 0.99 * (1.0 - batch.dones) * next_q
        errors = [(q.squeeze(1) - target) ** 2 for q in model.critic(batch.observations, batch.actions)]
    seed_everything()
    model.train(1, batch_size=16)
    assert logged(model, "critic_loss") == pytest.approx(th.stack(errors).mean().item(), rel=1e-5)
