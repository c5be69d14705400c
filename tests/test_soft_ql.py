"""``SoftQL`` as a whole: closed forms that its own training must reach, acting, environments, files, options, refusals.

Sources of truth: soft value iteration (1702.08165, theorem 3) in NumPy, and float64 loops over particles. Single gradient
steps are in ``tests/update/test_soft_q.py``.
"""

import copy
import inspect
import io
import math
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC, SoftQL, TrainingDivergedError, presets
from sb3_softac.networks import SoftQLPolicy
from sb3_softac.update import KernelValues, gaussian_kernel
from tests import helpers
from tests.helpers import ACTION_DIM, OBS_DIM, SMALL, MatrixEnv, RandomDiscreteEnv, RandomEnv, SpaceEnv, fill_buffer
from tests.reference import Networks
from tests.update.test_soft_q import make_model, update_of

Array = npt.NDArray[Any]
NAN = float("nan")
OBS = np.random.default_rng(0).uniform(-1, 1, (6, OBS_DIM)).astype(np.float32)


def weights_of(model: Any) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_state(left: SoftQL, right: SoftQL) -> None:
    """Weights, fixed noise, targets, temperature and optimizers, bit for bit."""
    first, second = (dict(helpers.parameters_of(cast(SoftAC, model))) for model in (left, right))
    assert first.keys() == second.keys()
    assert len(first) > 6
    for name, value in first.items():
        assert th.equal(value, second[name]), name


def through_a_file(model: SoftQL, **kwargs: Any) -> SoftQL:
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    return SoftQL.load(stream, device="cpu", **kwargs)


# --- closed forms ---------------------------------------------------------------------------------------------------------


class Tabular:
    """Three states and two actions; (s, a) = (2, 1) ends the episode. The buffer holds each transition, also as a time-out.

    The critics are linear in one-hot observations, so that they can hold any Q.
    """

    NEXT = ((1, 2), (0, 2), (1, 0))
    REWARDS = ((0.3, -0.2), (1.0, 0.1), (-0.5, 0.8))
    END = (2, 1)

    @staticmethod
    def soft_maximum(row: list[float], alpha: float) -> float:
        """α·log Σ_b exp(x_b/α), or the maximum at α = 0."""
        return max(row) + (alpha * math.log(sum(math.exp((x - max(row)) / alpha) for x in row)) if alpha else 0.0)

    @classmethod
    def optimal_q(cls, alpha: float, gamma: float, scale: float = 1.0) -> Array:
        """Soft value iteration: Q(s, a) ← k·r + γ·α·log Σ_b exp(Q(s', b)/α), in float64 until nothing changes."""
        q = np.zeros((3, 2))
        for _ in range(2000):
            values = [cls.soft_maximum(row, alpha) for row in q.tolist()]
            q = np.array(
                [
                    [
                        scale * cls.REWARDS[s][a] + gamma * (0.0 if (s, a) == cls.END else values[cls.NEXT[s][a]])
                        for a in range(2)
                    ]
                    for s in range(3)
                ]
            )
        return q

    @classmethod
    def model(cls, **kwargs: Any) -> SoftQL:
        env: Any = SpaceEnv(spaces.Discrete(2), spaces.Discrete(3))
        policy_kwargs = {"net_arch": [], "optimizer_class": th.optim.SGD, "n_critics": kwargs.pop("n_critics", 1)}
        model = make_model(env=env, policy_kwargs=policy_kwargs, learning_rate=0.5, buffer_size=12, **kwargs)
        assert model.replay_buffer is not None
        for s in range(3):
            for a in range(2):
                for timeout in (False, True):
                    ended = np.array([(s, a) == cls.END or timeout])
                    info = {"TimeLimit.truncated": timeout and (s, a) != cls.END}
                    state, following = (np.array([[each]]) for each in (s, cls.NEXT[s][a]))
                    model.replay_buffer.add(state, following, np.array([[a]]), np.array([cls.REWARDS[s][a]]), ended, [info])
        return model


class TestTabular:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"ent_coef": 0.2, "tau": 1.0, "target_update_interval": 5},
            {"tau": 0.1, "reward_scale": 3.0},
            {"n_critics": 2, "target_q": "mean"},
            {"ent_coef": 0.0},
        ],
    )
    def test_tabular_mdp(self, kwargs: dict[str, Any]) -> None:
        """Q, V and π of every state reach the soft fixed point to 1e-3; with α = 0 that of Q-learning."""
        kwargs = {"ent_coef": 0.5, "gamma": 0.8, "target_update_interval": 1, **kwargs}
        model = Tabular.model(**kwargs)
        model.train(800, 32)
        alpha, expected = kwargs["ent_coef"], Tabular.optimal_q(kwargs["ent_coef"], 0.8, model.reward_scale)
        best = expected.max(axis=1, keepdims=True)
        weights = np.exp((expected - best) / alpha) if alpha else (expected == best).astype(float)
        states = th.arange(3)
        with th.no_grad():
            for q in model.critic.q_values(states):
                np.testing.assert_allclose(q, expected, atol=1e-3)
            batch = model._sample_batch(8)._replace(next_observations=states)
            values = update_of(model).next_value(batch, th.tensor(alpha), cast(Any, None))
            np.testing.assert_allclose(values, best[:, 0] + alpha * np.log(weights.sum(axis=1)), atol=1e-3)
            probabilities = weights / weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(model.actor.log_probs(states).exp(), probabilities, atol=1e-3)

    def test_optimal_values_are_those_of_a_linear_system(self) -> None:
        """The reference itself: V = α·H(π) + Σ_a π·(r + γV') solved for its own π."""
        q = Tabular.optimal_q(0.5, 0.8)
        pi = np.exp(q / 0.5) / np.exp(q / 0.5).sum(axis=1, keepdims=True)
        transitions, gains = np.zeros((3, 3)), -0.5 * (pi * np.log(pi)).sum(axis=1)
        for s in range(3):
            for a in range(2):
                gains[s] += pi[s, a] * Tabular.REWARDS[s][a]
                if (s, a) != Tabular.END:
                    transitions[s, Tabular.NEXT[s][a]] += pi[s, a]
        values = np.linalg.solve(np.eye(3) - 0.8 * transitions, gains)
        np.testing.assert_allclose(values, 0.5 * np.log(np.exp(q / 0.5).sum(axis=1)), atol=1e-10)

    @pytest.mark.parametrize("alpha", [0.3, 1.0])
    def test_bandit(self, alpha: float) -> None:
        """π is the softmax of the rewards, π ∝ exp(k·r/α)."""
        rewards = np.array([0.2, 1.0, 0.6, -0.5])
        env: Any = SpaceEnv(spaces.Discrete(4), spaces.Discrete(1))
        policy_kwargs = {"net_arch": [], "optimizer_class": th.optim.SGD}
        model = make_model(
            env=env, policy_kwargs=policy_kwargs, learning_rate=0.5, buffer_size=4, ent_coef=alpha, reward_scale=2.0
        )
        assert model.replay_buffer is not None
        zero = np.zeros((1, 1), int)
        for a, reward in enumerate(rewards):
            model.replay_buffer.add(zero, zero, np.array([[a]]), np.array([reward]), np.array([True]), [{}])
        model.train(800, 32)
        expected = np.exp(2 * rewards / alpha) / np.exp(2 * rewards / alpha).sum()
        with th.no_grad():
            np.testing.assert_allclose(model.actor.log_probs(th.zeros(1, dtype=th.long)).exp()[0], expected, atol=1e-3)
        assert model.predict(np.array(0), deterministic=True)[0] == 1

    @pytest.mark.parametrize("update", ["dual", "log", "exp"])
    def test_a_learned_temperature_brings_the_entropy_to_its_target(self, update: Any) -> None:
        model = Tabular.model(ent_coef="auto", ent_coef_update=update, ent_coef_learning_rate=0.02, target_entropy=0.5)
        model.train(1500, 32)
        model.train(100, 32)
        assert model.logger.name_to_value["train/entropy"] == pytest.approx(0.5, abs=0.03)
        assert model.temperature.value.item() != pytest.approx(1.0, abs=0.1)


class TestContinuousClosedForms:
    @pytest.mark.parametrize(("ent_coef", "dim"), [(0.5, 1), (1.0, 3)])
    def test_without_rewards_the_value_is_the_entropy_of_uniform_actions_for_ever(self, ent_coef: float, dim: int) -> None:
        """Q = γV and V = α·log ∫ exp(Q/α) = α·A·log 2 + Q: V = α·A·log 2/(1 − γ), exactly for any particles."""
        env = SpaceEnv(spaces.Box(-3.0, 5.0, (dim,), np.float32))
        policy_kwargs = {"net_arch": {"pi": [8], "qf": []}, "optimizer_class": th.optim.SGD}
        options: dict[str, Any] = {"ent_coef": ent_coef, "gamma": 0.7, "target_update_interval": 1, "kernel_particles": 4}
        model = make_model(env=env, policy_kwargs=policy_kwargs, learning_rate=0.3, value_particles=2, **options)
        fill_buffer(model)
        assert model.replay_buffer is not None
        model.replay_buffer.rewards[:] = 0.0
        model.replay_buffer.dones[:] = 0.0
        model.train(600, 64)
        value = ent_coef * dim * math.log(2) / (1 - 0.7)
        batch = model._sample_batch(32)
        with th.no_grad():
            np.testing.assert_allclose(model.critic.q_values(batch.observations, batch.actions), 0.7 * value, rtol=1e-3)

    def test_a_continuous_bandit(self) -> None:
        """Reward 1 − 4(a − 0.3)², α = ½: the critics learn it, the sampler follows them to exp(Q/α)·(1 − a²), and the best of
        its actions is near 0.3. Over seeds 0–9 it was 0.25 to 0.36, and Kolmogorov's statistic 0.016 to 0.058.
        """
        env = SpaceEnv(spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32))
        action, statistic = bandit(env, 0)
        assert statistic < 0.12
        assert action == pytest.approx(0.3, abs=0.12)


def bandit(env: Any, seed: int) -> tuple[float, float]:
    """The deterministic action of a ``SoftQL`` that was trained on a bandit, and Kolmogorov's statistic of its samples."""
    options: dict[str, Any] = {"kernel_particles": 32, "noise_dim": 2, "gamma": 0.9, "ent_coef": 0.5, "buffer_size": 2000}
    model = make_model(env=env, policy_kwargs={"net_arch": [32, 32]}, learning_rate=5e-3, seed=seed, **options)
    rng, buffer = np.random.default_rng(seed), model.replay_buffer
    assert buffer is not None
    for _ in range(1000):
        action = rng.uniform(-1, 1, (1, 1))
        reward = 1 - 4 * (action[0] - 0.3) ** 2
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), action, reward, np.array([True]), [{}])
    model.train(500, 32)
    deterministic = float(model.predict(np.zeros(1, np.float32), deterministic=True)[0][0])
    samples = np.sort(model.predict(np.zeros((4000, 1), np.float32))[0][:, 0])
    grid = np.linspace(-1, 1, 2001)
    density = np.exp((1 - 4 * (grid - 0.3) ** 2) / 0.5) * (1 - grid**2)
    exact = np.interp(samples, grid, np.cumsum(density) / density.sum())
    return deterministic, float(np.abs(exact - np.arange(4000) / 4000).max())


# --- acting -----------------------------------------------------------------------------------------------------------------


class Particles(Networks):
    """The fixed particles and their values, one at a time."""

    def best(self, obs: Array, reduction: str) -> Array:
        """Actions in [−1, 1], (B, A)."""
        s, w = th.as_tensor(obs).double(), self.weights
        actions = [th.tanh(self.head("mu", th.cat([s, xi.expand(len(s), -1)], 1), w)) for xi in w["actor.fixed_noise"]]
        reduce: Any = {"min": min, "mean": lambda values: sum(values) / len(values), "first": lambda values: values[0]}
        values = [self.q("critic", s, action, w) for action in actions]
        best = []
        for b in range(len(s)):
            scores = [reduce[reduction]([float(q[b]) for q in each]) for each in values]
            best.append(actions[scores.index(max(scores))][b].numpy())
        return np.array(best)


def spread_out(model: SoftQL) -> SoftQL:
    """Particles that are far apart, so that it matters which one is taken."""
    with th.no_grad():
        model.actor.mu.weight.mul_(8.0)
    return model


def seeded(model: Any, deterministic: bool) -> Array:
    th.manual_seed(3)
    actions: Array = model.predict(OBS, deterministic=deterministic)[0]
    return actions


COPIES: dict[str, Any] = {
    "file": through_a_file,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


COPIED_IN_MEMORY = ("learn", "deepcopy", "pickle")


class TestActing:
    @pytest.mark.parametrize("reduction", ["min", "mean", "first"])
    def test_the_best_particle_is_taken(self, reduction: Any) -> None:
        """Rescaled from [−1, 1] to the bounds (−2, 2) and (0, 1)."""
        model = make_model(policy_kwargs={**SMALL, "n_critics": 2}, target_q=reduction, kernel_particles=7, noise_dim=3)
        expected = Particles(cast(Any, spread_out(model))).best(OBS, reduction)
        actions = model.predict(OBS, deterministic=True)[0]
        np.testing.assert_allclose(actions, expected * [2.0, 0.5] + [0.0, 0.5], atol=1e-5)

    def test_the_reduction_matters_and_follows_the_option(self) -> None:
        model = spread_out(make_model(policy_kwargs={**SMALL, "n_critics": 2}))
        others = {how: Particles(cast(Any, model)).best(OBS, how) for how in ("min", "mean", "first")}
        assert not np.array_equal(others["min"], others["first"])
        model.target_q = "first"
        fill_buffer(model)
        model.train(0)
        actions = model.predict(OBS, deterministic=True)[0]
        np.testing.assert_allclose(actions, others["first"] * [2.0, 0.5] + [0.0, 0.5], atol=1e-5)

    def test_it_is_a_function_of_the_observation(self) -> None:
        """Whatever the generators do, and whatever else is in the batch; another observation has another action."""
        model = spread_out(make_model())
        th.manual_seed(1)
        together = model.predict(OBS, deterministic=True)[0]
        th.manual_seed(2)
        np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], together)
        alone = np.array([model.predict(obs, deterministic=True)[0] for obs in OBS])
        np.testing.assert_allclose(alone, together, atol=1e-6)
        assert len(np.unique(together.round(4), axis=0)) == len(OBS)
        state = th.get_rng_state()
        model.predict(OBS, deterministic=True)
        assert th.equal(th.get_rng_state(), state)

    @pytest.mark.parametrize("how", COPIES)
    @pytest.mark.parametrize("discrete", [False, True])
    def test_it_survives(self, how: str, discrete: bool) -> None:
        model = make_model(env=RandomDiscreteEnv() if discrete else RandomEnv(), learning_starts=10, batch_size=8).learn(25)
        expected = model.predict(OBS, deterministic=True)[0]
        copied = COPIES[how](model)
        np.testing.assert_array_equal(copied.predict(OBS, deterministic=True)[0], expected)
        np.testing.assert_array_equal(seeded(copied, False), seeded(model, False))
        with th.no_grad():
            for parameter in copied.critic.parameters():
                parameter.neg_()
        np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], expected)  # nothing is shared
        assert not np.array_equal(copied.predict(OBS, deterministic=True)[0], expected)

    @pytest.mark.parametrize("discrete", [False, True])
    def test_a_policy_by_itself(self, discrete: bool, tmp_path: Path) -> None:
        env = RandomDiscreteEnv() if discrete else RandomEnv()
        options: dict[str, Any] = {"target_q": "first", "ent_coef": 0.3}
        options |= {} if discrete else {"noise_dim": 3, "kernel_particles": 7}
        model = make_model(env=env, policy_kwargs={**SMALL, "n_critics": 2}, **options)
        if not discrete:
            spread_out(model)
        else:
            with th.no_grad():
                model.critic.q_networks.output.bias.copy_(th.tensor([[[0.0, 1.0, 0.5]], [[0.0, -1.0, 0.5]]]))
        other = make_model(env=env, policy_kwargs={**SMALL, "n_critics": 2}, **{**options, "target_q": "min"})
        other.policy.load_state_dict(model.policy.state_dict())
        assert not np.array_equal(seeded(other, True), seeded(model, True))  # the reduction is part of the policy
        model.policy.save(str(tmp_path / "policy"))
        policy = SoftQLPolicy.load(str(tmp_path / "policy"), device="cpu")
        for deterministic in (True, False):
            np.testing.assert_array_equal(seeded(policy, deterministic), seeded(model, deterministic))

    def test_another_model_has_other_noise(self) -> None:
        """It belongs to the model and its seed, not to the class."""
        first, again, other = (make_model(seed=seed).actor.fixed_noise for seed in (1, 1, 2))
        assert th.equal(first, again)
        assert not th.equal(first, other)
        assert first.shape == (16, ACTION_DIM)

    def test_training_leaves_the_noise_alone(self) -> None:
        model = make_model()
        before = model.actor.fixed_noise.clone()
        fill_buffer(model)
        model.train(3, 16)
        assert th.equal(model.actor.fixed_noise, before)

    def test_samples_are_the_samplers(self) -> None:
        """Both marginals of 5,000 actions against 5,000 of tanh f(ξ, s) with ξ from NumPy, by Kolmogorov's statistic of two
        samples, whose 99.99 % quantile is 0.045.
        """
        model = spread_out(make_model(noise_dim=3))
        actions = model.predict(np.repeat(OBS[:1], 5000, axis=0))[0]
        network, xi = Networks(cast(Any, model)), th.tensor(np.random.default_rng(4).normal(size=(5000, 3)))
        inputs = th.cat([th.as_tensor(OBS[:1]).double().expand(5000, -1), xi], 1)
        expected = th.tanh(network.head("mu", inputs, network.weights)).numpy() * [2.0, 0.5] + [0.0, 0.5]
        for ours, theirs in zip(actions.T, expected.T, strict=True):
            places = np.concatenate([ours, theirs])
            gap = np.searchsorted(np.sort(ours), places, "right") - np.searchsorted(np.sort(theirs), places, "right")
            assert np.abs(gap).max() / 5000 < 0.045
            assert ours.std() > 0.05
        assert len(np.unique(actions[:, 0])) > 4900

    def test_discrete_actions(self) -> None:
        """The largest Q, or samples of softmax(Q/α), counted from where the space starts."""
        model = make_model(env=RandomDiscreteEnv(n_actions=4, start=-1), ent_coef=0.4)
        with th.no_grad():
            model.critic.q_networks.output.bias.copy_(th.tensor([0.1, 0.9, 0.5, -0.2]))
            q = model.critic.q_values(th.as_tensor(OBS))[0].double().numpy()
        np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], q.argmax(axis=1) - 1)
        model.actor.ent_coef.fill_(0.4)
        samples = model.predict(np.repeat(OBS[:1], 20_000, axis=0))[0] + 1
        expected = np.exp(q[0] / 0.4) / np.exp(q[0] / 0.4).sum()
        np.testing.assert_allclose(np.bincount(samples, minlength=4) / 20_000, expected, atol=0.015)

    def test_discrete_actions_are_sampled_at_the_models_temperature(self) -> None:
        """From the start, before any gradient step."""
        assert make_model(env=RandomDiscreteEnv(), ent_coef=0.4).actor.ent_coef.item() == pytest.approx(0.4)
        assert make_model(env=RandomDiscreteEnv(), ent_coef="auto_0.7").actor.ent_coef.item() == pytest.approx(0.7)

    def test_another_temperature_at_loading_counts_for_acting(self) -> None:
        loaded = through_a_file(make_model(env=RandomDiscreteEnv(), ent_coef=0.4), ent_coef=0.05)
        assert loaded.temperature.value.item() == pytest.approx(0.05)
        assert loaded.actor.ent_coef.item() == pytest.approx(0.05)

    @pytest.mark.parametrize(("ent_coef", "alpha"), [(0.05, 0.05), ("auto_0.9", 0.9)])
    def test_a_warm_start_without_the_temperature_acts_at_its_own(self, ent_coef: Any, alpha: float) -> None:
        source = make_model(env=RandomDiscreteEnv(), ent_coef="auto_0.3")
        model = make_model(env=RandomDiscreteEnv(), ent_coef=ent_coef).warm_start(source)
        assert model.temperature.value.item() == pytest.approx(alpha)
        assert model.actor.ent_coef.item() == pytest.approx(alpha)

    @pytest.mark.parametrize("discrete", [False, True])
    def test_dropout_is_off(self, discrete: bool) -> None:
        """Also right after a gradient step."""
        env = RandomDiscreteEnv() if discrete else RandomEnv()
        model = make_model(env=env, policy_kwargs={**SMALL, "dropout_rate": 0.5})
        fill_buffer(model)
        model.train(1, 8)
        np.testing.assert_array_equal(seeded(model, True), model.predict(OBS, deterministic=True)[0])

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_actions_that_are_nan_reach_no_environment(self, deterministic: bool) -> None:
        model, discrete = make_model(), make_model(env=RandomDiscreteEnv())
        th.nn.init.constant_(model.actor.mu.bias, NAN)
        th.nn.init.constant_(discrete.critic.q_networks.output.bias, NAN)
        for each in (model, discrete):
            with pytest.raises(TrainingDivergedError, match="NaN"):
                each.predict(OBS, deterministic=deterministic)

    def test_evaluate_policy(self) -> None:
        model = make_model()
        env: Any = model.get_env()
        mean: Any = evaluate_policy(model, env, n_eval_episodes=2, warn=False)[0]
        assert math.isfinite(mean)


# --- environments and buffers ---------------------------------------------------------------------------------------------


def discrete_or_not(discrete: bool, **kwargs: Any) -> RandomEnv:
    return RandomDiscreteEnv(**kwargs) if discrete else RandomEnv(**kwargs)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_seed_decides_everything(discrete: bool) -> None:
    def trained(seed: int) -> SoftQL:
        env = RandomDiscreteEnv() if discrete else RandomEnv()
        return make_model(env=env, learning_starts=10, batch_size=8, seed=seed).learn(25)

    assert_same_state(trained(1), trained(1))
    assert not np.array_equal(trained(1).predict(OBS)[0], trained(2).predict(OBS)[0])


class TestObservationsAndBuffers:
    def learn(self, env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> SoftQL:
        """All that is trained changes, and stays finite."""
        kwargs = {"learning_starts": 30, "buffer_size": 200, "batch_size": 16, "seed": 0, "device": "cpu", **kwargs}
        kwargs = {"target_update_interval": 1, "compile": False, **kwargs}
        kwargs["policy_kwargs"] = {**SMALL, **kwargs.get("policy_kwargs", {})}
        model = SoftQL(policy, env, **kwargs)
        before = weights_of(model)
        model.learn(60)
        for name, value in weights_of(model).items():
            assert th.isfinite(value).all(), name
            assert th.equal(value, before[name]) is (name in ("actor.fixed_noise", "actor.ent_coef")), name
        assert model._n_updates > 0
        return model

    @pytest.mark.parametrize("discrete", [False, True])
    def test_images(self, discrete: bool) -> None:
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=discrete)
        kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
        model = self.learn(env, "CnnPolicy", policy_kwargs=kwargs)
        assert env.action_space.contains(model.predict(env.observation_space.sample(), deterministic=True)[0])

    @pytest.mark.parametrize("discrete", [False, True])
    def test_dict_observations(self, discrete: bool) -> None:
        kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 16}}
        env = SimpleMultiObsEnv(discrete_actions=discrete)
        model = self.learn(env, "MultiInputPolicy", policy_kwargs=kwargs)
        assert env.action_space.contains(model.predict(env.observation_space.sample(), deterministic=True)[0])

    @pytest.mark.parametrize("n_envs", [1, 2])
    @pytest.mark.parametrize("discrete", [False, True])
    def test_hindsight_experience_replay(self, discrete: bool, n_envs: int) -> None:
        env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=not discrete)] * n_envs)
        model = self.learn(env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=20)
        assert isinstance(model.replay_buffer, HerReplayBuffer)

    @pytest.mark.parametrize("n_envs", [1, 3])
    @pytest.mark.parametrize("discrete", [False, True])
    def test_n_step_returns(self, discrete: bool, n_envs: int) -> None:
        env = make_vec_env(lambda: discrete_or_not(discrete), n_envs, vec_env_cls=DummyVecEnv)
        model = self.learn(env, n_steps=3, gamma=0.9)
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        discounts = np.unique(model._sample_batch(200).discounts.numpy())
        np.testing.assert_allclose(discounts, [0.729, 0.81, 0.9], rtol=1e-6)  # 3 steps, or fewer where the episode ends

    @pytest.mark.parametrize("discrete", [False, True])
    def test_memory_efficient_buffer(self, discrete: bool) -> None:
        kwargs: dict[str, Any] = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
        self.learn(discrete_or_not(discrete), optimize_memory_usage=True, **kwargs)

    @pytest.mark.parametrize("discrete", [False, True])
    def test_vec_normalize(self, discrete: bool) -> None:
        self.learn(VecNormalize(DummyVecEnv([lambda: discrete_or_not(discrete)])))

    @pytest.mark.parametrize("discrete", [False, True])
    def test_several_environments(self, discrete: bool) -> None:
        self.learn(make_vec_env(lambda: discrete_or_not(discrete), 3, vec_env_cls=DummyVecEnv))

    def test_actions_of_a_matrix(self) -> None:
        model = self.learn(MatrixEnv())
        assert model.predict(np.zeros(4), deterministic=True)[0].shape == (2, 3)
        assert model.actor.fixed_noise.shape == (16, 6)

    def test_actions_that_do_not_start_at_zero(self) -> None:
        env = RandomDiscreteEnv(n_actions=3, start=-1)
        self.learn(env)
        assert set(env.actions) == {-1, 0, 1}

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"kernel_particles": 2, "value_particles": 1},
            {"kernel_update_ratio": 0.9375},  # one fixed particle
            {"noise_dim": 5, "policy_kwargs": {"n_critics": 3, "layer_norm": True, "dropout_rate": 0.1}, "target_q": "mean"},
            {"value_proposal": "policy", "policy_kwargs": {"sampler": "gaussian", "n_critics": 2}},
            {"policy_kwargs": {"net_arch": {"pi": [8], "qf": []}, "weight_init": "orthogonal", "final_init_scale": 0.1}},
            {"actor_learning_rate": 1e-3, "critic_learning_rate": "lin_1e-3", "max_grad_norm": 0.5, "reward_scale": -2.0},
            {"ent_coef": "lin_1_0.1", "train_freq": (1, "episode"), "gradient_steps": -1},
            {"action_noise": NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)), "random_steps": 5},
        ],
    )
    def test_our_options(self, kwargs: dict[str, Any]) -> None:
        self.learn(RandomEnv(), **kwargs)

    @pytest.mark.parametrize("name", presets.SOFTQL_PRESETS)
    def test_presets(self, name: str) -> None:
        arguments = presets.get(name, policy_kwargs=SMALL, learning_starts=30, buffer_size=200, batch_size=16)
        self.learn(RandomEnv(), **{**arguments, "target_update_interval": 1})


# --- files ----------------------------------------------------------------------------------------------------------------


FILES: list[dict[str, Any]] = [
    {"kernel_particles": 6, "noise_dim": 3, "kernel_update_ratio": 0.25, "value_particles": 4, "target_q": "mean"},
    {"value_proposal": "policy", "policy_kwargs": {**SMALL, "sampler": "gaussian", "n_critics": 2}, "max_grad_norm": 0.5},
    {"ent_coef": "lin_1_0.2", "reward_scale": 3.0, "tau": 0.1, "target_update_interval": 2, "actor_learning_rate": 1e-3},
    {"env": RandomDiscreteEnv(), "ent_coef": "auto_0.3", "ent_coef_update": "log", "ent_coef_max": 2.0},
    {"env": RandomDiscreteEnv(start=2), "ent_coef": 0.3},
    {"n_steps": 3, "gamma": 0.9},
]


class TestFiles:
    @pytest.mark.parametrize("kwargs", FILES)
    def test_everything_comes_back(self, kwargs: dict[str, Any]) -> None:
        model = make_model(**kwargs)
        fill_buffer(model)
        model.train(3, 16)
        loaded = through_a_file(model, env=kwargs.get("env") or RandomEnv())
        assert_same_state(model, loaded)
        for name in inspect.signature(SoftQL.__init__).parameters:
            if name in ("learning_rate", "self", "env", "policy", "device", "stats_window_size", "_init_setup_model", "seed"):
                continue
            assert getattr(loaded, name) == getattr(model, name), name
        assert loaded._n_updates == 3

    @pytest.mark.parametrize("kwargs", FILES)
    def test_training_goes_on_as_without_it(self, kwargs: dict[str, Any]) -> None:
        model = make_model(**kwargs)
        fill_buffer(model)
        model.train(3, 16)
        loaded = through_a_file(model, env=kwargs.get("env") or RandomEnv())
        loaded.replay_buffer = model.replay_buffer
        loaded.set_logger(model.logger)
        for either in (model, loaded):
            helpers.restart_generators()
            either.train(3, 16)
        assert_same_state(model, loaded)

    def test_a_kernel_of_a_user(self) -> None:
        assert through_a_file(make_model(kernel=far_reaching_kernel)).kernel is far_reaching_kernel
        with pytest.warns(UserWarning, match="`kernel` is saved with what loading refuses"):
            loaded = through_a_file(
                make_model(kernel=lambda fixed, updated: gaussian_kernel(2 * fixed, 2 * updated)), trusted=True
            )
        th.testing.assert_close(loaded.kernel(OBSERVED, OBSERVED), gaussian_kernel(2 * OBSERVED, 2 * OBSERVED))

    @pytest.mark.parametrize(
        ("name", "value"), [("kernel_particles", 8), ("noise_dim", 3), ("ent_coef", "auto"), ("value_proposal", "policy")]
    )
    def test_options_that_the_weights_have_no_place_for(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but"):
            through_a_file(make_model(), **{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("value_particles", 4),
            ("kernel_update_ratio", 0.25),
            ("ent_coef", 0.3),
            ("target_q", "mean"),
            ("reward_scale", 2.0),
            ("tau", 0.3),
            ("target_update_interval", 7),
        ],
    )
    def test_other_options_can_be_replaced(self, name: str, value: Any) -> None:
        loaded = through_a_file(make_model(), **{name: value})
        assert getattr(loaded, name) == value
        settings = update_of(loaded).settings
        assert getattr(settings, name, value) == value

    def test_the_same_policy_kwargs_are_no_others(self) -> None:
        """What was passed to the constructor can be passed again."""
        options: dict[str, Any] = {"policy_kwargs": dict(SMALL), "kernel_particles": 6, "noise_dim": 3, "target_q": "mean"}
        model = make_model(**options)
        assert_same_state(through_a_file(model, policy_kwargs=dict(SMALL)), model)
        discrete = make_model(env=RandomDiscreteEnv())
        assert_same_state(through_a_file(discrete, policy_kwargs=dict(SMALL)), discrete)

    def test_other_policy_kwargs_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`policy_kwargs` is"):
            through_a_file(make_model(), policy_kwargs={"net_arch": [8]})

    @pytest.mark.parametrize("discrete", [False, True])
    def test_files_of_the_other_algorithm(self, discrete: bool, tmp_path: Path) -> None:
        env = RandomDiscreteEnv() if discrete else RandomEnv()
        make_model(env=env).save(tmp_path / "soft_ql")
        helpers.make_model(env=env).save(tmp_path / "soft_ac")
        with pytest.raises(ValueError, match="SoftQL"):
            SoftAC.load(tmp_path / "soft_ql", device="cpu")
        with pytest.raises(ValueError, match="SoftQL"):
            SoftQL.load(tmp_path / "soft_ac", device="cpu")

    def test_a_file_of_sb3(self, tmp_path: Path) -> None:
        SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL)).save(tmp_path / "sac")
        with pytest.raises(ValueError, match="SoftQL"):
            SoftQL.load(tmp_path / "sac", device="cpu")


class TestWarmStart:
    @pytest.mark.parametrize("from_file", [False, True])
    @pytest.mark.parametrize(
        "kwargs", [{}, {"env": RandomDiscreteEnv(start=2)}, {"noise_dim": 3, "policy_kwargs": {**SMALL, "n_critics": 3}}]
    )
    def test_all_weights_and_nothing_else(self, kwargs: dict[str, Any], from_file: bool, tmp_path: Path) -> None:
        source = make_model(seed=7, target_update_interval=2, **kwargs)
        fill_buffer(source)
        source.train(3, 16)
        source.save(tmp_path / "source")
        model = make_model(**kwargs)
        assert model.warm_start(tmp_path / "source" if from_file else source) is model
        for name, weight in weights_of(source).items():
            assert th.equal(weight, model.policy.state_dict()[name]), name
        assert model.num_timesteps == model._n_updates == 0
        assert not model.critic.optimizer.state
        actions = source.predict(OBS, deterministic=True)[0]
        np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], actions)
        fill_buffer(model)
        model.train(3, 16)
        np.testing.assert_array_equal(source.predict(OBS, deterministic=True)[0], actions)  # it is not trained along

    def test_the_temperature_if_asked_for(self) -> None:
        source = make_model(env=RandomDiscreteEnv(), ent_coef="auto_0.3")
        model = make_model(env=RandomDiscreteEnv(), ent_coef="auto_0.8").warm_start(source, temperature=True)
        assert model.temperature.value.item() == model.actor.ent_coef.item() == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"kernel_particles": 8},
            {"noise_dim": 3},
            {"policy_kwargs": {"net_arch": [8]}},
            {"policy_kwargs": {**SMALL, "n_critics": 2}},
            {"policy_kwargs": {**SMALL, "sampler": "gaussian"}},
            {"env": RandomDiscreteEnv()},
            {"env": SpaceEnv(spaces.Box(-1.0, 1.0, (2,), np.float32))},
        ],
    )
    def test_what_does_not_fit(self, kwargs: dict[str, Any]) -> None:
        source, model = make_model(), make_model(**kwargs)
        before = weights_of(model)
        with pytest.raises(ValueError, match="`source` does not fit this model"):
            model.warm_start(source)
        assert all(th.equal(weight, before[name]) for name, weight in weights_of(model).items())

    @pytest.mark.parametrize("sampler", ["mlp", "gaussian"])
    def test_another_algorithm(self, sampler: str, tmp_path: Path) -> None:
        """A Gaussian sampler and two critics have the names and shapes of a ``SoftAC``'s."""
        helpers.make_model().save(tmp_path / "soft_ac")
        sac = SAC("MlpPolicy", RandomEnv(), policy_kwargs=dict(SMALL))
        policy_kwargs = {**SMALL, "sampler": sampler, "n_critics": 2}
        sources: list[Any] = [helpers.make_model(), tmp_path / "soft_ac", sac, None, 3]
        for source in sources:
            with pytest.raises(ValueError, match=r"`source` |`policy` "):
                make_model(policy_kwargs=policy_kwargs).warm_start(source)

    def test_the_message_names_this_algorithm(self) -> None:
        with pytest.raises(ValueError, match=r"must be a SoftQL"):
            make_model().warm_start(cast(Any, helpers.make_model()))

    def test_from_it_to_the_other_one(self) -> None:
        with pytest.raises(ValueError, match="`source` is a SoftQL"):
            helpers.make_model().warm_start(cast(Any, make_model()))


# --- options that are set during the training -------------------------------------------------------------------------------


OBSERVED = th.rand(2, 3, 2, generator=th.Generator().manual_seed(0))


def far_reaching_kernel(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    """κ = exp(−‖x − y‖²/100)."""
    differences = fixed.unsqueeze(2) - updated.unsqueeze(1)
    values = (-differences.square().sum(dim=3) / 100.0).exp()
    return KernelValues(values, -differences / 50.0 * values.unsqueeze(3))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "value_particles": ({}, {"value_particles": 3}),
    "kernel_update_ratio": ({}, {"kernel_update_ratio": 0.25}),
    "kernel": ({}, {"kernel": far_reaching_kernel}),
    "target_q": ({}, {"target_q": "mean"}),
    "value_proposal": ({"policy_kwargs": {**SMALL, "sampler": "gaussian"}}, {"value_proposal": "policy"}),
    "reward_scale": ({}, {"reward_scale": 3.0}),
    "ent_coef": ({}, {"ent_coef": 0.3}),
    "ent_coef, scheduled": ({}, {"ent_coef": "lin_0.8_0.1"}),
    "ent_coef, discrete": ({"env": RandomDiscreteEnv()}, {"ent_coef": 0.3}),
    "tau": ({}, {"tau": 0.3}),
    "target_update_interval": ({}, {"target_update_interval": 4}),
    "gamma": ({}, {"gamma": 0.3}),
    "max_grad_norm": ({}, {"max_grad_norm": 1e-3}),
    "actor_learning_rate": ({}, {"actor_learning_rate": 1e-4}),
    "critic_learning_rate": ({}, {"critic_learning_rate": "lin_1e-3"}),
}


class TestOptionsThatAreSet:
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_change_equals_a_model_that_was_loaded_so(self, change: str) -> None:
        """And it differs from no change."""
        given, options = CHANGES[change]
        given = {"policy_kwargs": {**SMALL, "n_critics": 2}, "target_update_interval": 2, "learning_rate": 1e-2, **given}
        model = make_model(**given)
        fill_buffer(model)
        model.train(3, 16)
        changed, unchanged = (through_a_file(model, env=given.get("env") or RandomEnv(), **each) for each in (options, {}))
        for name, value in options.items():
            setattr(model, name, value)
        for each in (model, changed, unchanged):
            each.replay_buffer = model.replay_buffer
            each.set_logger(model.logger)
            each._current_progress_remaining = 0.5
            helpers.restart_generators()
            each.train(5, 16)
        assert_same_state(model, changed)
        states = [dict(helpers.parameters_of(cast(SoftAC, each))) for each in (model, unchanged)]
        assert not all(th.equal(value, states[1][name]) for name, value in states[0].items())

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("kernel_particles", 8, "`kernel_particles` was set to 8, but it must stay 16"),
            ("noise_dim", 3, "`noise_dim` was set to 3, but it must stay None"),
            ("policy_kwargs", {"net_arch": [8]}, "`policy_kwargs` was set to"),
            ("n_steps", 3, "`n_steps` was set to 3, but it must stay 1"),
            ("value_particles", 0, "`value_particles` is 0, but"),
            ("kernel_update_ratio", 1.0, "`kernel_update_ratio` is"),
            ("kernel", "gaussian", "`kernel` is 'gaussian', but"),
            ("target_q", "max", "`target_q` is 'max', but"),
            ("value_proposal", "policy", "`value_proposal` is 'policy', but"),
            ("reward_scale", 0.0, "`reward_scale` is"),
            ("ent_coef", 0.0, "`ent_coef` is"),
            ("ent_coef", "auto", "`ent_coef` is 'auto', but"),
            ("tau", 2.0, "`tau` is"),
        ],
    )
    @pytest.mark.parametrize("how", ["train", "learn", "save"])
    def test_what_is_refused_leaves_the_old_value(self, name: str, value: Any, message: str, how: str) -> None:
        model = make_model(learning_starts=10, batch_size=16).learn(15)
        before, old = weights_of(model), getattr(model, name)
        setattr(model, name, value)
        calls: dict[str, Any] = {
            "train": lambda: model.train(1, 16),
            "learn": lambda: model.learn(3, reset_num_timesteps=False),
            "save": lambda: model.save(io.BytesIO()),
        }
        with pytest.raises(ValueError, match=message):
            calls[how]()
        assert getattr(model, name) == old
        assert all(th.equal(weight, before[key]) for key, weight in weights_of(model).items())
        model.learn(3, reset_num_timesteps=False)
        assert model.num_timesteps == 18

    @pytest.mark.parametrize("how", ["file", *COPIED_IN_MEMORY])
    def test_a_reduction_that_was_set_counts_for_acting(self, how: str) -> None:
        """Before the first gradient step with it, and in copies."""
        policy_kwargs = {**SMALL, "n_critics": 2}
        model = spread_out(make_model(policy_kwargs=policy_kwargs, learning_starts=100))
        expected = Particles(cast(Any, model)).best(OBS, "first") * [2.0, 0.5] + [0.0, 0.5]
        model.target_q = "first"
        acting = model.learn(3) if how == "learn" else COPIES[how](model)
        np.testing.assert_allclose(acting.predict(OBS, deterministic=True)[0], expected, atol=1e-5)

    def test_a_schedule_that_touches_zero_on_its_way(self) -> None:
        """It is above 0 at both ends, and is refused where it is not, before Q is divided by it."""
        model = make_model(ent_coef=lambda progress: abs(progress - 0.5))
        fill_buffer(model)
        model.train(1, 16)
        before, model._current_progress_remaining = weights_of(model), 0.5
        with pytest.raises(ValueError, match=r"`ent_coef` is .* 0 at a remaining progress of 0\.5"):
            model.train(1, 16)
        assert all(th.equal(weight, before[name]) for name, weight in weights_of(model).items())

    def test_a_discrete_temperature_becomes_learned_and_fixed_again(self) -> None:
        model = make_model(env=RandomDiscreteEnv(), ent_coef=0.3, learning_rate=1e-2)
        fill_buffer(model)
        for ent_coef, alpha in (("auto_0.6", 0.6), (0.2, 0.2)):
            model.ent_coef = cast(Any, ent_coef)
            model.train(1, 16)
            assert model.logger.name_to_value["train/ent_coef"] == pytest.approx(alpha)
            assert model.actor.ent_coef.item() == model.temperature.value.item()


# --- bad input ------------------------------------------------------------------------------------------------------------


class NeverStepped(RandomEnv):
    def step(self, action: Any) -> Any:
        raise AssertionError("an environment step was made")


class NeverSteppedDiscrete(RandomDiscreteEnv):
    def step(self, action: Any) -> Any:
        raise AssertionError("an environment step was made")


ONE_BAD_ARGUMENT: list[Any] = [
    ("kernel_particles", 1),
    ("kernel_particles", 2.5),
    ("kernel_particles", True),
    ("kernel_particles", "many"),
    ("kernel_update_ratio", 0),
    ("kernel_update_ratio", 1),
    ("kernel_update_ratio", 0.01),
    ("kernel_update_ratio", -1),
    ("kernel_update_ratio", 1.5),
    ("kernel_update_ratio", NAN),
    ("kernel_update_ratio", "half"),
    ("value_particles", 0),
    ("value_particles", 1.5),
    ("value_particles", None),
    ("value_proposal", "gaussian"),
    ("value_proposal", "policy"),  # beside a sampler without a density
    ("noise_dim", 0),
    ("noise_dim", 1.5),
    ("ent_coef", "auto"),
    ("ent_coef", "auto_0.1"),
    ("ent_coef", 0),
    ("ent_coef", -1),
    ("ent_coef", NAN),
    ("ent_coef", "lin_1"),
    ("ent_coef", lambda progress: progress),
    ("reward_scale", 0),
    ("reward_scale", NAN),
    ("kernel", None),
    ("kernel", "gaussian"),
    ("kernel", 1.0),
    ("target_q", "max"),
    ("tau", 1.1),
    ("target_update_interval", 0),
    ("max_grad_norm", 0.0),
    ("ent_coef_update", "log"),  # of a fixed temperature
    ("ent_coef_max", 1.0),
    ("target_entropy", -1.0),
    ("target_entropy_scale", 0.4),
    ("ent_coef_learning_rate", 1e-3),
    ("actor_learning_rate", -1.0),
    ("critic_learning_rate", "cos_1e-3"),
]

ONE_BAD_POLICY_ARGUMENT: list[tuple[str, Any]] = [
    ("use_sde", True),
    ("log_std_init", -1.0),
    ("log_std_mode", "free"),
    ("clip_mean", 1.0),
    ("value_network", True),
    ("share_features_extractor", True),
    ("samplers", "mlp"),
    ("kernel_particles", 8),
    ("noise_dim", 3),
    ("target_q", "mean"),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "value"), ONE_BAD_ARGUMENT)
    def test_bad_argument(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is "):
            make_model(env=NeverStepped(), **{name: value})

    @pytest.mark.parametrize(("name", "value"), ONE_BAD_POLICY_ARGUMENT)
    def test_names_that_the_policy_does_not_take(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`policy_kwargs` contains '?{name}'?, "):
            make_model(env=NeverStepped(), policy_kwargs={**SMALL, name: value})

    @pytest.mark.parametrize(
        ("name", "value"), [("sampler", "x"), ("sampler", 3), ("n_critics", 0), ("target_networks", False)]
    )
    def test_bad_policy_argument(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"`(policy_kwargs\[')?{name}('\])?` is "):
            make_model(env=NeverStepped(), policy_kwargs={**SMALL, name: value})

    def test_the_noise_of_a_gaussian_sampler(self) -> None:
        with pytest.raises(ValueError, match="`noise_dim` is 3, but it must be None or 2, the dimension of the actions"):
            make_model(noise_dim=3, policy_kwargs={**SMALL, "sampler": "gaussian"})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("kernel_particles", 8),
            ("kernel_update_ratio", 0.25),
            ("kernel", far_reaching_kernel),
            ("value_particles", 8),
            ("value_proposal", "policy"),
            ("noise_dim", 2),
            ("actor_learning_rate", 1e-3),
            ("action_noise", NormalActionNoise(np.zeros(1), np.ones(1))),
        ],
    )
    def test_options_of_the_sampler_with_discrete_actions(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is .* with discrete actions, for which it has no meaning"):
            make_model(env=NeverSteppedDiscrete(), **{name: value})

    def test_a_sampler_with_discrete_actions(self) -> None:
        with pytest.raises(ValueError, match="`sampler` is 'gaussian', but it must be 'mlp' with discrete actions"):
            make_model(env=NeverSteppedDiscrete(), policy_kwargs={**SMALL, "sampler": "gaussian"})

    def test_a_learning_rate_that_nobody_has(self) -> None:
        """With discrete actions the critics are all that is trained."""
        with pytest.raises(ValueError, match="`learning_rate` is"):
            make_model(learning_rate=1e-3, critic_learning_rate=1e-3, actor_learning_rate=1e-3)
        with pytest.raises(ValueError, match="`learning_rate` is"):
            make_model(env=NeverSteppedDiscrete(), learning_rate=1e-3, critic_learning_rate=1e-3)

    @pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (2,))])
    def test_other_action_spaces(self, space: Any) -> None:
        with pytest.raises(ValueError, match=r"The action space "):
            SoftQL("MlpPolicy", SpaceEnv(space))

    @pytest.mark.parametrize("policy", ["LstmPolicy", dict, 3, helpers.make_model().policy_class])
    def test_other_policies(self, policy: Any) -> None:
        with pytest.raises(ValueError, match=r"`policy` is .* or a subclass of SoftQLPolicy"):
            SoftQL(policy, RandomEnv())

    def test_a_kernel_that_raises_is_not_hidden(self) -> None:
        def broken(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
            raise RuntimeError("a bug of the user")

        with pytest.raises(RuntimeError, match="a bug of the user"):
            make_model(env=NeverStepped(), kernel=broken).learn(5)

    def test_users_dicts_are_not_mutated(self) -> None:
        policy_kwargs, replay_buffer_kwargs = dict(SMALL), dict[str, Any]()
        model = make_model(policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs, n_steps=3, noise_dim=3)
        fill_buffer(model)
        model.train(1, 8)
        assert policy_kwargs == SMALL == {"net_arch": [16, 16]}
        assert replay_buffer_kwargs == {}

    def test_what_only_soft_actor_critic_has_is_no_argument(self) -> None:
        names = set(inspect.signature(SoftQL.__init__).parameters)
        absent = {"use_sde", "sde_sample_freq", "use_sde_at_warmup", "actor_q", "value_network", "value_learning_rate"}
        absent |= {"policy_delay", "soft_n_step", "target_subset"}
        assert not names & absent
        assert not [name for name in names if name.startswith("log_std")]

    def test_the_signature_starts_as_that_of_sac(self) -> None:
        """Same names and order, but for gSDE; ours are keyword-only."""
        theirs = [p for p in inspect.signature(SAC.__init__).parameters.values() if "sde" not in p.name]
        ours = list(inspect.signature(SoftQL.__init__).parameters.values())
        assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
        assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
        different = {p.name: q.default for p, q in zip(theirs, ours, strict=False) if p.default != q.default}
        assert different == {"tau": 1.0, "ent_coef": 1.0, "target_update_interval": 1000}


def transposed(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    values, gradients = gaussian_kernel(fixed, updated)
    return KernelValues(values.transpose(1, 2), gradients)


def without_dimension(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    values, gradients = gaussian_kernel(fixed, updated)
    return KernelValues(values, gradients[..., 0])


def one_dimension(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    values, gradients = gaussian_kernel(fixed, updated)
    return KernelValues(values, gradients[..., :1])


def only_values(fixed: th.Tensor, updated: th.Tensor) -> Any:
    return gaussian_kernel(fixed, updated).values


def nothing(fixed: th.Tensor, updated: th.Tensor) -> Any:
    return None


def numbers(fixed: th.Tensor, updated: th.Tensor) -> Any:
    return KernelValues(1.0, 0.0)  # type: ignore[arg-type]  # the mistake under test


def another_precision(fixed: th.Tensor, updated: th.Tensor) -> KernelValues:
    return gaussian_kernel(fixed.double(), updated.double())


class TestKernels:
    """What a kernel returns is looked at before the first environment step."""

    @pytest.mark.parametrize("kernel", [transposed, without_dimension, one_dimension, only_values, nothing, numbers])
    def test_wrong_shapes_of_the_first_learn(self, kernel: Any) -> None:
        model = make_model(env=NeverStepped(), kernel=kernel, kernel_update_ratio=0.25, learning_starts=0)
        with pytest.raises(ValueError, match="`kernel` returned"):
            model.learn(5)
        assert model.replay_buffer is not None
        assert model.replay_buffer.size() == 0
        assert model.num_timesteps == 0

    @pytest.mark.parametrize("kernel", [transposed, nothing])
    def test_wrong_shapes_of_a_later_one(self, kernel: Any) -> None:
        model = make_model(kernel_update_ratio=0.25, learning_starts=10, batch_size=8).learn(15)
        before, buffer = weights_of(model), model.replay_buffer
        assert buffer is not None
        model.kernel = kernel
        with pytest.raises(ValueError, match="`kernel` returned"):
            model.learn(5, reset_num_timesteps=False)
        assert (buffer.size(), model.num_timesteps) == (15, 15)
        assert all(th.equal(weight, before[name]) for name, weight in weights_of(model).items())
        model.kernel = far_reaching_kernel
        assert model.learn(5, reset_num_timesteps=False).num_timesteps == 20

    def test_another_precision(self) -> None:
        """Float64 beside the networks' float32."""
        model = make_model(kernel=another_precision, learning_starts=5, batch_size=8)
        with pytest.raises(ValueError, match=r"`kernel` returned .*float64.*, but both must be torch\.float32"):
            model.learn(10)
        assert model.num_timesteps == 0

    def test_a_plain_pair_works(self) -> None:
        model = make_model(kernel=lambda fixed, updated: cast(Any, tuple(gaussian_kernel(fixed, updated))), learning_starts=5)
        model.learn(10)
        assert model._n_updates == 5
