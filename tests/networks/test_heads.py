"""Critics that are distributions: equations by hand, closed forms, and every way to run and keep them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC, SoftACPolicy, SoftQL
from sb3_softac.export import ExportedPolicy
from sb3_softac.networks.heads import CategoricalHead, QuantileHead, ScalarHead
from sb3_softac.update import losses
from sb3_softac.update.losses import Atoms
from tests.graph_standin import GraphStandIn
from tests.graph_standin import install as install_standin
from tests.helpers import (
    RandomDiscreteEnv,
    RandomEnv,
    assert_close,
    assert_same_parameters,
    build,
    fill_buffer,
    make_model,
    needs_compiler,
    net,
    restart_generators,
    traced_except,
)

HEADS: dict[str, dict[str, Any]] = {
    "quantile": net(critic_head="quantile", n_quantiles=5),
    "one quantile critic": net(critic_head="quantile", n_quantiles=5, n_critics=1),
    "categorical": net(critic_head="categorical", n_atoms=61, value_range=(-30, 30)),
    "categorical, mean": {
        **net(critic_head="categorical", n_atoms=61, value_range=(-30, 40)),
        "target_q": "mean",
        "actor_q": "mean",
    },
    "categorical, first": {**net(critic_head="categorical", n_atoms=61, value_range=(-30, 30)), "target_q": "first"},
    "quantile, subset": {**net(critic_head="quantile", n_quantiles=5, n_critics=4), "target_subset": 2},
    "quantile, value network": {**net(critic_head="quantile", n_quantiles=5), "value_network": True, "target_q": "mean"},
    "categorical, value network": {**net(critic_head="categorical", n_atoms=61, value_range=(-30, 30)), "value_network": True},
    "quantile, soft n-step": {**net(critic_head="quantile", n_quantiles=5), "n_steps": 3, "soft_n_step": True},
    "quantile, discrete": {**net(critic_head="quantile", n_quantiles=5), "discrete": True},
    "categorical, discrete": {**net(critic_head="categorical", n_atoms=61, value_range=(-30, 30)), "discrete": True},
}
RNG = th.Generator().manual_seed(0)


def random(*shape: int) -> th.Tensor:
    return th.randn(shape, generator=RNG, dtype=th.float64)


class TestEquations:
    """Loops over single numbers, in float64."""

    @pytest.mark.parametrize("dropped", [0, 1, 3])
    def test_truncated_quantiles(self, dropped: int) -> None:
        quantiles, log_prob, alpha = random(3, 4, 5), random(4), th.tensor(0.3, dtype=th.float64)
        atoms = losses.truncated_quantiles(quantiles, log_prob, alpha, dropped)
        assert atoms.weights is None
        for state in range(4):
            pooled = sorted(quantiles[:, state].flatten().tolist())[: 15 - 3 * dropped]
            expected = [value - 0.3 * log_prob[state].item() for value in pooled]
            np.testing.assert_allclose(atoms.values[state], expected)

    def test_discrete_truncation_with_a_certain_action_is_the_continuous_one(self) -> None:
        quantiles, alpha = random(2, 3, 4, 5), th.tensor(0.5, dtype=th.float64)
        log_probs = th.full((3, 4), -1000.0, dtype=th.float64)
        log_probs[:, 2] = 0.0
        atoms = losses.discrete_truncated_quantiles(quantiles, log_probs, alpha, 2)
        expected = losses.truncated_quantiles(quantiles[:, :, 2], th.zeros(3, dtype=th.float64), alpha, 2).values
        assert atoms.weights is not None
        for state in range(3):
            kept = atoms.values[state][atoms.weights[state] > 1e-12]
            np.testing.assert_allclose(kept, expected[state])
            np.testing.assert_allclose(atoms.weights[state].sum(), 1.0)

    def test_discrete_mixture_has_the_soft_value_as_its_mean(self) -> None:
        quantiles, alpha = random(2, 3, 4, 5), th.tensor(0.5, dtype=th.float64)
        log_probs = random(3, 4).log_softmax(dim=1)
        atoms = losses.discrete_truncated_quantiles(quantiles, log_probs, alpha, 0)
        assert atoms.weights is not None
        expected = losses.discrete_soft_value(quantiles.mean(dim=(0, 3)), log_probs, alpha)
        np.testing.assert_allclose((atoms.values * atoms.weights).sum(dim=1), expected)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_quantile_huber_loss(self, weighted: bool) -> None:
        quantiles, values = 2.0 * random(2, 3, 4), 2.0 * random(3, 6)
        weights = random(3, 6).softmax(dim=1) if weighted else th.full((3, 6), 1 / 6, dtype=th.float64)
        total = 0.0
        for critic, state, m, j in np.ndindex(2, 3, 4, 6):
            error = (values[state, j] - quantiles[critic, state, m]).item()
            huber = 0.5 * error**2 if abs(error) <= 1.0 else abs(error) - 0.5
            total += abs((m + 0.5) / 4 - (error < 0)) * huber * weights[state, j].item()
        loss = losses.quantile_huber_loss(quantiles, Atoms(values, weights if weighted else None))
        assert loss.item() == pytest.approx(total / (2 * 3 * 4))

    def test_one_quantile_near_its_target_has_the_scalar_gradient(self) -> None:
        """|0.5 − 1[...]| = 0.5: half of the squared error, as ½(Q − y)² has it, up to the factor of the mean over critics."""
        outputs = (0.1 * random(1, 6, 1)).requires_grad_()
        target = 0.1 * random(6)
        (quantile,) = th.autograd.grad(QuantileHead(1).loss(outputs, target), outputs)
        (scalar,) = th.autograd.grad(ScalarHead().loss(outputs, target), outputs)
        np.testing.assert_allclose(2.0 * quantile, scalar)

    def test_projection(self) -> None:
        values, weights = 3.0 * random(5, 7), random(5, 7).softmax(dim=1)
        projected = losses.project(Atoms(values, weights), -2.0, 2.0, 9)
        support = np.linspace(-2.0, 2.0, 9)
        expected = np.zeros((5, 9))
        for state, j in np.ndindex(5, 7):
            value = float(np.clip(values[state, j].item(), -2.0, 2.0))
            share = np.clip(1.0 - np.abs(value - support) / 0.5, 0.0, 1.0)  # of each atom within its spacing
            expected[state] += weights[state, j].item() * share
        np.testing.assert_allclose(projected, expected, atol=1e-12)
        np.testing.assert_allclose(projected.sum(dim=1), 1.0)

    def test_projection_keeps_the_mean_where_nothing_is_clamped(self) -> None:
        values, weights = random(5, 7).clamp(-1.9, 1.9), random(5, 7).softmax(dim=1)
        projected = losses.project(Atoms(values, weights), -2.0, 2.0, 9)
        np.testing.assert_allclose((projected * th.linspace(-2, 2, 9)).sum(dim=1), (values * weights).sum(dim=1))

    def test_the_bounds_themselves(self) -> None:
        projected = losses.project(Atoms(th.tensor([[-2.0, 2.0, 5.0, -7.0]])), -2.0, 2.0, 3)
        assert projected.tolist() == [[0.5, 0.0, 0.5]]
        assert losses.share_outside(Atoms(th.tensor([[-2.0, 2.0, 5.0, -7.0]])), -2.0, 2.0).item() == 0.5

    def test_cross_entropy(self) -> None:
        logits, target = random(2, 3, 5), random(3, 5).softmax(dim=1)
        expected = -sum((target[b, k] * logits[n, b].log_softmax(0)[k]).item() for n, b, k in np.ndindex(2, 3, 5))
        assert losses.categorical_loss(logits, target).item() == pytest.approx(expected / 6)

    @pytest.mark.parametrize(("how", "chosen"), [("min", [1, 0]), ("first", [0, 0])])
    def test_the_distribution_of_the_smaller_value(self, how: Any, chosen: list[int]) -> None:
        probabilities = th.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.4, 0.6]]])  # (critics, states, atoms)
        reduced = losses.reduce_distributions(probabilities, th.tensor([0.0, 1.0]), how)
        assert th.equal(reduced, th.stack([probabilities[c, s] for s, c in enumerate(chosen)]))


class TestBandit:
    """One state, done after one step, reward 0 or 1 with equal probability: the critic finds the distribution."""

    def fit(self, head: Any, n_steps: int) -> th.Tensor:
        generator = th.Generator().manual_seed(0)
        outputs = th.zeros(1, 1, head.n_numbers, requires_grad=True)
        optimizer = th.optim.Adam([outputs], lr=0.02)
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1.0 - step / n_steps)
            rewards = th.randint(0, 2, (256,), generator=generator).float()
            loss = head.loss(outputs.expand(1, 256, -1), Atoms(rewards.unsqueeze(1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return outputs.detach()

    def test_categories(self) -> None:
        head = CategoricalHead(5, (-1.0, 1.0))
        np.testing.assert_allclose(self.fit(head, 800).softmax(dim=2)[0, 0], [0, 0, 0.5, 0, 0.5], atol=0.03)

    def test_quantiles(self) -> None:
        """Of the Huber loss: each minimises τ(1 − θ)²/4 + ..., which gives θ = τ for errors within κ = 1."""
        np.testing.assert_allclose(self.fit(QuantileHead(4), 800)[0, 0], [0.125, 0.375, 0.625, 0.875], atol=0.05)


class TwoStates(gym.Env[Any, Any]):
    """Two states and two actions; the action is the next state, and no episode ends."""

    rewards = ((1.0, 0.0), (0.5, 2.0))
    observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    @staticmethod
    def observe(state: int) -> Any:
        return np.eye(2, dtype=np.float32)[state]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observe(0), {}


class TestTwoStates:
    """The soft values of an MDP with two states, by value iteration: Q = r + γV(s'), V = α log Σ exp(Q/α)."""

    gamma, ent_coef = 0.9, 0.5

    def soft_q(self) -> Any:
        q = np.zeros((2, 2))
        for _ in range(500):
            value = self.ent_coef * np.log(np.exp(q / self.ent_coef).sum(axis=1))
            q = np.array(TwoStates.rewards) + self.gamma * value  # the next state is the action
        return q

    @pytest.mark.parametrize(
        "head",
        [
            {"critic_head": "quantile", "n_quantiles": 5},
            {"critic_head": "categorical", "n_atoms": 81, "value_range": (0.0, 40.0)},
            {"critic_head": "scalar"},
        ],
    )
    def test_soft_values(self, head: dict[str, Any]) -> None:
        options: dict[str, Any] = {"top_quantiles_to_drop_per_net": 0} if head["critic_head"] == "quantile" else {}
        model = SoftAC(
            "MlpPolicy",
            TwoStates(),
            gamma=self.gamma,
            ent_coef=self.ent_coef,
            learning_rate="lin_1e-2_1e-4",
            tau=0.05,
            buffer_size=4,
            seed=0,
            compile=False,
            policy_kwargs={"net_arch": [32], "n_critics": 1, **head},
            **options,
        )
        buffer: Any = model.replay_buffer
        for state, row in enumerate(TwoStates.rewards):
            for action, reward in enumerate(row):
                rows = [np.array([part]) for part in (TwoStates.observe(state), TwoStates.observe(action), action, reward)]
                buffer.add(*rows, np.array([False]), [{}])
        for progress in np.linspace(1.0, 0.0, 15):
            model._current_progress_remaining = progress
            model.train(100, batch_size=64)
        values = model.critic(th.eye(2))[0].detach()
        expected = self.soft_q()
        assert expected.min() > 15.0
        np.testing.assert_allclose(values, expected, rtol=0.03)


class TestEveryWay:
    @pytest.mark.parametrize("case", HEADS)
    def test_captured(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        install_standin(monkeypatch)
        monkeypatch.setattr(GraphStandIn, "captured", 0)
        self.check([build(compile, **HEADS[case]) for compile in (False, "auto")], HEADS[case])

    @needs_compiler
    @pytest.mark.parametrize("case", traced_except(["quantile"], ["quantile", "categorical", "quantile, discrete"]))
    def test_compiled(self, case: str) -> None:
        models = [build(compile, **HEADS[case]) for compile in (False, True)]
        self.check(models, HEADS[case])
        assert models[1]._engine.compiles

    def check(self, models: list[SoftAC], options: dict[str, Any]) -> None:
        before = copy.deepcopy(models[0].critic.state_dict())
        for model in models:
            restart_generators()
            model.train(12, batch_size=32)
        assert_close(models[0], models[1])
        assert not all(th.equal(before[name], value) for name, value in models[0].critic.state_dict().items())

    @pytest.mark.parametrize("case", ["quantile", "categorical", "categorical, discrete"])
    def test_saved_and_trained_on(self, case: str, tmp_path: Path) -> None:
        model = build(False, **HEADS[case])
        model.train(3, batch_size=16)
        model.save(tmp_path / "model.zip")
        loaded = SoftAC.load(tmp_path / "model.zip", device="cpu", compile=False)
        assert_same_parameters(model, loaded)
        loaded.replay_buffer = model.replay_buffer
        loaded.set_logger(model.logger)
        for each in (model, loaded):
            restart_generators()
            each.train(3, batch_size=16)
        assert_same_parameters(model, loaded)

    @pytest.mark.parametrize("head", ["quantile", "categorical"])
    @pytest.mark.parametrize("discrete", [False, True])
    def test_exported_and_predicted(self, head: str, discrete: bool, tmp_path: Path) -> None:
        env = RandomDiscreteEnv() if discrete else RandomEnv()
        model = make_model(env=env, **net(critic_head=head))
        path = model.export(tmp_path / "policy.pt", format="torchscript")
        observations = np.stack([model.observation_space.sample() for _ in range(5)])
        actions = model.predict(observations, deterministic=True)[0]
        np.testing.assert_allclose(ExportedPolicy(path).predict(observations)[0], actions, atol=1e-5)

    @pytest.mark.parametrize("head", ["quantile", "categorical"])
    def test_values_of_the_critic(self, head: str) -> None:
        model = make_model(**net(critic_head=head, n_critics=3))
        values = model.critic(th.rand(6, 4), th.rand(6, 2))
        assert [value.shape for value in values] == [(6, 1)] * 3

    @pytest.mark.parametrize(("head", "option"), [("quantile", "n_quantiles"), ("categorical", "n_atoms")])
    def test_numbers_of_a_critic(self, head: str, option: str) -> None:
        model = make_model(**net(**{"critic_head": head, option: 9}))
        assert model.critic.outputs(th.rand(6, 4), th.rand(6, 2)).shape == (2, 6, 9)

    @pytest.mark.parametrize("head", ["quantile", "categorical"])
    def test_soft_q_learning_takes_them(self, head: str) -> None:
        model = SoftQL("MlpPolicy", RandomEnv(), device="cpu", buffer_size=100, **net(critic_head=head))
        fill_buffer(model, 50)
        model.train(3, batch_size=16)
        assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()

    def test_the_share_of_clamped_targets_is_logged(self) -> None:
        model = make_model(**net(critic_head="categorical", value_range=(-0.01, 0.01)))
        fill_buffer(model)
        with pytest.warns(UserWarning, match=r"of the targets lie outside of `value_range`=\(-0\.01, 0\.01\)"):
            model.train(2, batch_size=32)
        model.train(2, batch_size=32)  # a second warning would be an error
        assert model.logger.name_to_value["train/target_clipped"] > 0.5


class FourQuantiles(QuantileHead):
    """A head of a user, which has quantiles too."""

    def __init__(self) -> None:
        super().__init__(4)


class TwoQuantilesInside(SoftACPolicy):
    """A policy of a user, whose options do not say what it is made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, critic_head="quantile", n_quantiles=2, **kwargs)


class NormalisedInside(SoftACPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, normalization="batch", **kwargs)


class TestOfUsers:
    """What counts is the critics that were built, not the options that have led to them."""

    def test_quantiles_of_a_head_are_dropped_as_asked_for(self) -> None:
        model = make_model(top_quantiles_to_drop_per_net=1, **net(critic_head=FourQuantiles))
        assert (model.actor_q, model._current_update().settings.n_dropped) == ("mean", 1)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="`top_quantiles_to_drop_per_net` is 4, but it must be below `n_quantiles`=4"):
            make_model(top_quantiles_to_drop_per_net=4, **net(critic_head=FourQuantiles))

    def test_of_a_policy(self) -> None:
        def build_with(policy: Any, **kwargs: Any) -> SoftAC:
            return SoftAC(policy, RandomEnv(), buffer_size=10, device="cpu", compile=False, **kwargs)

        with pytest.raises(ValueError, match="is 2, but it must be below `n_quantiles`=2"):
            build_with(TwoQuantilesInside)
        build_with(TwoQuantilesInside, top_quantiles_to_drop_per_net=1)
        with pytest.raises(ValueError, match="`batch_size` is 1, but it must be at least 2"):
            build_with(NormalisedInside, batch_size=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_with(NormalisedInside, gradient_steps=10)

    def test_without_quantiles_in_targets_their_number_is_free(self) -> None:
        assert make_model(value_network=True, **net(critic_head="quantile", n_quantiles=1)).actor_q == "mean"

    def test_a_change_is_checked_too(self) -> None:
        model = make_model(**net(critic_head="quantile", n_quantiles=3))
        fill_buffer(model)
        model.top_quantiles_to_drop_per_net = 3
        with pytest.raises(ValueError, match="is 3, but it must be below `n_quantiles`=3"):
            model.train(1)
