"""How the weight matrices of `Linear` and `Embedding` lie in memory.

A weight matrix W has N rows (out_features) and K columns (in_features). A packed one is cut into tiles of 16 output
features. Tile t holds rows 16t .. 16t+15 in 64-byte lines, in ascending order of k, and the tiles follow one another:

    x16k1.f32/1    line k of a tile:   W[16t, k]  W[16t+1, k]  ...  W[16t+15, k]
                                       16 fp32

    x16k2.bf16/1   line p of a tile:   W[16t, 2p] W[16t, 2p+1]  W[16t+1, 2p] W[16t+1, 2p+1]  ...  W[16t+15, 2p+1]
                                       16 pairs of bf16; a pair is two consecutive inputs of one output

N is padded to a multiple of 16, and K to a multiple of the inputs per line, with zeros. Numbers are little-endian.
The packed tensor is a flat array of bytes and is to start at a multiple of 64 bytes.

Where the library that runs a matrix product decides itself how weights lie, as TensorRT does, they are handed over as
they are, and a backend's lowering makes a plain tensor [N, K] of them:

    dense.bf16/1, dense.f16/1      W [N][K], row-major, without padding; bfloat16 or float16
"""

from dataclasses import dataclass
from typing import Literal

TILE_OUTPUTS = 16
LINE_BYTES = 64


@dataclass(frozen=True)
class WeightLayout:
    """One of the layouts above.

    `name` is the versioned id that engines carry. `inputs_per_line` is how many consecutive inputs of one output lie
    side by side in a line.
    """

    name: str
    dtype: Literal["float32", "bfloat16"]
    inputs_per_line: int

    def num_tiles(self, out_features: int) -> int:
        """Tiles of 16 output features, the last one padded."""
        return -(-out_features // TILE_OUTPUTS)

    def lines_per_tile(self, in_features: int) -> int:
        """64-byte lines of one tile."""
        return -(-in_features // self.inputs_per_line)

    def packed_size(self, out_features: int, in_features: int) -> int:
        """Bytes of a packed matrix. Raises ValueError where a dimension is not positive."""
        _check_matrix(out_features, in_features)
        return self.num_tiles(out_features) * self.lines_per_tile(in_features) * LINE_BYTES


@dataclass(frozen=True)
class DenseLayout:
    """One of the layouts without tiles."""

    name: str
    dtype: Literal["bfloat16", "float16"]

    def packed_size(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix. Raises ValueError where a dimension is not positive."""
        _check_matrix(out_features, in_features)
        return out_features * in_features * 2


def _check_matrix(out_features: int, in_features: int) -> None:
    if out_features < 1 or in_features < 1:
        raise ValueError(
            f"a weight matrix of out_features={out_features}, in_features={in_features} has nothing to pack"
        )


X16K1_F32 = WeightLayout("x16k1.f32/1", "float32", 1)
X16K2_BF16 = WeightLayout("x16k2.bf16/1", "bfloat16", 2)
DENSE_BF16 = DenseLayout("dense.bf16/1", "bfloat16")
DENSE_F16 = DenseLayout("dense.f16/1", "float16")

WEIGHT_LAYOUTS: dict[str, WeightLayout | DenseLayout] = {
    layout.name: layout for layout in (X16K1_F32, X16K2_BF16, DENSE_BF16, DENSE_F16)
}


CPU_WEIGHT_LAYOUTS = tuple(name for name, layout in WEIGHT_LAYOUTS.items() if isinstance(layout, WeightLayout))
"""Those that the CPU kernels read."""


def weight_layout(name: str) -> WeightLayout | DenseLayout:
    """The layout with this id. Raises ValueError that lists the known ones."""
    try:
        return WEIGHT_LAYOUTS[name]
    except KeyError:
        known = ", ".join(WEIGHT_LAYOUTS)
        raise ValueError(f"unknown weight layout {name!r}; this version knows {known}") from None
