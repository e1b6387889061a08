"""PagedAttention's device kernels against its reference, in Triton's interpreter.

Not collected by itself: test_paged_attention_device.py runs this file in a process whose TRITON_INTERPRET is 1.
"""

import dataclasses

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from precast.plugins.paged_attention.device import kernels, launches, paging, softmax
from precast.plugins.paged_attention.device.launches import StepShape
from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS, PagedAttentionAttributes
from tests.plugins.device_paged_attention_world import Sequence, World

Float32 = NDArray[np.float32]

BF16, F16 = DEVICE_KV_LAYOUTS
UNIT_ROUNDOFF = {BF16: 2.0**-8, F16: 2.0**-11}
"""Half the distance of neighbouring numbers, relative to them."""
MOST_ROUNDINGS = 2
"""max|a - b| / max|b| in units of the above. The output is rounded once. What else differs averages out over tokens,
and another unit is ample: probabilities are rounded relative to another maximum, and q or k may fall on the other side
of a rounding where sums run in another order."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16: a few rows and tokens fill several."""
    monkeypatch.setattr(kernels, "CONTEXT_BLOCK", 16)
    monkeypatch.setattr(kernels, "CONTEXT_KEYS", 16)


def attributes(
    layout: str = BF16, heads: int = 4, kv_heads: int = 2, dim: int = 16, per_block: int = 16, **more: float
) -> PagedAttentionAttributes:
    op = PagedAttentionAttributes(heads, kv_heads, dim, dim**-0.5, layout, per_block)
    return dataclasses.replace(op, **more)  # type: ignore[arg-type]


def assert_same_output(world: World, output: Float32, expected: Float32) -> None:
    error = float(np.abs(output - expected).max() / np.abs(expected).max())
    unit = UNIT_ROUNDOFF[world.op.kv_layout]
    assert error <= MOST_ROUNDINGS * unit, f"{error / unit:.1f} units"


def assert_same_attention(world: World) -> None:
    """Phase 2 alone: the pool and the queries are the reference's."""
    assert_same_output(world, world.device(written_by_reference=True)[0], world.reference()[0])


def assert_same(world: World, largest: StepShape | None = None) -> None:
    """Both sides compute the same output and leave the same pool, within rounding."""
    expected, expected_kv = world.reference()
    output, kv = world.device(largest)
    assert_same_output(world, output, expected)
    written = world.positions(written=True)
    pools = [world.pool_elements(x) for x in (kv, expected_kv)]
    np.testing.assert_array_equal(*(x.swapaxes(1, 3)[~written].view(np.uint16) for x in pools))  # untouched
    (k, v), (expected_k, expected_v) = (x.transpose(2, 0, 3, 1, 4)[:, written] for x in pools)
    np.testing.assert_array_equal(v.view(np.uint16), expected_v.view(np.uint16))
    if world.rotary_dim or world.has_norm:
        k, expected_k = k.astype(np.float32), expected_k.astype(np.float32)
        unit = UNIT_ROUNDOFF[world.op.kv_layout]
        assert (np.abs(k - expected_k) <= 2 * unit * np.abs(expected_k) + 1e-6).all()  # the neighbour at most
        assert (k == expected_k).mean() > 0.97
    else:
        np.testing.assert_array_equal(k.view(np.uint16), expected_k.view(np.uint16))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("layout", "heads", "kv_heads"),
    [(BF16, 2, 2), (F16, 4, 2), (BF16, 4, 1), (F16, 8, 1), (BF16, 6, 2), (F16, 7, 1), (BF16, 20, 1)],
)
def test_grouped_heads_in_a_mixed_step(layout: str, heads: int, kv_heads: int) -> None:
    sequences = [Sequence(40, 1), Sequence(70, 11), Sequence(1, 1), Sequence(7, 7), Sequence(20, 2)]
    assert_same_attention(World(attributes(layout, heads, kv_heads), sequences))


@pytest.mark.parametrize("layout", DEVICE_KV_LAYOUTS)
def test_a_mixed_step_from_qkv_to_output(layout: str) -> None:
    sequences = [Sequence(40, 1), Sequence(70, 5), Sequence(1, 1), Sequence(20, 2)]
    assert_same(World(attributes(layout), sequences, rotary_dim=16))


@pytest.mark.parametrize(
    ("dim", "per_block"), [(2, 64), (34, 48), (64, 16), (64, 64), (80, 16), (80, 48), (128, 32), (256, 16), (256, 128)]
)
def test_head_dims_and_block_sizes(dim: int, per_block: int) -> None:
    """With the tiles that devices use: 64 rows of two heads, 64 or fewer tokens."""
    assert_same_attention(World(attributes(F16, 2, 1, dim, per_block), [Sequence(150, 66), Sequence(100, 1)]))


@pytest.mark.parametrize("dim", [2, 34, 80, 128])
def test_writing_head_dims(dim: int) -> None:
    assert_same(World(attributes(BF16, 3, 1, dim), [Sequence(18, 3)], rotary_dim=2 * (dim // 4) or 2, has_norm=True))


@pytest.mark.parametrize("context_length", [511, 512, 513, 1024, 1025])
@pytest.mark.parametrize("rows", [1, 3])
def test_contexts_around_the_ends_of_splits(context_length: int, rows: int) -> None:
    assert_same_attention(World(attributes(heads=2, kv_heads=1), [Sequence(context_length, rows), Sequence(16)]))


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("window", [1, 17, 64, 65, 200, 513, 2000])
def test_windows(window: int, rows: int) -> None:
    """Entries of blocks below the window are -1, and blocks that begin below it hold NaNs there."""
    op = attributes(heads=2, kv_heads=1, window=window)
    assert_same_attention(World(op, [Sequence(700, rows), Sequence(180, rows)]))


@pytest.mark.parametrize("window", [0, 2500])
def test_a_span_may_be_of_several_splits(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(kernels, "MAX_SPANS", 4)
    op = attributes(heads=2, kv_heads=1, window=window)
    assert_same_attention(World(op, [Sequence(3000), Sequence(1600), Sequence(512)]))


def test_few_programs_share_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_DECODE_PROGRAMS", 4)
    assert_same_attention(World(attributes(heads=2, kv_heads=1), [Sequence(1700), Sequence(90)]))


@pytest.mark.parametrize("programs", [1, 9])
def test_a_program_of_the_write_kernel_does_some_of_the_heads(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    monkeypatch.setattr(launches, "_WRITE_PROGRAMS", programs)
    assert_same(World(attributes(heads=10, kv_heads=5), [Sequence(9, 3), Sequence(9)], rotary_dim=8, has_norm=True))


SINKS = np.array([0.5, -np.inf, 30, -3, 2, 1], np.float32)
"""Of six heads: some matter, one takes no part, one takes nearly all."""


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("layout", DEVICE_KV_LAYOUTS)
@pytest.mark.parametrize(("logit_softcap", "sinks"), [(0.5, None), (0.0, SINKS), (2.0, SINKS)])
@pytest.mark.parametrize("window", [0, 20])
def test_soft_capping_and_sinks(layout: str, logit_softcap: float, sinks: Float32 | None, window: int) -> None:
    """In both attention kernels, whole and masked tiles, and over the spans of several splits."""
    op = attributes(layout, 6, 2, logit_softcap=logit_softcap, window=window)
    assert_same_attention(World(op, [Sequence(40), Sequence(70, 11), Sequence(1), Sequence(1100)], sinks=sinks))


@pytest.mark.usefixtures("small_tiles")
def test_a_sink_of_minus_infinity_is_none() -> None:
    op, sequences = attributes(heads=6, kv_heads=2), [Sequence(40), Sequence(70, 11), Sequence(1100)]
    outputs = [
        World(op, sequences, sinks=sinks).device(written_by_reference=True)[0]
        for sinks in (None, np.full(6, -np.inf, np.float32), SINKS)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    heads = [output.reshape(13, 6, 16) for output in outputs]
    np.testing.assert_array_equal(heads[0][:, 1], heads[2][:, 1])
    assert (np.abs(heads[2][:, 2]) < 1e-9).all()


@triton.jit  # type: ignore[untyped-decorator]
def take_tanh(x, y, MULTIPLE: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x, y: fp32 [SIZE]."""
    i = tl.arange(0, SIZE)
    tl.store(y + i, softmax.tanh_of_multiple(tl.load(x + i), MULTIPLE))


@pytest.mark.parametrize("multiple", [0.0025, 1.0, 40.0])
def test_tanh(multiple: float) -> None:
    """A GPU's exp2 and quotient may be two ulps off, the interpreter's are not: the rest of the schema's 7e-7."""
    y = np.concatenate([np.linspace(-20, 20, 4084), [0, 1e-30, -1e-9, 88, -88, 1e4, -1e4, 3e38, -3e38]])
    x = np.concatenate([np.clip(y / multiple, -3e38, 3e38), [np.inf, -np.inf, np.nan]]).astype(np.float32)
    found = np.empty_like(x)
    with np.errstate(over="ignore"):
        take_tanh[(1,)](torch.from_numpy(x), torch.from_numpy(found), multiple, len(x))
        exact = np.tanh(x.astype(np.float64) * multiple)
    assert np.abs(found - exact)[:-1].max() < 3e-7
    assert np.isnan(found[-1])


@pytest.mark.parametrize("layout", DEVICE_KV_LAYOUTS)
@pytest.mark.parametrize(("rotary_dim", "num_frequencies"), [(0, 1), (16, 1), (24, 4)])
def test_norm_and_rotation(layout: str, rotary_dim: int, num_frequencies: int) -> None:
    op = attributes(layout, 3, 1, 24, rope_scaling=1.25, rope_start=37, qk_norm_epsilon=0.1)
    sequences = [Sequence(40, 3), Sequence(38), Sequence(60, 2)]
    assert_same(World(op, sequences, rotary_dim, num_frequencies, has_norm=True))
    assert_same(World(op, sequences, rotary_dim, num_frequencies, has_norm=False))


def test_sines_of_far_positions() -> None:
    """A position of 2^20 without a context of that length: a window leaves all blocks but the last few to others."""
    op = attributes(window=20)
    assert_same(World(op, [Sequence(2**20 + 5), Sequence(2**20 + 30, 3)], rotary_dim=16, num_frequencies=2))


@triton.jit  # type: ignore[untyped-decorator]
def find_sequences(query_starts, found, row, num_sequences, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """found [T, 2] int32: the sequence of this row, and that of the tile of this index."""
    tl.store(found + 2 * row, paging.sequence_of_row(query_starts, row, num_sequences))
    tl.store(found + 2 * row + 1, paging.sequence_of_tile(query_starts, row, num_sequences, ROWS))


@pytest.mark.parametrize("num_sequences", [1, 3, 128, 129, 300])
@pytest.mark.parametrize("rows", [1, 3])
def test_finding_the_sequence_of_a_row_and_of_a_tile(num_sequences: int, rows: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 5, num_sequences)
    starts = np.array([0, *np.cumsum(lengths)], np.int32)
    found = np.full((starts[-1] // rows + num_sequences, 2), -1, np.int32)
    tiles = np.random.default_rng(2).choice(len(found), min(len(found), 8), replace=False)
    for tile in tiles:
        find_sequences[(1,)](*map(torch.from_numpy, (starts, found)), int(tile), num_sequences, rows)
    tile_of = {}
    for s in range(num_sequences):
        for i in range(-(-int(lengths[s]) // rows)):
            tile_of[int(starts[s]) // rows + s + i] = s
    assert len(tile_of) == sum(-(-lengths // rows))  # every tile of every sequence has an index of its own
    for tile in tiles:
        if tile < starts[-1]:
            assert found[tile, 0] == np.searchsorted(starts, tile, "right") - 1
        if int(tile) in tile_of:
            assert found[tile, 1] == tile_of[int(tile)]


@pytest.mark.usefixtures("small_tiles")
def test_sequences_may_share_blocks_and_one_may_write_what_another_reads() -> None:
    sequences = [Sequence(40, 12), Sequence(50, 3, shared_blocks=2), Sequence(33, 1, shared_blocks=2)]
    assert_same(World(attributes(heads=2, kv_heads=1), sequences, rotary_dim=16))


def test_a_workspace_of_larger_shapes_serves() -> None:
    assert_same(World(attributes(), [Sequence(30, 3), Sequence(600)]), StepShape(9, 4, 300))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("logit_softcap", "sinks"), [(0.0, None), (2.0, SINKS[:4])])
def test_rows_do_not_depend_on_the_chunk_they_come_in(logit_softcap: float, sinks: Float32 | None) -> None:
    """The same tokens in one chunk and in several: the same bits, whole tiles or masked ones."""
    op = attributes(heads=4, kv_heads=1, window=35, logit_softcap=logit_softcap)
    whole = World(op, [Sequence(70, 70)], sinks=sinks)
    output, kv = whole.device(written_by_reference=True)
    parts = World(op, [Sequence(70, 70)], sinks=sinks)  # one table for all of its blocks
    for begin, end in [(0, 25), (25, 27), (27, 64), (64, 70)]:
        parts.sequences, parts.num_tokens = [Sequence(end, end - begin)], end - begin
        parts.starts, parts.lengths = np.array([0, end - begin], np.int32), np.array([end], np.int32)
        parts.qkv = whole.qkv[begin:end]
        part, parts.kv = parts.device(written_by_reference=True)
        np.testing.assert_array_equal(part, output[begin:end])
    np.testing.assert_array_equal(parts.kv, kv)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize("window", [0, 9])
def test_a_token_that_is_not_finite_changes_only_rows_that_see_it(window: int, part: str, value: float) -> None:
    world = World(attributes(heads=4, kv_heads=2, window=window), [Sequence(60, 40), Sequence(30)])
    expected, _ = world.device(written_by_reference=True)
    row = 13
    world.qkv.reshape(41, 4 + 2 + 2, 16)[row, 4 if part == "k" else 6, 3] = value
    with np.errstate(all="ignore"):
        output, _ = world.device(written_by_reference=True)
    rows, others = np.split(output.reshape(41, 4, 16), [40])[0], [*range(row), *range(row + (window or 40), 40), 40]
    np.testing.assert_array_equal(np.delete(output, range(row, min(40, row + (window or 40))), 0), expected[others])
    seen = rows[row : row + (window or 40), :2]  # the query heads of KV head 0
    spoiled = seen[:, :, 3] if part == "v" else seen
    if part == "k" and value == np.inf:  # a score of -inf takes no part, one of +inf spoils all
        assert np.isnan(spoiled).any()
    else:
        assert not np.isfinite(spoiled).any()
    np.testing.assert_array_equal(rows[:, 2:], expected.reshape(41, 4, 16)[:40, 2:])


@pytest.mark.usefixtures("small_tiles")
@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    layout=st.sampled_from(DEVICE_KV_LAYOUTS),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 5]),
    dim=st.sampled_from([8, 16, 40]),
    per_block=st.sampled_from([16, 32, 64, 80]),
    rotary=st.sampled_from([0, 4, 8]),
    has_norm=st.booleans(),
    window=st.sampled_from([0, 0, 1, 16, 33, 100]),
    logit_softcap=st.sampled_from([0.0, 0.0, 0.7, 50.0]),
    has_sinks=st.booleans(),
    sequences=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_small_worlds(
    layout: str,
    kv_heads: int,
    group: int,
    dim: int,
    per_block: int,
    rotary: int,
    has_norm: bool,
    window: int,
    logit_softcap: float,
    has_sinks: bool,
    sequences: list[tuple[int, int]],
    seed: int,
) -> None:
    op = attributes(layout, kv_heads * group, kv_heads, dim, per_block, window=window, qk_norm_epsilon=0.01)
    op = dataclasses.replace(op, logit_softcap=logit_softcap)
    steps = [Sequence(length, min(length, rows)) for length, rows in sequences]
    sinks = np.random.default_rng(seed).standard_normal(op.num_heads).astype(np.float32) if has_sinks else None
    assert_same(World(op, steps, rotary, 2, has_norm, seed, sinks))
