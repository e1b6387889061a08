"""ONNX Runtime's CPU provider in the place of that of CUDA: the real library runs the real graph, on the memory and the
streams of the fake driver.

A run is enqueued as an operation of the fake stream, so it happens when somebody waits, and again when a graph is
replayed; what was bound is what it runs on then. One that waits for another rank begins again (cpu_kinds.Meetings).
"""

from collections.abc import Callable
from typing import Any

from precast.plugins.device.driver import DeviceError
from precast.plugins.onnxruntime.add_ops import add_ops
from precast.plugins.onnxruntime.custom_op import CustomOps
from precast.plugins.onnxruntime.ort_abi import OrtError
from precast.runtime.device.network import Addresses, Shapes
from precast.runtime.device.shapes import StepShape
from precast.runtime.library import onnxruntime_path
from precast.runtime.onnxruntime import toolkit
from precast.runtime.onnxruntime.network import OrtNetwork
from precast.runtime.onnxruntime.session import CPU_PROVIDER, OrtBinding, Provider
from tests.runtime.onnxruntime.cpu_kinds import CPU_KINDS, MEETINGS
from tests.runtime.tensorrt.fake_cuda.errors import Misuse, Unfinished
from tests.runtime.tensorrt.fake_cuda.machine import MACHINE
from tests.runtime.tensorrt.fake_cuda.memory import Span
from tests.runtime.tensorrt.fake_cuda.streams import Operation

RUN = "execute_async_v3"
"""What a run is called among the calls of the machine: as TensorRT's, so that tests are the same for both."""
NUM_REHEARSED = 3
"""Runs while an engine of 32 tokens is opened."""
Patch = Callable[[Any, str, Any], None]
WORKERS_VARIABLE = "PRECAST_FAKE_ONNXRUNTIME"
"""Set to 1, it puts the CPU in place in worker processes (tests/runtime/tensorrt/fake_packages/sitecustomize.py)."""


class LazyNetwork(OrtNetwork):
    """Enqueues runs instead of doing them."""

    def _execute(self, binding: OrtBinding) -> None:
        with MACHINE.lock:
            status = MACHINE.begin_call(RUN)
            if int(status):
                raise DeviceError(f"ONNX Runtime cannot run {self._session.graph}: {status.name}")
            binding.check_complete()
            bound = {key: (address, shape) for key, (_, address, shape) in binding._bound.items()}
            spans = [self._span(kind, name, *place) for (kind, name), place in bound.items()]
            stream = MACHINE.stream(self._device.stream)
            try:
                if not self._workspace._is_sealed and stream.capture is None:
                    # Ops ask for their workspace when a run is enqueued, and not when it is computed.
                    MACHINE.run(MACHINE.current(), stream)
                    while not self._is_done(binding):
                        pass  # it waits for other ranks, and fails where it has waited for long
                    return
                MACHINE.enqueue(stream, Operation("run", tuple(spans), self._later(bound)))
            except Misuse as error:
                MACHINE.note_misuse(f"run: {error}")
                raise DeviceError(str(error)) from error

    def _is_done(self, binding: OrtBinding) -> bool:
        """Run the graph now. False where another rank is not there yet."""
        try:
            with MEETINGS.of_a_step():
                try:
                    super()._execute(binding)
                except DeviceError as error:
                    reason = error.__cause__ and error.__cause__.__cause__
                    raise reason if isinstance(reason, Unfinished) else error from None
        except Unfinished:
            return False
        return True

    def _bind_step(self, binding: OrtBinding, shape: StepShape, shapes: Shapes, addresses: Addresses) -> None:
        for name, size in shapes.items():
            MACHINE.begin_call("set_input_shape", name, size)
        super()._bind_step(binding, shape, shapes, addresses)

    def _span(self, kind: str, name: str, address: int, shape: tuple[int, ...]) -> Span:
        info = (self._input_infos if kind == "Input" else self._output_infos)[name]
        size_bytes = info.size_bytes(shape)
        MACHINE.memory.on_device(address, size_bytes, self._device.ordinal)  # which must be some
        return Span(address, size_bytes, is_written=kind == "Output" or name.startswith("kv."))

    def _later(self, bound: dict[tuple[str, str], tuple[int, tuple[int, ...]]]) -> Callable[[], None]:
        def run() -> None:
            binding = self._session.new_binding()
            for (kind, name), (address, shape) in bound.items():
                (binding.bind_input if kind == "Input" else binding.bind_output)(name, address, shape)
            try:
                with MEETINGS.of_a_step():
                    self._run_now(binding)
            finally:
                binding.close()

        return run

    def _run_now(self, binding: OrtBinding) -> None:
        """Raises what an op raised, as it did."""
        try:
            self._session.run(binding)
        except OrtError as error:
            raise error.__cause__ or error from None


def put_cpu_in_place(setattr_: Patch) -> None:
    """Make CudaToolkit one of the CPU's. `setattr_`: monkeypatch.setattr, or the builtin."""
    library = onnxruntime_path()
    assert library is not None
    setattr_(toolkit, "find_onnxruntime_gpu", lambda: library)
    setattr_(toolkit, "preload_cuda_libraries", lambda path: [])
    setattr_(toolkit, "open_forget_error", lambda path: lambda: None)
    setattr_(toolkit, "SESSION_CONFIG", {})
    setattr_(toolkit, "OrtNetwork", LazyNetwork)
    setattr_(toolkit.CudaToolkit, "_provider", lambda self, device: Provider(CPU_PROVIDER, "Cpu"))
    setattr_(toolkit, "add_ops", _add_ops)


def _add_ops(ops: CustomOps, dtype: str, group: Any) -> None:
    add_ops(ops, dtype, group, kinds=CPU_KINDS)
