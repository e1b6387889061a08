"""Which sizes of tensor parallelism a model allows, and what one rank has of a layer.

Attention is divided by heads: rank r has the r-th share of the query heads and the key-value heads that those read.
Where there are fewer key-value heads than ranks, several ranks have a copy of the same one. The feed-forward is divided
along its intermediate size, each expert of a mixture likewise. Shares are equal, or the size is refused.

Source: Shoeybi et al., "Megatron-LM", 2019, https://arxiv.org/abs/1909.08053.
"""

from dataclasses import replace

from precast.checkpoints.errors import PartitionError
from precast.checkpoints.model_config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    MixerConfig,
    MixtureOfExpertsConfig,
    MlpConfig,
    ModelConfig,
)


def check_tensor_parallel_size(model: ModelConfig, size: int) -> None:
    """Raise PartitionError where `size` ranks cannot share the layers equally, with the sizes that work."""
    problem = _model_problem(model, size)
    if problem is not None:
        works = [candidate for candidate in range(1, _most_ranks(model) + 1) if not _model_problem(model, candidate)]
        raise PartitionError(
            f"tensor_parallel_size {size} does not divide {model.architecture}: {problem}; "
            f"sizes that work: {', '.join(map(str, works))}"
        )


def kv_heads_of(attention: AttentionConfig, size: int, tensor_rank: int) -> range:
    """The key-value heads of a rank, by their indices in the model. `size` is one that the model allows."""
    num_heads = max(attention.num_kv_heads // size, 1)
    start = attention.num_kv_heads * tensor_rank // size
    return range(start, start + num_heads)


def rank_layer(layer: LayerConfig, size: int) -> LayerConfig:
    """A layer with the sizes that each of `size` ranks has of it; `size` is one that the model allows."""
    if size == 1:
        return layer
    return replace(
        layer, mixer=_rank_mixer(layer.mixer, size), feed_forward=_rank_feed_forward(layer.feed_forward, size)
    )


def _rank_mixer(mixer: MixerConfig | None, size: int) -> MixerConfig | None:
    if not isinstance(mixer, AttentionConfig):
        return mixer
    return replace(mixer, num_heads=mixer.num_heads // size, num_kv_heads=len(kv_heads_of(mixer, size, tensor_rank=0)))


def _rank_feed_forward(block: FeedForwardConfig | None, size: int) -> FeedForwardConfig | None:
    if isinstance(block, MlpConfig):
        return _rank_mlp(block, size)
    if isinstance(block, MixtureOfExpertsConfig):
        shared = None if block.shared_expert is None else _rank_mlp(block.shared_expert, size)
        return replace(block, expert=_rank_mlp(block.expert, size), shared_expert=shared)
    return block


def _rank_mlp(mlp: MlpConfig, size: int) -> MlpConfig:
    return replace(mlp, intermediate_size=mlp.intermediate_size // size)


def _most_ranks(model: ModelConfig) -> int:
    """More ranks than heads are never possible."""
    heads = [layer.mixer.num_heads for layer in model.layers if isinstance(layer.mixer, AttentionConfig)]
    return max(heads, default=1)


def _model_problem(model: ModelConfig, size: int) -> str | None:
    """Why `size` ranks cannot share the model, or None."""
    if size == 1:
        return None
    if model.embedding.num_rows not in (None, model.vocab_size):
        return f"its embedding has {model.embedding.num_rows} rows for a vocabulary of {model.vocab_size}"
    for index, layer in enumerate(model.layers):
        problem = _mixer_problem(layer.mixer, size) or _feed_forward_problem(layer.feed_forward, size)
        if problem is not None:
            return f"layer {index} has {problem}"
    return None


def _mixer_problem(mixer: MixerConfig | None, size: int) -> str | None:
    if mixer is None:
        return None
    if not isinstance(mixer, AttentionConfig):
        return f"a {type(mixer).__name__}, which cannot be divided yet"
    if mixer.qk_norm is not None and mixer.qk_norm.scope != "head":
        return "a norm over the queries of all heads"
    if mixer.num_heads % size != 0:
        return f"{mixer.num_heads} attention heads"
    if mixer.num_kv_heads % size != 0 and size % mixer.num_kv_heads != 0:
        return f"{mixer.num_kv_heads} key-value heads"
    return None


def _feed_forward_problem(block: FeedForwardConfig | None, size: int) -> str | None:
    if isinstance(block, MlpConfig):
        return f"an intermediate size of {block.intermediate_size}" if block.intermediate_size % size != 0 else None
    if isinstance(block, MixtureOfExpertsConfig):
        return _feed_forward_problem(block.expert, size) or _feed_forward_problem(block.shared_expert, size)
    return None if block is None else f"a {type(block).__name__}, which cannot be divided yet"
