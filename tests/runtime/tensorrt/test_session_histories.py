"""Random histories of steps: sequences come with prompts in chunks, decode beside each other, and go, and their blocks
are used again. Each row is what the sequence would give alone, whatever ran beside it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precast.runtime.device.step import Step
from tests.runtime.tensorrt.worlds import (
    LOGITS,
    TOKEN,
    TOKENS_PER_BLOCK,
    Array,
    Chosen,
    FakeEngine,
    Logits,
    Piece,
    World,
    error,
    open_world,
)

MOST_TOKENS, MOST_SEQUENCES, LONGEST = 32, 4, 40


@dataclass(frozen=True)
class Model:
    """A variant, its dtype, and how much rounding in another order may change.

    `window`: what its KV groups see, None: everything.
    """

    variant: str
    dtype: str
    tolerance: float
    windows: tuple[int | None, ...] = (None,)


MODELS = {
    "full": Model("float16", "float16", 0.004),
    "windows": Model("qwen2_window", "bfloat16", 0.04, (None, 4)),
}


@dataclass
class Sequence:
    """One that has come.

    Attributes:
        tokens: All of them that are known, or where those come from that are not.
        num_computed: Of these.
        blocks: For each KV group, those it has; -1 where it has given one back.
    """

    tokens: list[int | Chosen]
    num_computed: int
    blocks: list[list[int]]


@dataclass
class Pending:
    """A step in flight: what rows of it are of, by sequence, and how long the sequence is then."""

    step: Step
    rows: list[tuple[Sequence, int, int]] = field(default_factory=list)


class History:
    """Describes steps as a scheduler may, and compares what they give with each sequence alone."""

    def __init__(self, world: World, model: Model, expected: Logits) -> None:
        self._world, self._model, self._expected = world, model, expected
        self._free = list(range(world.opened.num_blocks))
        self.sequences: list[Sequence] = []
        self._in_flight: list[Pending] = []
        self._leaving: list[list[int]] = []  # blocks of those that went while a step that names them was in flight
        self.num_rows = 0

    def add(self, prompt: list[int]) -> None:
        self.sequences.append(Sequence(list(prompt), 0, [[] for _ in self._model.windows]))

    def remove(self, index: int) -> None:
        """The sequence goes; its blocks may be anybody's when nothing in flight names them any more."""
        gone = self.sequences.pop(index)
        self._leaving.append([block for blocks in gone.blocks for block in blocks if block >= 0])
        if not self._in_flight:
            self._take_back()

    def step(self, wants: list[tuple[int, int]]) -> None:
        """A step of some sequences: of each its index, and how many tokens of it at most."""
        pieces, rows, left = [], list[tuple[Sequence, int, int]](), MOST_TOKENS
        for index, most in wants:
            sequence = self.sequences[index]
            end = min(len(sequence.tokens), sequence.num_computed + min(most, left))
            if end == sequence.num_computed or not self._give_blocks(sequence, end):
                continue
            want = {}
            if end == len(sequence.tokens):
                want = {end - sequence.num_computed - 1: [LOGITS, TOKEN, 3][(index + end) % 3]}
                rows.append((sequence, end, next(iter(want.values()))))
            tokens = sequence.tokens[sequence.num_computed : end]
            pieces.append(Piece(tokens, sequence.num_computed, [list(each) for each in sequence.blocks], want))
            left -= len(tokens)
            sequence.num_computed = end
        if not pieces:
            return
        if len(self._in_flight) == self._world.session.max_in_flight:
            self.collect()
        pending = Pending(self._world.step(pieces), rows)
        self._world.session.enqueue(pending.step)
        self._in_flight.append(pending)
        for row, (sequence, _, _) in enumerate(rows):
            if len(sequence.tokens) < LONGEST:
                sequence.tokens.append(Chosen(pending.step.id, row))
        self._settle_tokens()

    def _settle_tokens(self) -> None:
        """A token may come from the step before only: what comes from an earlier one must be known by now."""
        last = self._in_flight[-1].step.id
        while any(isinstance(token, Chosen) and token.step < last for each in self.sequences for token in each.tokens):
            self.collect()

    def collect(self) -> None:
        """Compare the oldest step in flight."""
        pending = self._in_flight.pop(0)
        result = self._world.collect(pending.step)
        assert result.token_ids is not None
        logits, candidates = iter(result.logits), iter(result.candidate_ids)
        for row, (sequence, length, want) in enumerate(pending.rows):
            token = int(result.token_ids[row])
            alone = self._expected([each for each in sequence.tokens[:length] if isinstance(each, int)])[-1]
            assert len(sequence.tokens[:length]) == length
            tolerance = self._model.tolerance * float(np.abs(alone).max())
            assert alone.max() - alone[token] <= 2 * tolerance
            if want == LOGITS:
                self._compare(next(logits), alone)
            elif want > 0:
                assert alone.max() - alone[next(candidates)[0]] <= 2 * tolerance
            if len(sequence.tokens) > length:
                assert sequence.tokens[length] == Chosen(pending.step.id, row)
                sequence.tokens[length] = token
            self.num_rows += 1
        if not self._in_flight:
            self._take_back()

    def _compare(self, logits: Array, alone: Array) -> None:
        assert error(logits, alone) < self._model.tolerance

    def finish(self) -> None:
        while self._in_flight:
            self.collect()

    def abandon(self) -> None:
        """Leave nothing in flight of a history that has failed: a shorter one is looked for in the same world."""
        for pending in self._in_flight:
            self._world.session.collect(pending.step.id)

    @property
    def is_busy(self) -> bool:
        return bool(self._in_flight)

    def _give_blocks(self, sequence: Sequence, end: int) -> bool:
        needed = -(-end // TOKENS_PER_BLOCK)
        missing = sum(needed - len(blocks) for blocks in sequence.blocks)
        if missing > len(self._free):
            return False
        for blocks, window in zip(sequence.blocks, self._model.windows, strict=True):
            blocks.extend(self._free.pop() for _ in range(needed - len(blocks)))
            if window is not None:
                self._leave_behind(blocks, sequence.num_computed - window + 1)
        return True

    def _leave_behind(self, blocks: list[int], first_visible: int) -> None:
        """No query of now or later sees what is before: those blocks go back."""
        for place in range(max(0, first_visible // TOKENS_PER_BLOCK)):
            if blocks[place] >= 0:
                self._leaving.append([blocks[place]])
                blocks[place] = -1

    def _take_back(self) -> None:
        for blocks in self._leaving:
            self._free.extend(blocks)
        self._leaving.clear()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def world(model: Model, fake_engine: FakeEngine) -> Iterator[World]:
    with open_world(fake_engine(model.variant)) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(model: Model, reference: Callable[..., Logits]) -> Logits:
    """Of whole sequences, each computed once."""
    logits, known = reference(model.variant, model.dtype), dict[tuple[int, ...], Array]()

    def remember(tokens: list[int]) -> Array:
        key = tuple(tokens)
        if key not in known:
            known[key] = logits(tokens)
        return known[key]

    return remember  # type: ignore[return-value]  # a list is what it is called with


prompts = st.lists(st.integers(2, 319), min_size=1, max_size=36)
moves = st.one_of(
    st.tuples(st.just("add"), prompts),
    st.tuples(st.just("remove"), st.integers(0, MOST_SEQUENCES - 1)),
    st.tuples(
        st.just("step"),
        st.lists(st.tuples(st.integers(0, MOST_SEQUENCES - 1), st.sampled_from([1, 3, 7, 32])), min_size=1, max_size=4),
    ),
    st.tuples(st.just("decode"), st.integers(1, 4)),
    st.tuples(st.just("collect"), st.none()),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=st.lists(prompts, min_size=1, max_size=3), history=st.lists(moves, min_size=4, max_size=20))
def test_every_row_is_what_its_sequence_gives_alone(
    world: World, model: Model, expected: Logits, first: list[list[int]], history: list[tuple[str, object]]
) -> None:
    told = History(world, model, expected)
    for prompt in first:
        told.add(prompt)
    everybody = [(index, MOST_TOKENS) for index in range(MOST_SEQUENCES)]
    try:
        for name, argument in [*history, ("step", everybody), ("decode", 2)]:
            _play(told, name, argument)
        told.finish()
    finally:
        told.abandon()


def _play(told: History, name: str, argument: object) -> None:
    """What makes no sense at this moment is left out."""
    present: Mapping[int, Sequence] = dict(enumerate(told.sequences))
    if name == "add" and len(present) < MOST_SEQUENCES:
        assert isinstance(argument, list)
        told.add(argument)
    elif name == "remove" and argument in present:
        assert isinstance(argument, int)
        told.remove(argument)
    elif name == "step":
        assert isinstance(argument, list)
        wants = {index: most for index, most in argument if index in present}
        told.step(list(wants.items()))
    elif name == "decode":
        assert isinstance(argument, int)
        for _ in range(argument):
            told.step([(index, 1) for index in present])
    elif name == "collect" and told._in_flight:
        told.collect()


def test_a_history_compares_something(world: World, model: Model, expected: Logits) -> None:
    """Or the test above would show nothing."""
    told = History(world, model, expected)
    told.add([5, 9, 200])
    told.add([(7 * i) % 300 + 2 for i in range(30)])
    for _ in range(6):
        told.step([(0, 32), (1, 8)])
    told.finish()
    assert told.num_rows == 6 + 3


def test_a_history_notices_a_wrong_row(world: World, model: Model, expected: Logits) -> None:
    def wrong(tokens: object) -> Array:
        assert isinstance(tokens, list)
        return expected([*tokens[:-1], 2 + (tokens[-1] + 1) % 300])

    told = History(world, model, wrong)
    told.add([5, 9, 200])
    told.step([(0, 32)])
    with pytest.raises(AssertionError):
        told.finish()
    told.abandon()
