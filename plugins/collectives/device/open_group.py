"""Makes the group of a rank. All ranks of the engine call open_group; they agree before any of them waits in NCCL."""

from typing import Any

from precast.plugins.collectives.device import nccl
from precast.plugins.collectives.device.group import GroupError
from precast.plugins.collectives.device.messages import join_texts, split_texts
from precast.plugins.collectives.device.nccl_group import Exchange, NcclGroup
from precast.plugins.collectives.device.peer_memory import open_peer_memory

DEFAULT_TIMEOUT_S = 60.0
"""How long a sum waits for a rank: what the runtime's rank_timeout_s is by default."""


def open_group(
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    rank: int,
    exchange: Exchange,
    *,
    driver: Any = None,
    library: Any = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> NcclGroup:
    """The group of rank `rank`, when all ranks have called this.

    The primary context of this rank's device must be current, now and whenever the group is used: NCCL finds the device
    by it.

    Args:
        exchange: Gives every rank's bytes to every rank, in the order of ranks. Called three times; once where
            tensor_parallel_size is 1, or a rank cannot take part.
        driver: cuda.bindings.driver, if it is not that.
        library: NCCL, if it is not the one that load_nccl finds.
        timeout_s: How long a one-shot sum waits for a rank.

    Raises:
        GroupError: on every rank alike, where one cannot take part; it names that rank.
        ModuleNotFoundError: cuda-python is not installed.
    """
    size = tensor_parallel_size
    stage, tensor_rank = divmod(rank, size)
    ranks = range(stage * size, (stage + 1) * size)
    has_tensor_ranks, has_stages = size > 1, pipeline_parallel_size > 1
    if driver is None:
        from cuda.bindings import driver as cuda_driver

        driver = cuda_driver
    stage_id = engine_id = bytes(nccl.UNIQUE_ID_BYTES)
    refusal = ""
    try:
        library = nccl.load_nccl() if library is None else library
        if tensor_rank == 0 and has_tensor_ranks:
            stage_id = nccl.new_unique_id(library)
        if rank == 0 and has_stages:
            engine_id = nccl.new_unique_id(library)
    except GroupError as error:
        refusal = str(error)
    answers = exchange(stage_id + engine_id + join_texts(refusal))
    for other, answer in enumerate(answers):
        if text := split_texts(answer[2 * nccl.UNIQUE_ID_BYTES :])[0]:
            raise GroupError(f"rank {other}: {text}")
    stage_id = answers[ranks[0]][: nccl.UNIQUE_ID_BYTES]
    engine_id = answers[0][nccl.UNIQUE_ID_BYTES : 2 * nccl.UNIQUE_ID_BYTES]
    timeout_ms = round(1000 * timeout_s)
    peers = open_peer_memory(driver, ranks, tensor_rank, exchange, timeout_ms) if has_tensor_ranks else None
    # In this order on every rank: each waits for all ranks of its communicator.
    engine_ranks = nccl.Communicator(library, engine_id, len(answers), rank) if has_stages else None
    stage_ranks = nccl.Communicator(library, stage_id, size, tensor_rank) if has_tensor_ranks else None
    return NcclGroup(driver, tensor_rank, stage_ranks, engine_ranks, rank, size, peers)
