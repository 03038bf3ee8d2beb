"""Every error a user can cause. Each message says what is wrong and ends with what to do."""


class ZooError(Exception):
    """Base of all errors that a user's input, files or settings can cause."""


class ConfigError(ZooError, ValueError):
    """A setting is unknown, out of range, or does not fit another setting."""


class DataError(ZooError):
    """Images are missing, unreadable, or too few."""


class CheckpointError(ZooError):
    """Weights or a training checkpoint cannot be read, or do not fit the model."""


class HubError(ZooError):
    """A model cannot be fetched from, or sent to, the Hub."""


class TrainingError(ZooError):
    """Training cannot go on: the loss is not finite, or processes disagree."""
