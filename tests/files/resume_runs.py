"""Small trainings by name, which can be stopped, killed and gone on with, and what is left of them, as checksums.

Each is a few hundred steps of tiny networks; replay buffers are so small that most of them wrap.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_softac import SoftAC, SoftQL, TensorReplayBuffer
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files.segments import rows_of
from tests.helpers import CountingEnv, RandomEnv, falling_rate, parameters_of

Digest = dict[str, str]
SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [8]},
    "learning_starts": 20,
    "batch_size": 8,
    "buffer_size": 90,
    "train_freq": 2,
    "learning_rate": "lin_1e-3",
    "seed": 0,
    "device": "cpu",
    "compile": False,
}


class StatefulEnv(RandomEnv):
    """One whose attributes cannot be written down, so that it says by itself what it is in the middle of."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def get_state(self) -> dict[str, Any]:
        return {"time": self.step_count, "generator": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step_count = state["time"]
        self.np_random.bit_generator.state = state["generator"]


def several(env: Any, n_envs: int = 1, vec: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv, **kwargs: Any) -> VecEnv:
    """Environments in a vector, with seeds; processes are forks, which do not import everything again.

    Episodes of those of Gymnasium are 40 steps long.
    """
    kwargs |= {"max_episode_steps": 40} if isinstance(env, str) else {}
    options = {"start_method": "fork"} if vec is SubprocVecEnv else None
    return make_vec_env(env, n_envs=n_envs, seed=0, vec_env_cls=vec, env_kwargs=kwargs or None, vec_env_kwargs=options)


def normalized(env: Any, n_envs: int = 1) -> VecEnv:
    return VecNormalize(several(env, n_envs))


def bits(n_envs: int = 1, continuous: bool = True) -> VecEnv:
    return several(BitFlippingEnv, n_envs, n_bits=3, continuous=continuous, max_steps=6)


@dataclass(frozen=True)
class Run:
    """A training.

    :param make: its environments
    :param options: of the algorithm, beside ``SMALL``
    :param policy: name of the policy
    :param algorithm: its class
    :param total: steps of all environments
    :param save_freq: calls of the environments between two checkpoints
    :param stops: after how many of these steps it is stopped
    """

    make: Callable[[], VecEnv]
    options: dict[str, Any] = field(default_factory=dict)
    policy: str = "MlpPolicy"
    algorithm: Any = SoftAC
    total: int = 160
    save_freq: int = 16
    stops: int = 107


HINDSIGHT: dict[str, Any] = {"policy": "MultiInputPolicy"}
NORMALIZED: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": 5.0}
OPTIMIZERS: dict[str, Any] = {"pi": {"weight_decay": 0.1}, "qf": {"betas": (0.5, 0.999)}}
COMPACT: dict[str, Any] = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
OVERLAP: dict[str, Any] = {"overlap": True, "gradient_steps": -1}
TENSORS: dict[str, Any] = {"replay_buffer_class": TensorReplayBuffer}
RUNS: dict[str, Run] = {
    "pendulum": Run(lambda: several("Pendulum-v1")),
    "pendulum 4": Run(lambda: several("Pendulum-v1", 4), {"gradient_steps": 3}, total=400, stops=260),
    "pendulum processes": Run(lambda: several("Pendulum-v1", 4, SubprocVecEnv), total=400, stops=260),
    "cartpole": Run(lambda: several("CartPole-v1")),
    "cartpole 4": Run(lambda: several("CartPole-v1", 4), total=400, stops=260),
    "cartpole processes": Run(lambda: several("CartPole-v1", 1, SubprocVecEnv)),
    "half cheetah": Run(lambda: several("HalfCheetah-v5")),
    "half cheetah 4": Run(lambda: several("HalfCheetah-v5", 4), total=400, stops=260),
    "half cheetah processes": Run(lambda: several("HalfCheetah-v5", 4, SubprocVecEnv), total=400, stops=260),
    "half cheetah normalized": Run(lambda: normalized("HalfCheetah-v5", 2)),
    "gsde": Run(lambda: several("Pendulum-v1", 2), {"use_sde": True, "train_freq": 5}),
    "gsde sampled": Run(lambda: several("Pendulum-v1"), {"use_sde": True, "sde_sample_freq": 3, "train_freq": 7}),
    "three steps": Run(lambda: several("CartPole-v1", 2), {"n_steps": 3}),
    "three steps in a ring": Run(lambda: several("Pendulum-v1", 2), {"n_steps": 3, "buffer_size": 34}),
    "hindsight": Run(bits, {"replay_buffer_class": HerReplayBuffer}, **HINDSIGHT),
    "hindsight 3": Run(
        lambda: bits(3),
        {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2, "copy_info_dict": True}},
        **HINDSIGHT,
    ),
    "hindsight discrete": Run(
        lambda: bits(2, continuous=False),
        {
            "replay_buffer_class": HerReplayBuffer,
            "replay_buffer_kwargs": {"goal_selection_strategy": "episode"},
            "buffer_size": 60,
        },
        **HINDSIGHT,
    ),
    "normalized": Run(lambda: normalized("Pendulum-v1", 2)),
    "normalized inside": Run(lambda: several("Pendulum-v1"), NORMALIZED),
    "normalized inside 3": Run(lambda: several(RandomEnv, 3), {**NORMALIZED, "n_steps": 3, "value_network": True}),
    "normalized goals": Run(
        lambda: several(CountingEnv, 2, length=7, goals=True),
        {**NORMALIZED, "replay_buffer_class": HerReplayBuffer},
        **HINDSIGHT,
    ),
    "normalized compiled": Run(lambda: several("CartPole-v1"), {**NORMALIZED, "compile": True}),
    "stacked": Run(lambda: VecFrameStack(several("Pendulum-v1", 2), 3)),
    "normalized stack": Run(lambda: VecNormalize(VecFrameStack(several("CartPole-v1", 2), 2))),
    "compact": Run(lambda: several("Pendulum-v1"), COMPACT),
    "compact 2": Run(lambda: several("HalfCheetah-v5", 2), {**COMPACT, "buffer_size": 60}),
    "small ring": Run(lambda: several("Pendulum-v1"), {"buffer_size": 11}),
    "one circle between two checkpoints": Run(lambda: several("Pendulum-v1"), {"buffer_size": 16}),
    "noise": Run(
        lambda: several("Pendulum-v1", 3), {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.2))}
    ),
    "one noise": Run(lambda: several("Pendulum-v1"), {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.2))}),
    "episodes": Run(lambda: several("CartPole-v1"), {"train_freq": (2, "episode"), "gradient_steps": -1}),
    "every step": Run(lambda: several("Pendulum-v1"), {"train_freq": 1, "gradient_steps": 2}, save_freq=1, total=90, stops=67),
    "value network": Run(lambda: several("Pendulum-v1"), {"value_network": True, "policy_delay": 2}),
    "schedules": Run(
        lambda: several("Pendulum-v1"),
        {"learning_rate": falling_rate, "actor_learning_rate": "exp_1e-2_1e-4", "ent_coef": "lin_0.3_0.1"},
    ),
    "random steps": Run(lambda: several("Pendulum-v1"), {"random_steps": 120, "ent_coef_update": "log"}),
    "dropout": Run(lambda: several("Pendulum-v1"), {"policy_kwargs": {"net_arch": [8], "dropout_rate": 0.2}}),
    "resets": Run(lambda: several("Pendulum-v1", 2), {"resets": 13, "noise_repeat": 16}),
    "warm-up and own optimizers": Run(
        lambda: several("Pendulum-v1"),
        {"learning_rate": "warm_90_cos_1e-3_1e-4", "policy_kwargs": {"net_arch": [8], "optimizer_kwargs": OPTIMIZERS}},
    ),
    "overlap": Run(lambda: several("Pendulum-v1", 2, SubprocVecEnv), {**OVERLAP, "train_freq": 3}),
    "overlap, every step": Run(lambda: several("CartPole-v1", 1, SubprocVecEnv), {**OVERLAP, "train_freq": 1}),
    "overlap, hindsight": Run(
        lambda: several(BitFlippingEnv, 2, SubprocVecEnv, n_bits=3, continuous=True, max_steps=6),
        {**OVERLAP, "replay_buffer_class": HerReplayBuffer},
        **HINDSIGHT,
    ),
    "tensors": Run(lambda: several("Pendulum-v1", 2), TENSORS),
    "tensors, three steps": Run(
        lambda: several("CartPole-v1", 2), {**TENSORS, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}}
    ),
    "tensors, Dict": Run(lambda: bits(2), TENSORS, **HINDSIGHT),
    "own state": Run(lambda: several(StatefulEnv, 2)),
    "soft q-learning": Run(lambda: several("Pendulum-v1"), algorithm=SoftQL),
    "soft q-learning 2": Run(lambda: several("CartPole-v1", 2), algorithm=SoftQL),
    "compiled": Run(lambda: several("Pendulum-v1"), {"compile": True}),
    # nothing that depends on the total
    "constant": Run(lambda: several("CartPole-v1"), {"learning_rate": 1e-3}),
    # for kills: episodes of five steps, and of changing lengths
    "killed": Run(lambda: several(RandomEnv, 2), {"buffer_size": 200}, total=400, save_freq=4),
    "killed episodes": Run(lambda: several("CartPole-v1"), {"train_freq": (1, "episode")}, total=400, save_freq=10),
    "killed processes": Run(lambda: several("Pendulum-v1", 2, SubprocVecEnv), {"n_steps": 3}, total=400, save_freq=5),
    "killed hindsight": Run(lambda: bits(2), {"replay_buffer_class": HerReplayBuffer}, **HINDSIGHT, total=400, save_freq=6),
    "killed cheetah": Run(lambda: normalized("HalfCheetah-v5", 2), {"buffer_size": 300}, total=400, save_freq=7),
}


class Stopped(Exception):
    """What stands for a kill where the process goes on."""


class Stop(BaseCallback):
    """Stop in the middle of a step."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.at is not None and self.num_timesteps >= self.at:
            raise Stopped
        return True


class Counter(BaseCallback):
    """A callback of the user that counts, remembers, and draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards = 0.0
        self.seen: dict[str, list[int]] = {"ends": []}
        self.generator = np.random.default_rng(3)
        self.drawn: np.ndarray[Any, Any] = np.zeros(2)

    def _on_step(self) -> bool:
        self.rewards += float(np.sum(self.locals["rewards"]))
        if self.locals["dones"].any():
            self.seen["ends"].append(self.num_timesteps)
        self.drawn += self.generator.normal(size=2)
        return True


class Dumps(KVWriter):
    """What the logger has written, but for what a clock says."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        timed = ("time/fps", "time/time_elapsed")
        self.rows.append((step, {key: value for key, value in sorted(key_values.items()) if key not in timed}))

    def close(self) -> None:
        pass


class Trained:
    """A training that has come to its end, or was stopped, and its callbacks.

    :param name: in ``RUNS``
    :param folder: for its checkpoints, and where they are it goes on from them
    :param at: number of steps at which it is stopped
    :param writes: whether it writes checkpoints
    :param total: steps in all, if not those of the run
    """

    def __init__(self, name: str, folder: Path, at: int | None = None, writes: bool = True, total: int | None = None) -> None:
        self.run = RUNS[name]
        self.dumps = Dumps()
        env = self.run.make()
        self.evaluation = EvalCallback(
            self.run.make(), eval_freq=24, n_eval_episodes=1, verbose=0, warn=False, log_path=str(folder / "log")
        )
        self.counter = Counter()
        self.writer = ExactCheckpointCallback(self.run.save_freq, folder / "checkpoints")
        callbacks = [self.evaluation, self.counter, *([self.writer] if writes else []), Stop(at)]
        self.stopped = False
        try:
            if any((folder / "checkpoints").glob("checkpoint-*")):
                self.model = self.run.algorithm.resume(folder / "checkpoints", env)
            else:
                self.model = self.run.algorithm(self.run.policy, env, **{**SMALL, **self.run.options})
                total = total or self.run.total
            self.resumed_at = self.model.num_timesteps
            self.model.set_logger(Logger(None, [self.dumps]))
            self.model.learn(total, callback=callbacks)
        except Stopped:
            self.stopped = True
            self.writer.release()

    def close(self) -> None:
        self.model.env.close()
        self.evaluation.eval_env.close()

    def digest(self) -> Digest:
        """Checksums of everything that training has made."""
        return {name: checksum(value) for name, value in self.values()}

    def values(self) -> Iterator[tuple[str, Any]]:
        model, evaluation = self.model, self.evaluation
        yield from parameters_of(model)
        buffer = model.replay_buffer
        yield from ((f"buffer {name}", part) for name, part in rows_of(buffer).items())
        yield "end of the buffer", (buffer.pos, buffer.full, getattr(buffer, "_current_ep_start", None))
        yield "counters", (model.num_timesteps, model._n_updates, model._episode_num, model._runtime.engine.n_steps)
        yield "episodes", [(float(episode["r"]), int(episode["l"])) for episode in model.ep_info_buffer]
        yield "last observation", model._last_obs
        yield "evaluation", (float(evaluation.best_mean_reward), float(evaluation.last_mean_reward))
        yield "evaluations", (evaluation.evaluations_timesteps, evaluation.evaluations_results, evaluation.evaluations_length)
        with np.load(f"{evaluation.log_path}.npz") as written:
            yield "evaluations.npz", {name: written[name] for name in written.files}
        yield "counter", (self.counter.n_calls, self.counter.rewards, self.counter.seen, self.counter.drawn)
        yield "python", random.getstate()
        yield "numpy", np.random.get_state(legacy=False)  # noqa: NPY002  # the one that SB3 draws from
        yield "torch", th.get_rng_state()
        yield "returns inside", (model._return_moments, model._running_returns)
        normalize = model.get_vec_normalize_env()
        if normalize is not None:
            for rms in (normalize.obs_rms, normalize.ret_rms):
                yield f"statistics of {np.size(rms.mean)}", (rms.mean, rms.var, float(rms.count))
            yield "returns", normalize.returns


def checksum(value: Any) -> str:
    """Of numbers, arrays, and containers of them, to the last bit."""
    if isinstance(value, dict):
        value = [[str(key), checksum(part)] for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        value = [checksum(part) for part in value]
    elif isinstance(value, (np.ndarray, th.Tensor)):
        array = np.ascontiguousarray(value.cpu() if isinstance(value, th.Tensor) else value)
        value = [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    else:
        value = repr(value.item() if isinstance(value, np.generic) else value)
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


#: what a process does to files, as Python announces it before it happens
OPERATIONS = frozenset(("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"))


def kill_at(operation: int, folder: Path) -> None:
    """End this process by SIGKILL before it does so many things to the files in a folder."""
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in OPERATIONS or (event == "open" and arguments[1] in ("r", "rb", None)):
            return
        if isinstance(arguments[0], (str, os.PathLike)) and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def train(name: str, folder: Path, operation: int = 0) -> None:
    """Go on with a training to its end, in a process of its own; then ``digest.json`` is in the folder.

    :param operation: if not 0, the process is killed before so many things are done to files of checkpoints
    """
    th.set_num_threads(1)
    if operation:
        kill_at(operation, folder / "checkpoints")
    trained = Trained(name, folder)
    (folder / "digest.json").write_text(json.dumps(trained.digest()))
    trained.close()
