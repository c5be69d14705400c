"""Forms and back: what is written can be read, and what has no place is refused."""

import functools
import json
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from sb3_softac import SoftAC
from sb3_softac.checkpoint import ExactCheckpointCallback
from sb3_softac.files import environments
from sb3_softac.files.decoding import Decoder
from sb3_softac.files.plain import Encoder, UnsavableError
from sb3_softac.files.unpickling import Damage
from tests.helpers import RandomEnv, make_model

Arrays = dict[str, np.ndarray[Any, Any]]


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


def test_a_monitor_keeps_the_beginning_of_its_file() -> None:
    """Its times are since then, so that those between two processes do not count as training."""
    first, second = (Monitor(gym.make("Pendulum-v1")) for _ in range(2))
    first.t_start, second.t_start = 100.0, 200.0
    for env in (first, second):
        env.reset(seed=0)
    first.step(first.action_space.sample())
    states, arrays = environments.get_state(first)
    assert "t_start" not in states[0]["is"]
    environments.set_state(second, states, arrays)
    assert second.t_start == 200.0
    assert second.rewards == first.rewards
    states[0]["is"]["t_start"] = 100.0  # as in earlier checkpoints
    environments.set_state(second, states, arrays)
    assert second.t_start == 200.0


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
        arrays: Arrays = {}
        form = json.loads(json.dumps(Encoder(arrays, "a")(value)))
        back = Decoder(arrays)(form)
        again: Arrays = {}
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
            arrays: Arrays = {}
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
        model = make_model(learning_rate=functools.partial(pow, 1e-3))
        with pytest.raises(ValueError, match=r"`learning_rate` is a functools\.partial of something else"):
            model.learn(1, callback=ExactCheckpointCallback(1, tmp_path / "run"))

    def test_figures_in_a_logger_are_left_out(self, tmp_path: Path) -> None:
        class Draw(BaseCallback):
            def _on_step(self) -> bool:
                self.logger.record("figure", object())
                return True

        model = make_model(learning_starts=2, batch_size=2, compile=False)
        model.learn(4, callback=[ExactCheckpointCallback(2, tmp_path / "run"), Draw()], log_interval=None)
        assert SoftAC.resume(tmp_path / "run", RandomEnv(), device="cpu").num_timesteps == 4
