"""How steps are laid out and padded: properties of the plain functions."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precast.runtime.device.buffers import StepInputs, StepOutputs, row_runs
from precast.runtime.device.shapes import CONTEXT, DECODE, ShapeBook, StepShape
from tests.runtime.tensorrt.worlds import LOGITS, Chosen, Piece, make_step

INPUTS = StepInputs(("block_tables.0", "block_tables.1"), resolves_tokens=True, has_logits=True, scratch_block=99)


@given(st.lists(st.booleans(), max_size=40))
def test_runs_are_the_rows_that_are_wanted(wanted: list[bool]) -> None:
    runs = row_runs(np.array(wanted, bool))
    assert [row for first, end in runs for row in range(first, end)] == np.flatnonzero(wanted).tolist()
    assert all(end < first for (_, end), (first, _) in pairwise(runs))  # none could be one with the next


shapes = st.builds(
    StepShape,
    num_tokens=st.integers(1, 300),
    num_sequences=st.integers(1, 70),
    num_rows=st.integers(1, 70),
    table_widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    profile=st.sampled_from([DECODE, CONTEXT]),
)


@given(shapes, st.booleans(), st.booleans())
def test_parts_are_aligned_and_apart(shape: StepShape, resolves_tokens: bool, has_logits: bool) -> None:
    layout = StepInputs(INPUTS.tables, resolves_tokens, has_logits).layout(shape)
    ends = [(part.offset, part.offset + part.num_bytes) for part in layout.parts]
    assert all(offset % 256 == 0 for offset, _ in ends)
    assert all(end <= offset for (_, end), (offset, _) in pairwise(ends))
    assert ends[-1][1] <= layout.num_bytes
    assert {part.name for part in layout.parts} == {
        "token_ids",
        "query_starts",
        "context_lengths",
        *INPUTS.tables,
        *(["token_sources"] if resolves_tokens else []),
        *(["logit_rows"] if has_logits else []),
    }
    assert layout.addresses(4096)["token_ids"] == 4096
    assert layout.shapes()["query_starts"] == (shape.num_sequences + 1,)


@given(shapes, shapes)
def test_a_larger_shape_has_no_smaller_layout(one: StepShape, other: StepShape) -> None:
    larger = StepShape(
        max(one.num_tokens, other.num_tokens),
        max(one.num_sequences, other.num_sequences),
        max(one.num_rows, other.num_rows),
        tuple(map(max, one.table_widths, other.table_widths)),
        CONTEXT,
    )
    assert INPUTS.layout(larger).num_bytes >= max(INPUTS.layout(one).num_bytes, INPUTS.layout(other).num_bytes)


def _written(step_pieces: list[Piece], shape: StepShape) -> dict[str, list[int]]:
    layout = INPUTS.layout(shape)
    memory = np.full(layout.num_bytes, 0x55, np.uint8)  # of the step before
    INPUTS.write(make_step(5, step_pieces), layout, memory)
    return {part.name: layout.view(memory, part.name, np.int32).tolist() for part in layout.parts}


def test_a_step_as_it_is_written() -> None:
    pieces = [
        Piece([7, 8, 9], 2, [[1, 2], [3]], {2: LOGITS}),
        Piece([Chosen(4, 6)], 3, [[4], [5, -1, 6]], {0: 0}),
    ]
    assert _written(pieces, StepShape(4, 2, 2, (3, 4), CONTEXT)) == {
        "token_ids": [7, 8, 9, -1],
        "token_sources": [-1, -1, -1, 6],
        "query_starts": [0, 3, 4],
        "context_lengths": [5, 4],
        "block_tables.0": [[1, 2, -1], [4, -1, -1]],
        "block_tables.1": [[3, -1, -1, -1], [5, -1, 6, -1]],
        "logit_rows": [2, 3],
    }


def test_what_is_padded() -> None:
    """Sequences of one token at position 0, in the scratch block; rows that nobody reads."""
    pieces = [Piece([7], 2, [[1], [3]], {0: LOGITS}), Piece([8], 0, [[4], [5]]), Piece([9], 0, [[6], [7]])]
    assert _written(pieces, StepShape(4, 4, 4, (2, 1), DECODE)) == {
        "token_ids": [7, 8, 9, 0],
        "token_sources": [-1, -1, -1, -1],
        "query_starts": [0, 1, 2, 3, 4],
        "context_lengths": [3, 1, 1, 1],
        "block_tables.0": [[1, -1], [4, -1], [6, -1], [99, -1]],
        "block_tables.1": [[3], [5], [7], [99]],
        "logit_rows": [0, 0, 0, 0],
    }


def test_a_plan_that_takes_no_tokens_of_a_step_before() -> None:
    inputs = StepInputs(("block_tables.0",), resolves_tokens=False, has_logits=True)
    layout = inputs.layout(StepShape(1, 1, 1, (1,), DECODE))
    step = make_step(5, [Piece([Chosen(4, 0)], 0, [[0]])])
    with pytest.raises(ValueError, match="step 5 has tokens that are not known, and the network takes none"):
        inputs.write(step, layout, np.zeros(layout.num_bytes, np.uint8))


@pytest.mark.parametrize(
    ("num_candidates", "chooses_tokens", "names"),
    [
        (3, True, ["tokens", "candidate_ids", "candidate_logits", "log_sums"]),
        (0, True, ["tokens"]),
        (3, False, ["candidate_ids", "candidate_logits", "log_sums"]),
        (0, False, []),
    ],
)
def test_outputs_that_a_plan_has(num_candidates: int, chooses_tokens: bool, names: list[str]) -> None:
    outputs = StepOutputs(320, num_candidates, chooses_tokens)
    assert [part.name for part in outputs.choices(2).parts] == names
    assert outputs.logits_bytes(2) == 2 * 320 * 4


# -------------------------------------------------------------------------------------------------------------- shapes


@given(st.integers(1, 70), st.integers(1, 64), st.lists(st.integers(1, 100), min_size=1, max_size=3), st.data())
def test_a_shape_holds_its_step_within_the_limits(
    max_batch_size: int, sequences: int, max_widths: list[int], data: st.DataObject
) -> None:
    sequences = min(sequences, max_batch_size)
    widths = [data.draw(st.integers(1, most)) for most in max_widths]
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=sequences, max_size=sequences))
    pieces = [Piece([5] * length, 0, [[0] * width for width in widths], {0: LOGITS}) for length in lengths]
    shape = ShapeBook(max_batch_size, max_widths).shape_of(make_step(1, pieces))
    decodes = set(lengths) == {1}
    assert shape.profile == (DECODE if decodes else CONTEXT)
    assert shape.repeats == decodes
    assert sequences <= shape.num_sequences <= max_batch_size
    if decodes:
        assert shape.num_tokens == shape.num_rows == shape.num_sequences < 2 * sequences
    else:
        assert (shape.num_tokens, shape.num_sequences, shape.num_rows) == (sum(lengths), sequences, sequences)
    for padded, width, most in zip(shape.table_widths, widths, max_widths, strict=True):
        assert width <= padded <= most
        assert padded <= max(8, 2 * width)


@given(st.integers(1, 9), st.integers(9, 60), st.integers(1, 40), st.integers(0, 40), st.data())
def test_no_step_is_larger_than_the_largest(
    max_batch_size: int, max_num_tokens: int, width: int, more: int, data: st.DataObject
) -> None:
    """Memory is that of the largest, and there is no other."""
    book = ShapeBook(max_batch_size, [width + more])
    inputs = StepInputs(("block_tables.0",), resolves_tokens=True, has_logits=True)
    room = inputs.layout(book.largest(max_num_tokens, width)).num_bytes
    sequences = data.draw(st.integers(1, max_batch_size))
    length = data.draw(st.integers(1, max_num_tokens // sequences))
    columns = data.draw(st.integers(1, width))
    rows = {0: LOGITS} if data.draw(st.booleans()) else {}
    pieces = [Piece([5] * length, 0, [[0] * columns], rows) for _ in range(sequences)]
    assert inputs.layout(book.shape_of(make_step(1, pieces))).num_bytes <= room
