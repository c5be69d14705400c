"""Actors, critics, value network and the layers that they are made of. Knows of algorithms only the equations of losses."""

from sb3_softac.networks.actors import Actor, ActsDirectly, CategoricalActor
from sb3_softac.networks.base import SoftPolicy
from sb3_softac.networks.critics import StackedCritics, ValueNetwork
from sb3_softac.networks.encoders import MLP, Encoder
from sb3_softac.networks.ensemble import apply_layer, make_layer_norm, make_linear
from sb3_softac.networks.heads import CriticHead, ScalarHead
from sb3_softac.networks.normalizers import Normalized, ObservationNormalizer
from sb3_softac.networks.policy import SB3_EQUIVALENTS, CnnPolicy, MlpPolicy, MultiInputPolicy, SoftACPolicy
from sb3_softac.networks.restart import restart_networks
from sb3_softac.networks.samplers import BoltzmannActor, GaussianSampler, Particles, Sampler
from sb3_softac.networks.soft_ql_policy import SoftQLCnnPolicy, SoftQLMultiInputPolicy, SoftQLPolicy

__all__ = [
    "MLP",
    "SB3_EQUIVALENTS",
    "Actor",
    "ActsDirectly",
    "BoltzmannActor",
    "CategoricalActor",
    "CnnPolicy",
    "CriticHead",
    "Encoder",
    "GaussianSampler",
    "MlpPolicy",
    "MultiInputPolicy",
    "Normalized",
    "ObservationNormalizer",
    "Particles",
    "Sampler",
    "ScalarHead",
    "SoftACPolicy",
    "SoftPolicy",
    "SoftQLCnnPolicy",
    "SoftQLMultiInputPolicy",
    "SoftQLPolicy",
    "StackedCritics",
    "ValueNetwork",
    "apply_layer",
    "make_layer_norm",
    "make_linear",
    "restart_networks",
]
