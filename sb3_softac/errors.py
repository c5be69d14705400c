"""Errors that are nobody's bad argument."""


class TrainingDivergedError(RuntimeError):
    """Losses, weights or actions are no longer finite; what was learned before lies in the checkpoints."""
