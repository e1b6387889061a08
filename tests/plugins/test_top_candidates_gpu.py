"""TopCandidates' device kernels on a GPU, against its reference: vocabularies of models, ties, special logits."""

import itertools

import numpy as np
import pytest

from tests.plugins.device_top_candidates_checks import check, random_logits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocab_size", [64, 4095, 8193, 32000, 49152, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("num_candidates", [1, 20, 64])
def test_vocabularies_of_models(vocab_size: int, rows: int, num_candidates: int) -> None:
    check(random_logits(rows, vocab_size), num_candidates)


def test_many_rows() -> None:
    check(random_logits(512, 151_936), 64)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0])
def test_many_equal_logits(scale: float) -> None:
    """Rounded to steps of 1/16: of few values, or of one."""
    check(np.round(16 * random_logits(64, 128_256, scale)) / np.float32(16), 64)


def test_rows_in_order() -> None:
    """Rising and falling: in a chunk the largest are neighbours."""
    rising = np.sort(random_logits(4, 128_256), axis=1)
    check(rising, 64)
    check(-rising, 64)


def test_the_largest_vocabulary() -> None:
    check(random_logits(2, 1 << 22), 64)


def test_every_row_of_special_logits_in_three_chunks() -> None:
    values = (-np.inf, -0.0, 0.0, 1.0, np.inf, np.nan)
    logits = np.full((len(values) ** 3, 20_000), -np.inf, np.float32)
    logits[:, [100, 10_000, 19_999]] = list(itertools.product(values, repeat=3))
    check(logits, 64)
