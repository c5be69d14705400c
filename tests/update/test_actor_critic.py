"""One gradient step against a float64 re-derivation: where gradients go, which critics count, and when what moves."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC
from sb3_softac.arguments import DEFAULT_TARGET_ENTROPY_SCALE
from sb3_softac.update.actor_critic import DRAWN_INSIDE
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    logged,
    make_model,
    parameters_of,
    train_with_noise,
    update_of,
)
from tests.reference import Networks, Tensors

RATES = {"actor": 0.03, "critic": 0.02, "value": 0.05, "ent_coef": 0.01}


class Reference(Networks):
    """One gradient step of soft actor-critic: plain SGD, one line per equation of 1801.01290 and 1812.05905."""

    target_entropy = -2.0
    losses: dict[str, float]

    def gradient_step(self, loss: th.Tensor, weights: Tensors, prefix: str, rate: float) -> None:
        names = [name for name in weights if name.startswith(f"{prefix}.")]
        for name, gradient in zip(names, th.autograd.grad(loss, [weights[name] for name in names]), strict=True):
            self.weights[name] = self.weights[name].detach() - rate * gradient

    def step(self, batch: Any, noises: list[th.Tensor]) -> None:
        m, alpha, self.losses = self.model, self.alpha, {}
        reduce: Any = {
            "min": lambda qs: th.stack(qs).min(0).values,
            "mean": lambda qs: sum(qs) / len(qs),
            "first": lambda qs: qs[0],
        }
        s, a, s2 = batch.observations.double(), batch.actions.double(), batch.next_observations.double()
        r, d = batch.rewards.double().squeeze(1), batch.dones.double().squeeze(1)
        w = self.trainable()
        action, log_prob = self.pi(s, noises[0].double(), w)
        if m.value_network:
            next_value = self.v("value_net_target", s2, w)
            v_target = reduce[m.target_q](self.q("critic", s, action, w)) - alpha * log_prob
            value_loss = 0.5 * ((self.v("value_net", s, w) - v_target.detach()) ** 2).mean()
            self.losses["value_loss"] = value_loss.item()
            self.gradient_step(value_loss, w, "value_net", RATES["value"])
        else:
            next_action, next_log_prob = self.pi(s2, noises[1].double(), w)
            next_value = reduce[m.target_q](self.q("critic_target", s2, next_action, w)) - alpha * next_log_prob
        y = (m.reward_scale * r + m.gamma * (1 - d) * next_value).detach()
        critic_loss = sum((0.5 * ((q - y) ** 2).mean() for q in self.q("critic", s, a, w)), th.zeros(()))
        self.losses["critic_loss"] = critic_loss.item()
        self.gradient_step(critic_loss, w, "critic", RATES["critic"])
        w = self.trainable()  # the updated critics
        action, log_prob = self.pi(s, noises[0].double(), w)
        net, how = ("critic_target", "min") if m.actor_q == "target_min" else ("critic", m.actor_q)
        actor_loss = (alpha * log_prob - reduce[how](self.q(net, s, action, w))).mean()
        self.losses["actor_loss"] = actor_loss.item()
        self.gradient_step(actor_loss, w, "actor", RATES["actor"])
        self.update_alpha(-log_prob.mean().item())
        online, target = ("value_net", "value_net_target") if m.value_network else ("critic", "critic_target")
        self.track(online, target, m.tau)

    def update_alpha(self, entropy: float) -> None:
        alpha, gap, rate = self.alpha.item(), entropy - self.target_entropy, RATES["ent_coef"]
        if not str(self.model.ent_coef).startswith("auto"):
            return
        if self.model.ent_coef_update == "dual":
            self.losses["ent_coef_loss"] = alpha * gap
            alpha = max(0.0, alpha - rate * gap)
        else:
            gradient = gap if self.model.ent_coef_update == "log" else alpha * gap
            self.losses["ent_coef_loss"] = gap * (math.log(alpha) if self.model.ent_coef_update == "log" else alpha)
            # Adam's first step, with its bias corrections
            alpha = math.exp(math.log(alpha) - rate * gradient / (abs(gradient) + 1e-8))
        self.alpha = th.tensor(alpha, dtype=th.float64)


class DiscreteReference(Reference):
    """The same with three discrete actions: every expectation is a sum over them (1910.07207)."""

    target_entropy = DEFAULT_TARGET_ENTROPY_SCALE * math.log(3)

    def log_pi(self, s: th.Tensor, weights: Tensors) -> th.Tensor:
        logits = self.head("logits", s, weights)
        return logits - logits.exp().sum(1, keepdim=True).log()

    def expect(self, log_pi: th.Tensor, q: th.Tensor) -> th.Tensor:
        """Σ_a π(a|s)(Q(s, a) − α log π(a|s)), one action at a time."""
        terms = [log_pi[:, a].exp() * (q[:, a] - self.alpha * log_pi[:, a]) for a in range(3)]
        return terms[0] + terms[1] + terms[2]

    def step(self, batch: Any, noises: list[th.Tensor]) -> None:
        m, self.losses = self.model, {}
        reduce: Any = {
            "min": lambda qs: th.stack(qs).min(0).values,
            "mean": lambda qs: sum(qs) / len(qs),
            "first": lambda qs: qs[0],
        }
        s, a, s2 = batch.observations.double(), batch.actions.squeeze(1), batch.next_observations.double()
        r, d = batch.rewards.double().squeeze(1), batch.dones.double().squeeze(1)
        w = self.trainable()
        if m.value_network:
            next_value = self.v("value_net_target", s2, w)
            v_target = self.expect(self.log_pi(s, w), reduce[m.target_q](self.q("critic", s, None, w)))
            value_loss = 0.5 * ((self.v("value_net", s, w) - v_target.detach()) ** 2).mean()
            self.losses["value_loss"] = value_loss.item()
            self.gradient_step(value_loss, w, "value_net", RATES["value"])
        else:
            next_value = self.expect(self.log_pi(s2, w), reduce[m.target_q](self.q("critic_target", s2, None, w)))
        y = (m.reward_scale * r + m.gamma * (1 - d) * next_value).detach()
        chosen = [th.stack([row[i] for row, i in zip(q, a, strict=True)]) for q in self.q("critic", s, None, w)]
        critic_loss = sum((0.5 * ((q - y) ** 2).mean() for q in chosen), th.zeros(()))
        self.losses["critic_loss"] = critic_loss.item()
        self.gradient_step(critic_loss, w, "critic", RATES["critic"])
        w = self.trainable()  # the updated critics
        net, how = ("critic_target", "min") if m.actor_q == "target_min" else ("critic", m.actor_q)
        log_pi = self.log_pi(s, w)
        actor_loss = -self.expect(log_pi, reduce[how](self.q(net, s, None, w)).detach()).mean()
        self.losses["actor_loss"] = actor_loss.item()
        self.gradient_step(actor_loss, w, "actor", RATES["actor"])
        self.update_alpha(-(log_pi.exp() * log_pi).sum(1).mean().item())
        online, target = ("value_net", "value_net_target") if m.value_network else ("critic", "critic_target")
        self.track(online, target, m.tau)


ARCHITECTURES = [(False, "min"), (False, "mean"), (False, "first"), (False, "target_min")]
ARCHITECTURES += [(True, "min"), (True, "mean"), (True, "first")]  # a value network has no target critics


@pytest.mark.parametrize("temperature", ["fixed", "dual", "log", "exp"])
@pytest.mark.parametrize("target_q", ["min", "mean", "first"])
@pytest.mark.parametrize(("value_network", "actor_q"), ARCHITECTURES)
@pytest.mark.parametrize("discrete", [False, True])
def test_one_step_equals_its_float64_derivation(
    actor_q: str, target_q: str, value_network: bool, temperature: str, discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, α and every weight, for all combinations of the switches."""
    rates: dict[str, Any] = {f"{name}_learning_rate": rate for name, rate in RATES.items()}
    if not value_network:
        rates.pop("value_learning_rate")
    kwargs: dict[str, Any] = {"ent_coef": "auto_0.3", "ent_coef_update": temperature}
    if temperature == "fixed":
        kwargs = {"ent_coef": 0.3}
        rates.pop("ent_coef_learning_rate")
    model = make_model(
        env=RandomDiscreteEnv() if discrete else RandomEnv(),
        actor_q=actor_q,
        target_q=target_q,
        value_network=value_network,
        policy_kwargs={"net_arch": [16, 16], "optimizer_class": th.optim.SGD, "n_critics": 3},
        reward_scale=2.0,
        tau=0.1,
        **kwargs,
        **rates,
    )
    fill_buffer(model)
    with th.no_grad():  # targets that differ from their networks
        for target in (model.critic_target, model.value_net_target):
            for parameter in [] if target is None else target.parameters():
                parameter.add_(0.1 * th.randn_like(parameter))
    reference = DiscreteReference(model) if discrete else Reference(model)
    assert model.replay_buffer is not None
    batch = model.replay_buffer.sample(32)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: batch)
    noise = train_with_noise(model, 1)
    reference.step(batch, noise.drawn)
    for name, value in reference.losses.items():
        assert logged(model, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert model.temperature.value.item() == pytest.approx(reference.alpha.item(), rel=1e-5)
    for name, weight in model.policy.state_dict().items():
        th.testing.assert_close(weight.double(), reference.weights[name], rtol=1e-4, atol=1e-5, msg=name)


class TestGradientsStayWhereTheyBelong:
    """Each loss trains its own network alone; Spinning Up's code meant to freeze the critics, and did not."""

    @pytest.mark.parametrize(
        ("value_network", "actor_q", "loss"),
        [
            (value_network, actor_q, loss)
            for value_network, actor_q in ARCHITECTURES
            for loss in ("critic", "actor", "temperature", "value_net")[: 3 + value_network]
        ],
    )
    def test_no_loss_reaches_another_network(self, value_network: bool, actor_q: str, loss: str) -> None:
        """Neither by an optimizer step nor by a gradient that a later step would add to its own."""
        model = make_model(value_network=value_network, actor_q=actor_q)
        fill_buffer(model)
        update, batch, alpha = update_of(model), model._sample_batch(16), model.temperature.value.clone()
        numbers, pi = update.numbers(), model.actor.action_distribution(batch.observations)
        names = ["actor", "critic", "critic_target", "value_net", "value_net_target", "temperature"]
        networks = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
        before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
        if loss == "critic":
            target = update.bellman_target(batch, alpha, DRAWN_INSIDE, numbers)
            assert not target.requires_grad
            update.update_critics(batch, target, numbers)
        elif loss == "actor":
            update.update_actor(batch, pi, alpha, numbers)
        elif loss == "temperature":
            update.update_temperature(pi, numbers)
        else:
            update.update_value_network(batch, pi, alpha, DRAWN_INSIDE, numbers)
        for name, network in networks.items():
            moved = [not th.equal(old, new) for old, new in zip(before[name], network.parameters(), strict=True)]
            assert all(moved) if name == loss else not any(moved), name
            assert name == loss or all(parameter.grad is None for parameter in network.parameters()), name

    def test_first_evaluates_the_first_critic_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(actor_q="first", policy_kwargs={"net_arch": [8], "n_critics": 3})
        fill_buffer(model)
        batch = model._sample_batch(16)
        q_values, seen = model.critic.q_values, []

        def spy(observations: Any, actions: th.Tensor, indices: Any = None) -> Any:
            values = q_values(observations, actions, indices)
            seen.append((values, q_values(observations, actions)))
            return values

        monkeypatch.setattr(model.critic, "q_values", spy)
        update, pi = update_of(model), model.actor.action_distribution(batch.observations)
        update.update_actor(batch, pi, model.temperature.value, update.numbers())
        ((used, all_of_them),) = seen
        assert used.shape == (1, 16)
        th.testing.assert_close(used, all_of_them[:1])


class TestTargetSubset:
    def test_a_subset_of_all_is_all(self) -> None:
        models = [make_model(policy_kwargs={"net_arch": [8], "n_critics": 4}, target_subset=m) for m in (None, 4)]
        for model in models:
            fill_buffer(model)
            train_with_noise(model, 3)
        for (name, left), (_, right) in zip(parameters_of(models[0]), parameters_of(models[1]), strict=True):
            th.testing.assert_close(left, right, msg=name)

    def test_the_critic_indices_are_drawn_in_each_step_and_evenly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(policy_kwargs={"net_arch": [8], "n_critics": 4}, target_subset=2, target_q="min")
        fill_buffer(model)
        assert model.critic_target is not None
        seen: list[tuple[int, ...]] = []
        q_values = model.critic_target.q_values

        def spy(observations: Any, actions: th.Tensor, indices: Any = None) -> Any:
            seen.append(tuple(indices.tolist()))
            return q_values(observations, actions, indices)

        monkeypatch.setattr(model.critic_target, "q_values", spy)
        model.train(200, batch_size=4)
        assert len(seen) == 200
        assert all(len(set(indices)) == 2 for indices in seen)
        counts = np.bincount(np.array(seen).ravel(), minlength=4)
        assert counts.sum() == 400
        assert counts.min() > 70  # 100 expected, standard deviation 7


class TestCounters:
    """Both counters run over the whole training: SB3's restarts at every call of ``train()``."""

    def moves(self, model: SoftAC, network: str, n_calls: int = 6) -> list[bool]:
        """Whether ``network`` changes, for each call of ``train()`` with one gradient step."""
        changes = []
        for _ in range(n_calls):
            before = [p.clone() for p in getattr(model, network).parameters()]
            model.train(1, batch_size=8)
            after = getattr(model, network).parameters()
            changes.append(not all(th.equal(x, y) for x, y in zip(before, after, strict=True)))
        return changes

    def test_policy_delay(self) -> None:
        model = make_model(policy_delay=3)
        fill_buffer(model)
        assert self.moves(model, "actor") == [False, False, True] * 2
        assert self.moves(model, "temperature") == [False, False, True] * 2
        assert self.moves(model, "critic") == [True] * 6

    @pytest.mark.parametrize(("value_network", "target"), [(False, "critic_target"), (True, "value_net_target")])
    def test_target_update_interval(self, value_network: bool, target: str) -> None:
        model = make_model(target_update_interval=3, value_network=value_network)
        fill_buffer(model)
        assert self.moves(model, target) == [False, False, True] * 2

    def test_across_save_and_load(self, tmp_path: Any) -> None:
        model = make_model(policy_delay=3, target_update_interval=2)
        fill_buffer(model)
        model.train(2, batch_size=8)
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", env=RandomEnv())
        loaded.set_logger(model.logger)
        fill_buffer(loaded)
        again = copy.deepcopy(loaded)
        assert self.moves(loaded, "actor", 4) == [True, False, False, True]
        assert self.moves(again, "critic_target", 4) == [False, True, False, True]
        assert loaded._n_updates == 6

    def test_several_gradient_steps_count_one_by_one(self) -> None:
        one_call, six_calls = make_model(policy_delay=2), make_model(policy_delay=2)
        for model in (one_call, six_calls):
            fill_buffer(model)
            th.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  # the generator that SB3's buffers draw from
        one_call.train(6, batch_size=8)
        th.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        for _ in range(6):
            six_calls.train(1, batch_size=8)
        assert_same_parameters(one_call, six_calls)

    def test_tau_1_every_n_updates_is_a_hard_copy(self) -> None:
        model = make_model(tau=1.0, target_update_interval=4)
        fill_buffer(model)
        model.train(4, batch_size=8)
        assert model.critic_target is not None
        for name, value in model.critic.state_dict().items():
            assert th.equal(value, model.critic_target.state_dict()[name])
