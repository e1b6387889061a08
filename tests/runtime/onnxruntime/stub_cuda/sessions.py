"""Opens graphs with CUDA's execution provider on the stub CUDA, and runs them: python sessions.py LIBRARY FOLDER

A process of its own, started with LD_LIBRARY_PATH at the stub's libraries and STUB_CUDA_LOG at an empty file. LIBRARY
is libonnxruntime.so with its CUDA provider beside it. FOLDER/requests.json lists graphs; FOLDER/answers.jsonl gets a
line for each as it is done, so that it tells which one ended the process. Both are described by test_cuda_provider.py.

Nodes called Record of the domain ai.precast do nothing but say what they were called with.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from precast.plugins.device.op_call import OpCall
from precast.plugins.domain import DOMAIN
from precast.plugins.onnxruntime.custom_op import CUDA_PROVIDER, CustomOps, OpSchema
from precast.plugins.onnxruntime.ort_abi import ElementType, OrtApi, OrtError
from precast.runtime.onnxruntime.cuda_libraries import open_forget_error
from precast.runtime.onnxruntime.session import OrtBinding, OrtSession, Provider

NO_FALLBACK = {"session.disable_cpu_ep_fallback": "1"}
WORKSPACE_BYTES = 1000
Shapes = Sequence[Sequence[int]]


class StubCuda:
    """The stub in this process: its memory, one stream, and the log of its calls."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcudart.so.13")
        self._log = Path(os.environ["STUB_CUDA_LOG"])
        self.stream = self.make("cudaStreamCreate")

    def allocate(self, num_bytes: int) -> int:
        return self.make("cudaMalloc", c_size_t(num_bytes))

    def free(self, address: int) -> None:
        self._check("cudaFree", c_void_p(address))

    def say(self, text: str) -> None:
        """A line of one's own in the log."""
        self._library.stub_cuda_log(c_char_p(b"%s"), c_char_p(text.encode()))

    def calls_of(self, function: Callable[[], None]) -> list[str]:
        """What `function` calls."""
        start = self._log.stat().st_size if self._log.exists() else 0
        function()
        with self._log.open() as log:
            log.seek(start)
            return log.read().splitlines()

    def capture(self, function: Callable[[], None]) -> int:
        """CUDA's error of the capture of `function`; 0 for none."""
        self._check("cudaStreamBeginCapture", c_void_p(self.stream), c_int(0))
        try:
            function()
        finally:
            result: int = self._library.cudaStreamEndCapture(c_void_p(self.stream), byref(c_void_p()))
        return result

    def make(self, name: str, *arguments: Any) -> int:
        """What a function of the runtime makes, which is its first argument's."""
        made = c_void_p()
        self._check(name, byref(made), *arguments)
        return made.value or 0

    def call(self, name: str, *arguments: Any) -> int:
        """The status of a function of the runtime."""
        status: int = self._library[name](*arguments)
        return status

    def _check(self, name: str, *arguments: Any) -> None:
        if error := self.call(name, *arguments):
            raise RuntimeError(f"{name}: error {error} of the stub CUDA")


class RecordOp:
    """Two outputs like the first input."""

    def __init__(self, cuda: StubCuda, label: str, calls: list[dict[str, Any]]) -> None:
        self._cuda = cuda
        self._label = label
        self._calls = calls

    def output_shapes(self, shapes: Shapes, /) -> Shapes:
        return [shapes[0], shapes[0]]

    def workspace_bytes(self, shapes: Shapes, /) -> int:
        return WORKSPACE_BYTES

    def run(self, call: OpCall, /) -> None:
        self._cuda.say(f"Record {self._label} stream={call.stream:#x}")
        self._calls.append(
            {
                "label": self._label,
                "shapes": call.shapes,
                "inputs": call.inputs,
                "outputs": call.outputs,
                "workspace": call.workspace_address,
                "stream": call.stream,
            }
        )


class World:
    """What all graphs share."""

    def __init__(self, library: Path) -> None:
        self._api = OrtApi(library)
        self._cuda = StubCuda()
        self._forget_error = open_forget_error(library)
        self._workspace = self._cuda.allocate(WORKSPACE_BYTES)
        self._record_calls: list[dict[str, Any]] = []
        self._ops = CustomOps(
            self._api, DOMAIN, CUDA_PROVIDER, lambda num_bytes: self._workspace, lambda: self._cuda.stream
        )
        for half in (ElementType.FLOAT16, ElementType.BFLOAT16):
            schema = OpSchema("Record", (half,) * 3, (half,) * 2, 1, 1, {"label": str})
            self._ops.add(schema, lambda values: RecordOp(self._cuda, str(values["label"]), self._record_calls))

    def answer(self, graph: Path, warm_rows: list[int], cold_rows: int | None) -> dict[str, Any]:
        """A session's life: see Life in test_cuda_provider.py."""
        options = {"user_compute_stream": str(self._cuda.stream)}
        provider = Provider(CUDA_PROVIDER, "Cuda", 0, options)
        try:
            session = OrtSession(self._api, graph, self._ops, provider, NO_FALLBACK)
        except OrtError as error:
            return {"error": str(error)}
        with session:
            runs = [self._runs_of(session, num_rows, is_warm=True) for num_rows in warm_rows]
            cold = None if cold_rows is None else self._runs_of(session, cold_rows, is_warm=False)
            after_cold = [] if cold_rows is None else self._after_captures(session, warm_rows[0], 2 * cold_rows)
        return {
            "error": "",
            "stream": self._cuda.stream,
            "workspace": self._workspace,
            "runs": runs,
            "cold": cold,
            "after_cold": after_cold,
        }

    def _after_captures(self, session: OrtSession, num_rows: int, cold_rows: int) -> list[str]:
        """Errors of runs: two after a capture that failed, then one after another, whose error is forgotten first."""
        binding, bound = self._bind(session, num_rows)
        cold, cold_bound = self._bind(session, cold_rows)
        errors = [_error_of(session, binding), _error_of(session, binding)]
        self._run_captured(session, cold)
        self._forget_error()
        errors.append(_error_of(session, binding))
        self._release(binding, bound)
        self._release(cold, cold_bound)
        return errors

    def _runs_of(self, session: OrtSession, num_rows: int, is_warm: bool) -> dict[str, Any]:
        binding, bound = self._bind(session, num_rows)
        first = self._run(session, binding) if is_warm else []
        self._record_calls.clear()
        steady = self._run(session, binding) if is_warm else []
        record_calls = list(self._record_calls)
        captured, error, capture_error = self._run_captured(session, binding)
        self._release(binding, bound)
        return {
            "bound": bound,
            "first": first,
            "steady": steady,
            "captured": captured,
            "error": error,
            "capture_error": capture_error,
            "record_calls": record_calls,
        }

    def _run(self, session: OrtSession, binding: OrtBinding) -> list[str]:
        return self._cuda.calls_of(lambda: session.run(binding))

    def _run_captured(self, session: OrtSession, binding: OrtBinding) -> tuple[list[str], str, int]:
        """The calls, then what ONNX Runtime and what CUDA says of it."""
        error, capture_error = "", 0

        def run() -> None:
            nonlocal error
            error = _error_of(session, binding)

        def capture() -> None:
            nonlocal capture_error
            capture_error = self._cuda.capture(run)

        return self._cuda.calls_of(capture), error, capture_error

    def _bind(self, session: OrtSession, num_rows: int) -> tuple[OrtBinding, dict[str, int]]:
        binding = session.new_binding()
        bound: dict[str, int] = {}
        for infos, bind in ((session.inputs, binding.bind_input), (session.outputs, binding.bind_output)):
            for info in infos:
                shape = [num_rows if size == -1 else size for size in info.shape]
                bound[info.name] = self._cuda.allocate(info.size_bytes(shape))
                bind(info.name, bound[info.name], shape)
        return binding, bound

    def _release(self, binding: OrtBinding, bound: Mapping[str, int]) -> None:
        binding.close()
        for address in bound.values():
            self._cuda.free(address)


def _error_of(session: OrtSession, binding: OrtBinding) -> str:
    """Of a run; "" for none."""
    try:
        session.run(binding)
    except OrtError as error:
        return str(error)
    return ""


def main(library: Path, folder: Path) -> None:
    world = World(library)
    requests = json.loads((folder / "requests.json").read_text())
    with (folder / "answers.jsonl").open("w") as answers:
        for request in requests:
            answer = world.answer(folder / request["graph"], request["warm_rows"], request["cold_rows"])
            answers.write(json.dumps({"name": request["name"], **answer}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
