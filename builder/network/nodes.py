"""Making and reading nodes: the little that blocks and passes share."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import onnx_ir as ir


class Op(Protocol):
    """A plugin's schema module: what names one version of an op."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - a module's constant
    @property
    def VERSION(self) -> int: ...  # noqa: N802
    @property
    def DOMAIN(self) -> str: ...  # noqa: N802


class OpAttributes(Protocol):
    """A plugin's frozen dataclass of attributes, valid since its birth."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def precast_node(
    op: Op, attributes: OpAttributes, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value], name: str
) -> ir.Node:
    """A node of one of our ops; trailing absent inputs are dropped, as ONNX asks."""
    present = list(inputs)
    while present and present[-1] is None:
        present.pop()
    values = {field.name: getattr(attributes, field.name) for field in fields(attributes)}
    return ir.Node(
        op.DOMAIN,
        op.NAME,
        present,
        ir.convenience.convert_attributes(values),
        outputs=outputs,
        version=op.VERSION,
        name=name,
    )


def builtin_node(
    op_type: str, inputs: Sequence[ir.Value], output: ir.Value, name: str, **attributes: int
) -> ir.Node:
    """A node of an operator of ONNX itself."""
    return ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=[output], name=name)


def activation(name: str, *shape: int | str) -> ir.Value:
    """A float32 value of the given shape; a string is a symbolic dimension."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def is_op(node: ir.Node | None, op: Op) -> bool:
    return node is not None and (node.domain, node.op_type) == (op.DOMAIN, op.NAME)


def is_builtin(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and (node.domain, node.op_type) == ("", op_type)


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`, None where it is absent or beyond the node's last."""
    return node.inputs[index] if index < len(node.inputs) else None


def required_input(node: ir.Node, index: int) -> ir.Value:
    """The input at `index`, which the op's schema requires."""
    value = input_at(node, index)
    if value is None:
        raise ValueError(f"node {node.name} ({node.op_type}) lacks its input {index}")
    return value
