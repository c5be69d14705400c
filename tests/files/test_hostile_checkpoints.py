"""Checkpoints of somebody else: whatever is in them, nothing of it runs, and each is whole, or refused in one sentence."""

import contextlib
import functools
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import DamagedFileError, SoftAC, UntrustedFileError
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files import environments
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.plain import Encoder, UnsavableError
from sb3_softac.files.unpickling import Damage
from tests.files import hostile_checkpoints as bad
from tests.helpers import SMALL, RandomEnv, assert_same_parameters

FUZZER = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fuzz_files.py"))
OPTIONS: dict[str, Any] = {
    "policy_kwargs": dict(SMALL),
    "buffer_size": 60,
    "learning_starts": 10,
    "batch_size": 8,
    "seed": 0,
    "device": "cpu",
    "compile": False,
}


def make_env() -> Any:
    return VecNormalize(DummyVecEnv([lambda: Monitor(RandomEnv())]))


class Stop(BaseCallback):
    """After one step."""

    def _on_step(self) -> bool:
        return False


def train(folder: Path, env: Any, policy: str = "MlpPolicy", **options: Any) -> SoftAC:
    callbacks = [EvalCallback(make_env(), eval_freq=10, n_eval_episodes=1, verbose=0)]
    model = SoftAC(policy, env, **{**OPTIONS, **options})
    return model.learn(30, callback=[*(callbacks if policy == "MlpPolicy" else []), ExactCheckpointCallback(100, folder)])


def go_on(folder: Path, env: Any = None, callback: Any = None) -> SoftAC:
    """Resume, and do the first rollout."""
    model = SoftAC.resume(folder, make_env() if env is None else env, device="cpu")
    evaluation = EvalCallback(make_env(), eval_freq=10, n_eval_episodes=1, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The run goes on to")
        model.learn(100, callback=callback or [evaluation, Stop()])
    return model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    train(folder, make_env(), action_noise=NormalActionNoise(np.zeros(2), np.ones(2)))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "touches_when_imported.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return canary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that a checkpoint is damaged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(is damaged|enough memory|has the attribute)")
        yield


def refused(folder: Path, match: str | None = None, env: Any = None, callback: Any = None) -> None:
    """One of the documented errors, and no other."""
    with quiet(), pytest.raises(ValueError, match=match) as error:
        go_on(folder, env, callback)
    assert type(error.value) in (ValueError, DamagedFileError, UntrustedFileError)


def test_the_good_one_goes_on(folder: Path) -> None:
    assert go_on(folder).num_timesteps == 31


class TestAttributes:
    @pytest.mark.parametrize("kind", bad.ASKING)
    def test_nothing_runs(self, kind: str, folder: Path, canary: Path) -> None:
        name, form = bad.ASKING[kind]
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: form}))
        refused(folder)
        assert not canary.exists()
        assert "touches_when_imported" not in sys.modules

    @pytest.mark.parametrize("kind", bad.WRONG)
    def test_of_a_wrong_form(self, kind: str, folder: Path) -> None:
        name, form = bad.WRONG[kind]
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: form}))
        refused(folder)

    @pytest.mark.parametrize(
        "name", ["policy_class", "num_timesteps", "gamma", "train_freq", "_total_timesteps", "_n_updates"]
    )
    def test_that_are_missing(self, name: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].pop(name))
        if name in ("gamma", "train_freq"):  # which the constructor has set
            go_on(folder)
        else:
            refused(folder)

    @pytest.mark.parametrize("name", ["note", "policy_aliases", "batch_norm_stats"])
    def test_that_no_model_has(self, name: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update({name: {}}))
        with pytest.warns(UserWarning, match=f"the attribute `{name}`, which a SoftAC has not"):
            model = SoftAC.resume(folder, make_env(), device="cpu")
        assert name not in vars(model)

    def test_logs_go_on_only_where_there_are_some(self, folder: Path, tmp_path: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update(tensorboard_log=str(tmp_path / "logs")))
        with pytest.warns(UserWarning, match="TensorBoard's logs of the run were in"):
            assert SoftAC.resume(folder, make_env(), device="cpu").tensorboard_log is None
        model = SoftAC.resume(folder, make_env(), device="cpu", tensorboard_log=str(tmp_path / "logs"))
        assert model.tensorboard_log == str(tmp_path / "logs")
        (tmp_path / "logs" / "SoftAC_1").mkdir(parents=True)
        (tmp_path / "logs" / "SoftAC_1" / "events.out.tfevents.1").touch()
        assert SoftAC.resume(folder, make_env(), device="cpu").tensorboard_log == str(tmp_path / "logs")

    def test_errors_do_not_change_a_terminal(self, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["attributes"].update(gamma={"!": "\x1b[2J" * 100_000}))
        with pytest.warns(UserWarning, match="is damaged") as caught, pytest.raises(DamagedFileError):
            go_on(folder)
        texts = [str(warning.message) for warning in caught]
        assert all("\x1b" not in text and len(text) < 2000 for text in texts)


def in_monitor(state: bad.State) -> dict[str, Any]:
    layer: dict[str, Any] = state["environment"]["environments"][0][0]["is"]
    return layer


def in_env(state: bad.State) -> dict[str, Any]:
    layer: dict[str, Any] = state["environment"]["environments"][0][-1]["is"]
    return layer


def in_layer(state: bad.State) -> dict[str, Any]:
    layer: dict[str, Any] = state["environment"]["layers"][0]["is"]
    return layer


def setting(where: Callable[[bad.State], dict[str, Any]], **forms: Any) -> Callable[[bad.State, bad.Arrays], Any]:
    return lambda state, _: where(state).update(forms)


def vector(state: bad.State) -> dict[str, Any]:
    result: dict[str, Any] = state["environment"]["vector"]
    return result


PCG: dict[str, Any] = {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1}, "has_uint32": 0, "uinteger": 0}
IN_ENVIRONMENTS: dict[str, Any] = {
    "a method": setting(in_env, step=1),
    "another method": setting(in_monitor, reset={"!": "code"}),
    "a class": setting(in_env, terminates=bad.a_class("builtins:dict")),
    "a dunder": setting(in_env, __class__="x"),
    "a name with a dot": setting(in_env, **{"a.b": 1}),
    "what a wrapper is around": setting(in_monitor, env=None),
    "where Monitor writes": setting(in_monitor, results_writer=None),
    "a path": setting(in_env, log_path="/etc"),
    "a folder": setting(in_monitor, video_folder="/etc"),
    "a space": setting(in_env, observation_space=None),
    "a number as a space": setting(in_env, action_space=3),
    "a space of an object": setting(in_env, action_space={**bad.an_object("gymnasium.spaces.box.Box"), "is": {"low": None}}),
    "parts of a space": setting(in_env, action_space={"!": "space", "is": None, "parts": [None]}),
    "a generator of a space": setting(in_env, action_space={"!": "space", "is": 3, "parts": []}),
    "a generator": setting(in_env, _np_random={"!": "generator", "is": {**PCG, "state": {"state": -1, "inc": 1}}}),
    "an even generator": setting(in_env, _np_random={"!": "generator", "is": {**PCG, "state": {"state": 1, "inc": 2}}}),
    "a generator of text": setting(in_env, _np_random={"!": "generator", "is": "PCG64"}),
    "a counter of text": setting(in_env, step_count="many"),
    "a huge counter": setting(in_env, step_count={"!": "float", "is": "nan"}, n_steps="x"),
    "rewards": setting(in_monitor, rewards=3),
    "a Monitor that waits": setting(in_monitor, needs_reset=True),
    "a list of VecNormalize": setting(in_layer, returns=[1.0]),
    "statistics": setting(in_layer, obs_rms=None),
    "a mapping of VecNormalize": setting(in_layer, clip_obs="x"),
    "a method of VecNormalize": setting(in_layer, step_wait=1),
    "below VecNormalize": setting(in_layer, venv=None),
    "seeds": setting(vector, _seeds=[]),
    "a seed": setting(vector, _seeds=["x"]),
    "options": setting(vector, _options=[3]),
    "a buffer of rewards": setting(vector, buf_rews={"!": "array", "is": "env0", "dtype": "<f8"}),
    "keys": setting(vector, keys=["a"]),
    "no vector": lambda state, _: state["environment"].pop("vector"),
    "a vector of text": lambda state, _: state["environment"].update(vector="x"),
    "no environments": lambda state, _: state["environment"].pop("environments"),
    "more environments": lambda state, _: state["environment"]["environments"].append([]),
    "no wrappers": lambda state, _: state["environment"].update(environments=[[]]),
    "fewer wrappers": lambda state, _: state["environment"]["environments"][0].pop(),
    "more wrappers": lambda state, _: state["environment"]["environments"][0].append({"class": "x", "is": {}}),
    "a wrapper of text": lambda state, _: state["environment"].update(environments=[["x", "y"]]),
    "no layers": lambda state, _: state["environment"].pop("layers"),
    "a list": lambda state, _: state.update(environment=[]),
    "nothing": lambda state, _: state.pop("environment"),
    "other wrappers by name": lambda state, _: state.update(wrappers=["VecNormalize", 3]),
    "wrappers with a terminal": lambda state, _: state.update(wrappers=["\x1b[2J"]),
    "statistics that are NaN": lambda _, arrays: arrays.update(
        {
            name: np.full_like(part, np.nan)
            for name, part in arrays.items()
            if name.startswith("env/env") and part.shape == (4,)
        }
    ),
    "a negative variance": lambda state, arrays: arrays.update(
        {f"env/{in_layer(state)['obs_rms']['is']['var']['is']}": np.full(4, -1.0)}
    ),
    "statistics of another shape": lambda state, arrays: arrays.update(
        {f"env/{in_layer(state)['obs_rms']['is']['mean']['is']}": np.zeros(5)}
    ),
}
CALLBACKS: dict[str, Any] = {
    "a method": {"_on_step": 1},
    "a class as a method": {"_on_step": bad.a_class("builtins:dict")},
    "the model": {"model": None},
    "where the best model is saved": {"best_model_save_path": "/tmp/elsewhere"},
    "where evaluations are written": {"log_path": "/tmp/elsewhere"},
    "another path": {"csv_file": "/tmp/elsewhere"},
    "how often": {"eval_freq": 0},
    "a count of text": {"n_calls": "x"},
    "a huge count": {"n_calls": 10**30},
    "a mean of text": {"best_mean_reward": "x"},
    "a function": {"anything": bad.a_class("os:system", "function")},
    "evaluations": {"evaluations_results": 3},
    "the environment": {"eval_env": {"layers": [], "vector": {}, "environments": [[]]}},
    "an environment of text": {"eval_env": "x"},
}
MT: dict[str, Any] = {"bit_generator": "MT19937", "has_gauss": 0, "gauss": 0.0}
GENERATORS: dict[str, Any] = {
    "a position outside": lambda forms, _: forms["numpy"]["state"].update(pos=10**9),
    "a position before": lambda forms, _: forms["numpy"]["state"].update(pos=-5),
    "a position of text": lambda forms, _: forms["numpy"]["state"].update(pos="x"),
    "no key": lambda forms, _: forms["numpy"]["state"].update(key=None),
    "a key of zeros": lambda forms, arrays: arrays.update({forms["numpy"]["state"]["key"]["is"]: np.zeros(624, np.uint32)}),
    "a short key": lambda forms, arrays: arrays.update({forms["numpy"]["state"]["key"]["is"]: np.ones(3, np.uint32)}),
    "a gauss of text": lambda forms, _: forms["numpy"].update(gauss="x"),
    "another generator": lambda forms, _: forms["numpy"].update(bit_generator="PCG64"),
    "no generator of NumPy": lambda forms, _: forms.pop("numpy"),
    "Python's": lambda forms, _: forms.update(python={"!": "tuple", "is": [3, {"!": "tuple", "is": [1] * 624 + [625]}, None]}),
    "Python's gauss": lambda forms, _: forms["python"]["is"].__setitem__(2, "x"),
    "Python's words": lambda forms, _: forms["python"]["is"].__setitem__(1, {"!": "tuple", "is": [10**30] * 625}),
    "PyTorch's length": lambda forms, arrays: arrays.update({forms["torch"]["is"]: np.zeros(5, np.uint8)}),
    "PyTorch's position": lambda forms, arrays: arrays[forms["torch"]["is"]].__setitem__(slice(16, 24), 255),
    "PyTorch's zeros": lambda forms, arrays: arrays.update({forms["torch"]["is"]: np.zeros(5056, np.uint8)}),
    "PyTorch's none": lambda forms, _: forms.update(torch=None),
}
REST: dict[str, Any] = {
    "no noise": lambda state, _: state.update(action_noise=3),
    "a noise of another class": lambda state, _: state["action_noise"].update({"class": "os.system"}),
    "a noise of the wrong shape": lambda state, arrays: arrays.update({state["action_noise"]["is"]["_mu"]["is"]: np.zeros(5)}),
    "a noise without attributes": lambda state, _: state["action_noise"].update({"is": {}}),
    "a noise that hides": lambda state, _: state["action_noise"]["is"].update(__call__=1),
    "a noise that is NaN": lambda state, arrays: arrays.update({state["action_noise"]["is"]["_mu"]["is"]: np.full(2, np.nan)}),
    "a negative noise": lambda state, arrays: arrays.update({state["action_noise"]["is"]["_sigma"]["is"]: np.full(2, -1.0)}),
    "logs of text": lambda state, _: state.update(logger="x"),
    "logs by method": lambda state, _: state["logger"].update(dump={}),
    "a log that is a list": lambda state, _: state["logger"]["name_to_value"].update(a=[1]),
    "a count that is none": lambda state, _: state["logger"]["name_to_count"].update(a="x"),
    "an exclusion that is none": lambda state, _: state["logger"]["name_to_excluded"].update(a=3),
    "the space": lambda state, _: state.update(space=3),
    "steps of gradients": lambda state, _: state.update(engine=-1),
    "no steps of gradients": lambda state, _: state.update(engine=None),
    "no callbacks": lambda state, _: state.update(callbacks=[]),
    "a callback of text": lambda state, _: state["callbacks"].update({"EvalCallback.1": "x"}),
    "no attributes": lambda state, _: state.pop("attributes"),
    "attributes in a list": lambda state, _: state.update(attributes=[]),
    "no weights": lambda state, _: state.pop("parameters"),
    "no generators": lambda state, _: state.update(generators=3),
    "no replay buffer": lambda state, _: state.pop("replay_buffer"),
}


class TestTheRest:
    @pytest.mark.parametrize("kind", IN_ENVIRONMENTS)
    def test_environments(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, IN_ENVIRONMENTS[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", CALLBACKS)
    def test_callbacks(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["callbacks"]["EvalCallback.1"].update(CALLBACKS[kind]))
        refused(folder)
        assert not Path("/tmp/elsewhere").exists()

    @pytest.mark.parametrize("kind", GENERATORS)
    def test_generators(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, arrays: GENERATORS[kind](state["generators"], arrays))
        states = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002
        refused(folder)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        th.set_rng_state(states[2])

    @pytest.mark.parametrize("kind", REST)
    def test_other_parts(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, REST[kind])
        refused(folder)

    def test_bounds_of_spaces_are_not_state(self, good: Path) -> None:
        state = json.loads((bad.newest(good) / "state.json").read_text())
        assert in_env(state)["action_space"].keys() == {"!", "is", "parts"}

    def test_an_obstacle_does_not_change_a_terminal(self, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["environment"].update(obstacle="\x1b[2J"))
        with pytest.warns(UserWarning, match=r"where they were \(\\x1b"):
            SoftAC.resume(folder, make_env(), device="cpu")


def weights(state: bad.State, name: str = "policy") -> list[Any]:
    result: list[Any] = state["parameters"][name]["is"]
    return result


def average(state: bad.State) -> dict[str, Any]:
    result: dict[str, Any] = state["parameters"]["critic.optimizer"]["state"]["is"][0][1]
    return result


def group(state: bad.State) -> dict[str, Any]:
    result: dict[str, Any] = state["parameters"]["critic.optimizer"]["param_groups"][0]
    return result


def replacing(where: Callable[[bad.State], Any], value: Callable[[Any], Any]) -> Callable[[bad.State, bad.Arrays], Any]:
    def change(state: bad.State, arrays: bad.Arrays) -> None:
        name = where(state)["is"]
        arrays[name] = value(arrays[name])

    return change


WEIGHTS: dict[str, Any] = {
    "NaN": replacing(lambda state: weights(state)[0][1], lambda old: old * np.nan),
    "infinite": replacing(lambda state: weights(state)[0][1], lambda old: old + np.float32(np.inf)),
    "another shape": replacing(lambda state: weights(state)[0][1], lambda old: old[:1]),
    "another type": lambda state, arrays: (
        replacing(lambda state: weights(state)[0][1], lambda old: old.astype(np.float64))(state, arrays),
        weights(state)[0][1].update(dtype="float64"),
    ),
    "a missing one": lambda state, _: weights(state).pop(),
    "another one": lambda state, _: weights(state).append(["more", weights(state)[0][1]]),
    "text": lambda state, _: weights(state).append([weights(state)[0][0], "x"]),
    "no names": lambda state, _: state["parameters"].update(policy=[1]),
    "other names": lambda state, _: state["parameters"].update({"env.reset": {}}),
    "a missing optimizer": lambda state, _: state["parameters"].pop("critic.optimizer"),
    "a temperature that is NaN": replacing(lambda state: weights(state, "temperature")[0][1], lambda old: old * np.nan),
    "an average of another shape": replacing(lambda state: average(state)["exp_avg"], lambda old: old[:1]),
    "an average that is NaN": replacing(lambda state: average(state)["exp_avg"], lambda old: old * np.nan),
    "a negative square": replacing(lambda state: average(state)["exp_avg_sq"], lambda old: old - 1),
    "a negative step": replacing(lambda state: average(state)["step"], lambda old: old * 0 - 1),
    "no average": lambda state, _: average(state).pop("exp_avg"),
    "an average of text": lambda state, _: average(state).update(exp_avg="x"),
    "an average of nothing": lambda state, _: average(state).update({"more": {"a": 1}}),
    "averages of nothing": lambda state, _: state["parameters"]["critic.optimizer"]["state"]["is"].append([10**9, {}]),
    "no averages": lambda state, _: state["parameters"]["critic.optimizer"].update(state=3),
    "no groups": lambda state, _: state["parameters"]["critic.optimizer"].update(param_groups=[]),
    "a group of other weights": lambda state, _: group(state).update(params=[0]),
    "a group of text": lambda state, _: state["parameters"]["critic.optimizer"].update(param_groups=["x"]),
    "a learning rate of text": lambda state, _: group(state).update(lr="x"),
    "a learning rate that is NaN": lambda state, _: group(state).update(lr={"!": "float", "is": "nan"}),
    "a negative learning rate": lambda state, _: group(state).update(lr=-1.0),
    "betas": lambda state, _: group(state).update(betas={"!": "tuple", "is": [2.0, "x"]}),
    "ascent": lambda state, _: group(state).update(maximize=True),
    "differentiable": lambda state, _: group(state).update(differentiable=True),
    "an unknown setting": lambda state, _: group(state).update(hook=1),
}
BUFFER: dict[str, Any] = {
    "a method": {"sample": 1},
    "the rows": {"observations": None},
    "the rows by an array": {"rewards": {"!": "array", "is": "env0", "dtype": "<f8"}},
    "the size": {"buffer_size": 10},
    "a huge size": {"buffer_size": 10**12},
    "the environments": {"n_envs": 2},
    "the position": {"pos": 10**9},
    "a position of text": {"pos": "x"},
    "another position": {"pos": 3},
    "full": {"full": True},
    "full of text": {"full": "x"},
    "the shape": {"obs_shape": {"!": "tuple", "is": [5]}},
    "the actions": {"action_dim": 7},
    "the device": {"device": "cuda"},
    "the space": {"observation_space": None},
    "time limits": {"handle_timeout_termination": False},
}
SEGMENTS: dict[str, Any] = {
    "NaN": lambda arrays: arrays["observations"].fill(np.nan),
    "infinite rewards": lambda arrays: arrays["rewards"].fill(np.inf),
    "ends that are none": lambda arrays: arrays["dones"].fill(7),
    "no actions": lambda arrays: arrays.pop("actions"),
    "another shape": lambda arrays: arrays.update(rewards=arrays["rewards"][:, :0]),
    "fewer rows": lambda arrays: arrays.update({name: part[:-1] for name, part in arrays.items()}),
    "another type": lambda arrays: arrays.update(rewards=arrays["rewards"].astype(np.float64)),
    "changes of text": lambda arrays: arrays.update(changed=np.zeros(3, np.uint8)),
    "changes of two dimensions": lambda arrays: arrays.update(changed=np.zeros((3, 3), np.int64)),
    "changes of another shape": lambda arrays: arrays.update(
        {"changed": np.zeros(3, np.int64), "changed.rewards": np.zeros((4, 1), np.float32)}
    ),
    "empty": lambda arrays: b"",
    "no header": lambda arrays: b"x" * 100,
    "a header of 10**18 bytes": lambda arrays: (10**18).to_bytes(8, "little") + b"{}",
    "a header of 2**63 bytes": lambda arrays: b"\xff" * 8 + b"{}",
    "a deep header": lambda arrays: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "100,000 dimensions, for 10**9": lambda arrays: bad.tensor("F32", [1] * 100_000, 4),
    "10**15 rows": lambda arrays: bad.tensor("F32", [10**15], 4),
    "an overflow": lambda arrays: bad.tensor("F32", [2**32, 2**32], 0),
    "nothing of 2**62 rows": lambda arrays: bad.tensor("F32", [0, 2**62], 0),
    "an unknown type": lambda arrays: bad.tensor("X1", [1], 4),
    "a type of few bits": lambda arrays: bad.tensor("F8_E5M2", [4], 4),
    "offsets outside": lambda arrays: bad.tensor("F32", [1], 4, start=100),
    "far too long": lambda arrays: arrays.update(more=np.zeros(4 << 20, np.uint8)),
}


class TestWeightsAndBuffers:
    @pytest.mark.parametrize("kind", WEIGHTS)
    def test_weights(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, WEIGHTS[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", BUFFER)
    def test_attributes_of_a_buffer(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, _: state["replay_buffer"]["is"].update(BUFFER[kind]))
        refused(folder)

    @pytest.mark.parametrize("kind", SEGMENTS)
    def test_segments(self, kind: str, folder: Path) -> None:
        bad.change_segment(folder, SEGMENTS[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", [kind for kind in SEGMENTS if "header" in kind or "10**" in kind or "overflow" in kind])
    def test_arrays(self, kind: str, folder: Path) -> None:
        checkpoint = bad.newest(folder)
        (checkpoint / "arrays.safetensors").write_bytes(SEGMENTS[kind]({}))
        bad.sign(checkpoint)
        refused(folder)

    def test_hindsight(self, tmp_path: Path) -> None:
        def env() -> Any:
            return BitFlippingEnv(n_bits=4, continuous=True)

        options: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"copy_info_dict": True}}
        train(tmp_path / "good", env(), "MultiInputPolicy", **options)
        go_on(tmp_path / "good", env(), Stop())
        changes: list[Any] = [
            (bad.change_segment, lambda arrays: arrays["ep_start"].fill(10**9)),
            (bad.change_segment, lambda arrays: arrays["ep_length"].fill(-1)),
            (bad.change_segment, lambda arrays: arrays["ep_length"].fill(1)),
            (bad.change_segment, lambda arrays: arrays["observations.observation"].fill(7)),
            (bad.change_state, lambda state, _: state["replay_buffer"].update(infos=[1])),
            (bad.change_state, lambda state, _: state["replay_buffer"].update(infos=[[3]] * 30)),
            (bad.change_state, lambda state, _: state["replay_buffer"]["is"].update(her_ratio=7.0)),
            (bad.change_state, lambda state, _: state["replay_buffer"]["is"].update(env=3)),
            (bad.change_state, lambda state, _: state["attributes"].update(buffer_size=10**12)),
        ]
        for number, (changing, change) in enumerate(changes):
            folder = Path(shutil.copytree(tmp_path / "good", tmp_path / str(number)))
            changing(folder, change)
            refused(folder, None, env(), Stop())


MANIFESTS: dict[str, Any] = {
    "a path above": lambda content: content["segments"][0].update(file="../x.safetensors"),
    "an absolute path": lambda content: content["segments"][0].update(file="/etc/passwd"),
    "a path with backslashes": lambda content: content["segments"][0].update(file="..\\x.safetensors"),
    "no name": lambda content: content["segments"][0].update(file=""),
    "a name that is a number": lambda content: content["segments"][0].update(file=3),
    "another name": lambda content: content["segments"][0].update(file="lock"),
    "a segment twice": lambda content: content["segments"].append(content["segments"][0]),
    "huge transitions": lambda content: content["segments"][0].update(first=10**30, last=10**30),
    "many transitions": lambda content: content["segments"][0].update(last=10**18),
    "a missing segment": lambda content: content["segments"].clear(),
    "segments by name": lambda content: content.update(segments={}),
    "a segment of text": lambda content: content.update(segments=["x"]),
    "more of a segment": lambda content: content["segments"][0].update(more=1),
    "a checksum of numbers": lambda content: content["segments"][0].update(sha256=3),
    "a length of text": lambda content: content["segments"][0].update(bytes="x"),
    "a huge length": lambda content: content["files"]["state.json"].update(bytes=10**30),
    "no length": lambda content: content["files"]["state.json"].pop("bytes"),
    "no files": lambda content: content.update(files=[]),
    "files of numbers": lambda content: content.update(files={"state.json": 1, "arrays.safetensors": 1}),
    "no format": lambda content: content.pop("format"),
    "a newer format": lambda content: content.update(format=10**100, sb3_softac="\x1b[2J"),
    "a format of text": lambda content: content.update(format="1"),
    "another run": lambda content: content["run"].update(algorithm="\x1b[2J"),
    "no run": lambda content: content.update(run=None),
    "a run of numbers": lambda content: content["run"].update(id=3),
    "other steps": lambda content: content.update(n_steps=7),
    "negative steps": lambda content: content.update(n_steps=-30),
    "steps of text": lambda content: content.update(n_steps="30"),
}
JSON: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\xff\xfe{",
    "NaN": b'{"a": NaN}',
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "many lists": b"[" + b"[]," * 3_000_000 + b"[]]",
    "a huge number": b'{"attributes": {"gamma": ' + b"9" * 100_000 + b"}}",
    "an infinite number": b'{"attributes": {"gamma": 1e999}}',
    "half of a character": b'{"attributes": {"\\ud800": 1}}',
}


class TestFiles:
    @pytest.mark.parametrize("kind", MANIFESTS)
    def test_manifests(self, kind: str, folder: Path) -> None:
        bad.sign(bad.newest(folder), MANIFESTS[kind])
        with quiet(), pytest.raises(ValueError, match=r"^[ -~]*$"):
            go_on(folder)

    @pytest.mark.parametrize("kind", JSON)
    def test_states(self, kind: str, folder: Path) -> None:
        bad.change_state(folder, lambda state, arrays: JSON[kind])
        refused(folder)

    @pytest.mark.parametrize("kind", JSON)
    def test_manifests_that_are_none(self, kind: str, folder: Path) -> None:
        (bad.newest(folder) / "manifest.json").write_bytes(JSON[kind])
        refused(folder)

    @pytest.mark.parametrize("name", ["manifest.json", "state.json", "arrays.safetensors"])
    def test_links(self, name: str, folder: Path, tmp_path: Path) -> None:
        path = bad.newest(folder) / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        refused(folder)

    def test_a_checkpoint_that_is_a_link(self, folder: Path, tmp_path: Path) -> None:
        checkpoint = bad.newest(folder)
        checkpoint.rename(tmp_path / "elsewhere")
        checkpoint.symlink_to(tmp_path / "elsewhere")
        refused(folder)

    @pytest.mark.parametrize("name", ["checkpoint-²", "checkpoint-١٢٣", "checkpoint-1", "checkpoint-x", "checkpoint-"])
    def test_names_that_are_no_checkpoints(self, name: str, folder: Path) -> None:
        (folder / name).mkdir()
        go_on(folder)

    @pytest.mark.parametrize("name", ["segments", "lock", "run.json"])
    def test_nothing_is_written_behind_links(self, name: str, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        path = folder / name
        if name == "segments":
            shutil.copytree(path, outside)
            shutil.rmtree(path)
            (outside / "precious").write_text("precious")
        else:
            path.unlink()
            outside.write_text("precious")
        path.symlink_to(outside)
        before = {each: each.read_bytes() for each in (outside.iterdir() if outside.is_dir() else [outside])}
        refused(folder, None, None, [ExactCheckpointCallback(1, folder, keep=1), Stop()])
        assert {each: each.read_bytes() for each in before} == before

    def test_a_lock_with_two_names(self, folder: Path, tmp_path: Path) -> None:
        (folder / "lock").unlink()
        (tmp_path / "precious").write_text("precious")
        os.link(tmp_path / "precious", folder / "lock")
        refused(folder, "which is a link", None, [ExactCheckpointCallback(1, folder), Stop()])
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
    def test_a_lock_that_is_a_pipe(self, folder: Path) -> None:
        (folder / "lock").unlink()
        os.mkfifo(folder / "lock")
        refused(folder, "no file", None, [ExactCheckpointCallback(1, folder), Stop()])

    def test_only_segments_are_removed(self, folder: Path) -> None:
        (folder / "segments" / "precious").write_text("precious")
        go_on(folder, None, [ExactCheckpointCallback(1, folder, keep=1), Stop()])
        assert (folder / "segments" / "precious").read_text() == "precious"

    def test_the_one_before_is_taken(self, tmp_path: Path) -> None:
        """Also where only building shows that the newest is damaged."""
        model = SoftAC("MlpPolicy", make_env(), **OPTIONS)
        model.learn(30, callback=ExactCheckpointCallback(20, tmp_path / "run"))
        bad.change_state(tmp_path / "run", WEIGHTS["NaN"])
        with pytest.warns(UserWarning, match=r"checkpoint-000000000030 is damaged.*is not finite"):
            assert SoftAC.resume(tmp_path / "run", make_env(), device="cpu").num_timesteps == 20


BOUNDED = """
import resource, sys, time, warnings
from pathlib import Path
from tests.files.test_hostile_checkpoints import go_on
go_on(Path(sys.argv[1]) / "good")
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20),) * 2)
warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).glob("bad*")):
    start = time.process_time()
    try:
        go_on(path)
    except ValueError:
        print(path.name, time.process_time() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_hostile_checkpoints_take_no_time_and_no_memory(good: Path, tmp_path: Path) -> None:
    """200 MB beyond what a good one takes, and 2 seconds."""
    huge = ["net", "critics", "layers", "text", "double", "deque", "buffer"]
    names = [name for name in bad.WRONG if any(word in name for word in huge)]
    changes: list[Any] = [lambda state, _, item=bad.WRONG[name]: state["attributes"].update([item]) for name in names]
    changes.append(lambda state, _: state["attributes"].update(buffer_size=10**11))
    changes += [lambda *_: b"[" * (200 << 20), lambda *_: b"[" + b"[]," * 3_000_000 + b"[]]"]
    for number, change in enumerate(changes):
        bad.change_state(Path(shutil.copytree(good, tmp_path / f"bad{number:03d}")), change)
    for number, kind in enumerate(kind for kind in SEGMENTS if "10**" in kind or "2**" in kind):
        bad.change_segment(Path(shutil.copytree(good, tmp_path / f"bad_segment{number}")), SEGMENTS[kind])
    shutil.copytree(good, tmp_path / "good")
    n_folders = len(list(tmp_path.glob("bad*")))
    arguments = [sys.executable, "-W", "ignore", "-c", BOUNDED, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    times = {line.split()[0]: float(line.split()[1]) for line in result.stdout.splitlines()}
    assert len(times) == n_folders
    assert max(times.values()) < 2.0


class TestMujoco:
    """Whole numbers in MuJoCo's model are addresses: with others it reads and writes anywhere."""

    def test_addresses_are_not_taken(self) -> None:
        env = gym.make("HalfCheetah-v5")
        env.reset(seed=0)
        states, arrays = environments.get_state(env)
        model = states[-1]["is"]["model"]["is"]
        assert "jnt_qposadr" not in model
        assert "body_mass" in model
        arrays["hostile"] = np.full_like(env.unwrapped.model.jnt_qposadr, 10**8)  # type: ignore[attr-defined]
        model["jnt_qposadr"] = {"!": "array", "is": "hostile", "dtype": "<i4"}
        with pytest.raises(Damage):
            environments.set_state(env, states, arrays)
        env.close()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_positions_are_finite(self, value: float) -> None:
        env = gym.make("HalfCheetah-v5")
        env.reset(seed=0)
        states, arrays = environments.get_state(env)
        name = states[-1]["is"]["data"]["is"]["qpos"]["is"]
        arrays[name] = np.full_like(arrays[name], value)
        with pytest.raises(Damage):
            environments.set_state(env, states, arrays)
        env.close()


class TestWriterAndReader:
    """What is written can be read: the reader's rules are the writer's, too."""

    @pytest.mark.parametrize(
        "value",
        [
            [*range(100)],
            [0.1, float("inf")] * 50,
            [True] * 100,
            [2**70] * 100,
            {1: "a", (1, 2): "b", np.int64(3): "c"},
            {1, 2, "a"},
            frozenset([(1, 2)]),
            np.array(["ab", "c"]),
            np.arange(3, dtype=">f4"),
            np.float32(0.1),
            np.float64("nan"),
            th.float32,
            np.dtype("<f4"),
            [np.random.default_rng(0), np.random.Generator(np.random.MT19937(0)), np.random.Generator(np.random.Philox(0))],
            [np.random.Generator(np.random.SFC64(0)), np.random.Generator(np.random.PCG64DXSM(0))],
            [random.Random(0), np.random.RandomState(0)],
        ],
    )
    def test_there_and_back(self, value: Any) -> None:
        arrays: bad.Arrays = {}
        form = json.loads(json.dumps(Encoder(arrays, "a")(value)))
        back = Decoder(arrays)(form)
        again: bad.Arrays = {}
        assert json.dumps(Encoder(again, "a")(back)) == json.dumps(form)
        assert all(np.array_equal(again[name], part, equal_nan=part.dtype.kind == "f") for name, part in arrays.items())

    def test_as_deep_as_it_may_be(self) -> None:
        class Node:
            below: Any = None

        def make(depth: int, kind: Any) -> Any:
            return None if depth == 0 else kind(make(depth - 1, kind))

        def node(below: Any) -> Node:
            made = Node()
            made.below = below
            return made

        for kind in (lambda below: [below], lambda below: {"a": below}, lambda below: (below,), node):
            arrays: bad.Arrays = {}
            Decoder(arrays)(Encoder(arrays, "a")(make(99, kind)), make(99, kind))
            with pytest.raises(UnsavableError, match="nested too deeply"):
                Encoder(arrays, "a")(make(200, kind))

    @pytest.mark.parametrize(
        "value", [{ReplayBuffer: 1}, {RandomEnv()}, np.longdouble(1), np.dtype("U3"), {1: {RandomEnv(): 1}}]
    )
    def test_what_cannot_be_read_is_not_written(self, value: Any) -> None:
        with pytest.raises(UnsavableError):
            Encoder({}, "a")(value)

    def test_no_partials_but_of_activations(self, tmp_path: Path) -> None:
        model = SoftAC("MlpPolicy", make_env(), learning_rate=functools.partial(pow, 1e-3), **OPTIONS)
        with pytest.raises(ValueError, match=r"`learning_rate` is a functools\.partial of something else"):
            model.learn(1, callback=ExactCheckpointCallback(1, tmp_path / "run"))

    def test_figures_in_a_logger_are_left_out(self, tmp_path: Path) -> None:
        class Draw(Stop):
            def _on_step(self) -> bool:
                self.logger.record("figure", object())
                return True

        model = SoftAC("MlpPolicy", make_env(), **OPTIONS)
        model.learn(4, callback=[ExactCheckpointCallback(2, tmp_path / "run"), Draw()], log_interval=None)
        assert bad.newest(tmp_path / "run")


def test_random_damage(tmp_path: Path) -> None:
    """Every damaged checkpoint goes on as the good one does, or is refused; the seed is another one than the benchmark's."""
    counts = FUZZER["fuzz_checkpoints"](FUZZER["small_checkpoint"](tmp_path / "good"), 240, random.Random(7), tmp_path)
    assert sum(counts.values()) == 240
    assert {name for name in counts if "inside" not in name} <= {f"checkpoint: {end}" for end in ("equal", "damaged")}
    assert counts["checkpoint: damaged"] > 50


def test_a_good_one_is_equal(folder: Path, good: Path) -> None:
    assert_same_parameters(SoftAC.resume(folder, make_env(), device="cpu"), SoftAC.resume(good, make_env(), device="cpu"))
