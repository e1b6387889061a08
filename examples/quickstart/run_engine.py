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
        num_printed = 0
        for output in llm.stream(prompt, SamplingParams(max_tokens=max_tokens, temperature=0)):
            text = output.outputs[0].text
            print(text[num_printed:], end="", flush=True)
            num_printed = len(text)

    num_tokens, metrics = output.outputs[0].length, output.metrics
    first_token_s = (metrics.first_token_ns - metrics.submitted_ns) / 1e9
    decode_s = (metrics.last_token_ns - metrics.first_token_ns) / 1e9
    print(f"\n\nload: {load_s:.3f} s\nfirst token: {first_token_s:.3f} s after the prompt")
    if decode_s > 0:
        print(f"speed: {(num_tokens - 1) / decode_s:.1f} tokens/s, {num_tokens} tokens")
    loaded = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    print(f"imported besides precast: {', '.join(sorted(loaded - {'precast', '__main__'})) or 'nothing'}")


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal())
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
