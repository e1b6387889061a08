"""The lowered network: each pass's rules, and its logits by ONNX's own reference evaluator."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from precast.builder.backends.lowering.check_lowered import CheckLowered
from precast.builder.backends.lowering.lower_attention import LowerAttention
from precast.builder.backends.tensorrt.lowering.pipeline import BUILTIN_OPS
from precast.builder.network.decoder import emit_network
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.passes.base import InvariantError
from precast.builder.reference import ReferenceModel
from precast.checkpoints.model_config import HeadConfig, ModelConfig, NormConfig, QkNormConfig
from precast.checkpoints.ranks.rank_model import whole_model
from precast.plugins import TENSORRT_OPS
from tests.builder.tensorrt.lowered_runner import LoweredRunner
from tests.builder.tensorrt.worlds import WIDE, RoundedTensors, lowered, tensorrt_plan
from tests.builder.worlds import (
    RandomTensors,
    emitted,
    nodes,
    with_attention,
    with_mlp,
    with_rope,
)

TOKENS = [1, 5, 7, 30, 2, 8, 39, 0, 11, 12, 3, 3, 25, 17, 4, 9, 33, 21]

MODELS: dict[str, ModelConfig] = {
    "llama": WIDE,
    "tied": replace(WIDE, head=HeadConfig(tied=True)),
    "biases": with_mlp(with_attention(WIDE, qkv_bias=True, output_bias=True), bias=True),
    "no key bias": with_attention(WIDE, qkv_bias=True, key_bias=False),
    "window": with_attention(WIDE, window=5),
    "windows": replace(WIDE, layers=(WIDE.layers[0], with_attention(WIDE, window=5).layers[0])),
    "qk norm": with_attention(WIDE, qk_norm=QkNormConfig(NormConfig(1e-6))),
    "partial rope": with_rope(WIDE, rotary_dim=16),
    "no rope": with_attention(WIDE, rope=None),
    "head bias": replace(WIDE, head=HeadConfig(bias=True)),
}

FIELDS = ("rotary_dim", "num_frequencies", "has_qk_norm", "has_sinks")
"""Of the plugin, beside the op's attributes."""


def error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_float16_logits(name: str) -> None:
    """In float16 roundings are small: a wrong operand, order or constant is not."""
    tensors = RandomTensors(MODELS[name])
    got = LoweredRunner(lowered(MODELS[name], tensorrt_plan("float16")), tensors)(TOKENS)
    assert error(got, ReferenceModel(MODELS[name], tensors)(TOKENS)) < 0.01


def test_bfloat16_logits() -> None:
    """Roundings of bfloat16 are 8 times those of float16."""
    tensors = RandomTensors(WIDE)
    got = LoweredRunner(lowered(), tensors)(TOKENS)
    assert 0.003 < error(got, ReferenceModel(WIDE, tensors)(TOKENS)) < 0.08


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8", "nvfp4"])
def test_quantised_logits_are_those_of_the_rounded_matrices(quantization: str) -> None:
    plan = tensorrt_plan("float16", quantization=quantization)
    network = lowered(WIDE, plan)
    got = LoweredRunner(network, RandomTensors(WIDE))(TOKENS)
    expected = ReferenceModel(WIDE, RoundedTensors(WIDE, quantization, "float16"))(TOKENS)
    assert error(got, expected) < 0.01
    assert error(expected, ReferenceModel(WIDE, RandomTensors(WIDE))(TOKENS)) > 0.01  # the rounding shows


def test_a_feature_that_is_switched_off_is_noticed() -> None:
    for name, off in (("window", WIDE), ("no key bias", with_attention(WIDE, qkv_bias=True))):
        tensors = RandomTensors(off)
        got = LoweredRunner(lowered(off, tensorrt_plan("float16")), tensors)(TOKENS)
        assert error(got, ReferenceModel(MODELS[name], tensors)(TOKENS)) > 0.05


# ------------------------------------------------------------------------------------------------------------ choices


def test_tokens_and_candidates_follow_from_the_logits() -> None:
    outputs = LoweredRunner(lowered(WIDE, tensorrt_plan("float16")), RandomTensors(WIDE)).outputs(TOKENS)
    logits = outputs["logits"]
    assert list(outputs["tokens"]) == list(np.argmax(logits, axis=1))
    assert len(set(outputs["tokens"])) > 5
    best = np.sort(logits, axis=1)[:, ::-1]  # the vocabulary is smaller than what candidates may be
    assert np.array_equal(outputs["candidate_logits"], best)
    assert np.array_equal(np.take_along_axis(logits, outputs["candidate_ids"], axis=1), best)
    expected = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(outputs["log_sums"], expected, rtol=1e-5)
    dtypes = {name: str(outputs[name].dtype) for name in ("tokens", "candidate_ids", "candidate_logits", "log_sums")}
    assert dtypes == dict(zip(dtypes, ("int32", "int32", "float32", "float32"), strict=True))


class Alike(RandomTensors):
    """A head whose rows 3, 7 and 8 are the same, and often largest; row 0 is `first` everywhere."""

    def __init__(self, model: ModelConfig, first: float) -> None:
        super().__init__(model)
        self._first = first

    def tensor(self, name: str) -> NDArray[np.float32]:
        w = super().tensor(name)
        if name == "lm_head.weight":
            w = w.copy()
            w[[3, 7, 8]] = 1.0
            w[0] = self._first
        return w


def test_of_equal_logits_the_smallest_id_is_chosen() -> None:
    outputs = LoweredRunner(lowered(WIDE, tensorrt_plan("float16")), Alike(WIDE, 0.0)).outputs(TOKENS)
    ties = (outputs["logits"] == outputs["logits"].max(axis=1, keepdims=True)).sum(axis=1)
    assert set(ties) == {1, 3}  # where the sum of a row's hidden state is negative, another row is largest
    assert list(outputs["tokens"]) == list(np.argmax(outputs["logits"], axis=1))
    assert set(outputs["tokens"][ties == 3]) == {3}


def test_a_row_with_nan_chooses_nothing() -> None:
    outputs = LoweredRunner(lowered(WIDE, tensorrt_plan("float16")), Alike(WIDE, np.nan)).outputs(TOKENS)
    assert np.isnan(outputs["logits"][:, 0]).all()
    assert set(outputs["tokens"]) == {40}
    assert np.isnan(outputs["log_sums"]).all()


def test_tokens_of_the_step_before_take_the_place_of_unknown_ones() -> None:
    network, tensors = lowered(WIDE, tensorrt_plan("float16")), RandomTensors(WIDE)
    expected = LoweredRunner(network, tensors)([1, 30, 7, 9])
    unknown = {"token_sources": [-1, 2, -1, 0], "previous_tokens": [9, 0, 30, 1]}
    got = LoweredRunner(network, tensors).outputs([1, -1, 7, -1], **unknown)["logits"]
    assert np.array_equal(got, expected)
    # A row with NaN has chosen nothing: whatever its sequence goes on with, nothing is read beyond the table.
    nothing = {"token_sources": [-1, 2, -1, 0], "previous_tokens": [40, 0, 30, 1]}
    got = LoweredRunner(network, tensors).outputs([1, -1, 7, -1], **nothing)["logits"]
    assert np.array_equal(got[:3], expected[:3])


# --------------------------------------------------------------------------------------------------------- the rules


def test_every_value_has_the_type_that_onnx_infers() -> None:
    """Types and widths of values are what ONNX's own inference finds, from inputs, weights and attention's outputs."""
    for quantization in (None, "int8", "int4", "fp8", "nvfp4"):
        network = lowered(WIDE, tensorrt_plan(quantization=quantization))
        model = onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0)))
        attention = {name for node in model.graph.node if node.domain for name in node.output}
        known = [info for info in model.graph.value_info if info.name in attention]
        del model.graph.value_info[:]
        model.graph.value_info.extend(known)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        inferred = {info.name: info.type.tensor_type for info in model.graph.value_info}
        checked = 0
        for node in network.graph:
            for value in node.outputs:
                if node.domain == "" and str(value.name) in inferred:
                    found = inferred[str(value.name)]
                    assert value.dtype == ir.DataType(found.elem_type), value.name
                    assert value.shape is not None
                    features = [dim.dim_value for dim in found.shape.dim][1:]
                    assert features == list(value.shape.dims)[1:], value.name
                    checked += 1
        assert checked > 20


def test_use_half_rounds_what_attention_does_not_read() -> None:
    network = lowered(MODELS["qk norm"])
    dtypes = {name: recipe.graph_dtype for name, recipe in network.weights.items()}
    assert dtypes["layers.0.mixer_norm.weight"] == "bfloat16"
    assert dtypes["layers.0.attention.q_norm.weight"] == dtypes["inv_freq.0"] == "float32"
    (logits,) = [value for value in network.graph.outputs if value.name == "logits"]
    assert logits.dtype == ir.DataType.FLOAT
    assert "logits.cast: logits [num_logit_rows, 40] = Cast(logits.half)" in nodes(network)
    assert (network.model.ir_version, network.graph.opset_imports[""]) == (11, 23)


def test_the_head_is_not_quantised() -> None:
    network = lowered(WIDE, tensorrt_plan(quantization="int4"))
    dtypes = {name: recipe.graph_dtype for name, recipe in network.weights.items()}
    assert dtypes["lm_head.weight"] == dtypes["embedding.weight"] == "bfloat16"
    assert dtypes["layers.1.feed_forward.down.weight.values"] == "int4"
    assert dtypes["layers.1.feed_forward.down.weight.scales"] == "bfloat16"
    assert network.weights["layers.0.attention.qkv.weight.scales"].graph_shape == (256, 1)
    assert network.weights["layers.0.attention.qkv.weight.values"].stored_shape == (256, 64)


def test_a_tied_table_is_one_tensor() -> None:
    network = lowered(MODELS["tied"])
    assert [name for name in network.weights if "lm_head" in name or "embedding" in name] == ["embedding.weight"]
    readers = {use.node.op_type for use in network.graph.initializers["embedding.weight"].uses()}
    assert readers == {"Gather", "Gemm"}


def test_pools_are_written_in_place_through_an_output() -> None:
    network = lowered(MODELS["windows"])
    chosen = ["tokens", "candidate_ids", "candidate_logits", "log_sums"]
    assert [value.name for value in network.graph.outputs] == ["logits", *chosen, "kv.0.out", "kv.1.out"]
    pool = next(value for value in network.graph.inputs if value.name == "kv.0")
    assert (pool.dtype, pool.shape) == (ir.DataType.BFLOAT16, ir.Shape(("num_blocks", 2 * 2 * 16 * 32)))
    assert network.kv_caches[0].block_bytes == 2 * 2 * 2 * 16 * 32
    attention = network.graph.node("layers.1.attention")
    assert attention.attributes["window"].as_int() == 5
    assert attention.attributes["plugin_namespace"].as_string() == "precast"
    assert [attention.attributes[name].as_int() for name in FIELDS] == [32, 1, 0, 0]


@pytest.mark.parametrize("name", ["no rope", "llama", "qk norm"])
def test_sinks_are_the_last_input_whatever_is_absent_before_them(name: str) -> None:
    """No model has them yet: a node of one that lacks them is given some."""
    plan = tensorrt_plan()
    network = emit_network(whole_model(MODELS[name]), plan)
    node = network.graph.node("layers.1.attention")
    sinks = ir.Value(name="layers.1.sinks", shape=ir.Shape((4,)), type=ir.TensorType(ir.DataType.FLOAT))
    given = [*node.inputs, *[None] * (8 - len(node.inputs)), sinks]
    network.graph.inputs.append(sinks)
    node.resize_inputs(len(given))
    for index, value in enumerate(given):
        node.replace_input_with(index, value)
    LowerAttention(plan, is_plugin=True).apply(network)
    without, attention = (network.graph.node(f"layers.{layer}.attention") for layer in (0, 1))
    present = [value.name for value in given if value is not None]
    assert [value.name for value in attention.inputs if value is not None] == present
    assert len(attention.inputs) == len(without.inputs) + 1
    assert [node.attributes["has_sinks"].as_int() for node in (without, attention)] == [0, 1]
    assert attention.attributes["logit_softcap"].as_float() == 0.0


def test_an_attention_without_rope_has_fewer_inputs() -> None:
    attention = lowered(MODELS["no rope"]).graph.node("layers.0.attention")
    assert len(attention.inputs) == 5
    assert attention.attributes["rotary_dim"].as_int() == 0
    assert len(lowered(MODELS["qk norm"]).graph.node("layers.0.attention").inputs) == 8


def test_check_lowered_refuses_what_was_left() -> None:
    check = CheckLowered("TensorRT", BUILTIN_OPS, TENSORRT_OPS)
    with pytest.raises(
        InvariantError, match=r"^node embedding is a ai\.precast\.Embedding, which TensorRT does not have$"
    ):
        check(emitted())
    network = lowered()
    network.weights["lm_head.weight"] = replace(network.weights["lm_head.weight"], layout="x16k2.bf16/1")  # type: ignore[type-var]
    with pytest.raises(InvariantError, match=r"lm_head\.weight"):
        check.apply(network)
    network = lowered()
    network.kv_caches[0] = replace(network.kv_caches[0], layout="kv16.bf16/1")
    with pytest.raises(InvariantError, match=r"^KV pool kv\.0 has the layout kv16\.bf16/1, "):
        check.apply(network)
