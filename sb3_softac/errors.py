"""Errors that no argument of the user explains by itself."""


class TrainingDivergedError(RuntimeError):
    """Losses, weights or actions are no longer finite; what was learned before lies in the checkpoints."""
