"""Checks of what a user passes: ranges first, then contradictions, each refused in one sentence."""

from sb3_softac.arguments import policy, soft_ac, soft_ql
from sb3_softac.arguments.checks import (
    check_action_space,
    check_choice,
    check_count,
    check_flag,
    check_real,
    comparable,
    is_learned,
)
from sb3_softac.arguments.options import (
    DEFAULT_LEARNING_RATE,
    DEFAULT_TARGET_ENTROPY_SCALE,
    LEARNING_RATE_OWNERS,
    target_entropy_rule,
)
from sb3_softac.arguments.policy import DEFAULT_LOG_STD_BOUNDS

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "DEFAULT_LOG_STD_BOUNDS",
    "DEFAULT_TARGET_ENTROPY_SCALE",
    "LEARNING_RATE_OWNERS",
    "check_action_space",
    "check_choice",
    "check_count",
    "check_flag",
    "check_real",
    "comparable",
    "is_learned",
    "policy",
    "soft_ac",
    "soft_ql",
    "target_entropy_rule",
]
