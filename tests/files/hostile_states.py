"""Changes of all parts of a checkpoint but the attributes of its model, by what they are about."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.files import hostile_checkpoints as bad


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
    result: dict[str, Any] = state["environment"]["vector"]["is"]
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
            if name.startswith("env/layer") and part.shape == (4,)
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
