"""Files of version 0.1 load, act, value and train as ever, and its import paths are still there."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC
from tests.helpers import RandomDiscreteEnv, RandomEnv

FOLDER = Path(__file__).parent.parent / "data" / "v0_1"
EXPECTED: Any = np.load(FOLDER / "expected.npz")
NAMES = sorted(path.stem for path in FOLDER.glob("*.zip"))


def load(name: str) -> SoftAC:
    return SoftAC.load(FOLDER / f"{name}.zip", device="cpu")


def test_all_files_are_there() -> None:
    assert NAMES == ["default", "discrete", "gsde", "redq", "value_network"]


@pytest.mark.parametrize("name", NAMES)
def test_it_predicts_as_it_did(name: str) -> None:
    actions = load(name).predict(EXPECTED["observations"], deterministic=True)[0]
    np.testing.assert_allclose(actions, EXPECTED[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_its_critics_and_its_temperature_have_the_same_values(name: str) -> None:
    model = load(name)
    model.policy.set_training_mode(False)  # without dropout
    with th.no_grad():
        actions = None if name == "discrete" else th.zeros(6, 2)
        q_values = model.critic(th.as_tensor(EXPECTED["observations"]), actions)
    np.testing.assert_allclose(np.stack([q.numpy() for q in q_values]), EXPECTED[f"{name}_q"], rtol=1e-5, atol=1e-6)
    assert model.temperature.value.item() == pytest.approx(float(EXPECTED[f"{name}_alpha"]), rel=1e-6)
    assert str(model.target_entropy) == str(EXPECTED[f"{name}_target_entropy"])


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on(name: str) -> None:
    model = load(name)
    model.set_env(RandomDiscreteEnv(4, start=2) if name == "discrete" else RandomEnv())
    n_updates, before = model._n_updates, {key: value.clone() for key, value in model.policy.state_dict().items()}
    assert n_updates > 0
    with pytest.warns(UserWarning, match="replay buffer of this trained model is empty"):
        model.learn(40, reset_num_timesteps=False)
    assert model._n_updates > n_updates
    changed = {key.split(".")[0] for key, value in model.policy.state_dict().items() if not th.equal(value, before[key])}
    targets = {"value_net", "value_net_target"} if name == "value_network" else {"critic_target"}
    assert changed == {"actor", "critic"} | targets
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_again(name: str, tmp_path: Path) -> None:
    load(name).save(tmp_path / "again.zip")
    again = SoftAC.load(tmp_path / "again.zip", device="cpu")
    actions = again.predict(EXPECTED["observations"], deterministic=True)[0]
    np.testing.assert_allclose(actions, EXPECTED[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("sb3_softac.softac", ["SoftAC"]),
        ("sb3_softac.policies", ["SoftACPolicy", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"]),
        ("sb3_softac.export", ["ExportedPolicy"]),
        ("sb3_softac.presets", ["get", "SB3", "REDQ", "DROQ", "SLC"]),
        ("sb3_softac.schedules", ["ExponentialSchedule", "StaircaseSchedule"]),
    ],
)
def test_import_paths(module: str, names: list[str]) -> None:
    imported = importlib.import_module(module)
    assert all(hasattr(imported, name) for name in names)
    if module == "sb3_softac.softac":
        assert imported.SoftAC is SoftAC
