"""Imports the scripts of tools/bench, which find each other by bare names because they run as scripts."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "bench"


def load_bench_module(name: str) -> ModuleType:
    """The module of that name in tools/bench; the folder is on the path for as long as the import takes."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
