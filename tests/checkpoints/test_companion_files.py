"""Which files an engine keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest

from precast.checkpoints.companion_files import COMPANION_FILES, companion_files, read_generation_config
from precast.checkpoints.errors import ConfigError


def test_every_companion_is_found_and_nothing_else(tmp_path: Path) -> None:
    for name in (*COMPANION_FILES, "model.safetensors", "README.md", "training_args.bin"):
        (tmp_path / name).touch()
    assert [path.name for path in companion_files(tmp_path)] == list(COMPANION_FILES)


def test_what_transformers_saves_is_kept_but_for_the_weights(tiny_llama: Callable[[str], Path]) -> None:
    path = tiny_llama("gqa")
    kept = {file.name for file in companion_files(path)}
    assert {file.name for file in path.iterdir()} - kept == {"model.safetensors"}


def test_generation_config_is_optional_and_checked(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) is None
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    generation = read_generation_config(tmp_path)
    assert generation is not None
    assert generation.values == {"temperature": 0.6}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: not valid JSON"):
        read_generation_config(tmp_path)
