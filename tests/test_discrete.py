"""Discrete actions: closed forms, the spaces and buffers of SB3, and what is refused."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_softac import SoftAC
from sb3_softac.update import losses
from tests.helpers import SMALL, RandomDiscreteEnv, assert_same_parameters, fill_buffer, make_model

OBS = th.rand(5, 4)


class Bandit(gym.Env[int, int]):
    """One state, one step, a reward for each action."""

    def __init__(self, rewards: list[float]) -> None:
        self.rewards = rewards
        self.observation_space = spaces.Discrete(1)  # type: ignore[assignment]  # Gymnasium's integers are NumPy's
        self.action_space = spaces.Discrete(len(rewards))  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 0, self.rewards[action], True, False, {}


class TwoStates(gym.Env[int, int]):
    """Action a leads to state a; the reward is f(s) + g(a). Episodes are cut, but never end."""

    F, G = (0.0, 1.0), (0.5, -0.5)

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(2)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(2)  # type: ignore[assignment]
        self.state = self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.t = int(self.np_random.integers(2)), 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = self.F[self.state] + self.G[action]
        self.state, self.t = int(action), self.t + 1
        return self.state, reward, False, self.t == 10, {}

    @classmethod
    def soft_fixed_point(cls, alpha: float, gamma: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """V(s) = f(s) + W with W = α log Σ_a exp((g(a) + γV(a))/α) = α log Σ_a exp((g(a) + γf(a))/α) / (1 − γ)."""
        f, g = np.array(cls.F), np.array(cls.G)
        w = alpha * np.log(np.exp((g + gamma * f) / alpha).sum()) / (1 - gamma)
        return f + w, f[:, None] + g + gamma * (f + w)


def trained(env: Any, steps: int, **kwargs: Any) -> SoftAC:
    return SoftAC(
        "MlpPolicy",
        env,
        learning_rate="lin_5e-3_1e-5",
        batch_size=64,
        tau=0.05,
        policy_kwargs={"net_arch": [32]},
        seed=0,
        device="cpu",
        **kwargs,
    ).learn(steps)


@pytest.mark.parametrize("value_network", [False, True])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_policy_of_a_bandit_is_the_softmax_of_its_rewards(alpha: float, value_network: bool) -> None:
    """π ∝ exp(r/α), the maximum of E[r] + αH."""
    rewards = np.array([0.2, 1.0, 0.6, -0.5])
    model = trained(Bandit(list(rewards)), 800, ent_coef=alpha, value_network=value_network)
    expected = np.exp(rewards / alpha) / np.exp(rewards / alpha).sum()
    with th.no_grad():
        probabilities = model.actor.log_probs(th.zeros(1, dtype=th.long)).exp().squeeze(0).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-2)


@pytest.mark.parametrize("value_network", [False, True])
def test_two_states_reach_their_soft_fixed_point(value_network: bool) -> None:
    """Values against the closed form, and Q(s, a) = r + γV(s') with it; episodes that are cut do not change it."""
    alpha, gamma = 0.5, 0.8
    values, q_values = TwoStates.soft_fixed_point(alpha, gamma)
    model = trained(TwoStates(), 1500, ent_coef=alpha, gamma=gamma, value_network=value_network)
    states = th.arange(2)
    with th.no_grad():
        q = model.critic.q_values(states).amin(dim=0)
        soft_values = losses.discrete_soft_value(q, model.actor.log_probs(states), th.tensor(alpha))
        np.testing.assert_allclose(q.numpy(), q_values, atol=0.03)
        np.testing.assert_allclose(soft_values.numpy(), values, atol=0.03)
        if model.value_net is not None:
            np.testing.assert_allclose(model.value_net(states).squeeze(1).numpy(), values, atol=0.03)


class TestActing:
    def test_deterministic_is_the_most_probable_action(self) -> None:
        model = make_model(env=RandomDiscreteEnv(n_actions=4))
        with th.no_grad():
            expected = model.actor.log_probs(OBS).argmax(dim=1)
        actions, _ = model.predict(OBS.numpy(), deterministic=True)
        np.testing.assert_array_equal(actions, expected)
        assert model.action_space.contains(model.predict(OBS[0].numpy(), deterministic=True)[0])

    def test_samples_follow_the_probabilities(self) -> None:
        model = make_model(env=RandomDiscreteEnv(n_actions=4))
        th.nn.init.constant_(model.actor.logits.weight, 0.0)
        model.actor.logits.bias.data = th.tensor([0.1, 0.4, 0.3, 0.2]).log()
        actions, log_prob = model.actor.action_log_prob(OBS[:1].expand(20_000, -1))
        frequencies = np.bincount(actions.numpy(), minlength=4) / 20_000
        np.testing.assert_allclose(frequencies, [0.1, 0.4, 0.3, 0.2], atol=0.015)
        np.testing.assert_allclose(log_prob.detach(), np.log([0.1, 0.4, 0.3, 0.2])[actions], rtol=1e-5)

    def test_actions_that_do_not_start_at_zero(self) -> None:
        """The environment sees −1, 0, 1, the networks 0, 1, 2."""
        env = RandomDiscreteEnv(n_actions=3, start=-1)
        model = make_model(env=env, learning_starts=20).learn(60)
        assert set(env.actions) == {-1, 0, 1}
        assert model.replay_buffer is not None
        stored = model.replay_buffer.actions[:60].ravel()
        np.testing.assert_array_equal(stored, env.actions)
        batch = model._sample_batch(200)
        assert set(batch.actions.tolist()) == {0, 1, 2}

    def test_critics_return_the_chosen_value_or_all(self) -> None:
        model = make_model(env=RandomDiscreteEnv(n_actions=3), policy_kwargs={**SMALL, "n_critics": 3})
        chosen = th.tensor([2, 0, 1, 1, 2])
        every = model.critic(OBS)
        assert [tuple(q.shape) for q in every] == [(5, 3)] * 3
        for actions in (chosen, chosen.unsqueeze(1)):
            for q, q_all in zip(model.critic(OBS, actions), every, strict=True):
                th.testing.assert_close(q, q_all[range(5), chosen].unsqueeze(1))


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.0, 0.5, 0.98])
    def test_the_automatic_target_is_a_fraction_of_the_highest_entropy(self, scale: float) -> None:
        model = make_model(env=RandomDiscreteEnv(n_actions=6), target_entropy_scale=scale)
        assert model.target_entropy == pytest.approx(scale * math.log(6))

    @pytest.mark.parametrize("update", ["dual", "log", "exp"])
    @pytest.mark.parametrize("target", [0.3, 1.0])
    def test_alpha_moves_towards_the_target_entropy(self, update: Any, target: float) -> None:
        """The entropy of a policy that is nearly uniform over three actions, 1.09 nats, is above both targets: α falls."""
        model = make_model(env=RandomDiscreteEnv(), target_entropy=target, ent_coef_update=update, learning_rate=1e-2)
        fill_buffer(model)
        model.train(1, batch_size=32)
        assert model.logger.name_to_value["train/entropy"] == pytest.approx(math.log(3), abs=0.05)
        assert model.temperature.value < 1.0

    @pytest.mark.parametrize("target", [math.log(3), 1.2, 5])
    def test_a_target_that_no_policy_reaches(self, target: float) -> None:
        with pytest.raises(ValueError, match=r"`target_entropy` is .*, but it must be below log\|A\| = 1\.0986"):
            make_model(env=RandomDiscreteEnv(), target_entropy=target)

    @pytest.mark.parametrize("scale", [1.0, 1.5, -0.1, float("nan"), "0.5"])
    def test_scales_out_of_range(self, scale: Any) -> None:
        with pytest.raises(ValueError, match="`target_entropy_scale` is"):
            make_model(env=RandomDiscreteEnv(), target_entropy_scale=scale)

    @pytest.mark.parametrize("kwargs", [{"target_entropy": 0.3}, {"ent_coef": 0.1}])
    def test_a_scale_that_would_be_ignored(self, kwargs: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"`target_entropy_scale` is 0\.4, but it must be"):
            make_model(env=RandomDiscreteEnv(), target_entropy_scale=0.4, **kwargs)

    def test_box_actions_have_minus_their_dimension_at_any_scale(self) -> None:
        assert make_model(target_entropy_scale=0.4).target_entropy == -2.0

    def test_it_can_be_replaced_at_loading(self, tmp_path: Path) -> None:
        env = RandomDiscreteEnv()
        make_model(env=env).save(tmp_path / "model")
        assert SoftAC.load(tmp_path / "model").target_entropy == make_model(env=env).target_entropy
        assert SoftAC.load(tmp_path / "model", target_entropy_scale=0.4).target_entropy == pytest.approx(0.4 * math.log(3))
        assert SoftAC.load(tmp_path / "model", target_entropy=0.2).target_entropy == 0.2
        make_model(env=env, target_entropy_scale=0.9).save(tmp_path / "model")
        assert SoftAC.load(tmp_path / "model", target_entropy=0.2).target_entropy == 0.2


class TestObservationsAndBuffers:
    def learn(self, env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> SoftAC:
        """Every network changes, and stays finite."""
        kwargs = {"learning_starts": 30, "buffer_size": 200, "batch_size": 16, "seed": 0, "device": "cpu", **kwargs}
        kwargs["policy_kwargs"] = {**SMALL, **kwargs.get("policy_kwargs", {})}
        model = SoftAC(policy, env, **kwargs)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(60)
        for name, value in model.policy.state_dict().items():
            assert th.isfinite(value).all(), name
            assert not th.equal(value, before[name]), name
        return model

    @pytest.mark.parametrize("value_network", [False, True])
    def test_images(self, value_network: bool) -> None:
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
        kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
        model = self.learn(env, "CnnPolicy", policy_kwargs=kwargs, value_network=value_network)
        assert 0 <= int(model.predict(env.observation_space.sample())[0]) < 6

    @pytest.mark.parametrize("value_network", [False, True])
    def test_dict_observations(self, value_network: bool) -> None:
        env = SimpleMultiObsEnv(discrete_actions=True)
        kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 16}}
        self.learn(env, "MultiInputPolicy", policy_kwargs=kwargs, value_network=value_network)

    def test_shared_features(self) -> None:
        """The extractor learns from the actor's loss alone; one that has weights, unlike that of flat observations."""
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
        kwargs = {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": True}
        model = self.learn(env, "CnnPolicy", policy_kwargs=kwargs, value_network=True)
        assert model.critic.features_extractor is model.actor.features_extractor
        held = {id(p) for group in model.critic.optimizer.param_groups for p in group["params"]}
        assert held.isdisjoint(id(p) for p in model.actor.features_extractor.parameters())

    @pytest.mark.parametrize("n_envs", [1, 2])
    def test_hindsight_experience_replay(self, n_envs: int) -> None:
        env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=3, continuous=False)] * n_envs)
        model = self.learn(env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=20)
        assert isinstance(model.replay_buffer, HerReplayBuffer)

    @pytest.mark.parametrize("n_envs", [1, 3])
    def test_n_step_returns(self, n_envs: int) -> None:
        env = make_vec_env(RandomDiscreteEnv, n_envs, vec_env_cls=DummyVecEnv)
        assert isinstance(self.learn(env, n_steps=3).replay_buffer, NStepReplayBuffer)

    def test_memory_efficient_buffer(self) -> None:
        kwargs: dict[str, Any] = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
        self.learn(RandomDiscreteEnv(), optimize_memory_usage=True, **kwargs)

    def test_vec_normalize(self) -> None:
        self.learn(VecNormalize(DummyVecEnv([RandomDiscreteEnv])))

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"policy_kwargs": {"n_critics": 10}, "target_subset": 2, "actor_q": "mean"},
            {"policy_kwargs": {"layer_norm": True, "dropout_rate": 0.1}, "policy_delay": 2, "gradient_steps": 2},
            {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [16], "vf": [4]}}, "value_network": True},
            {"actor_learning_rate": 1e-3, "critic_learning_rate": "lin_1e-3", "ent_coef_learning_rate": 1e-2},
            {"max_grad_norm": 0.5, "actor_q": "target_min", "reward_scale": -2.0, "policy_kwargs": {"final_init_scale": 0.1}},
        ],
    )
    def test_our_options(self, kwargs: dict[str, Any]) -> None:
        self.learn(RandomDiscreteEnv(), **kwargs)

    def test_evaluate_policy(self) -> None:
        model = self.learn("CartPole-v1")
        env: Any = model.get_env()
        mean: Any = evaluate_policy(model, env, n_eval_episodes=2, warn=False)[0]
        assert mean >= 8.0


@pytest.mark.parametrize("value_network", [False, True])
def test_training_after_load_equals_training_without_it(value_network: bool, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"env": RandomDiscreteEnv(), "value_network": value_network, "ent_coef": "auto_0.3"}
    model = make_model(**kwargs)
    fill_buffer(model)
    model.train(3, batch_size=16)
    model.save(tmp_path / "model")
    loaded = SoftAC.load(tmp_path / "model", env=RandomDiscreteEnv(), device="cpu")
    loaded.set_logger(model.logger)
    fill_buffer(loaded)
    actions, again = (each.predict(OBS.numpy(), deterministic=True)[0] for each in (model, loaded))
    np.testing.assert_array_equal(actions, again)
    for each in (model, loaded):
        th.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  # the generator that SB3's buffers draw from
        each.train(3, batch_size=16)
    assert_same_parameters(model, loaded)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("log_std_mode", "free"),
            ("log_std_bounds", (-5, 2)),
            ("log_std_bounding", "tanh"),
            ("log_std_init", -1.0),
            ("use_expln", True),
            ("clip_mean", 1.0),
        ],
    )
    def test_policy_options_without_meaning(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is .* with discrete actions, for which it has no meaning"):
            make_model(env=RandomDiscreteEnv(), policy_kwargs={**SMALL, name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("action_noise", NormalActionNoise(np.zeros(1), np.ones(1))),
            ("use_sde", True),
            ("sde_sample_freq", 4),
            ("use_sde_at_warmup", True),
        ],
    )
    def test_options_without_meaning(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"`{name}` is .* with discrete actions, for which it has no meaning"):
            make_model(env=RandomDiscreteEnv(), **{name: value})

    def test_nothing_to_choose_from(self) -> None:
        with pytest.raises(ValueError, match=r"The action space is Discrete\(1\), but there must be at least two actions"):
            make_model(env=RandomDiscreteEnv(n_actions=1))
