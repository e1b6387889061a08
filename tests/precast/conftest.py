"""Fixtures that several tests of the front door use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.checkpoints.checkpoint import open_checkpoint
from precast.tokenizer import Tokenizer
from tests.precast.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer whose tokens are bytes, as the front door reads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def ranks_engine(
    tiny_llama: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int, int], Path]:
    """`ranks_engine("gqa", 2, 1)`: an engine of 2 x 1 ranks."""
    built: dict[tuple[str, int, int], Path] = {}

    def build(variant: str, tensor_size: int, pipeline_size: int) -> Path:
        key = (variant, tensor_size, pipeline_size)
        if key not in built:
            built[key] = tmp_path_factory.mktemp("ranks") / "engine"
            config = BuildConfig(tensor_parallel_size=tensor_size, pipeline_parallel_size=pipeline_size)
            with open_checkpoint(tiny_llama(variant)) as checkpoint:
                build_engine(checkpoint, built[key], config)
        return built[key]

    return build
