"""Rows that are NaN: they have no token, and harm no other row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.tensorrt.nan_model import NAN_TOKEN
from tests.runtime.tensorrt.worlds import LOGITS, TOKEN, Chosen, Logits, error, open_world

PROMPTS = ([0, 17, 133, 42, 201], [0, 5, 260, 260, 99, 3], [7, 22])
CLOSE = 0.004


@pytest.fixture(scope="module")
def expected(reference: Callable[..., Logits]) -> Logits:
    return reference("float16", "float16")


@pytest.mark.parametrize("want", [LOGITS, TOKEN, 5])
def test_a_row_that_is_nan_has_no_token_and_harms_no_other(want: int, nan_engine: Path, expected: Logits) -> None:
    with open_world(nan_engine) as world:
        for piece_of_nan in ([0, NAN_TOKEN], [NAN_TOKEN]):
            pieces = [
                world.prompt(PROMPTS[0], 0, want=LOGITS),
                world.prompt(piece_of_nan, 4, want=want),
                world.prompt(PROMPTS[2], 8, want=LOGITS),
            ]
            result = world.run(world.step(pieces))
            rows = [expected(PROMPTS[0])[-1], expected(PROMPTS[2])[-1]]
            assert result.token_ids is not None
            assert result.token_ids.tolist() == [int(rows[0].argmax()), -1, int(rows[1].argmax())]
            whole = result.logits if want != LOGITS else result.logits[[0, 2]]
            assert error(whole, np.stack(rows)) < CLOSE
            if want == LOGITS:
                assert np.isnan(result.logits[1]).all()
            if want > 0:
                assert not (np.isfinite(result.log_sums).all() and np.isfinite(result.candidate_logits[:, 0]).all())


def test_blocks_that_held_nan_can_be_used_again(nan_engine: Path, expected: Logits) -> None:
    with open_world(nan_engine) as world:
        world.run(world.step([world.prompt([0, NAN_TOKEN, 3], 0)]))
        logits = world.run(world.step([world.prompt(PROMPTS[0], 0)])).logits
        assert error(logits, expected(PROMPTS[0])[-1:]) < CLOSE


def test_a_step_that_was_described_before_its_token_turned_out_to_be_none(nan_engine: Path, expected: Logits) -> None:
    """The device must compute something for it, and the others as ever."""
    with open_world(nan_engine) as world:
        first = world.step([world.prompt([0, NAN_TOKEN], 4, want=TOKEN), world.prompt(PROMPTS[0], 0, want=TOKEN)])
        pieces = [
            world.prompt([Chosen(first.id, 0)], 4, start=2, want=TOKEN),
            world.prompt([Chosen(first.id, 1)], 0, start=len(PROMPTS[0])),
        ]
        second = world.step(pieces)
        world.session.enqueue(first)
        world.session.enqueue(second)
        token = int(expected(PROMPTS[0])[-1].argmax())
        results = [world.collect(first), world.collect(second)]
        assert all(result.token_ids is not None and result.token_ids[0] == -1 for result in results)
        assert error(results[1].logits, expected([*PROMPTS[0], token])[-1:]) < CLOSE
