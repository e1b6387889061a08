"""Each test is one numbered rule of the pass."""

import onnx_ir as ir

from precast.builder.network.network import Network
from precast.builder.network.nodes import builtin_node
from precast.builder.network.text import network_text
from precast.builder.passes.remove_unused import RemoveUnused
from precast.builder.weights import WeightRecipe, Zeros
from tests.builder.worlds import emitted

REMOVE = RemoveUnused()


def add_dead_chain(network: Network) -> None:
    """embedding -> dead.0 -> dead.1 -> dead.2, which nothing reads."""
    value = network.graph.node("embedding").outputs[0]
    for index in range(3):
        output = ir.Value(name=f"dead.{index}", shape=value.shape, type=value.type)
        network.graph.append(builtin_node("Add", [value, value], output, f"dead.{index}"))
        value = output


def test_1_a_dead_chain_goes_in_one_run() -> None:
    network, clean = emitted(), network_text(emitted())
    add_dead_chain(network)
    assert REMOVE(network)
    assert network_text(network) == clean


def test_2_an_initialiser_that_nothing_reads_goes_with_its_recipe() -> None:
    network, clean = emitted(), network_text(emitted())
    network.add_weight("unread", WeightRecipe("plain", (Zeros((4,)),)))
    assert REMOVE(network)
    assert network_text(network) == clean


def test_2_the_weights_of_dead_nodes_go_too() -> None:
    network = emitted()
    weight = network.add_weight("dead.weight", WeightRecipe("plain", (Zeros((32,)),)))
    value = network.graph.node("embedding").outputs[0]
    output = ir.Value(name="dead", shape=value.shape, type=value.type)
    network.graph.append(builtin_node("Add", [value, weight], output, "dead"))
    REMOVE(network)
    assert "dead.weight" not in network.weights
    assert "dead.weight" not in network.graph.initializers


def test_3_inputs_stay() -> None:
    network = emitted()
    unread = ir.Value(name="unread", shape=ir.Shape((1,)), type=ir.TensorType(ir.DataType.INT32))
    network.graph.inputs.append(unread)
    assert not REMOVE(network)
    assert unread in network.graph.inputs


def test_a_network_without_dead_code_is_left_alone() -> None:
    network = emitted()
    before = network_text(network)
    assert not REMOVE(network)
    assert network_text(network) == before
