"""The weight files of a checkpoint that holds one for each rank: rank0.safetensors, rank1.safetensors, ..."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from precast.checkpoints.errors import WeightFilesError
from precast.checkpoints.safetensors_file import SafetensorsFile
from precast.checkpoints.tensor_info import TensorInfo


def rank_file_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


class RankFiles:
    """The tensors of all ranks. The tensor `name` of rank 2 is called `rank2/name`.

    Reading is as with WeightFiles.

    Attributes:
        source: Their directory.
    """

    def __init__(self, directory: Path, world_size: int) -> None:
        """Open every file. Raises WeightFilesError where one is missing, or what opening a file raises."""
        self.source = directory
        paths = [directory / rank_file_name(rank) for rank in range(world_size)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise WeightFilesError(
                f"{missing[0]}: missing; config.json says that there are {world_size} ranks, of which "
                f"{len(missing)} have no file: copy the missing files"
            )
        self._files = [SafetensorsFile(path) for path in paths]
        self._infos = [file.infos() for file in self._files]

    def __contains__(self, name: str) -> bool:
        rank, tensor = self._find(name)
        return tensor in self._infos[rank]

    def names(self, rank: int) -> tuple[str, ...]:
        """The names within a rank's file."""
        return tuple(self._infos[rank])

    def path(self, rank: int) -> Path:
        return self._files[rank].path

    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files)

    def info(self, name: str) -> TensorInfo:
        rank, tensor = self._find(name)
        return self._infos[rank][tensor]

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of a mapped file. Raises UnsupportedDtypeError."""
        rank, tensor = self._find(name)
        return self._files[rank].tensor(tensor)

    def release(self, name: str) -> None:
        """Let the system take back the memory that reading a tensor made resident."""
        rank, tensor = self._find(name)
        self._files[rank].release(tensor)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _find(self, name: str) -> tuple[int, str]:
        rank, _, tensor = name.partition("/")
        return int(rank.removeprefix("rank")), tensor
