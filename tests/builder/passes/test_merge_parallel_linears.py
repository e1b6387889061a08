"""Each test is one numbered rule of the pass."""

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.text import network_text, node_text
from precast.builder.passes.merge_parallel_linears import MergeParallelLinears
from tests.builder.worlds import emitted, nodes, weights, with_attention, with_mlp

MERGE = MergeParallelLinears()


def named(network: Network, name: str) -> str:
    return node_text(network.graph.node(name))


def test_1_parallel_linears_become_one_under_the_name_of_their_concat() -> None:
    network = emitted()
    assert MERGE(network)
    assert named(network, "layers.0.attention.qkv") == (
        "layers.0.attention.qkv: [num_tokens, 64] = Linear(layers.0.mixer_norm, layers.0.attention.qkv.weight) "
        "{in_features=32, out_features=64, layout=x16k1.f32/1}"
    )
    assert named(network, "layers.0.feed_forward.gate_up") == (
        "layers.0.feed_forward.gate_up: [num_tokens, 96] = "
        "Linear(layers.0.feed_forward_norm, layers.0.feed_forward.gate_up.weight) "
        "{in_features=32, out_features=96, layout=x16k1.f32/1}"
    )
    assert [line for line in weights(network) if "|" in line] == [
        (
            "layers.0.attention.qkv.weight x16k1.f32/1 [64, 32] <- "
            "layers.0.attention.q.weight | layers.0.attention.k.weight | layers.0.attention.v.weight"
        ),
        (
            "layers.0.feed_forward.gate_up.weight x16k1.f32/1 [96, 32] <- "
            "layers.0.feed_forward.gate.weight | layers.0.feed_forward.up.weight"
        ),
    ]


def test_1_nothing_of_the_parts_is_left() -> None:
    network = emitted()
    MERGE(network)
    assert not {"q", "k", "v", "gate", "up"} & {(node.name or "").split(".")[-1] for node in network.graph}
    assert not [name for name in network.weights if name.split(".")[-2] in {"q", "k", "v", "gate", "up"}]
    assert "Concat" not in {node.op_type for node in network.graph}


def test_1_linears_of_different_inputs_stay() -> None:
    network = emitted()
    network.graph.node("layers.0.attention.v").replace_input_with(0, network.graph.node("embedding").outputs[0])
    MERGE(network)
    names = [line.split(":")[0] for line in nodes(network)]
    assert [name.split(".")[-1] for name in names if ".attention." in name] == ["q", "k", "v", "qkv", "o"]


def test_1_linears_of_different_layouts_stay() -> None:
    network = emitted()
    layout = ir.Attr("layout", ir.AttributeType.STRING, "x16k2.bf16/1")
    network.graph.node("layers.0.feed_forward.up").attributes["layout"] = layout
    MERGE(network)
    assert network.graph.node("layers.0.feed_forward.gate_up").op_type == "Concat"


def test_1_a_concat_of_something_else_stays() -> None:
    network = emitted()
    concat = network.graph.node("layers.0.feed_forward.gate_up")
    concat.replace_input_with(1, network.graph.node("layers.0.feed_forward.gate").outputs[0])  # one Linear, twice
    MERGE(network)
    assert network.graph.node("layers.0.feed_forward.gate_up").op_type == "Concat"


def test_1_a_concat_of_rows_stays() -> None:
    network = emitted()
    concat = network.graph.node("layers.0.feed_forward.gate_up")
    concat.attributes["axis"] = ir.Attr("axis", ir.AttributeType.INT, 0)
    MERGE(network)
    assert network.graph.node("layers.0.feed_forward.gate_up").op_type == "Concat"


def test_2_biases_are_concatenated() -> None:
    network = emitted(with_mlp(bias=True))
    MERGE(network)
    recipe = network.weights["layers.0.feed_forward.gate_up.bias"]
    assert [str(source) for source in recipe.sources] == [
        "layers.0.feed_forward.gate.bias",
        "layers.0.feed_forward.up.bias",
    ]
    assert recipe.layout == "plain"
    assert [value.name for value in network.graph.node("layers.0.feed_forward.gate_up").inputs if value][2:] == [
        "layers.0.feed_forward.gate_up.bias"
    ]


def test_2_zeros_stand_in_for_a_missing_bias() -> None:
    network = emitted(with_attention(qkv_bias=True, key_bias=False))
    MERGE(network)
    sources = network.weights["layers.0.attention.qkv.bias"].sources
    assert [str(source) for source in sources] == [
        "layers.0.attention.q.bias",
        "zeros[16]",
        "layers.0.attention.v.bias",
    ]


def test_2_without_any_bias_there_is_none() -> None:
    network = emitted()
    MERGE(network)
    assert len(network.graph.node("layers.0.attention.qkv").inputs) == 2
    assert "layers.0.attention.qkv.bias" not in network.weights


def test_3_an_output_that_is_read_elsewhere_keeps_its_linear() -> None:
    network = emitted()
    up = network.graph.node("layers.0.feed_forward.up").outputs[0]
    reader = ir.Node("", "Add", [up, up], num_outputs=1, name="reader")
    reader.outputs[0].name = "reader"
    network.graph.insert_before(network.graph.node("final_norm"), reader)
    MERGE(network)
    assert network.graph.node("layers.0.feed_forward.gate_up").op_type == "Concat"
    assert network.graph.node("layers.0.attention.qkv").op_type == "Linear"


def test_3_a_shared_weight_keeps_its_linears() -> None:
    network = emitted()
    gate = network.graph.node("layers.0.feed_forward.gate").inputs[1]
    network.graph.node("layers.0.feed_forward.up").replace_input_with(1, gate)
    MERGE(network)
    assert network.graph.node("layers.0.feed_forward.gate_up").op_type == "Concat"


def test_a_second_run_changes_nothing() -> None:
    network = emitted()
    assert MERGE(network)
    before = network_text(network)
    assert not MERGE(network)
    assert network_text(network) == before
