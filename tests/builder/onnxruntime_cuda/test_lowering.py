"""The network lowered for ONNX Runtime on GPUs: its own rules, and its logits by ONNX's own reference evaluator."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from precast.builder.backends.lowering.check_lowered import CheckLowered
from precast.builder.backends.lowering.choose_tokens import _Choice
from precast.builder.backends.onnxruntime_cuda.lowering.pipeline import BUILTIN_OPS, cuda_passes
from precast.builder.network.nodes import builtin_node
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.passes.base import InvariantError
from precast.builder.passes.check_supported import versioned_op
from precast.builder.reference import ReferenceModel
from precast.checkpoints.model_config import ModelConfig, NormConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.plugins import CUDA_OPS
from precast.plugins.onnxruntime.kinds import KINDS
from tests.builder.onnxruntime_cuda.worlds import OPS, cuda_plan, lowered
from tests.builder.tensorrt.lowered_ranks import lowered_ranks
from tests.builder.tensorrt.lowered_runner import LoweredRunner
from tests.builder.tensorrt.test_lowering import MODELS, TOKENS, Alike, error
from tests.builder.tensorrt.worlds import WIDE
from tests.builder.worlds import RandomTensors, emitted, nodes, with_attention, with_mlp

Array = NDArray[np.float32]
NAN, INF = float("nan"), float("inf")


def runner(model: ModelConfig, tensors: RandomTensors, dtype: str = "float16") -> LoweredRunner:
    return LoweredRunner(lowered(model, cuda_plan(dtype)), tensors, OPS)


@pytest.mark.parametrize("name", MODELS)
def test_float16_logits(name: str) -> None:
    """In float16 roundings are small: a wrong operand, order or constant is not."""
    tensors = RandomTensors(MODELS[name])
    assert error(runner(MODELS[name], tensors)(TOKENS), ReferenceModel(MODELS[name], tensors)(TOKENS)) < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_logits(name: str) -> None:
    """Roundings of bfloat16 are 8 times those of float16."""
    tensors = RandomTensors(MODELS[name])
    got = runner(MODELS[name], tensors, "bfloat16")(TOKENS)
    assert 0.003 < error(got, ReferenceModel(MODELS[name], tensors)(TOKENS)) < 0.08


def test_a_feature_that_is_switched_off_is_noticed() -> None:
    for name, off in (("window", WIDE), ("no key bias", with_attention(WIDE, qkv_bias=True))):
        tensors = RandomTensors(off)
        assert error(runner(off, tensors)(TOKENS), ReferenceModel(MODELS[name], tensors)(TOKENS)) > 0.05


# ------------------------------------------------------------------------------------------------------------ choices


def test_tokens_and_candidates_follow_from_the_logits() -> None:
    outputs = runner(WIDE, RandomTensors(WIDE)).outputs(TOKENS)
    logits = outputs["logits"]
    assert list(outputs["tokens"]) == list(np.argmax(logits, axis=1))
    best = np.sort(logits, axis=1)[:, ::-1]  # the vocabulary is smaller than what candidates may be
    assert np.array_equal(outputs["candidate_logits"], best)
    assert np.array_equal(np.take_along_axis(logits, outputs["candidate_ids"], axis=1), best)
    np.testing.assert_allclose(outputs["log_sums"], np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rtol=1e-5)
    dtypes = {name: str(outputs[name].dtype) for name in ("tokens", "candidate_ids", "candidate_logits", "log_sums")}
    assert dtypes == dict(zip(dtypes, ("int32", "int32", "float32", "float32"), strict=True))


@pytest.mark.parametrize("first", [0.0, NAN])
def test_ties_and_nan_in_the_whole_network(first: float) -> None:
    """Rows 3, 7 and 8 of the head are the same; row 0 is `first` everywhere."""
    outputs = runner(WIDE, Alike(WIDE, first)).outputs(TOKENS)
    if np.isnan(first):
        assert set(outputs["tokens"]) == {40}
        assert np.isnan(outputs["log_sums"]).all()
    else:
        ties = (outputs["logits"] == outputs["logits"].max(axis=1, keepdims=True)).sum(axis=1)
        assert set(ties) == {1, 3}
        assert set(outputs["tokens"][ties == 3]) == {3}


def chosen(logits: Array, has_ops: bool) -> tuple[NDArray[np.int32], Array]:
    """`tokens` and `log_sums` of a network that has these logits as an input."""
    shape, dtype = ir.Shape(("num_logit_rows", logits.shape[1])), ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name="logits", shape=shape, type=dtype)
    graph = ir.Graph([value], [value], nodes=[], opset_imports={"": 20, "ai.precast": 1}, name="choice")
    _Choice(graph, value, logits.shape[1], has_ops).emit()
    evaluator = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)), new_ops=list(OPS))
    with np.errstate(invalid="ignore"):
        outputs = dict(zip(evaluator.output_names, evaluator.run(None, {"logits": logits}), strict=True))
    return outputs["tokens"], outputs["log_sums"]


def test_the_op_chooses_what_the_reductions_do() -> None:
    """On the same logits: ties, zeros of either sign, infinities, NaN first, last and beside the largest."""
    rng = np.random.default_rng(1)
    rows = [
        *rng.standard_normal((20, 9)) * 30,
        [0.0] * 9,
        [-0.0, 0.0, -1.0, 0.0, -0.0, -3.0, 0.0, 0.0, 0.0],
        [1.0, 5.0, 2.0, 5.0, 5.0, 4.0, -9.0, 5.0, 0.0],
        [-INF, 1.0, -INF, 1.0, -INF, -INF, 0.0, 0.0, -INF],
        [NAN, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, NAN],
        [NAN] * 9,
        [3e38] * 9,
    ]
    logits = np.array(rows, np.float32)
    tokens, log_sums = chosen(logits, has_ops=True)
    expected_tokens, expected_log_sums = chosen(logits, has_ops=False)
    assert tokens.tolist() == expected_tokens.tolist()
    np.testing.assert_allclose(log_sums, expected_log_sums, rtol=1e-6, atol=1e-5)
    assert (tokens.dtype.name, log_sums.dtype.name) == ("int32", "float32")
    assert tokens[-8:].tolist() == [0, 0, 1, 1, 9, 9, 9, 0]


def test_what_the_reductions_make_of_infinities_the_op_says_too() -> None:
    """But for a row of -infinity alone, whose sum the reductions call NaN."""
    logits = np.array([[1.0, INF, 0.0, INF], [-INF] * 4], np.float32)
    tokens, log_sums = chosen(logits, has_ops=True)
    assert tokens.tolist() == chosen(logits, has_ops=False)[0].tolist() == [1, 0]
    assert np.isnan(log_sums[0])
    assert log_sums[1] == -INF


def test_tokens_of_the_step_before_take_the_place_of_unknown_ones() -> None:
    tensors = RandomTensors(WIDE)
    expected = runner(WIDE, tensors)([1, 30, 7, 9])
    unknown = {"token_sources": [-1, 2, -1, 0], "previous_tokens": [9, 0, 30, 1]}
    got = runner(WIDE, tensors).outputs([1, -1, 7, -1], **unknown)["logits"]
    assert np.array_equal(got, expected)
    # A row with NaN has chosen nothing: whatever its sequence goes on with, nothing is read beyond the table.
    nothing = {"token_sources": [-1, 2, -1, 0], "previous_tokens": [40, 0, 30, 1]}
    got = runner(WIDE, tensors).outputs([1, -1, 7, -1], **nothing)["logits"]
    assert np.array_equal(got[:3], expected[:3])


# --------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_what_the_device_has(name: str) -> None:
    network = lowered(MODELS[name])
    assert (network.model.ir_version, network.graph.opset_imports[""]) == (10, 20)
    assert {node.op_type for node in network.graph if not node.domain} <= set(BUILTIN_OPS)
    assert {versioned_op(node) for node in network.graph if node.domain} <= set(CUDA_OPS)


def test_every_builtin_op_is_used() -> None:
    """Some by a rank of several only: the list has no more than what it must."""
    networks = [network for _, network in lowered_ranks(WIDE, Mapping.of(2, 2), cuda_plan(), cuda_passes)]
    used = {node.op_type for network in (*networks, lowered()) for node in network.graph if not node.domain}
    assert used == set(BUILTIN_OPS)


@pytest.mark.parametrize("op_type", ["Exp", "Softmax", "ReduceMax", "Split"])
def test_a_builtin_that_is_not_on_the_list_is_refused(op_type: str) -> None:
    network = lowered()
    value = next(output for output in network.graph.outputs if output.name == "logits")
    planted = ir.Value(name="planted", shape=value.shape, type=value.type)
    network.graph.append(builtin_node(op_type, [value], planted, "planted"))
    check = CheckLowered("device cuda", BUILTIN_OPS, CUDA_OPS)
    with pytest.raises(InvariantError, match=rf"^node planted is a \.{op_type}, which device cuda does not have$"):
        check.apply(network)


def test_check_lowered_refuses_what_was_left() -> None:
    check = CheckLowered("device cuda", BUILTIN_OPS, CUDA_OPS)
    with pytest.raises(InvariantError, match=r"^node embedding is a ai\.precast\.Embedding, which device cuda"):
        check.apply(emitted())
    network = lowered()
    network.graph.node("tokens").version = 2
    with pytest.raises(InvariantError, match=r"^node tokens is a ai\.precast\.GreedyTokens, which device cuda"):
        check.apply(network)


def test_fields_of_norms_and_activations() -> None:
    model = with_mlp(replace(WIDE, final_norm=NormConfig(1e-6)), intermediate_size=192)
    graph = lowered(model, cuda_plan("float16")).graph

    def attributes(name: str) -> dict[str, object]:
        return {key: attribute.value for key, attribute in graph.node(name).attributes.items()}

    norms = {node.name: attributes(str(node.name)) for node in graph if node.op_type == "RmsNorm"}
    common = {"dtype": "float16", "num_features": 128}
    first, *middle, last = norms
    assert norms[first] == {**common, "epsilon": 1e-5, "has_residual": 0}
    assert [norms[name] for name in middle] == [{**common, "epsilon": 1e-5, "has_residual": 1}] * 3
    assert norms[last] == {**common, "epsilon": 1e-6, "has_residual": 1}
    activations = [attributes(str(node.name)) for node in graph if node.op_type == "GatedActivation"]
    assert activations == [{"activation": "silu", "dtype": "float16", "num_features": 192}] * 2
    assert attributes("tokens") == {"vocab_size": 40}


def test_a_norm_with_a_residual_has_a_sum_and_one_without_has_none() -> None:
    lines = [line for line in nodes(lowered()) if "RmsNorm" in line]
    assert lines[0].startswith("layers.0.mixer_norm: ")
    inputs = [line.rpartition("(")[2].rstrip(")").split(", ") for line in lines]
    assert [len(each) for each in inputs] == [2, 3, 3, 3, 3]
    outputs = [len(node.outputs) for node in lowered().graph if node.op_type == "RmsNorm"]
    assert outputs[0] == 1
    assert set(outputs[1:-1]) == {2}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_nodes_have_what_their_kinds_read(name: str, dtype: str) -> None:
    """Every attribute, of the right type, and fields that make sense; as many inputs and outputs as the op may have."""
    kinds = {kind.name: kind for kind in KINDS}
    for node in lowered(MODELS[name], cuda_plan(dtype)).graph:
        if not node.domain:
            continue
        kind = kinds[node.op_type]
        values = {key: attribute.value for key, attribute in node.attributes.items()}
        assert set(values) == set(kind.attributes)
        assert {key: type(value) for key, value in values.items()} == kind.attributes
        kind.read_fields(values)
        assert len(kind.inputs) - kind.num_optional_inputs <= len(node.inputs) <= len(kind.inputs)
        assert len(kind.outputs) - kind.num_optional_outputs <= len(node.outputs) <= len(kind.outputs)
        halves = {"half": dtype, "int32": "int32", "float32": "float32"}
        given = [str(value.dtype).lower() for value in (*node.inputs, *node.outputs) if value is not None]
        taken = [*kind.inputs[: len(node.inputs)], *kind.outputs[: len(node.outputs)]]
        names = {"float": "float32"}
        assert [names.get(each, each) for each in given] == [halves[each] for each in taken], node.name


def test_pools_are_inputs_alone() -> None:
    """The op writes them in place, and ONNX Runtime is not told."""
    network = lowered(MODELS["windows"])
    chosen_outputs = ["tokens", "candidate_ids", "candidate_logits", "log_sums"]
    assert [value.name for value in network.graph.outputs] == ["logits", *chosen_outputs]
    pool = next(value for value in network.graph.inputs if value.name == "kv.0")
    assert (pool.dtype, pool.shape) == (ir.DataType.BFLOAT16, ir.Shape(("num_blocks", 2 * 2 * 16 * 32)))
    attention = network.graph.node("layers.1.attention")
    assert attention.attributes["window"].as_int() == 5
    assert "plugin_namespace" not in attention.attributes


def test_a_tied_table_is_one_tensor() -> None:
    network = lowered(MODELS["tied"])
    assert [name for name in network.weights if "lm_head" in name or "embedding" in name] == ["embedding.weight"]
    readers = {use.node.op_type for use in network.graph.initializers["embedding.weight"].uses()}
    assert readers == {"Gather", "Gemm"}


def test_every_value_has_the_type_that_onnx_infers() -> None:
    network = lowered()
    model = onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0)))
    ours = {name for node in model.graph.node if node.domain for name in node.output}
    known = [info for info in model.graph.value_info if info.name in ours]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    types = {info.name: info.type.tensor_type for info in inferred}
    checked = [value for node in network.graph if not node.domain for value in node.outputs if value.name in types]
    assert len(checked) > 15
    for value in checked:
        found = types[str(value.name)]
        assert value.dtype == ir.DataType(found.elem_type), value.name
        assert value.shape is not None
        assert [dim.dim_value for dim in found.shape.dim][1:] == list(value.shape.dims)[1:], value.name


def test_every_operator_is_as_old_as_the_opset() -> None:
    """ONNX's own checker, which knows no domain of ours."""
    network = lowered()
    model = onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0)))
    for node in model.graph.node:
        if not node.domain:
            onnx.checker.check_node(node, _context(model))
    old = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT, saturate=1, round_mode="up")  # of opset 24
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_node(old, _context(model))


def _context(model: onnx.ModelProto) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in model.opset_import}
    return context
