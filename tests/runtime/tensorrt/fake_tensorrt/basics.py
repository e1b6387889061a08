"""Shapes, bytes and loggers."""

import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, overload


class Dims:
    """A shape. It is no tuple, has no hash, and is compared with tuples and lists only, as the real one."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._shape = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return len(self._shape)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "Dims": ...
    def __getitem__(self, index: Any) -> Any:
        return Dims(self._shape[index]) if isinstance(index, slice) else self._shape[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError(f"__eq__(): incompatible function arguments: {type(other).__name__}")
        return self._shape == tuple(other)

    def __repr__(self) -> str:
        return repr(self._shape)


class IHostMemory(bytes):
    """Has a buffer and a size; no length and no elements, as the real one."""

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __iter__(self) -> Any:
        raise TypeError("'IHostMemory' object is not iterable")

    def __getitem__(self, index: object) -> Any:
        raise TypeError("'IHostMemory' object is not subscriptable")


class _Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Somebody derives from it and says what becomes of messages."""

    Severity = _Severity
    INTERNAL_ERROR = _Severity.INTERNAL_ERROR
    ERROR = _Severity.ERROR
    WARNING = _Severity.WARNING
    INFO = _Severity.INFO
    VERBOSE = _Severity.VERBOSE

    def __init__(self) -> None:
        self._is_made = True

    def log(self, severity: _Severity, msg: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """Writes to the standard error what is severe enough."""

    def __init__(self, min_severity: _Severity = _Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: _Severity, msg: str) -> None:
        if severity.value <= self.min_severity.value:
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)
