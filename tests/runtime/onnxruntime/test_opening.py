"""Opening engines for ONNX Runtime: the rehearsal, memory, failures of each call, damaged files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.plugins.device.driver import DeviceError
from precast.runtime import EngineLoadError
from precast.runtime.device.kv_pools import FREE_MEMORY_FRACTION
from precast.runtime.errors import ErrorCode, NativeError
from tests.runtime.onnxruntime.cpu_provider import RUN
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.test_opening import (
    OUT_OF_MEMORY,
    opens_and_leaves_nothing,
    test_a_failed_device_is_left_to_the_end_of_the_process,
    test_a_shorter_limit_of_sequences,
    test_groups_of_layers_share_pools,
    test_less_than_a_block_was_asked_for,
    test_more_than_there_is_was_asked_for,
    test_pools_begin_as_zeros,
    test_the_device_has_the_name_that_the_driver_says,
)
from tests.runtime.tensorrt.test_opening import damaged as damaged
from tests.runtime.tensorrt.test_opening import machine as machine
from tests.runtime.tensorrt.worlds import FakeEngine, open_world

pytestmark = pytest.mark.usefixtures("cpu_provider")

__all__ = [
    "test_a_failed_device_is_left_to_the_end_of_the_process",
    "test_a_shorter_limit_of_sequences",
    "test_groups_of_layers_share_pools",
    "test_less_than_a_block_was_asked_for",
    "test_more_than_there_is_was_asked_for",
    "test_pools_begin_as_zeros",
    "test_the_device_has_the_name_that_the_driver_says",
]

CALLS = (
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemsetD8Async",
    "cuMemcpyHtoD",
    "cuMemcpyHtoDAsync",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuMemGetInfo",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    RUN,
)
"""What may fail while an engine is opened."""


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_where_a_call_fails_for_the_nth_time(
    call: str, fake_engine: FakeEngine, machine: Callable[..., None]
) -> None:
    engine = fake_engine("float16")
    with open_world(engine, kv_cache_bytes=0):
        total = sum(name == call for name, *_ in driver.calls)
    assert total >= 1
    for number in range(1, total + 1):
        machine(fail={"call": call, "number": number, "status": OUT_OF_MEMORY})
        caught = opens_and_leaves_nothing(engine, RuntimeError, kv_cache_bytes=0)
        assert isinstance(caught, NativeError | DeviceError)
        assert "\n" not in str(caught)
        assert len(str(caught)) > len(call)


def test_the_sentence_says_what_there_was_no_memory_for(fake_engine: FakeEngine, machine: Callable[..., None]) -> None:
    with open_world(fake_engine("float16")):
        total = sum(name == "cuMemAlloc" for name, *_ in driver.calls)
    said = set()
    for number in range(1, total + 1):
        machine(fail={"call": "cuMemAlloc", "number": number, "status": OUT_OF_MEMORY})
        said.add(str(opens_and_leaves_nothing(fake_engine("float16"), RuntimeError)))
    found = {text.split(" bytes of its memory for ")[1].split(" cannot be had")[0] for text in said}
    assert {text for text in found if not text.startswith("the weight ")} == {
        "what ops work in",
        "the inputs of a step",
        "the tokens of a step",
        "the logits of a step",
        "the KV cache",
    }


def test_the_largest_step_runs_before_pools_are_sized(fake_engine: FakeEngine) -> None:
    """What it takes is not there any more when what is free goes to the KV cache."""
    engine = fake_engine("float16")
    page = kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)
    free = 8 << 20
    with open_world(engine, {"free_bytes": free}, kv_cache_bytes=0) as world:
        names = [name for name, *_ in driver.calls]
        last_run = len(names) - 1 - names[::-1].index(RUN)
        assert last_run < names.index("cuMemGetInfo")
        pools = sum(pool.nbytes for pool in world.pools())
        others = MACHINE.devices[0].used_bytes - pools
        assert pools == (world.opened.num_blocks + 1) * page
        assert 0 <= FREE_MEMORY_FRACTION * (free - others) - pools < page


def rehearsed(engine: Path, **limits: Any) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of each step of the rehearsal."""
    with open_world(engine, **limits):
        steps: list[dict[str, tuple[int, ...]]] = []
        for call, *arguments in driver.calls:
            if call == "set_input_shape":
                name, shape = arguments
                if name == "token_ids":
                    steps.append({})
                steps[-1][name] = shape
    return steps


def test_the_largest_steps_are_as_large_as_a_step_can_be(fake_engine: FakeEngine) -> None:
    few, *steps = rehearsed(fake_engine("float16", max_num_tokens=128), max_num_tokens=128)
    assert (few["token_ids"], few["context_lengths"], few["logit_rows"]) == ((128,), (2,), (1,))
    assert steps[0]["token_ids"] == (128,)
    assert steps[0]["context_lengths"] == steps[0]["logit_rows"] == (4,)
    assert {step["block_tables.0"][1] for step in (few, *steps)} == {4}


def test_smaller_steps_are_rehearsed_too(fake_engine: FakeEngine) -> None:
    steps = rehearsed(fake_engine("float16", max_num_tokens=256), max_num_tokens=256)
    assert [step["token_ids"] for step in steps] == [(256,), (256,), (192,), (128,), (96,), (64,), (48,)]


def test_a_step_has_no_more_tokens_than_fit_into_its_sequences(fake_engine: FakeEngine) -> None:
    steps = rehearsed(fake_engine("float16", max_num_tokens=300), max_num_tokens=300, max_seq_len=17)
    assert max(step["token_ids"] for step in steps) == (4 * 32,)  # two blocks of each


def test_one_sequence_of_one_token(fake_engine: FakeEngine) -> None:
    steps = rehearsed(fake_engine("float16"), max_num_tokens=1, max_batch_size=1, max_seq_len=1)
    assert [step["token_ids"] for step in steps] == [(1,)]  # the second replays the first


def test_later_steps_need_no_more_to_work_in(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16")) as world:
        before = sum(name == "cuMemAlloc" for name, *_ in driver.calls)
        world.run(world.step([world.prompt(list(range(2, 34)), 0)]))
        for i in range(4):
            world.run(world.step([world.prompt([5, 6, 7], 4 * i) for i in range(i + 1)]))
        assert sum(name == "cuMemAlloc" for name, *_ in driver.calls) == before


@pytest.mark.parametrize(
    ("data", "text"), [(b"not a graph at all", "model.onnx"), (b"", "model.onnx")], ids=["other bytes", "nothing"]
)
def test_a_graph_that_onnx_runtime_refuses(
    data: bytes,
    text: str,
    damaged: Callable[[Mapping[str, bytes]], Path],
    machine: Callable[..., None],
) -> None:
    machine()
    engine = damaged({"rank0/model.onnx": data})
    caught = opens_and_leaves_nothing(engine, EngineLoadError)
    assert isinstance(caught, EngineLoadError)
    assert caught.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(caught).startswith("ONNX Runtime ")
    assert text in str(caught)


def test_weights_of_another_network(
    damaged: Callable[[Mapping[str, bytes]], Path], fake_engine: FakeEngine, machine: Callable[..., None]
) -> None:
    machine()
    weights = (fake_engine("attention_bias") / "rank0" / "weights.bin").read_bytes()
    caught = opens_and_leaves_nothing(damaged({"rank0/weights.bin": weights}), EngineLoadError)
    assert isinstance(caught, EngineLoadError)
    assert caught.code == ErrorCode.CORRUPT_ENGINE
    assert "is no input of rank0/model.onnx: copy the engine again or rebuild it" in str(caught)
