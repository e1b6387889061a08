"""What ONNX Runtime says: errors go to stderr, and the last ones are kept, since it often says there why it fails."""

import sys
from collections import deque
from ctypes import byref, c_void_p

from precast.plugins.onnxruntime.ort_abi import LOGGING_LEVEL_ERROR, LoggingFunction, OrtApi

_messages: deque[str] = deque(maxlen=16)


def make_environment(api: OrtApi) -> int:
    """An OrtEnv *. All of a library are one, which logs as the first that was made."""
    out = c_void_p()
    api.call("CreateEnvWithCustomLogger", _log, None, LOGGING_LEVEL_ERROR, b"precast", byref(out))
    return out.value or 0


def take_messages() -> list[str]:
    """What was said since this was asked last, oldest first."""
    messages = []
    while _messages:
        messages.append(_messages.popleft())
    return messages


def _write(param: object, severity: int, category: bytes, log_id: bytes, location: bytes, message: bytes) -> None:
    del param, severity, category, log_id, location
    text = message.decode("utf-8", "replace").strip()
    _messages.append(text)
    if sys.stderr is not None:
        print(f"ONNX Runtime: {text}", file=sys.stderr, flush=True)


_log = LoggingFunction(_write)  # never freed: the library may log for as long as it is open
