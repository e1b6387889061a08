"""Which nodes of a graph carry compiled kernels, and which only name them. Nothing is compiled here."""

import hashlib
from collections.abc import Sequence

import onnx
import pytest
from onnx import helper

from precast.builder.backends.onnxruntime_cuda.add_kernels import add_kernels
from precast.builder.backends.onnxruntime_cuda.lowering.pipeline import cuda_passes
from precast.builder.network.onnx_model import onnx_bytes
from precast.checkpoints.ranks.mapping import Mapping
from precast.plugins.device.kernel_sets import KERNELS, KERNELS_SHA256
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.onnxruntime.kinds import KINDS
from tests.builder.onnxruntime_cuda.worlds import cuda_plan, lowered
from tests.builder.tensorrt.lowered_ranks import lowered_ranks
from tests.builder.tensorrt.test_lowering import MODELS
from tests.builder.tensorrt.worlds import WIDE

WITH_KERNELS = {kind.name for kind in KINDS if kind.specs is not None}
Specs = tuple[KernelSpec, ...]


def graph_of(name: str = "llama", dtype: str = "bfloat16") -> onnx.ModelProto:
    network = lowered(MODELS[name], cuda_plan(dtype))
    model: onnx.ModelProto = onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0)))
    return model


class Compiler:
    """Its kernels are bytes that no text is, and different for each set."""

    def __init__(self) -> None:
        self.asked: list[Specs] = []

    def __call__(self, sets: Sequence[Specs]) -> list[bytes]:
        self.asked = list(sets)
        return [self.kernels(index) for index in range(len(sets))]

    @staticmethod
    def kernels(index: int) -> bytes:
        return bytes(range(256)) + b"\0" + bytes([index]) + b"\0\xff\n"

    def add_to(self, model: onnx.ModelProto) -> onnx.ModelProto:
        add_kernels(model, self)
        return model


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def kernels_of(model: onnx.ModelProto) -> dict[str, dict[str, bytes]]:
    """Of each node of an op that has any: the attributes that say so."""
    found = {}
    for node in model.graph.node:
        if node.domain and node.op_type in WITH_KERNELS:
            values = attributes(node)
            found[node.name] = {key: values[key] for key in (KERNELS, KERNELS_SHA256) if key in values}
    return found  # type: ignore[return-value]


def test_the_ops_that_have_kernels() -> None:
    ops = {"AllReduce", "GatedActivation", "GreedyTokens", "PagedAttention", "RmsNorm", "TopCandidates"}
    assert ops == WITH_KERNELS


def test_the_first_node_of_each_set_carries_it() -> None:
    """Norms without and with a residual, attention, activation, tokens, candidates: six sets, in the graph's order."""
    compiler = Compiler()
    found = kernels_of(compiler.add_to(graph_of()))
    carriers = [name for name, values in found.items() if KERNELS in values]
    assert carriers == [
        "layers.0.mixer_norm",
        "layers.0.attention",
        "layers.0.feed_forward_norm",
        "layers.0.feed_forward.activation",
        "tokens",
        "candidates",
    ]
    assert [found[name][KERNELS] for name in carriers] == [compiler.kernels(index) for index in range(6)]
    functions = [[spec.function for spec in specs] for specs in compiler.asked]
    assert [len(each) for each in functions] == [1, 4, 1, 1, 2, 2]
    assert functions[0] == functions[2] == ["rms_norm"]


def test_all_nodes_name_their_set() -> None:
    compiler = Compiler()
    found = kernels_of(compiler.add_to(graph_of()))
    digests = {index: hashlib.sha256(compiler.kernels(index)).hexdigest().encode() for index in range(6)}
    named = {name: values[KERNELS_SHA256] for name, values in found.items()}
    assert len(named) == 2 * 4 + 3
    assert named["layers.0.mixer_norm"] == digests[0]
    for layer in (0, 1):
        assert named[f"layers.{layer}.attention"] == digests[1]
        assert named[f"layers.{layer}.feed_forward_norm"] == digests[2]
        assert named[f"layers.{layer}.feed_forward.activation"] == digests[3]
    assert named["layers.1.mixer_norm"] == named["final_norm"] == digests[2]
    assert (named["tokens"], named["candidates"]) == (digests[4], digests[5])
    for values in found.values():
        if KERNELS in values:
            assert hashlib.sha256(values[KERNELS]).hexdigest().encode() == values[KERNELS_SHA256]


def test_unequal_fields_do_not_share() -> None:
    """The layers' windows differ, and so do their kernels."""
    compiler = Compiler()
    found = kernels_of(compiler.add_to(graph_of("windows")))
    assert KERNELS in found["layers.0.attention"]
    assert KERNELS in found["layers.1.attention"]
    assert found["layers.0.attention"][KERNELS_SHA256] != found["layers.1.attention"][KERNELS_SHA256]
    assert len(compiler.asked) == 7


def test_equal_kernels_of_two_ops_are_carried_by_both() -> None:
    """A set is one op's: the runtime keeps those of each op apart."""
    model = graph_of()
    add_kernels(model, lambda sets: [b"the same"] * len(sets))
    carriers = [name for name, values in kernels_of(model).items() if KERNELS in values]
    assert len(carriers) == 6


def test_other_nodes_are_left_alone() -> None:
    before, after = graph_of(), Compiler().add_to(graph_of())
    for old, new in zip(before.graph.node, after.graph.node, strict=True):
        if not (new.domain and new.op_type in WITH_KERNELS):
            assert old == new
            continue
        kept = [attribute for attribute in new.attribute if attribute.name not in (KERNELS, KERNELS_SHA256)]
        assert kept == list(old.attribute)
        assert (new.input, new.output, new.name) == (old.input, old.output, old.name)


def test_collectives_without_kernels_have_none() -> None:
    networks = [network for _, network in lowered_ranks(WIDE, Mapping.of(2, 2), cuda_plan(), cuda_passes)]
    compiler, found = Compiler(), dict[str, set[str]]()
    for network in networks:
        model = compiler.add_to(onnx.ModelProto.FromString(onnx_bytes(network, dict.fromkeys(network.weights, 0))))
        for node in model.graph.node:
            found.setdefault(node.op_type, set()).update(attributes(node))
    for op in ("AllGather", "Send", "Receive", "Gemm", "Add"):
        assert not {KERNELS, KERNELS_SHA256} & found[op]
    assert {KERNELS, KERNELS_SHA256} <= found["AllReduce"]


def test_bytes_stay_bytes() -> None:
    """As a string attribute, through the file's format."""
    compiler = Compiler()
    model = onnx.ModelProto.FromString(compiler.add_to(graph_of()).SerializeToString(deterministic=True))
    assert kernels_of(model)["tokens"][KERNELS] == compiler.kernels(4)
    node = next(node for node in model.graph.node if node.name == "tokens")
    kinds = {attribute.name: attribute.type for attribute in node.attribute}
    assert kinds[KERNELS] == kinds[KERNELS_SHA256] == onnx.AttributeProto.STRING


def test_a_graph_without_our_ops_asks_for_nothing() -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "graph", [x], [y]))
    before = model.SerializeToString()
    add_kernels(model, Compiler())
    assert model.SerializeToString() == before


def test_a_compiler_that_loses_a_set_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        add_kernels(graph_of(), lambda sets: [b"kernels"] * (len(sets) - 1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fields_survive_onnx(dtype: str) -> None:
    """Epsilon is a float of 32 bits in the graph: what is compiled is what the runtime reads back."""
    compiler = Compiler()
    model = compiler.add_to(graph_of("qk norm", dtype))
    kinds = {kind.name: kind for kind in KINDS}
    found = []
    for node in model.graph.node:
        if node.domain and node.op_type in WITH_KERNELS:
            values = attributes(node)
            values.pop(KERNELS_SHA256)
            if values.pop(KERNELS, None):
                text = {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}
                specs = kinds[node.op_type].specs
                assert specs is not None
                found.append(specs(kinds[node.op_type].read_fields(text)))
    assert found == compiler.asked
