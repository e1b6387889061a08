"""Fixtures of engines for ONNX Runtime on a fake device, with the names that tests of TensorRT's have."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.onnxruntime.cpu_provider import WORKERS_VARIABLE, put_cpu_in_place
from tests.runtime.tensorrt import test_session_graphs, test_session_nan, test_session_results, test_session_steps
from tests.runtime.tensorrt.conftest import continuations as continuations
from tests.runtime.tensorrt.conftest import reference as reference
from tests.runtime.tensorrt.fake_engine import build_fake_engine
from tests.runtime.tensorrt.nan_model import make_nan_checkpoint
from tests.runtime.tensorrt.worlds import FakeEngine, World, open_world

TinyLlama = Callable[..., Path]


@pytest.fixture(scope="module")
def cpu_provider() -> Iterator[None]:
    """ONNX Runtime on the CPU in the place of that on CUDA, in this process.

    It rounds to float16 in an order of its own, which differs between processors: tests that are TensorRT's allow more.
    """
    with pytest.MonkeyPatch.context() as patch:
        put_cpu_in_place(patch.setattr)
        for tests in (test_session_graphs, test_session_nan, test_session_results, test_session_steps):
            patch.setattr(tests, "CLOSE", 0.008)
        yield


@pytest.fixture(scope="module")
def cpu_workers() -> Iterator[None]:
    """The same in worker processes with fake devices that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WORKERS_VARIABLE, "1")
        yield


@pytest.fixture(scope="session")
def fake_engine(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    """`fake_engine("float16")`: a read-only engine of a variant of tests/tiny_llama.py, for device cuda."""
    made: dict[tuple[Any, ...], Path] = {}

    def engine(variant: str, **options: Any) -> Path:
        options.pop("weights", None)  # which are always separate
        options.setdefault("dtype", "float16")  # ONNX Runtime multiplies no bfloat16 on the CPU
        key = (variant, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{variant}-cuda") / "engine"
            build_fake_engine(tiny_llama(variant), made[key], "onnxruntime-cuda", **options)
        return made[key]

    return engine


@pytest.fixture(scope="session")
def nan_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of nan_model.py."""
    folder = tmp_path_factory.mktemp("nan-cuda")
    build_fake_engine(make_nan_checkpoint(folder / "model"), folder / "engine", "onnxruntime-cuda")
    return folder / "engine"


@pytest.fixture
def world(fake_engine: FakeEngine, cpu_provider: None) -> Iterator[World]:
    """The float16 model."""
    with open_world(fake_engine("float16")) as opened:
        yield opened
