"""Opens engines with CUDA's execution provider on the stub CUDA, and runs steps: python engines.py LIBRARY FOLDER

As sessions.py, but for whole engines: each directory that FOLDER/requests.json names is opened rank by rank as a
process of an engine opens it, and FOLDER/answers.jsonl gets a line for each rank; test_cuda_engines.py describes both.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.checkpoints.engine_manifest import EngineManifest
from precast.plugins.collectives.device.group import Mailboxes
from precast.plugins.onnxruntime.ort_abi import OrtApi
from precast.runtime.device import open_engine
from precast.runtime.device.device import Device
from precast.runtime.device.open_engine import Limits, OpenedSession, open_session
from precast.runtime.device.step import TOKEN_SOURCE, Step
from precast.runtime.onnxruntime.cuda_libraries import open_forget_error
from precast.runtime.onnxruntime.toolkit import CudaToolkit
from tests.runtime.onnxruntime.stub_cuda.driver import StubDriver
from tests.runtime.onnxruntime.stub_cuda.sessions import StubCuda

NUM_BLOCKS = 16
TOKENS_PER_BLOCK = 16
MAILBOX_BYTES = 4096


class StubGroup:
    """A rank's way to others that are not there: it says what it was asked, and does none of it."""

    def __init__(self, cuda: StubCuda, driver: StubDriver, num_ranks: int, tensor_rank: int) -> None:
        self._cuda, self._driver = cuda, driver
        self.num_ranks, self.tensor_rank = num_ranks, tensor_rank
        self.mailboxes = None
        if num_ranks > 1:
            table = cuda.allocate(MAILBOX_BYTES)
            self.mailboxes = Mailboxes(table, table + 256, table + 512, timeout_ms=1000)

    def all_reduce(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        self._say("all_reduce", num_elements, dtype, stream)

    def all_gather(self, x: int, y: int, num_elements: int, dtype: str, stream: int) -> None:
        self._say("all_gather", num_elements, dtype, stream)

    def send(self, x: int, num_elements: int, dtype: str, stream: int) -> None:
        self._say("send", num_elements, dtype, stream)

    def receive(self, y: int, num_elements: int, dtype: str, stream: int) -> None:
        self._say("receive", num_elements, dtype, stream)

    def write_int32(self, address: int, value: int, stream: int) -> None:
        self._driver.cuMemsetD32Async(address, value, 1, stream)

    def check(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def _say(self, what: str, num_elements: int, dtype: str, stream: int) -> None:
        self._cuda.say(f"group {what} {num_elements} {dtype} stream={stream:#x}")


class World:
    """What all engines share."""

    def __init__(self, library: Path) -> None:
        self._api = OrtApi(library)
        self._cuda = StubCuda()
        self._forget_error = open_forget_error(library)

    def answer(self, engine: Path, rank: int) -> dict[str, Any]:
        """A rank's life: see Life in test_cuda_engines.py."""
        manifest, driver = read_manifest(engine), StubDriver(self._cuda)
        _put_in_place(driver)
        toolkit = CudaToolkit(self._api, driver, self._forget_error)
        try:
            opened = self._open(engine, manifest, toolkit, driver, rank)
        except Exception as error:  # noqa: BLE001 - it is the answer
            return {"error": f"{type(error).__name__}: {error}"}
        num_groups = len(manifest.ranks[rank].kv_groups)
        steps: dict[str, list[str]] = {}
        failed = ""
        try:
            for name, step in _steps(num_groups):
                steps[name] = self._enqueue(opened, step)
        except Exception as refused:  # noqa: BLE001 - it is the answer
            failed = f"{type(refused).__name__}: {refused}"
        stream = opened.session._device.stream
        opened.session.close()
        return {
            "error": failed,
            "stream": stream,
            "steps": steps,
            "left": driver.num_allocations,
            "modules": [code[:4].hex() for code in driver.modules],
        }

    def _enqueue(self, opened: OpenedSession, step: Step) -> list[str]:
        calls = self._cuda.calls_of(lambda: opened.session.enqueue(step))
        opened.session.collect(step.id)
        return calls

    def _open(
        self, engine: Path, manifest: EngineManifest, toolkit: CudaToolkit, driver: StubDriver, rank: int
    ) -> OpenedSession:
        mapping = manifest.mapping
        size = mapping.tensor_parallel_size

        def make_group(*_: object, **__: object) -> StubGroup:
            return StubGroup(self._cuda, driver, size, rank % size)

        limits = Limits(
            kv_cache_bytes=NUM_BLOCKS * sum(kv_page_bytes(each.kv_caches) for each in manifest.ranks),
            max_batch_size=4,
            max_num_tokens=32,
            max_seq_len=0,
            rank=rank,
            exchange=None if mapping.world_size == 1 else lambda data: [data] * mapping.world_size,
        )
        # There is one GPU: each rank has it, one after the other.
        with patch.object(open_engine, "open_group", make_group), patch.object(open_engine, "Device", _first_gpu):
            return open_session(engine, manifest, toolkit, limits)


def _first_gpu(driver: Any, ordinal: int) -> Device:
    del ordinal
    return Device(driver, 0)


def _put_in_place(driver: StubDriver) -> None:
    """What ops import is this driver."""
    bindings: Any = ModuleType("cuda.bindings")
    bindings.driver = driver
    sys.modules.update({"cuda.bindings": bindings, "cuda.bindings.driver": driver})  # type: ignore[dict-item]


def _steps(num_groups: int) -> list[tuple[str, Step]]:
    """A prompt and what follows; then steps of other shapes; then these shapes once more."""
    named = [
        ("prompt", [(5, 5)]),
        ("decode", [(1, 6)]),
        ("decode again", [(1, 7)]),
        ("prompt again", [(5, 5)]),
        ("two prompts", [(11, 11), (7, 20)]),
        ("decode three", [(1, 12), (1, 21), (1, 3)]),
        ("decode three again", [(1, 13), (1, 22), (1, 4)]),
        ("mixed", [(1, 14), (9, 9), (1, 23)]),
        ("mixed again", [(1, 15), (9, 9), (1, 24)]),
        ("decode once more", [(1, 8)]),
    ]
    return [(name, _step(number, pieces, num_groups)) for number, (name, pieces) in enumerate(named, 1)]


def _step(number: int, pieces: Sequence[tuple[int, int]], num_groups: int) -> Step:
    """`pieces`: of each sequence its rows, and how long it is with them."""
    rows = [piece[0] for piece in pieces]
    ends = np.cumsum(rows).astype(np.int32)
    lengths = np.array([piece[1] for piece in pieces], np.int32)
    width = -(-int(lengths.max()) // TOKENS_PER_BLOCK)
    table = np.arange(len(pieces) * width, dtype=np.int32).reshape(len(pieces), width) % NUM_BLOCKS
    return Step(
        id=number,
        token_ids=np.arange(int(ends[-1]), dtype=np.int32),
        query_starts=np.concatenate(([0], ends)).astype(np.int32),
        context_lengths=lengths,
        block_tables=(table,) * num_groups,
        logit_rows=(ends - 1).astype(np.int32),
        needs_logits=np.ones(len(pieces), np.uint8),
        num_candidates=np.full(len(pieces), 4, np.int32),
        token_sources=np.empty(0, TOKEN_SOURCE),
    )


def main(library: Path, folder: Path) -> None:
    world = World(library)
    requests = json.loads((folder / "requests.json").read_text())
    with (folder / "answers.jsonl").open("w") as answers:
        for request in requests:
            answer = world.answer(Path(request["engine"]), request["rank"])
            answers.write(json.dumps({"name": request["name"], **answer}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
