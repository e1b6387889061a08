"""A tiny world for PagedAttention's device kernels: one step over sequences in a poisoned pool, run by both sides.

Kernels run in Triton's interpreter where the environment holds TRITON_INTERPRET=1, else on a GPU.
"""

import importlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.plugins.paged_attention.device.kernels import kernel_specs
from precast.plugins.paged_attention.device.launches import StepShape, launches, workspace
from precast.plugins.paged_attention.reference import ELEMENT_TYPES, KvPool, paged_attention
from precast.plugins.paged_attention.schema import PagedAttentionAttributes

Float32 = NDArray[np.float32]


@dataclass
class Sequence:
    """`rows` tokens of this step end a context of this length; the first `shared_blocks` blocks are sequence 0's."""

    context_length: int
    rows: int = 1
    shared_blocks: int = 0

    @property
    def start(self) -> int:
        """The position of its first row."""
        return self.context_length - self.rows


@dataclass
class World:
    """Inputs of one step. Everything that no row may see is NaN; `qkv` may be changed before a run."""

    op: PagedAttentionAttributes
    sequences: list[Sequence]
    rotary_dim: int = 0
    num_frequencies: int = 1
    has_norm: bool = False
    seed: int = 0
    sinks: Float32 | None = None
    qkv: NDArray[Any] = field(init=False)
    kv: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        op, generator = self.op, np.random.default_rng(self.seed)
        self.element_type = ELEMENT_TYPES[op.kv_layout]
        self.starts = np.cumsum([0, *(s.rows for s in self.sequences)]).astype(np.int32)
        self.lengths = np.array([s.context_length for s in self.sequences], np.int32)
        self.num_tokens = int(self.starts[-1])
        self.qkv = generator.standard_normal((self.num_tokens, op.qkv_features)).astype(self.element_type)
        self.inv_freq = self.q_norm = self.k_norm = None
        if self.rotary_dim:
            frequencies = np.geomspace(1, 1e-3, self.rotary_dim // 2)
            self.inv_freq = (frequencies / np.arange(1, self.num_frequencies + 1)[:, None]).astype(np.float32)
        if self.has_norm:
            self.q_norm, self.k_norm = generator.uniform(0.5, 1.5, (2, op.head_dim)).astype(np.float32)
        self._make_tables(generator)
        self._fill_pool(generator)

    def _make_tables(self, generator: np.random.Generator) -> None:
        per_block = self.op.tokens_per_block
        seen = [
            range(self.op.first_visible(s.start) // per_block, -(-s.context_length // per_block))
            for s in self.sequences
        ]
        self.num_blocks = sum(len(blocks) for blocks in seen) + 2
        ids = iter(generator.permutation(self.num_blocks))
        self.tables = np.full((len(seen), max(blocks.stop for blocks in seen) + 1), -1, np.int32)
        for s, blocks in enumerate(seen):
            self.tables[s, blocks.start : blocks.stop] = [next(ids) for _ in blocks]
            shared = self.sequences[s].shared_blocks
            self.tables[s, :shared] = self.tables[0, :shared]

    def _fill_pool(self, generator: np.random.Generator) -> None:
        self.kv = np.full((self.num_blocks, self.op.block_bytes), 0xFF, np.uint8)  # NaNs, in both types
        pool = KvPool(self.kv, self.op)
        for s, sequence in enumerate(self.sequences):
            shared = sequence.shared_blocks * self.op.tokens_per_block
            for position in range(max(shared, self.op.first_visible(sequence.start)), sequence.start):
                k, v = generator.standard_normal((2, self.op.num_kv_heads, self.op.head_dim)).astype(np.float32)
                pool.write(self.tables[s], position, k, v)

    def pool_elements(self, kv: NDArray[np.uint8]) -> NDArray[Any]:
        """A view of the pool: [block, KV head, K or V, token, dim]."""
        op = self.op
        return kv.view(self.element_type).reshape(-1, op.num_kv_heads, 2, op.tokens_per_block, op.head_dim)

    def positions(self, *, written: bool) -> NDArray[np.bool_]:
        """[block, token]: those that this step writes, or those that some row of it sees."""
        found = np.zeros((self.num_blocks, self.op.tokens_per_block), bool)
        for s, sequence in enumerate(self.sequences):
            first = sequence.start if written else self.op.first_visible(sequence.start)
            for position in range(first, sequence.context_length):
                block, token = divmod(position, self.op.tokens_per_block)
                found[self.tables[s, block], token] = True
        return found

    def reference(self) -> tuple[Float32, NDArray[np.uint8]]:
        """The reference's output [T, Hq * D], and the pool after it."""
        kv = self.kv.copy()
        qkv = self.qkv.astype(np.float32)
        indices = (self.starts, self.lengths, self.tables)
        optional = (self.inv_freq, self.q_norm, self.k_norm, self.sinks)
        return paged_attention(qkv, *indices, kv, self.op, *optional), kv

    def device(
        self, largest: StepShape | None = None, *, written_by_reference: bool = False
    ) -> tuple[Float32, NDArray[np.uint8]]:
        """The kernels' output and the pool. Every access is checked; the workspace may be one for larger shapes.

        The interpreter takes longest for the write kernel; where there is nothing to norm or rotate, phase 1 may be the
        reference's.
        """
        op, shape = self.op, StepShape(self.num_tokens, len(self.sequences), self.tables.shape[1])
        kv = self.reference()[1] if written_by_reference else self.kv.copy()
        output = np.full((self.num_tokens, op.num_heads * op.head_dim), np.nan, self.element_type)
        inputs = {"qkv": self.qkv, "query_starts": self.starts, "context_lengths": self.lengths}
        inputs["block_tables"] = self.tables
        if self.inv_freq is not None:
            inputs["inv_freq"] = self.inv_freq
        if self.q_norm is not None and self.k_norm is not None:
            inputs |= {"q_norm": self.q_norm, "k_norm": self.k_norm}
        if self.sinks is not None:
            inputs["sinks"] = self.sinks
        is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        runner: Any = importlib.import_module(f"tests.plugins.device_{'interpreter' if is_interpreted else 'gpu'}")
        memory = runner.Memory()
        for name, array in inputs.items():
            # Tables have entries that must not even be read.
            memory.add(name, array, readable=array >= 0 if name == "block_tables" else True)
        memory.add("output", output, writable=True)
        pool = self.pool_elements(kv)
        shown, written = (
            np.broadcast_to(self.positions(written=is_write)[:, None, None, :, None], pool.shape)
            for is_write in (False, True)
        )
        memory.add("kv", pool, readable=shown, writable=written)
        arrays = {**inputs, "kv": pool, "output": output}
        bytes_ = np.full(workspace(op, largest or shape).size_bytes, 0xFF, np.uint8)
        for region in workspace(op, shape).regions:
            dtype = self.element_type if region.name == "queries" else np.float32
            arrays[region.name] = bytes_[region.offset : region.offset + region.size_bytes].view(dtype)
            memory.add(region.name, arrays[region.name], readable=True, writable=True)
        num_frequencies, has_sinks = self.num_frequencies if self.rotary_dim else 0, self.sinks is not None
        specs = kernel_specs(op, self.rotary_dim, num_frequencies, self.has_norm, has_sinks)
        steps = launches(op, shape, self.inv_freq is not None, self.has_norm, has_sinks)
        if written_by_reference:
            assert self.inv_freq is None
            assert self.q_norm is None
            arrays["queries"][:] = self.qkv[:, : op.num_heads * op.head_dim].reshape(-1)
            steps = steps[1:]
        runner.run(steps, specs, arrays, memory)
        return output.astype(np.float32), kv
