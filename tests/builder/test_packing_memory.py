"""Building streams: memory is bounded by the largest weights, not by the model."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from precast.checkpoints.families.llama import FAMILY
from precast.checkpoints.hf_config import read_config
from precast.checkpoints.tensor_shapes import tensor_shapes

MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
# A process of its own: memory that other tests freed to Python's allocator would hide what a build takes.
BUILD = """
    import sys, threading
    from pathlib import Path
    from precast.builder.build import build_engine
    from precast.checkpoints.checkpoint import open_checkpoint

    def private_bytes():
        fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        kib = {name: int(size) for name, size, *_ in fields}
        return 1024 * (kib["Private_Dirty:"] + kib["Private_Clean:"])

    before = peak = private_bytes()

    def watch(stage, done_bytes, total_bytes):
        global peak
        peak = max(peak, private_bytes())

    original = __import__("precast.builder.weights", fromlist=["WeightRecipe"]).WeightRecipe
    materialise = original.materialise

    def materialise_and_watch(recipe, checkpoint):
        stored = materialise(recipe, checkpoint)
        watch("", 0, 0)
        return stored

    original.materialise = materialise_and_watch
    with open_checkpoint(sys.argv[1]) as checkpoint:
        build_engine(checkpoint, sys.argv[2], progress=watch)
    print(before, peak)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random checkpoint of about 600 MB."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    shapes = tensor_shapes(FAMILY.model_config(read_config(path), "bfloat16"))
    values = np.random.default_rng(0).standard_normal(MIB, np.float32).astype(ml_dtypes.bfloat16)
    save_file(
        {FAMILY.file_name(name): np.resize(values, shape) for name, shape in shapes.items()},
        path / "model.safetensors",
    )
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_memory_is_bounded_by_the_largest_weight(checkpoint: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(BUILD)
    command = [sys.executable, "-c", script, str(checkpoint), str(tmp_path / "engine")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak = map(int, result.stdout.split())
    model_bytes = (checkpoint / "model.safetensors").stat().st_size
    largest_bytes = 2 * 8000 * 1024
    assert model_bytes > 500 * MIB
    # A packed weight, its mapped source, slices, and the hashing of the file.
    assert peak - before < 6 * largest_bytes < model_bytes / 5
