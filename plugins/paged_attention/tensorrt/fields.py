"""The fields of the plugin: the op's attributes, which of its optional inputs there are, and its kernels.

The builder writes them as attributes of the ONNX node, but for the kernels; TensorRT keeps them all in the plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS, PagedAttentionAttributes

PLUGIN_NAMESPACE = "precast"
KERNELS = "kernels"
"""Of one plugin of each set of kernels: the bytes of plugins/device. The others name the set."""
KERNELS_SHA256 = "kernels_sha256"

NUM_REQUIRED_INPUTS = 5
POOL = 4
"""The input that is written in place: output 1 is the same memory."""
HALF_INPUTS = (0, POOL)
"""qkv and the pool, of 16 bits, as the outputs are. Inputs 1 to 3 are int32, those behind the pool float32."""


@dataclass(frozen=True)
class PluginFields:
    """What a plugin is made of.

    Attributes:
        rotary_dim: Twice the columns of the input inv_freq, which follows the required ones; 0: there is none.
        num_frequencies: Its rows.
        has_qk_norm: Whether q_norm and k_norm follow these.
        has_sinks: Whether sinks follow these.
    """

    attributes: PagedAttentionAttributes
    rotary_dim: int
    num_frequencies: int
    has_qk_norm: bool
    has_sinks: bool

    def __post_init__(self) -> None:
        if self.attributes.kv_layout not in DEVICE_KV_LAYOUTS:
            raise ValueError(
                f"PagedAttention: kv_layout is {self.attributes.kv_layout}; "
                f"the plugin has {', '.join(DEVICE_KV_LAYOUTS)}"
            )

    @property
    def num_inputs(self) -> int:
        return NUM_REQUIRED_INPUTS + self.has_rope + 2 * self.has_qk_norm + self.has_sinks

    @property
    def has_rope(self) -> bool:
        return self.rotary_dim > 0

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Name -> what a field of TensorRT holds: int32 [1], float32 [1], or the characters of a text."""
        values = asdict(self.attributes) | {
            "rotary_dim": self.rotary_dim,
            "num_frequencies": self.num_frequencies,
            "has_qk_norm": int(self.has_qk_norm),
            "has_sinks": int(self.has_sinks),
        }
        return {name: _to_array(value) for name, value in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "PluginFields":
        """The reverse. Raises ValueError where a field is missing, or an attribute makes no sense."""
        if missing := sorted(set(FIELD_TYPES) - set(arrays)):
            raise ValueError(f"PagedAttention: the plugin lacks its field {', '.join(missing)}")
        values: dict[str, Any] = {name: _from_array(kind, arrays[name]) for name, kind in FIELD_TYPES.items()}
        rest = [values.pop(name) for name in _OWN_FIELDS]
        return cls(PagedAttentionAttributes(**values), int(rest[0]), int(rest[1]), bool(rest[2]), bool(rest[3]))


_OWN_FIELDS = ("rotary_dim", "num_frequencies", "has_qk_norm", "has_sinks")


def _field_types() -> Iterable[tuple[str, type[int] | type[float] | type[str]]]:
    kinds: dict[str, type[int] | type[float] | type[str]] = {"int": int, "float": float, "str": str}
    for field in fields(PagedAttentionAttributes):
        yield field.name, kinds[getattr(field.type, "__name__", str(field.type))]
    for name in _OWN_FIELDS:
        yield name, int


FIELD_TYPES = dict(_field_types())
"""Every field that a node must have, and its type."""


def read_text(array: NDArray[Any]) -> str:
    """The text of a field of characters, which may end with a zero."""
    return np.asarray(array).tobytes().rstrip(b"\0").decode("ascii")


def _to_array(value: float | str) -> NDArray[Any]:
    if isinstance(value, str):
        return np.frombuffer(value.encode("ascii"), np.int8)
    return np.array([value], np.int32 if isinstance(value, int) else np.float32)


def _from_array(kind: type[int] | type[float] | type[str], array: NDArray[Any]) -> int | float | str:
    if kind.__name__ == "str":
        return read_text(array)
    values = np.asarray(array).reshape(-1)
    return int(values[0]) if kind.__name__ == "int" else float(values[0])
