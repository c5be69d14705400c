"""Files with a ``TensorReplayBuffer`` that are cut, changed or somebody else's: one clear error each, and nothing is loaded.

A pickle is read beside the buffer that the model has, a checkpoint before there is a model.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softac import DamagedFileError, SoftAC, TensorReplayBuffer, UntrustedFileError
from sb3_softac.checkpoint import ExactCheckpointCallback
from tests.files import hostile
from tests.files import hostile_checkpoints as bad
from tests.files import hostile_states as states
from tests.helpers import SMALL, RandomEnv, fill_buffer

OPTIONS: dict[str, Any] = {
    "policy_kwargs": SMALL,
    "replay_buffer_class": TensorReplayBuffer,
    "buffer_size": 100,
    "learning_starts": 10,
    "batch_size": 8,
    "seed": 0,
    "device": "cpu",
    "compile": False,
}
State = dict[str, Any]


class DictEnv(RandomEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space: Any = spaces.Dict({"a": self.observation_space, "b": spaces.Discrete(9)})

    def _observe(self) -> Any:
        return {"a": super()._observe(), "b": int(self.np_random.integers(9))}


def model_of(env: Any = RandomEnv, n_envs: int = 2, policy: str = "MlpPolicy", **options: Any) -> SoftAC:
    return SoftAC(policy, make_vec_env(env, n_envs), **{**OPTIONS, **options})


def filled_model(**options: Any) -> SoftAC:
    model = model_of(**options)
    fill_buffer(model, 30)
    return model


def rows_of(model: SoftAC) -> dict[str, Any]:
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    return {name: np.copy(rows) for name, rows in model.replay_buffer.host_rows().items()}


def write_changed(path: Path, change: Callable[[State], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose checksum is right."""
    own = TensorReplayBuffer.__getstate__

    def changed(self: TensorReplayBuffer) -> State:
        state = {
            name: dict(part) if isinstance(part, dict) else part.copy() if isinstance(part, np.ndarray) else part
            for name, part in own(self).items()
        }
        change(state)
        return state

    with monkeypatch.context() as patched:
        patched.setattr(TensorReplayBuffer, "__getstate__", changed)
        filled_model().save_replay_buffer(path)


def refuses(path: Path, error: type[ValueError], match: str, model: SoftAC | None = None) -> None:
    """One error, and the model has the buffer that it had."""
    model = filled_model() if model is None else model
    before, rows = model.replay_buffer, rows_of(model)
    with pytest.raises(ValueError, match=match) as raised:
        model.load_replay_buffer(path)
    assert type(raised.value) is error
    assert model.replay_buffer is before
    for name, part in rows_of(model).items():
        np.testing.assert_array_equal(part, rows[name])
    model.learn(30)


def test_a_good_one_is_loaded(tmp_path: Path) -> None:
    for name, model in {"box": filled_model(), "n-step": filled_model(replay_buffer_kwargs={"n_steps": 3})}.items():
        model.save_replay_buffer(tmp_path / name)
        rows, other = rows_of(model), model_of(replay_buffer_kwargs={"n_steps": 3} if name == "n-step" else None)
        other.load_replay_buffer(tmp_path / name)
        for field, part in rows_of(other).items():
            np.testing.assert_array_equal(part, rows[field])
        other.learn(30)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_in_the_middle(share: float, tmp_path: Path) -> None:
    path = tmp_path / "buffer.pkl"
    filled_model().save_replay_buffer(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuses(path, DamagedFileError, r"buffer\.pkl'")


def replaced(**parts: Any) -> Callable[[State], Any]:
    return lambda state: state.update(parts)


def rows(name: str, change: Callable[[Any], Any]) -> Callable[[State], Any]:
    return lambda state: state.update({name: change(state[name])})


def written(name: str, value: Any) -> Callable[[State], Any]:
    return lambda state: state[name].__setitem__((3, 1), value)


CHANGES: dict[str, tuple[Callable[[State], Any], str]] = {
    "fewer rows": (
        rows("observations", lambda part: part[:-1]),
        r"`observations` has the shape .*, but it must have \(50, 2, 4\)",
    ),
    "fewer environments": (rows("rewards", lambda part: part[:, :1]), "`rewards` has the shape"),
    "wider observations": (rows("next_observations", lambda part: np.repeat(part, 2, axis=2)), "`next_observations` has the"),
    "wider observations that agree": (
        lambda state: state.update(
            obs_shape=(8,), **{name: np.repeat(state[name], 2, axis=2) for name in ("observations", "next_observations")}
        ),
        "its rows are not those of its spaces",
    ),
    "more actions": (rows("actions", lambda part: np.repeat(part, 2, axis=2)), "`actions` has the shape"),
    "more actions that agree": (
        lambda state: state.update(action_dim=4, actions=np.repeat(state["actions"], 2, axis=2)),
        "its rows are not those of its spaces",
    ),
    "one axis less": (rows("dones", np.ravel), "`dones` has the shape"),
    "none marked": (lambda state: state.pop("skipped"), "`skipped` of a replay buffer is no array"),
    "no rewards": (replaced(rewards=None), "`rewards` of a replay buffer is no array"),
    "rewards of text": (rows("rewards", lambda part: part.astype("U3")), "`rewards` of a replay buffer is no array"),
    "rewards as a list": (rows("rewards", lambda part: part.tolist()), "`rewards` of a replay buffer is no array"),
    "a dict": (rows("observations", lambda part: {"a": part}), "`observations` has other keys"),
    "half as exact": (rows("observations", lambda part: part.astype(np.float16)), "`observations` is of torch.float16"),
    "twice as exact": (rows("rewards", lambda part: part.astype(np.float64)), "`rewards` is of torch.float64"),
    "integers": (rows("actions", lambda part: part.astype(np.int64)), "`actions` is of torch.int64"),
    "numbers for flags": (rows("skipped", lambda part: part.astype(np.float32)), "`skipped` is of torch.float32"),
    "complex numbers": (rows("rewards", lambda part: part.astype(complex)), "`rewards` of a replay buffer is no array"),
    "NaN": (written("observations", np.nan), "`observations` of the replay buffer holds what no environment gives"),
    "an infinite reward": (written("rewards", np.inf), "`rewards` of the replay buffer holds what no environment gives"),
    "NaN in an action": (written("actions", np.nan), "`actions` of the replay buffer holds what no environment gives"),
    "half an end": (written("dones", 0.5), "`dones` of the replay buffer holds what no environment gives"),
    "two time limits": (written("timeouts", 2.0), "`timeouts` of the replay buffer holds what no environment gives"),
    "a reset that is not counted": (written("skipped", True), "`has_skipped` is not what its rows say"),
    "a flag of text": (replaced(has_skipped="no"), "`has_skipped` is neither True nor False"),
    "the position": (replaced(pos=10**9), "its position is outside of it"),
    "a position of text": (replaced(pos="a"), "`pos` is no number"),
    "the size": (replaced(buffer_size=40), "has the shape"),
    "the environments": (replaced(n_envs=4), "has the shape"),
    "no steps": (replaced(n_steps=0), "`n_steps` is no number of steps"),
    "steps without a discount": (replaced(n_steps=3), "`gamma` is no number"),
    "a discount of 7": (replaced(n_steps=3, gamma=7.0), "`gamma` is no discount"),
    "memory optimized": (replaced(optimize_memory_usage=True), "`optimize_memory_usage` is not False"),
    "time limits": (replaced(handle_timeout_termination="x"), "`handle_timeout_termination` is neither True nor False"),
    "another space": (replaced(observation_space=spaces.Box(-1.0, 1.0, (5,))), "its rows are not those of its spaces"),
    "no space": (replaced(action_space=None), "a space is none"),
    "a device": (replaced(device="cuda"), "the attribute 'device' would hide a method"),
    "a method": (replaced(sample=1), "the attribute 'sample' would hide a method"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = CHANGES[kind]
    write_changed(tmp_path / "buffer.pkl", change, monkeypatch)
    refuses(tmp_path / "buffer.pkl", DamagedFileError, message)


@pytest.mark.parametrize(("dtype", "message"), [(np.longdouble, "asks for the data type 'f16'"), (">f4", "another machine")])
def test_types_of_another_machine(dtype: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_changed(tmp_path / "buffer.pkl", rows("rewards", lambda part: part.astype(dtype)), monkeypatch)
    refuses(tmp_path / "buffer.pkl", UntrustedFileError, message)


@pytest.mark.parametrize("name", ["rewards", "note", "gamma", "obs_shape", "observations"])
def test_code_does_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    change = replaced(**{name: hostile.Call(os.system, f"touch {canary}")})
    write_changed(tmp_path / "buffer.pkl", change, monkeypatch)
    refuses(tmp_path / "buffer.pkl", UntrustedFileError, r"buffer\.pkl'.*trusted=True")
    assert not canary.exists()


def test_of_other_environments(tmp_path: Path) -> None:
    path = tmp_path / "buffer.pkl"
    filled_model().save_replay_buffer(path)
    refuses(path, ValueError, "is for 2 environments, but the model has 3", filled_model(n_envs=3))

    class Wider(RandomEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

        def _observe(self) -> Any:
            return self.np_random.uniform(-1.0, 1.0, 6).astype(np.float32)

    refuses(path, ValueError, "is for the observation space Box", filled_model(env=Wider))
    other = filled_model(replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99})
    other.save_replay_buffer(path)
    refuses(path, ValueError, "`gamma` is 0.9, but the replay buffer discounts with 0.99", filled_model(gamma=0.9))


def test_keys_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(DictEnv, policy="MultiInputPolicy").learn(40)
    own = TensorReplayBuffer.__getstate__
    changes: dict[str, Callable[[Any], Any]] = {
        "`observations` has other keys": lambda parts: parts.pop("b"),
        "`observations.b` is of torch.float32, but it must be of torch.int64": lambda parts: parts.update(
            b=parts["b"].astype(np.float32)
        ),
        "`observations.b` of the replay buffer holds": lambda parts: parts.update(b=parts["b"] + 9),
        "`observations.a` of the replay buffer holds": lambda parts: parts.update(a=np.full_like(parts["a"], np.inf)),
    }
    for message, change in changes.items():

        def changed(self: TensorReplayBuffer, change: Any = change) -> State:
            state = own(self)
            state["observations"] = {key: part.copy() for key, part in state["observations"].items()}
            change(state["observations"])
            return state

        with monkeypatch.context() as patched:
            patched.setattr(TensorReplayBuffer, "__getstate__", changed)
            model.save_replay_buffer(tmp_path / "buffer.pkl")
        before = model.replay_buffer
        with pytest.raises(DamagedFileError, match=message):
            model.load_replay_buffer(tmp_path / "buffer.pkl")
        assert model.replay_buffer is before


def test_rows_that_are_not_used_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_changed(tmp_path / "buffer.pkl", lambda state: state["rewards"].__setitem__((40, 1), np.nan), monkeypatch)
    filled_model().load_replay_buffer(tmp_path / "buffer.pkl")  # 30 rows of 50 are


# --- checkpoints -------------------------------------------------------------------------------------------------------


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        return False


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    model_of().learn(60, callback=ExactCheckpointCallback(100, folder))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def go_on(folder: Path, env: Any = None) -> SoftAC:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is damaged|enough memory|The run goes on to)")
        model = SoftAC.resume(folder, make_vec_env(RandomEnv, 2) if env is None else env, device="cpu")
        return model.learn(100, callback=Stop())


def not_resumed(folder: Path, env: Any = None, match: str | None = None) -> None:
    with pytest.raises(ValueError, match=match) as raised:
        go_on(folder, env)
    assert type(raised.value) in (ValueError, DamagedFileError, UntrustedFileError)


def test_the_good_one_goes_on(folder: Path) -> None:
    model = go_on(folder)
    assert isinstance(model.replay_buffer, TensorReplayBuffer)
    assert model.replay_buffer.size() == 31


OF_TENSORS: State = {
    "steps": {"n_steps": 3},
    "a discount": {"gamma": 0.5, "n_steps": 2},
    "a flag of text": {"has_skipped": "x"},
    "memory optimized": {"optimize_memory_usage": True},
    "flags": {"skipped": None},
}
IN_SEGMENTS: dict[str, Callable[[Any], Any]] = {
    **states.SEGMENTS,
    "numbers for flags": lambda arrays: arrays.update(skipped=arrays["skipped"].astype(np.float32)),
    "half as exact": lambda arrays: arrays.update(observations=arrays["observations"].astype(np.float16)),
    "no flags": lambda arrays: arrays.pop("skipped"),
    "two time limits": lambda arrays: arrays["timeouts"].fill(2),
}


@pytest.mark.parametrize("kind", [*states.BUFFER, *OF_TENSORS])
def test_attributes_in_a_checkpoint(kind: str, folder: Path) -> None:
    forms = {**states.BUFFER, **OF_TENSORS}[kind]
    if kind == "the environments":
        forms = {"n_envs": 3}
    bad.change_state(folder, lambda state, _: state["replay_buffer"]["is"].update(forms))
    not_resumed(folder)


@pytest.mark.parametrize("kind", IN_SEGMENTS)
def test_rows_in_a_checkpoint(kind: str, folder: Path) -> None:
    bad.change_segment(folder, IN_SEGMENTS[kind])
    not_resumed(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_checkpoint_cut_in_the_middle(share: float, folder: Path) -> None:
    path = next((folder / "segments").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    not_resumed(folder, match="no checkpoint in it is whole")


def test_a_checkpoint_for_other_environments(folder: Path) -> None:
    not_resumed(folder, make_vec_env(RandomEnv, 3), "`env` has 3 as number of environments")
    not_resumed(folder, DummyVecEnv([DictEnv, DictEnv]), "`env` ")
    bad.change_state(folder, lambda state, _: state["replay_buffer"].update({"class": "ReplayBuffer"}))
    not_resumed(folder, match="the replay buffer was of another class")


def test_code_in_a_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    form = bad.a_class("tests.files.hostile:touch", "function")
    bad.change_state(folder, lambda state, _: state["replay_buffer"]["is"].update(pos=form))
    not_resumed(folder)
    assert not (tmp_path / "canary").exists()


def test_marks_stay_where_their_rows_were_overwritten() -> None:
    """How batches are drawn does not change by a copy."""
    model = filled_model()
    buffer: Any = model.replay_buffer
    buffer.has_skipped = True
    buffer.put_rows({})
    assert buffer.has_skipped
    th.manual_seed(0)
    first = buffer.sample(8).rewards
    th.manual_seed(0)
    loaded = TensorReplayBuffer.__new__(TensorReplayBuffer)
    loaded.__setstate__(buffer.__getstate__())
    assert th.equal(first, loaded.sample(8).rewards)
