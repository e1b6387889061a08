"""Each test is one numbered rule of the pass."""

from dataclasses import replace

import onnx_ir as ir

from precast.builder.network.nodes import builtin_node
from precast.builder.network.text import network_text, node_text
from precast.builder.passes.fuse_residual_norm import FuseResidualNorm
from precast.checkpoints.model_config import NormConfig
from tests.builder.worlds import LAYER, MODEL, emitted, nodes

FUSE = FuseResidualNorm()


def test_1_an_add_and_its_norm_become_one_norm_with_a_residual() -> None:
    network = emitted(replace(MODEL, layers=(LAYER, LAYER)))
    assert FUSE(network)
    assert node_text(network.graph.node("layers.0.feed_forward_norm")) == (
        "layers.0.feed_forward_norm: [num_tokens, 32], layers.0.mixer_sum [num_tokens, 32] = "
        "RmsNorm(layers.0.attention.o, layers.0.feed_forward_norm.weight, embedding) {epsilon=1e-05}"
    )


def test_1_the_sum_goes_to_every_other_reader() -> None:
    network = emitted(replace(MODEL, layers=(LAYER, LAYER)))
    FUSE(network)
    assert [line for line in nodes(network) if "RmsNorm" in line or "Add" in line] == [
        "layers.0.mixer_norm: [num_tokens, 32] = RmsNorm(embedding, layers.0.mixer_norm.weight)",
        (
            "layers.0.feed_forward_norm: [num_tokens, 32], layers.0.mixer_sum [num_tokens, 32] = "
            "RmsNorm(layers.0.attention.o, layers.0.feed_forward_norm.weight, embedding)"
        ),
        (
            "layers.1.mixer_norm: [num_tokens, 32], layers.0.feed_forward_sum [num_tokens, 32] = "
            "RmsNorm(layers.0.feed_forward.down, layers.1.mixer_norm.weight, layers.0.mixer_sum)"
        ),
        (
            "layers.1.feed_forward_norm: [num_tokens, 32], layers.1.mixer_sum [num_tokens, 32] = "
            "RmsNorm(layers.1.attention.o, layers.1.feed_forward_norm.weight, layers.0.feed_forward_sum)"
        ),
        # The Gather of the wanted rows stands between the last Add and its norm: select_rows_early moves it.
        "layers.1.feed_forward_sum: [num_tokens, 32] = Add(layers.1.mixer_sum, layers.1.feed_forward.down)",
        "final_norm: [num_logit_rows, 32] = RmsNorm(layers.1.feed_forward_sum.logit_rows, final_norm.weight)",
    ]


def test_1_the_epsilon_is_kept() -> None:
    layer = replace(LAYER, feed_forward_norm=NormConfig(epsilon=0.125))
    network = emitted(replace(MODEL, layers=(layer,)))
    FUSE(network)
    assert network.graph.node("layers.0.feed_forward_norm").attributes["epsilon"].as_float() == 0.125


def test_2_of_two_norms_the_first_is_fused() -> None:
    network = emitted()
    first = network.graph.node("layers.0.feed_forward_norm")
    output = ir.Value(name="second", shape=first.outputs[0].shape, type=first.outputs[0].type)
    attributes = list(first.attributes.values())
    second = ir.Node(first.domain, "RmsNorm", first.inputs, attributes, outputs=[output], version=1, name="second")
    network.graph.insert_after(first, second)
    FUSE(network)
    assert len(network.graph.node("layers.0.feed_forward_norm").inputs) == 3
    assert [value.name for value in network.graph.node("second").inputs if value] == [
        "layers.0.mixer_sum",
        "layers.0.feed_forward_norm.weight",
    ]


def test_2_a_norm_that_has_a_residual_already_is_not_fused() -> None:
    network = emitted()
    FUSE(network)
    fused, embedding = network.graph.node("layers.0.feed_forward_norm"), network.graph.node("embedding").outputs[0]
    output = ir.Value(name="doubled", shape=embedding.shape, type=embedding.type)
    network.graph.insert_before(fused, builtin_node("Add", [embedding, embedding], output, "doubled"))
    fused.replace_input_with(0, output)
    assert not FUSE(network)


def test_3_an_add_that_broadcasts_stays() -> None:
    network = emitted()
    network.graph.node("embedding").outputs[0].shape = ir.Shape((1, 32))
    FUSE(network)
    assert network.graph.node("layers.0.mixer_sum").op_type == "Add"


def test_3_an_output_of_the_graph_stays() -> None:
    network = emitted()
    network.graph.outputs.append(network.graph.node("layers.0.mixer_sum").outputs[0])
    assert not FUSE(network)


def test_an_add_without_a_norm_stays() -> None:
    network = emitted()
    embedding = network.graph.node("embedding").outputs[0]
    output = ir.Value(name="doubled", shape=embedding.shape, type=embedding.type)
    network.graph.append(builtin_node("Add", [embedding, embedding], output, "doubled"))
    FUSE(network)
    assert network.graph.node("doubled").op_type == "Add"


def test_a_second_run_changes_nothing() -> None:
    network = emitted()
    assert FUSE(network)
    before = network_text(network)
    assert not FUSE(network)
    assert network_text(network) == before
