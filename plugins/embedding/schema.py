"""Embedding, version 1: rows of a packed weight matrix.

    y[t,h] = W[token_ids[t] - row_start, h]                    0 where is_slice, and the table has no such row

T = tokens, H = features.

Inputs
    token_ids  int32 [T]          T >= 0; each in row_start .. row_start + rows - 1, or with is_slice any
    table      uint8 [P]          W [rows, H] packed in `layout`; P = EmbeddingAttributes.table_size_bytes
Output
    y          float32 [T, H]
Attributes
    rows       int                rows of the table: the vocabulary, or a slice of it
    features   int                H
    layout     string             one of precast.plugins.layouts
    row_start  int                token id of the table's first row; >= 0
    is_slice   int                1: other ranks have the vocabulary's other rows; 0: the table has all

Ranks that have a slice each add up their outputs (AllReduce): one of them gives the row, and all others zeros.

The table has Linear's layouts, with out_features = rows and in_features = H: a tied model stores one packed tensor for
its embedding and its head.

Every value is copied: the fp32 of a bf16 weight is exact. Without is_slice a token id outside the table is an error;
nothing is clamped.
"""

from dataclasses import dataclass

from precast.plugins.domain import DOMAIN as DOMAIN
from precast.plugins.layouts import weight_layout

NAME = "Embedding"
VERSION = 1


@dataclass(frozen=True)
class EmbeddingAttributes:
    """The op's attributes. Raises ValueError where they make no sense."""

    rows: int
    features: int
    layout: str
    row_start: int = 0
    is_slice: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.features < 1:
            raise ValueError(f"Embedding: rows is {self.rows} and features {self.features}; both must be positive")
        weight_layout(self.layout)
        if self.row_start < 0 or self.is_slice not in (0, 1):
            raise ValueError(
                f"Embedding: row_start is {self.row_start}, which must be at least 0, and is_slice {self.is_slice}, "
                "which must be 0 or 1"
            )

    @property
    def table_size_bytes(self) -> int:
        """Length of the packed table."""
        return weight_layout(self.layout).packed_size(self.rows, self.features)
