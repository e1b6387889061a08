"""Requests on engines for ONNX Runtime on GPUs: the native scheduler here, the session in a worker process with a fake
device.

What requests give is what transformers computes, or what they give alone, whatever runs beside them.
"""

import pytest

from precast.runtime import Engine
from tests.processes import name_of
from tests.runtime.tensorrt import test_end_to_end as of_tensorrt
from tests.runtime.tensorrt.test_end_to_end import alone as alone
from tests.runtime.tensorrt.test_end_to_end import engine as engine
from tests.runtime.tensorrt.test_end_to_end import (
    test_cancelling_one_of_several,
    test_many_prompts_at_once_and_in_chunks,
    test_preempted_requests_give_the_same_tokens,
    test_prefixes_are_reused,
    test_prompts_one_by_one,
    test_rows_that_are_nan_fail_their_own_request,
    test_sampling_beside_others_and_alone,
    test_seeds_differ,
    test_sequences_up_to_the_limit,
    test_stop_tokens,
)
from tests.runtime.tensorrt.test_end_to_end import workers as workers
from tests.runtime.tensorrt.workers import Workers
from tests.runtime.tensorrt.worlds import FakeEngine

pytestmark = pytest.mark.usefixtures("cpu_workers")

__all__ = [
    "test_cancelling_one_of_several",
    "test_many_prompts_at_once_and_in_chunks",
    "test_preempted_requests_give_the_same_tokens",
    "test_prefixes_are_reused",
    "test_prompts_one_by_one",
    "test_rows_that_are_nan_fail_their_own_request",
    "test_sampling_beside_others_and_alone",
    "test_seeds_differ",
    "test_sequences_up_to_the_limit",
    "test_stop_tokens",
]


def test_an_engine_says_what_it_runs_on(engine: Engine, workers: Workers) -> None:
    info = engine.info
    assert (info["backend"], info["device"]) == ("onnxruntime-cuda", "Fake GPU")
    assert (info["max_batch_size"], info["max_num_tokens"]) == (4, 6)
    assert info["kv_cache_bytes"] < 64 << 20  # of the fake device
    assert any(name_of(pid).startswith("python") for pid in workers.running())


def test_a_model_with_windows(fake_engine: FakeEngine) -> None:
    of_tensorrt.test_models_with_windows_and_of_bfloat16("qwen2_window", fake_engine)
