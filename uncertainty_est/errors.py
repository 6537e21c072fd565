"""The project's own exceptions: each message is one sentence that names the key or file and the remedy."""


class ConfigError(ValueError):
    """A configuration that cannot be run: unknown or missing key, unknown name, combination that makes no sense."""


class DataError(RuntimeError):
    """A data set that is missing, unreadable, or does not have the shape or labels that were asked for."""


class NotFittedError(RuntimeError):
    """A post-hoc method was asked for scores before ``fit_posthoc`` or before loading a fitted checkpoint."""
