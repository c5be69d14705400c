"""Many updates per environment step with plain critics: one warning, which names what helps."""

import io
import warnings
from typing import Any

import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_softac import SoftAC, presets
from sb3_softac.networks import MLP
from tests.helpers import RandomEnv, make_model, net


class Residual(MLP):
    """Hidden layers of a user."""


def heard(**kwargs: Any) -> list[str]:
    """The warnings of a new model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(**kwargs)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("kwargs", "ratio"),
    [
        ({"gradient_steps": 5}, "5"),
        ({"gradient_steps": 20, "train_freq": 2}, "10"),
        ({"gradient_steps": 9, "train_freq": (2, "step")}, "4.5"),
        ({"gradient_steps": 10, "env": make_vec_env(RandomEnv, 2)}, "5"),
        ({"gradient_steps": 8, **net(normalization={"pi": "layer"})}, "8"),
        ({"gradient_steps": 8, **net(encoder={"pi": Residual})}, "8"),
        ({"gradient_steps": 8, **net(n_critics=10, dropout_rate=0.1)}, "8"),
    ],
)
def test_plain_critics(kwargs: dict[str, Any], ratio: str) -> None:
    (message,) = heard(**kwargs)
    assert message.startswith(f"`gradient_steps`={kwargs['gradient_steps']} are {ratio} updates per environment step")
    assert all(help in message for help in ("policy_kwargs={'layer_norm': True}", "`resets`", "`target_subset`"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gradient_steps": 4},
        {"gradient_steps": -1, "train_freq": 50},
        {"gradient_steps": 50, "train_freq": 50},
        {"gradient_steps": 8, "env": make_vec_env(RandomEnv, 2)},
        {"gradient_steps": 500, "train_freq": (1, "episode")},  # how many steps these have is not known
        {"gradient_steps": 20, "resets": 1000},
        {"gradient_steps": 20, "target_subset": 2},
        {"gradient_steps": 20, **net(layer_norm=True)},
        {"gradient_steps": 20, **net(normalization={"qf": "layer"})},
        {"gradient_steps": 20, **net(normalization="batch_renorm")},
        {"gradient_steps": 20, **net(encoder=Residual)},
    ],
)
def test_what_is_not_warned_of(kwargs: dict[str, Any]) -> None:
    assert heard(**kwargs) == []


@pytest.mark.parametrize("name", presets.PRESETS)
def test_no_preset_is(name: str) -> None:
    assert heard(**presets.get(name, buffer_size=100)) == []


def test_loading_says_nothing() -> None:
    stream = io.BytesIO()
    with pytest.warns(UserWarning, match="5 updates per environment step"):
        make_model(gradient_steps=5).save(stream)
    stream.seek(0)
    assert SoftAC.load(stream).gradient_steps == 5


def test_options_that_are_set_later() -> None:
    model = make_model()
    model.gradient_steps = 5
    with pytest.warns(UserWarning, match="`gradient_steps`=5 are 5 updates per environment step"):
        model.learn(3)
    model.learning_rate = 1e-4  # another option says nothing again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(3)
