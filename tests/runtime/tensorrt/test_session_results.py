"""What a step gives: whole rows, candidates or a token alone, in every pattern."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precast.runtime.device.step import StepResult
from tests.runtime.tensorrt.worlds import (
    LOGITS,
    TOKEN,
    VOCAB_SIZE,
    Array,
    FakeEngine,
    Logits,
    Piece,
    World,
    error,
    open_world,
)

PROMPTS = ([0, 17, 133, 42, 201], [0, 5, 260, 260, 99, 3], [7, 22], [301, 8, 15])
NUM_CANDIDATES = 64
CLOSE = 0.004


@pytest.fixture(scope="module")
def expected(reference: Callable[..., Logits]) -> Logits:
    return reference("float16", "float16")


@pytest.fixture(scope="module")
def shared(fake_engine: FakeEngine) -> Iterator[World]:
    """One world for many steps, all of whose results are read before the next."""
    with open_world(fake_engine("float16")) as world:
        yield world


def check_result(result: StepResult, wants: Sequence[int], rows: Array) -> None:
    """`wants` and the logits that are expected, of each row."""
    whole = rows[[want == LOGITS for want in wants]]
    assert result.logits.shape == whole.shape
    if len(whole):
        assert error(result.logits, whole) < CLOSE
    assert result.token_ids is not None
    assert result.token_ids.tolist() == rows.argmax(axis=1).tolist()
    counts = [want for want in wants if want > 0]
    chosen = rows[[want > 0 for want in wants]]
    assert result.candidate_ids.shape == result.candidate_logits.shape == (len(counts), NUM_CANDIDATES)
    assert result.log_sums.shape == (len(counts),)
    for i, (row, count) in enumerate(zip(chosen, counts, strict=True)):
        ids, logits = result.candidate_ids[i], result.candidate_logits[i]
        assert len(set(ids.tolist())) == NUM_CANDIDATES
        tolerance = CLOSE * np.abs(row).max()
        assert np.allclose(logits[:count], np.sort(row)[::-1][:count], atol=tolerance)
        assert np.allclose(logits, row[ids], atol=tolerance)
        assert np.isclose(result.log_sums[i], np.log(np.exp(row.astype(np.float64)).sum()), atol=tolerance)


wants_of_rows = st.lists(st.sampled_from([LOGITS, TOKEN, 1, 5, NUM_CANDIDATES]), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wants=wants_of_rows, decoding=st.booleans())
def test_rows_that_want_different_things(shared: World, expected: Logits, wants: list[int], decoding: bool) -> None:
    """Each row is the last of a sequence: of its prompt, or of one more token."""
    prompts = PROMPTS[: len(wants)]
    pieces = [
        shared.prompt(prompt, 4 * i, want=want) for i, (prompt, want) in enumerate(zip(prompts, wants, strict=True))
    ]
    if decoding:
        shared.run(shared.step([shared.prompt(prompt[:-1], 4 * i, want=TOKEN) for i, prompt in enumerate(prompts)]))
        pieces = [
            Piece(prompt[-1:], len(prompt) - 1, shared.blocks(4 * i), {0: want})
            for i, (prompt, want) in enumerate(zip(prompts, wants, strict=True))
        ]
    rows = np.stack([expected(prompt)[-1] for prompt in prompts])
    check_result(shared.run(shared.step(pieces)), wants, rows)


def test_every_pattern_of_whole_rows(shared: World, expected: Logits) -> None:
    """Rows of one prompt, some of them whole: they come one behind the other, without gaps."""
    prompt = PROMPTS[0]
    rows = expected(prompt)
    for wanted in itertools.product([LOGITS, TOKEN], repeat=4):
        step = shared.step([Piece(prompt, 0, shared.blocks(0), dict(enumerate(wanted, start=1)))])
        check_result(shared.run(step), wanted, rows[1:])


def test_rows_in_the_middle_of_several_prompts(shared: World, expected: Logits) -> None:
    pieces = [
        Piece(PROMPTS[0], 0, shared.blocks(0), {1: 5, 3: LOGITS}),
        Piece(PROMPTS[1], 0, shared.blocks(4)),
        Piece(PROMPTS[2], 0, shared.blocks(8), {0: LOGITS, 1: TOKEN}),
    ]
    rows = np.concatenate([expected(PROMPTS[0])[[1, 3]], expected(PROMPTS[2])])
    check_result(shared.run(shared.step(pieces)), [5, LOGITS, LOGITS, TOKEN], rows)


def test_candidates_are_those_of_the_row_that_wants_them(shared: World, expected: Logits) -> None:
    """A step later, other rows want them: nothing of the step before is left."""
    for wants in ([5, TOKEN, TOKEN], [TOKEN, 5, TOKEN], [TOKEN, TOKEN, 5], [TOKEN, TOKEN, TOKEN]):
        pieces = [shared.prompt(PROMPTS[i], 4 * i, want=want) for i, want in enumerate(wants)]
        rows = np.stack([expected(PROMPTS[i])[-1] for i in range(3)])
        check_result(shared.run(shared.step(pieces)), wants, rows)


def test_the_vocabulary_is_what_tests_take_it_for(shared: World) -> None:
    assert shared.manifest.model.vocab_size == VOCAB_SIZE
    assert shared.session.max_candidates == NUM_CANDIDATES
