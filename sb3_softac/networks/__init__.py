"""Actors, critics, value network and the layers that they are made of. Knows of algorithms only the equations of losses."""

from sb3_softac.networks.actors import Actor, CategoricalActor
from sb3_softac.networks.critics import StackedCritics, ValueNetwork
from sb3_softac.networks.encoders import MLP, Encoder
from sb3_softac.networks.ensemble import apply_layer, make_layer_norm, make_linear
from sb3_softac.networks.heads import CriticHead, ScalarHead
from sb3_softac.networks.policy import SB3_EQUIVALENTS, CnnPolicy, MlpPolicy, MultiInputPolicy, SoftACPolicy

__all__ = [
    "MLP",
    "SB3_EQUIVALENTS",
    "Actor",
    "CategoricalActor",
    "CnnPolicy",
    "CriticHead",
    "Encoder",
    "MlpPolicy",
    "MultiInputPolicy",
    "ScalarHead",
    "SoftACPolicy",
    "StackedCritics",
    "ValueNetwork",
    "apply_layer",
    "make_layer_norm",
    "make_linear",
]
