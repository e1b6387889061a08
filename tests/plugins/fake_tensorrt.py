"""The few classes of TensorRT's Python module that a plugin derives from and answers with, without TensorRT."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class PluginFieldType(Enum):
    INT8, INT32, FLOAT32, CHAR = range(4)


class TensorFormat(Enum):
    LINEAR, CHW32 = range(2)


class IPluginV3:
    pass


class IPluginV3OneCore:
    pass


class IPluginV3OneBuildV2:
    pass


class IPluginV3OneRuntime:
    pass


class IPluginCreatorV3One:
    pass


@dataclass
class PluginField:
    name: str
    data: Any
    type: PluginFieldType


class PluginFieldCollection(list[PluginField]):
    pass


class DimsExprs(list[Any]):
    """Of a length, or a copy."""

    def __init__(self, dims: int | Sequence[Any]) -> None:
        super().__init__([None] * dims if isinstance(dims, int) else dims)


@dataclass(frozen=True)
class Dim:
    """A dimension while a network is made: a symbol, or a constant."""

    value: int | str

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        assert isinstance(self.value, int)
        return self.value


class Exprs:
    def constant(self, value: int) -> Dim:
        return Dim(value)


@dataclass
class Desc:
    type: str
    format: TensorFormat = TensorFormat.LINEAR


@dataclass
class DynamicTensor:
    """A tensor of a profile: its description and its greatest shape."""

    desc: Desc
    max: tuple[int, ...] = ()


int32, float32, float16, bfloat16 = "int32", "float32", "float16", "bfloat16"
