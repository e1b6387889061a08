"""How commands write their results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Mapping[str, Any]) -> None:
    """One object on one line of ASCII, so that a program can read a stream of them in any locale."""
    print(json.dumps(value, allow_nan=False), flush=True)


def print_table(rows: Sequence[Sequence[object]], *, indent: str = "") -> None:
    """Columns under each other: those with numbers to the right, the others to the left."""
    columns = []
    for column in zip(*rows, strict=True):
        texts = [str(cell) for cell in column]
        width = max(map(len, texts))
        justify = str.rjust if any(isinstance(cell, int) for cell in column) else str.ljust
        columns.append([justify(text, width) for text in texts])
    for cells in zip(*columns, strict=True):
        print(indent + "  ".join(cells).rstrip())


def format_bytes(size_bytes: int) -> str:
    """With three digits: 999 B, 1.95 KiB, 17.2 MiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            break
        size /= 1024
    return f"{size_bytes} B" if unit == "B" else f"{size:.3g} {unit}"


def note(text: str) -> None:
    """A line for the person in front of the terminal, apart from the result."""
    print(text, file=sys.stderr, flush=True)
