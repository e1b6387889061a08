"""Lowered networks of several ranks: what they compute together, and each pass's rules for collectives."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.reference import ReferenceModel
from precast.checkpoints.model_config import HeadConfig, ModelConfig, NormConfig, QkNormConfig
from precast.checkpoints.ranks.mapping import Mapping
from tests.builder.tensorrt.lowered_ranks import COLLECTIVES, LoweredRanks, lowered_ranks
from tests.builder.tensorrt.worlds import WIDE, tensorrt_plan
from tests.builder.worlds import RandomTensors, nodes, with_attention, with_mlp

TOKENS = [1, 5, 7, 30, 2, 8, 39, 0, 11, 12, 3, 3, 25, 17, 4, 9, 33, 21]
"""Of a vocabulary of 40, of which two ranks have 32 rows each: some tokens are the first one's, some the other's."""

MODELS: dict[str, ModelConfig] = {
    "llama": WIDE,
    "tied": replace(WIDE, head=HeadConfig(tied=True)),
    "biases": with_mlp(with_attention(WIDE, qkv_bias=True, output_bias=True), bias=True),
    "qk norm": with_attention(WIDE, qk_norm=QkNormConfig(NormConfig(1e-6))),
    "one key-value head": with_attention(WIDE, num_kv_heads=1),
    "no padding": replace(WIDE, vocab_size=64),
    "a rank without a row of the vocabulary": replace(WIDE, vocab_size=12),
}


def error(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_compute_what_the_model_does(name: str, sizes: tuple[int, int]) -> None:
    """In float16 roundings are small. Every rank of the last stage has the logits, the same bits."""
    model, tensors = MODELS[name], RandomTensors(MODELS[name])
    tokens = [token % model.vocab_size for token in TOKENS]
    ranks = LoweredRanks(model, Mapping.of(*sizes), tensorrt_plan("float16"), tensors)
    outputs = ranks(tokens)
    first, *others = outputs[-sizes[0] :]
    assert error(first["logits"], ReferenceModel(model, tensors)(tokens)) < 0.01
    for other in others:
        for output, array in first.items():
            np.testing.assert_array_equal(other[output], array)
    for sent in outputs[: -sizes[0]]:
        assert {name: array.tolist() for name, array in sent.items()} == {"sent_rows": [len(tokens)]}


def test_bfloat16_logits() -> None:
    tensors = RandomTensors(WIDE)
    outputs = LoweredRanks(WIDE, Mapping.of(2, 2), tensorrt_plan(), tensors)(TOKENS)
    assert 0.003 < error(outputs[-1]["logits"], ReferenceModel(WIDE, tensors)(TOKENS)) < 0.08


def test_what_every_rank_meets_for() -> None:
    """Two sums a layer, one for the embedding, and the logits: in the network's order, the same on every rank."""
    ranks = LoweredRanks(WIDE, Mapping.of(2, 2), tensorrt_plan("float16"), RandomTensors(WIDE))
    ranks(TOKENS)
    assert [stage.met for stage in ranks.stages] == [["AllReduce"] * 3, ["AllReduce"] * 2 + ["AllGather"]]


def test_four_ranks() -> None:
    model = with_attention(WIDE, num_heads=8, num_kv_heads=4)
    tensors = RandomTensors(model)
    outputs = LoweredRanks(model, Mapping.of(4, 1), tensorrt_plan("float16"), tensors)(TOKENS)
    assert error(outputs[0]["logits"], ReferenceModel(model, tensors)(TOKENS)) < 0.01


# --------------------------------------------------------------------------------------------------------- the rules


def test_collectives_have_the_plugins_attributes() -> None:
    plan = tensorrt_plan()
    stages = [lowered_ranks(WIDE, Mapping.of(2, 2), plan)[number][1].graph for number in (0, 2)]
    named = {"plugin_namespace": "precast", "plugin_version": "1", "dtype": "bfloat16"}
    for graph, name, own in (
        (stages[0], "embedding.all_reduce", {"num_ranks": 2}),
        (stages[0], "send", {}),
        (stages[1], "receive", {"num_features": 128}),
        (stages[1], "lm_head.all_gather", {"num_ranks": 2, "num_features": 40, "root": -1}),
    ):
        node = graph.node(name)
        assert {key: attribute.value for key, attribute in node.attributes.items()} == {**named, **own}
        (output,) = node.outputs
        assert output.dtype == (ir.DataType.INT32 if name == "send" else ir.DataType.BFLOAT16)


def test_columns_lie_side_by_side_without_their_padding() -> None:
    (_, network), _ = lowered_ranks(WIDE, Mapping.of(2, 1), tensorrt_plan())
    name = "lm_head.all_gather"
    bounds = ", ".join(f"{name}.{part}" for part in ("start", "end", "axis"))
    lines = [line for line in nodes(network) if line.startswith((name, "logits.cast"))]
    assert [line for line in lines if "Constant" not in line] == [
        f"{name}: {name}.by_rank bfloat16 [2, num_logit_rows, 32] = AllGather(lm_head)",
        f"{name}.by_row: bfloat16 [num_logit_rows, 2, 32] = Transpose({name}.by_rank)",
        f"{name}.side_by_side: {name}.padded bfloat16 [num_logit_rows, 64] = Reshape({name}.by_row, {name}.shape)",
        f"{name}.vocabulary: logits.half bfloat16 [num_logit_rows, 40] = Slice({name}.padded, {bounds})",
        "logits.cast: logits [num_logit_rows, 40] = Cast(logits.half)",
    ]
    (_, whole), _ = lowered_ranks(replace(WIDE, vocab_size=64), Mapping.of(2, 1), tensorrt_plan())
    assert not [node for node in whole.graph if node.op_type == "Slice"]


def test_collectives_have_one_order() -> None:
    """Each depends on the one before, so TensorRT can run them in no other order, in which ranks would wait forever.

    And no two have the same inputs, so it has nothing to merge; the last leads to an output, so none is dropped.
    """
    for _, network in lowered_ranks(WIDE, Mapping.of(2, 2), tensorrt_plan()):
        found = [node for node in network.graph if node.op_type in COLLECTIVES]
        assert len(found) == 4
        for before, node in pairwise(found):
            assert before in ancestors(node)
        inputs = [tuple(value.name for value in node.inputs if value is not None) for node in found]
        assert len(set(inputs)) == len(inputs)
        kv = {cache.name for cache in network.kv_caches}
        outputs = [value for value in network.graph.outputs if str(value.name).removesuffix(".out") not in kv]
        last = {node for value in outputs for node in (value.producer(), *ancestors(value.producer()))}
        assert set(found) <= last


def ancestors(node: ir.Node | None) -> set[ir.Node]:
    """Every node that a node's inputs depend on."""
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        for value in () if current is None else current.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def test_every_value_has_the_type_that_onnx_infers() -> None:
    """Of ONNX's own operators, from inputs, weights and plugins' outputs: those of slices and gathered columns too."""
    for _, network in lowered_ranks(WIDE, Mapping.of(2, 2), tensorrt_plan()):
        model = onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0)))
        plugins = {name for node in model.graph.node if node.domain for name in node.output}
        known = [info for info in model.graph.value_info if info.name in plugins]
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
            assert len(found.shape.dim) == len(value.shape), value.name
            for dim, expected in zip(found.shape.dim, value.shape.dims, strict=True):
                assert not dim.dim_value or dim.dim_value == expected, value.name
