"""GreedyTokens' device kernels on a GPU, against its reference: vocabularies of models, with the GPU's exp and log."""

import itertools

import numpy as np
import pytest

from tests.plugins.device_greedy_tokens_checks import check, random_logits

pytestmark = pytest.mark.gpu

LARGEST_ERROR = 1e-5
"""Of a log_sum, besides units in its last place: the schema's."""


@pytest.mark.parametrize("vocab_size", [1, 4095, 32000, 49152, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("scale", [0.0, 3.0, 1e3])
def test_vocabularies_of_models(vocab_size: int, rows: int, scale: float) -> None:
    check(random_logits(rows, vocab_size, scale), LARGEST_ERROR)


def test_many_rows() -> None:
    check(random_logits(512, 151_936), LARGEST_ERROR)


def test_every_row_of_special_logits_in_three_chunks() -> None:
    values = (-np.inf, -0.0, 0.0, 1.0, np.inf, np.nan)
    logits = np.full((len(values) ** 3, 10_000), -np.inf, np.float32)
    logits[:, [100, 5000, 9999]] = list(itertools.product(values, repeat=3))
    check(logits, LARGEST_ERROR)
