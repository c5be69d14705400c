"""The algorithms: gradient steps as objects, their equations, and strategies for the temperature.

Knows of networks only what it needs to call them, and nothing of SB3's algorithms.
"""

from sb3_softac.update.actor_critic import ActorCriticSettings, ActorCriticUpdate, ActorQ, Bootstrap
from sb3_softac.update.base import Numbers, Settings, Update
from sb3_softac.update.losses import CriticReduction
from sb3_softac.update.soft_q import SoftQNoise, SoftQSettings, SoftQUpdate, ValueProposal
from sb3_softac.update.statistics import batch_norm_layers
from sb3_softac.update.svgd import Kernel, KernelValues, check_kernel_values, gaussian_kernel
from sb3_softac.update.temperature import (
    FixedTemperature,
    LearnedTemperature,
    LogTemperature,
    Temperature,
    TemperatureUpdate,
    initial_value,
    make_temperature,
)

__all__ = [
    "ActorCriticSettings",
    "ActorCriticUpdate",
    "ActorQ",
    "Bootstrap",
    "CriticReduction",
    "FixedTemperature",
    "Kernel",
    "KernelValues",
    "LearnedTemperature",
    "LogTemperature",
    "Numbers",
    "Settings",
    "SoftQNoise",
    "SoftQSettings",
    "SoftQUpdate",
    "Temperature",
    "TemperatureUpdate",
    "Update",
    "ValueProposal",
    "batch_norm_layers",
    "check_kernel_values",
    "gaussian_kernel",
    "initial_value",
    "make_temperature",
]
