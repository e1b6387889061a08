"""Networks of several ranks, lowered for ONNX Runtime on GPUs: what they compute together, and their collectives."""

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest

from precast.builder.backends.onnxruntime_cuda.lowering.pipeline import BUILTIN_OPS, cuda_passes
from precast.builder.network.network import Network
from precast.builder.passes.check_supported import versioned_op
from precast.builder.plan import BuildPlan
from precast.builder.reference import ReferenceModel
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.plugins import CUDA_OPS
from precast.plugins.onnxruntime.kinds import KINDS
from tests.builder.onnxruntime_cuda.worlds import OPS, cuda_plan
from tests.builder.tensorrt.lowered_ranks import COLLECTIVES, LoweredRanks, lowered_ranks
from tests.builder.tensorrt.test_lowered_ranks import MODELS, TOKENS, ancestors, error
from tests.builder.tensorrt.worlds import WIDE
from tests.builder.worlds import RandomTensors, nodes, with_attention


def ranks_of(model: ModelConfig, mapping: Mapping, plan: BuildPlan, tensors: RandomTensors) -> LoweredRanks:
    return LoweredRanks(model, mapping, plan, tensors, cuda_passes, OPS)


def networks_of(mapping: Mapping, model: ModelConfig = WIDE) -> list[Network]:
    return [network for _, network in lowered_ranks(model, mapping, cuda_plan(), cuda_passes)]


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_ranks_compute_what_the_model_does(name: str, sizes: tuple[int, int]) -> None:
    """In float16 roundings are small. Every rank of the last stage has the logits, the same bits."""
    model, tensors = MODELS[name], RandomTensors(MODELS[name])
    tokens = [token % model.vocab_size for token in TOKENS]
    outputs = ranks_of(model, Mapping.of(*sizes), cuda_plan("float16"), tensors)(tokens)
    first, *others = outputs[-sizes[0] :]
    assert error(first["logits"], ReferenceModel(model, tensors)(tokens)) < 0.01
    for other in others:
        for output, array in first.items():
            np.testing.assert_array_equal(other[output], array)
    for sent in outputs[: -sizes[0]]:
        assert {name: array.tolist() for name, array in sent.items()} == {"sent_rows": [len(tokens)]}


def test_bfloat16_logits() -> None:
    tensors = RandomTensors(WIDE)
    outputs = ranks_of(WIDE, Mapping.of(2, 2), cuda_plan(), tensors)(TOKENS)
    assert 0.003 < error(outputs[-1]["logits"], ReferenceModel(WIDE, tensors)(TOKENS)) < 0.08


def test_four_ranks() -> None:
    model = with_attention(WIDE, num_heads=8, num_kv_heads=4)
    tensors = RandomTensors(model)
    outputs = ranks_of(model, Mapping.of(4, 1), cuda_plan("float16"), tensors)(TOKENS)
    assert error(outputs[0]["logits"], ReferenceModel(model, tensors)(TOKENS)) < 0.01


def test_what_every_rank_meets_for() -> None:
    ranks = ranks_of(WIDE, Mapping.of(2, 2), cuda_plan("float16"), RandomTensors(WIDE))
    ranks(TOKENS)
    assert [stage.met for stage in ranks.stages] == [["AllReduce"] * 3, ["AllReduce"] * 2 + ["AllGather"]]


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2)], ids=str)
def test_nothing_but_what_the_device_has(sizes: tuple[int, int]) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    for network in networks_of(Mapping.of(*sizes)):
        assert (network.model.ir_version, network.graph.opset_imports[""]) == (10, 20)
        assert {node.op_type for node in network.graph if not node.domain} <= set(BUILTIN_OPS)
        ours = [node for node in network.graph if node.domain]
        assert {versioned_op(node) for node in ours} <= set(CUDA_OPS)
        for node in ours:
            values = {key: attribute.value for key, attribute in node.attributes.items()}
            assert {key: type(value) for key, value in values.items()} == kinds[node.op_type].attributes
            kinds[node.op_type].read_fields(values)


def test_collectives_have_no_attributes_of_plugins() -> None:
    stages = [networks_of(Mapping.of(2, 2))[number].graph for number in (0, 2)]
    for graph, name, own in (
        (stages[0], "embedding.all_reduce", {"num_ranks": 2}),
        (stages[0], "send", {}),
        (stages[1], "receive", {"num_features": 128}),
        (stages[1], "lm_head.all_gather", {"num_ranks": 2, "num_features": 40, "root": -1}),
    ):
        node = graph.node(name)
        assert {key: attribute.value for key, attribute in node.attributes.items()} == {"dtype": "bfloat16", **own}
        assert node.outputs[0].dtype == (ir.DataType.INT32 if name == "send" else ir.DataType.BFLOAT16)


def test_tokens_are_chosen_from_gathered_logits_without_padding() -> None:
    network, _ = networks_of(Mapping.of(2, 1))
    name = "lm_head.all_gather"
    lines = [line for line in nodes(network) if line.startswith((name, "logits.cast", "tokens:"))]
    bounds = ", ".join(f"{name}.{part}" for part in ("start", "end", "axis"))
    assert [line for line in lines if "Constant" not in line][-3:] == [
        f"{name}.vocabulary: logits.half bfloat16 [num_logit_rows, 40] = Slice({name}.padded, {bounds})",
        "logits.cast: logits [num_logit_rows, 40] = Cast(logits.half)",
        "tokens: int32 [num_logit_rows], log_sums [num_logit_rows] = GreedyTokens(logits)",
    ]
    assert network.graph.node("tokens").attributes["vocab_size"].as_int() == 40


def test_collectives_have_one_order() -> None:
    """Each depends on the one before, so ONNX Runtime can run them in no other order, in which ranks would wait
    forever; and the last leads to an output."""
    for network in networks_of(Mapping.of(2, 2)):
        found = [node for node in network.graph if node.op_type in COLLECTIVES]
        assert len(found) == 4
        for before, node in pairwise(found):
            assert before in ancestors(node)
        last = {node for value in network.graph.outputs for node in (value.producer(), *ancestors(value.producer()))}
        assert set(found) <= last
