"""PyTorch's pickled weight files (`pytorch_model.bin`), opened through PyTorch.

Only tensors are unpickled (`weights_only=True`): a file cannot run code. Files of PyTorch 1.6 and later are
mapped; older ones have no layout that can be and are read into memory whole.
"""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from precast.checkpoints.errors import CorruptFileError, MissingDependencyError, UnsupportedDtypeError, first_line
from precast.checkpoints.tensor_info import NUMPY_DTYPES, TensorInfo

LOAD_ERRORS = (
    pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError,
    ValueError, LookupError, TypeError, AttributeError, AssertionError,
)  # fmt: skip
"""What torch.load raises for damaged files: most of these come out of the unpickler as they are."""


class TorchFile:
    """One opened file. Raises MissingDependencyError without PyTorch, CorruptFileError if that cannot read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load(path)

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor of the file."""
        return {
            name: TensorInfo(_dtype_name(tensor), tuple(tensor.shape), tensor.numel() * tensor.element_size())
            for name, tensor in self._tensors.items()
        }

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view; a copy only if the tensor is not contiguous in the file.

        Raises UnsupportedDtypeError for other dtypes than float32, bfloat16 and float16.
        """
        import torch

        tensor = self._tensors[name]
        dtype = NUMPY_DTYPES.get(_dtype_name(tensor))
        if dtype is None:
            raise UnsupportedDtypeError(
                f"{self.path}: {name} is stored as {_dtype_name(tensor)}, which is not supported"
            )
        integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]  # PyTorch gives NumPy no bfloat16
        array: NDArray[Any] = tensor.detach().contiguous().view(integers).numpy().view(dtype)
        array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        """Nothing: PyTorch owns the mapping."""

    def close(self) -> None:
        """Forget the tensors; arrays that `tensor` returned stay valid."""
        self._tensors = {}


def _load(path: Path) -> dict[str, Any]:
    """The tensors of a file by name. Entries that are no tensors are refused."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading .bin files needs PyTorch: pip install torch, or use a checkpoint in safetensors format"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except LOAD_ERRORS as error:
        raise CorruptFileError(f"{path}: PyTorch cannot read it: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CorruptFileError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor")
    return content


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
