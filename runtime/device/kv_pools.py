"""The KV pools of a rank: how many blocks they have, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precast.checkpoints.engine_kv import KvCacheSpec, kv_memories, kv_page_bytes
from precast.checkpoints.engine_manifest import EngineManifest
from precast.runtime.device.device import Device
from precast.runtime.errors import ErrorCode, NativeError

FREE_MEMORY_FRACTION = 0.9
"""Of what is left when the network is loaded: what KV pools take where nobody says how much. The rest is for what the
driver and other processes still need."""
MAX_BLOCKS = (1 << 30) - 1
"""What the library takes."""


@dataclass(frozen=True)
class KvPools:
    """Device memory. Pools have one block more than `num_blocks`, which belongs to nobody.

    Attributes:
        shapes: By the names of inputs.
        addresses: By the names of inputs, and of outputs that are the same memory.
    """

    num_blocks: int
    shapes: Mapping[str, tuple[int, ...]]
    addresses: Mapping[str, int]

    def release(self, device: Device) -> None:
        """Give their memory back. Nothing may be using it."""
        for address in dict.fromkeys(self.addresses.values()):
            device.release(address)


def count_blocks(device: Device, manifest: EngineManifest, rank: int, kv_cache_bytes: int) -> int:
    """How many KV blocks there are: as many as all ranks are to have, or as this one has room for now.

    Args:
        kv_cache_bytes: Over all ranks; 0: what is free.

    Raises:
        NativeError: there is not enough for one.
    """
    page_bytes = kv_page_bytes(manifest.ranks[rank].kv_caches)
    total_bytes = sum(kv_page_bytes(each.kv_caches) for each in manifest.ranks)
    if total_bytes == 0:
        return 1
    if kv_cache_bytes:
        if kv_cache_bytes < total_bytes:
            raise NativeError(
                ErrorCode.RESOURCE_EXHAUSTED,
                f"kv_cache_bytes is {kv_cache_bytes}, and a KV block of all ranks takes {total_bytes}: give at least "
                "that",
            )
        return min(kv_cache_bytes // total_bytes, MAX_BLOCKS)
    if page_bytes == 0:  # a stage without attention takes as many as the others have
        return MAX_BLOCKS
    free = device.free_bytes()
    blocks = int(FREE_MEMORY_FRACTION * free) // page_bytes - 1
    if blocks < 1:
        raise NativeError(
            ErrorCode.RESOURCE_EXHAUSTED,
            f"{device.name}: {free} bytes of memory are free when the network is loaded, and a KV block takes "
            f"{page_bytes}: free some, or use a GPU with more",
        )
    return min(blocks, MAX_BLOCKS)


def allocate_pools(device: Device, caches: Sequence[KvCacheSpec], num_blocks: int) -> KvPools:
    """Pools of these caches, of zeros.

    Raises:
        NativeError: there is not enough memory.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    addresses: dict[str, int] = {}
    for sharing in kv_memories(caches):
        block_bytes = caches[sharing[0]].block_bytes
        address = device.allocate((num_blocks + 1) * block_bytes, "the KV cache")
        # What is never written is multiplied by weights of 0, which must not meet NaN.
        device.fill(address, (num_blocks + 1) * block_bytes)
        for index in sharing:
            name = caches[index].name
            shapes[name] = (num_blocks + 1, block_bytes // 2)
            addresses[name] = addresses[f"{name}.out"] = address
    return KvPools(num_blocks, shapes, addresses)
