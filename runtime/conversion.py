"""Values to the structs of ``precast.h``, and back."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

from precast.runtime import library as native
from precast.runtime.errors import ErrorCode, InvalidRequestError, NativeError
from precast.runtime.requests import (
    EngineOptions,
    EngineRequest,
    Event,
    FinishedEvent,
    FinishReason,
    TokenEvent,
    TokenLogprob,
)
from precast.runtime.structs import (
    EVENT_FINISHED,
    EVENT_TOKEN,
    EngineOptionsStruct,
    EventStruct,
    LogCallback,
    LogitBiasStruct,
    LogprobStruct,
    RequestStruct,
    RetentionStruct,
    SamplingStruct,
    TokenSequenceStruct,
)

FINISH_REASONS = {
    1: FinishReason.STOP,
    2: FinishReason.LENGTH,
    3: FinishReason.CANCELLED,
    4: FinishReason.ERROR,
    5: FinishReason.TIMEOUT,
}

_LOGPROB_FORMAT = "=ifI"
assert struct.calcsize(_LOGPROB_FORMAT) == ctypes.sizeof(LogprobStruct)


def options_struct(library: ctypes.CDLL, options: EngineOptions) -> EngineOptionsStruct:
    """``precast_engine_options_t``, with ONNX Runtime's library found where Python has installed it.

    The struct keeps what it points to alive: it must live as long as the engine where ``log`` is set.
    """
    result = EngineOptionsStruct()
    library.precast_engine_options_init(ctypes.byref(result), ctypes.sizeof(result))
    for name in (
        "num_threads",
        "max_batch_size",
        "max_num_tokens",
        "max_seq_len",
        "kv_cache_bytes",
        "max_queue_size",
        "iteration_stats_size",
        "kv_events_size",
        "rank_timeout_s",
    ):
        value = getattr(options, name)
        if value is not None:
            setattr(result, name, value)
    chosen = options.onnxruntime_path or os.environ.get("PRECAST_ONNXRUNTIME") or native.onnxruntime_path()
    result.onnxruntime_path = os.fsencode(chosen) if chosen else None
    result.worker_path = os.fsencode(options.worker_path) if options.worker_path else None
    # What runs on a GPU is installed beside this package. An interpreter that is embedded may not know where it is.
    python = options.python_path or os.environ.get("PRECAST_PYTHON") or sys.executable
    result.python_path = os.fsencode(python) if python else None
    result.kernel_level = options.kernel_level.encode() if options.kernel_level else None
    result.capacity_policy = options.capacity_policy
    result.disable_block_reuse = not options.enable_block_reuse
    log = options.log
    if log is not None:
        result.log = LogCallback(lambda _, level, message: log(level, message.decode("utf-8", "replace")))
    return result


def request_struct(request_id: int, request: EngineRequest) -> RequestStruct:
    """``precast_request_t``; the struct keeps the arrays that it points to alive.

    Raises:
        InvalidRequestError: a token id that is no 32-bit integer.
    """
    sampling = _sampling_struct(request)
    retention = [RetentionStruct(*part) for part in request.retention]
    result = RequestStruct()
    result.struct_size = ctypes.sizeof(result)
    result.id = request_id
    result.prompt_token_ids = int32_array("prompt_token_ids", request.prompt_token_ids)
    result.num_prompt_tokens = len(request.prompt_token_ids)
    result.sampling = ctypes.pointer(sampling)
    result.n = 1
    result.priority = request.priority
    result.deadline_ns = request.deadline_ns
    result.cache_salt = request.cache_salt
    result.cache_salt_size = len(request.cache_salt)
    result.skip_block_reuse = request.skip_block_reuse
    result.retention = (RetentionStruct * len(retention))(*retention)
    result.num_retention = len(retention)
    return result


def _sampling_struct(request: EngineRequest) -> SamplingStruct:
    bad_words = [TokenSequenceStruct(int32_array("bad_words", word), len(word)) for word in request.bad_words]
    biased_ids = int32_array("logit_bias", list(request.logit_bias))
    biases = request.logit_bias.values()
    logit_bias = [LogitBiasStruct(token_id, bias) for token_id, bias in zip(biased_ids, biases, strict=True)]
    result = SamplingStruct()
    result.struct_size = ctypes.sizeof(result)
    result.max_tokens = request.max_tokens or 0
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "ignore_eos",
        "min_tokens",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "num_logprobs",
    ):
        setattr(result, name, getattr(request, name))
    result.seed = request.seed & (2**64 - 1)
    for name in ("stop_token_ids", "allowed_token_ids"):
        ids = getattr(request, name)
        setattr(result, name, int32_array(name, ids))
        setattr(result, f"num_{name}", len(ids))
    result.bad_words = (TokenSequenceStruct * len(bad_words))(*bad_words)
    result.num_bad_words = len(bad_words)
    result.logit_bias = (LogitBiasStruct * len(logit_bias))(*logit_bias)
    result.num_logit_bias = len(logit_bias)
    return result


def int32_array(name: str, values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    """The values for C. Raises InvalidRequestError for one that does not fit."""
    for value in values:
        if not -(2**31) <= value < 2**31:  # ctypes would silently keep the lowest 32 bits
            raise InvalidRequestError(ErrorCode.INVALID_ARGUMENT, f"{name} has {value}, which is no 32-bit integer")
    return (ctypes.c_int32 * len(values))(*values)


def take_event(library: ctypes.CDLL, event: EventStruct) -> Event | None:
    """The event as a value; what it points to is released. None for a kind that this binding does not know."""
    try:
        if event.kind == EVENT_TOKEN:
            return TokenEvent(event.token_id, event.time_ns, _logprobs(event))
        if event.kind == EVENT_FINISHED:
            return _finished(library, event)
        return None
    finally:
        if event.error or event.num_logprobs:
            library.precast_event_clear(ctypes.byref(event), ctypes.sizeof(event))


def _logprobs(event: EventStruct) -> Sequence[TokenLogprob]:
    if not event.num_logprobs:
        return ()
    # With a whole vocabulary these are 10^5 numbers a token, which ctypes would read one by one.
    packed = ctypes.string_at(event.logprobs, event.num_logprobs * ctypes.sizeof(LogprobStruct))
    return list(map(TokenLogprob._make, struct.iter_unpack(_LOGPROB_FORMAT, packed)))


def _finished(library: ctypes.CDLL, event: EventStruct) -> FinishedEvent:
    error = native.read_error(library, event.error)
    reason = FINISH_REASONS.get(event.finish_reason, FinishReason.ERROR)
    if reason is FinishReason.ERROR and error is None:
        error = NativeError(ErrorCode.INTERNAL, f"the library ended the request with reason {event.finish_reason}")
    return FinishedEvent(
        reason=reason,
        stop_token_id=event.stop_token_id if event.stop_token_id >= 0 else None,
        num_prompt_tokens=event.num_prompt_tokens,
        num_output_tokens=event.num_output_tokens,
        time_ns=event.time_ns,
        error=error,
        num_cached_tokens=event.num_cached_tokens,
        num_preemptions=event.num_preemptions,
        first_scheduled_ns=event.first_scheduled_ns or None,
    )
