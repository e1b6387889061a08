"""Opening a rank: how large its KV pools are, and that nothing is left where it fails half-way, wherever that is."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.plugins.device.driver import DeviceError
from precast.runtime.device.kv_pools import FREE_MEMORY_FRACTION
from precast.runtime.errors import EngineLoadError, ErrorCode, NativeError
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver
from tests.runtime.tensorrt.worlds import FakeEngine, Logits, error, open_engine, open_world

PROMPT = [0, 17, 133, 42, 201]
OUT_OF_MEMORY = 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`machine(num_devices=2)`: this process has a new one, with these settings."""

    def change(**settings: Any) -> None:
        put_fakes_in_place(monkeypatch)
        driver.reset(**settings)

    yield change
    driver.reset()


def opens_and_leaves_nothing(engine: Path, expected: type[Exception], **limits: Any) -> Exception:
    """What opening fails with. Its frames are alive when it is looked at what is left: they must hold nothing up."""
    try:
        open_engine(engine, **limits)
    except expected as caught:
        assert driver.misuse == [], driver.misuse
        assert driver.leaks() == [], driver.leaks()
        return caught
    pytest.fail("it has opened")


# ------------------------------------------------------------------------------------------------------------ KV pools


def test_pools_have_what_is_asked_for_and_one_block_more(fake_engine: FakeEngine) -> None:
    engine = fake_engine("float16")
    page = kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)
    for bytes_asked, num_blocks in ((7 * page, 7), (8 * page - 1, 7), (page, 1)):
        with open_world(engine, kv_cache_bytes=bytes_asked) as world:
            assert world.opened.num_blocks == num_blocks
            shapes = {name: shape for call, name, shape in _set_shapes() if name.startswith("kv.")}
            assert len(shapes) == 2
            for rows, columns in shapes.values():
                assert rows == num_blocks + 1
                assert 2 * 2 * columns == page  # two layers, of two bytes


def _set_shapes() -> list[tuple[Any, ...]]:
    return [call for call in driver.calls if call[0] == "set_input_shape"]


def test_pools_begin_as_zeros(fake_engine: FakeEngine) -> None:
    """What is never written is multiplied by weights of 0, which must not meet NaN; new memory here is full of them."""
    with open_world(fake_engine("float16")) as world:
        pools = world.pools()
        assert [pool.shape[0] for pool in pools] == [world.opened.num_blocks + 1] * 2
        assert not any(pool.any() for pool in pools)


@pytest.mark.parametrize("weights", ["inside", "separate"])
def test_pools_take_a_part_of_what_is_free_when_the_plan_is_loaded(weights: str, fake_engine: FakeEngine) -> None:
    engine = fake_engine("float16", weights=weights)
    page = kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)
    free = 8 << 20
    with open_world(engine, {"free_bytes": free}, kv_cache_bytes=0) as world:
        pools = sum(pool.nbytes for pool in world.pools())
        others = MACHINE.devices[0].used_bytes - pools
        assert pools == (world.opened.num_blocks + 1) * page
        assert 0 <= FREE_MEMORY_FRACTION * (free - others) - pools < page

        assert others > 250_000  # where weights are


def test_groups_of_layers_share_pools(fake_engine: FakeEngine) -> None:
    """Of two groups with one and two layers, the smaller has no memory of its own."""
    engine = fake_engine("qwen2_window", max_seq_len=64)
    with open_world(engine) as world:
        caches = world.manifest.ranks[0].kv_caches
        assert len(world.manifest.ranks[0].kv_groups) == 2
        assert len(caches) == 3
        assert len(world.pools()) == 2


def test_too_little_memory_for_a_block_is_one_sentence(fake_engine: FakeEngine, machine: Callable[..., None]) -> None:
    engine = fake_engine("float16")
    page = kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)
    with open_world(engine, kv_cache_bytes=page) as world:
        others = MACHINE.devices[0].used_bytes - 2 * page
        assert world.opened.num_blocks == 1
    machine(free_bytes=others + 2 * page, name="Small GPU")  # of which 0.9 hold less than two
    caught = opens_and_leaves_nothing(engine, NativeError, kv_cache_bytes=0)
    assert isinstance(caught, NativeError)
    assert caught.code == ErrorCode.RESOURCE_EXHAUSTED
    assert str(caught) == (
        f"Small GPU: {2 * page} bytes of memory are free when the network is loaded, and a KV block takes {page}: "
        "free some, or use a GPU with more"
    )


def test_less_than_a_block_was_asked_for(fake_engine: FakeEngine, machine: Callable[..., None]) -> None:
    machine()
    engine = fake_engine("float16")
    page = kv_page_bytes(read_manifest(engine).ranks[0].kv_caches)
    caught = opens_and_leaves_nothing(engine, NativeError, kv_cache_bytes=page - 1)
    assert isinstance(caught, NativeError)
    assert caught.code == ErrorCode.RESOURCE_EXHAUSTED
    assert str(caught) == (
        f"kv_cache_bytes is {page - 1}, and a KV block of all ranks takes {page}: give at least that"
    )


def test_more_than_there_is_was_asked_for(fake_engine: FakeEngine, machine: Callable[..., None]) -> None:
    machine()
    caught = opens_and_leaves_nothing(fake_engine("float16"), Exception, kv_cache_bytes=1 << 30)
    assert isinstance(caught, NativeError)
    assert caught.code == ErrorCode.RESOURCE_EXHAUSTED
    assert "the KV cache" in str(caught)
    assert "bytes" in str(caught)


# ------------------------------------------------------------------------------------------------------------- failing

CALLS = {
    "cuMemAlloc": "separate",
    "cuMemHostAlloc": "inside",
    "cuMemsetD8Async": "inside",
    "cuMemcpyHtoD": "separate",
    "cuEventCreate": "inside",
    "cuStreamCreate": "inside",
    "cuStreamSynchronize": "inside",
    "cuMemGetInfo": "inside",
    "cuDevicePrimaryCtxRetain": "inside",
    "cuCtxSetCurrent": "inside",
    "cuDeviceGetName": "inside",
    "create_execution_context": "inside",
    "set_optimization_profile_async": "inside",
    "set_input_shape": "inside",
    "deserialize_cuda_engine": "inside",
}
"""What may fail while an engine is opened, and with which weights it is called most often."""
BEFORE_OPENING = {"cuDeviceGetName": 1}
"""Calls of check_device, which come first."""


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_where_a_call_fails_for_the_nth_time(
    call: str, fake_engine: FakeEngine, machine: Callable[..., None]
) -> None:
    engine = fake_engine("float16", weights=CALLS[call])
    with open_world(engine, kv_cache_bytes=0):
        total = sum(name == call for name, *_ in driver.calls)
    first = BEFORE_OPENING.get(call, 0) + 1
    assert total >= first
    for number in range(first, total + 1):
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
        said.add(str(opens_and_leaves_nothing(fake_engine("float16"), NativeError)))
    assert {text.split(" bytes of its memory for ")[1].split(" cannot be had")[0] for text in said} == {
        "activations",
        "the inputs of a step",
        "the tokens of a step",
        "the logits of a step",
        "the KV cache",
    }


@pytest.mark.parametrize("status", [OUT_OF_MEMORY, 719])
def test_a_failed_device_is_left_to_the_end_of_the_process(
    status: int, fake_engine: FakeEngine, machine: Callable[..., None]
) -> None:
    """After an error of the device no call does anything any more: opening must still end, with its first words."""
    machine(fail={"call": "cuMemsetD8Async", "number": 2, "status": status})
    with pytest.raises(RuntimeError, match=r"cuMemsetD8Async: (out of memory|launch failed)"):
        open_engine(fake_engine("float16"))
    assert driver.misuse == []
    assert driver.leaks() == []


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def damaged(fake_engine: FakeEngine, tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    def make(contents: Mapping[str, bytes]) -> Path:
        copy = tmp_path / "engine"
        shutil.copytree(fake_engine("float16", weights="separate"), copy)
        for name, data in contents.items():
            path = copy / name
            path.chmod(0o644)
            path.write_bytes(data)
        return copy

    return make


def test_a_plan_that_tensorrt_refuses(
    damaged: Callable[[Mapping[str, bytes]], Path], machine: Callable[..., None]
) -> None:
    machine()
    engine = damaged({"rank0/model.plan": b"not a plan at all"})
    caught = opens_and_leaves_nothing(engine, EngineLoadError)
    assert isinstance(caught, EngineLoadError)
    assert caught.code == ErrorCode.UNSUPPORTED_ENGINE
    assert str(caught).startswith(f"{engine}/rank0/model.plan: TensorRT refuses the plan: ")
    assert "Serialization assertion failed" in str(caught)


def test_weights_of_another_network(
    damaged: Callable[[Mapping[str, bytes]], Path], fake_engine: FakeEngine, machine: Callable[..., None]
) -> None:
    machine()
    weights = (fake_engine("attention_bias", weights="separate") / "rank0" / "weights.bin").read_bytes()
    engine = damaged({"rank0/weights.bin": weights})
    caught = opens_and_leaves_nothing(engine, EngineLoadError)
    assert isinstance(caught, EngineLoadError)
    assert caught.code == ErrorCode.CORRUPT_ENGINE
    assert str(caught).startswith(f"{engine}/rank0/weights.bin: holds ")
    assert "is no input of rank0/model.plan: copy the engine again or rebuild it" in str(caught)


def test_no_file_stays_open(fake_engine: FakeEngine) -> None:
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as names
    with open_world(fake_engine("float16", weights="separate")):
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        maps = Path("/proc/self/maps").read_text()
        assert "model.plan" not in maps


def test_the_device_has_the_name_that_the_driver_says(fake_engine: FakeEngine) -> None:
    with open_world(fake_engine("float16"), {"name": "NVIDIA L4"}) as world:
        assert world.opened.device_name == "NVIDIA L4"


@pytest.mark.parametrize("max_seq_len", [0, 1, 16, 17, 64])
def test_a_shorter_limit_of_sequences(
    max_seq_len: int, fake_engine: FakeEngine, reference: Callable[..., Logits]
) -> None:
    """Memory for inputs is that of the limit: the largest step within it still fits."""
    expected = reference("float16", "float16")
    with open_world(fake_engine("float16"), max_seq_len=max_seq_len) as world:
        longest = max_seq_len or 64
        tokens = [(3 * i) % 300 + 2 for i in range(longest)]
        pieces = [world.prompt(tokens[:8], 4 * i) for i in range(4)]
        logits = world.run(world.step(pieces)).logits
        assert error(logits, np.stack([expected(tokens[:8])[-1]] * 4)) < 0.004
        for start in range(8, longest, 8):
            pieces = [world.prompt(tokens[start : start + 8], 4 * i, start) for i in range(4)]
            logits = world.run(world.step(pieces)).logits
        assert error(logits[:1], expected(tokens[: max(8, longest)])[-1:]) < 0.004
