"""Fixtures that every room's tests use."""

import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from precast.building import build
from tests.gpus import num_gpus
from tests.tiny_llama import make_checkpoint

# Every engine audits its blocks and requests after each step, also those of the processes that tests start.
os.environ.setdefault("PRECAST_AUDIT", "1")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_llama("gqa") -> Path`: the session's read-only copy of a variant of tests/tiny_llama.py, made
    when first asked for. `dtype=` overrides the variant's. Copy it before you change it."""
    made: dict[tuple[str, str | None], Path] = {}

    def checkpoint(variant: str, dtype: str | None = None) -> Path:
        key = (variant, dtype)
        if key not in made:
            made[key] = make_checkpoint(variant, tmp_path_factory.mktemp(variant) / "model", dtype=dtype)
        return made[key]

    return checkpoint


@pytest.fixture(scope="session")
def tiny_engine(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_engine("gqa") -> Path`: the session's read-only engine of that variant, built when first asked for."""
    made: dict[tuple[str, str | None, str], Path] = {}

    def engine(variant: str, dtype: str | None = None, kv_cache_dtype: str = "auto") -> Path:
        key = (variant, dtype, kv_cache_dtype)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{variant}-engine") / "engine"
            build(tiny_llama(variant, dtype), made[key], kv_cache_dtype=kv_cache_dtype)
        return made[key]

    return engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not num_gpus():
            item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    _file_of(item).stash.setdefault(_PYTHON_PATH, os.environ.get("PYTHONPATH"))
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """A file that leaves PYTHONPATH changed would have the processes of all later tests find its fakes."""
    yield
    file, left = _file_of(item), os.environ.get("PYTHONPATH")
    is_last = nextitem is None or _file_of(nextitem) is not file
    if is_last and left != file.stash[_PYTHON_PATH]:
        pytest.fail(f"{file.name} leaves PYTHONPATH as {left!r}, which was {file.stash[_PYTHON_PATH]!r}")


def _file_of(item: pytest.Item) -> pytest.Item | pytest.Collector:
    return item.getparent(pytest.File) or item


_PYTHON_PATH = pytest.StashKey[str | None]()
