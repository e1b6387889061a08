"""What tests/runtime/tensorrt/test_session_histories.py says of sessions, with ONNX Runtime."""

from collections.abc import Iterator

import pytest

from tests.runtime.tensorrt import test_session_histories as histories
from tests.runtime.tensorrt.test_session_histories import *  # noqa: F403


@pytest.fixture(scope="module", autouse=True)
def _models(cpu_provider: None) -> Iterator[None]:
    """All in float16. ONNX Runtime rounds in an order of its own: up to 0.0044 was seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(histories.MODELS, "full", histories.Model("float16", "float16", 0.008))
        patch.setitem(histories.MODELS, "windows", histories.Model("qwen2_window", "float16", 0.008, (None, 4)))
        yield
