"""A report that explains a run: ``python -m sb3_softac.report LOGDIR``. It reads logs only, and nothing else needs it."""

from sb3_softac.report.command import main, write_report
from sb3_softac.report.data import ReportError

__all__ = ["ReportError", "main", "write_report"]
