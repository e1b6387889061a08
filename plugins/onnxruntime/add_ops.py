"""Our ops, as ONNX Runtime's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from precast.plugins.collectives.device.group import DeviceGroup
from precast.plugins.device.kernel_sets import KERNELS, KERNELS_SHA256, KernelSet, KernelSets, OpenLauncher
from precast.plugins.device.launcher import Launcher
from precast.plugins.device.launcher import open_launcher as open_launcher_on_device
from precast.plugins.device.op_call import OpCall
from precast.plugins.onnxruntime.custom_op import CustomOps, OpSchema
from precast.plugins.onnxruntime.kinds import KINDS
from precast.plugins.onnxruntime.op_kind import OpKind, Shapes, TensorKind
from precast.plugins.onnxruntime.op_node import Attributes
from precast.plugins.onnxruntime.ort_abi import ElementType

_HALF_TYPES = {"bfloat16": ElementType.BFLOAT16, "float16": ElementType.FLOAT16}


def add_ops(
    ops: CustomOps,
    dtype: str,
    group: Callable[[], DeviceGroup],
    open_launcher: OpenLauncher = open_launcher_on_device,
    kinds: Sequence[OpKind] = KINDS,
) -> None:
    """Make every op known to sessions of `ops`.

    Args:
        ops: The domain.
        dtype: Of activations: bfloat16 or float16.
        group: Asked by collectives each time that they run: a GroupSlot of plugins/collectives/device/group.py.
        open_launcher: Loads kernels onto the current device, once for each set.
        kinds: The ops.
    """
    types: dict[TensorKind, ElementType] = {
        "half": _HALF_TYPES[dtype],
        "int32": ElementType.INT32,
        "float32": ElementType.FLOAT32,
    }
    for kind in kinds:
        schema = OpSchema(
            kind.name,
            tuple(types[each] for each in kind.inputs),
            tuple(types[each] for each in kind.outputs),
            kind.num_optional_inputs,
            kind.num_optional_outputs,
            attributes=kind.attributes,
            optional_attributes={} if kind.specs is None else {KERNELS_SHA256: bytes, KERNELS: bytes},
        )
        ops.add(schema, _maker(kind, group, KernelSets(kind.name, open_launcher)))


def _maker(kind: OpKind, group: Callable[[], DeviceGroup], sets: KernelSets) -> Callable[[Attributes], "_Node"]:
    def make(attributes: Attributes) -> _Node:
        values = dict(attributes)
        kernels = _read_kernels(values, sets)
        return _Node(kind, kind.read_fields(values), group, sets, kernels)

    return make


def _read_kernels(values: dict[str, Any], sets: KernelSets) -> KernelSet | None:
    """Of a node whose attributes have any, which are taken out of `values`."""
    found: Mapping[str, Any] = {name: values.pop(name) for name in (KERNELS_SHA256, KERNELS) if name in values}
    if KERNELS_SHA256 not in found:
        return None
    return sets.read({name: np.frombuffer(value, np.int8) for name, value in found.items()})


class _Node:
    """One node: what ONNX Runtime asks of it, and what its op's kind asks when it runs."""

    def __init__(
        self, kind: OpKind, fields: Any, group: Callable[[], DeviceGroup], sets: KernelSets, kernels: KernelSet | None
    ) -> None:
        self._kind, self._fields, self._sets, self._kernels = kind, fields, sets, kernels
        self.group = group
        self._launcher: Launcher | None = None

    def output_shapes(self, shapes: Shapes) -> Shapes:
        return self._kind.output_shapes(self._fields, shapes)

    def workspace_bytes(self, shapes: Shapes) -> int:
        return self._kind.workspace_bytes(self._fields, shapes)

    def run(self, call: OpCall) -> None:
        inputs, outputs = _present(call.inputs), _present(call.outputs)
        self._kind.run(self._fields, self, replace(call, inputs=inputs, outputs=outputs))

    def launcher(self) -> Launcher:
        if self._launcher is None:
            if self._kernels is None:
                raise ValueError("the graph lacks the node's kernels: rebuild the engine")
            self._launcher = self._sets.launcher(self._kernels)
        return self._launcher


def _present(addresses: Sequence[int]) -> Sequence[int]:
    """Without those at the end that the node has left out."""
    count = len(addresses)
    while count and not addresses[count - 1]:
        count -= 1
    return addresses[:count]
