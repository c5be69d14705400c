"""Import path of version 0.1, which saved files name."""

from sb3_softac.networks import (
    SB3_EQUIVALENTS,
    Actor,
    CategoricalActor,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SoftACPolicy,
    StackedCritics,
    ValueNetwork,
)

__all__ = [
    "SB3_EQUIVALENTS",
    "Actor",
    "CategoricalActor",
    "CnnPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
    "SoftACPolicy",
    "StackedCritics",
    "ValueNetwork",
]
