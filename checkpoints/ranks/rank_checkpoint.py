"""Checkpoints that hold one file for each rank, as `convert` writes them and `open_checkpoint` reads them.

    checkpoint/
      config.json           the Hugging Face config, with one more member, "precast_checkpoint":
                              format                  1
                              tensor_parallel_size    of the files
                              pipeline_parallel_size  of the files
                              stage_layers            number of layers of each pipeline stage
                              dtype                   of the model: "float32", "bfloat16" or "float16"
                              tied                    whether the head is the embedding's table
      rank0.safetensors     what rank 0 has of each tensor (rank_model.py), by canonical name, in the stored dtype;
      rank1.safetensors     tensors that are all zeros on a rank are left out
      tokenizer.json, ...   the files that an engine keeps beside its weights

Such a directory can be built with the sizes that it was made for, and then each rank's build reads its own file; or
with any others, and then tensors are put together first.
"""

from collections import defaultdict
from dataclasses import replace

from precast.checkpoints.errors import (
    ConfigError,
    MissingTensorError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedDtypeError,
)
from precast.checkpoints.json_object import JsonObject
from precast.checkpoints.model_config import DTYPES, HeadConfig, ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_files import RankFiles
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.ranks.stored_tensor import Part, StoredTensor
from precast.checkpoints.ranks.tensor_parallel import check_tensor_parallel_size
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.checkpoints.tensor_shapes import tensor_shapes

SECTION = "precast_checkpoint"
FORMAT = 1


def write_section(config: ModelConfig, partition: Partition) -> dict[str, object]:
    """The member SECTION of config.json."""
    return {
        "format": FORMAT,
        "tensor_parallel_size": partition.mapping.tensor_parallel_size,
        "pipeline_parallel_size": partition.mapping.pipeline_parallel_size,
        "stage_layers": list(partition.stage_layers),
        "dtype": config.dtype,
        "tied": isinstance(config.head, HeadConfig) and config.head.tied,
    }


def read_section(hf: JsonObject, config: ModelConfig) -> tuple[ModelConfig, Partition]:
    """The model and its partition, from the member SECTION; `config` is what the rest of config.json says.

    Raises:
        ConfigError: a value is missing, of another type, or contradicts the model.
        PartitionError: the model cannot be divided so.
    """
    section = hf.optional_object(SECTION)
    if section is None:
        raise ConfigError(f"{hf.source}: {SECTION!r} is missing")
    written = section.positive_integer("format")
    if written != FORMAT:
        raise ConfigError(
            f"{section.source}: format {written} is not one that this precast reads, which is {FORMAT}: "
            "update precast, or convert the checkpoint again"
        )
    sizes = [section.positive_integer(f"{kind}_parallel_size") for kind in ("tensor", "pipeline")]
    try:
        partition = Partition(Mapping.of(*sizes), section.positive_integers("stage_layers"))
    except ValueError as error:
        raise ConfigError(f"{section.source}: {error}") from error
    if sum(partition.stage_layers) != len(config.layers):
        raise section.error("stage_layers", f"numbers whose sum is the model's {len(config.layers)} layers")
    check_tensor_parallel_size(config, partition.mapping.tensor_parallel_size)
    dtype = section.string("dtype")
    if dtype not in DTYPES:
        raise section.error("dtype", f"one of {', '.join(DTYPES)}")
    if isinstance(config.head, HeadConfig):
        config = replace(config, head=replace(config.head, tied=section.boolean("tied")))
    return replace(config, dtype=dtype), partition


def map_rank_files(config: ModelConfig, partition: Partition, files: RankFiles) -> dict[str, StoredTensor]:
    """Where every tensor of the model lies.

    Raises MissingTensorError, TensorShapeError, UnsupportedDtypeError or UnexpectedTensorError.
    """
    parts: defaultdict[str, dict[int, Part]] = defaultdict(dict)  # tensor -> its parts by their start
    axes: dict[str, int] = {}
    shapes = tensor_shapes(config)
    for rank in range(partition.mapping.world_size):
        slices = rank_model(config, partition, rank).slices
        stored = {name: part for name, part in slices.items() if not part.is_zero}
        _check_rank(stored, rank, files)
        for name, part in stored.items():
            axes[name] = part.axis
            stop = min(part.stop, shapes[name][part.axis])  # what lies beyond is padding
            if part.start < stop:
                file_tensor, before = f"rank{rank}/{name}", parts[name].get(part.start)
                parts[name][part.start] = (
                    Part(file_tensor, part.start, stop)
                    if before is None
                    else replace(before, copies=(*before.copies, file_tensor))
                )
    tensors = {
        name: StoredTensor(shape, tuple(part for _, part in sorted(parts[name].items())), axes[name])
        for name, shape in shapes.items()
    }
    for tensor in tensors.values():
        _check_one_dtype(tensor, files)
    return tensors


def _check_one_dtype(tensor: StoredTensor, files: RankFiles) -> None:
    first, *others = (name for part in tensor.parts for name in (part.file_tensor, *part.copies))
    expected = files.info(first).dtype
    for other in others:
        dtype = files.info(other).dtype
        if dtype != expected:
            raise UnsupportedDtypeError(
                f"{files.source}: {other} is stored as {dtype}, {first} as {expected}; all ranks must have one dtype: "
                "convert the checkpoint again"
            )


def _check_rank(stored: dict[str, TensorSlice], rank: int, files: RankFiles) -> None:
    path, names = files.path(rank), set(files.names(rank))
    for name, part in stored.items():
        if name not in names:
            raise MissingTensorError(f"{path}: has no tensor {name}; rank {rank} needs it, of shape {list(part.shape)}")
        info = files.info(f"rank{rank}/{name}")
        if info.dtype not in NUMPY_DTYPES:
            known = ", ".join(NUMPY_DTYPES)
            raise UnsupportedDtypeError(f"{path}: {name} is stored as {info.dtype}; supported: {known}")
        if info.shape != part.shape:
            raise TensorShapeError(f"{path}: {name} has shape {list(info.shape)}, rank {rank} has {list(part.shape)}")
    left = sorted(names - stored.keys())
    if left:
        raise UnexpectedTensorError(f"{path}: {left[0]} is not a tensor that rank {rank} has of the model")
