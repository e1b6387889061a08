"""An engine's logits beside those of the checkpoint that it was built from."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.engine_dir import read_manifest
from precast.runtime import Model
from precast.tokenizer import Tokenizer

if TYPE_CHECKING:
    from precast.builder.verify import LogitsFunction, VerificationReport
    from precast.checkpoints.checkpoint import Checkpoint
    from precast.checkpoints.engine_manifest import EngineManifest

BACKENDS = {"numpy": "Precast's NumPy reference", "hf": "Hugging Face transformers"}
DEFAULT_PROMPTS = (
    "The import statement combines two operations; it searches for the named module, then it binds the results",
    "def add(a: int, b: int) -> int:\n    return",
    "Grüße aus Köln: 東京の天気は晴れです 🙂",
)


def verify_engine(
    engine_dir: Path,
    reference: str | os.PathLike[str],
    *,
    revision: str | None = None,
    prompts: Sequence[str] | None = None,
    backend: str = "numpy",
    seconds: Mapping[str, float] | None = None,
) -> VerificationReport:
    """Compares logits and writes the figures into the engine's verification.json.

    Args:
        engine_dir: the engine.
        reference: the checkpoint's directory or hub id; ``revision`` is of the id.
        prompts: texts; None: DEFAULT_PROMPTS.
        backend: what runs the checkpoint, a key of BACKENDS.
        seconds: further times for verification.json.

    Raises:
        ValueError: a prompt, backend or checkpoint that cannot work.
        ModuleNotFoundError: a package is missing.
        EngineError, NativeError: the engine cannot be read or run.
    """
    try:
        from precast.builder.verify import save_report, verify_logits
        from precast.checkpoints.checkpoint import open_checkpoint
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"comparing logits needs {error.name}, which is not installed: pip install 'precast[build]'",
            name=error.name,
        ) from error

    start = time.perf_counter()
    manifest = read_manifest(engine_dir)
    build = manifest.build
    with open_checkpoint(reference, revision=revision) as checkpoint, Model(engine_dir) as model:
        exact, rounded = _references(backend, checkpoint, manifest)
        report = verify_logits(
            model.logits,
            exact,
            _token_ids(engine_dir, prompts or DEFAULT_PROMPTS, model.info["max_seq_len"]),
            dtype="bfloat16" if "bfloat16" in (build.dtype, build.kv_cache_dtype) else build.dtype,
            reference=BACKENDS[backend],
            baseline_logits=rounded,
        )
    save_report(engine_dir, report, seconds={**(seconds or {}), "verify": time.perf_counter() - start})
    return report


def _token_ids(engine_dir: Path, prompts: Sequence[str], max_seq_len: int) -> list[list[int]]:
    tokenizer = Tokenizer(engine_dir / "tokenizer")
    return [tokenizer.encode(prompt)[:max_seq_len] for prompt in prompts]


def _references(
    backend: str, checkpoint: Checkpoint, manifest: EngineManifest
) -> tuple[LogitsFunction, LogitsFunction | None]:
    """The checkpoint's logits in float32, and with the roundings of an engine with these dtypes, where there is one."""
    if backend == "numpy":
        from precast.builder.reference import ReferenceModel

        model = functools.partial(ReferenceModel, checkpoint.config, checkpoint, max_seq_len=manifest.model.max_seq_len)
        if manifest.build.dtype == "float16":  # of which the CPU's ops, and so their references, have no layout
            return model(), None
        return (
            model(),
            model(dtype=manifest.build.dtype, kv_cache_dtype=manifest.build.kv_cache_dtype),
        )
    if backend == "hf":
        half = "float16" if manifest.build.dtype == "float16" else "bfloat16"
        return _HuggingFaceModel(checkpoint.path, "float32"), _HuggingFaceModel(checkpoint.path, half)
    raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


class _HuggingFaceModel:
    """A checkpoint in Hugging Face transformers, loaded when it is first asked."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._dtype = dtype

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        import torch

        with torch.no_grad():
            logits: NDArray[np.float32] = self._model(torch.tensor([list(token_ids)])).logits[0].float().numpy()
        return logits

    @functools.cached_property
    def _model(self) -> Any:
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"this reference needs {error.name}, which is not installed: "
                'install torch and transformers, or choose the reference "numpy"',
                name=error.name,
            ) from error

        dtype = getattr(torch, self._dtype)
        model = AutoModelForCausalLM.from_pretrained(
            self._path, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
        return model.eval()
