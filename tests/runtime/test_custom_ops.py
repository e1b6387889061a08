"""The adapters between ONNX Runtime and the kernels: every op against its NumPy reference, and every way to misuse one.

The kernels themselves are tested in tests/native; here it matters that attributes, inputs and outputs arrive where they
belong, and that errors name the node.
"""

from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from precast.plugins.embedding import schema as embedding_op
from precast.plugins.embedding.reference import embedding
from precast.plugins.gated_activation import schema as gated_activation_op
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.layouts import CPU_WEIGHT_LAYOUTS
from precast.plugins.linear import schema as linear_op
from precast.plugins.linear.pack import pack
from precast.plugins.linear.reference import linear
from precast.plugins.paged_attention import schema as paged_attention_op
from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.paged_attention.schema import CPU_KV_LAYOUTS, PagedAttentionAttributes
from precast.plugins.rms_norm import schema as rms_norm_op
from precast.plugins.rms_norm.reference import rms_norm
from tests.kernel_levels import LEVELS
from tests.op_session import REFUSED, OpSession, session_options

Float32 = NDArray[np.float32]


@pytest.fixture(params=LEVELS)
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Session options with the ops of one kernel level."""
    return session_options(monkeypatch, request.param)


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Any:
    return session_options(monkeypatch, "portable")


def random(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative_error(actual: Float32, expected: Float32) -> float:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


# ------------------------------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("layout", CPU_WEIGHT_LAYOUTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(options: Any, layout: str, with_bias: bool) -> None:
    attributes = linear_op.LinearAttributes(in_features=67, out_features=40, layout=layout)
    weight = pack(layout, [random(40, 67, seed=1)])
    bias = random(40, seed=2) if with_bias else None
    session = OpSession(options, linear_op, attributes, {"x": random(1, 67), "weight": weight, "bias": bias}, ["y"])
    for num_tokens in (1, 3, 50):
        x = random(num_tokens, 67, seed=num_tokens)
        (y,) = session.run(x=x, weight=weight, bias=bias)
        assert relative_error(y, linear(x, weight, attributes, bias)) < 1e-6
    (nothing,) = session.run(x=random(0, 67), weight=weight, bias=bias)
    assert nothing.shape == (0, 40)


@pytest.mark.parametrize("layout", CPU_WEIGHT_LAYOUTS)
def test_embedding(options: Any, layout: str) -> None:
    attributes = embedding_op.EmbeddingAttributes(rows=40, features=33, layout=layout)
    table = pack(layout, [random(40, 33)])
    token_ids = np.array([0, 39, 16, 15, 39], np.int32)
    session = OpSession(options, embedding_op, attributes, {"token_ids": token_ids, "table": table}, ["y"])
    (y,) = session.run(token_ids=token_ids, table=table)
    np.testing.assert_array_equal(y, embedding(token_ids, table, attributes))


@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(options: Any, with_residual: bool) -> None:
    attributes = rms_norm_op.RmsNormAttributes(epsilon=1e-3)
    x, weight = random(5, 130), random(130, seed=1)
    residual = random(5, 130, seed=2) if with_residual else None
    outputs = ["y", "sum"] if with_residual else ["y"]
    session = OpSession(options, rms_norm_op, attributes, {"x": x, "weight": weight, "residual": residual}, outputs)
    actual = session.run(x=x, weight=weight, residual=residual)
    y, total = rms_norm(x, weight, attributes, residual)
    assert relative_error(actual[0], y) < 1e-6
    if with_residual:
        np.testing.assert_array_equal(actual[1], total)


def test_gated_activation(options: Any) -> None:
    attributes = gated_activation_op.GatedActivationAttributes("silu")
    gate_up = random(7, 2 * 19)
    session = OpSession(options, gated_activation_op, attributes, {"gate_up": gate_up}, ["output"])
    (output,) = session.run(gate_up=gate_up)
    assert relative_error(output, gated_activation(gate_up, attributes)) < 1e-6


ATTENTION_TOLERANCES = {"kv16.f32/1": 3e-6, "kv16.bf16/1": 4e-3}
"""Probabilities are rounded to bf16 in a bf16 cache: where the last bit of one falls differently, 2^-9 of it shows."""


@pytest.mark.parametrize("kv_layout", CPU_KV_LAYOUTS)
@pytest.mark.parametrize("with_rope", [False, True])
def test_paged_attention_over_several_steps(options: Any, kv_layout: str, with_rope: bool) -> None:
    """Two sequences, in chunks, in one pool that the op writes in place where it lies."""
    attributes = PagedAttentionAttributes(4, 2, 16, 0.25, kv_layout, tokens_per_block=32, rope_scaling=1.25)
    inv_freq = (
        (10000.0 ** (-np.arange(6) / 6)).astype(np.float32)[None] if with_rope else None
    )  # 12 of 16 elements rotate
    pool = np.full((6, attributes.block_bytes), 0xFF, np.uint8)  # NaNs: nothing may be read before it is written
    expected_pool = pool.copy()
    steps = [  # rows of each sequence, context lengths, block tables
        ([20, 1], [20, 1], [[4], [2]]),
        ([30, 1], [50, 2], [[4, 0], [2, -1]]),
        ([1, 40], [51, 42], [[4, 0], [2, 5]]),
    ]
    session = None
    for number, (rows, lengths, tables) in enumerate(steps):
        step: dict[str, Any] = {
            "qkv": random(sum(rows), attributes.qkv_features, seed=number),
            "query_starts": np.array([0, *np.cumsum(rows)], np.int32),
            "context_lengths": np.array(lengths, np.int32),
            "block_tables": np.array(tables, np.int32),
        }
        inputs = step | {"kv": pool, "inv_freq": inv_freq}
        session = session or OpSession(options, paged_attention_op, attributes, inputs, ["output"])
        (output,) = session.run(**inputs)
        expected = paged_attention(**step, kv=expected_pool, attributes=attributes, inv_freq=inv_freq)
        assert relative_error(output, expected) < ATTENTION_TOLERANCES[kv_layout]
    for touched in (4, 0, 2, 5):
        assert (pool[touched] != 0xFF).any()
    for untouched in (1, 3):
        assert (pool[untouched] == 0xFF).all()
    stored = bfloat16 if kv_layout == "kv16.bf16/1" else np.float32
    own, reference = pool[[4, 0, 2, 5]].view(stored).astype(np.float32), expected_pool[[4, 0, 2, 5]].view(stored)
    np.testing.assert_allclose(own, reference.astype(np.float32), rtol=2**-7, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- misuse

KERNEL = r'node "the-node" \(ai\.precast\.%s\): '


LINEAR: dict[str, Any] = {"in_features": 8, "out_features": 16, "layout": "x16k1.f32/1"}
ATTENTION: dict[str, Any] = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "scale": 0.25,
    "kv_layout": "kv16.f32/1",
    "tokens_per_block": 16,
    "rope_scaling": 1.0,
    "window": 0,
    "qk_norm_epsilon": 0.0,
    "rope_start": 0,
    "logit_softcap": 0.0,
}
INT32 = np.zeros(1, np.int32)
ATTENTION_INPUTS: dict[str, Any] = {
    "qkv": np.zeros((1, 128), np.float32),
    "query_starts": INT32,
    "context_lengths": INT32,
    "block_tables": INT32.reshape(1, 1),
    "kv": np.zeros((1, 4096), np.uint8),
    "inv_freq": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "x16k9.f32/1"}, 'layout is "x16k9.f32/1"; this version knows x16k1.f32/1 and x16k2.bf16/1'),
        ({"in_features": 0}, r"in_features is 0; it must be in \[1, 2147483647\]"),
        ({"out_features": -5}, "out_features is -5; it must be in"),
        ({"out_features": 2**31}, "out_features is 2147483648; it must be in"),
    ],
)
def test_bad_attributes_of_linear(portable: Any, changes: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {"x": random(1, 8), "weight": np.zeros(512, np.uint8), "bias": None}
    with pytest.raises(REFUSED, match=KERNEL % "Linear" + message):
        OpSession(portable, linear_op, LINEAR | changes, inputs, ["y"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"tokens_per_block": 24}, "tokens_per_block is 24"),
        ({"kv_layout": "kv16.f16/1"}, 'kv_layout is "kv16.f16/1"; version 1 knows kv16.f32/1 and kv16.bf16/1'),
        ({"scale": float("inf")}, "scale is inf; it must be finite"),
        ({"rope_scaling": float("nan")}, "rope_scaling is -?nan; it must be finite"),
        ({"qk_norm_epsilon": -1.0}, "qk_norm_epsilon must be finite and not negative"),
        ({"rope_start": -1}, r"rope_start is -1; it must be in \[0, 2147483647\]"),
        ({"window": -1}, r"window is -1; it must be in \[0, 2147483647\]"),
        ({"logit_softcap": 50.0}, "logit_softcap is 50; the CPU kernels do not have soft-capping of logits yet"),
        ({"logit_softcap": float("nan")}, "logit_softcap is -?nan; it must be finite"),
    ],
)
def test_bad_attributes_of_paged_attention(portable: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(REFUSED, match=(KERNEL % "PagedAttention") + f".*{message}"):
        OpSession(portable, paged_attention_op, ATTENTION | changes, ATTENTION_INPUTS, ["output"])


@pytest.mark.parametrize("norms", [None, random(16)])
def test_paged_attention_refuses_sinks(portable: Any, norms: Any) -> None:
    """The ninth input, with and without those before it; a graph that leaves it empty has none."""
    inputs = ATTENTION_INPUTS | {"q_norm": norms, "k_norm": norms, "sinks": None}
    OpSession(portable, paged_attention_op, ATTENTION, inputs, ["output"])
    expected = 'its input sinks is "sinks"; the CPU kernels do not have attention sinks yet'
    with pytest.raises(REFUSED, match=KERNEL % "PagedAttention" + expected):
        OpSession(portable, paged_attention_op, ATTENTION, inputs | {"sinks": random(4)}, ["output"])


def test_paged_attention_without_the_attribute_logit_softcap_is_refused(portable: Any) -> None:
    attributes = {name: value for name, value in ATTENTION.items() if name != "logit_softcap"}
    with pytest.raises(REFUSED, match="cannot read the number logit_softcap of node"):
        OpSession(portable, paged_attention_op, attributes, ATTENTION_INPUTS, ["output"])


def test_bad_attributes_of_the_small_ops(portable: Any) -> None:
    norm_inputs: dict[str, Any] = {"x": random(1, 8), "weight": random(8), "residual": None}
    with pytest.raises(REFUSED, match=KERNEL % "RmsNorm" + "epsilon is -1; it must not be negative"):
        OpSession(portable, rms_norm_op, {"epsilon": -1.0}, norm_inputs, ["y"])
    with pytest.raises(REFUSED, match=KERNEL % "GatedActivation" + 'activation is "relu"; version 1 knows silu'):
        OpSession(portable, gated_activation_op, {"activation": "relu"}, {"gate_up": random(1, 8)}, ["output"])


def test_missing_and_mistyped_attributes(portable: Any) -> None:
    inputs: dict[str, Any] = {"x": random(1, 8), "weight": random(8), "residual": None}
    expected = r'cannot read the number epsilon of node "the-node" \(ai\.precast\.RmsNorm\)'
    for attributes in ({}, {"epsilon": "small"}):
        with pytest.raises(REFUSED, match=expected):
            OpSession(portable, rms_norm_op, attributes, inputs, ["y"])


def test_wrong_shapes_of_linear(portable: Any) -> None:
    good: dict[str, Any] = {"x": random(2, 8), "weight": np.zeros(512, np.uint8), "bias": random(16)}
    session = OpSession(portable, linear_op, LINEAR, good, ["y"])
    session.run(**good)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": random(2, 7)}, r"input x has shape \[2, 7\]; expected \[any, 8\]"),
        ({"weight": np.zeros(448, np.uint8)}, "448"),
        ({"bias": random(15)}, r"input bias has shape \[15\]; expected \[16\]"),
    ]
    for changed, message in cases:
        with pytest.raises(REFUSED, match=KERNEL % "Linear" + f".*{message}"):
            session.run(**good | changed)
    session.run(**good)


def test_wrong_inputs_of_the_small_ops(portable: Any) -> None:
    table = np.zeros(512, np.uint8)
    attributes = {"rows": 16, "features": 8, "layout": "x16k1.f32/1", "row_start": 0, "is_slice": 0}
    session = OpSession(portable, embedding_op, attributes, {"token_ids": INT32, "table": table}, ["y"])
    for token_id in (16, -1):
        with pytest.raises(REFUSED, match=KERNEL % "Embedding" + rf".*token_ids\[1\] is {token_id}"):
            session.run(token_ids=np.array([15, token_id], np.int32), table=table)
    odd = random(2, 7)
    gated = OpSession(portable, gated_activation_op, {"activation": "silu"}, {"gate_up": odd}, ["output"])
    with pytest.raises(REFUSED, match=KERNEL % "GatedActivation" + "gate_up has 7 columns"):
        gated.run(gate_up=odd)
    x = random(2, 8)
    inputs: dict[str, Any] = {"x": x, "weight": random(8), "residual": x}
    norm = OpSession(portable, rms_norm_op, {"epsilon": 1e-5}, inputs, ["y"])
    with pytest.raises(REFUSED, match=KERNEL % "RmsNorm" + "residual and sum must both be there, or neither"):
        norm.run(**inputs)


def test_wrong_inputs_of_paged_attention(portable: Any) -> None:
    good: dict[str, Any] = {
        "qkv": random(3, 128),
        "query_starts": np.array([0, 1, 3], np.int32),
        "context_lengths": np.array([17, 2], np.int32),
        "block_tables": np.array([[0, 2], [1, -1]], np.int32),
        "kv": np.zeros((3, 4096), np.uint8),
        "inv_freq": random(1, 8),
    }
    session = OpSession(portable, paged_attention_op, ATTENTION, good, ["output"])
    session.run(**good)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"qkv": random(3, 127)}, r"input qkv has shape \[3, 127\]; expected \[any, 128\]"),
        ({"query_starts": np.array([0, 3], np.int32)}, r"input query_starts has shape \[2\]; expected \[3\]"),
        ({"query_starts": np.array([0, 2, 2], np.int32)}, r"query_starts\[2\] is 2"),
        ({"context_lengths": np.array([17, 1], np.int32)}, r"context_lengths\[1\] is 1"),
        ({"context_lengths": np.array([33, 2], np.int32)}, "needs 3 blocks"),
        ({"block_tables": np.array([[0, 3], [1, -1]], np.int32)}, r"block_tables\[0\]\[1\] is 3"),
        ({"block_tables": np.array([[0, 2]], np.int32)}, r"input block_tables has shape \[1, 2\]; expected \[2, any\]"),
        ({"kv": np.zeros((3, 2048), np.uint8)}, r"input kv has shape \[3, 2048\]; expected \[any, 4096\]"),
        ({"inv_freq": random(1, 9)}, "rotary_dim is 18"),
        ({"inv_freq": random(0, 8)}, "inv_freq has no rows"),
    ]
    for changed, message in cases:
        with pytest.raises(REFUSED, match=KERNEL % "PagedAttention" + f".*{message}"):
            session.run(**good | changed)
    session.run(**good)


def test_an_unknown_kernel_level_is_refused_when_the_ops_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(REFUSED, match='PRECAST_KERNEL_LEVEL is "sse2"; the levels are portable, avx2 and avx512'):
        session_options(monkeypatch, "sse2")
