"""The fields of the op on a device: the op's attributes, which of its optional inputs there are, and its kernels.

The builder writes them as attributes of the ONNX node, but for the kernels; TensorRT keeps them all in the plan.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from precast.plugins.device.kernel_sets import KERNELS as KERNELS
from precast.plugins.device.kernel_sets import KERNELS_SHA256 as KERNELS_SHA256
from precast.plugins.device.op_fields import FieldType, field_types, from_arrays, to_array
from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS, PagedAttentionAttributes

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
        return {name: to_array(value) for name, value in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "PluginFields":
        """The reverse. Raises ValueError where a field is missing, or an attribute makes no sense."""
        return fields_from_values(from_arrays("PagedAttention", FIELD_TYPES, arrays))


_OWN_FIELDS = ("rotary_dim", "num_frequencies", "has_qk_norm", "has_sinks")
FIELD_TYPES: dict[str, FieldType] = field_types(PagedAttentionAttributes) | dict.fromkeys(_OWN_FIELDS, int)
"""Every field that a node must have, and its type."""


def fields_from_values(values: Mapping[str, Any]) -> PluginFields:
    """From the values of FIELD_TYPES. Raises ValueError where an attribute makes no sense."""
    attributes = {name: values[name] for name in FIELD_TYPES if name not in _OWN_FIELDS}
    rotary_dim, num_frequencies, has_qk_norm, has_sinks = (int(values[name]) for name in _OWN_FIELDS)
    return PluginFields(
        PagedAttentionAttributes(**attributes), rotary_dim, num_frequencies, bool(has_qk_norm), bool(has_sinks)
    )
