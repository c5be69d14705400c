"""Bad input: one clear ValueError each, at construction, before any environment step."""

import re
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from stable_baselines3.sac import policies as sb3_policies
from torch import nn

from sb3_softac import CnnPolicy, MultiInputPolicy, SoftAC, SoftACPolicy
from tests.helpers import DICT, RandomDiscreteEnv, RandomEnv, SpaceEnv, fill_buffer, make_model

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
    ("action_noise", 0.1),
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


@pytest.mark.parametrize("steps", [-1, 1.5, float("nan"), "many"])
def test_learn_needs_a_number_of_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="`total_timesteps` is "):
        make_model().learn(steps)


@pytest.mark.parametrize("value", [None, True, "auto_", "auto_x", "auto_-1", "auto_inf", "std_0", "std", "std_0.1_0.2"])
def test_target_entropies_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match="`target_entropy` is "):
        make_model(target_entropy=value)


@pytest.mark.parametrize(("value", "expected"), [("auto", -2.0), ("auto_0.5", -1.0), ("auto_2", -4.0), ("-1.5", -1.5)])
def test_target_entropies_by_name(value: Any, expected: float, tmp_path: Path) -> None:
    """Of two action dimensions; set later, and kept in files."""
    model = make_model(target_entropy=value)
    assert model.target_entropy == expected
    model.save(tmp_path / "model")
    assert SoftAC.load(tmp_path / "model", device="cpu").target_entropy == expected
    model = make_model(learning_starts=5, batch_size=8).learn(8)
    model.target_entropy = value
    assert model.learn(8).target_entropy == expected


def test_the_entropy_of_a_gaussian_as_target() -> None:
    """As PyTorch has it, for both dimensions together."""
    entropy: Any = th.distributions.Normal(0.0, 0.15).entropy  # torch ships it without annotations
    expected = 2 * float(entropy())
    assert make_model(target_entropy="std_0.15").target_entropy == pytest.approx(expected)


@pytest.mark.parametrize("value", ["auto_0.5", "std_0.15"])
def test_discrete_actions_have_another_scale_of_their_target_entropy(value: str) -> None:
    with pytest.raises(ValueError, match="`target_entropy_scale` is the fraction"):
        make_model(env=RandomDiscreteEnv(), target_entropy=value)
    with pytest.raises(ValueError, match="with a fixed temperature"):
        make_model(ent_coef=0.2, target_entropy=value)


def test_compile_takes_booleans_of_numpy() -> None:
    model = make_model(compile=np.False_, learning_starts=10, batch_size=8).learn(20)
    assert not model._engine.compiles


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("soft_n_step", {"soft_n_step": True}),
        ("soft_n_step", {"soft_n_step": "yes", "n_steps": 3}),
        ("encoder", {"policy_kwargs": {"encoder": "convolution"}}),
        ("encoder", {"policy_kwargs": {"encoder": {"vf": "mlp"}}}),
        ("critic_head", {"policy_kwargs": {"critic_head": "vector"}}),
        ("n_quantiles", {"policy_kwargs": {"n_quantiles": 10}}),
        ("n_quantiles", {"policy_kwargs": {"n_quantiles": 0, "critic_head": "quantile"}}),
        ("n_atoms", {"policy_kwargs": {"n_atoms": 1, "critic_head": "categorical"}}),
        ("n_atoms", {"policy_kwargs": {"n_atoms": 51, "critic_head": "quantile"}}),
        ("value_range", {"policy_kwargs": {"value_range": (1.0, 1.0), "critic_head": "categorical"}}),
        ("value_range", {"policy_kwargs": {"value_range": (2.0, -2.0), "critic_head": "categorical"}}),
        ("value_range", {"policy_kwargs": {"value_range": 5.0, "critic_head": "categorical"}}),
        ("value_range", {"policy_kwargs": {"value_range": (-1.0, np.inf), "critic_head": "categorical"}}),
        ("value_range", {"policy_kwargs": {"value_range": (-1.0, 1.0)}}),
        ("top_quantiles_to_drop_per_net", {"top_quantiles_to_drop_per_net": 3}),
        ("top_quantiles_to_drop_per_net", {"top_quantiles_to_drop_per_net": 25, "policy_kwargs": {"critic_head": "quantile"}}),
        ("top_quantiles_to_drop_per_net", {"top_quantiles_to_drop_per_net": -1, "policy_kwargs": {"critic_head": "quantile"}}),
        ("target_q", {"target_q": "first", "policy_kwargs": {"critic_head": "quantile"}}),
        ("bootstrap", {"bootstrap": "self"}),
        ("value_network", {"bootstrap": "joint", "value_network": True}),
        ("tau", {"bootstrap": "joint", "tau": 0.01}),
        ("target_update_interval", {"bootstrap": "joint", "target_update_interval": 2}),
        ("actor_q", {"bootstrap": "joint", "actor_q": "target_min"}),
        ("batch_size", {"batch_size": 1, "policy_kwargs": {"normalization": "batch"}}),
        ("batch_size", {"batch_size": 1, "policy_kwargs": {"normalization": {"pi": "batch_renorm"}}}),
        (
            "top_quantiles_to_drop_per_net",
            {"top_quantiles_to_drop_per_net": 3, "value_network": True, "policy_kwargs": {"critic_head": "quantile"}},
        ),
        ("normalization", {"policy_kwargs": {"normalization": "group"}}),
        ("normalization", {"policy_kwargs": {"normalization": {"vf": "layer"}}}),
        ("normalization", {"value_network": True, "policy_kwargs": {"normalization": {"vf": "layer"}, "encoder": "simba"}}),
        ("normalization", {"policy_kwargs": {"normalization": "layer", "net_arch": []}}),
        ("normalization", {"policy_kwargs": {"normalization": {"pi": "layer"}, "net_arch": {"pi": [], "qf": [8]}}}),
        ("layer_norm", {"policy_kwargs": {"layer_norm": True, "net_arch": []}}),
        ("dropout_rate", {"policy_kwargs": {"dropout_rate": 0.1, "net_arch": {"pi": [8], "qf": []}}}),
        ("encoder", {"policy_kwargs": {"encoder": np.array(["simba"])}}),
        ("value_range", {"policy_kwargs": {"value_range": (1e8, 1e8 + 1e-3), "critic_head": "categorical"}}),
        ("value_range", {"policy_kwargs": {"value_range": np.array([1.0, -1.0]), "critic_head": "categorical"}}),
        ("n_quantiles", {"policy_kwargs": {"n_quantiles": 2.5, "critic_head": "quantile"}}),
        (
            "top_quantiles_to_drop_per_net",
            {"policy_kwargs": {"n_quantiles": np.int64(2), "critic_head": "quantile"}},
        ),
        ("policy_kwargs['target_networks']", {"bootstrap": "joint", "policy_kwargs": {"target_networks": True}}),
        ("optimizer_kwargs", {"policy_kwargs": {"optimizer_kwargs": {"betas": 0.5}}}),
        ("optimizer_kwargs", {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.5, 1.5)}}}),
        ("optimizer_kwargs", {"policy_kwargs": {"optimizer_kwargs": {"qf": {"weight_decay": -1}}}}),
        ("layer_norm", {"policy_kwargs": {"normalization": "batch", "layer_norm": True}}),
        ("target_networks", {"policy_kwargs": {"target_networks": 1}}),
    ],
)
def test_building_blocks_that_do_not_exist(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{re.escape(name)}` is .*, but it must be "):
        make_model(env=NeverStepped(), **kwargs)


@pytest.mark.filterwarnings("ignore:.* of the targets lie outside")  # of atoms at the ends, which any reward moves
@pytest.mark.parametrize(
    "kwargs",
    [
        {"critic_head": "quantile", "n_quantiles": 5.0},
        {"critic_head": "categorical", "n_atoms": 11.0, "value_range": np.array([-30.0, 30.0])},
        {"critic_head": "quantile", "n_quantiles": np.int64(3)},
        {"normalization": "batch", "net_arch": []},  # of the inputs
        {"normalization": "layer", "net_arch": {"pi": [], "qf": [8]}},  # where there are layers
    ],
)
def test_numbers_of_any_type_and_networks_of_any_depth(kwargs: dict[str, Any]) -> None:
    model = make_model(compile=False, policy_kwargs=kwargs)
    fill_buffer(model, 50)
    model.train(2, batch_size=8)
    assert {type(size) for size in (model.policy.head_kwargs["n_quantiles"], model.policy.head_kwargs["n_atoms"])} == {int}
