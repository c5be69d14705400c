"""Bad input: one clear ValueError each, at construction, before any environment step."""

from inspect import Parameter, signature
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from stable_baselines3.sac import policies as sb3_policies
from torch import nn

from sb3_softac import CnnPolicy, MultiInputPolicy, SoftAC, SoftACPolicy
from tests.helpers import RandomEnv, make_model

ONE_BAD_ARGUMENT: list[tuple[str, Any]] = [
    ("learning_rate", -1e-3),
    ("learning_rate", float("nan")),
    ("learning_rate", "lin_"),
    ("learning_rate", None),
    ("actor_learning_rate", "cos_1e-3"),
    ("critic_learning_rate", float("inf")),
    ("ent_coef_learning_rate", -1.0),
    ("buffer_size", 0),
    ("buffer_size", 1.5),
    ("learning_starts", -1),
    ("random_steps", -1),
    ("batch_size", 0),
    ("tau", -0.1),
    ("tau", 1.1),
    ("tau", float("nan")),
    ("gamma", 1.01),
    ("gamma", -0.01),
    ("gamma", "high"),
    ("train_freq", 0),
    ("train_freq", (1, "epoch")),
    ("train_freq", (0, "episode")),
    ("gradient_steps", -2),
    ("n_steps", 0),
    ("ent_coef", "auto_x"),
    ("ent_coef", -0.1),
    ("ent_coef", "high"),
    ("target_update_interval", 0),
    ("target_entropy", "high"),
    ("target_entropy", float("inf")),
    ("stats_window_size", 0),
    ("actor_q", "max"),
    ("target_q", "max"),
    ("target_q", "target_min"),
    ("target_subset", 0),
    ("target_subset", 3),
    ("ent_coef_update", "adam"),
    ("ent_coef_max", 0.0),
    ("ent_coef_max", float("nan")),
    ("policy_delay", 0),
    ("policy_delay", 1.5),
    ("reward_scale", 0.0),
    ("reward_scale", float("inf")),
    ("max_grad_norm", 0.0),
    ("value_network", "yes"),
    ("replay_buffer_class", "HerReplayBuffer"),
    ("replay_buffer_class", dict),
    ("use_sde", 1),
]

ONE_BAD_POLICY_ARGUMENT: list[tuple[str, Any]] = [
    ("n_critics", 0),
    ("log_std_mode", "constant"),
    ("log_std_bounds", (2.0, -20.0)),
    ("log_std_bounds", (1.0, 1.0)),
    ("log_std_bounds", (-1.0,)),
    ("log_std_bounds", (float("nan"), 1.0)),
    ("log_std_bounding", "sigmoid"),
    ("log_std_init", 3.0),
    ("log_std_init", float("nan")),
    ("net_arch", [0]),
    ("net_arch", "big"),
    ("net_arch", {"pi": [8]}),
    ("net_arch", {"pi": [8], "qf": [8], "vf": [8]}),
    ("net_arch", {"pi": [8], "qf": [8], "zf": [8]}),
    ("dropout_rate", 1.0),
    ("dropout_rate", -0.1),
    ("layer_norm", "yes"),
    ("weight_init", "he"),
    ("final_init_scale", 0.0),
    ("use_expln", True),
    ("clip_mean", 1.0),
    ("activation_fn", nn.PReLU),
]

CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("actor_q", {"actor_q": "target_min", "value_network": True}),
    ("value_learning_rate", {"value_learning_rate": 1e-3}),
    ("ent_coef_update", {"ent_coef": 0.2, "ent_coef_update": "log"}),
    ("ent_coef_max", {"ent_coef": 0.2, "ent_coef_max": 1.0}),
    ("ent_coef_learning_rate", {"ent_coef": "lin_0.2", "ent_coef_learning_rate": 1e-3}),
    ("target_entropy", {"ent_coef": 0.2, "target_entropy": -1.0}),
    ("ent_coef", {"ent_coef": "auto_2", "ent_coef_max": 1.0}),
    ("ent_coef", {"ent_coef": "auto_0", "ent_coef_update": "log"}),
    ("use_sde_at_warmup", {"use_sde_at_warmup": True}),
    ("sde_sample_freq", {"sde_sample_freq": 4}),
    ("random_steps", {"use_sde": True, "use_sde_at_warmup": True, "random_steps": 10}),
    ("log_std_mode", {"use_sde": True, "policy_kwargs": {"log_std_mode": "free"}}),
    ("log_std_bounds", {"use_sde": True, "policy_kwargs": {"log_std_bounds": (-5, 2)}}),
    ("log_std_bounding", {"use_sde": True, "policy_kwargs": {"log_std_bounding": "tanh"}}),
    ("log_std_init", {"policy_kwargs": {"log_std_init": -5.0, "log_std_bounds": (-5, 2), "log_std_bounding": "tanh"}}),
    ("n_steps", {"n_steps": 3, "replay_buffer_class": NStepReplayBuffer}),
    ("n_steps", {"n_steps": 3, "optimize_memory_usage": True}),
    ("replay_buffer_kwargs", {"n_steps": 3, "replay_buffer_kwargs": {"gamma": 0.9}}),
    ("gamma", {"gamma": 0.9, "replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"gamma": 0.99}}),
    ("policy_kwargs", {"policy_kwargs": {"value_network": True}}),
    ("policy_kwargs", {"policy_kwargs": {"use_sde": True}}),
]


class NeverStepped(RandomEnv):
    def step(self, action: Any) -> Any:
        raise AssertionError("an environment step was made")


@pytest.mark.parametrize(("name", "value"), ONE_BAD_ARGUMENT)
def test_bad_argument(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{name}(\(1\.0\))?` is "):
        make_model(env=NeverStepped(), **{name: value})


@pytest.mark.parametrize(("name", "value"), ONE_BAD_POLICY_ARGUMENT)
def test_bad_policy_argument(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{name}(\[.*\])?` is "):
        make_model(env=NeverStepped(), policy_kwargs={name: value})


@pytest.mark.parametrize(("name", "kwargs"), CONTRADICTIONS)
def test_contradiction(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        make_model(env=NeverStepped(), **kwargs)


def test_a_message_names_argument_value_and_allowed_values() -> None:
    with pytest.raises(ValueError, match=r"^`tau` is 2, but it must be a finite number and at least 0 and at most 1\.$"):
        make_model(tau=2)
    with pytest.raises(
        ValueError, match=r"^`actor_q` is 'max', but it must be one of 'min', 'mean', 'first', 'target_min'\.$"
    ):
        make_model(actor_q="max")


def test_her_has_no_n_step_returns() -> None:
    with pytest.raises(ValueError, match="`n_steps` is 3, but it must be 1 with a `replay_buffer_class`"):
        make_model(n_steps=3, replay_buffer_class=HerReplayBuffer)


class SpaceEnv(RandomEnv):
    def __init__(self, action_space: Any = None, observation_space: Any = None) -> None:
        super().__init__()
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space


DICT = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,))})


@pytest.mark.parametrize("kwargs", [{"n_steps": 3}, {"optimize_memory_usage": True}])
def test_what_dict_observations_do_not_have(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}` is .* with Dict observations"):
        SoftAC("MultiInputPolicy", SpaceEnv(observation_space=DICT), **kwargs)


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.Dict({"a": spaces.Discrete(2)})]
)
def test_other_action_spaces(space: Any) -> None:
    with pytest.raises(ValueError, match=r"The action space is .*SoftAC supports spaces.Box and spaces.Discrete only"):
        SoftAC("MlpPolicy", SpaceEnv(space))


@pytest.mark.parametrize("bound", [np.inf, 3e38])
def test_unbounded_actions(bound: float) -> None:
    """±3e38 is finite, but high − low overflows, and SB3 would send ``inf`` to the environment."""
    with pytest.raises(ValueError, match="infinite bounds, or bounds so wide"):
        SoftAC("MlpPolicy", SpaceEnv(spaces.Box(-bound, bound, (2,))))


def test_integer_actions() -> None:
    """SB3 rounds the scaled actions in its buffer to −1, 0 and 1."""
    with pytest.raises(ValueError, match="has dtype int8, but continuous actions need a floating-point one"):
        SoftAC("MlpPolicy", SpaceEnv(spaces.Box(-128, 127, (2,), np.int8)))


def test_no_environment() -> None:
    with pytest.raises(ValueError, match="`env` is None"):
        SoftAC("MlpPolicy", None)  # type: ignore[arg-type]  # the mistake under test


def test_an_empty_interval() -> None:
    with pytest.raises(ValueError, match="upper bound that is not above"):
        SoftAC("MlpPolicy", SpaceEnv(spaces.Box(np.zeros(2, np.float32), np.array([1, 0], np.float32))))


def test_episodes_need_one_environment() -> None:
    with pytest.raises(ValueError, match=r"`train_freq` is .* with several environments \(here 2\)"):
        SoftAC("MlpPolicy", make_vec_env(RandomEnv, n_envs=2), train_freq=(1, "episode"))


@pytest.mark.parametrize("policy", ["LstmPolicy", dict, 3])
def test_unknown_policy(policy: Any) -> None:
    with pytest.raises(ValueError, match=r"`policy` is .* 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy'"):
        SoftAC(policy, RandomEnv())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (sb3_policies.MlpPolicy, SoftACPolicy),
        (sb3_policies.CnnPolicy, CnnPolicy),
        (sb3_policies.MultiInputPolicy, MultiInputPolicy),
    ],
)
def test_sb3_policy_classes_mean_ours(theirs: Any, ours: Any) -> None:
    assert SoftAC._resolve_policy(theirs) is ours


def test_integers_may_be_written_as_floats_and_lists_as_tuples() -> None:
    model = make_model(buffer_size=1e3, learning_starts=1e2, batch_size=np.int64(32), random_steps=5e1)
    assert (model.buffer_size, model.learning_starts, model.batch_size, model.random_steps) == (1000, 100, 32, 50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.buffer_size == 1000
    model = make_model(train_freq=np.int64(4), policy_kwargs={"net_arch": (8.0, 8), "n_critics": 3.0})
    assert isinstance(model.train_freq, TrainFreq)
    assert model.train_freq.frequency == 4
    assert model.critic.n_critics == 3
    assert model.policy.net_arch == [8, 8]


def test_users_dicts_are_not_mutated() -> None:
    policy_kwargs: dict[str, Any] = {"net_arch": [8]}
    replay_buffer_kwargs: dict[str, Any] = {}
    make_model(n_steps=3, policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs)
    assert policy_kwargs == {"net_arch": [8]}
    assert replay_buffer_kwargs == {}


def test_the_signature_starts_as_that_of_sac() -> None:
    """Same names, same order, same defaults; ours are keyword-only."""
    theirs = list(signature(SAC.__init__).parameters.values())
    ours = list(signature(SoftAC.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert all(p.kind is Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


class BadEnv(RandomEnv):
    """Returns one non-finite value at step 17 (the second step of an episode), or at an episode's end (step 20)."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__()
        self.what, self.value, self.total = what, value, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == 17 and self.what == "reward":
            reward = self.value
        if (self.total, self.what) in {(17, "observation"), (20, "terminal observation")}:
            observation[1] = self.value
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("what", "step"), [("reward", 17), ("observation", 17), ("terminal observation", 20)])
@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_values_stop_the_training(what: str, step: int, value: float, normalize: bool) -> None:
    if normalize and what == "terminal observation" and np.isinf(value):
        pytest.skip("VecNormalize clips an infinite terminal observation to a finite one before SoftAC sees it")
    env: Any = make_vec_env(lambda: BadEnv(what, value), n_envs=1, seed=0)
    model = make_model(env=VecNormalize(env) if normalize else env, learning_starts=5)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=rf"stopped at step {step}: the environment returned a non-finite {what} \({value} at"),
    ):
        model.learn(100)
    buffer = model.replay_buffer
    assert buffer is not None
    assert buffer.pos == step - 1
    for stored in (buffer.observations, buffer.next_observations, buffer.rewards):
        assert np.isfinite(stored).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_values_that_overflow_float32_are_not_finite_either() -> None:
    class Huge(RandomEnv):
        def step(self, action: Any) -> Any:
            return self._observe(), 1e39, False, False, {}

    with pytest.raises(ValueError, match=r"stopped at step 1: the environment returned a non-finite reward"):
        make_model(env=Huge()).learn(10)


def test_the_environment_that_returned_it_is_named() -> None:
    env = make_vec_env(RandomEnv, n_envs=3)
    step_wait = env.step_wait

    def broken() -> Any:
        observations, rewards, dones, infos = step_wait()
        rewards[2] = np.nan
        return observations, rewards, dones, infos

    env.step_wait = broken  # type: ignore[method-assign]  # one of three environments fails
    with pytest.raises(ValueError, match=r"reward \(nan at index \[2\]\)"):
        make_model(env=env).learn(10)


def test_training_goes_on_with_a_new_episode_after_a_stop() -> None:
    """The transition that was refused must not be bridged by the next one."""

    class Counter(RandomEnv):
        def _observe(self) -> Any:
            return np.full(4, 0.1 * self.step_count, np.float32)

        def step(self, action: Any) -> Any:
            self.step_count += 1
            return self._observe(), np.nan if self.step_count == 3 else 0.0, False, False, {}

    model = make_model(env=Counter())
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(10)
    model.learn(2, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert buffer is not None
    np.testing.assert_allclose(buffer.observations[: buffer.pos, 0, 0], [0.0, 0.1, 0.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(buffer.next_observations[: buffer.pos, 0, 0], [0.1, 0.2, 0.1, 0.2], atol=1e-6)


class FailsOnce(RandomEnv):
    """Steps without an end, and one NaN reward at step 30."""

    total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        return self._observe(), np.nan if self.total == 30 else 1.0, False, False, {}


@pytest.mark.parametrize("kwargs", [{"n_steps": 3}, {"n_steps": 3, "buffer_size": 29}])
def test_n_step_returns_do_not_reach_across_a_stop(kwargs: dict[str, Any]) -> None:
    model = make_model(env=FailsOnce(), gamma=0.9, **kwargs)
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    samples = model.replay_buffer._get_samples(np.array([26, 27, 28]))
    assert samples.discounts is not None
    np.testing.assert_allclose(samples.discounts.squeeze(1), [0.9**3, 0.9**2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(samples.dones.squeeze(1), 0.0)  # cut, not terminated: the target bootstraps


@pytest.mark.parametrize("terminates", [False, True])
def test_an_episode_that_ended_by_itself_before_a_stop_keeps_its_end(terminates: bool) -> None:
    """A time-out still bootstraps, a termination still does not."""

    class FailsAfterTheEnd(RandomEnv):
        total = 0

        def step(self, action: Any) -> Any:
            self.total += 1
            observation, reward, *rest = super().step(action)
            return observation, np.nan if self.total == 6 else reward, *rest

    model = make_model(env=FailsAfterTheEnd(terminates=terminates))
    with pytest.raises(ValueError, match="stopped at step 6"):
        model.learn(50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.pos == 5
    assert model.replay_buffer._get_samples(np.array([4])).dones.item() == float(terminates)


def test_a_memory_efficient_buffer_does_not_join_episodes_at_a_stop() -> None:
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(env=FailsOnce(), **kwargs)
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    assert model.replay_buffer is not None
    assert model.replay_buffer.dones[28, 0] == 1.0


def test_hindsight_goals_do_not_reach_across_a_stop() -> None:
    class FailsOnceHer(BitFlippingEnv):
        total = 0

        def step(self, action: Any) -> Any:
            self.total += 1
            observation, reward, *_ = super().step(action)
            return observation, np.nan if self.total == 30 else reward, False, False, {}

    env = FailsOnceHer(n_bits=4, continuous=True)
    model = SoftAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, buffer_size=200, device="cpu")
    with pytest.raises(ValueError, match="non-finite reward"):
        model.learn(50)
    model.learn(10, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    assert buffer.ep_length[:29, 0].tolist() == [29] * 29
    assert set(buffer.ep_start[29 : buffer.pos, 0].tolist()) == {29}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_spoilt_statistics_are_named_as_the_cause(what: str) -> None:
    """VecNormalize sees the values before SoftAC does."""
    env = VecNormalize(make_vec_env(lambda: BadEnv(what, np.nan), n_envs=1, seed=0))
    model = make_model(env=env, learning_starts=5)
    with pytest.raises(ValueError, match="VecNormalize has taken it into its statistics: reload those"):
        model.learn(100)
    with pytest.raises(ValueError, match="The statistics of VecNormalize are not finite"):
        model.learn(100)


def test_a_non_finite_first_observation() -> None:
    class BadReset(RandomEnv):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return observation * np.nan, info

    with pytest.raises(ValueError, match="stopped at step 0: the environment returned a non-finite observation"):
        make_model(env=BadReset()).learn(10)


def test_terminal_observations_may_be_plain_python() -> None:
    """SB3's DummyVecEnv passes on what the environment returned: a number or a list."""

    class Plain(SpaceEnv):
        def _observe(self) -> Any:
            return 2

    assert SoftAC("MlpPolicy", Plain(observation_space=spaces.Discrete(4)), device="cpu").learn(12).num_timesteps == 12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # 1e300 where the test makes it
def test_what_float32_cannot_hold_is_refused_in_any_precision(dtype: Any, value: float) -> None:
    space = spaces.Box(dtype(-1.0), dtype(1.0), (3,), dtype)

    class Bad(SpaceEnv):
        def _observe(self) -> Any:
            return np.array([0.5, value, 0.5], dtype)

    with pytest.raises(ValueError, match="non-finite observation"):
        SoftAC("MlpPolicy", Bad(observation_space=space), device="cpu").learn(10)


def test_non_finite_dict_observations_are_named() -> None:
    class BadDict(SpaceEnv):
        def _observe(self) -> Any:
            return {"a": np.full(2, np.inf, np.float32)}

    with pytest.raises(ValueError, match=r"non-finite observation 'a' \(inf at index \[0, 0\]\)"):
        SoftAC("MultiInputPolicy", BadDict(observation_space=DICT)).learn(10)


@pytest.mark.parametrize("steps", [-1, 1.5, float("nan"), "many"])
def test_learn_needs_a_number_of_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="`total_timesteps` is "):
        make_model().learn(steps)
