"""Precast, through its Python front door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.base import About, Precision, RequestRun
from workloads import Workload


class Adapter:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def prepare(self, checkpoint: Path, files: Path) -> None:
        from precast.building import build

        build(checkpoint, files / "engine", dtype=self.dtype)

    def load(self, files: Path, workload: Workload, num_threads: int) -> None:
        from precast import LLM

        # The tokenizer is read where starting is what is measured, as every engine here reads its own.
        self.llm = LLM(files / "engine", num_threads=num_threads, skip_tokenizer_init=workload.name != "W5")

    def run(self, workload: Workload) -> list[RequestRun]:
        from precast import SamplingParams

        prompts = [list(request.prompt) for request in workload.requests]
        params = [
            SamplingParams(max_tokens=request.num_output_tokens, temperature=0, ignore_eos=True, detokenize=False)
            for request in workload.requests
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [_request_run(output) for output in outputs]

    def about(self) -> About:
        info = self.llm.info
        versions = {"precast": info["precast_version"], "onnxruntime": info["onnxruntime_version"]}
        dtype, kv_cache = info["dtype"], info["kv_cache_dtype"]
        rounded = "fp32, rounded to bf16 in matrix products and attention" if dtype == "bfloat16" else "fp32"
        how = f"Python LLM.generate, in-flight batching, kernel level {info['kernel_level']}, defaults"
        return About(versions, Precision(dtype, dtype, dtype, kv_cache, rounded), how)


def _request_run(output: Any) -> RequestRun:
    metrics = output.metrics
    return RequestRun(list(output.outputs[0].token_ids), metrics.first_token_ns, metrics.last_token_ns)
