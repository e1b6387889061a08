"""How many ranks run a model, and what the number of a rank says."""

from dataclasses import dataclass

from precast.checkpoints.engine_checks import check_range

MAX_PARALLEL_SIZE = 1 << 15


@dataclass(frozen=True)
class Mapping:
    """Ranks are numbered stage by stage: rank = stage * tensor_parallel_size + tensor rank.

    tensor_parallel_size 2, pipeline_parallel_size 3:

        stage 0: ranks 0 1    first layers, the embedding
        stage 1: ranks 2 3
        stage 2: ranks 4 5    last layers, the head

    The ranks of a stage hold slices of the same layers; rank r hands its activations to rank r + tensor_parallel_size.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    world_size: int = 1
    """tensor_parallel_size x pipeline_parallel_size, and the number of ranks."""

    def __post_init__(self) -> None:
        check_range("world_size", self.world_size, 1)
        check_range("tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PARALLEL_SIZE)
        check_range("pipeline_parallel_size", self.pipeline_parallel_size, 1, MAX_PARALLEL_SIZE)
        product = self.tensor_parallel_size * self.pipeline_parallel_size
        if self.world_size != product:
            raise ValueError(
                f"world_size must be tensor_parallel_size x pipeline_parallel_size = {product}, got {self.world_size}"
            )

    @classmethod
    def of(cls, tensor_parallel_size: int, pipeline_parallel_size: int) -> "Mapping":
        """The mapping of these sizes. Raises ValueError for a size that is out of range."""
        return cls(tensor_parallel_size, pipeline_parallel_size, tensor_parallel_size * pipeline_parallel_size)

    def tensor_rank(self, rank: int) -> int:
        """Which slice of its stage's tensors a rank holds."""
        return rank % self.tensor_parallel_size

    def stage(self, rank: int) -> int:
        """Which of the pipeline's stages a rank belongs to."""
        return rank // self.tensor_parallel_size
