"""Soft actor-critic for Stable-Baselines3: every published variant as a configuration."""

from importlib.metadata import version

from sb3_softac import presets
from sb3_softac.collect import VectorEnvAdapter
from sb3_softac.errors import DamagedFileError, TrainingDivergedError, UntrustedFileError
from sb3_softac.networks import CnnPolicy, MlpPolicy, MultiInputPolicy, SoftACPolicy, SoftQLPolicy
from sb3_softac.replay import TensorReplayBuffer
from sb3_softac.schedules import CosineSchedule, ExponentialSchedule, StaircaseSchedule, WarmUpSchedule
from sb3_softac.soft_ac import SoftAC
from sb3_softac.soft_ql import SoftQL

__all__ = [
    "CnnPolicy",
    "CosineSchedule",
    "DamagedFileError",
    "ExponentialSchedule",
    "MlpPolicy",
    "MultiInputPolicy",
    "SoftAC",
    "SoftACPolicy",
    "SoftQL",
    "SoftQLPolicy",
    "StaircaseSchedule",
    "TensorReplayBuffer",
    "TrainingDivergedError",
    "UntrustedFileError",
    "VectorEnvAdapter",
    "WarmUpSchedule",
    "__version__",
    "presets",
]

__version__ = version("sb3-softac")
