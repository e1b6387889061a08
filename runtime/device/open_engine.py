"""Opens a rank of an engine on its GPU: network, weights, KV pools, and memory for steps."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from precast.checkpoints.engine_manifest import EngineManifest
from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.collectives.device.group import GroupError
from precast.plugins.collectives.device.nccl_group import NcclGroup
from precast.plugins.collectives.device.open_group import open_group
from precast.runtime.device.buffers import StepInputs, StepOutputs
from precast.runtime.device.device import Device
from precast.runtime.device.kv_pools import KvPools, allocate_pools, count_blocks
from precast.runtime.device.network import Network
from precast.runtime.device.session import SLOTS, DeviceBuffers, DeviceSession, Slot
from precast.runtime.device.shapes import ShapeBook
from precast.runtime.device.toolkit import RankPlace, Toolkit
from precast.runtime.device.warm import rehearsal_steps
from precast.runtime.errors import ErrorCode, make_error

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


@dataclass(frozen=True)
class _Steps:
    """What steps of the engine are, and their memory."""

    inputs: StepInputs
    outputs: StepOutputs | None
    shapes: ShapeBook
    buffers: DeviceBuffers
    slots: tuple[Slot, ...]
    group: NcclGroup | None

    def session(self, device: Device, network: Network, pools: KvPools) -> DeviceSession:
        """On these pools, to which the network is bound."""
        inputs = self.inputs.with_scratch_block(pools.num_blocks)
        return DeviceSession(device, network, inputs, self.outputs, self.shapes, self.buffers, self.slots, self.group)


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
        steps = _Steps(inputs, outputs, book, buffers, slots, group)
        if network.grows_when_run:
            self._rehearse(network, addresses, steps, width)
        num_blocks = count_blocks(device, manifest, limits.rank, limits.kv_cache_bytes)
        pools = allocate_pools(device, self._files.kv_caches, num_blocks)
        network.bind(pools.shapes, {**addresses, **pools.addresses})
        device.synchronize()
        session = steps.session(device, network, pools)
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

    def _rehearse(self, network: Network, addresses: Mapping[str, int], steps: _Steps, width: int) -> None:
        """Run the largest steps, with pools of one block: what they take of memory is taken before KV pools are."""
        limits, longest = self._limits, width * self._manifest.build.tokens_per_block
        if limits.exchange is not None:
            limits.exchange(b"loaded")  # or a rank that loads for longer would be missed in a sum
        pools = allocate_pools(self._device, self._files.kv_caches, 1)
        network.bind(pools.shapes, {**addresses, **pools.addresses})
        session, num_groups = steps.session(self._device, network, pools), len(self._files.kv_groups)
        try:
            for step in rehearsal_steps(limits.max_batch_size, limits.max_num_tokens, longest, width, num_groups):
                session.enqueue(step)
                session.collect(step.id)
        except BaseException:
            if steps.group is not None:
                steps.group.abort()  # what waits for other ranks must end before the network goes
            raise
        self._device.synchronize()
        pools.release(self._device)

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
