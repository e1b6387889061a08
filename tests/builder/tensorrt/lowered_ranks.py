"""Runs the lowered networks of several ranks beside each other, a thread each, with collectives in NumPy.

A collective that a rank reaches and another does not is an error, not a hang.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from precast.builder.backends.tensorrt.lowering.pipeline import tensorrt_passes
from precast.builder.network.decoder import emit_network
from precast.builder.network.network import Network
from precast.builder.passes.base import Pass, run_passes
from precast.builder.plan import BuildPlan
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import plan_partition
from precast.checkpoints.ranks.rank_model import RankModel, rank_model
from precast.plugins.all_reduce.reference import all_reduce
from precast.plugins.all_reduce.schema import AllReduceAttributes
from tests.builder.rank_worlds import RandomSlices
from tests.builder.tensorrt.lowered_runner import LoweredRunner
from tests.builder.worlds import RandomTensors

Array = NDArray[Any]
PATIENCE_S = 60
COLLECTIVES = ("AllReduce", "AllGather", "Send", "Receive")


Passes = Callable[[BuildPlan], Sequence[Pass]]


def lowered_ranks(
    model: ModelConfig, mapping: Mapping, plan: BuildPlan, passes: Passes = tensorrt_passes
) -> list[tuple[RankModel, Network]]:
    """Every rank's part, and its network after all passes."""
    partition, ranks = plan_partition(model, mapping), []
    for number in range(mapping.world_size):
        rank = rank_model(model, partition, number)
        network = emit_network(rank, plan)
        run_passes(network, passes(plan))
        ranks.append((rank, network))
    return ranks


class Stage:
    """Tensor ranks that meet, and the rows that they hand to the next stage."""

    def __init__(self, num_ranks: int, before: "Stage | None") -> None:
        self.barrier = threading.Barrier(num_ranks)
        self.before = before
        self.sent: list[queue.Queue[Array]] = [queue.Queue() for _ in range(num_ranks)]
        self.met: list[str] = []
        self._given: list[Array | None] = [None] * num_ranks

    def meet(self, tensor_rank: int, x: Array, what: str) -> list[Array]:
        """All ranks' x, in the order of ranks."""
        self._given[tensor_rank] = x
        if tensor_rank == 0:
            self.met.append(what)
        self.barrier.wait(PATIENCE_S)
        given = [each for each in self._given if each is not None]
        self.barrier.wait(PATIENCE_S)
        return given


def collectives(stage: Stage, tensor_rank: int) -> list[type[OpRun]]:
    """Those of a rank: their inputs and outputs are of 16 bits."""

    class AllReduce(OpRun):
        op_domain = "ai.precast"

        def _run(self, x: Array, num_ranks: int, dtype: str, **rest: Any) -> tuple[Array]:
            assert x.dtype.name == dtype
            given = [each.astype(np.float32) for each in stage.meet(tensor_rank, x, "AllReduce")]
            return (all_reduce(given, AllReduceAttributes(num_ranks)).astype(x.dtype),)

    class AllGather(OpRun):
        op_domain = "ai.precast"

        def _run(self, x: Array, num_ranks: int, root: int, dtype: str, **rest: Any) -> tuple[Array]:
            given = stage.meet(tensor_rank, x, "AllGather")
            assert (len(given), root, x.dtype.name) == (num_ranks, -1, dtype)
            return (np.stack(given),)

    class Send(OpRun):
        op_domain = "ai.precast"

        def _run(self, x: Array, dtype: str, **rest: Any) -> tuple[Array]:
            assert x.dtype.name == dtype
            stage.sent[tensor_rank].put(x)
            return (np.array([len(x)], np.int32),)

    class Receive(OpRun):
        op_domain = "ai.precast"

        def _run(self, token_ids: Array, num_features: int, dtype: str, **rest: Any) -> tuple[Array]:
            assert stage.before is not None
            y = stage.before.sent[tensor_rank].get(timeout=PATIENCE_S)
            assert (y.shape, y.dtype.name) == ((len(token_ids), num_features), dtype)
            return (y,)

    return [AllReduce, AllGather, Send, Receive]


class LoweredRanks:
    """Token ids of one sequence -> the outputs of every rank, in one step."""

    def __init__(
        self,
        model: ModelConfig,
        mapping: Mapping,
        plan: BuildPlan,
        tensors: RandomTensors,
        passes: Passes = tensorrt_passes,
        ops: Sequence[type[OpRun]] = (),
    ) -> None:
        """`ops` as LoweredRunner has them, without collectives."""
        size = mapping.tensor_parallel_size
        self.stages: list[Stage] = []
        for _ in range(mapping.pipeline_parallel_size):
            self.stages.append(Stage(size, self.stages[-1] if self.stages else None))
        self._runners = [
            LoweredRunner(
                network,
                RandomSlices(tensors, rank),
                [*ops, *collectives(self.stages[number // size], number % size)],
            )
            for number, (rank, network) in enumerate(lowered_ranks(model, mapping, plan, passes))
        ]

    def __call__(self, token_ids: Sequence[int]) -> list[dict[str, Array]]:
        with ThreadPoolExecutor(len(self._runners)) as pool:
            runs = [pool.submit(self._give_up_together, runner.outputs, token_ids) for runner in self._runners]
            return [run.result() for run in runs]

    def _give_up_together(
        self, run: Callable[[Sequence[int]], dict[str, Array]], token_ids: Sequence[int]
    ) -> dict[str, Array]:
        try:
            return run(token_ids)
        except BaseException:
            for stage in self.stages:
                stage.barrier.abort()
            raise
