import logging
from dataclasses import replace

import pytest

from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.plan import BuildPlan, plan_build
from precast.checkpoints.rope import DynamicScaling, LongRopeScaling, RopeScaling
from tests.builder.worlds import MODEL, with_rope


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


LONG_ROPE = LongRopeScaling((1.0,) * 4, (2.0,) * 4, 32)


@pytest.mark.parametrize(
    ("scaling", "note"),
    [
        (
            DynamicScaling(2.0, 32),
            "beyond 32 tokens, dynamic rope rotates a token as in a sequence that ends with it",
        ),
        (LONG_ROPE, "sequences of 32 tokens and less too are rotated by longrope's long factors"),
    ],
)
def test_ropes_that_depend_on_the_length_are_said_once(scaling: RopeScaling, note: str) -> None:
    model = with_rope(replace(MODEL, layers=MODEL.layers * 2), scaling=scaling)
    assert plan_build(model, BuildConfig()).notes == (note,)
    assert plan_build(model, BuildConfig(max_seq_len=32)).notes == ()


def test_a_window_that_no_sequence_leaves_is_none() -> None:
    plan = plan_build(MODEL, BuildConfig(max_seq_len=16))
    assert [plan.effective_window(window) for window in (None, 1, 15, 16, 17)] == [None, 1, 15, None, None]


def test_max_seq_len_is_at_most_the_models() -> None:
    assert plan_build(MODEL, BuildConfig(max_seq_len=64)).max_seq_len == 64
    assert plan_build(MODEL, BuildConfig(max_seq_len=7)).max_seq_len == 7
    with pytest.raises(BuildError, match=r"^max_seq_len 65 exceeds the model's max_position_embeddings 64: choose"):
        plan_build(MODEL, BuildConfig(max_seq_len=65))
