"""Any checkpoint -> a checkpoint that holds one file for each rank (rank_checkpoint.py)."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from precast.checkpoints.checkpoint import Checkpoint, RankTensors
from precast.checkpoints.companion_files import CONFIG
from precast.checkpoints.durable_files import os_errors_named, sync_directory, sync_file
from precast.checkpoints.errors import WriteError
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition, plan_partition
from precast.checkpoints.ranks.rank_checkpoint import SECTION, write_section
from precast.checkpoints.ranks.rank_files import rank_file_name
from precast.checkpoints.ranks.rank_model import RankModel, rank_model
from precast.checkpoints.safetensors_writer import write_safetensors
from precast.checkpoints.staging_directory import StagingDirectory
from precast.checkpoints.tensor_info import NUMPY_DTYPES, TensorInfo

STAGE = "writing ranks"
ConvertProgress = Callable[[str, int, int], None]
"""Called with (STAGE, bytes done, bytes in all)."""


def convert_checkpoint(
    checkpoint: Checkpoint,
    output_dir: str | os.PathLike[str],
    mapping: Mapping,
    *,
    progress: ConvertProgress | None = None,
) -> Partition:
    """Write a checkpoint of one file a rank, complete or not at all. Weights keep their dtype and their bits.

    Memory is bounded by the largest tensor, not by the model. The same checkpoint gives the same bytes.

    Args:
        checkpoint: Open; it stays the caller's to close.
        output_dir: Made by this call; must not exist, or be an empty directory.
        mapping: The numbers of ranks.
        progress: Told the bytes of tensors that are written.

    Returns:
        How the model was divided.

    Raises:
        PartitionError: the model cannot be divided so.
        WriteError: the place is taken, or a file cannot be written.
    """
    partition = plan_partition(checkpoint.config, mapping)
    target = Path(os.path.realpath(output_dir))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise WriteError(f"{output_dir}: exists already: choose another directory, or delete it first")
    try:
        staging = StagingDirectory(target)
        try:
            _write_ranks(checkpoint, partition, staging.path, progress)
            _write_companions(checkpoint, partition, staging.path)
            _sync(staging.path)
            staging.publish(replace=False)
        except BaseException:
            staging.discard()
            raise
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if error.filename else ""
        raise WriteError(f"{output_dir}: {name} cannot be written: {error.strerror}") from error
    return partition


def _write_ranks(
    checkpoint: Checkpoint, partition: Partition, directory: Path, progress: ConvertProgress | None
) -> None:
    ranks = [rank_model(checkpoint.config, partition, rank) for rank in range(partition.mapping.world_size)]
    infos = [_infos(checkpoint, rank) for rank in ranks]
    total_bytes = sum(info.nbytes for rank_infos in infos for info in rank_infos.values())
    done_bytes = 0

    def tensors(rank: RankModel, rank_infos: dict[str, TensorInfo]) -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal done_bytes
        source = RankTensors(checkpoint, rank)
        for name, info in rank_infos.items():
            yield name, source.tensor(name)
            source.release(name)
            done_bytes += info.nbytes
            if progress is not None:
                progress(STAGE, done_bytes, total_bytes)

    for rank, rank_infos in zip(ranks, infos, strict=True):
        write_safetensors(directory / rank_file_name(rank.rank), rank_infos, tensors(rank, rank_infos))


def _infos(checkpoint: Checkpoint, rank: RankModel) -> dict[str, TensorInfo]:
    """What a rank's file holds: everything but what is all zeros."""
    dtypes = {name: checkpoint.info(name).dtype for name in rank.slices}
    return {
        name: TensorInfo(dtypes[name], part.shape, prod(part.shape) * NUMPY_DTYPES[dtypes[name]].itemsize)
        for name, part in rank.slices.items()
        if not part.is_zero
    }


def _write_companions(checkpoint: Checkpoint, partition: Partition, directory: Path) -> None:
    for file in checkpoint.companion_files():
        if file.name != CONFIG:
            with os_errors_named(directory / file.name):
                shutil.copyfile(file, directory / file.name)
    config = {**checkpoint.hf_config, SECTION: write_section(checkpoint.config, partition)}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    with os_errors_named(directory / CONFIG):
        (directory / CONFIG).write_text(text, encoding="utf-8")


def _sync(directory: Path) -> None:
    directory.chmod(0o755)  # as any directory, and not only for the user who converted
    for path in sorted(directory.iterdir()):
        path.chmod(0o644)
        sync_file(path)
    sync_directory(directory)
