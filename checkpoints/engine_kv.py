"""The KV caches of a rank and the groups they form, as engine.json describes them.

Layers whose attention has the same window form a group. Each group has a block table of its own, so that windowed
layers give blocks back that full ones keep. The pool of the j-th cache of every group is the same memory: a block
belongs to one group at a time, and holds K and V of that group's layers.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from precast.checkpoints.engine_checks import check_name, check_range
from precast.checkpoints.engine_errors import quote


@dataclass(frozen=True)
class KvGroupSpec:
    """Layers that see equally far back, and so share a block table."""

    block_tables: str
    """Of the graph input, e.g. "block_tables.0"."""
    window: int | None
    """Positions that a row sees, its own included; None: all."""

    def __post_init__(self) -> None:
        check_name("block_tables", self.block_tables)
        if self.window is not None:
            check_range("window", self.window, 1)


@dataclass(frozen=True)
class KvCacheSpec:
    """One KV pool: a graph input, uint8 [num_blocks, block_bytes]."""

    name: str
    """Of the graph input, e.g. "kv.0"."""
    layout: str
    """E.g. "kv16.bf16/1"; also listed in the manifest's `requires`."""
    block_bytes: int
    group: int
    """Index into the rank's KV groups."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("layout", self.layout)
        check_range("block_bytes", self.block_bytes, 1)
        check_range("group", self.group, 0)


def check_kv(groups: Sequence[KvGroupSpec], caches: Sequence[KvCacheSpec]) -> None:
    """Raise ValueError where groups and caches do not fit each other or docs/engine_format.md."""
    names = set[str]()
    for i, group in enumerate(groups):
        _check_new(names, f"kv_groups[{i}].block_tables", group.block_tables)
        if i > 0 and group.window is None:
            raise ValueError(f"kv_groups[{i}].window must not be null behind the first group")
        before = (groups[i - 1].window or 0) if i > 0 else 0
        if group.window is not None and group.window <= before:
            raise ValueError(f"kv_groups[{i}].window must be greater than {before} before it, got {group.window}")
    for i, cache in enumerate(caches):
        _check_new(names, f"kv_caches[{i}].name", cache.name)
        if cache.group >= len(groups):
            raise ValueError(f"kv_caches[{i}].group must be less than the {len(groups)} kv_groups, got {cache.group}")
    _check_shared_memories(caches)


def check_ranks_kv(ranks: Sequence[tuple[Sequence[KvGroupSpec], Sequence[KvCacheSpec]]]) -> None:
    """Raise ValueError where the groups and caches of all ranks do not fit each other.

    A stage of a pipeline may have no layer of some group; it gets that group's block tables all the same.
    """
    for i, (groups, _) in enumerate(ranks):
        if groups != ranks[0][0]:
            raise ValueError(f"ranks[{i}].kv_groups must equal those of ranks[0]")
    used = {cache.group for _, caches in ranks for cache in caches}
    for i in range(len(ranks[0][0])):
        if i not in used:
            raise ValueError(f"ranks[0].kv_groups[{i}] must be the group of an element of a rank's kv_caches")


def _check_new(names: set[str], field: str, name: str) -> None:
    if name in names:
        raise ValueError(f"{field} must differ from the names before it, got {quote(name)}")
    names.add(name)


def _check_shared_memories(caches: Sequence[KvCacheSpec]) -> None:
    for sharing in kv_memories(caches):
        first = caches[sharing[0]]
        for i in sharing[1:]:
            cache = caches[i]
            if (cache.layout, cache.block_bytes) != (first.layout, first.block_bytes):
                raise ValueError(
                    f"kv_caches[{i}] must have the layout and block_bytes of kv_caches[{sharing[0]}], whose memory it "
                    f"shares, {first.layout} and {first.block_bytes}, got {cache.layout} and {cache.block_bytes}"
                )


def kv_memories(caches: Sequence[KvCacheSpec]) -> list[list[int]]:
    """For each memory the indices of the caches that it serves: the j-th cache of every group, in ascending order."""
    memories: list[list[int]] = []
    num_seen: defaultdict[int, int] = defaultdict(int)
    for i, cache in enumerate(caches):
        j = num_seen[cache.group]
        num_seen[cache.group] += 1
        if j == len(memories):
            memories.append([])
        memories[j].append(i)
    return memories


def kv_page_bytes(caches: Sequence[KvCacheSpec]) -> int:
    """Bytes of one block of all memories: what one more block of a sequence takes, in whichever group."""
    return sum(caches[sharing[0]].block_bytes for sharing in kv_memories(caches))
