"""Runs a whole op, as whoever holds its launcher does, on NumPy arrays; and runs checks in Triton's interpreter.

Kernels run in Triton's interpreter where the environment holds TRITON_INTERPRET=1, else on a GPU.
"""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from precast.plugins.device.kernel_spec import KernelSpec
from precast.plugins.device.launch import Launch, Workspace
from precast.plugins.device.op_call import OpCall

REPOSITORY = Path(__file__).parents[2]
Array = NDArray[Any]
DTYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
STREAM = 77
_NUMPY_TYPES = {"*fp32": np.float32, "*i32": np.int32}
"""Of regions of a workspace."""


class Recorder:
    """In place of a Launcher: writes down what it is told to launch."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.addresses: dict[str, int] = {}

    def launch(self, launch: Launch, addresses: Mapping[str, int], stream: int) -> None:
        assert stream == STREAM
        self.launches.append(launch)
        self.addresses |= {name: addresses[name] for name in launch.buffers}


def run_op(
    run: Callable[[Any, Any, OpCall], None],
    op_fields: object,
    specs: tuple[KernelSpec, ...],
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    workspace: Workspace | None = None,
) -> None:
    """`run` is the op's run_*. Kernels may read the inputs and write the outputs, and no more; a workspace is NaN."""
    room = np.full(workspace.size_bytes if workspace else 0, 0xFF, np.uint8)
    recorder = Recorder()
    inputs_and_outputs = [*inputs, *outputs]
    run(
        op_fields,
        recorder,
        OpCall(
            [array.shape for array in inputs],
            [array.ctypes.data for array in inputs],
            [array.ctypes.data for array in outputs],
            room.ctypes.data,
            STREAM,
        ),
    )
    device: Any = importlib.import_module(
        "tests.plugins.device_interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "tests.plugins.device_gpu"
    )
    memory = device.Memory()
    by_address = {array.ctypes.data: array for array in inputs_and_outputs}
    for i, array in enumerate(inputs_and_outputs):
        memory.add(f"tensor {i}", array, readable=i < len(inputs), writable=i >= len(inputs))
    types = {parameter.name: parameter.triton_type for spec in specs for parameter in spec.parameters}
    for region in workspace.regions if workspace else ():
        array = room[region.offset : region.offset + region.size_bytes].view(_NUMPY_TYPES[types[region.name]])
        memory.add(region.name, array, readable=True, writable=True)
        by_address[room.ctypes.data + region.offset] = array
    arrays = {name: by_address[address] for name, address in recorder.addresses.items()}
    device.run(tuple(recorder.launches), specs, arrays, memory)


def do_last_row_only(monkeypatch: pytest.MonkeyPatch, launches_module: Any, num_rows: int) -> None:
    """In the interpreter, of an op whose grid's first axis is its rows: what lies far from the first is near then."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    launches, program_id = launches_module.launches, InterpreterBuilder.create_get_program_id

    def of_one_row(*arguments: Any) -> tuple[Launch, ...]:
        return tuple(dataclasses.replace(launch, grid=(1, *launch.grid[1:])) for launch in launches(*arguments))

    def id_of_last_row(self: Any, axis: int) -> Any:
        handle = program_id(self, axis)
        return TensorHandle(handle.data + np.int32(num_rows - 1), handle.dtype) if axis == 0 else handle

    monkeypatch.setattr(launches_module, "launches", of_one_row)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", id_of_last_row)


def assert_within(actual: Array, low: Array, high: Array) -> None:
    """Each element lies between two bounds, which are given in either order, or is NaN where both are."""
    x, a, b = (array.astype(np.float32) for array in (actual, low, high))
    is_nan = np.isnan(a)
    np.testing.assert_array_equal(np.isnan(x), is_nan)
    is_within = is_nan | ((np.minimum(a, b) <= x) & (x <= np.maximum(a, b)))
    assert is_within.all(), (
        f"{(~is_within).sum()} of {x.size} elements: {x[~is_within][:5]}, "
        f"not in {a[~is_within][:5]} to {b[~is_within][:5]}"
    )


def assert_same_bits(actual: Array, expected: Array) -> None:
    """Of 16 bits; NaN is NaN, whatever its bits."""
    is_nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(actual.astype(np.float32)), is_nan)
    np.testing.assert_array_equal(actual.view(np.uint16)[~is_nan], expected.view(np.uint16)[~is_nan])


def run_checks_in_interpreter(name: str) -> None:
    """All of a file beside this one, in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(name))],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert re.search(r"\d+ passed", child.stdout)
    assert "skipped" not in child.stdout


def assert_compiles(specs: tuple[KernelSpec, ...], target: str) -> None:
    """Machine code of every kernel for a target, and PTX for the one that has it."""
    from precast.plugins.device.compile_triton import compile_kernels
    from precast.plugins.device.compiled_kernel import PTX_TARGET

    kernels = compile_kernels(specs, [target], ptx=target == PTX_TARGET)
    kinds = ["cubin", "ptx"] if target == PTX_TARGET else ["cubin"]
    assert [(k.name, k.target, k.kind) for k in kernels] == [
        (s.function, target, kind) for s in specs for kind in kinds
    ]
    assert all(kernel.code.startswith(b"\x7fELF") for kernel in kernels if kernel.kind == "cubin")


def assert_launches_match(launches: tuple[Launch, ...], specs: tuple[KernelSpec, ...]) -> None:
    """Each kernel is launched once, in the order of specs, with all that it takes."""
    assert [launch.kernel for launch in launches] == [spec.function for spec in specs]
    for launch, spec in zip(launches, specs, strict=True):
        assert (*launch.buffers, *dict(launch.scalars)) == tuple(p.name for p in spec.parameters)


def assert_imports_without_triton(modules: str) -> None:
    program = f"import sys; sys.modules['triton'] = sys.modules['cuda'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
