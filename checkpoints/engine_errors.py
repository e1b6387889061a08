"""What can be wrong with an engine directory: one class per kind, so that a caller can react without reading the text.

Every message is one sentence that names the file, the values and the next step. The native runtime says the same in the
same words, under the error codes given here.
"""

MAX_QUOTED_CHARACTERS = 120


class EngineError(Exception):
    """Something is wrong with an engine directory."""


class EngineNotFoundError(EngineError):
    """There is no engine at the path (PRECAST_ERROR_NOT_FOUND)."""


class EngineIOError(EngineError):
    """The system refused to read or write a file (PRECAST_ERROR_IO). `__cause__` is the OSError."""


class CorruptEngineError(EngineError):
    """A file of the engine is missing, damaged or contradicts another (PRECAST_ERROR_CORRUPT_ENGINE)."""


class UnsupportedEngineError(EngineError):
    """The engine is sound, but needs something that this precast does not have (PRECAST_ERROR_UNSUPPORTED_ENGINE)."""


class EngineExistsError(EngineError):
    """The output directory holds something that must not be replaced."""


def quote(text: str) -> str:
    """`text` in double quotes, for a message: quotes, backslashes, control characters and bytes that were not UTF-8
    (decoded with "surrogateescape") escaped, long text cut.
    """
    shown = "".join(_escape(character) for character in text[:MAX_QUOTED_CHARACTERS])
    return f'"{shown}..."' if len(text) > MAX_QUOTED_CHARACTERS else f'"{shown}"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character >= " " and character != "\x7f" else f"\\x{ord(character):02x}"
