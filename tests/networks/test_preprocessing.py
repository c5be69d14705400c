"""Observations of all spaces, as SB3 has them where it can, and counted from their start where it cannot."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs

from sb3_softac import SoftAC
from sb3_softac.networks.preprocessing import AsSB3, make_preprocess
from tests.helpers import SMALL, SampledEnv, make_model

IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1.0, 1.0, (4,)),
    "box, float64": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    "box of integers": spaces.Box(0, 9, (4,), np.int64),
    "image": IMAGE,
    "image, channels last": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict({"image": IMAGE, "box": spaces.Box(-1.0, 1.0, (4,)), "choice": spaces.Discrete(3)}),
}


def draw(space: spaces.Space[Any], n: int = 6) -> Any:
    """n observations, as SB3's replay buffers hand them over."""
    space.seed(0)
    if isinstance(space, spaces.Dict):
        return {key: draw(part, n) for key, part in space.spaces.items()}
    return th.as_tensor(np.stack([space.sample() for _ in range(n)]))


@pytest.mark.parametrize("normalize_images", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_it_equals_that_of_sb3(name: str, normalize_images: bool) -> None:
    space = SPACES[name]
    preprocess, obs = make_preprocess(space, normalize_images), draw(space)
    assert not isinstance(preprocess, AsSB3)
    ours: Any = preprocess(obs)
    theirs: Any = preprocess_obs(obs, space, normalize_images)
    pairs = [(ours[key], theirs[key]) for key in space.spaces] if isinstance(space, spaces.Dict) else [(ours, theirs)]
    for mine, reference in pairs:
        assert mine.dtype == reference.dtype == th.float32
        assert th.equal(mine, reference)


def test_discrete_observations_count_from_their_start() -> None:
    obs = th.tensor([2, 6, 4])
    shifted = make_preprocess(spaces.Discrete(5, start=2), True)(obs)
    assert th.equal(shifted, preprocess_obs(obs - 2, spaces.Discrete(5)))  # type: ignore[arg-type]  # a tensor
    starts = [1, -3]
    pairs = th.tensor([[1, -3], [2, -1], [1, -2]])
    shifted = make_preprocess(spaces.MultiDiscrete([2, 3], start=starts), True)(pairs)
    plain = spaces.MultiDiscrete([2, 3])
    assert th.equal(shifted, preprocess_obs(pairs - th.tensor(starts), plain))  # type: ignore[arg-type]
    assert shifted.sum(dim=1).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=2),
        spaces.Discrete(4, start=-7),
        spaces.MultiDiscrete([2, 3], start=[1, -3]),
        spaces.MultiBinary(4),
    ],
    ids=str,
)
@pytest.mark.parametrize("kwargs", [{}, {"value_network": True}])
def test_discrete_observations_train_and_predict(space: spaces.Space[Any], kwargs: dict[str, Any]) -> None:
    model = make_model(env=SampledEnv(observation_space=space), learning_starts=10, batch_size=8, **kwargs)
    assert model.learn(30)._n_updates == 20
    outputs = set()
    for obs in range(space.start, space.start + space.n) if isinstance(space, spaces.Discrete) else [space.sample()]:
        action, _ = model.predict(np.array(obs), deterministic=True)
        assert model.action_space.contains(action)
        outputs.add(float(action[0]))
    assert len(outputs) == (space.n if isinstance(space, spaces.Discrete) else 1)  # no two states look alike


def test_a_dict_with_a_start_trains() -> None:
    space = spaces.Dict({"place": spaces.Discrete(5, start=2), "speed": spaces.Box(-1.0, 1.0, (2,))})
    env = SampledEnv(observation_space=space)
    model = SoftAC("MultiInputPolicy", env, policy_kwargs=dict(SMALL), learning_starts=10, buffer_size=100, device="cpu")
    assert model.learn(20)._n_updates == 10
