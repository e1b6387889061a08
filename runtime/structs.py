"""The structs of ``precast.h`` in ctypes, field by field; what they mean is written there."""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

EVENT_TOKEN = 1
EVENT_FINISHED = 2


# ------------------------------------------------------------------------------------------------- logits processor


class LogitsRowStruct(ctypes.Structure):
    """``precast_logits_row_t``."""

    _fields_ = [
        ("request_id", c_uint64),
        ("sequence", c_uint32),
        ("num_prompt_tokens", c_uint32),
        ("token_ids", POINTER(c_int32)),
        ("num_token_ids", c_size_t),
        ("logits", POINTER(c_float)),
        ("allowed", POINTER(c_uint32)),
        ("error", c_void_p),
    ]


class LogitsProcessorStruct(ctypes.Structure):
    """``precast_logits_processor_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("user_data", c_void_p),
        ("start", CFUNCTYPE(None, c_void_p, POINTER(LogitsRowStruct), c_size_t, c_size_t)),
        ("process", CFUNCTYPE(None, c_void_p, POINTER(LogitsRowStruct), c_size_t, c_size_t, c_size_t)),
    ]


# ------------------------------------------------------------------------------------------------- external session


class TokenSourceStruct(ctypes.Structure):
    """``precast_token_source_t``."""

    _fields_ = [("row", c_int32), ("source_row", c_int32), ("source_step", c_uint64)]


class StepStruct(ctypes.Structure):
    """``precast_step_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("id", c_uint64),
        ("token_ids", POINTER(c_int32)),
        ("num_tokens", c_size_t),
        ("query_starts", POINTER(c_int32)),
        ("context_lengths", POINTER(c_int32)),
        ("num_sequences", c_size_t),
        ("block_tables", POINTER(POINTER(c_int32))),
        ("block_table_widths", POINTER(c_int32)),
        ("num_kv_groups", c_size_t),
        ("logit_rows", POINTER(c_int32)),
        ("needs_logits", POINTER(c_uint8)),
        ("num_logit_rows", c_size_t),
        ("token_sources", POINTER(TokenSourceStruct)),
        ("num_token_sources", c_size_t),
        ("num_candidates", POINTER(c_int32)),
    ]


class StepResultStruct(ctypes.Structure):
    """``precast_step_result_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("logits", POINTER(c_float)),
        ("token_ids", POINTER(c_int32)),
        ("candidate_ids", POINTER(c_int32)),
        ("candidate_logits", POINTER(c_float)),
        ("log_sums", POINTER(c_float)),
    ]


class SessionConfigStruct(ctypes.Structure):
    """``precast_session_config_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("engine_path", c_char_p),
        ("kv_cache_bytes", c_uint64),
        ("max_batch_size", c_uint32),
        ("max_num_tokens", c_uint32),
        ("max_seq_len", c_uint32),
        ("tokens_per_block", c_uint32),
        ("num_kv_groups", c_uint32),
        ("vocab_size", c_uint32),
        ("rank", c_uint32),
        ("world_size", c_uint32),
        ("exchange", CFUNCTYPE(c_void_p, c_void_p, c_char_p, c_size_t, c_void_p)),
        ("exchange_data", c_void_p),
    ]


class SessionPropertiesStruct(ctypes.Structure):
    """``precast_session_properties_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("num_blocks", c_uint32),
        ("max_in_flight", c_uint32),
        ("chooses_tokens", c_uint32),
        ("max_candidates", c_uint32),
        ("device", c_char_p),
    ]


class SessionTableStruct(ctypes.Structure):
    """``precast_session_table_t``. Its functions return a ``precast_error_t *``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("version", c_uint32),
        ("user_data", c_void_p),
        (
            "create",
            CFUNCTYPE(
                c_void_p,
                c_void_p,
                POINTER(SessionConfigStruct),
                POINTER(SessionPropertiesStruct),
                POINTER(c_void_p),
            ),
        ),
        ("enqueue", CFUNCTYPE(c_void_p, c_void_p, POINTER(StepStruct))),
        ("collect", CFUNCTYPE(c_void_p, c_void_p, c_uint64, POINTER(StepResultStruct))),
        ("cancel", CFUNCTYPE(None, c_void_p, c_uint64)),
        ("destroy", CFUNCTYPE(None, c_void_p)),
        ("is_done", CFUNCTYPE(c_void_p, c_void_p, c_uint64, POINTER(c_uint32))),
    ]


# ----------------------------------------------------------------------------------------------------------- engine

LogCallback = CFUNCTYPE(None, c_void_p, c_uint32, c_char_p)
"""``precast_log_callback_t``: user_data, level, message."""


class EngineOptionsStruct(ctypes.Structure):
    """``precast_engine_options_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("onnxruntime_path", c_char_p),
        ("num_threads", c_uint32),
        ("max_batch_size", c_uint32),
        ("max_num_tokens", c_uint32),
        ("max_seq_len", c_uint32),
        ("kv_cache_bytes", c_uint64),
        ("kernel_level", c_char_p),
        ("capacity_policy", c_uint32),
        ("disable_block_reuse", c_uint32),
        ("max_queue_size", c_uint64),
        ("iteration_stats_size", c_uint32),
        ("kv_events_size", c_uint32),
        ("log", LogCallback),
        ("log_user_data", c_void_p),
        ("logits_processor", POINTER(LogitsProcessorStruct)),
        ("session", POINTER(SessionTableStruct)),
        ("worker_path", c_char_p),
        ("rank_timeout_s", c_uint32),
        ("python_path", c_char_p),
    ]


# --------------------------------------------------------------------------------------------------------- requests


class LogitBiasStruct(ctypes.Structure):
    """``precast_logit_bias_t``."""

    _fields_ = [("token_id", c_int32), ("bias", c_float)]


class TokenSequenceStruct(ctypes.Structure):
    """``precast_token_sequence_t``."""

    _fields_ = [("token_ids", POINTER(c_int32)), ("num_token_ids", c_size_t)]


class SamplingStruct(ctypes.Structure):
    """``precast_sampling_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("max_tokens", c_uint32),
        ("temperature", c_float),
        ("top_k", c_uint32),
        ("top_p", c_float),
        ("seed", c_uint64),
        ("stop_token_ids", POINTER(c_int32)),
        ("num_stop_token_ids", c_size_t),
        ("ignore_eos", c_uint32),
        ("min_tokens", c_uint32),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("num_logprobs", c_int32),
        ("bad_words", POINTER(TokenSequenceStruct)),
        ("num_bad_words", c_size_t),
        ("allowed_token_ids", POINTER(c_int32)),
        ("num_allowed_token_ids", c_size_t),
        ("logit_bias", POINTER(LogitBiasStruct)),
        ("num_logit_bias", c_size_t),
    ]


class RetentionStruct(ctypes.Structure):
    """``precast_retention_t``."""

    _fields_ = [
        ("start_token", c_uint32),
        ("end_token", c_uint32),
        ("priority", c_uint32),
        ("duration_ns", c_uint64),
    ]


class RequestStruct(ctypes.Structure):
    """``precast_request_t``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("id", c_uint64),
        ("prompt_token_ids", POINTER(c_int32)),
        ("num_prompt_tokens", c_size_t),
        ("sampling", POINTER(SamplingStruct)),
        ("n", c_uint32),
        ("priority", c_float),
        ("deadline_ns", c_int64),
        ("cache_salt", c_char_p),
        ("cache_salt_size", c_size_t),
        ("skip_block_reuse", c_uint32),
        ("use_logits_processor", c_uint32),
        ("retention", POINTER(RetentionStruct)),
        ("num_retention", c_size_t),
    ]


# ----------------------------------------------------------------------------------------------------------- events


class LogprobStruct(ctypes.Structure):
    """``precast_logprob_t``."""

    _fields_ = [("token_id", c_int32), ("logprob", c_float), ("rank", c_uint32)]


class EventStruct(ctypes.Structure):
    """``precast_event_t``."""

    _fields_ = [
        ("request_id", c_uint64),
        ("sequence", c_uint32),
        ("kind", c_uint32),
        ("finish_reason", c_uint32),
        ("token_id", c_int32),
        ("stop_token_id", c_int32),
        ("is_last", c_uint32),
        ("num_prompt_tokens", c_uint32),
        ("num_output_tokens", c_uint32),
        ("num_cached_tokens", c_uint32),
        ("num_preemptions", c_uint32),
        ("time_ns", c_int64),
        ("first_scheduled_ns", c_int64),
        ("error", c_void_p),
        ("logprobs", POINTER(LogprobStruct)),
        ("num_logprobs", c_size_t),
    ]
