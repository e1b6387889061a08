"""Runs one custom op of the native library, through the onnxruntime module: a graph of a single node."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: TID251  the kernels are tested as another program would use them
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from precast.plugins.domain import DOMAIN
from precast.runtime.library import library_path

Array = NDArray[Any]

_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma"}


def levels_of_this_machine() -> list[str]:
    """The kernel levels that can run here; portable always is one."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return ["portable", "avx512"] if set(flags.split()) >= _AVX512 else ["portable"]


def run_op(
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    num_outputs: int = 1,
) -> list[NDArray[np.float32]]:
    """The op's outputs, all float32. An input that is None is absent; every other one is given where it lies, so that
    an op that writes its input in place changes the caller's array."""
    names = ["" if array is None else f"input{i}" for i, array in enumerate(inputs)]
    given = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    outputs = [f"output{i}" for i in range(num_outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain=DOMAIN, **attributes)],
        "one_op",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in given.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    )
    monkeypatch.setenv("PRECAST_KERNEL_LEVEL", level)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in given.items():
        assert array.flags.c_contiguous
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    results: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
    return results
