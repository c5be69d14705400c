"""Batches of a buffer in tensors are those of SB3's buffers, for the same rows and environments."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softac import SoftAC, TensorReplayBuffer
from tests.helpers import RandomEnv, assert_same_parameters, make_model

N_ENVS = 3
BOX = spaces.Box(-1.0, 1.0, (4,), np.float32)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vectors": BOX,
    "float64": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "images": spaces.Box(0, 255, (3, 5, 5), np.uint8),
    "numbers": spaces.Discrete(7),
    "Dict": spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (3, 5, 5), np.uint8)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "float64": spaces.Box(-2.0, 1.0, (2,), np.float64),
    "discrete": spaces.Discrete(4, start=2),
}


def sampled(space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: sampled(part) for key, part in space.spaces.items()}
    return np.stack([space.sample() for _ in range(N_ENVS)])


def fill(buffers: list[ReplayBuffer], n_rows: int, seed: int = 0) -> None:
    """The same random transitions in all; ends of episodes are time-outs now and then."""
    rng = np.random.default_rng(seed)
    buffers[0].observation_space.seed(seed)
    buffers[0].action_space.seed(seed)
    for _ in range(n_rows):
        obs, next_obs = (sampled(buffers[0].observation_space) for _ in range(2))
        action, reward = sampled(buffers[0].action_space), rng.normal(size=N_ENVS)
        done = rng.random(N_ENVS) < 0.2
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(end and rng.random() < 0.5)} for end in done]
        for buffer in buffers:
            buffer.add(obs, next_obs, action, reward, done, infos)


def pair(reference: Any, obs: str = "vectors", action: str = "box", size: int = 20, **kwargs: Any) -> Any:
    arguments: Any = (size * N_ENVS, OBSERVATIONS[obs], ACTIONS[action], "cpu", N_ENVS)
    return reference(*arguments, **kwargs), TensorReplayBuffer(*arguments, **kwargs)


def assert_equal_batches(theirs: ReplayBuffer, ours: TensorReplayBuffer, env: Any = None, exact: bool = True) -> None:
    """The environments are drawn by SB3 itself, from the generator that it uses."""
    rows = np.arange(theirs.size()).repeat(4)
    np.random.seed(3)  # noqa: NPY002  # SB3's own generator
    expected = theirs._get_samples(rows, env)
    np.random.seed(3)  # noqa: NPY002
    envs = np.random.randint(0, N_ENVS, size=len(rows))  # noqa: NPY002
    batch = ours._get_samples(rows, env, envs)
    name: str
    wanted: Any
    found: Any
    for name, wanted, found in zip(batch._fields, expected, batch, strict=False):
        parts = [(wanted[key], found[key]) for key in wanted] if isinstance(wanted, dict) else [(wanted, found)]
        for left, right in parts:
            if left is None:
                assert right is None
                continue
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name
            tolerance = 0.0 if exact else 1e-6
            th.testing.assert_close(right, left, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("obs", OBSERVATIONS)
def test_batches_equal_sb3s(obs: str, action: str) -> None:
    """Before and after the buffer is full."""
    theirs, ours = pair(DictReplayBuffer if obs == "Dict" else ReplayBuffer, obs, action)
    for n_rows in (7, 30):
        fill([theirs, ours], n_rows)
        assert (theirs.pos, theirs.full, theirs.size()) == (ours.pos, ours.full, ours.size())
        assert_equal_batches(theirs, ours)


def test_time_outs_may_count_as_terminations() -> None:
    theirs, ours = pair(ReplayBuffer, handle_timeout_termination=False)
    fill([theirs, ours], 20)
    assert_equal_batches(theirs, ours)
    assert not bool(ours.timeouts.any())


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_n_step_returns_equal_sb3s(n_steps: int) -> None:
    """Also where a return reaches the newest row, or the row before the oldest."""
    theirs, ours = pair(NStepReplayBuffer, n_steps=n_steps, gamma=0.9)
    for n_rows in (7, 30):
        fill([theirs, ours], n_rows)
        assert_equal_batches(theirs, ours, exact=False)


def test_one_step_with_the_same_discount() -> None:
    """SB3's n-step buffer at n = 1 gives the same transitions, and γ for each."""
    arguments: Any = (60, BOX, ACTIONS["box"], "cpu", N_ENVS)
    theirs, ours = NStepReplayBuffer(*arguments, n_steps=1, gamma=0.9), TensorReplayBuffer(*arguments)
    fill([theirs, ours], 25)
    batch = ours._get_samples(np.arange(20), None, np.zeros(20, np.int64))
    assert batch.discounts is None
    assert not hasattr(ours, "gamma")


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("obs", ["vectors", "float64"])
def test_normalisation_is_that_of_vec_normalize(obs: str, n_steps: int) -> None:
    class Env(RandomEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space: Any = OBSERVATIONS[obs]

        def _observe(self) -> Any:
            return self.np_random.uniform(-1.0, 1.0, self.observation_space.shape).astype(self.observation_space.dtype)

    env = VecNormalize(make_vec_env(Env, N_ENVS), clip_obs=0.7, clip_reward=1.0)
    env.reset()
    for _ in range(50):
        env.step(np.zeros((N_ENVS, 2)))
    kwargs: dict[str, Any] = {"n_steps": n_steps, "gamma": 0.9} if n_steps > 1 else {}
    theirs, ours = pair(NStepReplayBuffer if n_steps > 1 else ReplayBuffer, obs, **kwargs)
    fill([theirs, ours], 25)
    assert_equal_batches(theirs, ours, env, exact=False)


def test_dict_observations_are_normalised_by_key() -> None:
    space = spaces.Dict({"a": BOX, "b": spaces.Box(-1.0, 1.0, (2,), np.float32)})
    arguments: Any = (60, space, ACTIONS["box"], "cpu", N_ENVS)
    theirs, ours = DictReplayBuffer(*arguments), TensorReplayBuffer(*arguments)
    fill([theirs, ours], 20)

    class Env(RandomEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space: Any = space

        def _observe(self) -> Any:
            return {key: part.sample() for key, part in space.spaces.items()}

    env = VecNormalize(make_vec_env(Env, N_ENVS), norm_obs_keys=["a"])
    env.reset()
    env.step(np.zeros((N_ENVS, 2)))
    assert_equal_batches(theirs, ours, env, exact=False)


def test_tensors_and_arrays_are_stored_alike() -> None:
    ours, same = (TensorReplayBuffer(60, BOX, ACTIONS["box"], "cpu", N_ENVS) for _ in range(2))
    obs, action, reward, done = np.eye(3, 4), np.ones((3, 2)), np.arange(3.0), np.array([True, False, True])
    infos: list[dict[str, Any]] = [{}, {}, {"TimeLimit.truncated": True}]
    arrays = (obs[:, ::-1], obs, action, reward, done)
    ours.add(*arrays, infos)
    tensors: Any = (*[th.from_numpy(part.copy()) for part in arrays], infos)
    same.add(*tensors)
    for name, rows in ours.host_rows().items():
        np.testing.assert_array_equal(rows, same.host_rows()[name], err_msg=name)
    np.testing.assert_array_equal(ours.host_rows()["timeouts"][0], [0, 0, 1])


def test_sampling_is_uniform_over_all_transitions() -> None:
    """Rewards number the transitions; each is drawn about as often as any other."""
    ours = TensorReplayBuffer(60, BOX, ACTIONS["box"], "cpu", N_ENVS)
    for row in range(20):
        numbers = np.arange(3.0) + 3 * row
        ours.add(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 2)), numbers, np.zeros(3), [{}] * 3)
    th.manual_seed(0)
    drawn = ours.sample(60_000).rewards.flatten().long().bincount(minlength=60)
    assert len(drawn) == 60
    assert int(drawn.min()) > 800
    assert int(drawn.max()) < 1200  # 1,000 each, with a deviation of 31


def test_what_was_only_reset_is_never_drawn() -> None:
    """Every second transition is none; one that is written over by a real one may be drawn again."""
    ours = TensorReplayBuffer(60, BOX, ACTIONS["box"], "cpu", N_ENVS)

    def add(number: float, skipped: bool) -> None:
        infos = [{"skipped": skipped}] * 3
        ours.add(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 2)), np.full(3, number), np.zeros(3), infos)

    for row in range(20):
        add(float(row), row % 2 == 1)
    th.manual_seed(0)
    assert set(ours.sample(5_000).rewards.flatten().tolist()) == {float(row) for row in range(0, 20, 2)}
    add(100.0, True)
    add(101.0, False)
    assert set(ours.sample(5_000).rewards.flatten().tolist()) == {101.0, *(float(row) for row in range(2, 20, 2))}


def test_pickles_and_copies_keep_everything() -> None:
    for obs in ("vectors", "Dict"):
        _, ours = pair(DictReplayBuffer if obs == "Dict" else ReplayBuffer, obs)
        fill([ours], 27)
        for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            assert (other.pos, other.full, other.device) == (ours.pos, ours.full, th.device("cpu"))
            batches = [each._get_samples(range(20), None, [0] * 20) for each in (ours, other)]
            for left, right in zip(*batches, strict=True):
                th.testing.assert_close(left, right, rtol=0.0, atol=0.0)
            other.rewards.zero_()
            assert bool(ours.rewards.any())


def test_models_save_and_load_it(tmp_path: Path) -> None:
    """Through our reader, which runs nothing, and in SB3's way."""
    model = make_model(replay_buffer_class=TensorReplayBuffer, learning_starts=10, batch_size=8)
    model.learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    for trusted in (False, True):
        other = make_model(replay_buffer_class=TensorReplayBuffer)
        other.load_replay_buffer(tmp_path / "buffer", trusted=trusted)
        ours, theirs = model.replay_buffer, other.replay_buffer
        assert isinstance(ours, TensorReplayBuffer)
        assert isinstance(theirs, TensorReplayBuffer)
        assert ours.pos == theirs.pos == 60
        for name, rows in ours.host_rows().items():
            np.testing.assert_array_equal(rows, theirs.host_rows()[name], err_msg=name)


def test_training_is_that_of_sb3s_buffer_for_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SB3's indices: equal weights after a training, so that every hook between two updates has done the same."""
    models: list[SoftAC] = []
    for buffer_class in (ReplayBuffer, TensorReplayBuffer):
        options: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": 5.0, "noise_repeat": 4}
        model = make_model(
            env=make_vec_env(RandomEnv, 2), replay_buffer_class=buffer_class, learning_starts=10, batch_size=8, **options
        )
        buffer = model.replay_buffer
        assert buffer is not None
        if isinstance(buffer, TensorReplayBuffer):

            def sample(batch_size: int, env: Any = None, buffer: TensorReplayBuffer = buffer) -> Any:
                rows = np.random.randint(0, buffer.size(), size=batch_size)  # noqa: NPY002
                return buffer._get_samples(rows, env, np.random.randint(0, buffer.n_envs, size=batch_size))  # noqa: NPY002

            monkeypatch.setattr(buffer, "sample", sample)
        models.append(model.learn(100))
    assert_same_parameters(*models)
    facts = [{key: episode[key] for key in episode if key != "t"} for episode in models[0].ep_info_buffer or ()]
    assert facts == [{key: episode[key] for key in episode if key != "t"} for episode in models[1].ep_info_buffer or ()]
    assert facts
    assert "discounted_return" in facts[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optimize_memory_usage": True}, "`optimize_memory_usage` is True, but it must be False"),
        ({"n_steps": 0}, "`n_steps` is 0, but it must be an integer of at least 1"),
        ({"n_steps": 2.0}, "`n_steps` is 2.0, but it must be an integer"),
        ({"n_steps": 2, "gamma": 1.5}, r"`gamma` is 1.5, but it must be a number in \[0, 1\]"),
    ],
)
def test_refusals(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorReplayBuffer(60, BOX, ACTIONS["box"], "cpu", N_ENVS, **kwargs)


def test_another_discount_than_the_models_is_refused() -> None:
    make_model(replay_buffer_class=TensorReplayBuffer, gamma=0.9)  # one step: it has none
    with pytest.raises(ValueError, match=r"replay buffer discounts with 0\.99"):
        make_model(replay_buffer_class=TensorReplayBuffer, replay_buffer_kwargs={"n_steps": 3}, gamma=0.9)


def test_copies_stay_on_their_device() -> None:
    """Also that of a model, and that which comes out of a pickle."""
    buffer = TensorReplayBuffer(20, BOX, ACTIONS["box"], "meta")
    copied: Any = copy.deepcopy(buffer)
    assert copied.device.type == copied.rewards.device.type == "meta"
    assert copied.rewards.shape == buffer.rewards.shape
    model = make_model(replay_buffer_class=TensorReplayBuffer)
    state = pickle.loads(pickle.dumps(model.replay_buffer))
    twin = copy.deepcopy(model)
    assert isinstance(twin.replay_buffer, TensorReplayBuffer)
    vars(model)["replay_buffer"], model.device = state, th.device("meta")
    again: Any = type(model).__new__(type(model))
    again.__setstate__(model.__getstate__())
    assert again.replay_buffer.device.type == again.replay_buffer.rewards.device.type == "meta"
