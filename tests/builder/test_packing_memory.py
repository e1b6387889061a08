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
VOCAB_SIZE, HIDDEN_SIZE = 8000, 768
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
# A process of its own: memory that other tests gave back to Python's allocator would hide what a build takes.
# Memory is read when each weight is about to be written: its source is mapped, its packed form is there.
BUILD = """
    import sys
    from pathlib import Path
    from precast.builder.build import build_engine
    from precast.checkpoints.checkpoint import open_checkpoint
    from precast.checkpoints.weights_writer import WeightsWriter

    def private_bytes():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))

    before, during, write = private_bytes(), [], WeightsWriter.write

    def watched_write(writer, name, array):
        during.append(private_bytes())
        write(writer, name, array)

    WeightsWriter.write = watched_write
    with open_checkpoint(sys.argv[1]) as checkpoint:
        build_engine(checkpoint, sys.argv[2])
    print(before, max(during))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random checkpoint of about 320 MB."""
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
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    before, peak = map(int, result.stdout.split())
    model_bytes = (checkpoint / "model.safetensors").stat().st_size
    largest_bytes = 2 * VOCAB_SIZE * HIDDEN_SIZE
    # A weight packed, its source mapped, slices on the way, and what the builder's own imports allocate late.
    assert peak - before < 4 * largest_bytes
    assert model_bytes > 20 * largest_bytes
