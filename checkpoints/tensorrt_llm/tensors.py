"""Where the tensors of a unified checkpoint lie.

transformer.vocab_embedding.weight             the first stage's; whole, or divided along either axis
transformer.layers.{l}.input_layernorm.weight  l counts from the first layer of the rank's stage
transformer.layers.{l}.attention.qkv.{weight,bias}     this rank's query heads, then its key and its value heads
transformer.layers.{l}.attention.dense.{weight,bias}   the bias whole on every rank, and added once
transformer.layers.{l}.attention.{q,k}_layernorm.weight
transformer.layers.{l}.post_layernorm.weight
transformer.layers.{l}.mlp.{fc,gate,proj}.{weight,bias}   fc: Hugging Face's gate_proj, gate: up_proj, proj: down_proj
transformer.ln_f.weight, lm_head.weight        the last stage's; the head's rows padded to a multiple of the ranks
"""

import re
from collections.abc import Mapping

import numpy as np

from precast.checkpoints.errors import (
    MissingTensorError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedDtypeError,
)
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_files import RankFiles
from precast.checkpoints.ranks.rank_model import RankModel, rank_model
from precast.checkpoints.ranks.stored_tensor import Part, StoredTensor
from precast.checkpoints.ranks.tensor_slice import TensorSlice
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.checkpoints.tensor_shapes import Shape, tensor_shapes

EMBEDDING, HEAD, FINAL_NORM = "transformer.vocab_embedding.weight", "lm_head.weight", "transformer.ln_f.weight"
_MODULES = {
    "mixer_norm": "input_layernorm",
    "feed_forward_norm": "post_layernorm",
    "attention.q_norm": "attention.q_layernorm",
    "attention.k_norm": "attention.k_layernorm",
    "attention.o": "attention.dense",
    "feed_forward.gate": "mlp.fc",
    "feed_forward.up": "mlp.gate",
    "feed_forward.down": "mlp.proj",
}
_FUSED = ("attention.q", "attention.k", "attention.v")
# Tables of angles that follow from the config: from 0.12 on a model has them as parameters, and saving it saves them.
_IGNORED = re.compile(r"(?:.*\.)?(?:long_rope_)?(?:rotary_inv_freq|embed_positions)\w*|(?:short|long)_inv_freq")
_COMPARED_ROWS = 4096


class _Parts:
    """The parts of every tensor as they are found, rank by rank, with what each file tensor must look like."""

    def __init__(self, files: RankFiles) -> None:
        self.files = files
        self.expected: dict[str, Shape] = {}
        self._parts: dict[str, dict[int, Part]] = {}
        self._axes: dict[str, int] = {}

    def add(self, name: str, file_tensor: str, file_shape: Shape, part: TensorSlice, extent: int, offset: int) -> None:
        """`part` of the tensor `name`, whose axis has `extent` indices, lies in a tensor of the files."""
        self.expected[file_tensor] = file_shape
        self._axes[name] = part.axis
        stop = min(part.stop, extent)  # what lies beyond is padding
        parts = self._parts.setdefault(name, {})
        before = parts.get(part.start)
        if before is not None:
            parts[part.start] = Part(
                before.file_tensor, before.start, before.stop, before.offset, (*before.copies, file_tensor)
            )
        elif part.start < stop:
            parts[part.start] = Part(file_tensor, part.start, stop, offset)

    def tensor(self, name: str, shape: Shape) -> StoredTensor:
        parts = self._parts[name]
        return StoredTensor(shape, tuple(parts[start] for start in sorted(parts)), self._axes[name])


def map_unified_tensors(
    config: ModelConfig, partition: Partition, embedding_axis: int | None, files: RankFiles
) -> dict[str, StoredTensor]:
    """Where every tensor of the model lies; `config` says whether the head is the embedding's table.

    Raises MissingTensorError, TensorShapeError, UnsupportedDtypeError or UnexpectedTensorError.
    """
    shapes = tensor_shapes(config)
    parts = _Parts(files)
    for rank in range(partition.mapping.world_size):
        model = rank_model(config, partition, rank)
        _add_layers(parts, model, shapes)
        if model.is_first_stage:
            _add_embedding(parts, model, embedding_axis, shapes["embedding.weight"])
        if model.is_last_stage:
            _add_whole(parts, "final_norm.weight", f"rank{rank}/{FINAL_NORM}", shapes["final_norm.weight"])
            _add_head(parts, model, shapes)
    _check(parts, partition)
    return {name: parts.tensor(name, shape) for name, shape in shapes.items()}


def head_is_the_embedding(
    config: ModelConfig, partition: Partition, embedding_axis: int | None, files: RankFiles
) -> bool:
    """Whether a model has one table for both: no other is stored, or one of equal values.

    For models whose config ties them or, as those up to 0.13, does not say. TensorRT-LLM itself, too, takes the
    embedding where there is no head. `config` is the untied model's.
    """
    last = partition.mapping.world_size - partition.mapping.tensor_parallel_size
    if HEAD not in files.names(last):
        return True
    tensors = map_unified_tensors(config, partition, embedding_axis, files)
    embedding, head = tensors["embedding.weight"], tensors["lm_head.weight"]
    rows, features = head.shape
    blocks = [
        TensorSlice((min(_COMPARED_ROWS, rows - start), features), 0, start) for start in range(0, rows, _COMPARED_ROWS)
    ]
    is_equal = all(np.array_equal(embedding.read(files, block), head.read(files, block)) for block in blocks)
    for tensor in (embedding, head):
        tensor.release(files)
    return is_equal


def _add_layers(parts: _Parts, model: RankModel, shapes: Mapping[str, Shape]) -> None:
    first = min(model.layers)
    for name, part in model.slices.items():
        if not name.startswith("layers."):
            continue
        _, number, rest = name.split(".", 2)
        module, _, parameter = rest.rpartition(".")
        prefix = f"rank{model.rank}/transformer.layers.{int(number) - first}"
        extent = shapes[name][part.axis]
        if module in _FUSED:
            extents = [model.slices[f"layers.{number}.{one}.{parameter}"].shape[0] for one in _FUSED]
            offset = sum(extents[: _FUSED.index(module)])
            file_shape = (sum(extents), *part.shape[1:])
            parts.add(name, f"{prefix}.attention.qkv.{parameter}", file_shape, part, extent, offset)
        else:
            # Of a bias that one rank adds, every rank has a copy.
            wanted = TensorSlice(part.shape) if part.is_zero else part
            parts.add(name, f"{prefix}.{_MODULES[module]}.{parameter}", part.shape, wanted, extent, 0)


def _add_embedding(parts: _Parts, model: RankModel, axis: int | None, shape: Shape) -> None:
    file_tensor = f"rank{model.rank}/{EMBEDDING}"
    if axis is None or model.tensor_parallel_size == 1:
        _add_whole(parts, "embedding.weight", file_tensor, shape)
        return
    share = -(-shape[axis] // model.tensor_parallel_size)
    start = share * model.tensor_rank
    # The last rank's rows are padded in some releases and fewer in others.
    stored = parts.files.info(file_tensor).shape if file_tensor in parts.files else ()
    is_short = len(stored) == len(shape) and stored[axis] == shape[axis] - start
    share = stored[axis] if is_short else share
    part_shape = (share, shape[1]) if axis == 0 else (shape[0], share)
    parts.add("embedding.weight", file_tensor, part_shape, TensorSlice(part_shape, axis, start), shape[axis], 0)


def _add_head(parts: _Parts, model: RankModel, shapes: Mapping[str, Shape]) -> None:
    file_tensor = f"rank{model.rank}/{HEAD}"
    rows = -(-model.model.vocab_size // model.tensor_parallel_size)
    part_shape = (rows, model.model.hidden_size)
    if "lm_head.weight" in shapes:
        part = TensorSlice(part_shape, 0, rows * model.tensor_rank)
        parts.add("lm_head.weight", file_tensor, part_shape, part, model.model.vocab_size, 0)
    elif file_tensor in parts.files:
        parts.expected[file_tensor] = part_shape  # a copy of the embedding


def _add_whole(parts: _Parts, name: str, file_tensor: str, shape: Shape) -> None:
    parts.add(name, file_tensor, shape, TensorSlice(shape), shape[0], 0)


def _check(parts: _Parts, partition: Partition) -> None:
    """That the files hold what is expected, in one dtype a tensor, and nothing else."""
    files, dtypes = parts.files, dict[str, str]()
    for file_tensor, shape in parts.expected.items():
        rank, _, name = file_tensor.partition("/")
        path = files.path(int(rank.removeprefix("rank")))
        if file_tensor not in files:
            raise MissingTensorError(f"{path}: has no tensor {name}; config.json calls for it, of shape {list(shape)}")
        info = files.info(file_tensor)
        if info.shape != shape:
            raise TensorShapeError(f"{path}: {name} has shape {list(info.shape)}, config.json calls for {list(shape)}")
        if info.dtype not in NUMPY_DTYPES:
            known = ", ".join(NUMPY_DTYPES)
            raise UnsupportedDtypeError(f"{path}: {name} is stored as {info.dtype}; supported: {known}")
        if dtypes.setdefault(name, info.dtype) != info.dtype:
            raise UnsupportedDtypeError(f"{path}: {name} is stored as {info.dtype}, other ranks' as {dtypes[name]}")
    for number in range(partition.mapping.world_size):
        for name in files.names(number):
            if f"rank{number}/{name}" not in parts.expected and not _IGNORED.fullmatch(name):
                raise UnexpectedTensorError(
                    f"{files.path(number)}: {name} is not part of the model that config.json describes"
                )
