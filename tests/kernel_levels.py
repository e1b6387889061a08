"""The kernel levels in tests: each one runs where the processor can, and is skipped, with the reason, where not."""

import pytest

LEVELS = ("portable", "avx2", "avx512")


def skip_what_cannot_run(error: Exception) -> None:
    """Skip the test if this error says that the processor lacks the level; return otherwise."""
    if "which this processor cannot run" in str(error):
        pytest.skip(str(error))
