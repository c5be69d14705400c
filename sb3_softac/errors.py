"""Errors that are not about an argument."""


class TrainingDivergedError(RuntimeError):
    """Losses, weights or actions are no longer finite; earlier checkpoints still hold finite weights."""
