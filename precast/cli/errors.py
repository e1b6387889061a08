"""An exception as the one line that a command prints."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot go on; the message is for the person who typed it."""

    status = 1


class UsageError(CommandError):
    """The command line cannot work as it was typed."""

    status = 2


def describe(error: Exception) -> str:
    """One line. An error that is not made to be read is named, so that it can be reported."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return text if _is_said_in_words(error) else f"{type(error).__name__}: {text} (--debug shows where)"


def _is_said_in_words(error: Exception) -> bool:
    from precast.checkpoints.engine_errors import EngineError
    from precast.runtime.errors import NativeError

    said = (CommandError, EngineError, NativeError, ValueError, OSError, ModuleNotFoundError)
    return isinstance(error, said) and str(error) != ""
