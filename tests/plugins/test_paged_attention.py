"""The reference of PagedAttention against plain dense attention, PyTorch and Hugging Face's rotary embedding."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from precast.plugins import DEVICE_LAYOUTS, SUPPORTED_LAYOUTS, SUPPORTED_OPS
from precast.plugins.paged_attention import reference, schema
from precast.plugins.paged_attention.reference import KvPool, paged_attention, rotate
from precast.plugins.paged_attention.schema import (
    CPU_KV_LAYOUTS,
    DEVICE_KV_LAYOUTS,
    ELEMENT_BYTES,
    KV_LAYOUTS,
    PagedAttentionAttributes,
)

Float32 = NDArray[np.float32]

TOLERANCES = {"kv16.f32/1": 1e-6, "kv16.bf16/1": 2e-2, "kvrow.bf16/1": 2e-2, "kvrow.f16/1": 5e-3}
"""max|a - b| / max|b| against attention without any rounding."""


def attributes(layout: str = "kv16.f32/1", heads: int = 4, kv_heads: int = 2, dim: int = 8) -> PagedAttentionAttributes:
    return PagedAttentionAttributes(heads, kv_heads, dim, dim**-0.5, layout, tokens_per_block=16)


def inverse_frequencies(rotary_dim: int) -> Float32:
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequencies: Float32 = (np.float32(1) / np.float32(10000) ** exponents).astype(np.float32)
    return frequencies[None]


def dense_attention(qkv: Float32, op: PagedAttentionAttributes, inv_freq: Float32 | None) -> Float32:
    """Causal attention, perhaps in a window, of one whole sequence in fp64: no pool, no splits, no rounding."""
    num_tokens = qkv.shape[0]
    q, k, v = np.split(qkv.reshape(num_tokens, -1, op.head_dim), [op.num_heads, op.num_heads + op.num_kv_heads], axis=1)
    if inv_freq is not None:
        positions = np.arange(num_tokens)
        q, k = (rotate(x, positions, inv_freq, op.rope_scaling, op.rope_start) for x in (q, k))
    keys, values = (np.repeat(x.astype(np.float64), op.queries_per_kv, axis=1) for x in (k, v))
    scores = np.einsum("thd,jhd->htj", q.astype(np.float64), keys) * op.scale
    visible = np.tri(num_tokens, dtype=bool)
    if op.window:
        visible &= ~np.tri(num_tokens, k=-op.window, dtype=bool)
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output: Float32 = np.einsum("htj,jhd->thd", weights, values).reshape(num_tokens, -1).astype(np.float32)
    return output


def relative_error(a: Float32, b: Float32) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@dataclasses.dataclass
class World:
    """Sequences in one poisoned pool, with block tables in a random order."""

    op: PagedAttentionAttributes
    sequences: list[Float32]
    inv_freq: Float32 | None
    seed: int = 0
    sinks: Float32 | None = None

    def __post_init__(self) -> None:
        per_block = self.op.tokens_per_block
        needed = [-(-len(tokens) // per_block) for tokens in self.sequences]
        ids = iter(np.random.default_rng(self.seed).permutation(sum(needed) + 2))
        self.tables = np.full((len(needed), max(needed)), -1, np.int32)
        for s, count in enumerate(needed):
            self.tables[s, :count] = [next(ids) for _ in range(count)]
        self.kv = np.full((sum(needed) + 2, self.op.block_bytes), 0xFF, np.uint8)  # NaNs, in both types

    def step(self, chunks: list[tuple[int, int, int]]) -> list[Float32]:
        """One call for tokens begin .. end - 1 of each (sequence, begin, end); the outputs of each.

        Blocks below the window of a sequence's first row are taken away, for good.
        """
        for s, begin, _ in chunks:
            self.tables[s, : self.op.first_visible(begin) // self.op.tokens_per_block] = -1
        starts = np.cumsum([0] + [end - begin for _, begin, end in chunks]).astype(np.int32)
        output = paged_attention(
            np.concatenate([self.sequences[s][begin:end] for s, begin, end in chunks]),
            starts,
            np.array([end for _, _, end in chunks], np.int32),
            self.tables[[s for s, _, _ in chunks]],
            self.kv,
            self.op,
            self.inv_freq,
            sinks=self.sinks,
        )
        assert output.dtype == np.float32
        return np.split(output, starts[1:-1])


def random_tokens(op: PagedAttentionAttributes, num_tokens: int, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((num_tokens, op.qkv_features)).astype(np.float32)


def test_the_op_and_its_layouts_are_listed() -> None:
    assert f"{schema.DOMAIN}.{schema.NAME}/{schema.VERSION}" in SUPPORTED_OPS
    assert set(CPU_KV_LAYOUTS) <= set(SUPPORTED_LAYOUTS)
    assert set(DEVICE_KV_LAYOUTS) == set(DEVICE_LAYOUTS)


def test_each_layout_belongs_to_one_backend() -> None:
    assert (*CPU_KV_LAYOUTS, *DEVICE_KV_LAYOUTS) == KV_LAYOUTS
    assert {name: dtype.itemsize for name, dtype in reference.ELEMENT_TYPES.items()} == ELEMENT_BYTES


def test_sizes() -> None:
    op = PagedAttentionAttributes(32, 4, 64, 0.125, "kv16.bf16/1", 32)
    assert (op.queries_per_kv, op.qkv_features, op.block_bytes) == (8, 40 * 64, 2 * 4 * 32 * 64 * 2)
    assert dataclasses.replace(op, kv_layout="kv16.f32/1").block_bytes == 2 * op.block_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_layout": "kv16.int8/1"}, r"'kv16.int8/1'.*kv16.f32/1, kv16.bf16/1"),
        ({"num_kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"num_kv_heads": 0}, "cannot share 0 KV heads"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"tokens_per_block": 24}, "tokens_per_block is 24"),
        ({"tokens_per_block": 0}, "tokens_per_block is 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"rope_scaling": float("inf")}, "rope_scaling is inf"),
        ({"qk_norm_epsilon": -1.0}, "qk_norm_epsilon is -1.0"),
        ({"logit_softcap": -1.0}, "logit_softcap is -1.0"),
        ({"logit_softcap": float("inf")}, "logit_softcap is inf"),
        ({"rope_start": -1}, "rope_start is -1"),
        ({"window": -1}, "window is -1"),
        ({"window": 2**31}, "window is 2147483648"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(attributes(), **change)  # type: ignore[arg-type]


def test_the_first_position_that_a_row_sees() -> None:
    full, windowed = (dataclasses.replace(attributes(), window=window) for window in (0, 4))
    assert [full.first_visible(p) for p in (0, 3, 4, 100)] == [0, 0, 0, 0]
    assert [windowed.first_visible(p) for p in (0, 3, 4, 100)] == [0, 0, 1, 97]


def test_rotate_is_hugging_faces() -> None:
    generator = np.random.default_rng(1)
    q, k = generator.standard_normal((2, 7, 3, 16)).astype(np.float32)
    positions = np.array([0, 1, 2, 50, 1000, 8191, 131071])
    inv_freq = inverse_frequencies(16)
    angles = torch.from_numpy(positions.astype(np.float32)[:, None] * inv_freq)
    doubled = torch.cat([angles, angles], dim=-1)[None]  # [batch, tokens, dim], as LlamaRotaryEmbedding makes it
    heads_first = [torch.from_numpy(x).transpose(0, 1)[None] for x in (q, k)]
    expected = apply_rotary_pos_emb(*heads_first, doubled.cos() * 1.25, doubled.sin() * 1.25)
    for x, wanted in zip((q, k), expected, strict=True):
        rotated = rotate(x, positions, inv_freq, rope_scaling=1.25)
        np.testing.assert_allclose(rotated, wanted[0].transpose(0, 1).numpy(), atol=2e-6)


def test_positions_behind_rope_start_have_frequencies_of_their_own() -> None:
    x = np.random.default_rng(3).standard_normal((8, 2, 8)).astype(np.float32)
    table = np.concatenate([inverse_frequencies(8) / np.float32(n) for n in (1, 2, 3)])
    rotated = rotate(x, np.arange(8), table, rope_start=4)
    for position, row in enumerate([0, 0, 0, 0, 0, 1, 2, 2]):
        alone = rotate(x[position : position + 1], np.array([position]), table[row : row + 1])
        np.testing.assert_array_equal(rotated[position : position + 1], alone)


def test_rotate_leaves_elements_behind_rotary_dim_alone() -> None:
    x = np.random.default_rng(2).standard_normal((3, 2, 12)).astype(np.float32)
    rotated = rotate(x, np.arange(3), inverse_frequencies(8))
    np.testing.assert_array_equal(rotated[..., 8:], x[..., 8:])
    assert (rotated[1:, :, :8] != x[1:, :, :8]).all()


def test_it_is_torchs_attention() -> None:
    op = attributes(heads=6, kv_heads=2, dim=16)
    tokens = random_tokens(op, 40, 3)
    (output,) = World(op, [tokens], None).step([(0, 0, 40)])
    parts = np.split(tokens.reshape(40, 10, 16), [6, 8], axis=1)
    q, k, v = (torch.from_numpy(x.copy()).transpose(0, 1)[None] for x in parts)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(output, expected[0].transpose(0, 1).reshape(40, -1).numpy(), atol=2e-6)


@settings(deadline=None, max_examples=40)
@given(
    layout=st.sampled_from(KV_LAYOUTS),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    dim=st.sampled_from([2, 8, 16, 34]),
    tokens_per_block=st.sampled_from([16, 32, 48]),
    rotary=st.sampled_from(["none", "part", "whole"]),
    window=st.sampled_from([0, 1, 2, 16, 33]),
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_packed_and_chunked_sequences_are_dense_attention(
    layout: str,
    kv_heads: int,
    group: int,
    dim: int,
    tokens_per_block: int,
    rotary: str,
    window: int,
    lengths: list[int],
    seed: int,
    data: st.DataObject,
) -> None:
    op = PagedAttentionAttributes(kv_heads * group, kv_heads, dim, dim**-0.5, layout, tokens_per_block, 1.5, window)
    inv_freq = {"none": None, "part": inverse_frequencies(2), "whole": inverse_frequencies(dim)}[rotary]
    sequences = [random_tokens(op, length, seed + s) for s, length in enumerate(lengths)]
    world = World(op, sequences, inv_freq, seed)
    outputs: list[list[Float32]] = [[] for _ in lengths]
    done = [0] * len(lengths)
    while any(d < length for d, length in zip(done, lengths, strict=True)):
        chunks = [(s, d, d + data.draw(st.integers(1, lengths[s] - d))) for s, d in enumerate(done) if d < lengths[s]]
        for (s, _, end), output in zip(chunks, world.step(chunks), strict=True):
            outputs[s].append(output)
            done[s] = end
    for tokens, parts in zip(sequences, outputs, strict=True):
        assert relative_error(np.concatenate(parts), dense_attention(tokens, op, inv_freq)) < TOLERANCES[layout]


@pytest.mark.parametrize("window", [0, 1, 500, 513])
@pytest.mark.parametrize("layout", KV_LAYOUTS)
def test_contexts_of_several_splits(layout: str, window: int) -> None:
    op = dataclasses.replace(attributes(layout, heads=2, kv_heads=1, dim=4), window=window)
    tokens = random_tokens(op, 1030, 5)
    world = World(op, [tokens], inverse_frequencies(4))
    expected = dense_attention(tokens, op, inverse_frequencies(4))
    world.step([(0, 0, 510)])
    for begin, end in [(510, 515), (515, 1023), (1023, 1024), (1024, 1025), (1025, 1030)]:
        (output,) = world.step([(0, begin, end)])
        assert relative_error(output, expected[begin:end]) < TOLERANCES[layout]


def torch_attention(tokens: Float32, op: PagedAttentionAttributes, sinks: Float32 | None) -> Float32:
    """One whole sequence in fp64, soft-cap and sinks written out: the sinks are one more column of the scores."""
    num_tokens = len(tokens)
    heads = torch.from_numpy(tokens).double().reshape(num_tokens, -1, op.head_dim).transpose(0, 1)
    q, k, v = heads.split([op.num_heads, op.num_kv_heads, op.num_kv_heads])
    k, v = (x.repeat_interleave(op.queries_per_kv, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * op.scale
    if op.logit_softcap:
        scores = op.logit_softcap * torch.tanh(scores / op.logit_softcap)
    distances = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    scores[:, (distances < 0) | (distances >= (op.window or num_tokens))] = -torch.inf
    if sinks is not None:
        column = torch.from_numpy(sinks).double()[:, None, None].expand(-1, num_tokens, 1)
        scores = torch.cat([scores, column], dim=2)
    weights = torch.softmax(scores, dim=2)[:, :, :num_tokens]
    output: Float32 = (weights @ v).transpose(0, 1).reshape(num_tokens, -1).float().numpy()
    return output


SINKS = np.array([0.5, -np.inf, 30, -3, 2, 1], np.float32)
"""Of six heads: some matter, one takes no part, one takes nearly all."""


@pytest.mark.parametrize("layout", ["kv16.f32/1", "kvrow.f16/1"])
@pytest.mark.parametrize(("logit_softcap", "sinks"), [(0.5, None), (0.0, SINKS), (0.5, SINKS)])
@pytest.mark.parametrize("window", [0, 520])
def test_soft_capping_and_sinks(layout: str, logit_softcap: float, sinks: Float32 | None, window: int) -> None:
    """Over groups of heads, and rows of several splits: a sink counts once, however many there are."""
    op = dataclasses.replace(attributes(layout, heads=6, kv_heads=2), logit_softcap=logit_softcap, window=window)
    tokens = random_tokens(op, 1030, 11)
    world = World(op, [tokens], None, sinks=sinks)
    expected = torch_attention(tokens, op, sinks)
    world.step([(0, 0, 505)])
    for begin, end in [(505, 515), (515, 1020), (1020, 1030)]:
        (output,) = world.step([(0, begin, end)])
        for head in range(6):
            found, wanted = (x.reshape(-1, 6, 8)[:, head] for x in (output, expected[begin:end]))
            assert relative_error(found, wanted) < TOLERANCES[layout]


def hugging_faces(
    module: object, op: PagedAttentionAttributes, tokens: Float32, sinks: Float32, **more: object
) -> Float32:
    """eager_attention_forward of a model's file, for one whole sequence."""
    heads = torch.from_numpy(tokens).reshape(1, len(tokens), -1, op.head_dim).transpose(1, 2)
    q, k, v = heads.split([op.num_heads, op.num_kv_heads, op.num_kv_heads], dim=1)
    mask = torch.full((len(tokens),) * 2, -torch.inf).triu(1)[None, None]
    layer = SimpleNamespace(num_key_value_groups=op.queries_per_kv, sinks=torch.from_numpy(sinks), training=False)
    output, _ = module.eager_attention_forward(layer, q, k, v, mask, scaling=op.scale, **more)  # type: ignore[attr-defined]
    result: Float32 = output.reshape(len(tokens), -1).numpy()
    return result


def test_soft_capping_is_gemma_2s() -> None:
    op = dataclasses.replace(attributes(heads=6, kv_heads=2), logit_softcap=0.5)
    tokens = random_tokens(op, 40, 12)
    (output,) = World(op, [tokens], None).step([(0, 0, 40)])
    expected = hugging_faces(modeling_gemma2, op, tokens, SINKS, softcap=0.5)
    assert relative_error(output, expected) < 2e-6


def test_sinks_are_gpt_osss() -> None:
    op = attributes(heads=6, kv_heads=2)
    tokens = random_tokens(op, 40, 13)
    (output,) = World(op, [tokens], None, sinks=SINKS).step([(0, 0, 40)])
    assert relative_error(output, hugging_faces(modeling_gpt_oss, op, tokens, SINKS)) < 2e-6


def test_a_high_cap_is_none_and_so_is_a_sink_of_minus_infinity() -> None:
    op = attributes()
    tokens = random_tokens(op, 40, 14)
    (expected,) = World(op, [tokens], None).step([(0, 0, 40)])
    (output,) = World(dataclasses.replace(op, logit_softcap=1e6), [tokens], None).step([(0, 0, 40)])
    np.testing.assert_allclose(output, expected, atol=1e-6)
    (output,) = World(op, [tokens], None, sinks=np.full(4, -np.inf, np.float32)).step([(0, 0, 40)])
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("layout", KV_LAYOUTS)
def test_a_sequence_may_read_a_block_that_another_writes_in_the_same_step(layout: str) -> None:
    op = attributes(layout)
    tokens = random_tokens(op, 20, 6)
    world = World(op, [tokens, tokens], inverse_frequencies(8))
    world.tables[1, 0] = world.tables[0, 0]
    second, first = world.step([(1, 16, 20), (0, 0, 20)])
    np.testing.assert_array_equal(second, first[16:])


@pytest.mark.parametrize("layout", CPU_KV_LAYOUTS)
def test_the_first_token_of_a_tile_zeroes_it_and_others_do_not(layout: str) -> None:
    op = attributes(layout)
    kv = np.full((1, op.block_bytes), 0xFF, np.uint8)
    pool = KvPool(kv, op)
    k, v = np.random.default_rng(7).standard_normal((2, 2, 8)).astype(np.float32)
    table = np.zeros(1, np.int32)
    pool.write(table, 0, k, v)
    pool.write(table, 3, 2 * k, 3 * v)
    k_read, v_read = pool.read(table, range(16))
    rounded_k, rounded_v = (x.astype(pool.element_type).astype(np.float32) for x in (k, v))
    np.testing.assert_array_equal(k_read[:, 0], rounded_k)
    np.testing.assert_array_equal(k_read[:, 3], 2 * rounded_k)
    np.testing.assert_allclose(v_read[:, 3], 3 * rounded_v, rtol=1e-2)
    assert not k_read[:, [1, 2, *range(4, 16)]].any()
    assert not v_read[:, [1, 2, *range(4, 16)]].any()


def test_the_bytes_of_a_bf16_block() -> None:
    """The drawing in the schema, byte by byte: 2 heads of 2 dims, 2 tiles."""
    op = PagedAttentionAttributes(2, 2, 2, 1.0, "kv16.bf16/1", 32)
    kv = np.zeros((3, op.block_bytes), np.uint8)
    k = np.array([[1, 2], [3, 4]], np.float32)
    KvPool(kv, op).write(np.array([2], np.int32), 21, k, k + 10)
    assert not kv[:2].any()
    block = kv[2].view(bfloat16).reshape(2, 2, 2, 32)  # [head, tile, K or V, 16 tokens x 2 dims]
    k_tile = block[1, 1, 0].reshape(1, 16, 2)  # [dim pair, token, dim of the pair]
    v_tile = block[1, 1, 1].reshape(8, 2, 2)  # [token pair, dim, token of the pair]
    assert k_tile[0, 5].tolist() == [3, 4]
    assert v_tile[2, :, 1].tolist() == [13, 14]
    assert np.count_nonzero(block.astype(np.float32)) == 8


@pytest.mark.parametrize("layout", DEVICE_KV_LAYOUTS)
def test_the_bytes_of_a_kvrow_block(layout: str) -> None:
    """The drawing in the schema, byte by byte: 2 heads of 2 dims, 32 tokens. Only the token's own bytes change."""
    op = PagedAttentionAttributes(2, 2, 2, 1.0, layout, 32)
    kv = np.zeros((3, op.block_bytes), np.uint8)
    k = np.array([[1, 2], [3, 4]], np.float32)
    pool = KvPool(kv, op)
    pool.write(np.array([2], np.int32), 16, k, k + 10)
    assert not kv[:2].any()
    block = kv[2].view(pool.element_type).reshape(2, 2, 32, 2)  # [head, K or V, token, dim]
    assert block[:, 0, 16].tolist() == [[1, 2], [3, 4]]
    assert block[:, 1, 16].tolist() == [[11, 12], [13, 14]]
    assert np.count_nonzero(block.astype(np.float32)) == 8
    k_read, v_read = pool.read(np.array([2], np.int32), range(16, 17))
    assert (k_read.tolist(), v_read.tolist()) == ([[[1, 2]], [[3, 4]]], [[[11, 12]], [[13, 14]]])


def test_queries_and_keys_are_normed_before_the_rotation() -> None:
    op = dataclasses.replace(attributes(heads=4, kv_heads=2, dim=8), qk_norm_epsilon=0.1)
    tokens, inv_freq = random_tokens(op, 20, 9), inverse_frequencies(8)
    q_norm, k_norm = np.random.default_rng(10).standard_normal((2, 8)).astype(np.float32)
    heads = torch.from_numpy(tokens.reshape(20, 8, 8).copy())
    normed = heads.clone()
    normed[:, :4] = torch.nn.functional.rms_norm(heads[:, :4], [8], torch.from_numpy(q_norm), 0.1)
    normed[:, 4:6] = torch.nn.functional.rms_norm(heads[:, 4:6], [8], torch.from_numpy(k_norm), 0.1)
    indices = np.array([0, 20], np.int32), np.array([20], np.int32), np.array([[1, 0]], np.int32)
    pool = np.zeros((2, op.block_bytes), np.uint8)
    output = paged_attention(tokens, *indices, pool, op, inv_freq, q_norm, k_norm)
    expected = dense_attention(normed.numpy().reshape(20, -1), op, inv_freq)
    assert relative_error(output, expected) < 1e-6


def test_a_nan_changes_only_the_rows_whose_window_holds_it() -> None:
    op = dataclasses.replace(attributes("kv16.bf16/1"), window=5)
    tokens = random_tokens(op, 40, 8)
    (expected,) = World(op, [tokens], None).step([(0, 0, 40)])
    tokens[13] = np.nan
    (output,) = World(op, [tokens], None).step([(0, 0, 40)])
    assert np.isnan(output[13:18]).all()
    np.testing.assert_array_equal(np.delete(output, range(13, 18), 0), np.delete(expected, range(13, 18), 0))


def test_a_nan_in_a_later_token_changes_no_earlier_row() -> None:
    op = attributes("kv16.bf16/1")
    tokens = random_tokens(op, 20, 8)
    (expected,) = World(op, [tokens], None).step([(0, 0, 20)])
    tokens[13] = np.nan
    (output,) = World(op, [tokens], None).step([(0, 0, 20)])
    np.testing.assert_array_equal(output[:13], expected[:13])
    assert np.isnan(output[13:]).all()
