"""Use of exported policies: ``from sb3_softac.export import ExportedPolicy``."""

from sb3_softac.files.exported import ExportedPolicy, describe, is_exported

__all__ = ["ExportedPolicy", "describe", "is_exported"]
