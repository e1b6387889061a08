"""A session of an engine on the fake device, and steps for it.

    with open_world(engine) as world:
        result = world.run(world.step([Piece([0, 17, 133], 0, blocks=[[0]], rows={2: LOGITS})]))

Leaving the world closes the session, and fails where anything was misused or is left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_kv import kv_page_bytes
from precast.checkpoints.engine_manifest import EngineManifest
from precast.runtime.device.open_engine import Limits, OpenedSession, open_session
from precast.runtime.device.step import TOKEN_SOURCE, Step, StepResult
from precast.runtime.device.toolkit import Toolkit
from precast.runtime.device.worker import open_toolkit
from tests.builder.tensorrt.lowered_runner import LoweredRunner
from tests.builder.tensorrt.worlds import lowered, tensorrt_plan
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_engine import put_fakes_in_place
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver

Array = NDArray[Any]
FakeEngine = Callable[..., Path]
"""The fixture `fake_engine` of conftest.py."""
Logits = Callable[[Sequence[int]], Array]
"""The logits of every position of a sequence."""

LOGITS, TOKEN = -1, 0
"""What a row of a step may want: the whole row, or the token alone. A positive number: so many candidates."""
NUM_BLOCKS = 32
"""Of a pool in a world: four sequences of 64 tokens in two KV groups have so many."""
_GROUP_BLOCKS = 16
TOKENS_PER_BLOCK = 16
VOCAB_SIZE = 320


class Chosen(NamedTuple):
    """A token that is not known yet: the one that a row of a step before will give."""

    step: int
    row: int


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence in a step.

    Attributes:
        start: The position of the first.
        blocks: Of the sequence, for each KV group; -1 where it has given one back.
        rows: Which of the tokens have a row of logits, and what it wants.
    """

    tokens: Sequence[int | Chosen]
    start: int
    blocks: Sequence[Sequence[int]]
    rows: Mapping[int, int] = field(default_factory=dict)


def make_step(step_id: int, pieces: Sequence[Piece]) -> Step:
    """The step that computes these pieces, as the library would describe it."""
    token_ids: list[int] = []
    starts, rows, wants, sources = [0], [], [], []
    for piece in pieces:
        for offset, token in enumerate(piece.tokens):
            if offset in piece.rows:
                rows.append(len(token_ids))
                wants.append(piece.rows[offset])
            if isinstance(token, Chosen):
                sources.append((len(token_ids), token.row, token.step))
            token_ids.append(-1 if isinstance(token, Chosen) else token)
        starts.append(len(token_ids))
    return Step(
        id=step_id,
        token_ids=np.array(token_ids, np.int32),
        query_starts=np.array(starts, np.int32),
        context_lengths=np.array([piece.start + len(piece.tokens) for piece in pieces], np.int32),
        block_tables=tuple(_table([piece.blocks[group] for piece in pieces]) for group in range(len(pieces[0].blocks))),
        logit_rows=np.array(rows, np.int32),
        needs_logits=np.array([want == LOGITS for want in wants], np.uint8),
        num_candidates=np.array([max(want, 0) for want in wants], np.int32),
        token_sources=np.array(sources, TOKEN_SOURCE),
    )


def _table(blocks: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    table = np.full((len(blocks), max(map(len, blocks))), -1, np.int32)
    for row, each in zip(table, blocks, strict=True):
        row[: len(each)] = each
    return table


class World:
    """An opened session. Steps get the ids 1, 2, 3 and so on, as the library gives them."""

    def __init__(self, opened: OpenedSession, manifest: EngineManifest) -> None:
        self.opened, self.manifest, self.session = opened, manifest, opened.session
        self.num_groups = len(manifest.ranks[0].kv_groups)
        self.num_steps = 0

    def step(self, pieces: Sequence[Piece]) -> Step:
        self.num_steps += 1
        return make_step(self.num_steps, pieces)

    def run(self, step: Step) -> StepResult:
        """Enqueue and collect. The result is a copy."""
        self.session.enqueue(step)
        return self.collect(step)

    def collect(self, step: Step) -> StepResult:
        return copied(self.session.collect(step.id))

    def blocks(self, *first: int) -> list[list[int]]:
        """The same blocks in every group, which have ids of their own in it."""
        return [[block + _GROUP_BLOCKS * group for block in first] for group in range(self.num_groups)]

    def prompt(self, tokens: Sequence[int | Chosen], block: int, start: int = 0, want: int = LOGITS) -> Piece:
        """A piece of a short sequence, whose blocks begin with this one, with a row for its last token."""
        end = start + len(tokens)
        blocks = range(block, block + -(-end // TOKENS_PER_BLOCK))
        return Piece(tokens, start, self.blocks(*blocks), {len(tokens) - 1: want})

    def pools(self) -> list[Array]:
        """The KV pools of all layers as bytes [blocks + 1, bytes of a block], once everything enqueued has run."""
        driver.cuCtxSynchronize()
        sizes = {(self.opened.num_blocks + 1) * cache.block_bytes for cache in self.manifest.ranks[0].kv_caches}
        found = [each for each in MACHINE.memory.living() if each.kind == "device 0" and each.size_bytes in sizes]
        return [
            each.view(each.address, each.size_bytes).reshape(self.opened.num_blocks + 1, -1).copy() for each in found
        ]


def copied(result: StepResult) -> StepResult:
    return StepResult(
        result.logits.copy(),
        None if result.token_ids is None else result.token_ids.copy(),
        result.candidate_ids.copy(),
        result.candidate_logits.copy(),
        result.log_sums.copy(),
    )


def open_engine(engine: Path, **limits: Any) -> tuple[OpenedSession, EngineManifest]:
    """Open a rank on the machine as it is, as worker.py does."""
    toolkit, manifest = check_engine(engine)
    defaults = {
        "kv_cache_bytes": NUM_BLOCKS * kv_page_bytes(manifest.ranks[0].kv_caches),
        "max_batch_size": 4,
        "max_num_tokens": 32,
    }
    rest: dict[str, Any] = {"max_seq_len": 0, "rank": 0, "exchange": None}
    return open_session(engine, manifest, toolkit, Limits(**{**defaults, **rest, **limits})), manifest


def check_engine(engine: Path) -> tuple[Toolkit, EngineManifest]:
    """What comes before anything of the engine but its manifest is read."""
    manifest = read_manifest(engine)
    return open_toolkit(engine, manifest, 0), manifest


_PAIRS = (
    ("cuMemAlloc", "cuMemFree"),
    ("cuMemHostAlloc", "cuMemFreeHost"),
    ("cuEventCreate", "cuEventDestroy"),
    ("cuStreamCreate", "cuStreamDestroy"),
    ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
)
"""What is released by name, since the end of a context, which takes everything, may come later than it seems."""


def _count(name: str) -> int:
    return sum(call == name for call, *_ in driver.calls)


@contextmanager
def open_world(engine: Path, settings: Mapping[str, Any] | None = None, **limits: Any) -> Iterator[World]:
    """An engine opened on a new machine. `settings` are the machine's, `limits` fields of Limits."""
    assert not driver.leaks(), "there is one machine, and a world lives on it already"
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_in_place(patch)
        driver.reset(**(settings or {}))
        try:
            world = World(*open_engine(engine, **limits))
            yield world
        except BaseException:
            driver.reset()  # it is left as it is; the next world is not to see that
            raise
        world.session.close()
        for made, gone in _PAIRS:
            assert _count(made) == _count(gone), f"{made} {_count(made)} times, {gone} {_count(gone)} times"
        assert driver.misuse == [], driver.misuse
        assert driver.leaks() == [], driver.leaks()


def lowered_logits(model: Path, dtype: str) -> Logits:
    """The network of an engine by itself, one whole sequence at a time."""
    with open_checkpoint(model) as checkpoint:
        return LoweredRunner(lowered(checkpoint.config, tensorrt_plan(dtype)), checkpoint)


def error(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
