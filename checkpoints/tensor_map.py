"""Which tensor of the files is which of the model, and that nothing is missing, left over or misshaped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.errors import (
    MissingTensorError,
    TensorShapeError,
    UnexpectedTensorError,
    UnsupportedDtypeError,
)
from precast.checkpoints.families.base import Family
from precast.checkpoints.model_config import HeadConfig, ModelConfig
from precast.checkpoints.tensor_info import NUMPY_DTYPES
from precast.checkpoints.tensor_shapes import Shape, tensor_shapes
from precast.checkpoints.weight_files import WeightFiles

ROWS_COMPARED_AT_ONCE = 4096


def resolve_tying(config: ModelConfig, family: Family, files: WeightFiles) -> ModelConfig:
    """The config with the head tied only if the files agree.

    A tied model's files may hold the head as well: PyTorch's always did. As in transformers, a copy that
    differs from the embedding means that the config is wrong and the head is not tied.
    """
    embedding, head = family.file_name("embedding.weight"), family.file_name("lm_head.weight")
    if not isinstance(config.head, HeadConfig) or not config.head.tied or head not in files or embedding not in files:
        return config
    if files.info(embedding) == files.info(head) and _equal(files.tensor(embedding), files.tensor(head)):
        return config
    return replace(config, head=replace(config.head, tied=False))


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two matrices of one dtype and shape have the same bytes, a block of rows at a time."""
    blocks = range(0, len(a), ROWS_COMPARED_AT_ONCE)
    rows = [slice(start, start + ROWS_COMPARED_AT_ONCE) for start in blocks]
    return all(np.array_equal(a[block].view(np.uint8), b[block].view(np.uint8)) for block in rows)


def map_tensors(config: ModelConfig, family: Family, files: WeightFiles) -> dict[str, str]:
    """Canonical name -> name in the files, of every tensor of the model.

    Raises MissingTensorError, TensorShapeError, UnsupportedDtypeError or UnexpectedTensorError.
    """
    shapes = tensor_shapes(config)
    names = {canonical: _stored_name(canonical, config, family, files) for canonical in shapes}
    _check_present(names, shapes, files)
    for canonical, name in names.items():
        _check_tensor(name, shapes[canonical], files)
    _check_nothing_left(names, family, files)
    return names


def _stored_name(canonical: str, config: ModelConfig, family: Family, files: WeightFiles) -> str:
    name, head = family.file_name(canonical), family.file_name("lm_head.weight")
    is_tied = isinstance(config.head, HeadConfig) and config.head.tied
    # A tied matrix may have been saved under the head's name alone.
    return head if canonical == "embedding.weight" and is_tied and name not in files and head in files else name


def _check_present(names: Mapping[str, str], shapes: Mapping[str, Shape], files: WeightFiles) -> None:
    missing = [canonical for canonical, name in names.items() if name not in files]
    if missing:
        first = missing[0]
        hint = "; a model whose head is its embedding must set tie_word_embeddings in config.json"
        raise MissingTensorError(
            f"{files.source}: has no tensor {names[first]}; config.json calls for it, with shape {list(shapes[first])}"
            f"{_and_others(missing)}{hint if first == 'lm_head.weight' else ''}"
        )


def _check_tensor(name: str, shape: Shape, files: WeightFiles) -> None:
    info, path = files.info(name), files.path_of(name)
    if info.dtype not in NUMPY_DTYPES:
        raise UnsupportedDtypeError(f"{path}: {name} is stored as {info.dtype}; supported: {', '.join(NUMPY_DTYPES)}")
    if info.shape != shape:
        raise TensorShapeError(f"{path}: {name} has shape {list(info.shape)}, config.json calls for {list(shape)}")


def _check_nothing_left(names: Mapping[str, str], family: Family, files: WeightFiles) -> None:
    known = {*names.values(), family.file_name("lm_head.weight")}
    left = [name for name in files.names() if name not in known and not family.ignored_tensors.fullmatch(name)]
    if left:
        raise UnexpectedTensorError(
            f"{files.path_of(left[0])}: {left[0]} of shape {list(files.info(left[0]).shape)} is not part of the model "
            f"that config.json describes{_and_others(left)}"
        )


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""
