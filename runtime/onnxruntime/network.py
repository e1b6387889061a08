"""A graph that ONNX Runtime runs on a device, as runtime/device/network.py has networks.

ONNX Runtime enqueues on the stream of the device and waits for nothing, so a step that has run once can be recorded as
a graph of CUDA: what ONNX Runtime allocates for a shape, it has allocated then.
"""

from __future__ import annotations

from collections.abc import Callable

from precast.plugins.device.driver import DeviceError
from precast.plugins.onnxruntime.custom_op import CustomOps
from precast.plugins.onnxruntime.ort_abi import OrtError
from precast.runtime.device.device import Device
from precast.runtime.device.network import Addresses, GraphBook, Shapes
from precast.runtime.device.shapes import StepShape
from precast.runtime.errors import ErrorCode, NativeError
from precast.runtime.onnxruntime.session import OrtBinding, OrtSession

_NUM_FAILURES = 3
"""Of recordings: ONNX Runtime's allocator may need more memory while it is asked in another order, which a recording
does not allow; the run before the next one takes it."""
_NO_MEMORY = "Failed to allocate memory"
"""In ONNX Runtime's words."""


class Workspace:
    """Device memory that ops use while they run, one after the other, on one stream.

    It grows until it is sealed: then the largest step has run, and graphs have its address.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address = self._size_bytes = 0
        self._is_sealed = False

    def __call__(self, num_bytes: int) -> int:
        """The address of as many bytes.

        Raises:
            DeviceError: it is sealed, and has fewer.
            NativeError: there is not enough memory.
        """
        if num_bytes > self._size_bytes:
            if self._is_sealed:
                raise DeviceError(
                    f"an op needs {num_bytes} bytes to work in, and the largest step needed {self._size_bytes}"
                )
            # What runs now may still use the memory that it had before, which goes with the device.
            self._address = self._device.allocate(num_bytes, "what ops work in")
            self._size_bytes = num_bytes
        return self._address

    def seal(self) -> None:
        self._is_sealed = True


class OrtNetwork:
    """A graph on a device.

    Args:
        session: The graph, opened on the device's stream.
        device: Where it runs.
        workspace: Of its ops.
        ops: That the session runs, and nobody else.
        forget_error: Makes ONNX Runtime's CUDA forget the last error of the calling thread.
    """

    grows_when_run = True

    def __init__(
        self,
        session: OrtSession,
        device: Device,
        workspace: Workspace,
        ops: CustomOps,
        forget_error: Callable[[], None],
    ) -> None:
        self._session, self._device, self._workspace, self._ops = session, device, workspace, ops
        self._forget_error = forget_error
        self._input_infos = {info.name: info for info in session.inputs}
        self._output_infos = {info.name: info for info in session.outputs}
        self.inputs, self.outputs = tuple(self._input_infos), tuple(self._output_infos)
        self._graphs = GraphBook(device, _NUM_FAILURES)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._bindings: dict[StepShape, OrtBinding] = {}
        self._any_binding: OrtBinding | None = None
        self._is_recording = False

    def shape_of(self, name: str) -> tuple[int, ...]:
        return (self._input_infos.get(name) or self._output_infos[name]).shape

    def prepare(self) -> None:
        """Nothing: ONNX Runtime takes memory when it runs."""

    def bind(self, shapes: Shapes, addresses: Addresses) -> None:
        """May be called again, when nothing is running: what was recorded is of the addresses before."""
        if self._shapes or self._addresses:
            self._workspace.seal()
        self._graphs.forget()
        for binding in (*self._bindings.values(), self._any_binding):
            if binding is not None:
                binding.close()
        self._bindings, self._any_binding = {}, None
        self._shapes, self._addresses = dict(shapes), dict(addresses)

    def replay(self, shape: StepShape) -> bool:
        return self._graphs.replay(shape)

    def run(self, shape: StepShape, shapes: Shapes, addresses: Addresses) -> None:
        binding = self._binding_of(shape)
        self._bind_step(binding, shape, shapes, addresses)
        self._execute(binding)
        self._graphs.record(shape, lambda: self._record(binding))

    def keep_compiled(self, num_steps: int) -> str:
        del num_steps
        return "nothing to keep: ONNX Runtime compiles nothing where it runs"

    def close(self) -> None:
        self._graphs.close()
        self._bindings, self._any_binding = {}, None
        self._session.close()
        self._ops.close()

    def _record(self, binding: OrtBinding) -> None:
        self._is_recording = True
        try:
            self._execute(binding)
        finally:
            self._is_recording = False
            # What CUDA refuses in a recording stays the last error of this thread, and ONNX Runtime, which asks for it
            # after each op, would take it for one of the next run.
            self._forget_error()

    def _binding_of(self, shape: StepShape) -> OrtBinding:
        """One for each shape that repeats, and one for all others."""
        if shape.repeats:
            if shape not in self._bindings:
                self._bindings[shape] = self._new_binding()
            return self._bindings[shape]
        if self._any_binding is None:
            self._any_binding = self._new_binding()
        return self._any_binding

    def _new_binding(self) -> OrtBinding:
        """With what is the same in all steps."""
        binding = self._session.new_binding()
        for name, address in self._addresses.items():
            if name in self._input_infos:
                self._guarded(binding.bind_input, name, address, self._shapes.get(name, self.shape_of(name)))
        return binding

    def _bind_step(self, binding: OrtBinding, shape: StepShape, shapes: Shapes, addresses: Addresses) -> None:
        for name, size in shapes.items():
            # A stage has no input that it does not read: ONNX Runtime would copy that to the host.
            if name in self._input_infos:
                self._guarded(binding.bind_input, name, addresses[name], size)
        for name, info in self._output_infos.items():
            size = tuple(map(shape.size_of, info.symbols, info.shape))
            place = addresses[name] if name in addresses else self._addresses[name]
            self._guarded(binding.bind_output, name, place, size)

    def _guarded(self, bind: Callable[..., None], name: str, address: int, shape: tuple[int, ...]) -> None:
        try:
            bind(name, address, shape)
        except (OrtError, ValueError) as error:
            raise DeviceError(f"ONNX Runtime refuses {name} {list(shape)}: {error}") from error

    def _execute(self, binding: OrtBinding) -> None:
        try:
            self._session.run(binding)
        except OrtError as error:
            if isinstance(error.__cause__, NativeError):  # there is not enough memory for an op
                raise error.__cause__ from error
            if _NO_MEMORY in str(error) and not self._is_recording:
                raise NativeError(
                    ErrorCode.RESOURCE_EXHAUSTED,
                    f"{self._device.name}: ONNX Runtime has no memory for a step: give smaller kv_cache_bytes, "
                    "max_batch_size or max_num_tokens, or use a GPU with more memory",
                ) from error
            raise DeviceError(f"ONNX Runtime cannot run {self._session.graph}: {error}") from error
