"""What the machine has and when it fails: changed by tests, and for worker processes by an environment variable."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

ENVIRONMENT_VARIABLE = "PRECAST_FAKE_DEVICE"
"""JSON with fields of Settings: {"capability": [8, 6], "fail": {"call": "cuGraphLaunch", "number": 3}}."""


@dataclass(frozen=True)
class Failure:
    """One call that fails.

    Attributes:
        call: A function of the driver; or a method of tensorrt_rtx that says False or None when it fails.
        number: Of the call by that name, from 1.
        status: A CUresult. After one of types.STICKY every later call of the device fails too.
        device: Whose context is the thread's; None: whatever it is.
    """

    call: str
    number: int = 1
    status: int = 1
    device: int | None = None


@dataclass
class Settings:
    """All devices are alike.

    Attributes:
        free_bytes: Free on each device before this process takes any. None: all of it.
        queries_until_done: How many times cuEventQuery says that a record is not done, before it is.
        is_stream_capturable: What an execution context answers.
        fail: The calls that fail.
        misuse_file: Every misuse is appended to this file, a line each, for tests that cannot look into a worker.
        meeting_dir: Where processes that have a rank each meet, in place of NCCL (fake_nccl.py); "": there is no NCCL.
    """

    name: str = "Fake GPU"
    capability: tuple[int, int] = (8, 9)
    total_bytes: int = 64 << 20
    free_bytes: int | None = None
    num_devices: int = 1
    driver_version: int = 13000
    queries_until_done: int = 3
    is_stream_capturable: bool = True
    fail: Sequence[Failure] = ()
    misuse_file: str = ""
    meeting_dir: str = ""

    def update(self, values: Mapping[str, Any]) -> None:
        """Set fields, from what JSON can say. Raises ValueError for a field that does not exist."""
        if unknown := sorted(set(values) - {entry.name for entry in fields(self)}):
            raise ValueError(f"the fake device has no setting {', '.join(unknown)}")
        for name, value in values.items():
            setattr(self, name, _convert(name, value))

    def reset(self) -> None:
        """As they are when the module is imported."""
        self.update({entry.name: getattr(_DEFAULTS, entry.name) for entry in fields(self)})
        self.update(json.loads(os.environ.get(ENVIRONMENT_VARIABLE, "{}")))


def _convert(name: str, value: Any) -> Any:
    if name == "capability":
        major, minor = value
        return (int(major), int(minor))
    if name == "fail":
        entries = [value] if isinstance(value, Mapping | Failure) else value
        return tuple(entry if isinstance(entry, Failure) else Failure(**entry) for entry in entries)
    return value


_DEFAULTS = Settings()
