"""Making and reading nodes: the little that blocks and passes share."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import onnx_ir as ir

from precast.builder.network.inputs import LOGIT_ROWS, NUM_LOGIT_ROWS


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


def builtin_node(op_type: str, inputs: Sequence[ir.Value], output: ir.Value, name: str, **attributes: float) -> ir.Node:
    """A node of an operator of ONNX itself."""
    return ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=[output], name=name)


def select_rows_node(x: ir.Value, logit_rows: ir.Value) -> ir.Node:
    """Gather: the rows of x whose indices `logit_rows` holds."""
    name = f"{x.name}.{LOGIT_ROWS}"
    output = ir.Value(name=name, shape=with_rows(x.shape, NUM_LOGIT_ROWS), type=x.type)
    return builtin_node("Gather", [x, logit_rows], output, name, axis=0)


def selects_rows(node: ir.Node | None) -> bool:
    """Whether the node is one that `select_rows_node` makes."""
    return node is not None and is_builtin(node, "Gather") and required_input(node, 1).name == LOGIT_ROWS


def with_rows(shape: ir.Shape | None, rows: str) -> ir.Shape:
    """The shape with its first axis, the rows, replaced by a symbolic one."""
    return ir.Shape((rows, *(() if shape is None else shape.dims[1:])))


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
