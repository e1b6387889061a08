"""TopCandidates' device kernels against its reference, in Triton's interpreter.

Not collected by itself: test_top_candidates_device.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.plugins.top_candidates.device import launches
from precast.plugins.top_candidates.device.launches import kernel_specs, run_top_candidates, workspace
from precast.plugins.top_candidates.device.op_fields import TopCandidatesFields
from precast.plugins.top_candidates.reference import top_candidates
from tests.plugins.device_ops import do_last_row_only, run_op

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@pytest.fixture(autouse=True, scope="module")
def _fast_exclusive_or() -> Iterator[None]:
    """Triton's sort has many reductions by it, which the interpreter does an element at a time."""
    import triton.language as tl
    from triton.runtime.interpreter import ReduceOps

    def apply(self: Any, inputs: Any) -> Any:
        if self.combine_fn is not tl.standard._xor_combine:
            return old(self, inputs)
        data = np.bitwise_xor.reduce(inputs[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, inputs[0].dtype)

    old = ReduceOps.apply_impl
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReduceOps, "apply_impl", apply)
        yield


@pytest.fixture
def chunks_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few logits fill several, and a tile of slots."""
    monkeypatch.setattr(launches, "CHUNK", 64)
    monkeypatch.setattr(launches, "TILE", 32)


def run(logits: Float32, num_candidates: int) -> tuple[Int32, Float32]:
    rows, vocab_size = logits.shape
    op_fields = TopCandidatesFields(vocab_size, num_candidates)
    ids, candidates = np.full((rows, num_candidates), -7, np.int32), np.full((rows, num_candidates), -7, np.float32)
    run_op(
        run_top_candidates,
        op_fields,
        kernel_specs(op_fields),
        [logits],
        [ids, candidates],
        workspace(op_fields, rows),
    )
    return ids, candidates


def check(logits: Float32, num_candidates: int) -> Int32:
    """Ids and the bits of their logits are the reference's where a row has no NaN, and else some. Returns the ids."""
    ids, candidates = run(logits, num_candidates)
    is_number = ~np.isnan(logits).any(axis=1)
    expected_ids, expected = top_candidates(logits[is_number], num_candidates)
    np.testing.assert_array_equal(ids[is_number], expected_ids)
    np.testing.assert_array_equal(candidates[is_number].view(np.int32), expected.view(np.int32))
    assert ((ids >= 0) & (ids < logits.shape[1])).all()
    np.testing.assert_array_equal(candidates.view(np.int32), np.take_along_axis(logits, ids, axis=1).view(np.int32))
    return ids


def random_logits(rows: int, vocab_size: int, scale: float = 3.0) -> Float32:
    generator = np.random.default_rng(rows * vocab_size)
    return (scale * generator.standard_normal((rows, vocab_size))).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "vocab_size", "num_candidates"),
    [
        *[(1, 1, 1), (3, 7, 7), (3, 64, 64), (2, 65, 64), (2, 8191, 64), (2, 8192, 50), (2, 8193, 64), (3, 33, 20)],
        *[(2, 32000, 64), (1, 32000, 1), (1, 151_936, 64), (1, 262_144, 64)],
    ],
)
@pytest.mark.parametrize("scale", [3.0, 0.0])
def test_it_is_the_reference(rows: int, vocab_size: int, num_candidates: int, scale: float) -> None:
    check(random_logits(rows, vocab_size, scale), num_candidates)


def samples() -> Iterator[tuple[Float32, int]]:
    """Logits that several chunks of 64 and tiles of 32 hold, the last of which are not full, and how many to choose."""
    for num_candidates in (5, 16, 1):
        for vocab_size in (150, num_candidates):
            generator = np.random.default_rng(num_candidates * vocab_size)
            normal = generator.standard_normal(vocab_size)
            integers = generator.integers(-2, 3, vocab_size)
            zeros = np.where(generator.random(vocab_size) < 0.5, 0.0, -0.0)
            few = np.where(generator.random(vocab_size) < 0.1, normal, -np.inf)
            rows = [normal, np.sort(normal), np.sort(normal)[::-1], integers, zeros, few, -np.abs(normal)]
            rows += [np.zeros(vocab_size), np.full(vocab_size, -np.inf), np.full(vocab_size, np.inf)]
            rows += [np.maximum(normal, 0), np.minimum(normal, 0), np.where(np.arange(vocab_size) % 40 > 0, -1, 0)]
            rows += [np.where((np.arange(vocab_size) + 63) % 64 < 39, -1, 0)]
            yield np.array(rows, np.float32), num_candidates


def check_samples() -> None:
    for logits, num_candidates in samples():
        check(logits, num_candidates)


@pytest.mark.usefixtures("chunks_of_64")
def test_samples() -> None:
    check_samples()


PLANTED = {
    "zeros differ": ("order", "tl.where(logits == 0.0, 0.0, logits)", "logits"),
    "negative logits rise": ("order", " ^ ((bits >> 31) & 0x7FFFFFFF)", ""),
    "what lies behind the row is zero": ("select_kernel", "tl.where(ids_J < V, order_J, LEAST)", "order_J"),
    "rows lie apart": ("select_kernel", "logits + r * V + ids_J", "logits + r * (V + 1) + ids_J"),
    "too few are above the threshold": ("select_kernel", "(num >= K) | ", "(num >= 1) | "),
    "more equal the threshold than fit": ("select_kernel", "while num_taken > S:", "while num_taken > J:"),
    "too few equal the threshold": ("select_kernel", "(num >= K, num, num_taken)", "(num > 0, num, num_taken)"),
    "those with the largest ids are taken": ("select_kernel", "(j < end)", "(j >= J - end)"),
    "none that equals the threshold is taken": ("select_kernel", "(order_J == threshold) & (j < end))\n", "(j < 0))\n"),
    "threads share slots": ("select_kernel", "tl.cumsum(num_P, axis=0) - num_P", "tl.cumsum(num_P, axis=0) * 0"),
    "slots keep what was there": ("select_kernel", "mask=s >= num_taken", "mask=s > num_taken"),
    "the larger id comes first": ("sort_kernel", "0x7FFFFFFF - ", ""),
    "one tile is sorted": ("sort_kernel", "range(0, N, T)", "range(0, T, T)"),
    "a tile is longer than the row": ("sort_kernel", "mask=slot_T < N, other=V", "mask=slot_T >= 0, other=V"),
    "lists are not bitonic": ("sort_kernel", "tl.flip(tl.topk(keys_T, G))", "tl.topk(keys_T, G)"),
    "more are written than asked for": ("sort_kernel", "id_G, mask=k < K", "id_G, mask=k < G"),
}  # fmt: skip


@pytest.mark.usefixtures("chunks_of_64")
@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    from triton.runtime.errors import InterpreterError

    name, old, new = PLANTED[defect]
    package = f"planted_{list(PLANTED).index(defect)}"
    (tmp_path / package).mkdir()
    for path in Path(launches.__file__).parent.glob("*.py"):
        text = path.read_text().replace(launches._MODULE, package)
        if path.stem == name:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / package / path.name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(launches, "_MODULE", package)
    with pytest.raises((AssertionError, InterpreterError)) as raised:
        check_samples()
    assert "AssertionError(" in repr(raised.value)  # not another error in the interpreter


@pytest.mark.usefixtures("chunks_of_64")
@pytest.mark.parametrize("value", [5.0, -5.0, -np.inf, np.inf, 0.0])
def test_the_smallest_ids_among_equals(value: float) -> None:
    """Whichever chunks they lie in."""
    pairs = list(itertools.combinations([0, 63, 64, 128, 149], 3))
    logits = np.full((len(pairs), 150), -np.inf, np.float32)
    for row, pair in enumerate(pairs):
        logits[row, pair] = value
    expected = [[0, 1] if value == -np.inf else list(pair[:2]) for pair in pairs]
    assert check(logits, 2).tolist() == expected


@pytest.mark.usefixtures("chunks_of_64")
def test_rows_with_nan_stay_in_their_bounds() -> None:
    """And change no row beside them, which are checked too. NaN of either sign, of any bits."""
    logits = random_logits(12, 150)
    logits[1, 70] = np.nan
    logits[3] = np.nan
    logits[5] = np.full(150, 0xFFFFFFFF, np.uint32).view(np.float32)
    logits[7, ::3] = np.full(50, 0xFFC00001, np.uint32).view(np.float32)
    logits[9, :100] = np.full(100, 0x7F800001, np.uint32).view(np.float32)
    logits[9, 100:] = -np.inf
    logits[11] = np.where(np.arange(150) < 148, np.full(150, 0xFFFFFFFF, np.uint32).view(np.float32), -np.inf)
    for num_candidates in (1, 16):
        check(logits, num_candidates)


def test_every_row_of_three_special_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two chunks."""
    monkeypatch.setattr(launches, "CHUNK", 8)
    values = (-np.inf, -0.0, 0.0, -1e-45, 1.0, np.inf, np.nan)
    logits = np.full((len(values) ** 3, 9), -np.inf, np.float32)
    logits[:, [0, 7, 8]] = list(itertools.product(values, repeat=3))
    check(logits[::4].copy(), 2)


@pytest.mark.usefixtures("chunks_of_64")
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_logits(data: st.DataObject) -> None:
    vocab_size = data.draw(st.integers(1, 150))
    num_candidates = data.draw(st.integers(1, min(16, vocab_size)))
    value = st.sampled_from([1.0, 2.0, -0.0, -np.inf]) | st.floats(width=32)
    logits = np.full((2, vocab_size), data.draw(value), np.float32)
    for row in logits:
        changed = data.draw(st.dictionaries(st.integers(0, vocab_size - 1), value, max_size=40))
        row[list(changed)] = list(changed.values())
    check(logits, num_candidates)


def test_a_full_chunk_of_logits_of_any_scale() -> None:
    logits = random_logits(5, 8192)
    logits *= np.array([[2e37], [1e-38], [1e-44], [-1.0], [1.0]], np.float32)
    logits[4] += 1e6  # many are equal
    check(logits, 64)


def test_the_first_of_many_equals_over_many_chunks() -> None:
    logits = np.full((2, 100_000), 1.5, np.float32)
    logits[0, [5, 8191, 8192, 99_999]] = 2.5
    logits[1, :99_980] = -np.inf
    ids = check(logits, 64)
    assert ids[0].tolist() == [5, 8191, 8192, 99_999, *range(5), *range(6, 61)]
    assert ids[1].tolist() == [*range(99_980, 100_000), *range(44)]


def test_a_rows_results_do_not_depend_on_other_rows() -> None:
    logits = random_logits(3, 9000)
    logits[1, ::7] = np.nan
    ids, candidates = run(logits, 20)
    for row in range(3):
        one = run(logits[row : row + 1].copy(), 20)
        np.testing.assert_array_equal(one[0][0], ids[row])
        np.testing.assert_array_equal(one[1][0], candidates[row])


def test_rows_beyond_two_to_the_31_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocab_size = (1 << 11) + 1, 1 << 20
    logits = np.zeros((rows, vocab_size), np.float32)  # pages that nobody touches take no memory
    logits[-1] = random_logits(1, vocab_size)[0]
    op_fields = TopCandidatesFields(vocab_size, 3)
    ids, candidates = np.zeros((rows, 3), np.int32), np.zeros((rows, 3), np.float32)
    do_last_row_only(monkeypatch, launches, rows)
    run_op(
        run_top_candidates,
        op_fields,
        kernel_specs(op_fields),
        [logits],
        [ids, candidates],
        workspace(op_fields, rows),
    )
    expected_ids, expected = top_candidates(logits[-1:], 3)
    np.testing.assert_array_equal(ids[-1:], expected_ids)
    np.testing.assert_array_equal(candidates[-1:], expected)
