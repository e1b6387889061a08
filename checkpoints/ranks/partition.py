"""Which stage of a pipeline has which layers: stages as equal as whole layers allow.

A token passes through all stages one after the other, and a pipeline that is full is as fast as its slowest stage. On a
CPU that time is the bytes of the weights that a stage reads, so these are what is balanced: those of its layers, and
for the last stage those of the head. The first stage's embedding is not among them, of which a token reads one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import ModelConfig
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.tensor_parallel import check_tensor_parallel_size
from precast.checkpoints.tensor_shapes import layer_shapes


@dataclass(frozen=True)
class Partition:
    """How a model is spread over ranks.

    Attributes:
        mapping: The numbers of ranks.
        stage_layers: Number of layers of each stage, from the first layer on; one element a stage, none of them 0.
    """

    mapping: Mapping
    stage_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.stage_layers) != self.mapping.pipeline_parallel_size:
            raise ValueError(
                f"stage_layers must have pipeline_parallel_size = {self.mapping.pipeline_parallel_size} elements, "
                f"got {len(self.stage_layers)}"
            )
        for stage, num_layers in enumerate(self.stage_layers):
            if num_layers < 1:
                raise ValueError(f"stage_layers[{stage}] must be at least 1, got {num_layers}")

    def layer_indices(self, rank: int) -> range:
        """The layers that a rank has a part of, by their indices in the model."""
        stage = self.mapping.stage(rank)
        start = sum(self.stage_layers[:stage])
        return range(start, start + self.stage_layers[stage])

    def is_first_stage(self, rank: int) -> bool:
        return self.mapping.stage(rank) == 0

    def is_last_stage(self, rank: int) -> bool:
        return self.mapping.stage(rank) == self.mapping.pipeline_parallel_size - 1


def plan_partition(model: ModelConfig, mapping: Mapping) -> Partition:
    """Spread a model over ranks.

    Raises:
        PartitionError: the model cannot be divided so; the message has the sizes that work.
    """
    check_tensor_parallel_size(model, mapping.tensor_parallel_size)
    num_stages = mapping.pipeline_parallel_size
    if num_stages > len(model.layers):
        raise PartitionError(
            f"pipeline_parallel_size {num_stages} exceeds the {len(model.layers)} layers of {model.architecture}: "
            f"choose at most {len(model.layers)}"
        )
    if num_stages == 1:
        return Partition(mapping, (len(model.layers),))
    costs = [sum(prod(shape) for _, shape in layer_shapes(layer, model.hidden_size)) for layer in model.layers]
    head_cost = model.vocab_size * model.hidden_size
    return Partition(mapping, balanced_stages(costs, head_cost, num_stages))


def balanced_stages(layer_costs: Sequence[int], last_stage_cost: int, num_stages: int) -> tuple[int, ...]:
    """Divide a row of layers into stages of at least one layer.

    The dearest stage is as cheap as possible; among equals, the sum of the squares of the stages' costs is least, which
    keeps the others alike; among those, earlier stages are the shorter ones.

    Args:
        layer_costs: At least `num_stages` of them, in any one unit.
        last_stage_cost: What the last stage has to do besides its layers, in the same unit.

    Returns:
        The number of layers of each stage.
    """
    totals = [0, *accumulate(layer_costs)]
    dearest, _ = _best_division(totals, last_stage_cost, num_stages, max)
    # Among the divisions whose dearest stage costs that; any other counts as worse than all of them.
    too_dear = (totals[-1] + last_stage_cost) ** 2 * num_stages + 1

    def add_square(sum_of_squares: int, cost: int) -> int:
        return sum_of_squares + (cost * cost if cost <= dearest else too_dear)

    return _best_division(totals, last_stage_cost, num_stages, add_square)[1]


def _best_division(
    totals: Sequence[int], last_stage_cost: int, num_stages: int, add: Callable[[int, int], int]
) -> tuple[int, tuple[int, ...]]:
    """The division whose stages' costs, put together by `add` from 0 on, give least, and what they give.

    `totals[n]` is the cost of the first n layers.
    """
    num_layers = len(totals) - 1
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}  # of the first n layers in the stages so far
    for stage in range(num_stages):
        is_last = stage == num_stages - 1
        ends = [num_layers] if is_last else range(stage + 1, num_layers - (num_stages - stage - 2))
        extra = last_stage_cost if is_last else 0
        best = {
            end: min(
                (add(value, totals[end] - totals[start] + extra), (*stages, end - start))
                for start, (value, stages) in best.items()
                if start < end
            )
            for end in ends
        }
    return best[num_layers]
