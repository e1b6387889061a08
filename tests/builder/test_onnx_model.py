"""The bytes of the lowered graph: what ONNX's own tools and the runtime read."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from precast.builder.backends import BACKENDS, get_backend
from precast.builder.build import build_engine
from precast.builder.errors import BuildError
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.network.text import network_text
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.weights_reader import read_weights_index
from tests.builder.worlds import emitted, finished
from tests.tiny_llama import VARIANTS

OFFSETS = {name: 64 * (index + 1) for index, name in enumerate(finished().weights)}


def lower() -> bytes:
    return onnx_bytes(finished(), OFFSETS)


def test_versions_are_those_that_the_oldest_onnx_runtime_reads() -> None:
    model = onnx.load_from_string(lower())
    assert model.ir_version == 10
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20, "ai.precast": 1}
    assert model.producer_name == "precast"


def test_inputs_and_outputs_are_the_runtimes_contract() -> None:
    graph = onnx.load_from_string(lower()).graph
    described = [
        (
            value.name,
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in [*graph.input, *graph.output]
    ]
    assert described == [
        ("token_ids", "INT32", ["num_tokens"]),
        ("query_starts", "INT32", ["num_sequences_plus_1"]),
        ("context_lengths", "INT32", ["num_sequences"]),
        ("block_tables.0", "INT32", ["num_sequences", "max_blocks.0"]),
        ("logit_rows", "INT32", ["num_logit_rows"]),
        ("kv.0", "UINT8", ["num_blocks", 2048]),
        ("logits", "FLOAT", ["num_logit_rows", 40]),
    ]


def test_every_initialiser_is_external_with_its_true_place() -> None:
    network = finished()
    for tensor in onnx.load_from_string(lower()).graph.initializer:
        recipe = network.weights[tensor.name]
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
        assert {entry.key: entry.value for entry in tensor.external_data} == {
            "location": "weights.bin",
            "offset": str(OFFSETS[tensor.name]),
            "length": str(recipe.size_bytes),
        }
        assert tuple(tensor.dims) == recipe.stored_shape
        assert (
            onnx.TensorProto.DataType.Name(tensor.data_type)
            == {"float32": "FLOAT", "uint8": "UINT8"}[recipe.stored_dtype]
        )
        assert not tensor.raw_data


def test_equal_networks_give_equal_bytes() -> None:
    assert lower() == lower()


def test_lowering_leaves_the_network_as_it_was() -> None:
    network = finished()
    onnx_bytes(network, OFFSETS)
    assert network_text(network) == network_text(finished())
    assert all(value.const_value is None for value in network.graph.initializers.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_accepts_the_graph_of_every_variant(
    variant: str, tiny_llama: Callable[[str], Path], tmp_path: Path
) -> None:
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        build_engine(checkpoint, tmp_path / "engine")
    path = tmp_path / "engine/rank0/model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    places = {tensor.spec.name: tensor for tensor in read_weights_index(path.with_name("weights.bin")).tensors}
    for tensor in inferred.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = places.pop(tensor.name)
        assert (int(entries["offset"]), int(entries["length"])) == (place.offset, place.spec.size_bytes)
        assert tuple(tensor.dims) == place.spec.shape
    assert not places


def test_every_value_has_a_shape_and_a_type() -> None:
    for network in (emitted(), finished()):
        for node in network.graph:
            assert all(value.shape is not None and value.dtype is not None for value in node.outputs)


def test_an_unknown_backend_is_refused() -> None:
    assert BACKENDS == ("onnxruntime", "onnxruntime-cuda", "tensorrt")
    with pytest.raises(
        BuildError, match=r"^backend 'tensorflow' is unknown; known: onnxruntime, onnxruntime-cuda, tensorrt$"
    ):
        get_backend("tensorflow")
