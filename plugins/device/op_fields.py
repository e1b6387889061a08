"""The fields of ops on a device: the builder writes them as attributes of ONNX nodes, TensorRT keeps them in plans."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = ("bfloat16", "float16")
"""Of activations."""
TRITON_TYPES = {"bfloat16": "bf16", "float16": "fp16"}
"""What Triton calls them."""

FieldType = type[int] | type[float] | type[str]
_KINDS: dict[str, FieldType] = {"int": int, "float": float, "str": str}


def field_types(of: type[Any]) -> dict[str, FieldType]:
    """Name -> type, of a dataclass of int, float and str."""
    return {field.name: _KINDS[getattr(field.type, "__name__", str(field.type))] for field in fields(of)}


def to_array(value: float | str) -> NDArray[Any]:
    """What a field of TensorRT holds: int32 [1], float32 [1], or the characters of a text, int8."""
    if isinstance(value, str):
        return np.frombuffer(value.encode("ascii"), np.int8)
    return np.array([value], np.int32 if isinstance(value, int) else np.float32)


def from_arrays(op: str, types: Mapping[str, FieldType], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The reverse, of all fields in `types`. Raises ValueError where one is missing."""
    if missing := sorted(set(types) - set(arrays)):
        raise ValueError(f"{op}: the plugin lacks its field {', '.join(missing)}")
    return {name: _from_array(kind, arrays[name]) for name, kind in types.items()}


def read_text(array: NDArray[Any]) -> str:
    """The text of a field of characters, which may end with a zero."""
    return np.asarray(array).tobytes().rstrip(b"\0").decode("ascii")


def check_dtype(op: str, dtype: str) -> None:
    """Raise ValueError for a dtype that activations do not have."""
    if dtype not in DTYPES:
        raise ValueError(f"{op}: dtype is {dtype!r}; the plugin has {', '.join(DTYPES)}")


def _from_array(kind: FieldType, array: NDArray[Any]) -> int | float | str:
    if kind.__name__ == "str":
        return read_text(array)
    values = np.asarray(array).reshape(-1)
    return int(values[0]) if kind.__name__ == "int" else float(values[0])
