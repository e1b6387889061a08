"""Runs one custom op of the native library once: a session for a single call."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from precast.plugins.domain import DOMAIN
from tests.op_session import Array, OpSession, session_options


def run_op(
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    num_outputs: int = 1,
) -> list[NDArray[np.float32]]:
    """The op's outputs, all float32. A level that the processor lacks skips the test.

    An input that is None is absent; every other one is given where it lies, so that an op that writes its input in
    place changes the caller's array.
    """
    named = {f"input{i}": array for i, array in enumerate(inputs)}
    outputs = [f"output{i}" for i in range(num_outputs)]
    schema = SimpleNamespace(NAME=op, DOMAIN=DOMAIN, VERSION=1)
    session = OpSession(session_options(monkeypatch, level), schema, dict(attributes), named, outputs)
    return session.run(**named)
