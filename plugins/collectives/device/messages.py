"""Texts as bytes of a fixed size, as ranks exchange them before they have anything better."""

TEXT_BYTES = 480
"""Of each text, in UTF-8; a longer one is cut."""


def join_texts(*texts: str) -> bytes:
    """TEXT_BYTES for each text."""
    return b"".join(_cut(text).ljust(TEXT_BYTES, b"\0") for text in texts)


def split_texts(data: bytes) -> tuple[str, ...]:
    """The reverse."""
    return tuple(
        data[start : start + TEXT_BYTES].rstrip(b"\0").decode(errors="ignore")
        for start in range(0, len(data), TEXT_BYTES)
    )


def _cut(text: str) -> bytes:
    return text.replace("\0", "").encode()[:TEXT_BYTES]
