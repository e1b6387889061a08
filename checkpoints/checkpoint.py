"""A checkpoint, opened: its config as a ModelConfig, its tensors by canonical name, whole or in slices.

    with open_checkpoint("path/or/hub-id") as checkpoint:
        checkpoint.config.hidden_size
        checkpoint.tensor("layers.0.attention.q.weight")      # a view of the mapped file

It is a Hugging Face directory or hub repository, a directory of Precast's own that holds a file for each rank
(ranks/rank_checkpoint.py), or a unified checkpoint of TensorRT-LLM (tensorrt_llm/). Opening reads configs and file
headers only, and checks that the files hold exactly the tensors that the config calls for, in their shapes.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray

from precast.checkpoints import hf_config
from precast.checkpoints.companion_files import CONFIG, companion_files, read_generation_config
from precast.checkpoints.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from precast.checkpoints.families import find_family
from precast.checkpoints.families.base import Family
from precast.checkpoints.hub import resolve_model
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import HeadConfig, ModelConfig
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_checkpoint import SECTION, map_rank_files, read_section
from precast.checkpoints.ranks.rank_files import RankFiles
from precast.checkpoints.ranks.rank_model import RankModel
from precast.checkpoints.ranks.stored_tensor import StoredTensor, TensorFiles
from precast.checkpoints.ranks.tensor_parallel import check_tensor_parallel_size
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_info import TensorInfo
from precast.checkpoints.tensor_map import map_tensors, resolve_tying
from precast.checkpoints.tensorrt_llm.config import embedding_axis, is_unified_config, read_partition, to_hugging_face
from precast.checkpoints.tensorrt_llm.tensors import head_is_the_embedding, map_unified_tensors
from precast.checkpoints.weight_files import WeightFiles


class WeightSource(TensorFiles, Protocol):
    """Open weight files."""

    def paths(self) -> tuple[Path, ...]: ...
    def close(self) -> None: ...


class Checkpoint:
    """An open checkpoint, made by `open_checkpoint`. Reading is safe from several threads.

    Attributes:
        path: Its directory.
        config: The model.
        tokenizer: The directory of its tokenizer: its own, or the one that it was opened with.
        hf_config: config.json as it is; of a unified checkpoint, what it would be at Hugging Face.
        generation_config: generation_config.json as it is, or None.
        partition: How the files divide the model between ranks; None where they do not.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        hf_config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None,
        files: WeightSource,
        tensors: Mapping[str, StoredTensor],
        partition: Partition | None = None,
        *,
        tokenizer: Path | None = None,
        is_unified: bool = False,
    ) -> None:
        """`tensors`: canonical name -> where it lies in `files`, which the checkpoint owns from now on."""
        self._is_unified = is_unified
        self.path = path
        self.tokenizer = tokenizer or path
        self.config = config
        self.hf_config = hf_config
        self.generation_config = generation_config
        self.partition = partition
        self._files = files
        self._tensors = tensors

    def names(self) -> tuple[str, ...]:
        """The canonical names of all tensors, from the embedding to the head."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Dtype as stored, shape and size of a tensor. Raises KeyError for a name that is not in `names()`."""
        return self._tensors[name].info(self._files)

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor in its stored dtype: float32, float16 or ml_dtypes.bfloat16.

        Where it lies in one piece, the array is a read-only, C-contiguous view of the mapped file: its pages become
        resident as they are read, and it may be unaligned where the file is. Otherwise it is a new array. It stays
        valid after `close`.
        """
        return self.read(name, TensorSlice(self._tensors[name].shape))

    def read(self, name: str, wanted: TensorSlice, rank: int | None = None) -> NDArray[Any]:
        """A slice of a tensor, as `tensor` gives it but perhaps not dense. Only what it needs is read.

        Of copies in several ranks' files, that of `rank` is read.
        """
        return self._tensors[name].read(self._files, wanted, rank)

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor made resident. Arrays of it stay valid."""
        self._tensors[name].release(self._files)

    def companion_files(self) -> tuple[Path, ...]:
        """The files that an engine keeps beside its weights: tokenizer, templates, configs."""
        if self.tokenizer == self.path and not self._is_unified:
            return companion_files(self.path)
        files = tuple(file for file in companion_files(self.tokenizer) if file.name != CONFIG)
        # A unified checkpoint's own config.json is not what other programs know.
        config = (self.tokenizer if self._is_unified else self.path) / CONFIG
        is_own = self._is_unified and self.tokenizer == self.path
        return files if is_own or not config.is_file() else (config, *files)

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


class RankTensors:
    """What a rank has of a checkpoint's tensors, by canonical name."""

    def __init__(self, checkpoint: Checkpoint, rank: RankModel) -> None:
        self._checkpoint = checkpoint
        self._slices = rank.slices
        self._rank = rank.rank if rank.partition == checkpoint.partition else None

    def tensor(self, name: str) -> NDArray[Any]:
        """The rank's slice; see Checkpoint.read."""
        return self._checkpoint.read(name, self._slices[name], self._rank)

    def release(self, name: str) -> None:
        """Give back the memory that reading made resident."""
        self._checkpoint.release(name)


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Checkpoint:
    """Open a local directory or a hub repository (`owner/name`), whose arguments are those of `resolve_model`.

    Args:
        tokenizer: A directory of which tokenizer, templates and generation config are taken instead of the checkpoint's
            own. A unified checkpoint has none, and takes its config.json from there too.

    Raises:
        CheckpointError: one of its subclasses in `errors.py` says what is wrong.
    """
    path = resolve_model(model, revision=revision, token=token)
    tokenizer_dir = path if tokenizer is None else _directory(Path(tokenizer))
    hf = hf_config.read_config(path)
    generation = read_generation_config(tokenizer_dir)
    if is_unified_config(hf):
        return _open_unified(path, hf, generation, tokenizer_dir)
    family = find_family(hf_config.architecture(hf), hf.source)
    hf_config.refuse_quantization(hf)
    config = _model_config(family, hf, generation)
    generation_config = None if generation is None else generation.values
    if SECTION in hf:
        return _open_ranks(path, config, hf, generation_config, tokenizer_dir)
    files = WeightFiles(path)
    config = resolve_tying(config, family, files)
    file_names = map_tensors(config, family, files)
    if hf_config.declared_dtype(hf) is None:
        config = replace(config, dtype=files.info(file_names["embedding.weight"]).dtype)
    tensors = {canonical: StoredTensor.whole(name, files.info(name).shape) for canonical, name in file_names.items()}
    return Checkpoint(path, config, hf.values, generation_config, files, tensors, tokenizer=tokenizer_dir)


def _open_ranks(
    path: Path,
    config: ModelConfig,
    hf: JsonObject,
    generation_config: Mapping[str, Any] | None,
    tokenizer: Path,
) -> Checkpoint:
    """A directory that `ranks.convert` wrote."""
    config, partition = read_section(hf, config)
    files = RankFiles(path, partition.mapping.world_size)
    tensors = map_rank_files(config, partition, files)
    return Checkpoint(path, config, hf.values, generation_config, files, tensors, partition, tokenizer=tokenizer)


def _open_unified(path: Path, unified: JsonObject, generation: JsonObject | None, tokenizer: Path) -> Checkpoint:
    """A unified checkpoint of TensorRT-LLM."""
    has_config = tokenizer != path and (tokenizer / CONFIG).is_file()
    hf = to_hugging_face(unified, hf_config.read_config(tokenizer) if has_config else None)
    config = _model_config(find_family(hf_config.architecture(hf), hf.source), hf, generation)
    partition, axis = read_partition(unified, len(config.layers)), embedding_axis(unified)
    check_tensor_parallel_size(config, partition.mapping.tensor_parallel_size)
    files = RankFiles(path, partition.mapping.world_size)
    if isinstance(config.head, HeadConfig) and config.head.tied:
        untied = replace(config, head=replace(config.head, tied=False))
        config = config if head_is_the_embedding(untied, partition, axis, files) else untied
    hf_values = {**hf.values, "tie_word_embeddings": isinstance(config.head, HeadConfig) and config.head.tied}
    tensors = map_unified_tensors(config, partition, axis, files)
    generation_config = None if generation is None else generation.values
    return Checkpoint(
        path, config, hf_values, generation_config, files, tensors, partition, tokenizer=tokenizer, is_unified=True
    )


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointNotFoundError(f"{path}: no such directory; tokenizer is one that holds tokenizer.json")
    return path


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
