"""One gradient step against a float64 re-derivation, and what counts, scales and bootstraps over many."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC
from sb3_softac.arguments import DEFAULT_TARGET_ENTROPY_SCALE
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_same_parameters,
    fill_buffer,
    make_model,
    parameters_of,
    train_with_noise,
)
from tests.reference import Networks, Tensors

RATES = {"actor": 0.03, "critic": 0.02, "value": 0.05, "ent_coef": 0.01}


def logged(model: SoftAC, name: str) -> float:
    return float(model.logger.name_to_value[f"train/{name}"])


class Reference(Networks):
    """One gradient step of soft actor-critic: plain SGD, one line per equation of 1801.01290 and 1812.05905."""

    target_entropy = -2.0
    losses: dict[str, float]

    def descend(self, loss: th.Tensor, weights: Tensors, prefix: str, rate: float) -> None:
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
            self.descend(value_loss, w, "value_net", RATES["value"])
        else:
            next_action, next_log_prob = self.pi(s2, noises[1].double(), w)
            next_value = reduce[m.target_q](self.q("critic_target", s2, next_action, w)) - alpha * next_log_prob
        y = (m.reward_scale * r + m.gamma * (1 - d) * next_value).detach()
        critic_loss = sum((0.5 * ((q - y) ** 2).mean() for q in self.q("critic", s, a, w)), th.zeros(()))
        self.losses["critic_loss"] = critic_loss.item()
        self.descend(critic_loss, w, "critic", RATES["critic"])
        w = self.trainable()  # the updated critics
        action, log_prob = self.pi(s, noises[0].double(), w)
        net, how = ("critic_target", "min") if m.actor_q == "target_min" else ("critic", m.actor_q)
        actor_loss = (alpha * log_prob - reduce[how](self.q(net, s, action, w))).mean()
        self.losses["actor_loss"] = actor_loss.item()
        self.descend(actor_loss, w, "actor", RATES["actor"])
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
            self.descend(value_loss, w, "value_net", RATES["value"])
        else:
            next_value = self.expect(self.log_pi(s2, w), reduce[m.target_q](self.q("critic_target", s2, None, w)))
        y = (m.reward_scale * r + m.gamma * (1 - d) * next_value).detach()
        chosen = [th.stack([row[i] for row, i in zip(q, a, strict=True)]) for q in self.q("critic", s, None, w)]
        critic_loss = sum((0.5 * ((q - y) ** 2).mean() for q in chosen), th.zeros(()))
        self.losses["critic_loss"] = critic_loss.item()
        self.descend(critic_loss, w, "critic", RATES["critic"])
        w = self.trainable()  # the updated critics
        net, how = ("critic_target", "min") if m.actor_q == "target_min" else ("critic", m.actor_q)
        log_pi = self.log_pi(s, w)
        actor_loss = -self.expect(log_pi, reduce[how](self.q(net, s, None, w)).detach()).mean()
        self.losses["actor_loss"] = actor_loss.item()
        self.descend(actor_loss, w, "actor", RATES["actor"])
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
    """Each loss leaves gradients in its own network alone; Spinning Up's code meant to freeze the critics, and did not."""

    @pytest.mark.parametrize(
        ("value_network", "actor_q", "loss"),
        [
            (value_network, actor_q, loss)
            for value_network, actor_q in ARCHITECTURES
            for loss in ("critic", "actor", "value_net")[: 2 + value_network]
        ],
    )
    def test_no_loss_reaches_another_network(self, value_network: bool, actor_q: str, loss: str) -> None:
        model = make_model(value_network=value_network, actor_q=actor_q)
        fill_buffer(model)
        batch, alpha = model._sample_batch(16), model.temperature.value
        policy = model.actor.policy_at(batch.observations)
        if loss == "critic":
            target = model._bellman_target(batch, alpha)
            assert not target.requires_grad
            model._update_critics(batch, target)
        elif loss == "actor":
            model._update_actor(batch, policy, alpha)
        else:
            assert model.value_net is not None
            model._update_value_network(model.value_net, batch, policy, alpha)
        networks: Any = [model.actor, model.critic, model.critic_target, model.value_net, model.value_net_target]
        for network in [*networks, model.temperature]:
            if network is not None:
                trained = network is getattr(model, loss)
                assert all((parameter.grad is not None) == trained for parameter in network.parameters())

    def test_first_evaluates_the_first_critic_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(actor_q="first", policy_kwargs={"net_arch": [8], "n_critics": 3})
        fill_buffer(model)
        batch = model._sample_batch(16)
        q_values, seen = model.critic.q_values, []

        def spy(observations: Any, actions: th.Tensor, members: Any = None) -> th.Tensor:
            values = q_values(observations, actions, members)
            seen.append((values, q_values(observations, actions)))
            return values

        monkeypatch.setattr(model.critic, "q_values", spy)
        model._update_actor(batch, model.actor.policy_at(batch.observations), model.temperature.value)
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

    def test_the_members_are_drawn_anew_and_evenly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(policy_kwargs={"net_arch": [8], "n_critics": 4}, target_subset=2, target_q="min")
        fill_buffer(model)
        assert model.critic_target is not None
        seen: list[tuple[int, ...]] = []
        q_values = model.critic_target.q_values

        def spy(observations: Any, actions: th.Tensor, members: Any = None) -> th.Tensor:
            seen.append(tuple(members.tolist()))
            return q_values(observations, actions, members)

        monkeypatch.setattr(model.critic_target, "q_values", spy)
        model.train(200, batch_size=4)
        assert len(seen) == 200
        assert all(len(set(members)) == 2 for members in seen)
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


class CostEnv(RandomEnv):
    """``RandomEnv`` that returns the cost, −r, in place of the reward."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, -reward, *rest


@pytest.mark.parametrize("kwargs", [{}, {"value_network": True}, {"n_steps": 3}, {"ent_coef": 0.1}])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_negative_scale_turns_a_cost_into_a_reward_exactly(kwargs: dict[str, Any], normalize: bool) -> None:
    models = []
    for env_class, scale in ((RandomEnv, 1.0), (CostEnv, -1.0)):
        env: Any = make_vec_env(env_class, n_envs=1, seed=0)
        env = VecNormalize(env) if normalize else env
        model = make_model(env=env, reward_scale=scale, learning_starts=20, **kwargs)
        model.learn(60)
        models.append(model)
    assert models[0]._n_updates == 40
    assert_same_parameters(*models)


class TestBootstrapping:
    """y against the formula, for transitions that the environments made."""

    GAMMA = 0.9

    def collected(self, terminates: bool, n_envs: int, normalize: bool, n_steps: int) -> SoftAC:
        env: Any = make_vec_env(RandomEnv, n_envs=n_envs, seed=0, env_kwargs={"terminates": terminates})
        if normalize:
            env = VecNormalize(env)
        model = make_model(env=env, gamma=self.GAMMA, learning_starts=1000, n_steps=n_steps, ent_coef=0.0)
        model.learn(40 * n_envs)
        return model

    @pytest.mark.parametrize("n_steps", [1, 3])
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("n_envs", [1, 3])
    @pytest.mark.parametrize("terminates", [False, True])
    def test_time_outs_bootstrap_and_terminations_do_not(
        self, terminates: bool, n_envs: int, normalize: bool, n_steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With V(s') = 1 everywhere, y − (discounted rewards) is γ^n after a time-out and 0 after a termination."""
        model = self.collected(terminates, n_envs, normalize, n_steps)
        buffer = model.replay_buffer
        assert buffer is not None
        assert isinstance(buffer, NStepReplayBuffer) == (n_steps > 1)
        ends = np.argwhere(buffer.dones[: buffer.pos])
        assert len(ends) == 8 * n_envs
        assert buffer.timeouts[: buffer.pos].sum() == (0 if terminates else len(ends))
        assert model.critic_target is not None
        monkeypatch.setattr(model.critic_target, "q_values", lambda obs, actions, members: th.ones(2, len(actions)))
        for row, column in ends:
            with monkeypatch.context() as patch:
                patch.setattr(np.random, "randint", lambda *_, size, column=column, **__: np.full(size, column))
                samples = buffer._get_samples(np.full(4, row), env=model._vec_normalize_env)
                patch.setattr(buffer, "sample", lambda *_, samples=samples, **__: samples)
                batch = model._sample_batch(4)
            y = model._bellman_target(batch, model.temperature.value)
            expected = 0.0 if terminates else self.GAMMA
            np.testing.assert_allclose((y - batch.rewards).numpy(), expected, atol=1e-6)

    def test_n_step_discounts_reach_the_target(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = self.collected(terminates=True, n_envs=1, normalize=False, n_steps=3)
        assert model.replay_buffer is not None
        samples = model.replay_buffer._get_samples(np.array([0, 1, 2, 3, 4]))
        monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: samples)
        batch = model._sample_batch(5)
        # Episodes last five steps: from step 2 on the third step is the terminal one.
        np.testing.assert_allclose(batch.discounts.numpy(), [0.9**3, 0.9**3, 0.9**3, 0.9**2, 0.9], rtol=1e-6)
        assert batch.dones.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


class TestOptionsOfAStep:
    def test_gradients_are_clipped_per_network(self) -> None:
        kwargs = {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.SGD}, "learning_rate": 1.0, "tau": 0.0}
        model = make_model(max_grad_norm=0.01, value_network=True, ent_coef=0.2, **kwargs)
        fill_buffer(model)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.train(1, batch_size=16)
        for network in ("actor", "critic", "value_net"):
            steps = [v - before[k] for k, v in model.policy.state_dict().items() if k.startswith(f"{network}.")]
            assert math.sqrt(sum(float(step.square().sum()) for step in steps)) == pytest.approx(0.01, rel=1e-3)
        assert logged(model, "grad_norm_critic") > 0.01
        assert logged(model, "grad_norm_actor") > 0.01

    def test_each_network_has_its_own_rate(self) -> None:
        rates = {"actor": "lin_1e-3", "critic": 2e-3, "value": "exp_1e-3_1e-5", "ent_coef": "lin_1e-2_1e-4"}
        model = make_model(value_network=True, **{f"{name}_learning_rate": rate for name, rate in rates.items()})
        fill_buffer(model)
        model._current_progress_remaining = 0.5
        model.train(1, batch_size=16)
        assert model.value_net is not None
        optimizers: Any = {
            "actor": model.actor.optimizer,
            "critic": model.critic.optimizer,
            "value": model.value_net.optimizer,
            "ent_coef": model.temperature.optimizer,
        }
        expected = {"actor": 5e-4, "critic": 2e-3, "value": 1e-4, "ent_coef": 5.05e-3}
        for name, rate in expected.items():
            assert optimizers[name].param_groups[0]["lr"] == pytest.approx(rate)
            assert logged(model, f"{name}_learning_rate") == pytest.approx(rate)
        assert logged(model, "learning_rate") == pytest.approx(3e-4)

    def test_one_rate_for_all_by_default(self) -> None:
        model = make_model(learning_rate="lin_1e-3")
        fill_buffer(model)
        model._current_progress_remaining = 0.25
        model.train(1, batch_size=16)
        assert model.actor.optimizer.param_groups[0]["lr"] == model.critic.optimizer.param_groups[0]["lr"] == 2.5e-4
        assert "train/actor_learning_rate" not in model.logger.name_to_value

    def test_rates_stop_at_the_planned_end(self) -> None:
        """Eight environments overshoot the last step: a linear rate must not turn negative there."""
        model = make_model(learning_rate=lambda progress: 1e-3 * progress)
        fill_buffer(model)
        model._current_progress_remaining = -0.01
        model.train(1, batch_size=16)
        assert model.actor.optimizer.param_groups[0]["lr"] == 0.0

    def test_a_schedule_that_turns_negative_is_refused(self) -> None:
        model = make_model(actor_learning_rate=lambda progress: progress - 0.5)
        fill_buffer(model)
        model._current_progress_remaining = 0.1
        with pytest.raises(ValueError, match=r"`actor_learning_rate` is -0\.4"):
            model.train(1, batch_size=16)

    def test_the_logged_temperature_is_the_one_that_the_losses_used(self) -> None:
        model = make_model(learning_rate=0.1)
        fill_buffer(model)
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == 1.0
        assert model.temperature.value.item() < 0.95

    def test_a_scheduled_temperature_reaches_the_losses(self) -> None:
        model = make_model(ent_coef="lin_0.4_0.2")
        fill_buffer(model)
        model._current_progress_remaining = 0.5
        model.train(1, batch_size=16)
        assert logged(model, "ent_coef") == pytest.approx(0.3)
        assert "train/ent_coef_loss" not in model.logger.name_to_value
        assert "train/target_entropy" not in model.logger.name_to_value

    def test_batch_normalisation_statistics_reach_the_targets(self) -> None:
        class BatchNormExtractor(BaseFeaturesExtractor):
            def __init__(self, observation_space: Any) -> None:
                super().__init__(observation_space, features_dim=4)
                self.norm = th.nn.BatchNorm1d(4)

            def forward(self, observations: th.Tensor) -> th.Tensor:
                normalised: th.Tensor = self.norm(observations)
                return normalised

        model = make_model(policy_kwargs={"net_arch": [8], "features_extractor_class": BatchNormExtractor}, tau=0.0)
        fill_buffer(model)
        model.train(3, batch_size=16)
        assert model.critic_target is not None
        online: Any = model.critic.features_extractor
        target: Any = model.critic_target.features_extractor
        assert online.norm.running_mean.abs().max() > 0.0
        assert th.equal(online.norm.running_mean, target.norm.running_mean)

    def test_divergence_stops_the_training(self) -> None:
        model = make_model()
        fill_buffer(model)
        model.actor.mu.register_parameter("bias", th.nn.Parameter(th.full((2,), math.nan)))
        with pytest.raises(ValueError, match=r"diverged after 1 gradient steps: .*'actor_loss': nan"):
            model.train(1, batch_size=16)

    def test_logged_metrics(self) -> None:
        model = make_model(value_network=True)
        fill_buffer(model)
        model.train(2, batch_size=16)
        names = (
            "actor_loss critic_loss value_loss ent_coef ent_coef_loss learning_rate n_updates entropy target_entropy "
            "q_value log_std grad_norm_actor grad_norm_critic"
        )
        assert set(model.logger.name_to_value) == {f"train/{name}" for name in names.split()}
        assert logged(model, "n_updates") == 2
        assert logged(model, "target_entropy") == -2.0

    def test_the_target_entropy_is_minus_the_action_dimension(self) -> None:
        assert make_model().target_entropy == -2.0
        assert make_model(target_entropy=-0.7).target_entropy == -0.7
        assert make_model(target_entropy="-0.7").target_entropy == -0.7

    def test_metrics_are_means_over_the_call(self) -> None:
        single, double = make_model(), make_model()
        values = []
        for model, calls in ((single, [1, 1]), (double, [2])):
            fill_buffer(model)
            th.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  # the generator that SB3's buffers draw from
            for gradient_steps in calls:
                model.train(gradient_steps, batch_size=16)
                values.append(logged(model, "critic_loss"))
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-5)
