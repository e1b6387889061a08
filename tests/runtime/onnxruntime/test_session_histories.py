"""What tests/runtime/tensorrt/test_session_histories.py says of sessions, with ONNX Runtime."""

from collections.abc import Iterator

import pytest

from tests.runtime.tensorrt import test_session_histories as histories
from tests.runtime.tensorrt.test_session_histories import *  # noqa: F403


@pytest.fixture(scope="module", autouse=True)
def _models(cpu_provider: None) -> Iterator[None]:
    """All in float16."""
    with pytest.MonkeyPatch.context() as patch:
        windows = histories.Model("qwen2_window", "float16", 0.008, (None, 4))
        patch.setitem(histories.MODELS, "windows", windows)
        yield
