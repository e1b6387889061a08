"""Sizes of memory as people write them."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction

from precast.cli.output import format_bytes

_GIB = 1 << 30
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,19})?) ?([a-z]*)", re.ASCII | re.IGNORECASE)
_MAX_BYTES = (1 << 63) - 1


def parse_memory_size(text: str) -> int:
    """Bytes of "24GiB", "24 GB" or "25769803776", rounded down.

    Raises:
        argparse.ArgumentTypeError: it is none of these, less than a byte, or more than 2^63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    size_bytes = int(Fraction(match[1]) * unit) if match and unit is not None else 0
    if not 1 <= size_bytes <= _MAX_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size of memory: give a number of bytes, or one with KB, MB, GB, TB, KiB, MiB, GiB or "
            "TiB, such as 24GiB"
        )
    return size_bytes


def format_memory_size(size_bytes: int) -> str:
    """Whole GiB and large sizes in full, as devices are named: 8 GiB, 1500 GiB; others with three digits."""
    if size_bytes % _GIB == 0 or size_bytes >= 1000 * _GIB:
        return f"{size_bytes // _GIB} GiB"
    return format_bytes(size_bytes)
