"""What happens between two updates: actions, and what of an environment's answers may be stored."""

from sb3_softac.collect.acting import CapturedActor, DirectActor, make_actor
from sb3_softac.collect.episodes import FACTS
from sb3_softac.collect.exploration import CollectingAlgorithm
from sb3_softac.collect.overlap import Overlapped, warn_of_no_overlap
from sb3_softac.collect.pooling import PooledStatistics
from sb3_softac.collect.returns import no_returns, reward_divisor
from sb3_softac.collect.step_infos import StepInfos
from sb3_softac.collect.validation import (
    StoredUpTo,
    check_compatible_buffer,
    check_normalizers,
    check_statistics,
    check_vector,
    check_wrappers,
    close_trajectory,
    find_non_finite,
)
from sb3_softac.collect.vector import VectorEnvAdapter

__all__ = [
    "FACTS",
    "CapturedActor",
    "CollectingAlgorithm",
    "DirectActor",
    "Overlapped",
    "PooledStatistics",
    "StepInfos",
    "StoredUpTo",
    "VectorEnvAdapter",
    "check_compatible_buffer",
    "check_normalizers",
    "check_statistics",
    "check_vector",
    "check_wrappers",
    "close_trajectory",
    "find_non_finite",
    "make_actor",
    "no_returns",
    "reward_divisor",
    "warn_of_no_overlap",
]
