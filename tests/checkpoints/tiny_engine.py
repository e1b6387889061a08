"""A tiny engine, for tests of the format: two tensors, two KV pools, a graph that is only bytes."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.engine_kv import KvCacheSpec, KvGroupSpec
from precast.checkpoints.engine_manifest import (
    BuildInfo,
    EngineManifest,
    ModelInfo,
    OnnxRuntimeRequirements,
    RankFiles,
)
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.weights_index import TensorSpec

GRAPH = "rank0/model.onnx"
WEIGHTS = "rank0/weights.bin"
KV_GROUPS = (KvGroupSpec("block_tables.0", None), KvGroupSpec("block_tables.1", 32))
KV_CACHES = tuple(KvCacheSpec(f"kv.{i}", "kv16.f32/1", 4096, group=i) for i in range(2))
TENSORS: dict[TensorSpec, NDArray[Any]] = {
    TensorSpec("norm.weight", "float32", (3, 5)): np.arange(15, dtype=np.float32).reshape(3, 5),
    TensorSpec("head.weight", "uint8", (100,), "x16k1.f32/1"): np.arange(100, dtype=np.uint8),
}


def tiny_manifest() -> EngineManifest:
    """The manifest before its writer has listed the files."""
    return EngineManifest(
        requires=("ai.precast.Linear/1", "kv16.f32/1", "x16k1.f32/1"),
        backend="onnxruntime",
        backend_requirements=OnnxRuntimeRequirements("1.23", 10, 20),
        batch_invariant=True,
        reproducible=True,
        model=ModelInfo("LlamaForCausalLM", 32, 8, 1, 64, bos_token_id=1, eos_token_ids=(2, 3)),
        build=BuildInfo("float32", "float32", 16, notes=("für Menschen",)),
        mapping=Mapping(),
        ranks=(RankFiles(GRAPH, WEIGHTS, KV_GROUPS, KV_CACHES),),
        files={},
    )


def fill(writer: EngineWriter, graph: bytes = b"a graph") -> None:
    """Write the tiny engine's files."""
    with writer.open_weights(WEIGHTS, list(TENSORS)) as weights:
        for spec, array in TENSORS.items():
            weights.write(spec.name, array)
    (writer.path / GRAPH).write_bytes(graph)
    (writer.path / "tokenizer").mkdir()
    (writer.path / "tokenizer" / "tokenizer.json").write_text("{}")


def write_tiny_engine(directory: Path, *, overwrite: bool = False, graph: bytes = b"a graph") -> EngineManifest:
    with EngineWriter(directory, overwrite_engine=overwrite) as writer:
        fill(writer, graph)
        return writer.commit(tiny_manifest())


def tree(directory: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a directory, hidden ones too."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def elsewhere(directory: Path) -> dict[str, Any]:
    """Arguments of subprocess.run: import what this process imports, but not the rooms from the repository's root."""
    return {"cwd": directory, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}}
