"""What a user's mistake looks like at the prompt: one sentence and a non-zero exit code, never a stack of frames."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from uncertainty_est.errors import USER_ERRORS, did_you_mean, first_line

# What may stand before the first dot or equals sign of an override.
NAMES = ("dataset", "model", "network", "trainer", "logger", "grid", "fixed", "seml", "slurm")


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the process with exit code 1 and one sentence for every error that a user can cause.

    Any other exception is a defect of ours and keeps its traceback.
    """
    # Without this, Hydra itself prints the exception (with a pointer to this variable) and exits.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except USER_ERRORS as error:
        _exit(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit(explain(error))


def explain(error: Exception) -> str:
    """Hydra's report of a wrong override or name in one sentence, with the nearest right name where there is one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options or [])
        hint = did_you_mean(name, options) or (f"; choose one of {', '.join(options)}" if options else "")
        return f"{group or 'configs'}={name}: there is no such configuration{hint}"
    text = str(error)
    message = text.splitlines()[0]
    group_hit = re.match(r"Could not override '([^']+)'\. No match in the defaults list", message)
    key_hit = re.match(r"Could not override '([^']+)'", message)
    if group_hit:
        return f"{group_hit[1]}: there is no such group or section{did_you_mean(group_hit[1], NAMES)}"
    if key_hit and "." not in key_hit[1]:
        return f"{key_hit[1]}: there is no such group or section{did_you_mean(key_hit[1], NAMES)}"
    if key_hit:
        return f"{key_hit[1]}: there is no such key{_nearest_key(key_hit[1], error)}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return f"{message.rstrip('.')} ({first_line(error.__cause__)})"
    return message


def log_to_console(level: int = logging.INFO) -> None:
    """Plain messages of this package on standard output, and only warnings of Lightning's."""
    for handler in logging.getLogger().handlers:  # not by their loggers' levels, which importing Lightning sets
        handler.addFilter(_is_not_lightnings_news)
    # Lightning calls torch by an old name; nothing that a user could do about it.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("uncertainty_est")
    logger.setLevel(level)
    logger.handlers[:] = [handler]
    logger.propagate = False


def _is_not_lightnings_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or not record.name.startswith(("pytorch_lightning", "lightning"))


def _nearest_key(key: str, error: Exception) -> str:
    """The nearest key beside the misspelt one, where OmegaConf's own error carries the node it was looked up in."""
    cause: BaseException | None = error
    while cause is not None:
        node = getattr(cause, "parent_node", None)
        if node is not None and hasattr(node, "keys"):
            hint = did_you_mean(key.rsplit(".", 1)[-1], [str(k) for k in node.keys()])  # noqa: SIM118
            return hint or f" (to add a new one, write +{key}=…)"
        cause = cause.__cause__
    return f" (to add a new one, write +{key}=…)"


def _exit(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    raise SystemExit(1)
