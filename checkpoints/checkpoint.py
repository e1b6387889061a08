"""A Hugging Face checkpoint, opened: its config as a ModelConfig, its tensors by canonical name.

    with open_checkpoint("path/or/hub-id") as checkpoint:
        checkpoint.config.hidden_size
        checkpoint.tensor("layers.0.attention.q.weight")      # a view of the mapped file

Opening reads configs and file headers only, and checks that the files hold exactly the tensors that the
config calls for, in their shapes.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from precast.checkpoints import hf_config
from precast.checkpoints.companion_files import companion_files, read_generation_config
from precast.checkpoints.errors import CheckpointError, ConfigError
from precast.checkpoints.families import find_family
from precast.checkpoints.families.base import Family
from precast.checkpoints.hub import resolve_model
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.tensor_info import TensorInfo
from precast.checkpoints.tensor_map import map_tensors, resolve_tying
from precast.checkpoints.weight_files import WeightFiles


class Checkpoint:
    """An open checkpoint, made by `open_checkpoint`. Reading is safe from several threads.

    Attributes:
        path: Its directory.
        config: The model.
        hf_config: config.json as it is.
        generation_config: generation_config.json as it is, or None.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        hf_config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None,
        files: WeightFiles,
        file_names: Mapping[str, str],
    ) -> None:
        """`file_names`: canonical name -> name in `files`, which the checkpoint owns from now on."""
        self.path = path
        self.config = config
        self.hf_config = hf_config
        self.generation_config = generation_config
        self._files = files
        self._file_names = file_names

    def names(self) -> tuple[str, ...]:
        """The canonical names of all tensors, from the embedding to the head."""
        return tuple(self._file_names)

    def info(self, name: str) -> TensorInfo:
        """Dtype as stored, shape and size of a tensor. Raises KeyError for a name that is not in `names()`."""
        return self._files.info(self._file_names[name])

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor in its stored dtype: float32, float16 or ml_dtypes.bfloat16.

        The array is a read-only, C-contiguous view of the mapped file. Its pages become resident as they are
        read, and it stays valid after `close`. It may be unaligned where the file is.
        """
        return self._files.tensor(self._file_names[name])

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor made resident. Arrays of it stay valid."""
        self._files.release(self._file_names[name])

    def companion_files(self) -> tuple[Path, ...]:
        """The files that an engine keeps beside its weights: tokenizer, templates, configs."""
        return companion_files(self.path)

    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return self._files.paths()

    def close(self) -> None:
        """Close the files. No further tensor can be read."""
        self._files.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(
    model: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Open a local directory or a hub repository (`owner/name`), whose arguments are those of `resolve_model`.

    Raises:
        CheckpointError: one of its subclasses in `errors.py` says what is wrong.
    """
    path = resolve_model(model, revision=revision, token=token)
    hf = hf_config.read_config(path)
    generation = read_generation_config(path)
    family = find_family(hf_config.architecture(hf), hf.source)
    hf_config.refuse_quantization(hf)
    config = _model_config(family, hf, generation)
    files = WeightFiles(path)
    config = resolve_tying(config, family, files)
    file_names = map_tensors(config, family, files)
    if hf_config.declared_dtype(hf) is None:
        config = replace(config, dtype=files.info(file_names["embedding.weight"]).dtype)
    generation_config = None if generation is None else generation.values
    return Checkpoint(path, config, hf.values, generation_config, files, file_names)


def _model_config(family: Family, hf: JsonObject, generation: JsonObject | None) -> ModelConfig:
    """The family's reading of the config, with the special tokens of both files."""
    try:
        config = family.model_config(hf, hf_config.declared_dtype(hf) or "float32")
        return replace(
            config,
            bos_token_id=hf_config.token_id(hf, generation, "bos_token_id"),
            eos_token_ids=hf_config.merged_token_ids(hf, generation, "eos_token_id"),
            pad_token_id=hf_config.token_id(hf, generation, "pad_token_id"),
        )
    except CheckpointError:
        raise
    except ValueError as error:  # a dataclass of the config refused a value at birth
        raise ConfigError(f"{hf.source}: {error}") from error
