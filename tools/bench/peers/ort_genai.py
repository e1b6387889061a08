"""ONNX Runtime GenAI on the CPU.

Its continuous batching needs PagedAttention, which its builder and ONNX Runtime have for CUDA and WebGPU only (0.18.0:
"PagedAttention (use_paged_attention=true) requires CUDA with FP16/BF16 or WebGPU with FP16, not (cpu, FLOAT)"). What is
left on the CPU is its Engine with static batches: `batch_size` requests are padded to one length, computed until the
longest output is over, then the next ones follow. One request alone runs through its Generator.

bf16: the builder writes a bf16 model for the CPU, which ONNX Runtime 1.32.0 cannot load ("Could not find an
implementation for Where(16) node"); an fp16 model fails in its second step. fp32, int8 and int4 work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from peers.base import About, Precision, RequestRun
from workloads import Request, Workload

PRECISIONS = {
    "fp32": Precision("fp32", "fp32", "fp32", "fp32", "fp32"),
    "int4": Precision("int4, groups of 32", "int4, groups of 32", "fp32", "fp32", "int8 per group (accuracy level 4)"),
}
NUM_EVENTS = 256


class Adapter:
    def __init__(self, precision: str, batch_size: int = 8) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.batch_size = batch_size

    def prepare(self, checkpoint: Path, files: Path) -> None:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "--input", str(checkpoint)]
        command += ["--output", str(files), "--precision", self.precision, "--execution_provider", "cpu"]
        command += ["--cache_dir", str(files / "cache")]
        subprocess.run(command, check=True, stdout=sys.stderr)

    def load(self, files: Path, workload: Workload, num_threads: int) -> None:
        import onnxruntime_genai as og

        self.og = og
        self.single = len(workload.requests) == 1
        self.max_length = workload.max_length
        config = og.Config(str(files))
        changes: dict[str, object] = {
            "model": {"decoder": {"session_options": {"intra_op_num_threads": num_threads}}},
        }
        if not self.single:
            changes["engine"] = {"static_batching": {"max_batch_size": self.batch_size}}
        config.overlay(json.dumps(changes))
        self.model = og.Model(config)
        if workload.name == "W5":
            self.tokenizer = og.Tokenizer(self.model)  # read where starting is measured, as every engine reads its own
        if not self.single:
            self.engine = og.Engine(self.model)

    def run(self, workload: Workload) -> list[RequestRun]:
        if self.single:
            return [self._generate(workload.requests[0])]
        return self._run_engine(workload)

    def about(self) -> About:
        from importlib.metadata import version

        names = ("onnxruntime-genai", "onnxruntime")
        how = "Generator" if self.single else f"Engine, static batches of {self.batch_size} in order of arrival"
        return About({name: version(name) for name in names}, PRECISIONS[self.precision], f"{how}, no prefix shared")

    def _generate(self, request: Request) -> RequestRun:
        params = self.og.GeneratorParams(self.model)
        # min_length keeps it going after an end-of-sequence token.
        params.set_search_options(max_length=request.length, min_length=request.length, do_sample=False)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(np.array([request.prompt], dtype=np.int32))
        run = RequestRun()
        for _ in range(request.num_output_tokens):
            generator.generate_next_token()
            run.add(int(generator.get_next_tokens()[0]))
        return run

    def _run_engine(self, workload: Workload) -> list[RequestRun]:
        og = self.og
        handles = []
        for request in workload.requests:
            options = og.RequestOptions()
            options.set_max_session_tokens(self.max_length)
            handle = self.engine.create_request(options=options)
            turn = og.TurnOptions(handle)
            turn.set_do_sample(False)
            turn.set_min_generated_tokens(request.num_output_tokens)
            turn.set_max_generated_tokens(request.num_output_tokens)
            handle.begin_turn(np.array(request.prompt, dtype=np.int32), turn)
            handles.append(handle)
        runs = [RequestRun() for _ in handles]
        events = self.engine.create_event_buffer(NUM_EVENTS)
        while self.engine.has_pending_requests():
            for event in self.engine.run(events):
                if event.finish_reason == og.FinishReason.FAILED:
                    raise RuntimeError(f"ONNX Runtime GenAI failed a request: {event.error_code}")
                runs[handles.index(event.request)].add(event.token)
                if event.finish_reason != og.FinishReason.NONE:
                    event.request.close()
        return runs
