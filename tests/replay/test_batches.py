"""Batches that are gathered together are those that SB3 would draw one after the other."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC
from sb3_softac.replay import BlockSampler, batches
from tests.helpers import MatrixEnv, RandomDiscreteEnv, RandomEnv, assert_same_parameters, fill_buffer, make_model


def seed(value: int = 0) -> None:
    np.random.seed(value)  # noqa: NPY002  # the generator that SB3's buffers draw from


CASES: dict[str, Any] = {
    "default": RandomEnv,
    "only terminations": lambda: RandomEnv(terminates=True),
    "discrete": lambda: RandomDiscreteEnv(4),
    "discrete from 2": lambda: RandomDiscreteEnv(4, start=2),
    "several": lambda: make_vec_env(RandomEnv, 3),
    "several discrete": lambda: make_vec_env(lambda: RandomDiscreteEnv(4, start=-1), 3),
    "float64 observations, matrices of actions": MatrixEnv,
}


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_block_equals_sb3s_batches(case: str, n_batches: int) -> None:
    """Every field, and the random numbers that are used up; before and after the buffer is full."""
    model = make_model(env=CASES[case](), buffer_size=90)
    for n_transitions in (17, 100):
        fill_buffer(model, n_transitions)
        assert model.replay_buffer is not None
        assert BlockSampler.can_sample(model.replay_buffer, None)
        seed()
        expected = [model._sample_batch(8) for _ in range(n_batches)]
        next_number = np.random.random()  # noqa: NPY002
        seed()
        drawn = list(model._batches(n_batches, 8))
        assert next_number == np.random.random()  # noqa: NPY002
        assert len(drawn) == n_batches
        for ours, theirs in zip(drawn, expected, strict=True):
            for name, value in ours._asdict().items():
                reference = getattr(theirs, name)
                if value is None:
                    assert reference is None, name
                    continue
                assert (value.shape, value.device) == (reference.shape, reference.device), name
                assert value.dtype == (th.float32 if reference.is_floating_point() else th.int64), name
                assert th.equal(value, reference.to(value.dtype)), name


def test_a_time_out_is_no_termination() -> None:
    """Of the transitions of ``fill_buffer`` one in twenty terminates, one in twenty times out."""
    model = make_model()
    fill_buffer(model)
    (batch,) = model._batches(1, 4000)
    assert batch.dones.mean().item() == pytest.approx(0.05, abs=0.02)


def test_many_batches_come_in_blocks_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    fill_buffer(model)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 3 * 4 * 16 * (4 + 4 + 2 + 2))  # three batches
    seed()
    drawn = [batch.observations.clone() for batch in model._batches(7, 16)]  # type: ignore[union-attr]  # a tensor
    seed()
    expected = [model._sample_batch(16).observations for _ in range(7)]
    assert all(th.equal(ours, theirs) for ours, theirs in zip(drawn, expected, strict=True))  # type: ignore[arg-type]


def test_training_does_not_depend_on_the_block() -> None:
    """Ten gradient steps at once, and with every batch from SB3's ``sample``."""
    models = [make_model() for _ in range(2)]
    monkeypatch = pytest.MonkeyPatch()
    for model, blocks in zip(models, (True, False), strict=True):
        fill_buffer(model)
        seed()
        th.manual_seed(0)
        with monkeypatch.context() as context:
            if not blocks:
                context.setattr(BlockSampler, "can_sample", lambda *_: False)
            model.train(10, batch_size=16)
    assert_same_parameters(*models)


def test_gamma_and_buffer_may_be_replaced() -> None:
    model = make_model()
    fill_buffer(model)
    assert next(iter(model._batches(1, 4))).discounts.tolist() == pytest.approx([0.99] * 4)
    model.gamma = 0.5
    assert next(iter(model._batches(1, 4))).discounts.tolist() == [0.5] * 4
    other = make_model(seed=3)
    fill_buffer(other, seed=7)
    model.replay_buffer = other.replay_buffer
    seed()
    ours = next(iter(model._batches(1, 4))).rewards.clone()
    seed()
    assert th.equal(ours, other._sample_batch(4).rewards)


class UserBuffer(ReplayBuffer):
    """User-defined."""


class DiscreteStates(RandomEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Discrete(5)  # type: ignore[assignment]  # the base has a Box

    def _observe(self) -> Any:
        return int(self.np_random.integers(5))


def images() -> FakeImageEnv:
    return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=False)


GENERAL: dict[str, Any] = {
    "user-defined buffer": lambda: make_model(replay_buffer_class=UserBuffer),
    "n-step returns": lambda: make_model(n_steps=3),
    "memory-efficient": lambda: make_model(
        optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False}
    ),
    "VecNormalize": lambda: make_model(env=VecNormalize(make_vec_env(RandomEnv))),
    "Dict": lambda: SoftAC("MultiInputPolicy", SimpleMultiObsEnv(discrete_actions=False), buffer_size=100, device="cpu"),
    "images": lambda: SoftAC("CnnPolicy", images(), buffer_size=100, device="cpu"),
    "discrete states": lambda: make_model(env=DiscreteStates()),
}


@pytest.mark.parametrize("case", GENERAL)
def test_every_other_buffer_takes_the_general_path(case: str) -> None:
    model = GENERAL[case]()
    assert model.replay_buffer is not None
    assert not BlockSampler.can_sample(model.replay_buffer, model._vec_normalize_env)
    model.learning_starts = model.random_steps = 20
    model.batch_size = 8
    model.gradient_steps = 3
    before = [parameter.clone() for parameter in model.actor.parameters()]
    model.learn(24)
    assert model._n_updates == 12
    assert not any(th.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True) if new.numel() > 8)
    assert isinstance(model.replay_buffer, NStepReplayBuffer) == (case == "n-step returns")


def test_a_user_defined_method_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    fill_buffer(model)
    assert model.replay_buffer is not None
    data, sizes = model.replay_buffer.sample(8), []

    def sample(batch_size: int, env: Any = None) -> Any:
        sizes.append(batch_size)
        return data

    monkeypatch.setattr(model.replay_buffer, "sample", sample)
    model.train(2, batch_size=8)
    assert sizes == [8, 8]


@pytest.mark.gpu
@pytest.mark.parametrize("n_batches", [1, 3])
def test_a_block_on_a_gpu(n_batches: int) -> None:
    """Many blocks behind each other: none is overwritten before it has arrived."""
    models = [make_model(device=device) for device in ("cuda", "cpu")]
    for model in models:
        fill_buffer(model)
    drawn: list[list[th.Tensor]] = [[], []]
    for model, kept in zip(models, drawn, strict=True):
        seed()
        for _ in range(50):
            kept += [batch.observations.clone() for batch in model._batches(n_batches, 64)]  # type: ignore[union-attr]
    for ours, theirs in zip(*drawn, strict=True):
        assert th.equal(ours.cpu(), theirs)
