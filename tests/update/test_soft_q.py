"""One gradient step of soft Q-learning against a float64 re-derivation: weights after plain SGD, losses, targets, temperature.

Sources of truth: 1702.08165, eqs. 3, 4, 10, 11, 13 and 14, and 1608.04471, eq. 8, written out again in this file and in
``test_svgd.py``, one state, particle and critic at a time.
"""

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

from sb3_softac import SoftQL
from sb3_softac.engine import UpdateFlags
from sb3_softac.replay import Batch
from sb3_softac.update import KernelValues, SoftQUpdate, gaussian_kernel
from sb3_softac.update.soft_q import SoftQNoise
from tests.helpers import ACTION_DIM, OBS_DIM, SMALL, RandomDiscreteEnv, RandomEnv, SpaceEnv, fill_buffer
from tests.reference import Networks, Tensors
from tests.update.test_svgd import direction_by_loops, kernel_by_loops

B, K, M = 12, 8, 5
RATES = {"actor": 0.3, "critic": 0.05, "ent_coef": 0.02}
TAU = 0.1


def make_model(**kwargs: Any) -> SoftQL:
    """A small ``SoftQL`` on ``RandomEnv``, with a logger, so that ``train()`` can be called directly."""
    kwargs.setdefault("policy_kwargs", SMALL)
    defaults: dict[str, Any] = {"buffer_size": 500, "device": "cpu", "seed": 0, "compile": False}
    model = SoftQL("MlpPolicy", kwargs.pop("env", None) or RandomEnv(), **(defaults | kwargs))
    model.set_logger(Logger(None, []))
    return model


def sgd(**kwargs: Any) -> dict[str, Any]:
    return {"net_arch": [16, 16], "optimizer_class": th.optim.SGD, **kwargs}


def update_of(model: SoftQL) -> SoftQUpdate:
    update = model._current_update()
    assert isinstance(update, SoftQUpdate)
    return update


def make_batch(discrete: bool = False, size: int = B, seed: int = 5) -> Batch:
    """Transitions of which a third end the episode, and whose returns have one to three steps."""
    rng = np.random.default_rng(seed)

    def tensor(values: Any) -> th.Tensor:
        return th.tensor(np.asarray(values), dtype=th.float32)

    return Batch(
        observations=tensor(rng.uniform(-1, 1, (size, OBS_DIM))),
        actions=th.tensor(rng.integers(0, 3, size)) if discrete else tensor(rng.uniform(-1, 1, (size, ACTION_DIM))),
        next_observations=tensor(rng.uniform(-1, 1, (size, OBS_DIM))),
        dones=tensor(np.arange(size) % 3 == 0),
        rewards=tensor(rng.normal(size=size)),
        discounts=tensor(0.9 ** rng.integers(1, 4, size)),
    )


def make_noise(model: SoftQL, size: int = B, seed: int = 6) -> SoftQNoise:
    generator = th.Generator().manual_seed(seed)
    k, m, dim = model.kernel_particles, model.value_particles, model.actor.noise_dim
    if model.value_proposal == "policy":
        proposals = th.randn((size, m, dim), generator=generator)
    else:
        proposals = 2.0 * th.rand((size, m, ACTION_DIM), generator=generator) - 1.0
    return SoftQNoise(proposals, th.randn((size, k, dim), generator=generator))


def train_on(model: SoftQL, batch: Batch, noise: SoftQNoise | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient step through ``train()``, on this batch and with this noise."""
    monkeypatch.setattr(model, "_batches", lambda *_: iter([batch]))
    monkeypatch.setattr(update_of(model), "draw_noise", lambda *_: noise or SoftQNoise())
    model.train(1, len(batch.rewards))


def shake_targets(model: SoftQL) -> None:
    """Let the targets differ from their networks."""
    assert model.critic_target is not None
    generator = th.Generator().manual_seed(7)
    with th.no_grad():
        for parameter in model.critic_target.parameters():
            parameter.add_(0.2 * th.randn(parameter.shape, generator=generator))


class Reference(Networks):
    """One gradient step with continuous actions: plain SGD."""

    def __init__(self, model: SoftQL) -> None:
        super().__init__(cast(Any, model))
        self.soft_ql = model
        self.metrics: dict[str, float] = {}

    def reduce(self, q_values: list[th.Tensor]) -> th.Tensor:
        how = self.soft_ql.target_q
        stacked = th.stack(q_values)
        return {"min": stacked.min(dim=0).values, "mean": stacked.sum(dim=0) / len(q_values), "first": stacked[0]}[how]

    def sampler(self, s: th.Tensor, xi: th.Tensor, w: Tensors) -> tuple[th.Tensor, th.Tensor | None]:
        """One action per state, and its log-density by the change of variables from ξ to a."""
        if not self.soft_ql.actor.has_density:
            return th.tanh(self.head("mu", th.cat([s, xi], dim=1), w)), None
        deviation = (5 * th.tanh(self.head("log_std", s, w) / 5)).exp()
        action = th.tanh(self.head("mu", s, w) + deviation * xi)
        log_density = -0.5 * xi**2 - 0.5 * math.log(2 * math.pi) - deviation.log() - (1 - action**2).log()
        return action, log_density.sum(dim=1)

    def next_value(self, s2: th.Tensor, proposals: th.Tensor, w: Tensors) -> th.Tensor:
        """α·log (1/M Σ_j exp(Q̄/α)/q), each exponential by itself."""
        total = th.zeros(len(s2), dtype=th.float64)
        for j in range(proposals.shape[1]):
            action, log_density = proposals[:, j].double(), None
            if self.soft_ql.value_proposal == "policy":
                action, log_density = self.sampler(s2, action, w)
            density = th.full_like(total, 0.5**ACTION_DIM) if log_density is None else log_density.exp()
            total = total + (self.reduce(self.q("critic_target", s2, action, w)) / self.alpha).exp() / density
        return self.alpha * (total / proposals.shape[1]).log()

    def gradient_step(self, loss: th.Tensor, w: Tensors, network: str) -> None:
        names = [name for name in w if name.startswith(f"{network}.") and name != "actor.fixed_noise"]
        gradients = th.autograd.grad(loss, [w[name] for name in names])
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        self.metrics |= {f"{network}_loss": loss.item(), f"grad_norm_{network}": norm}
        limit = self.soft_ql.max_grad_norm
        factor = RATES[network] if limit is None or norm <= limit else RATES[network] * limit / norm
        for name, gradient in zip(names, gradients, strict=True):
            self.weights[name] = self.weights[name].detach() - factor * gradient

    def update_critics(self, batch: Batch, w: Tensors, next_value: th.Tensor) -> None:
        r, d, discounts = batch.rewards.double(), batch.dones.double(), batch.discounts.double()
        y = (self.soft_ql.reward_scale * r + discounts * (1 - d) * next_value).detach()
        loss, q_values = th.zeros((), dtype=th.float64), self.q_of_batch(batch, w)
        for q in q_values:
            loss = loss + 0.5 * sum((q[b] - y[b]) ** 2 for b in range(len(y))) / len(y)
        self.metrics["q_value"] = sum(q.mean().item() for q in q_values) / len(q_values)
        self.gradient_step(loss, w, "critic")

    def q_of_batch(self, batch: Batch, w: Tensors) -> list[th.Tensor]:
        return self.q("critic", cast(th.Tensor, batch.observations).double(), batch.actions.double(), w)

    def direction(self, s: th.Tensor, fixed: list[th.Tensor], updated: list[th.Tensor]) -> th.Tensor:
        """Δ, (B, I, A), with the score of each fixed particle by automatic differentiation."""
        w, scores = self.weights, []
        for a in fixed:
            leaf = a.detach().clone().requires_grad_()
            log_p = self.reduce(self.q("critic", s, leaf, w)) / self.alpha + (1 - leaf**2 + 1e-6).log().sum(dim=1)
            scores.append(th.autograd.grad(log_p.sum(), leaf)[0])
        values, gradients = kernel_by_loops(*(th.stack(part, 1).detach().numpy() for part in (fixed, updated)))
        return th.tensor(direction_by_loops(th.stack(scores, dim=1).detach().numpy(), values, gradients))

    def step(self, batch: Batch, noise: SoftQNoise) -> None:
        s, s2 = (cast(th.Tensor, each).double() for each in (batch.observations, batch.next_observations))
        assert noise.proposals is not None
        assert noise.particles is not None
        w = self.trainable()
        self.update_critics(batch, w, self.next_value(s2, noise.proposals, w))
        w = self.trainable()  # the updated critics
        actions = [self.sampler(s, noise.particles[:, k].double(), w)[0] for k in range(K)]
        n_fixed = K - int(K * self.soft_ql.kernel_update_ratio)
        direction = self.direction(s, actions[:n_fixed], actions[n_fixed:])
        # The mean over states and dimensions of the standard deviation of the K actions.
        self.metrics["particle_std"] = float(th.stack(actions).detach().numpy().std(axis=0, ddof=1).mean())
        self.metrics["stein_norm"] = math.sqrt(float((direction**2).sum()) / (len(s) * (K - n_fixed)))
        loss = th.zeros((), dtype=th.float64)
        for b, i in itertools.product(range(len(s)), range(K - n_fixed)):
            loss = loss - actions[n_fixed + i][b] @ direction[b, i] / (len(s) * (K - n_fixed))
        self.gradient_step(loss, w, "actor")
        self.track("critic", "critic_target", TAU)


class DiscreteReference(Reference):
    """The same with three discrete actions, where every integral is a sum (1702.08165, eqs. 3 and 4)."""

    def all_q(self, net: str, s: th.Tensor, w: Tensors) -> th.Tensor:
        return self.reduce([q.reshape(len(s), 3) for q in self.q(net, s, None, w)])

    def q_of_batch(self, batch: Batch, w: Tensors) -> list[th.Tensor]:
        s = cast(th.Tensor, batch.observations).double()
        return [th.stack([q[b, a] for b, a in enumerate(batch.actions.tolist())]) for q in self.q("critic", s, None, w)]

    def step(self, batch: Batch, noise: SoftQNoise) -> None:
        s, s2 = (cast(th.Tensor, each).double() for each in (batch.observations, batch.next_observations))
        w, alpha = self.trainable(), self.alpha
        q_next = self.all_q("critic_target", s2, w)
        self.update_critics(batch, w, alpha * sum((q_next[:, a] / alpha).exp() for a in range(3)).log())  # type: ignore[union-attr]  # not an int
        weights = (self.all_q("critic", s, self.weights) / alpha).exp()
        pi = weights / weights.sum(dim=1, keepdim=True)
        self.metrics["entropy"] = -float((pi * pi.log()).sum(dim=1).mean())
        self.update_alpha(self.metrics["entropy"])
        self.track("critic", "critic_target", TAU)

    def update_alpha(self, entropy: float) -> None:
        """α ← max(0, α − λ(Ĥ − H̄)), or a first step of Adam on log α."""
        alpha, gap, rate = self.alpha.item(), entropy - 0.5 * math.log(3), RATES["ent_coef"]
        if str(self.soft_ql.ent_coef).startswith("auto"):
            gradient = {"dual": gap, "log": gap, "exp": alpha * gap}[self.soft_ql.ent_coef_update]
            if self.soft_ql.ent_coef_update == "dual":
                alpha = max(0.0, alpha - rate * gradient)
            else:
                alpha = math.exp(math.log(alpha) - rate * gradient / (abs(gradient) + 1e-8))
        self.alpha = th.tensor(alpha, dtype=th.float64)


def assert_one_step(model: SoftQL, reference: Reference, discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight, target, metric and the temperature, after one step of both."""
    batch, before = make_batch(discrete), {name: value.clone() for name, value in model.policy.state_dict().items()}
    noise = SoftQNoise() if discrete else make_noise(model)
    train_on(model, batch, noise, monkeypatch)
    reference.step(batch, noise)
    for name, expected in reference.metrics.items():
        assert model.logger.name_to_value[f"train/{name}"] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    for name, weight in model.policy.state_dict().items():
        if name == "actor.ent_coef":
            continue
        # What moved is compared: a weight of 0.3 that should have moved by 1e-3 is close to one that did not move.
        moved, expected_move = (weight - before[name]).double(), reference.weights[name] - before[name].double()
        scale = expected_move.abs().max().item()
        assert (scale > 1e-6) is (name != "actor.fixed_noise"), name
        assert (moved - expected_move).abs().max().item() <= 2e-3 * scale + 1e-7, name


def box_model(**kwargs: Any) -> SoftQL:
    """With every number away from its default, and targets that differ from their networks."""
    policy_kwargs = sgd(n_critics=kwargs.pop("n_critics", 2), sampler=kwargs.pop("sampler", "mlp"))
    options: dict[str, Any] = {"reward_scale": 2.5, "ent_coef": 0.5, "tau": TAU, "target_update_interval": 1}
    options |= {"kernel_particles": K, "value_particles": M, "policy_kwargs": policy_kwargs}
    options |= {f"{name}_learning_rate": RATES[name] for name in ("actor", "critic")}
    model = make_model(**(options | kwargs))
    shake_targets(model)
    return model


CRITICS = [(1, "min"), (2, "min"), (2, "mean"), (2, "first")]


class TestContinuousActions:
    @pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
    @pytest.mark.parametrize("ent_coef", [0.5, 1.0])
    @pytest.mark.parametrize("proposal", ["uniform", "policy"])
    @pytest.mark.parametrize(("n_critics", "target_q"), CRITICS)
    def test_one_step(
        self, n_critics: int, target_q: Any, proposal: Any, ent_coef: float, ratio: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sampler = "gaussian" if proposal == "policy" else "mlp"
        options: dict[str, Any] = {"target_q": target_q, "value_proposal": proposal, "kernel_update_ratio": ratio}
        model = box_model(n_critics=n_critics, sampler=sampler, ent_coef=ent_coef, **options)
        assert_one_step(model, Reference(model), False, monkeypatch)

    @pytest.mark.parametrize(
        "options",
        [
            {"reward_scale": -1.5},
            {"noise_dim": 5},
            {"sampler": "gaussian"},  # uniform proposals beside a sampler with a density
            {"value_particles": 1},
            {"ent_coef": 3.0, "reward_scale": 30.0},
        ],
    )
    def test_other_options(self, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        model = box_model(**options)
        assert_one_step(model, Reference(model), False, monkeypatch)

    def test_gradients_are_clipped_network_by_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both norms are above the limit; what moves has the norm λ·limit."""
        model = box_model(max_grad_norm=0.05)
        reference, before = Reference(model), {name: value.clone() for name, value in model.policy.state_dict().items()}
        assert_one_step(model, reference, False, monkeypatch)
        for network in ("actor", "critic"):
            assert reference.metrics[f"grad_norm_{network}"] > 0.1
            moved = [v - before[n] for n, v in model.policy.state_dict().items() if n.startswith(f"{network}.")]
            norm = math.sqrt(sum(float((each**2).sum()) for each in moved))
            assert norm == pytest.approx(RATES[network] * 0.05, rel=1e-3)

    def test_a_high_limit_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = box_model(max_grad_norm=1e6)
        assert_one_step(model, Reference(model), False, monkeypatch)


class TestDiscreteActions:
    @pytest.mark.parametrize("temperature", ["fixed", "dual", "log", "exp"])
    @pytest.mark.parametrize(("n_critics", "target_q"), CRITICS)
    def test_one_step(self, n_critics: int, target_q: Any, temperature: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        options: dict[str, Any] = {"ent_coef": 0.5}
        if temperature != "fixed":
            options = {"ent_coef": "auto_0.5", "ent_coef_update": temperature, "ent_coef_learning_rate": RATES["ent_coef"]}
        model = make_model(
            env=RandomDiscreteEnv(),
            policy_kwargs=sgd(n_critics=n_critics),
            critic_learning_rate=RATES["critic"],
            reward_scale=2.5,
            target_q=target_q,
            tau=TAU,
            target_update_interval=1,
            **options,
        )
        shake_targets(model)
        reference = DiscreteReference(model)
        assert_one_step(model, reference, True, monkeypatch)
        assert model.temperature.value.item() == pytest.approx(reference.alpha.item(), rel=1e-5)
        assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(0.5)  # of the losses: that from before the step
        assert (model.temperature.value.item() == 0.5) is (temperature == "fixed")
        assert model.actor.ent_coef.item() == model.temperature.value.item()  # it acts at the one from after the step

    def test_it_acts_at_the_present_temperature(self) -> None:
        """π = softmax(Q/α) of the critics and of α as they are after the step."""
        model = make_model(env=RandomDiscreteEnv(), ent_coef="auto_0.5", ent_coef_learning_rate=0.2)
        fill_buffer(model)
        model.train(5, 16)
        obs, alpha = th.rand(7, OBS_DIM), model.temperature.value.item()
        assert abs(alpha - 0.5) > 0.05
        with th.no_grad():
            q = model.critic.q_values(obs)[0].double()
            expected = (q / alpha).exp() / (q / alpha).exp().sum(dim=1, keepdim=True)
            np.testing.assert_allclose(model.actor.log_probs(obs).exp(), expected, rtol=1e-4)

    def test_a_scheduled_temperature(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each step uses the α of its own time, also in the entropy that it logs, and acts at it afterwards."""
        model = make_model(env=RandomDiscreteEnv(), ent_coef="lin_1.0_0.1", reward_scale=10.0, critic_learning_rate=0.05)
        batch, metrics = make_batch(discrete=True), model.logger.name_to_value
        for progress, alpha in ((1.0, 1.0), (0.5, 0.55), (0.0, 0.1)):
            model._current_progress_remaining = progress
            train_on(model, batch, None, monkeypatch)
            assert model.actor.ent_coef.item() == pytest.approx(alpha)
            assert metrics["train/ent_coef"] == pytest.approx(alpha)
            with th.no_grad():
                weights = (model.critic.q_values(batch.observations)[0].double() / alpha).exp()
            pi = weights / weights.sum(dim=1, keepdim=True)
            assert metrics["train/entropy"] == pytest.approx(-float((pi * pi.log()).sum(dim=1).mean()), rel=1e-4)

    @pytest.mark.parametrize("how", ["dual", "log", "exp"])
    def test_the_bound_of_a_learned_temperature(self, how: Any) -> None:
        """An H̄ of almost log 3 is above the entropy of any policy that is not uniform, so that α grows up to its bound."""
        up: dict[str, Any] = {"ent_coef": "auto_0.5", "ent_coef_update": how, "ent_coef_learning_rate": 0.5}
        model = make_model(env=RandomDiscreteEnv(), ent_coef_max=0.6, target_entropy=1.0986, reward_scale=50.0, **up)
        fill_buffer(model)
        model.train(60, 16)
        assert model.temperature.value.item() == pytest.approx(0.6)
        assert model.actor.ent_coef.item() <= 0.6

    @pytest.mark.parametrize("ent_coef", [0.0, "auto_0"])
    def test_no_temperature_is_q_learning(self, ent_coef: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """α = 0: y = k·r + γ(1 − d)·max_a Q̄; the entropy is 0, which a learned α answers by growing."""
        model = make_model(env=RandomDiscreteEnv(), ent_coef=ent_coef, policy_kwargs=sgd(), critic_learning_rate=0.05)
        shake_targets(model)
        batch = make_batch(discrete=True)
        assert model.critic_target is not None
        with th.no_grad():
            largest = model.critic_target.q_values(batch.next_observations)[0].max(dim=1).values
            y = batch.rewards + batch.discounts * (1 - batch.dones) * largest
            chosen = model.critic.q_values(batch.observations)[0][range(B), batch.actions]
            expected = 0.5 * ((chosen - y) ** 2).mean().item()
        train_on(model, batch, None, monkeypatch)
        assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(expected, rel=1e-5)
        assert model.logger.name_to_value["train/entropy"] == 0.0
        assert (model.temperature.value.item() > 0.0) is (ent_coef == "auto_0")
        assert all(th.isfinite(weight).all() for weight in model.policy.state_dict().values())


class TestTheSoftValue:
    @pytest.mark.parametrize("proposal", ["uniform", "policy"])
    def test_both_proposals_estimate_the_integral(self, proposal: Any) -> None:
        """α·log ∫ exp(min_i Q̄_i(s', a)/α) da of real networks, by quadrature over one action. Of 200,000 draws the error was
        at most 0.003·α with the uniform proposal and 0.006·α with the policy's, over ten seeds.
        """
        env = SpaceEnv(spaces.Box(-1.0, 1.0, (1,), np.float32))
        kwargs: dict[str, Any] = {
            "value_proposal": proposal,
            "policy_kwargs": {**SMALL, "n_critics": 2, "sampler": "gaussian"},
        }
        model = make_model(env=env, ent_coef=0.05, value_particles=200_000, **kwargs)
        shake_targets(model)
        batch, alpha = make_batch(size=1), 0.05
        th.manual_seed(0)
        update = update_of(model)
        with th.no_grad():
            estimate = update.next_value(batch, th.tensor(alpha), update.draw_noise(1, UpdateFlags(True, True))).item()
            grid = th.linspace(-1, 1, 20_001).view(1, -1, 1)
            assert model.critic_target is not None
            q = model.critic_target.q_values(batch.next_observations, grid).double().numpy()[:, 0].min(axis=0)
        exact = alpha * math.log(np.trapezoid(np.exp(q / alpha), grid.double().numpy()[0, :, 0]))
        assert abs(q.max() - q.min()) > alpha  # not flat
        assert estimate == pytest.approx(exact, abs=0.02 * alpha)

    def test_uniform_proposals_fill_the_cube(self) -> None:
        """Their density is 2^−A only if they are uniform on [−1, 1]^A, whatever the bounds of the environment."""
        update = update_of(make_model(value_particles=M, kernel_particles=K))
        noise = update.draw_noise(4000, UpdateFlags(True, True))
        assert noise.proposals is not None
        assert noise.particles is not None
        assert noise.proposals.shape == (4000, M, ACTION_DIM)
        assert noise.particles.shape == (4000, K, ACTION_DIM)
        flat = noise.proposals.flatten(0, 1).double().numpy()
        assert np.abs(flat).max() <= 1.0
        for column in flat.T:
            places = np.sort(column)
            assert np.abs(places - np.linspace(-1, 1, len(places))).max() < 0.05  # Kolmogorov's statistic is half of it
        assert abs(np.corrcoef(flat.T)[0, 1]) < 0.04
        assert noise.particles.double().mean().abs().item() < 0.02
        assert noise.particles.double().std().item() == pytest.approx(1.0, abs=0.02)

    def test_the_policys_proposals_are_noise_of_its_own(self) -> None:
        kwargs: dict[str, Any] = {"value_proposal": "policy", "policy_kwargs": {**SMALL, "sampler": "gaussian"}}
        noise = update_of(make_model(value_particles=M, **kwargs)).draw_noise(2000, UpdateFlags(True, True))
        assert noise.proposals is not None
        assert noise.proposals.shape == (2000, M, ACTION_DIM)
        assert noise.proposals.std().item() == pytest.approx(1.0, abs=0.05)  # that of a uniform one is 0.58

    def test_a_terminal_state_has_no_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the targets say there: y = k·r."""
        model, batch = box_model(), make_batch()._replace(dones=th.ones(B))
        noise, update = make_noise(model), update_of(model)
        target = update.bellman_target(batch, th.tensor(0.5), noise, update.numbers())
        th.testing.assert_close(target, 2.5 * batch.rewards)


class TestGradientsStayWhereTheyBelong:
    """The critics' loss trains the critics alone, the sampler's loss the sampler alone."""

    @pytest.mark.parametrize("loss", ["critic", "actor", "target"])
    @pytest.mark.parametrize("proposal", ["uniform", "policy"])
    def test_no_loss_reaches_another_network(self, proposal: Any, loss: str) -> None:
        model = box_model(value_proposal=proposal, sampler="gaussian")
        update, batch, noise = update_of(model), make_batch(), make_noise(model)
        networks: dict[str, Any] = {"actor": model.actor, "critic": model.critic, "target": model.critic_target}
        before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
        target = update.bellman_target(batch, th.tensor(0.5), noise, update.numbers())
        assert not target.requires_grad
        if loss == "critic":
            update.update_critics(batch, target, update.numbers())
        elif loss == "actor":
            update.update_sampler(batch, th.tensor(0.5), noise, update.numbers())
        else:
            update.update_targets(update.numbers())
        for name, network in networks.items():
            moved = [not th.equal(old, new) for old, new in zip(before[name], network.parameters(), strict=True)]
            assert all(moved) if name == loss else not any(moved), name
            assert name == loss or all(parameter.grad is None for parameter in network.parameters()), name

    def test_fixed_particles_carry_no_gradient(self) -> None:
        """Δ is a number to the sampler: with the fixed ones held, only I particles move it."""
        model = box_model(kernel_update_ratio=0.25)
        update, batch, noise = update_of(model), make_batch(), make_noise(model)
        assert noise.particles is not None
        actions = model.actor.particles(batch.observations, noise.particles).actions
        direction = update.stein_direction(batch.observations, actions[:, :6], actions[:, 6:], th.tensor(0.5))
        assert direction.shape == (B, 2, ACTION_DIM)
        assert not direction.requires_grad
        assert all(parameter.grad is None for parameter in model.policy.parameters())

    def test_the_sampler_does_not_influence_q(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With uniform proposals the same critics come out of any sampler; with the policy's they do not."""
        for proposal, same in (("uniform", True), ("policy", False)):
            critics = []
            for shift in (0.0, 1.0):
                model = box_model(value_proposal=proposal, sampler="gaussian")
                with th.no_grad():
                    model.actor.mu.bias.add_(shift)
                train_on(model, make_batch(), make_noise(model), monkeypatch)
                critics.append([parameter.clone() for parameter in model.critic.parameters()])
            assert all(map(th.equal, *critics)) is same, proposal


class TestTargets:
    def moves(self, model: SoftQL, n_steps: int = 6) -> list[bool]:
        """Whether the targets change, for each gradient step; if so, whether they are a copy of the critics."""
        changes = []
        for _ in range(n_steps):
            assert model.critic_target is not None
            before = [parameter.clone() for parameter in model.critic_target.parameters()]
            model.train(1, 8)
            moved = [not th.equal(x, y) for x, y in zip(before, model.critic_target.parameters(), strict=True)]
            assert all(moved) is any(moved)
            if all(moved):
                for target, online in zip(model.critic_target.parameters(), model.critic.parameters(), strict=True):
                    assert th.equal(target, online)
            changes.append(all(moved))
        return changes

    @pytest.mark.parametrize("discrete", [False, True])
    def test_they_are_copied_every_so_many_gradient_steps(self, discrete: bool) -> None:
        model = make_model(env=RandomDiscreteEnv() if discrete else RandomEnv(), target_update_interval=3)
        assert model.tau == 1.0
        fill_buffer(model)
        assert self.moves(model) == [False, False, True] * 2

    def test_the_steps_are_counted_across_calls(self) -> None:
        model = make_model(target_update_interval=4)
        fill_buffer(model)
        model.train(3, 8)
        assert self.moves(model, 5) == [True, False, False, False, True]

    def test_polyak_averages(self) -> None:
        """θ̄ ← τθ + (1 − τ)θ̄ after each step of the critics."""
        model = make_model(tau=0.25, target_update_interval=1)
        fill_buffer(model)
        shake_targets(model)
        assert model.critic_target is not None
        for _ in range(3):
            before = [parameter.double().clone() for parameter in model.critic_target.parameters()]
            model.train(1, 8)
            for old, target, online in zip(before, model.critic_target.parameters(), model.critic.parameters(), strict=True):
                expected = 0.25 * online.double() + 0.75 * old
                th.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-7)

    def test_the_default_is_that_of_the_paper(self) -> None:
        model = make_model()
        assert (model.tau, model.target_update_interval, model.critic.n_critics) == (1.0, 1000, 1)
        assert (model.kernel_particles, model.value_particles, model.kernel_update_ratio) == (16, 16, 0.5)


def constant_kernel(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    """κ = 1: all updated particles follow the mean score."""
    shape = (*fixed.shape[:2], updated.shape[1])
    return KernelValues(th.ones(shape), th.zeros((*shape, fixed.shape[2])))


class TestKernelsOfAUser:
    def test_it_is_used(self) -> None:
        """Δ_i is the mean score of the fixed particles, by automatic differentiation in float64."""
        model = box_model(kernel=constant_kernel)
        update, batch, noise = update_of(model), make_batch(), make_noise(model)
        assert noise.particles is not None
        with th.no_grad():
            actions = model.actor.particles(batch.observations, noise.particles).actions
        fixed, updated = actions[:, :4], actions[:, 4:]
        direction = update.stein_direction(batch.observations, fixed, updated, th.tensor(0.5))
        reference, s = Reference(model), cast(th.Tensor, batch.observations).double()
        mean = th.zeros(B, ACTION_DIM, dtype=th.float64)
        for j in range(4):
            leaf = fixed[:, j].double().clone().requires_grad_()
            q = reference.reduce(reference.q("critic", s, leaf, reference.weights))
            mean += th.autograd.grad((q / 0.5 + (1 - leaf**2 + 1e-6).log().sum(dim=1)).sum(), leaf)[0] / 4
        np.testing.assert_allclose(direction, mean.unsqueeze(1).expand(-1, 4, -1), rtol=1e-4, atol=1e-5)

    def test_it_sees_the_fixed_particles_first(self) -> None:
        seen = []

        def spy(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
            seen.append((fixed.clone(), updated.clone(), fixed.requires_grad or updated.requires_grad))
            return gaussian_kernel(fixed, updated)

        model = box_model(kernel=spy, kernel_update_ratio=0.25)
        update, batch, noise = update_of(model), make_batch(), make_noise(model)
        assert noise.particles is not None
        with th.no_grad():
            actions = model.actor.particles(batch.observations, noise.particles).actions
        update.update_sampler(batch, th.tensor(0.5), noise, update.numbers())
        ((fixed, updated, has_gradient),) = seen
        th.testing.assert_close(fixed, actions[:, :6])
        th.testing.assert_close(updated, actions[:, 6:])
        assert not has_gradient

    def test_ours_through_a_function_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = box_model(), box_model(kernel=lambda fixed, updated: gaussian_kernel(fixed, updated))
        for model in (ours, theirs):
            train_on(model, make_batch(), make_noise(model), monkeypatch)
        for name, weight in ours.policy.state_dict().items():
            assert th.equal(weight, theirs.policy.state_dict()[name]), name

    def test_it_is_compiled_only_if_it_says_so(self) -> None:
        def compilable(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
            return gaussian_kernel(fixed, updated)

        compilable.compilable = True  # type: ignore[attr-defined]  # what it says
        assert update_of(make_model()).compilable
        assert update_of(make_model(kernel=compilable)).compilable
        assert not update_of(make_model(kernel=constant_kernel)).compilable
