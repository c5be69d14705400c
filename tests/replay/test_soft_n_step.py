"""Soft n-step returns: the states inside a return against a slow loop, and their fixed point in closed form."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC
from sb3_softac.replay.soft_n_step import later_states
from sb3_softac.update.actor_critic import Noise
from tests.helpers import RandomDiscreteEnv, RandomEnv, fill_buffer, make_model, update_of

GAMMA = 0.9


def filled(n_envs: int, n_transitions: int, n_steps: int, capacity: int = 20) -> tuple[NStepReplayBuffer, list[Any]]:
    """A buffer, and what was stored: (observation, whether the trajectory ends here) for each time and environment.

    The observation is (environment, time); one transition in five ends an episode, and every other one of these by a time-out.
    """
    space = spaces.Box(-1e6, 1e6, (2,))
    buffer = NStepReplayBuffer(
        capacity * n_envs, space, spaces.Box(-1, 1, (1,)), device="cpu", n_envs=n_envs, n_steps=n_steps, gamma=GAMMA
    )
    rng, stored = np.random.default_rng(n_envs), []
    for time in range(n_transitions):
        obs = np.array([[env, time] for env in range(n_envs)], np.float32)
        ends = rng.uniform(size=n_envs) < 0.2
        timeouts = ends & (rng.uniform(size=n_envs) < 0.5)
        infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
        buffer.add(obs, obs + np.array([0.0, 1.0], np.float32), np.zeros((n_envs, 1)), rng.normal(size=n_envs), ends, infos)
        stored.append((obs, ends))
    return buffer, stored


@pytest.mark.parametrize("n_transitions", [7, 20, 33, 40])
@pytest.mark.parametrize("n_steps", [2, 3, 5])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_states_in_between_against_a_slow_loop(n_envs: int, n_steps: int, n_transitions: int) -> None:
    """Terminations, time-outs, the newest transition, and a buffer that has wrapped around."""
    buffer, stored = filled(n_envs, n_transitions, n_steps)
    np.random.seed(0)  # noqa: NPY002  # the generator that SB3's buffers draw from
    samples, observations, discounts = later_states(buffer, 200, None)
    observations = observations.view(200, n_steps - 1, 2)
    assert discounts.shape == (200, n_steps - 1)
    n_alive = set()
    for row in range(200):
        env, time = map(int, samples.observations[row].tolist())
        alive = 0
        for k in range(1, n_steps):
            previous = time + k - 1
            if stored[previous][1][env] or previous == n_transitions - 1:
                break  # the trajectory ends there, or goes on in the future
            alive = k
            assert observations[row, k - 1].tolist() == stored[time + k][0][env].tolist()
        expected = [GAMMA**k if k <= alive else 0.0 for k in range(1, n_steps)]
        np.testing.assert_allclose(discounts[row], expected, rtol=1e-6)
        assert samples.discounts[row].item() == pytest.approx(GAMMA ** (alive + 1))  # as many steps as SB3 counts
        n_alive.add(alive)
    assert n_alive == set(range(n_steps)) or n_transitions == 7  # every length occurs in a buffer that is not so small


@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_sample_is_that_of_sb3(n_envs: int) -> None:
    """The same transitions, and the same random numbers afterwards."""
    buffer, _ = filled(n_envs, 33, 3)
    np.random.seed(5)  # noqa: NPY002
    sampled: Any = buffer.sample(32)
    following = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    ours = later_states(buffer, 32, None)[0]
    assert np.random.random() == following  # noqa: NPY002
    for mine, theirs in zip(ours, sampled, strict=True):
        assert th.equal(mine, theirs)


def test_normalised_observations_in_between() -> None:
    env = VecNormalize(make_vec_env(RandomEnv, n_envs=2, seed=0))
    model = make_model(env=env, n_steps=3, soft_n_step=True, learning_starts=20, batch_size=8).learn(60)
    buffer: Any = model.replay_buffer
    np.random.seed(0)  # noqa: NPY002
    raw = later_states(buffer, 16, None)[1]
    np.random.seed(0)  # noqa: NPY002
    normalised = later_states(buffer, 16, env)[1]
    expected: Any = env.normalize_obs(raw.numpy())
    np.testing.assert_allclose(normalised, expected, rtol=1e-5)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_target_against_its_formula(discrete: bool) -> None:
    """What it has more than the plain n-step target is Σ_k γ^k α H(s_k), in float64."""
    env = RandomDiscreteEnv() if discrete else RandomEnv()
    model = make_model(env=env, n_steps=4, soft_n_step=True, ent_coef=0.7)
    fill_buffer(model)
    batch, alpha, update = model._sample_batch(12), th.tensor(0.7), update_of(model)
    assert batch.later_discounts is not None
    assert 0 < (batch.later_discounts == 0.0).sum() < 36
    noise = Noise(next_observations=th.randn(12, 2), later_observations=th.randn(36, 2))
    noise = Noise() if discrete else noise
    y = update.bellman_target(batch, alpha, noise, update.numbers())
    without = batch._replace(later_observations=None, later_discounts=None)
    plain = update.bellman_target(without, alpha, noise, update.numbers())
    with th.no_grad():
        if discrete:
            log_probs = model.actor.log_probs(batch.later_observations).double()
            log_prob = (log_probs.exp() * log_probs).sum(dim=1)
        else:
            assert noise.later_observations is not None
            mean, log_std, _ = model.actor.get_action_dist_params(batch.later_observations)
            u = mean.double() + log_std.double().exp() * noise.later_observations.double()
            normal: Any = th.distributions.Normal(mean.double(), log_std.double().exp())
            log_prob = (normal.log_prob(u) - th.log(1.0 - u.tanh() ** 2)).sum(dim=1)
    entropies = -0.7 * (log_prob.view(12, 3) * batch.later_discounts.double()).sum(dim=1)
    th.testing.assert_close((y - plain).double(), entropies, rtol=1e-4, atol=1e-4)


class Nothing(gym.Env[np.ndarray[Any, Any], Any]):
    """No reward, one state, episodes that are cut after ten steps."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space: spaces.Space[Any] = spaces.Discrete(3)
    t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, self.t == 10, {}


@pytest.mark.parametrize(("n_steps", "soft"), [(1, False), (3, True), (3, False)])
def test_the_fixed_point_in_closed_form(n_steps: int, soft: bool) -> None:
    """Without rewards the policy is uniform, H = log 3, and Q = γV with V = αH/(1 − γ), whatever n is.

    A plain n-step return counts the entropy of every n-th state only: its value is too low.
    """
    alpha, gamma = 0.5, 0.8
    model = SoftAC(
        "MlpPolicy",
        Nothing(),
        learning_rate="lin_5e-3_1e-5",
        batch_size=64,
        tau=0.05,
        gamma=gamma,
        ent_coef=alpha,
        n_steps=n_steps,
        soft_n_step=soft,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
        compile=False,
    ).learn(1200)
    with th.no_grad():
        q_values = model.critic.q_values(th.zeros(1, 1)).flatten()
    soft_q = gamma * alpha * math.log(3) / (1.0 - gamma)
    if n_steps == 1 or soft:
        np.testing.assert_allclose(q_values, soft_q, rtol=0.02)
    else:
        assert q_values.max() < 0.75 * soft_q


def test_it_needs_states_in_between() -> None:
    with pytest.raises(ValueError, match="`soft_n_step` is True, but it must be False with `n_steps=1`"):
        make_model(soft_n_step=True)
