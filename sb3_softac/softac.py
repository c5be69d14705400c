"""Import path of version 0.1."""

from sb3_softac.soft_ac import SoftAC

__all__ = ["SoftAC"]
