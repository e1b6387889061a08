"""What tests/runtime/tensorrt/test_session_results.py says of sessions, with ONNX Runtime."""

import pytest

from tests.runtime.tensorrt.test_session_results import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("cpu_provider")
