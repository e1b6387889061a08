"""GreedyTokens' device kernels against its reference, in Triton's interpreter.

Not collected by itself: test_greedy_tokens_device.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.plugins.greedy_tokens.device import launches
from precast.plugins.greedy_tokens.device.launches import kernel_specs, run_greedy_tokens, workspace
from precast.plugins.greedy_tokens.device.op_fields import GreedyTokensFields
from precast.plugins.greedy_tokens.reference import greedy_tokens
from tests.plugins.device_ops import run_op

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
LARGEST_ERROR = 4e-6
"""Of a log_sum, besides a unit in its last place: a part of the schema's 1e-5, which is for the GPU's exp."""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few logits fill several."""
    monkeypatch.setattr(launches, "CHUNK", 16)


def run(logits: Float32) -> tuple[Int32, Float32]:
    rows, vocab_size = logits.shape
    op_fields = GreedyTokensFields(vocab_size)
    tokens, log_sums = np.full(rows, -7, np.int32), np.full(rows, -7, np.float32)
    run_op(
        run_greedy_tokens,
        op_fields,
        kernel_specs(op_fields),
        [logits],
        [tokens, log_sums],
        workspace(op_fields, rows),
    )
    return tokens, log_sums


def check(logits: Float32, largest_error: float = LARGEST_ERROR) -> tuple[Int32, Float32]:
    """Returns what the device has."""
    tokens, log_sums = run(logits)
    expected_tokens, expected = greedy_tokens(logits)
    np.testing.assert_array_equal(tokens, expected_tokens)
    is_finite = np.isfinite(expected)
    np.testing.assert_array_equal(log_sums[~is_finite], expected[~is_finite])
    exact = expected[is_finite].astype(np.float64)
    error = np.abs(log_sums[is_finite] - exact)
    assert (error <= largest_error + 2.0**-23 * np.abs(exact)).all(), error.max()
    return tokens, log_sums


def random_logits(rows: int, vocab_size: int, scale: float = 3.0) -> Float32:
    generator = np.random.default_rng(rows * vocab_size)
    return (scale * generator.standard_normal((rows, vocab_size))).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "vocab_size"), [(1, 1), (3, 7), (2, 4095), (2, 4096), (3, 4097), (100, 33), (2, 32000), (1, 151936)]
)
@pytest.mark.parametrize("scale", [3.0, 0.0, 1e3])
def test_it_is_the_reference(rows: int, vocab_size: int, scale: float) -> None:
    check(random_logits(rows, vocab_size, scale))


def test_the_largest_vocabulary() -> None:
    logits = random_logits(1, 262144)
    logits[0, [-1, 200_000]] = 40.0
    assert run(logits)[0].tolist() == [200_000]
    logits[0, -1] = 41.0
    assert check(logits)[0].tolist() == [262143]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("value", [5.0, -5.0, -np.inf, np.inf, 0.0])
def test_the_smallest_id_among_equals(value: float) -> None:
    """Whichever chunks they lie in."""
    pairs = list(itertools.combinations([0, 1, 15, 16, 31, 32, 39, 40], 2))
    logits = np.full((len(pairs), 41), -np.inf, np.float32)
    for row, pair in enumerate(pairs):
        logits[row, pair] = value
    expected = [0 if value == -np.inf else first for first, _ in pairs]
    assert check(logits)[0].tolist() == expected


def test_every_row_of_three_special_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of two."""
    monkeypatch.setattr(launches, "CHUNK", 2)
    values = (-np.inf, -0.0, 0.0, -3e38, 1.0, np.inf, np.nan)
    logits = np.array(list(itertools.product(values, repeat=3)), np.float32)
    tokens, log_sums = check(logits)
    np.testing.assert_array_equal(tokens == 3, np.isnan(logits).any(axis=1))
    assert log_sums[0] == -np.inf
    assert tokens[0] == 0


@pytest.mark.usefixtures("small_chunks")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 40).flatmap(
        lambda size: st.lists(
            st.lists(st.floats(width=32) | st.sampled_from([1.0, 2.0]), min_size=size, max_size=size),
            min_size=1,
            max_size=3,
        )
    )
)
def test_any_logits(rows: list[list[float]]) -> None:
    check(np.array(rows, np.float32))


@pytest.mark.usefixtures("small_chunks")
def test_huge_and_tiny_logits() -> None:
    logits = random_logits(6, 50)
    logits *= np.array([[3e37], [1e-38], [1e4], [1e-3], [1.0], [1.0]], np.float32)
    logits[4] += 1e6
    logits[5, 1:] = -np.inf
    assert check(logits)[1][5] == logits[5, 0]


def test_a_rows_bits_do_not_depend_on_other_rows() -> None:
    logits = random_logits(5, 9000)
    tokens, log_sums = run(logits)
    for row in range(5):
        one = run(logits[row : row + 1].copy())
        assert (one[0][0], one[1][0]) == (tokens[row], log_sums[row])


@pytest.mark.usefixtures("small_chunks")
def test_what_a_graph_of_built_in_operators_says() -> None:
    """Max, Equal, Sub, Exp, Log and Add, as IEEE has them; but a row of only -inf, which is NaN there."""
    logits = random_logits(6, 40)
    logits[0, 3] = np.inf
    logits[1, [5, 20]] = np.inf
    logits[2, 1:] = -np.inf
    logits[3, 7] = np.nan
    logits[4, :20] = -np.inf
    most = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        expected = (most + np.log(np.exp(logits - most).sum(axis=1, keepdims=True)))[:, 0]
    expected_tokens = np.where(logits == most, np.arange(40), 40).min(axis=1)
    tokens, log_sums = run(logits)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_allclose(log_sums, expected, rtol=1e-6)
