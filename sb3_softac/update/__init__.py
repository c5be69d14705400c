"""The algorithms: gradient steps as objects, their equations, and strategies for the temperature.

Knows of networks only what it needs to call them, and nothing of SB3's algorithms.
"""

from sb3_softac.update.actor_critic import ActorCriticSettings, ActorCriticUpdate, ActorQ
from sb3_softac.update.base import Numbers, Settings, Update
from sb3_softac.update.losses import CriticReduction
from sb3_softac.update.temperature import (
    FixedTemperature,
    LearnedTemperature,
    LogTemperature,
    Temperature,
    TemperatureUpdate,
    make_temperature,
)

__all__ = [
    "ActorCriticSettings",
    "ActorCriticUpdate",
    "ActorQ",
    "CriticReduction",
    "FixedTemperature",
    "LearnedTemperature",
    "LogTemperature",
    "Numbers",
    "Settings",
    "Temperature",
    "TemperatureUpdate",
    "Update",
    "make_temperature",
]
