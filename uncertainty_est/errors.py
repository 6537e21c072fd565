"""The project's own exceptions: each message is one sentence that names the key or file and the remedy."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot be run: unknown or missing key, unknown name, combination that makes no sense."""


class DataError(RuntimeError):
    """A data set that is missing, unreadable, or does not have the shape or labels that were asked for."""


class NotFittedError(RuntimeError):
    """A post-hoc method was asked for scores before ``fit_posthoc`` or before loading a fitted checkpoint."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer a number."""


class Preempted(SystemExit):
    """The process was told to end and has made a checkpoint; exit code 75, the one for *try again*."""

    CODE = 75

    def __init__(self, message: str) -> None:
        super().__init__(self.CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


# What a user can cause: shown as its one sentence, without a traceback.
USER_ERRORS = (ConfigError, DataError, NotFittedError, TrainingError)


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``"; did you mean 'score'?"`` for the nearest of `options`, or an empty string where none is near."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException, longest: int | None = None) -> str:
    """The first line of what an error says, or its class; at most `longest` characters of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:longest]
