"""Runs an engine, and shows that this takes none of the packages that built it.

python run_engine.py ENGINE PROMPT MAX_TOKENS
"""

import importlib.abc
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REFUSED = {"torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "ml_dtypes", "safetensors", "huggingface_hub"}


class Refusal(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes importing any of REFUSED an error, also where it is installed. They can still be found: precast looks up
    where the package onnxruntime keeps its C library.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in REFUSED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(f"{module.__name__} must not be imported here")


def main(engine: str, prompt: str, max_tokens: int) -> None:
    from precast import LLM, SamplingParams

    start = time.perf_counter()
    with LLM(engine) as llm:
        load_s = time.perf_counter() - start
        print(f"\n{prompt}", end="", flush=True)
        for output in llm.stream(prompt, SamplingParams(max_tokens=max_tokens, temperature=0)):
            print(output.outputs[0].text_diff, end="", flush=True)

    num_tokens, metrics = output.outputs[0].length, output.metrics
    print(f"\n\nload: {load_s:.3f} s\nfirst token: {metrics.first_token_s:.3f} s after the prompt")
    if num_tokens > 1:
        print(f"speed: {(num_tokens - 1) / metrics.decode_s:.1f} tokens/s, {num_tokens} tokens")


def packages() -> set[str]:
    """What has been imported so far, besides the standard library."""
    return {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names


if __name__ == "__main__":
    at_start = packages()
    sys.meta_path.insert(0, Refusal())
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(f"imported: {', '.join(sorted(packages() - at_start))}")
