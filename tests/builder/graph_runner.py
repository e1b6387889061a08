"""Runs an emitted graph with the plugins' NumPy references, so that the builder is tested without the runtime."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precast.builder.network.emitter import num_features
from precast.builder.network.network import Network
from precast.checkpoints.engine_dir import read_manifest
from precast.checkpoints.engine_manifest import RankFiles
from precast.checkpoints.ranks.mapping import Mapping as RankMapping
from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.all_gather.reference import all_gather
from precast.plugins.all_gather.schema import AllGatherAttributes
from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from precast.plugins.embedding.reference import embedding
from precast.plugins.embedding.schema import EmbeddingAttributes
from precast.plugins.gated_activation.reference import gated_activation
from precast.plugins.gated_activation.schema import GatedActivationAttributes
from precast.plugins.linear.reference import linear
from precast.plugins.linear.schema import LinearAttributes
from precast.plugins.paged_attention.reference import paged_attention
from precast.plugins.paged_attention.schema import PagedAttentionAttributes
from precast.plugins.receive.reference import receive
from precast.plugins.receive.schema import ReceiveAttributes
from precast.plugins.rms_norm.reference import rms_norm
from precast.plugins.rms_norm.schema import RmsNormAttributes
from precast.plugins.send.reference import send

Array = NDArray[Any]


@dataclass(frozen=True)
class Chunk:
    """The new tokens of one sequence in a step: they start at position `start`, in the given blocks."""

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]


class GraphRunner:
    """A graph with its weights and a pool of blocks, which are full of garbage at first."""

    def __init__(self, graph: ir.Graph, weights: Mapping[str, Array], num_blocks: int = 16) -> None:
        self.graph = graph
        self.weights = weights
        pools = [value for value in graph.inputs if str(value.name).startswith("kv.")]
        self.pools = {str(pool.name): np.full((num_blocks, num_features(pool)), 0xAB, np.uint8) for pool in pools}
        self.tokens_per_block = next(
            node.attributes["tokens_per_block"].as_int() for node in graph if node.op_type == "PagedAttention"
        )
        self.num_blocks = num_blocks
        self.block_tables = [value.name for value in graph.inputs if str(value.name).startswith("block_tables.")]

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits of every position of one sequence, in one step. Blocks are used from the last to the first."""
        num_blocks = -(-len(token_ids) // self.tokens_per_block)
        blocks = range(self.num_blocks - 1, self.num_blocks - 1 - num_blocks, -1)
        return self.step([Chunk(token_ids, 0, blocks)], range(len(token_ids)))

    def step(self, chunks: Sequence[Chunk], logit_rows: Sequence[int]) -> NDArray[np.float32]:
        """One step over packed sequences, of a graph that needs no other rank."""
        try:
            next(self.run(self.inputs(chunks, logit_rows)))
        except StopIteration as end:
            logits: NDArray[np.float32] = end.value
            return logits
        raise AssertionError("the graph needs other ranks")

    def inputs(self, chunks: Sequence[Chunk], logit_rows: Sequence[int]) -> dict[str, Array]:
        """The description of a step."""
        width = max(len(chunk.blocks) for chunk in chunks) + 1
        tables = [[*chunk.blocks, *[-1] * (width - len(chunk.blocks))] for chunk in chunks]
        inputs: dict[str | None, Any] = {
            "token_ids": [token for chunk in chunks for token in chunk.token_ids],
            "query_starts": np.cumsum([0, *(len(chunk.token_ids) for chunk in chunks)]),
            "context_lengths": [chunk.start + len(chunk.token_ids) for chunk in chunks],
            # Pools are apart here, so all KV groups may use blocks of the same ids.
            **dict.fromkeys(self.block_tables, tables),
            "logit_rows": logit_rows,
        }
        return {str(name): np.array(value, np.int32) for name, value in inputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> Generator[tuple[ir.Node, list[Any]], Array, Array]:
        """Run the graph. Each node that needs other ranks is yielded with its inputs, and sent its output."""
        values = {**inputs, **self.weights, **self.pools}
        for node in self.graph:
            arguments = [None if value is None else values[str(value.name)] for value in node.inputs]
            results = ((yield node, arguments),) if node.op_type in COLLECTIVES else _run(node, arguments)
            for value, result in zip(node.outputs, results, strict=True):
                assert result.dtype == (np.int32 if node.op_type == "Send" else np.float32)
                values[str(value.name)] = result
        (output,) = self.graph.outputs
        return values[str(output.name)]


class RanksRunner:
    """The graphs of all ranks, run stage by stage and, within a stage, from collective to collective."""

    def __init__(self, mapping: RankMapping, ranks: Sequence[GraphRunner]) -> None:
        size = mapping.tensor_parallel_size
        self.stages = [ranks[start : start + size] for start in range(0, len(ranks), size)]

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """As of a GraphRunner."""
        first = self.stages[0][0]
        num_blocks = -(-len(token_ids) // first.tokens_per_block)
        blocks = range(first.num_blocks - 1, first.num_blocks - 1 - num_blocks, -1)
        return self.step([Chunk(token_ids, 0, blocks)], range(len(token_ids)))

    def step(self, chunks: Sequence[Chunk], logit_rows: Sequence[int]) -> NDArray[np.float32]:
        """As of a GraphRunner. Checks that the ranks of a stage come to the same collectives."""
        sent: list[Array] = []
        for ranks in self.stages:
            received, sent = sent, []
            steps = [rank.run(rank.inputs(chunks, logit_rows)) for rank in ranks]
            outputs = self._run_stage(steps, received, sent)
        assert all(len(output) == 0 for output in outputs[1:])
        return outputs[0]

    def _run_stage(self, steps: Sequence[Any], received: Sequence[Array], sent: list[Array]) -> list[Array]:
        met = [next(step) for step in steps]
        while True:
            nodes = [node for node, _ in met]
            assert len({(node.name, node.op_type) for node in nodes}) == 1
            results = _meet(nodes[0], [arguments[0] for _, arguments in met], received, sent)
            met, outputs = [], []
            for step, result in zip(steps, results, strict=True):
                node, value = _advance(step, result)
                if node is None:
                    outputs.append(value)
                else:
                    met.append((node, value))
            if outputs:
                assert not met
                return outputs


def _advance(step: Any, result: Array) -> tuple[ir.Node | None, Any]:
    """The next collective of a rank and its inputs, or None and the output of its graph."""
    try:
        node, inputs = step.send(result)
    except StopIteration as end:
        return None, end.value
    return node, inputs


def _meet(node: ir.Node, inputs: Sequence[Array], received: Sequence[Array], sent: list[Array]) -> Sequence[Array]:
    """What each rank of a stage gets of a collective."""
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    match node.op_type:
        case "AllReduce":
            return [all_reduce(inputs, AllReduceAttributes(**attributes))] * len(inputs)
        case "AllGather":
            return all_gather(inputs, AllGatherAttributes(**attributes))
        case "Send":
            sent += inputs
            return [send(x) for x in inputs]
    pairs = zip(inputs, received, strict=True)
    return [receive(token_ids, x, ReceiveAttributes(**attributes)) for token_ids, x in pairs]


COLLECTIVES = ("AllReduce", "AllGather", "Send", "Receive")


def network_runner(network: Network, checkpoint: Any) -> GraphRunner:
    """A runner of a network in memory."""
    weights = {name: recipe.materialise(checkpoint) for name, recipe in network.weights.items()}
    return GraphRunner(network.graph, weights)


def engine_runner(engine_dir: Path) -> GraphRunner:
    """A runner of the files of an engine of one rank."""
    (rank,) = read_manifest(engine_dir).ranks
    return _rank_runner(engine_dir, rank)


def ranks_runner(engine_dir: Path) -> RanksRunner:
    """A runner of the files of an engine of several ranks."""
    manifest = read_manifest(engine_dir)
    return RanksRunner(manifest.mapping, [_rank_runner(engine_dir, rank) for rank in manifest.ranks])


def _rank_runner(engine_dir: Path, rank: RankFiles) -> GraphRunner:
    file = engine_dir / str(rank.weights)
    data = np.fromfile(file, np.uint8)
    weights = {}
    for tensor in read_weights_index(file).tensors:
        bytes_ = data[tensor.offset : tensor.end]
        weights[tensor.spec.name] = bytes_.view(tensor.spec.dtype).reshape(tensor.spec.shape)
    return GraphRunner(ir.load(engine_dir / rank.graph).graph, weights)


def _run(node: ir.Node, x: list[Any]) -> tuple[Array, ...]:
    """The outputs of one node."""
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    match node.op_type:
        case "Add":
            return (x[0] + x[1],)
        case "Concat":
            return (np.concatenate(x, axis=attributes["axis"]),)
        case "Gather":
            return (np.take(x[0], x[1], axis=attributes["axis"]),)
        case "Embedding":
            return (embedding(x[0], x[1], EmbeddingAttributes(**attributes)),)
        case "Linear":
            return (linear(x[0], x[1], LinearAttributes(**attributes), *x[2:]),)
        case "RmsNorm":
            return rms_norm(x[0], x[1], RmsNormAttributes(**attributes), *x[2:])[: len(node.outputs)]
        case "GatedActivation":
            return (gated_activation(x[0], GatedActivationAttributes(**attributes)),)
        case "PagedAttention":
            qkv, starts, lengths, tables, pool, *optional = x
            attention = PagedAttentionAttributes(**attributes)
            return (paged_attention(qkv, starts, lengths, tables, pool, attention, *optional),)
    raise NotImplementedError(node.op_type)
