"""The table that C calls: what Python raises becomes an error with code and text, and results become pointers."""

import ctypes
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from precast.checkpoints.engine_errors import (
    CorruptEngineError,
    EngineExistsError,
    EngineIOError,
    EngineNotFoundError,
    UnsupportedEngineError,
)
from precast.plugins.device.driver import DeviceError
from precast.runtime.device import worker
from precast.runtime.device.session_table import SessionTable
from precast.runtime.device.step import Step, StepResult
from precast.runtime.errors import EngineLoadError, ErrorCode, NativeError
from precast.runtime.library import check, load_library, read_error
from precast.runtime.structs import (
    SessionConfigStruct,
    SessionPropertiesStruct,
    StepResultStruct,
    StepStruct,
    TokenSourceStruct,
)
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.worlds import LOGITS, FakeEngine, Piece, make_step

LIBRARY = load_library()


def result_of(rows: int, num_logits: int, num_candidates: int) -> StepResult:
    """Of a vocabulary of 4, with 3 candidates."""
    wide = np.arange(num_candidates * 3).reshape(num_candidates, 3)
    return StepResult(
        logits=(np.arange(num_logits * 4).reshape(num_logits, 4) / 2).astype(np.float32),
        token_ids=np.arange(10, 10 + rows, dtype=np.int32),
        candidate_ids=wide.astype(np.int32),
        candidate_logits=(wide / 4).astype(np.float32),
        log_sums=(np.arange(num_candidates) / 8).astype(np.float32),
    )


@dataclass
class Scripted:
    """A session that does as it is told, and the engine's view of it."""

    fails: dict[str, BaseException] = field(default_factory=dict)
    result: StepResult = field(default_factory=lambda: result_of(3, 1, 2))
    num_blocks: int = 17
    device_name: str = "Gerät 🙂"
    max_in_flight: int = 2
    chooses_tokens: bool = True
    max_candidates: int = 3
    steps: list[Step] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)

    @property
    def session(self) -> "Scripted":
        return self

    def _called(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise self.fails[name]

    def enqueue(self, step: Step) -> None:
        self._called("enqueue", step.id)
        self.steps.append(step)

    def collect(self, step_id: int) -> StepResult:
        self._called("collect", step_id)
        return self.result

    def is_done(self, step_id: int) -> bool:
        self._called("is_done", step_id)
        return step_id == 7

    def close(self) -> None:
        self._called("close")


class Described:
    """A step as a struct over its arrays, which live as long as this."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.struct = _struct_over(step)


def _struct_over(step: Step) -> StepStruct:

    def pointer(array: Any, kind: Any) -> Any:
        return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind)) if array.size else ctypes.POINTER(kind)()

    tables = [pointer(table, ctypes.c_int32) for table in step.block_tables]
    return StepStruct(
        struct_size=ctypes.sizeof(StepStruct),
        id=step.id,
        token_ids=pointer(step.token_ids, ctypes.c_int32),
        num_tokens=step.num_tokens,
        query_starts=pointer(step.query_starts, ctypes.c_int32),
        context_lengths=pointer(step.context_lengths, ctypes.c_int32),
        num_sequences=step.num_sequences,
        block_tables=(ctypes.POINTER(ctypes.c_int32) * len(tables))(*tables),
        block_table_widths=(ctypes.c_int32 * len(tables))(*(table.shape[1] for table in step.block_tables)),
        num_kv_groups=len(tables),
        logit_rows=pointer(step.logit_rows, ctypes.c_int32),
        needs_logits=pointer(step.needs_logits, ctypes.c_uint8),
        num_logit_rows=step.num_rows,
        token_sources=pointer(step.token_sources, TokenSourceStruct),
        num_token_sources=len(step.token_sources),
        num_candidates=pointer(step.num_candidates, ctypes.c_int32),
    )


class Caller:
    """Calls a table as the library does."""

    def __init__(self, table: SessionTable, **config: Any) -> None:
        self.table = table
        self.struct = table.struct
        self.session = ctypes.c_void_p()
        self.config = SessionConfigStruct(struct_size=ctypes.sizeof(SessionConfigStruct), **config)
        self.properties = SessionPropertiesStruct(struct_size=ctypes.sizeof(SessionPropertiesStruct))

    def create(self) -> int | None:
        return self.struct.create(  # type: ignore[no-any-return]
            None, ctypes.byref(self.config), ctypes.byref(self.properties), ctypes.byref(self.session)
        )

    def enqueue(self, described: Described) -> None:
        """What is described must live until the step is collected, as the library's does."""
        check(LIBRARY, self.struct.enqueue(self.session, ctypes.byref(described.struct)))

    def collect(self, step_id: int) -> StepResultStruct:
        result = StepResultStruct(struct_size=ctypes.sizeof(StepResultStruct))
        check(LIBRARY, self.struct.collect(self.session, step_id, ctypes.byref(result)))
        return result

    def is_done(self, step_id: int) -> int:
        done = ctypes.c_uint32(9)
        check(LIBRARY, self.struct.is_done(self.session, step_id, ctypes.byref(done)))
        return done.value

    def destroy(self) -> None:
        self.struct.destroy(self.session)


def opened(scripted: Scripted) -> Caller:
    caller = Caller(SessionTable(LIBRARY, lambda config, exchange: scripted))
    check(LIBRARY, caller.create())
    return caller


def test_what_the_engine_is_told() -> None:
    caller = opened(Scripted())
    answer = caller.properties
    assert (answer.num_blocks, answer.max_in_flight, answer.chooses_tokens, answer.max_candidates) == (17, 2, 1, 3)
    gc.collect()
    assert answer.device.decode() == "Gerät 🙂"
    assert caller.session.value  # or there would be none
    assert not caller.struct.cancel


def test_the_config_reaches_whoever_opens() -> None:
    seen: list[Any] = []

    def open_session(config: SessionConfigStruct, exchange: object) -> Scripted:
        seen.append((config.engine_path, config.kv_cache_bytes, config.rank, exchange))
        return Scripted()

    caller = Caller(SessionTable(LIBRARY, open_session), engine_path=b"/some/engine", kv_cache_bytes=1 << 40, rank=3)
    check(LIBRARY, caller.create())
    assert seen == [(b"/some/engine", 1 << 40, 3, None)]


def test_a_step_arrives_as_it_was_described() -> None:
    scripted = Scripted()
    caller = opened(scripted)
    pieces = [
        Piece([5, 6, 7], 2, [[1, 2], [3]], {0: LOGITS, 2: 4}),
        Piece([8], 0, [[9], [10]]),
    ]
    described = Described(make_step((1 << 40) + 3, pieces))
    step = described.step
    caller.enqueue(described)
    (got,) = scripted.steps
    assert got.id == step.id
    for name in ("token_ids", "query_starts", "context_lengths", "logit_rows", "needs_logits", "num_candidates"):
        assert getattr(got, name).tolist() == getattr(step, name).tolist(), name
        assert getattr(got, name).dtype == getattr(step, name).dtype, name
    assert [table.tolist() for table in got.block_tables] == [[[1, 2], [9, -1]], [[3], [10]]]
    assert got.token_sources.tolist() == []


def test_a_step_without_rows_and_with_sources() -> None:
    scripted = Scripted()
    caller = opened(scripted)
    step = make_step(4, [Piece([5], 0, [[0]])])
    sources = np.array([(0, 2, 3)], step.token_sources.dtype)
    described = Described(Step(**{**vars(step), "token_sources": sources}))
    caller.enqueue(described)
    (got,) = scripted.steps
    assert (got.num_rows, got.needs_logits.tolist(), got.num_candidates.tolist()) == (0, [], [])
    assert got.token_sources.tolist() == [(0, 2, 3)]


def test_pointers_of_a_result() -> None:
    caller = opened(Scripted())
    result = caller.collect(5)
    assert result.logits[:4] == [0, 0.5, 1, 1.5]
    assert result.token_ids[:3] == [10, 11, 12]
    assert result.candidate_ids[:6] == [0, 1, 2, 3, 4, 5]
    assert result.candidate_logits[:6] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert result.log_sums[:2] == [0, 0.125]


def test_a_result_lives_until_the_next_one() -> None:
    scripted = Scripted()
    caller = opened(scripted)
    result = caller.collect(5)
    scripted.result = result_of(1, 0, 0)
    gc.collect()
    junk = [np.full(64, 77, np.float32) for _ in range(100)]
    assert result.candidate_logits[:6] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    assert len(junk) == 100


@pytest.mark.parametrize("empty", ["logits", "candidates", "tokens"])
def test_what_is_not_there_is_null(empty: str) -> None:
    everything = result_of(3, 1, 2)
    results = {
        "logits": result_of(3, 0, 2),
        "candidates": result_of(3, 1, 0),
        "tokens": StepResult(**{**vars(everything), "token_ids": None}),
    }
    result = opened(Scripted(result=results[empty])).collect(5)
    assert bool(result.logits) == (empty != "logits")
    assert bool(result.token_ids) == (empty != "tokens")
    for pointer in (result.candidate_ids, result.candidate_logits, result.log_sums):
        assert bool(pointer) == (empty != "candidates")


def test_whether_a_step_is_done() -> None:
    caller = opened(Scripted())
    assert (caller.is_done(7), caller.is_done(8)) == (1, 0)


def test_a_session_is_closed_once() -> None:
    scripted = Scripted()
    caller = opened(scripted)
    caller.destroy()
    caller.destroy()
    assert scripted.calls == [("close",)]


def test_a_table_that_made_no_session_destroys_none() -> None:
    Caller(SessionTable(LIBRARY, lambda config, exchange: Scripted())).destroy()


ERRORS = [
    (NativeError(ErrorCode.RESOURCE_EXHAUSTED, "no room: buy some"), 7, "no room: buy some"),
    (EngineLoadError(ErrorCode.UNSUPPORTED_ENGINE, "another GPU"), 5, "another GPU"),
    (DeviceError("cuMemAlloc: launch failed"), 9, "DeviceError: cuMemAlloc: launch failed"),
    (ValueError("Größe 🙂"), 9, "ValueError: Größe 🙂"),
    (KeyError("x"), 9, "KeyError: 'x'"),
    (EngineNotFoundError("no engine"), 2, "no engine"),
    (EngineIOError("engine.json: denied"), 3, "engine.json: denied"),
    (CorruptEngineError("engine.json: no JSON"), 4, "engine.json: no JSON"),
    (UnsupportedEngineError("of tomorrow"), 5, "of tomorrow"),
    (EngineExistsError("is there"), 9, "is there"),
    (ValueError("/a/\udcff/path"), 9, "ValueError: /a/\\udcff/path"),  # of bytes that are no UTF-8
    (AssertionError(), 9, "AssertionError"),
]


@pytest.mark.parametrize(("error", "code", "text"), ERRORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("call", ["create", "enqueue", "collect", "is_done"])
def test_exceptions_become_errors(call: str, error: Exception, code: int, text: str) -> None:
    def fail(config: object, exchange: object) -> Scripted:
        raise error

    if call == "create":
        caller = Caller(SessionTable(LIBRARY, fail))
        pointer = caller.create()
        assert not caller.session.value
    else:
        caller = opened(Scripted(fails={call: error}))
        described = Described(make_step(1, [Piece([5], 0, [[0]])]))
        arguments: dict[str, Any] = {
            "enqueue": [ctypes.byref(described.struct)],
            "collect": [1, ctypes.byref(StepResultStruct())],
            "is_done": [1, ctypes.byref(ctypes.c_uint32())],
        }
        pointer = getattr(caller.struct, call)(caller.session, *arguments[call])
    seen = read_error(LIBRARY, pointer)
    LIBRARY.precast_error_delete(pointer)
    assert isinstance(seen, NativeError)
    assert (seen.code, str(seen).removesuffix(": ")) == (code, text)


def test_a_session_that_cannot_close_says_so_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    caller = opened(Scripted(fails={"close": DeviceError("cuMemFree: launch failed")}))
    caller.destroy()  # void in C
    said = "the session was not closed in order: DeviceError: cuMemFree: launch failed\n"
    assert capfd.readouterr().err == said


# ------------------------------------------------------------------------------------------------------------- exchange

EXCHANGE: Any = next(kind for name, kind, *_ in SessionConfigStruct._fields_ if name == "exchange")


def exchanging(world_size: int, exchange: Any) -> list[Sequence[bytes]]:
    """What every rank's bytes are, as a session sees them that shows b"abc"."""
    seen: list[Sequence[bytes]] = []

    def open_session(config: object, show: Any) -> Scripted:
        seen.append(show(b"abc"))
        return Scripted()

    caller = Caller(SessionTable(LIBRARY, open_session), exchange=exchange, exchange_data=5, world_size=world_size)
    check(LIBRARY, caller.create())
    return seen


def test_ranks_show_each_other_bytes() -> None:
    def exchange(data: int, mine: bytes, size: int, everything: int) -> None:
        assert (data, mine, size) == (5, b"abc", 3)
        ctypes.memmove(everything, b"abcdefghi", 9)

    assert exchanging(3, EXCHANGE(exchange)) == [[b"abc", b"def", b"ghi"]]


def test_an_exchange_that_fails() -> None:
    def exchange(data: int, mine: bytes, size: int, everything: int) -> int:
        error: int = LIBRARY.precast_error_new(int(ErrorCode.RANK_FAILED), b"the other ranks have ended")
        return error

    with pytest.raises(NativeError, match=r"^the other ranks have ended$") as caught:
        exchanging(2, EXCHANGE(exchange))
    assert caught.value.code == ErrorCode.RANK_FAILED


# ------------------------------------------------------------------------------------------------------- the real thing


@pytest.fixture
def caller(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """The table of worker.py, on an engine."""
    put_fakes_in_place(monkeypatch)
    yield Caller(
        SessionTable(LIBRARY, worker.open_rank),
        engine_path=bytes(fake_engine("float16")),
        kv_cache_bytes=1 << 20,
        max_batch_size=4,
        max_num_tokens=32,
        world_size=1,
    )
    driver.reset()


def test_steps_through_the_table(caller: Caller, reference: Any) -> None:
    check(LIBRARY, caller.create())
    assert caller.properties.device == b"Fake GPU"
    tokens = [0, 17, 133, 42, 201]
    first = Described(make_step(1, [Piece(tokens, 0, [[0]], {4: LOGITS})]))
    caller.enqueue(first)
    expected = reference("float16", "float16")(tokens)[-1]
    while not caller.is_done(1):
        pass
    result = caller.collect(1)
    assert np.allclose(result.logits[:320], expected, atol=0.1)
    assert result.token_ids[0] == int(expected.argmax())
    assert not result.candidate_ids
    with pytest.raises(NativeError, match=r"^ValueError: step 1 is not the oldest in flight, which is none$"):
        caller.collect(1)
    caller.destroy()
    assert driver.misuse == []
    assert driver.leaks() == []


def test_an_engine_that_is_refused(caller: Caller) -> None:
    driver.reset(capability=(7, 5))
    with pytest.raises(EngineLoadError, match=r"compute capability 7\.5, and the engine needs 8\.0 or later"):
        check(LIBRARY, caller.create())
    caller.destroy()
    assert driver.leaks() == []


def test_an_engine_that_is_not_there(caller: Caller, tmp_path: Any) -> None:
    caller.config.engine_path = bytes(tmp_path / "nothing")
    with pytest.raises(EngineLoadError, match="nothing") as caught:
        check(LIBRARY, caller.create())
    assert caught.value.code == ErrorCode.NOT_FOUND


def test_a_device_that_fails_is_reported_and_closes(caller: Caller) -> None:
    driver.reset(fail={"call": "cuEventSynchronize", "status": 719})
    check(LIBRARY, caller.create())
    described = Described(make_step(1, [Piece([0, 17], 0, [[0]], {1: LOGITS})]))
    caller.enqueue(described)
    for call in (caller.collect, caller.is_done):
        with pytest.raises(NativeError, match=r"^DeviceError: cuEventSynchronize: launch failed$") as caught:
            call(1)
        assert caught.value.code == ErrorCode.INTERNAL
    caller.destroy()
    assert driver.misuse == []
