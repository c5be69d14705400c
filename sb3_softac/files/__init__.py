"""Files: models in SB3's format, models of SB3, exported policies."""

from sb3_softac.files.exported import ExportedPolicy
from sb3_softac.files.saving import SavedAlgorithm

__all__ = ["ExportedPolicy", "SavedAlgorithm"]
