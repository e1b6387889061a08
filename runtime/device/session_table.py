"""A session as ``precast_session_table_t``: calls from C, answered in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from precast.checkpoints.engine_errors import (
    CorruptEngineError,
    EngineError,
    EngineIOError,
    EngineNotFoundError,
    UnsupportedEngineError,
)
from precast.runtime.device.network import say
from precast.runtime.device.step import Step, StepResult, read_step
from precast.runtime.errors import ErrorCode, NativeError
from precast.runtime.library import check
from precast.runtime.structs import SessionConfigStruct, SessionTableStruct

_VERSION = 1
_ENGINE_ERRORS: dict[type[EngineError], ErrorCode] = {
    EngineNotFoundError: ErrorCode.NOT_FOUND,
    EngineIOError: ErrorCode.IO,
    CorruptEngineError: ErrorCode.CORRUPT_ENGINE,
    UnsupportedEngineError: ErrorCode.UNSUPPORTED_ENGINE,
}


class Session(Protocol):
    """What the table calls; each is explained in session.py."""

    @property
    def max_in_flight(self) -> int: ...
    @property
    def chooses_tokens(self) -> bool: ...
    @property
    def max_candidates(self) -> int: ...
    def enqueue(self, step: Step) -> None: ...
    def collect(self, step_id: int) -> StepResult: ...
    def is_done(self, step_id: int) -> bool: ...
    def close(self) -> None: ...


class Opened(Protocol):
    """A session with what its engine is told of it."""

    @property
    def session(self) -> Session: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def device_name(self) -> str: ...


OpenSession = Callable[[SessionConfigStruct, Callable[[bytes], list[bytes]] | None], Opened]
"""Opens the session of the config's rank. The function shows the other ranks bytes, where there are any."""


class SessionTable:
    """The table, which must live as long as what is made from it. It serves one session.

    What Python raises becomes an error of the library, with the exception's name where it is not one of its own.
    """

    def __init__(self, library: ctypes.CDLL, open_session: OpenSession) -> None:
        self._library, self._open_session = library, open_session
        self._opened: Opened | None = None
        self._result: StepResult | None = None  # whose arrays the library reads until the next call
        self._device_name = b""
        types = _field_types(SessionTableStruct)
        self.struct = SessionTableStruct(
            struct_size=ctypes.sizeof(SessionTableStruct),
            version=_VERSION,
            create=types["create"](self._create),
            enqueue=types["enqueue"](self._enqueue),
            collect=types["collect"](self._collect),
            destroy=types["destroy"](self._destroy),
            is_done=types["is_done"](self._is_done),
        )

    def _create(self, _: object, config: Any, properties: Any, session: Any) -> int | None:
        def create() -> None:
            opened = self._open_session(config.contents, self._exchange_of(config.contents))
            self._opened = opened
            self._device_name = opened.device_name.encode("utf-8")
            answer = properties.contents
            answer.num_blocks = opened.num_blocks
            answer.max_in_flight = opened.session.max_in_flight
            answer.chooses_tokens = opened.session.chooses_tokens
            answer.max_candidates = opened.session.max_candidates
            answer.device = self._device_name
            session[0] = 1  # there is one, and NULL would be none

        return self._guarded(create)

    def _exchange_of(self, config: SessionConfigStruct) -> Callable[[bytes], list[bytes]] | None:
        if not config.exchange:
            return None
        exchange, data, world_size = config.exchange, config.exchange_data, config.world_size

        def show(mine: bytes) -> list[bytes]:
            everything = ctypes.create_string_buffer(len(mine) * world_size)
            check(self._library, exchange(data, mine, len(mine), everything))
            return [everything.raw[start : start + len(mine)] for start in range(0, len(everything), len(mine))]

        return show

    def _enqueue(self, _: object, step: Any) -> int | None:
        return self._guarded(lambda: self._session().enqueue(read_step(step.contents)))

    def _collect(self, _: object, step_id: int, result: Any) -> int | None:
        def collect() -> None:
            self._result = self._session().collect(step_id)
            answer = result.contents
            answer.logits = _pointer(answer, "logits", self._result.logits)
            answer.token_ids = _pointer(answer, "token_ids", self._result.token_ids)
            answer.candidate_ids = _pointer(answer, "candidate_ids", self._result.candidate_ids)
            answer.candidate_logits = _pointer(answer, "candidate_logits", self._result.candidate_logits)
            answer.log_sums = _pointer(answer, "log_sums", self._result.log_sums)

        return self._guarded(collect)

    def _is_done(self, _: object, step_id: int, done: Any) -> int | None:
        def is_done() -> None:
            done[0] = self._session().is_done(step_id)

        return self._guarded(is_done)

    def _destroy(self, _: object) -> None:
        self._result = None
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                opened.session.close()
            except Exception as error:  # noqa: BLE001 - must not cross C, and nobody is left to raise it again
                say(f"the session was not closed in order: {type(error).__name__}: {error}")

    def _session(self) -> Session:
        assert self._opened is not None  # the library calls create first
        return self._opened.session

    def _guarded(self, call: Callable[[], None]) -> int | None:
        """NULL, or an error that the library owns."""
        try:
            call()
        except NativeError as error:
            return self._error(error.code, str(error))
        except EngineError as error:
            return self._error(_ENGINE_ERRORS.get(type(error), ErrorCode.INTERNAL), str(error))
        except BaseException as error:  # noqa: BLE001 - must not cross C; the engine raises it again as text
            return self._error(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
        return None

    def _error(self, code: int, message: str) -> int:
        # A path may hold what is no UTF-8, and an exception of here would be lost: C would take it for success.
        error: int = self._library.precast_error_new(code, message.encode("utf-8", "backslashreplace"))
        return error


def _pointer(struct: ctypes.Structure, name: str, array: NDArray[Any] | None) -> Any:
    """A pointer to the array's elements, of the type of the struct's field; NULL where there are none."""
    kind = _field_types(type(struct))[name]
    if array is None or array.size == 0:
        return kind()
    assert array.flags.c_contiguous
    return ctypes.cast(array.ctypes.data, kind)


def _field_types(struct: type[ctypes.Structure]) -> dict[str, Any]:
    return {field[0]: field[1] for field in struct._fields_}
