"""Checkpoints that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def writable(tiny_llama: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`writable("gqa") -> Path`: the test's own copy of a variant of tests/tiny_llama.py."""

    def copy(variant: str) -> Path:
        return Path(shutil.copytree(tiny_llama(variant), tmp_path / variant))

    return copy
