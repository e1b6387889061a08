"""What all plugins and their creators do alike. Their classes derive from those of the TensorRT that is loaded.

TensorRT calls them from C++ and fails in its own words: what goes wrong is added to a list of errors, whose first is
the cause.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from precast.plugins.device.kernel_sets import KERNELS
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import FieldType, field_types, from_arrays, to_array
from precast.plugins.tensorrt import PLUGIN_NAMESPACE


class Op(Protocol):
    """A schema module."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - a module's constant
    @property
    def VERSION(self) -> int: ...  # noqa: N802


def make_plugin_base(trt: Any, op: Op, errors: list[str]) -> Any:
    """The class that the op's plugins derive from: one node of a network, or one of its clones, of which TensorRT makes
    as many as it likes.
    """
    alive: list[Any] = []

    class PluginBase(  # the module is only known now
        trt.IPluginV3,  # type: ignore[misc]
        trt.IPluginV3OneCore,  # type: ignore[misc]
        trt.IPluginV3OneBuildV2,  # type: ignore[misc]
        trt.IPluginV3OneRuntime,  # type: ignore[misc]
    ):
        def __init__(self, num_outputs: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name = op.NAME
            self.plugin_version = str(op.VERSION)
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.num_outputs = num_outputs
            alive.append(self)  # TensorRT's reference does not keep the Python part alive

        @abstractmethod
        def clone(self) -> Any:
            """An equal plugin."""

        @abstractmethod
        def to_arrays(self) -> dict[str, NDArray[Any]]:
            """The fields that an equal plugin is made from."""

        @abstractmethod
        def run(self, call: OpCall) -> None:
            """Enqueue what the op does on the call's stream."""

        def get_capability_interface(self, kind: object) -> Any:
            del kind
            return self

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            del inputs, outputs

        def get_valid_tactics(self) -> list[int]:
            return []

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            del inputs, outputs
            return 0

        def get_aliased_input(self, output: int) -> int:
            del output
            return -1

        def get_fields_to_serialize(self) -> Any:
            self._serialized = self.to_arrays()  # TensorRT reads them after this call
            return trt.PluginFieldCollection(
                [
                    trt.PluginField(name, array, _field_type(trt, name, array))
                    for name, array in self._serialized.items()
                ]
            )

        def attach_to_context(self, context: object) -> Any:
            del context
            return self.clone()

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            del inputs, outputs
            return 0

        def set_tactic(self, tactic: int) -> int:
            del tactic
            return 0

        def enqueue(
            self,
            input_descs: Sequence[Any],
            output_descs: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace_address: int,
            stream: int,
        ) -> None:
            """TensorRT's Python bindings drop what this returns, and take what it raises for a failure.

            Source: tests/plugins/test_tensorrt_bindings.py, which asks them.
            """
            del output_descs
            try:
                shapes = [desc.dims for desc in input_descs]
                self.run(OpCall(shapes, inputs, outputs, workspace_address, stream))
            except Exception as error:
                errors.append(f"{op.NAME}: {error}")
                raise

    return PluginBase


def make_plugin_creator(
    trt: Any,
    op: Op,
    types: Mapping[str, FieldType],
    make: Callable[[Mapping[str, NDArray[Any]]], Any],
    errors: list[str],
) -> Any:
    """The creator of the op's plugins, to be registered in TensorRT's registry under PLUGIN_NAMESPACE.

    Args:
        trt: The module.
        op: Its schema.
        types: Of the attributes that a node of a new network has.
        make: A plugin from these, or from what a plan holds: fields say which it is, only a plan's name their kernels.
        errors: Gets a sentence with the node's name for each exception of `make`.
    """

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.name = op.NAME
            self.plugin_version = str(op.VERSION)
            self.plugin_namespace = PLUGIN_NAMESPACE
            empty = np.empty(0, np.int8)
            kinds = {int: trt.PluginFieldType.INT32, float: trt.PluginFieldType.FLOAT32, str: trt.PluginFieldType.CHAR}
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(name, empty, kinds[kind]) for name, kind in types.items()]
            )

        def create_plugin(self, name: str, collection: Sequence[Any], phase: object) -> Any:
            del phase
            try:
                return make({field.name: field.data for field in collection})
            except Exception as error:  # noqa: BLE001 - must not cross C++; the builder raises it again as text
                errors.append(f"{name}: {error}")
                return None

    return Creator()


def make_fields_plugin_base(trt: Any, op: Op, errors: list[str]) -> Any:
    """The class that plugins derive from which have one output, and are nothing but a dataclass of fields."""
    base: Any = make_plugin_base(trt, op, errors)

    class FieldsPlugin(base):  # type: ignore[misc]  # made for the module
        def __init__(self, plugin_fields: Any) -> None:
            super().__init__(num_outputs=1)
            self._fields = plugin_fields

        def clone(self) -> Any:
            return type(self)(self._fields)

        def to_arrays(self) -> dict[str, NDArray[Any]]:
            return {name: to_array(value) for name, value in asdict(self._fields).items()}

    return FieldsPlugin


def make_fields_creator(trt: Any, op: Op, fields_class: type[Any], plugin_class: Any, errors: list[str]) -> Any:
    """The creator of plugins that derive from FieldsPlugin; see make_plugin_creator."""
    types = field_types(fields_class)

    def make(arrays: Mapping[str, NDArray[Any]]) -> Any:
        return plugin_class(fields_class(**from_arrays(op.NAME, types, arrays)))

    return make_plugin_creator(trt, op, types, make, errors)


def half_type(trt: Any, dtype: str) -> Any:
    """TensorRT's type of activations."""
    return {"bfloat16": trt.bfloat16, "float16": trt.float16}[dtype]


def has_type(trt: Any, tensor: Any, expected: Any) -> bool:
    """Whether a tensor of supports_format_combination has this type, and rows one after the other."""
    return bool(tensor.desc.format == trt.TensorFormat.LINEAR and tensor.desc.type == expected)


def _field_type(trt: Any, name: str, array: NDArray[Any]) -> Any:
    if name == KERNELS:
        return trt.PluginFieldType.INT8
    kinds = {
        "int32": trt.PluginFieldType.INT32,
        "float32": trt.PluginFieldType.FLOAT32,
        "int8": trt.PluginFieldType.CHAR,
    }
    return kinds[array.dtype.name]
