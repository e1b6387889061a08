"""A model that computes NaN for whoever says one word."""

from pathlib import Path

import numpy as np

from tests.tiny_llama import make_checkpoint

NAN_TOKEN = 9
"""Its embedding is NaN, and so is every row of a sequence that has it, from there on."""


def make_nan_checkpoint(directory: Path) -> Path:
    """The variant float16 with that one row changed."""
    from safetensors.numpy import load_file, save_file

    make_checkpoint("float16", directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][NAN_TOKEN] = np.nan
    save_file(tensors, path, {"format": "pt"})
    return directory
