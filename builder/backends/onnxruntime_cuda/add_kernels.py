"""Compiles the kernels of a graph's ops, and puts them into its nodes."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import onnx

from precast.plugins.device.kernel_sets import KernelSets
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launcher import Launcher
from precast.plugins.domain import DOMAIN
from precast.plugins.onnxruntime.kinds import KINDS

CompileSets = Callable[[Sequence[tuple[KernelSpec, ...]]], Sequence[bytes]]
"""Compiled kernels of each set, as bytes that device/launcher.py opens."""

_SPECS = {kind.name: (kind.read_fields, kind.specs) for kind in KINDS if kind.specs is not None}


def add_kernels(model: onnx.ModelProto, compile_sets: CompileSets) -> None:
    """Give each node of our ops that has kernels their hash, and the first of each set the kernels too.

    Nodes of an op with equal attributes share a set, which is compiled once.
    """
    specs = {(node.op_type, fields): _SPECS[node.op_type][1](fields) for node, fields in _nodes(model)}
    compiled = dict(zip(specs, compile_sets(list(specs.values())), strict=True))
    sets = {name: KernelSets(name, _never_opened) for name in _SPECS}
    for node, fields in _nodes(model):
        kernel_sets = sets[node.op_type]
        kernels = kernel_sets.compile(fields, lambda key=(node.op_type, fields): compiled[key])  # type: ignore[misc]
        for name, array in kernel_sets.to_arrays(kernels).items():
            # Not onnx.helper's: a string of any bytes, which are no text.
            node.attribute.append(onnx.AttributeProto(name=name, type=onnx.AttributeProto.STRING, s=array.tobytes()))


def _nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Hashable]]:
    """Those that have kernels, with what these are specialised by."""
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in _SPECS:
            values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            yield node, _SPECS[node.op_type][0]({name: _text(value) for name, value in values.items()})


def _text(value: object) -> object:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _never_opened(kernels: bytes) -> Launcher:
    del kernels
    raise AssertionError("the builder runs no kernels")
