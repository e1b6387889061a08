"""Values become the structs of precast.h, and come back."""

import ctypes
import gc
from typing import Any

import pytest

from precast.runtime import (
    CapacityPolicy,
    EngineOptions,
    EngineRequest,
    FinishedEvent,
    FinishReason,
    InvalidRequestError,
    Retention,
    TokenEvent,
    TokenLogprob,
    library,
)
from precast.runtime.conversion import options_struct, request_struct, take_event
from precast.runtime.structs import EVENT_FINISHED, EVENT_TOKEN, EventStruct, LogprobStruct, SamplingStruct


@pytest.fixture(scope="module")
def precast() -> ctypes.CDLL:
    return library.load_library()


def test_every_field_of_a_request_arrives() -> None:
    request = EngineRequest(
        [7, 8, 9],
        max_tokens=11,
        temperature=0.25,
        top_k=12,
        top_p=0.5,
        seed=-1,
        stop_token_ids=[13, 14],
        ignore_eos=True,
        min_tokens=2,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        num_logprobs=3,
        bad_words=[[1], [2, 3]],
        allowed_token_ids=[4, 5, 6],
        logit_bias={20: -1.5, 21: float("-inf")},
        priority=0.75,
        deadline_ns=2**40,
        cache_salt=b"a\0b",
        skip_block_reuse=True,
        retention=[Retention(0, 2, 90, 5), Retention(3, 0, 10)],
    )
    struct = request_struct(2**63, request)
    gc.collect()  # it must keep alive what it points to
    sampling = struct.sampling.contents
    assert (struct.struct_size, struct.id, struct.n) == (ctypes.sizeof(struct), 2**63, 1)
    assert struct.prompt_token_ids[: struct.num_prompt_tokens] == [7, 8, 9]
    assert (struct.priority, struct.deadline_ns, struct.skip_block_reuse) == (0.75, 2**40, 1)
    salt = ctypes.cast(ctypes.addressof(struct) + type(struct).cache_salt.offset, ctypes.POINTER(ctypes.c_void_p))
    assert ctypes.string_at(salt.contents.value or 0, struct.cache_salt_size) == b"a\0b"
    parts = [struct.retention[i] for i in range(struct.num_retention)]
    assert [(p.start_token, p.end_token, p.priority, p.duration_ns) for p in parts] == [(0, 2, 90, 5), (3, 0, 10, 0)]
    assert sampling.struct_size == ctypes.sizeof(SamplingStruct)
    plain = {name: getattr(sampling, name) for name, type_, *_ in SamplingStruct._fields_ if "_p" not in type_.__name__}
    for name in ("temperature", "top_k", "top_p", "min_tokens", "min_p", "num_logprobs", "max_tokens"):
        assert plain[name] == getattr(request, name), name
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos"):
        assert plain[name] == getattr(request, name), name
    assert sampling.seed == 2**64 - 1
    assert sampling.stop_token_ids[: sampling.num_stop_token_ids] == [13, 14]
    assert sampling.allowed_token_ids[: sampling.num_allowed_token_ids] == [4, 5, 6]
    words = [sampling.bad_words[i] for i in range(sampling.num_bad_words)]
    assert [word.token_ids[: word.num_token_ids] for word in words] == [[1], [2, 3]]
    biases = [sampling.logit_bias[i] for i in range(sampling.num_logit_bias)]
    assert [(each.token_id, each.bias) for each in biases] == [(20, -1.5), (21, float("-inf"))]


def test_the_defaults_are_those_of_the_library(precast: ctypes.CDLL) -> None:
    theirs = SamplingStruct()
    precast.precast_sampling_init(ctypes.byref(theirs), ctypes.sizeof(theirs))
    ours = request_struct(1, EngineRequest([5])).sampling.contents
    numbers = [name for name, type_, *_ in SamplingStruct._fields_ if issubclass(type_, ctypes._SimpleCData)]
    assert len(numbers) > 15
    assert {name: getattr(ours, name) for name in numbers} == {name: getattr(theirs, name) for name in numbers}


@pytest.mark.parametrize(
    ("field", "value"),
    [("bad_words", [[5], [2**31]]), ("allowed_token_ids", [2**31]), ("logit_bias", {2**31: 1.0})],
)
def test_ids_that_do_not_fit_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"{field} has 2147483648, which is no 32-bit integer"):
        request_struct(1, EngineRequest([5], **{field: value}))


def test_options_arrive(precast: ctypes.CDLL) -> None:
    lines: list[tuple[int, str]] = []
    options = EngineOptions(
        capacity_policy=CapacityPolicy.MAX_UTILIZATION,
        enable_block_reuse=False,
        max_queue_size=7,
        iteration_stats_size=8,
        kv_events_size=9,
        log=lambda level, line: lines.append((level, line)),
    )
    struct = options_struct(precast, options)
    gc.collect()
    given = (struct.capacity_policy, struct.disable_block_reuse, struct.max_queue_size)
    assert given == (1, 1, 7)
    assert (struct.iteration_stats_size, struct.kv_events_size) == (8, 9)
    struct.log(None, 2, "Grüße".encode())
    assert lines == [(2, "Grüße")]


def test_without_a_log_nobody_is_told(precast: ctypes.CDLL) -> None:
    assert not options_struct(precast, EngineOptions()).log


class Clearing:
    """The library, with a count of the events that are given back."""

    def __init__(self, precast: ctypes.CDLL) -> None:
        self._precast = precast
        self.num_cleared = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._precast, name)

    def precast_event_clear(self, *arguments: Any) -> None:
        self.num_cleared += 1


def test_a_token_with_its_logprobs(precast: ctypes.CDLL) -> None:
    logprobs = (LogprobStruct * 2)(LogprobStruct(5, -0.5, 2), LogprobStruct(6, -0.25, 1))
    struct = EventStruct(kind=EVENT_TOKEN, token_id=5, time_ns=77, logprobs=logprobs, num_logprobs=2)
    clearing = Clearing(precast)
    event = take_event(clearing, struct)  # type: ignore[arg-type]
    assert event == TokenEvent(5, 77, [TokenLogprob(5, -0.5, 2), TokenLogprob(6, -0.25, 1)])
    assert clearing.num_cleared == 1


def test_a_token_without_logprobs_has_nothing_to_give_back(precast: ctypes.CDLL) -> None:
    clearing = Clearing(precast)
    event = take_event(clearing, EventStruct(kind=EVENT_TOKEN, token_id=5, time_ns=77))  # type: ignore[arg-type]
    assert event == TokenEvent(5, 77)
    assert clearing.num_cleared == 0


def test_an_end_with_an_error_gives_it_back(precast: ctypes.CDLL) -> None:
    error = precast.precast_error_new(7, b"no memory")
    struct = EventStruct(kind=EVENT_FINISHED, finish_reason=4, stop_token_id=-1, error=error)
    event = take_event(precast, struct)
    assert isinstance(event, FinishedEvent)
    assert (event.reason, str(event.error)) == (FinishReason.ERROR, "no memory")
    assert struct.error is None


def test_the_numbers_of_an_end(precast: ctypes.CDLL) -> None:
    struct = EventStruct(
        kind=EVENT_FINISHED,
        finish_reason=5,
        stop_token_id=-1,
        num_prompt_tokens=1,
        num_output_tokens=2,
        num_cached_tokens=3,
        num_preemptions=4,
        time_ns=5,
        first_scheduled_ns=6,
    )
    assert take_event(precast, struct) == FinishedEvent(FinishReason.TIMEOUT, None, 1, 2, 5, None, 3, 4, 6)


def finished_struct(reason: int) -> EventStruct:
    return EventStruct(kind=EVENT_FINISHED, finish_reason=reason, stop_token_id=-1)


def test_a_finish_reason_of_a_newer_library_is_an_error_and_no_hang(precast: ctypes.CDLL) -> None:
    event = take_event(precast, finished_struct(99))
    assert isinstance(event, FinishedEvent)
    assert event.reason is FinishReason.ERROR
    assert str(event.error) == "the library ended the request with reason 99"


def test_an_event_of_a_newer_library_is_skipped(precast: ctypes.CDLL) -> None:
    assert take_event(precast, EventStruct(kind=99)) is None
