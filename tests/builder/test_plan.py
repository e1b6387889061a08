import logging
from dataclasses import replace

import pytest

from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.plan import BuildPlan, plan_build
from tests.builder.worlds import MODEL


def test_auto_takes_the_checkpoints_dtype() -> None:
    assert plan_build(MODEL, BuildConfig()) == BuildPlan("float32", "float32", 16, 64)
    assert plan_build(replace(MODEL, dtype="bfloat16"), BuildConfig()) == BuildPlan("bfloat16", "bfloat16", 16, 64)


def test_a_dtype_that_is_asked_for_wins() -> None:
    plan = plan_build(MODEL, BuildConfig(dtype="bfloat16", kv_cache_dtype="float32", tokens_per_block=48))
    assert plan == BuildPlan("bfloat16", "float32", 48, 64)
    assert plan.weight_layout == "x16k2.bf16/1"
    assert plan.kv_layout == "kv16.f32/1"


@pytest.mark.parametrize(
    ("model_dtype", "asked", "note"),
    [
        ("float16", "auto", "float16 checkpoint stored as bfloat16"),
        ("float32", "float16", "float16 was asked for, weights are stored as bfloat16"),
    ],
)
def test_float16_becomes_bfloat16_and_is_said_once(
    model_dtype: str, asked: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="precast.builder"):
        plan = plan_build(replace(MODEL, dtype=model_dtype), BuildConfig(dtype=asked))
    assert plan == BuildPlan("bfloat16", "bfloat16", 16, 64, notes=(note,))
    assert [record.message for record in caplog.records] == [note]


def test_max_seq_len_is_at_most_the_models() -> None:
    assert plan_build(MODEL, BuildConfig(max_seq_len=64)).max_seq_len == 64
    assert plan_build(MODEL, BuildConfig(max_seq_len=7)).max_seq_len == 7
    with pytest.raises(BuildError, match=r"^max_seq_len 65 exceeds the model's max_position_embeddings 64: choose"):
        plan_build(MODEL, BuildConfig(max_seq_len=65))
