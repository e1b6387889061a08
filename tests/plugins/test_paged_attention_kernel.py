"""The kernels of PagedAttention against its reference: the same outputs within rounding, the same bytes in the pool."""

from dataclasses import asdict

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.paged_attention.schema import CPU_KV_LAYOUTS, NAME, PagedAttentionAttributes
from tests.kernel_levels import LEVELS
from tests.plugins.op_session import run_op

Float32 = NDArray[np.float32]

KV_DTYPES = {"kv16.f32/1": np.float32, "kv16.bf16/1": bfloat16}
ROUNDING = {"kv16.f32/1": 1e-6, "kv16.bf16/1": 2**-7}
"""The relative distance of neighbouring numbers, or a little more."""


def relative_error(a: Float32, b: Float32) -> float:
    """max|a - b| / max|b|."""
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", CPU_KV_LAYOUTS)
@pytest.mark.parametrize(
    ("rotary_dim", "window", "has_norms"),
    [(0, 0, False), (16, 0, False), (24, 0, True), (0, 33, True), (24, 530, False)],
)
def test_the_kernel_is_the_reference(
    monkeypatch: pytest.MonkeyPatch, level: str, layout: str, rotary_dim: int, window: int, has_norms: bool
) -> None:
    attributes = PagedAttentionAttributes(6, 2, 24, 0.3, layout, 32, 1.1, window, qk_norm_epsilon=0.1, rope_start=20)
    frequencies = np.geomspace(1, 1e-3, rotary_dim // 2).astype(np.float32)
    inv_freq = np.stack([frequencies, frequencies / 2, frequencies / 3]) if rotary_dim else None
    block_tables = np.array([[7, 2, 9, *range(10, 27)], [4, -1, -1] + [-1] * 17, [1, 5, -1] + [-1] * 17], np.int32)
    pools = [np.full((27, attributes.block_bytes), 0xFF, np.uint8) for _ in range(2)]  # NaNs, in both types
    generator = np.random.default_rng(rotary_dim)
    norms = generator.standard_normal((2, 24)).astype(np.float32) if has_norms else (None, None)
    for rows, contexts in [([600, 3, 40], [600, 3, 40]), ([1, 20, 1], [601, 23, 41])]:
        qkv = generator.standard_normal((sum(rows), attributes.qkv_features)).astype(np.float32)
        first_seen = [attributes.first_visible(end - count) // 32 for end, count in zip(contexts, rows, strict=True)]
        for s, first in enumerate(first_seen):
            block_tables[s, :first] = -1
        indices = (np.cumsum([0, *rows]).astype(np.int32), np.array(contexts, np.int32), block_tables)
        expected = paged_attention(qkv, *indices, pools[0], attributes, inv_freq, *norms)
        inputs = [qkv, *indices, pools[1], inv_freq, *norms]
        (output,) = run_op(monkeypatch, level, NAME, inputs, asdict(attributes))
        # A probability may round to the other neighbour in bf16 where its last bit of fp32 differs.
        assert relative_error(output, expected) < (1e-6 if layout == "kv16.f32/1" else 2e-3)
        # Both pools, numbers and the NaNs of unused blocks. Rotation may differ in its last bit before rounding.
        written, wanted = (pool.view(KV_DTYPES[layout]).astype(np.float32) for pool in (pools[1], pools[0]))
        if inv_freq is None and not has_norms:
            np.testing.assert_array_equal(written, wanted)
        else:
            np.testing.assert_allclose(written, wanted, rtol=ROUNDING[layout], atol=1e-6)
