"""The weight files of a checkpoint directory as one set of tensors, by the names that the files use."""

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from precast.checkpoints.errors import DuplicateTensorError, WeightFilesError
from precast.checkpoints.json_object import read_json_file
from precast.checkpoints.safetensors_file import SafetensorsFile
from precast.checkpoints.tensor_info import TensorInfo
from precast.checkpoints.torch_file import TorchFile

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
STRAY_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


class WeightFile(Protocol):
    """One file of tensors. Arrays are read-only and outlive `close`."""

    path: Path

    def infos(self) -> dict[str, TensorInfo]: ...
    def tensor(self, name: str) -> NDArray[Any]: ...
    def release(self, name: str) -> None: ...
    def close(self) -> None: ...


class WeightFiles:
    """The tensors of a directory, in one file or in shards.

    Attributes:
        source: The file, or the index of the shards.
    """

    def __init__(self, directory: Path) -> None:
        """Open the first that exists of the names that transformers writes, in its order.

        Raises WeightFilesError, DuplicateTensorError, or what opening a file raises.
        """
        self._file_of: dict[str, WeightFile] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._files: list[WeightFile] = []
        paths, index = _weight_paths(directory)
        self.source = index or paths[0]
        for path in paths:
            self._add(SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path))
        if index is not None:
            self._check_index(index)

    def _add(self, file: WeightFile) -> None:
        self._files.append(file)
        for name, info in file.infos().items():
            if name in self._file_of:
                raise DuplicateTensorError(f"{name} is in both {self._file_of[name].path} and {file.path}")
            self._file_of[name] = file
            self._infos[name] = info

    def _check_index(self, index: Path) -> None:
        for name, file_name in read_json_file(index)["weight_map"].items():
            if name not in self or self.path_of(name).name != file_name:
                raise WeightFilesError(f"{index}: says that {name} is in {file_name}, which does not hold it")

    def names(self) -> tuple[str, ...]:
        return tuple(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def info(self, name: str) -> TensorInfo:
        return self._infos[name]

    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in the order of their names."""
        return tuple(file.path for file in self._files)

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name].path

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of a mapped file. Raises UnsupportedDtypeError."""
        return self._file_of[name].tensor(name)

    def release(self, name: str) -> None:
        """Let the system take back the memory that reading a tensor made resident."""
        self._file_of[name].release(name)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _weight_paths(directory: Path) -> tuple[list[Path], Path | None]:
    """The files to open: one and no index, or every shard that an index names and the index."""
    for name in (SAFETENSORS, TORCH):
        if (directory / name).is_file():
            return [directory / name], None
        index = directory / (name + INDEX_SUFFIX)
        if index.is_file():
            return _shards(index), index
    found = sorted(path.name for path in directory.iterdir() if path.suffix in STRAY_SUFFIXES)
    raise WeightFilesError(
        f"{directory}: no weights: expected {SAFETENSORS} or {TORCH}, or either with {INDEX_SUFFIX} and shards; "
        f"found {', '.join(found) or 'no weight files'}"
    )


def _shards(index: Path) -> list[Path]:
    """The files that `index` names, in the order of their names, checked to be there."""
    weight_map = read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightFilesError(f"{index}: 'weight_map' must be an object that maps tensors to files")
    for tensor, name in weight_map.items():
        # A checkpoint is data from elsewhere: it does not choose which files of this machine are opened.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise WeightFilesError(f"{index}: {tensor} is said to be in {name!r}, which is no name of a weight file")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightFilesError(
            f"{index}: names {missing[0]}, which is not in the directory"
            + (f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else "")
            + "; download the missing files"
        )
    return [index.parent / name for name in names]
