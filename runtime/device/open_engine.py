"""Opens a rank of an engine on its GPU: network, weights, KV pools, and memory for steps."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from precast.checkpoints.engine_kv import kv_memories, kv_page_bytes
from precast.checkpoints.engine_manifest import EngineManifest
from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.collectives.device.group import GroupError
from precast.plugins.collectives.device.nccl_group import NcclGroup
from precast.plugins.collectives.device.open_group import open_group
from precast.runtime.device.buffers import StepInputs, StepOutputs
from precast.runtime.device.device import Device
from precast.runtime.device.network import Network
from precast.runtime.device.session import SLOTS, DeviceBuffers, DeviceSession, Slot
from precast.runtime.device.shapes import ShapeBook
from precast.runtime.device.toolkit import RankPlace, Toolkit
from precast.runtime.device.warm import rehearsal_steps
from precast.runtime.errors import ErrorCode, NativeError, make_error

FREE_MEMORY_FRACTION = 0.9
"""Of what is left when the network is loaded: what KV pools take where nobody says how much. The rest is for what the
driver and other processes still need."""
MAX_BLOCKS = (1 << 30) - 1
"""What the library takes."""

SENT_ROWS = "sent_rows"
"""The output of a stage that is not the last."""
LAYER_OUTPUTS = ("_sum",)
"""How the names of outputs end that networks have on request (builder/backends/lowering/mark_layer_outputs.py)."""

Exchange = Callable[[bytes], list[bytes]]
"""Shows every rank's bytes to all: as many from each, in the order of ranks."""


@dataclass(frozen=True)
class Limits:
    """What the engine's options say, and which rank this is; ``precast_session_config_t``.

    Attributes:
        kv_cache_bytes: Over all ranks; 0: what is free.
        max_batch_size, max_num_tokens: Of a step, within what the network was built for.
        max_seq_len: 0: the engine's own.
    """

    kv_cache_bytes: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    rank: int
    exchange: Exchange | None


@dataclass(frozen=True)
class OpenedSession:
    """A session, and what its engine is told of it.

    Attributes:
        device: Where it runs.
        layer_outputs: What layers give, of networks that have it as outputs: name -> address of [rows, H] of 16 bits.
    """

    session: DeviceSession
    num_blocks: int
    device_name: str
    network: Network
    device: Device
    layer_outputs: Mapping[str, int]


def open_session(engine: Path, manifest: EngineManifest, toolkit: Toolkit, limits: Limits) -> OpenedSession:
    """Load a rank's network and weights, and size its KV pools.

    Raises:
        EngineLoadError: the network is refused, or ranks cannot meet.
        NativeError: there is not enough memory.
        DeviceError: the device refuses something.
    """
    with ExitStack() as cleanup:
        device = Device(toolkit.driver, limits.rank)
        cleanup.callback(device.close)
        try:
            opened = _Opening(engine, manifest, toolkit, limits, device, cleanup).open()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # what they hold of the network must go before the device does
            raise
        cleanup.pop_all()
        return opened


class _Opening:
    """One engine while it is opened on one device."""

    def __init__(
        self,
        engine: Path,
        manifest: EngineManifest,
        toolkit: Toolkit,
        limits: Limits,
        device: Device,
        cleanup: ExitStack,
    ) -> None:
        self._engine, self._manifest, self._toolkit, self._limits = engine, manifest, toolkit, limits
        self._device, self._cleanup = device, cleanup
        self._files = manifest.ranks[limits.rank]

    def open(self) -> OpenedSession:
        manifest, limits, device = self._manifest, self._limits, self._device
        group = self._join_ranks()
        network = self._load_network()
        addresses = self._load_weights(network)
        network.prepare()
        outputs = self._outputs_of(network)
        tokens_per_block, longest = manifest.build.tokens_per_block, manifest.model.max_seq_len
        widest = -(-longest // tokens_per_block)
        book = ShapeBook(limits.max_batch_size, [widest] * len(self._files.kv_groups))
        inputs = StepInputs(
            tables=tuple(group.block_tables for group in self._files.kv_groups),
            resolves_tokens="token_sources" in network.inputs,
            has_logits="logit_rows" in network.inputs,
        )
        width = -(-min(longest, limits.max_seq_len or longest) // tokens_per_block)
        input_bytes = inputs.layout(book.largest(limits.max_num_tokens, width)).num_bytes
        buffers, slots = self._allocate_steps(network, input_bytes, outputs)
        if inputs.resolves_tokens:
            addresses["previous_tokens"] = buffers.previous_tokens
        if outputs is not None:
            addresses["logits"] = buffers.logits
        else:
            addresses |= dict.fromkeys(set(network.outputs) & {SENT_ROWS}, buffers.choices)
        layer_outputs = self._allocate_layer_outputs(network)
        addresses |= layer_outputs
        if network.grows_when_run:
            self._rehearse(network, addresses, inputs, outputs, book, buffers, slots, width, group)
        pool_shapes, pools, num_blocks = self._allocate_pools(self._num_blocks())
        network.bind(pool_shapes, addresses | pools)
        device.synchronize()
        session = DeviceSession(
            device, network, inputs.with_scratch_block(num_blocks), outputs, book, buffers, slots, group
        )
        return OpenedSession(session, num_blocks, device.name, network, device, layer_outputs)

    def _join_ranks(self) -> NcclGroup | None:
        """This rank's way to the others, which plugins then use; None where there are none."""
        mapping, exchange = self._manifest.mapping, self._limits.exchange
        if mapping.world_size == 1:
            return None
        assert exchange is not None  # the library gives it where there are several ranks
        try:
            group = open_group(
                mapping.tensor_parallel_size,
                mapping.pipeline_parallel_size,
                self._limits.rank,
                exchange,
                driver=self._toolkit.driver,
            )
        except GroupError as error:
            raise make_error(ErrorCode.UNSUPPORTED_ENGINE, f"{self._engine}: {error}") from error
        self._cleanup.callback(group.abort)
        self._toolkit.group.install(group)
        return group

    def _load_network(self) -> Network:
        place = RankPlace(self._engine, self._manifest, self._files)
        network = self._toolkit.open_network(place, self._device)
        self._cleanup.callback(network.close)
        return network

    def _load_weights(self, network: Network) -> dict[str, int]:
        """Weights that are inputs of the network: their addresses, by name."""
        if self._files.weights is None:
            return {}
        path = self._engine / self._files.weights
        index = read_weights_index(path)
        data = np.memmap(path, np.uint8, mode="r")
        addresses: dict[str, int] = {}
        for tensor in index.tensors:
            name, size = tensor.spec.name, tensor.spec.size_bytes
            if name not in network.inputs:
                raise make_error(
                    ErrorCode.CORRUPT_ENGINE,
                    f"{path}: holds {name}, which is no input of {self._files.graph}: copy the engine again or rebuild "
                    "it",
                )
            addresses[name] = self._device.allocate(size, f"the weight {name}")
            self._device.upload(addresses[name], data[tensor.offset : tensor.offset + size])
        self._device.finish_copies()
        return addresses

    def _allocate_layer_outputs(self, network: Network) -> dict[str, int]:
        """Addresses of what layers give in the largest step."""
        names = [name for name in network.outputs if name.endswith(LAYER_OUTPUTS)]
        rows = self._limits.max_num_tokens
        return {name: self._device.allocate(2 * rows * network.shape_of(name)[1], "what layers give") for name in names}

    def _rehearse(
        self,
        network: Network,
        addresses: dict[str, int],
        inputs: StepInputs,
        outputs: StepOutputs | None,
        book: ShapeBook,
        buffers: DeviceBuffers,
        slots: tuple[Slot, ...],
        width: int,
        group: NcclGroup | None,
    ) -> None:
        """Run the largest steps, with pools of one block: what they take of memory is taken before KV pools are."""
        if self._limits.exchange is not None:
            self._limits.exchange(b"loaded")  # or a rank that loads for longer would be missed in a sum
        pool_shapes, pools, num_blocks = self._allocate_pools(1)
        network.bind(pool_shapes, addresses | pools)
        inputs = inputs.with_scratch_block(num_blocks)
        session = DeviceSession(self._device, network, inputs, outputs, book, buffers, slots, group)
        limits, longest = self._limits, width * self._manifest.build.tokens_per_block
        for step in rehearsal_steps(limits.max_batch_size, limits.max_num_tokens, longest, width, len(inputs.tables)):
            session.enqueue(step)
            session.collect(step.id)
        self._device.synchronize()
        for address in dict.fromkeys(pools.values()):
            self._device.release(address)

    def _outputs_of(self, network: Network) -> StepOutputs | None:
        if "logits" not in network.outputs:
            return None
        has_candidates = "candidate_ids" in network.outputs
        return StepOutputs(
            vocab_size=self._manifest.model.vocab_size,
            num_candidates=network.shape_of("candidate_ids")[1] if has_candidates else 0,
            chooses_tokens="tokens" in network.outputs,
        )

    def _allocate_steps(
        self, network: Network, input_bytes: int, outputs: StepOutputs | None
    ) -> tuple[DeviceBuffers, tuple[Slot, ...]]:
        device, rows = self._device, self._limits.max_batch_size
        choice_bytes = max(256, 0 if outputs is None else outputs.choices(rows).num_bytes)
        logits_bytes = max(256, 0 if outputs is None else outputs.logits_bytes(rows))
        most_tokens = network.shape_of("previous_tokens")[0] if "previous_tokens" in network.inputs else 1
        buffers = DeviceBuffers(
            inputs=device.allocate(input_bytes, "the inputs of a step"),
            choices=device.allocate(choice_bytes, "the tokens of a step"),
            logits=device.allocate(logits_bytes, "the logits of a step"),
            previous_tokens=device.allocate(4 * most_tokens, "the tokens of a step"),
        )
        device.fill(buffers.previous_tokens, 4 * most_tokens)
        slots = tuple(
            Slot(
                inputs=device.allocate_pinned(input_bytes, "the inputs of a step"),
                choices=device.allocate_pinned(choice_bytes, "the tokens of a step"),
                logits=device.allocate_pinned(logits_bytes, "the logits of a step"),
                done=device.new_event(),
            )
            for _ in range(max(SLOTS, self._manifest.mapping.pipeline_parallel_size))
        )
        return buffers, slots

    def _num_blocks(self) -> int:
        """How many KV blocks there are: as many as all ranks are to have, or as this one has room for."""
        wanted = self._limits.kv_cache_bytes
        page_bytes = kv_page_bytes(self._files.kv_caches)
        total_bytes = sum(kv_page_bytes(rank.kv_caches) for rank in self._manifest.ranks)
        if total_bytes == 0:
            return 1
        if wanted:
            if wanted < total_bytes:
                raise NativeError(
                    ErrorCode.RESOURCE_EXHAUSTED,
                    f"kv_cache_bytes is {wanted}, and a KV block of all ranks takes {total_bytes}: give at least that",
                )
            return min(wanted // total_bytes, MAX_BLOCKS)
        if page_bytes == 0:  # a stage without attention takes as many as the others have
            return MAX_BLOCKS
        free = self._device.free_bytes()
        blocks = int(FREE_MEMORY_FRACTION * free) // page_bytes - 1
        if blocks < 1:
            raise NativeError(
                ErrorCode.RESOURCE_EXHAUSTED,
                f"{self._device.name}: {free} bytes of memory are free when the network is loaded, and a KV block "
                f"takes {page_bytes}: free some, or use a GPU with more",
            )
        return min(blocks, MAX_BLOCKS)

    def _allocate_pools(self, blocks: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int], int]:
        """Shapes and addresses of pools, by the names of inputs and outputs; how many blocks they have.

        Pools have one block more, which belongs to nobody.
        """
        caches = self._files.kv_caches
        memories = kv_memories(caches)
        shapes: dict[str, tuple[int, ...]] = {}
        addresses: dict[str, int] = {}
        for sharing in memories:
            block_bytes = caches[sharing[0]].block_bytes
            address = self._device.allocate((blocks + 1) * block_bytes, "the KV cache")
            # What is never written is multiplied by weights of 0, which must not meet NaN.
            self._device.fill(address, (blocks + 1) * block_bytes)
            for index in sharing:
                name = caches[index].name
                shapes[name] = (blocks + 1, block_bytes // 2)
                addresses[name] = addresses[f"{name}.out"] = address
        return shapes, addresses, blocks
