"""From observations of any space to what a features extractor takes.

SB3's ``preprocess_obs`` looks at the values of the space's bounds in every call, which no compiler can follow, and counts
discrete observations from 0 only. Here the space is looked at once.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

Preprocess = Callable[[Any], Any]


class Floats:
    """Boxes and MultiBinary: to float32, and images to [0, 1].

    :param divisor: 255 for images, else 1
    """

    def __init__(self, divisor: float = 1.0) -> None:
        self.divisor = divisor

    def __call__(self, obs: th.Tensor) -> th.Tensor:
        return obs.float() if self.divisor == 1.0 else obs.float() / self.divisor


class OneHot:
    """Discrete and MultiDiscrete observations: one-hot vectors, side by side.

    :param sizes: number of values of each component
    :param starts: lowest value of each component
    """

    def __init__(self, sizes: list[int], starts: list[int]) -> None:
        self.sizes, self.starts = sizes, starts

    def __call__(self, obs: th.Tensor) -> th.Tensor:
        """(B,) or (B, components) → (B, sum of the sizes)."""
        columns = obs.long().reshape(-1, len(self.sizes)).unbind(dim=1)
        # Compared with all values: `one_hot` would wait for the device to look at the largest.
        parts = [
            column.unsqueeze(1) == th.arange(start, start + size, device=obs.device)
            for column, size, start in zip(columns, self.sizes, self.starts, strict=True)
        ]
        return th.cat(parts, dim=1).float()


class EachKey:
    """Dict observations: each by its own space.

    :param parts: by key
    """

    def __init__(self, parts: dict[str, Preprocess]) -> None:
        self.parts = parts

    def __call__(self, obs: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        return {key: part(obs[key]) for key, part in self.parts.items()}


class AsSB3:
    """Spaces that are not known here.

    :param space: observation space
    :param normalize_images: divide images by 255
    """

    def __init__(self, space: spaces.Space[Any], normalize_images: bool) -> None:
        self.space, self.normalize_images = space, normalize_images

    def __call__(self, obs: PyTorchObs) -> PyTorchObs:
        return preprocess_obs(obs, self.space, normalize_images=self.normalize_images)


def make_preprocess(space: spaces.Space[Any], normalize_images: bool) -> Preprocess:
    """A function of observations (B, ...), or of a dict of them.

    :param space: observation space
    :param normalize_images: divide images by 255
    """
    if isinstance(space, spaces.Dict):
        return EachKey({key: make_preprocess(part, normalize_images) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Box):
        return Floats(255.0 if normalize_images and is_image_space(space) else 1.0)
    if isinstance(space, spaces.Discrete):
        return OneHot([int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return OneHot([int(size) for size in space.nvec], [int(start) for start in space.start])
    if isinstance(space, spaces.MultiBinary):
        return Floats()
    return AsSB3(space, normalize_images)


class WithPreprocessing:
    """Networks of SB3 that look at their observation space once."""

    preprocess: Preprocess

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """(B, ...) → (B, F)."""
        return features_extractor(self.preprocess(obs))  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any
