"""Errors that are not about an argument."""


class TrainingDivergedError(RuntimeError):
    """Losses, weights or actions are no longer finite; earlier checkpoints still hold finite weights."""


class UntrustedFileError(ValueError):
    """A file asks for code that is not on the list of what files may use; nothing of it has run (docs/files.md)."""


class DamagedFileError(ValueError):
    """A file is incomplete, contradicts itself, or holds nothing that a model or a replay buffer could be made of."""
