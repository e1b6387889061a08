"""One node of domain ai.precast as a model of its own, run by onnxruntime's Python module.

The module takes the kernels from libprecast's RegisterCustomOps, as any program with ONNX Runtime could.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: TID251  a client of libprecast here, not a part of the package
import pytest
from numpy.typing import NDArray
from onnx import helper

from precast.runtime.library import library_path
from tests.kernel_levels import skip_what_cannot_run

Array = NDArray[Any]

_errors = onnxruntime.capi.onnxruntime_pybind11_state
REFUSED = (_errors.Fail, _errors.RuntimeException, RuntimeError)
"""What onnxruntime raises where an op answers with an error: in a step, or when the session is made."""


def session_options(monkeypatch: pytest.MonkeyPatch, level: str) -> Any:
    """Options of a session that knows our ops at this kernel level; a level that the processor lacks skips the test."""
    monkeypatch.setenv("PRECAST_KERNEL_LEVEL", level)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    options.log_severity_level = 4  # errors are raised; they need not be on stderr too
    try:
        options.register_custom_ops_library(str(library_path()))
    except REFUSED as error:
        skip_what_cannot_run(error)
        raise
    return options


class OpSession:
    """A node with the attributes of a schema's dataclass, or any other ones. `op` has a schema's NAME, DOMAIN, VERSION.

    `inputs` gives each input's dtype and rank by an example, None leaves an optional one out; every extent may vary.
    `outputs` names the outputs, all float32; "" leaves an optional one out.
    """

    def __init__(
        self,
        options: Any,
        op: ModuleType | SimpleNamespace,
        attributes: Any,
        inputs: Mapping[str, Array | None],
        outputs: Sequence[str],
    ) -> None:
        values = attributes if isinstance(attributes, dict) else dataclasses.asdict(attributes)
        used = {name: example for name, example in inputs.items() if example is not None}
        names = [name if name in used else "" for name in inputs]
        node = helper.make_node(op.NAME, names, outputs, name="the-node", domain=op.DOMAIN, **values)
        graph = helper.make_graph(
            [node],
            "graph",
            [_value_info(name, example.dtype, example.ndim) for name, example in used.items()],
            [_value_info(name, np.dtype(np.float32), 2) for name in outputs if name],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(op.DOMAIN, op.VERSION)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self._outputs = [name for name in outputs if name]

    def run(self, **inputs: Array | None) -> list[Array]:
        """The outputs. Inputs are passed where they lie, so that an op may write one in place."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            if array is not None:
                assert array.flags.c_contiguous
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        outputs: list[Array] = binding.copy_outputs_to_cpu()
        return outputs


def _value_info(name: str, dtype: np.dtype[Any], rank: int) -> onnx.ValueInfoProto:
    shape = [f"{name}_{axis}" for axis in range(rank)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
