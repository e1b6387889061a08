"""Embedding, version 1: rows of a packed weight matrix.

    y[t,h] = W[token_ids[t],h]

T = tokens, H = features.

Inputs
    token_ids  int32 [T]          T >= 0; each in 0 .. rows - 1
    table      uint8 [P]          W [rows, H] packed in `layout`; P = EmbeddingAttributes.table_size_bytes
Output
    y          float32 [T, H]
Attributes
    rows       int                the vocabulary
    features   int                H
    layout     string             one of precast.plugins.layouts

The table has Linear's layouts, with out_features = rows and in_features = H: a tied model stores one packed tensor for
its embedding and its head.

Every value is copied: the fp32 of a bf16 weight is exact. A token id outside the table is an error; nothing is clamped.
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

    def __post_init__(self) -> None:
        if self.rows < 1 or self.features < 1:
            raise ValueError(f"Embedding: rows is {self.rows} and features {self.features}; both must be positive")
        weight_layout(self.layout)

    @property
    def table_size_bytes(self) -> int:
        """Length of the packed table."""
        return weight_layout(self.layout).packed_size(self.rows, self.features)
