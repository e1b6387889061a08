"""The files of a checkpoint that are not weights and that an engine keeps: tokenizer, chat template, processors,
generation config, config.
"""

from pathlib import Path

from precast.checkpoints.json_object import JsonObject, read_json_file

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
COMPANION_FILES = (
    CONFIG,
    GENERATION_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",  # SentencePiece
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def companion_files(directory: Path) -> tuple[Path, ...]:
    """Those of `COMPANION_FILES` that `directory` holds, in that order."""
    return tuple(directory / name for name in COMPANION_FILES if (directory / name).is_file())


def read_generation_config(directory: Path) -> JsonObject | None:
    """generation_config.json: default sampling and special tokens; None where there is none."""
    path = directory / GENERATION_CONFIG
    return JsonObject(read_json_file(path), str(path)) if path.is_file() else None
