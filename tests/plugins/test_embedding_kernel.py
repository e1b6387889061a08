from dataclasses import asdict

import ml_dtypes
import numpy as np
import pytest

from precast.plugins.embedding.reference import embedding
from precast.plugins.embedding.schema import NAME, EmbeddingAttributes
from precast.plugins.linear.pack import pack
from tests.kernel_levels import LEVELS
from tests.plugins.op_session import run_op


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", ["x16k1.f32/1", "x16k2.bf16/1"])
def test_the_kernel_is_the_reference(monkeypatch: pytest.MonkeyPatch, level: str, layout: str) -> None:
    table = pack(layout, [np.random.default_rng(0).standard_normal((35, 9)).astype(ml_dtypes.bfloat16)])
    token_ids = np.array([34, 0, 16, 16, 15], np.int32)
    attributes = EmbeddingAttributes(35, 9, layout)
    (y,) = run_op(monkeypatch, level, NAME, [token_ids, table], asdict(attributes))
    np.testing.assert_array_equal(y, embedding(token_ids, table, attributes))
    token_ids = np.array([134, 0, 100, 99, 135, 115, -1], np.int32)
    attributes = EmbeddingAttributes(35, 9, layout, row_start=100, is_slice=1)
    (y,) = run_op(monkeypatch, level, NAME, [token_ids, table], asdict(attributes))
    np.testing.assert_array_equal(y, embedding(token_ids, table, attributes))


@pytest.mark.parametrize("token_id", [-1, 35])
def test_an_id_outside_the_table_fails_the_step(monkeypatch: pytest.MonkeyPatch, token_id: int) -> None:
    table = pack("x16k1.f32/1", [np.zeros((35, 2), np.float32)])
    attributes = asdict(EmbeddingAttributes(35, 2, "x16k1.f32/1"))
    with pytest.raises(Exception, match=rf"token_ids\[1\] is {token_id}, outside the table of 35 rows"):
        run_op(monkeypatch, "portable", NAME, [np.array([0, token_id], np.int32), table], attributes)
