"""How gradient steps run: eager, compiled or captured in a CUDA graph, and the arithmetic that makes each fast.

The lowest wing of the house: it knows nothing of algorithms, networks or buffers.
"""

from sb3_softac.engine.engine import Compile, Engine, missing_for_compilation, why_only_eager
from sb3_softac.engine.graphs import AsyncMetrics
from sb3_softac.engine.group import Group, GroupError
from sb3_softac.engine.guards import ModuleGuards
from sb3_softac.engine.optimizers import OptimizerStep
from sb3_softac.engine.optimizers import restart as restart_optimizer
from sb3_softac.engine.precision import Precision, missing_for
from sb3_softac.engine.steps import Metrics, UpdateFlags

__all__ = [
    "AsyncMetrics",
    "Compile",
    "Engine",
    "Group",
    "GroupError",
    "Metrics",
    "ModuleGuards",
    "OptimizerStep",
    "Precision",
    "UpdateFlags",
    "missing_for",
    "missing_for_compilation",
    "restart_optimizer",
    "why_only_eager",
]
