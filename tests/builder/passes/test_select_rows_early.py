"""Each test is one numbered rule of the pass."""

from dataclasses import replace

import pytest

from precast.builder.network.network import Network
from precast.builder.network.text import network_text
from precast.builder.passes.base import InvariantError
from precast.builder.passes.merge_parallel_linears import MergeParallelLinears
from precast.builder.passes.select_rows_early import SelectRowsEarly
from precast.checkpoints.model_config import ModelConfig
from tests.builder.worlds import LAYER, MODEL, emitted, nodes

SELECT = SelectRowsEarly()


def merged(model: ModelConfig = MODEL) -> Network:
    """The network as the pass before leaves it."""
    network = emitted(model)
    MergeParallelLinears()(network)
    return network


def test_1_what_follows_the_last_attention_is_narrow_and_nothing_before() -> None:
    network = merged(replace(MODEL, layers=(LAYER, LAYER)))
    assert SELECT(network)
    narrow = [
        node.name
        for node in network.graph
        if node.outputs[0].shape is not None and str(node.outputs[0].shape[0]) == "num_logit_rows"
    ]
    assert narrow == [
        "layers.1.attention.logit_rows",
        "layers.1.attention.o",
        "layers.0.feed_forward_sum.logit_rows",
        "layers.1.mixer_sum",
        "layers.1.feed_forward_norm",
        "layers.1.feed_forward.gate_up",
        "layers.1.feed_forward.activation",
        "layers.1.feed_forward.down",
        "layers.1.feed_forward_sum",
        "final_norm",
        "lm_head",
    ]


def test_2_inputs_of_narrow_nodes_are_selected() -> None:
    network = merged()
    SELECT(network)
    assert [line for line in nodes(network) if "logit_rows" in line][:4] == [
        "layers.0.attention.logit_rows: [num_logit_rows, 32] = Gather(layers.0.attention, logit_rows)",
        (
            "layers.0.attention.o: [num_logit_rows, 32] = "
            "Linear(layers.0.attention.logit_rows, layers.0.attention.o.weight)"
        ),
        "embedding.logit_rows: [num_logit_rows, 32] = Gather(embedding, logit_rows)",
        "layers.0.mixer_sum: [num_logit_rows, 32] = Add(embedding.logit_rows, layers.0.attention.o)",
    ]


def test_2_one_selection_serves_all_readers() -> None:
    network = merged()
    attention = network.graph.node("layers.0.attention").outputs[0]
    network.graph.node("layers.0.mixer_sum").replace_input_with(0, attention)
    SELECT(network)
    assert [line for line in nodes(network) if "layers.0.attention.logit_rows" in line.split("=")[1]] == [
        (
            "layers.0.attention.o: [num_logit_rows, 32] = "
            "Linear(layers.0.attention.logit_rows, layers.0.attention.o.weight)"
        ),
        "layers.0.mixer_sum: [num_logit_rows, 32] = Add(layers.0.attention.logit_rows, layers.0.attention.o)",
    ]
    assert [node.name for node in network.graph if node.op_type == "Gather"] == ["layers.0.attention.logit_rows"]


def test_3_the_gather_before_the_head_is_dropped() -> None:
    network = merged()
    SELECT(network)
    assert "layers.0.feed_forward_sum.logit_rows" not in network_text(network)
    assert "final_norm: [num_logit_rows, 32] = RmsNorm(layers.0.feed_forward_sum, final_norm.weight)" in nodes(network)


def test_1_an_output_of_the_graph_keeps_its_rows() -> None:
    network = merged()
    network.graph.outputs.append(network.graph.node("layers.0.feed_forward_norm").outputs[0])
    SELECT(network)
    shape = network.graph.node("layers.0.feed_forward_norm").outputs[0].shape
    assert shape is not None
    assert str(shape[0]) == "num_tokens"
    assert "layers.0.feed_forward_norm.logit_rows: [num_logit_rows, 32]" in network_text(network)


def test_a_graph_without_the_input_is_refused() -> None:
    network = merged()
    network.graph.inputs[4].name = "rows"
    with pytest.raises(InvariantError, match=r"^the graph has no input logit_rows$"):
        SELECT(network)


def test_a_second_run_changes_nothing() -> None:
    network = merged()
    assert SELECT(network)
    before = network_text(network)
    assert not SELECT(network)
    assert network_text(network) == before
