"""Presets of soft Q-learning, against the settings of the authors' two codes, written down again."""

from typing import Any

import pytest

from sb3_softac import SoftAC, SoftQL, presets
from sb3_softac.networks import GaussianSampler, Sampler
from sb3_softac.networks.ensemble import EnsembleLinear
from tests.helpers import RandomEnv

#: examples/mujoco_all_sql.py of softqlearning; examples/development/variants.py of softlearning
EXPECTED: dict[str, dict[str, Any]] = {
    "softqlearning": {"batch_size": 128, "tau": 1.0, "target_update_interval": 1000, "random_steps": 0},
    "softlearning_sql": {"batch_size": 256, "tau": 0.005, "target_update_interval": 1, "random_steps": 10_000},
}
OF_BOTH = {
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "buffer_size": 1_000_000,
    "gradient_steps": 1,
    "ent_coef": 1.0,
    "kernel_particles": 16,
    "kernel_update_ratio": 0.5,
    "value_particles": 16,
    "value_proposal": "uniform",
    "target_q": "min",
    "learning_starts": 1000,
}
NETWORKS: dict[str, tuple[list[int], int, type[Sampler]]] = {
    "softqlearning": ([128, 128], 1, Sampler),
    "softlearning_sql": ([256, 256], 2, GaussianSampler),
}


def test_there_is_a_constant_for_each_name() -> None:
    assert dict(presets.SOFTQL_PRESETS) == {
        "softqlearning": presets.SOFTQLEARNING,
        "softlearning_sql": presets.SOFTLEARNING_SQL,
    }
    assert not set(presets.SOFTQL_PRESETS) & set(presets.PRESETS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_has_its_settings(name: str) -> None:
    model = SoftQL("MlpPolicy", RandomEnv(), **presets.get(name, buffer_size=100, reward_scale=30.0))
    for option, value in (OF_BOTH | EXPECTED[name] | {"buffer_size": 100, "reward_scale": 30.0}).items():
        assert getattr(model, option) == value, option
    units, n_critics, sampler = NETWORKS[name]
    assert type(model.actor) is sampler
    assert model.critic.n_critics == n_critics
    assert [layer.out_features for layer in model.actor.latent_pi if hasattr(layer, "out_features")] == units
    linear = [layer for layer in model.critic.q_networks.hidden if isinstance(layer, EnsembleLinear)]
    hidden = [layer.weight.shape[2] for layer in linear]
    assert hidden == units


def test_the_reward_scales_are_those_of_the_codes() -> None:
    scales = {"Swimmer": 30, "Hopper": 30, "HalfCheetah": 30, "Walker2d": 10, "Ant": 300, "Humanoid": 100}
    assert dict(presets.SOFTQL_REWARD_SCALES) == scales


def test_an_unknown_name_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match=r"`preset` is 'sql', but it must be one of 'sb3', .*'softlearning_sql'"):
        presets.get("sql")


def test_the_presets_of_one_algorithm_do_not_fit_the_other() -> None:
    with pytest.raises(TypeError):
        SoftAC("MlpPolicy", RandomEnv(), **presets.get("softqlearning", buffer_size=100))
    with pytest.raises(TypeError):
        SoftQL("MlpPolicy", RandomEnv(), **presets.get("sb3", buffer_size=100))
