"""An op as a custom op of ONNX Runtime on a device: what it is made of, and what it does when it runs.

Each op has one, `KIND`, in its `onnxruntime.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import FieldType, field_types

TensorKind = Literal["half", "int32", "float32"]
"""half: the dtype of the engine's activations, bfloat16 or float16."""

Shapes = Sequence[Sequence[int]]


class Tools(Protocol):
    """What a node finds when it runs."""

    def launcher(self) -> Launcher:
        """Of the node's kernels. Raises ValueError where the graph has none."""

    def group(self) -> DeviceGroup:
        """This rank's way to the others. Raises GroupError where there is none."""


def no_workspace(fields: Any, shapes: Shapes) -> int:
    del fields, shapes
    return 0


@dataclass(frozen=True)
class OpKind:
    """One op.

    Attributes:
        name: As in its schema.
        inputs, outputs: Their types. A node may leave out the last `num_optional_inputs` and `num_optional_outputs`.
        attributes: Those that a node has, beside its kernels.
        read_fields: The attributes' values -> what the op is specialised by, hashable. Raises ValueError, TypeError
            where they make no sense.
        output_shapes: Of a run, from its fields and its inputs' shapes.
        run: Enqueue it; the call has only the inputs and outputs that the node has.
        specs: The kernels of these fields; None: it launches none of its own.
        workspace_bytes: Of device memory that a run of these shapes needs.
    """

    name: str
    inputs: tuple[TensorKind, ...]
    outputs: tuple[TensorKind, ...]
    attributes: Mapping[str, FieldType]
    read_fields: Callable[[Mapping[str, Any]], Any]
    output_shapes: Callable[[Any, Shapes], Shapes]
    run: Callable[[Any, Tools, OpCall], None]
    specs: Callable[[Any], tuple[KernelSpec, ...]] | None = None
    workspace_bytes: Callable[[Any, Shapes], int] = no_workspace
    num_optional_inputs: int = 0
    num_optional_outputs: int = 0


class Op(Protocol):
    """A schema module."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - a module's constant


def make_kind(op: Op, fields_class: type[Any], **rest: Any) -> OpKind:
    """The kind of an op whose attributes are the fields of a dataclass, which it is specialised by.

    Args:
        op: Its schema.
        rest: The other members of OpKind.
    """
    attributes = field_types(fields_class)

    def read(values: Mapping[str, Any]) -> Any:
        return fields_class(**{name: values[name] for name in attributes})

    return OpKind(name=op.NAME, attributes=attributes, read_fields=read, **rest)
