"""The part of `precast inspect` about memory: what each rank takes, and what fits where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from precast.cli.engine_memory import (
    DEFAULT_MAX_BATCH_SIZE,
    RESERVE_DIVISOR,
    HostFit,
    KvBlockCounts,
    MemoryFit,
    RankMemory,
    Share,
    fit_host,
    fit_memory,
    smallest_memory,
)
from precast.cli.memory_size import format_memory_size
from precast.cli.output import format_bytes, print_table

DEFAULT_MEMORY_BYTES = tuple(size << 30 for size in (8, 16, 24, 32, 48, 80, 141))
"""Of devices that are in use; ascending."""


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """What `precast inspect` says about memory."""

    ranks: list[RankMemory]
    blocks: KvBlockCounts
    fits: list[MemoryFit]
    """Of devices with one rank each, a size of device each."""
    smallest_memory_bytes: int
    """Of a device, for one sequence of max_seq_len tokens."""
    host: HostFit | None
    """None where this host does not say how much memory it has."""
    asked: bool
    """Whether the user has chosen the sizes."""

    def to_json(self) -> dict[str, Any]:
        """All facts in bytes, tokens and sequences; also for sizes that `print` leaves out."""
        host = self.host
        return {
            "ranks": [dataclasses.asdict(rank) for rank in self.ranks],
            "fits": [dataclasses.asdict(fit) for fit in self.fits],
            "smallest_memory_bytes": self.smallest_memory_bytes,
            "host": host
            and {
                **dataclasses.asdict(host.fit),
                "weights_bytes": host.weights_bytes,
                "default_kv_cache_bytes": host.default_kv_cache_bytes,
            },
        }

    def print(self) -> None:
        print("\nranks")
        print_table(_rank_rows(self.ranks), indent="  ")
        where = "one device for each rank" if len(self.ranks) > 1 else "one device"
        reserve = f"{100 // RESERVE_DIVISOR}% of its memory is left to activations and the backend"
        print(f"\nwhat fits where: {where}; {reserve}")
        shown = self.fits if self.asked else worth_showing(self.fits)
        print_table(_fit_rows(shown, self.blocks, is_one_rank=len(self.ranks) == 1), indent="  ")
        for sentence in self._sentences(shown):
            print(f"  {sentence}")

    def _sentences(self, shown: Sequence[MemoryFit]) -> list[str]:
        sequence = f"one sequence of {self.blocks.max_seq_len} tokens"
        sentences = [f"The smallest device for {sequence} has {format_memory_size(self.smallest_memory_bytes)}."]
        if shown[-1] != self.fits[-1]:
            batch = f"{DEFAULT_MAX_BATCH_SIZE} sequences (max_batch_size)"
            sentences.append(f"What runs at once by default, {batch}, fits larger devices too.")
        if any(self.blocks.windows):
            sentences.append(
                "Of a sequence, a layer with a window keeps the window and what is computed before blocks are given "
                f"back, by default {self.blocks.max_step_tokens} tokens (max_num_tokens)."
            )
        return sentences + (_host_sentences(self.host, self.blocks) if self.host is not None else [])


def report_memory(
    ranks: list[RankMemory], blocks: KvBlockCounts, asked: Sequence[int], available: int | None
) -> MemoryReport:
    """`asked`: bytes of devices, in place of the usual ones unless empty; `available`: bytes of this host, if known."""
    shares = [Share.of([rank]) for rank in ranks]
    return MemoryReport(
        ranks=ranks,
        blocks=blocks,
        fits=[fit_memory(size, shares, blocks) for size in asked or DEFAULT_MEMORY_BYTES],
        smallest_memory_bytes=smallest_memory(shares, blocks, blocks.max_seq_len),
        host=None if available is None else fit_host(available, ranks, blocks),
        asked=bool(asked),
    )


def worth_showing(fits: Sequence[MemoryFit]) -> Sequence[MemoryFit]:
    """Of ascending sizes those that tell an operator something.

    1. The largest that is too small, so that the limit is seen.
    2. Those from there up to the first one that holds max_batch_size sequences: what larger ones hold besides can only
       keep prefixes for later requests.
    """
    first = next((i for i, fit in enumerate(fits) if fit.missing_bytes == 0), len(fits))
    last = next((i for i, fit in enumerate(fits) if i >= first and _holds_a_batch(fit)), len(fits))
    return fits[max(0, first - 1) : last + 1]


def _holds_a_batch(fit: MemoryFit) -> bool:
    return fit.sequences_of_max_seq_len is None or fit.sequences_of_max_seq_len >= DEFAULT_MAX_BATCH_SIZE


def _rank_rows(ranks: Sequence[RankMemory]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        ("rank", "stage", "tensor rank", "layers", "weights", "graph", "KV cache", "", "")
    ]
    rows += [(str(rank.rank), rank.stage, rank.tensor_rank, _ranges(rank.layers), *_sizes([rank])) for rank in ranks]
    if len(ranks) > 1:
        rows.append(("total", "", "", "", *_sizes(ranks)))
    return rows


def _sizes(ranks: Sequence[RankMemory]) -> tuple[str, ...]:
    """Weights, graph, and of the KV cache a block and a token, of `ranks` together."""
    block_bytes = sum(rank.kv_block_bytes for rank in ranks)
    token_bytes = sum(rank.kv_bytes_per_token for rank in ranks)
    window_bytes = sum(rank.kv_bytes_per_token_in_windows for rank in ranks)
    per_token = [f"{format_bytes(token_bytes)} a token"] if token_bytes else []
    per_token += [f"{format_bytes(window_bytes)} a token in windows"] if window_bytes else []
    return (
        format_bytes(sum(rank.weights_bytes for rank in ranks)),
        format_bytes(sum(rank.graph_bytes for rank in ranks)),
        f"{format_bytes(block_bytes)} a block" if block_bytes else "none",
        *per_token,
        *[""] * (2 - len(per_token)),
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-3, 5; "none" without any."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in ranges) or "none"


def _fit_rows(fits: Sequence[MemoryFit], blocks: KvBlockCounts, *, is_one_rank: bool) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [("memory", "KV cache tokens", f"sequences of {blocks.max_seq_len}", "")]
    for fit in fits:
        has_cache = fit.missing_bytes == 0 and fit.kv_cache_tokens is not None
        numbers = (fit.kv_cache_tokens, fit.sequences_of_max_seq_len) if has_cache else ("", "")
        where = "" if is_one_rank else f" on rank {fit.tightest_ranks[0]}"
        rows.append((format_memory_size(fit.memory_bytes), *numbers, _room(fit) + where))
    return rows


def _room(fit: MemoryFit) -> str:
    if not fit.weights_fit:
        return f"does not fit: {format_memory_size(fit.missing_bytes)} are missing"
    if fit.missing_bytes:
        return f"does not fit beside a KV cache: {format_memory_size(fit.missing_bytes)} are missing"
    if fit.kv_cache_tokens is None:
        return "fits"
    return f"{format_memory_size(fit.free_for_kv_cache_bytes)} for the KV cache"


def _host_sentences(host: HostFit, blocks: KvBlockCounts) -> list[str]:
    fit, num_ranks = host.fit, len(host.fit.tightest_ranks)
    who = f"all {num_ranks} ranks" if num_ranks > 1 else "the engine"
    intro = (
        f"This host, {format_memory_size(fit.memory_bytes)} available, for {who} with weights of "
        f"{format_memory_size(host.weights_bytes)}: {_room(fit)}"
    )
    if fit.missing_bytes or fit.kv_cache_tokens is None:
        return [f"{intro}."]
    default = f"Without kv_cache_bytes, {format_memory_size(host.default_kv_cache_bytes)} of it are taken"
    too_much = f", too much: give kv_cache_bytes={fit.free_for_kv_cache_bytes} or less"
    return [
        f"{intro}, {fit.kv_cache_tokens} tokens, {fit.sequences_of_max_seq_len} sequences of {blocks.max_seq_len}.",
        default + (too_much if host.default_kv_cache_bytes > fit.free_for_kv_cache_bytes else "") + ".",
    ]
