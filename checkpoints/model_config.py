"""ModelConfig: a model as data.

A frozen tree that says everything about a model but its weights. A family's file makes it from a Hugging
Face config; the builder emits a network from it and knows no model by name. Layers are heterogeneous: each
says which mixer and which feed-forward it has and where its norms sit. Every dataclass checks itself at
birth and raises ValueError.

A field that no supported family uses yet has a default that means "absent"; whoever reads a config must
refuse what it does not implement instead of ignoring it.
"""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_not_negative, require_one_of, require_positive
from precast.checkpoints.feed_forward_config import (
    ACTIVATIONS,
    FeedForwardConfig,
    LinearFeedForwardConfig,
    MixtureOfExpertsConfig,
    MlpConfig,
    RouterConfig,
)
from precast.checkpoints.layer_config import LayerConfig
from precast.checkpoints.mixer_config import (
    AttentionConfig,
    LatentAttentionConfig,
    LinearMixerConfig,
    Mamba2Config,
    MixerConfig,
    QkNormConfig,
    QueryTemperatureConfig,
    RelativeBiasConfig,
)
from precast.checkpoints.norm_config import NormConfig
from precast.checkpoints.rope import LinearScaling, Llama3Scaling, RopeConfig, RopeScaling, YarnScaling
from precast.checkpoints.vision_config import ProjectorConfig, VisionConfig

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "AttentionConfig",
    "EmbeddingConfig",
    "EncoderConfig",
    "FeedForwardConfig",
    "HeadConfig",
    "LatentAttentionConfig",
    "LayerConfig",
    "LinearFeedForwardConfig",
    "LinearMixerConfig",
    "LinearScaling",
    "Llama3Scaling",
    "Mamba2Config",
    "MixerConfig",
    "MixtureOfExpertsConfig",
    "MlpConfig",
    "ModelConfig",
    "NormConfig",
    "PoolingHeadConfig",
    "PositionEmbeddingConfig",
    "ProjectorConfig",
    "QkNormConfig",
    "QueryTemperatureConfig",
    "RelativeBiasConfig",
    "RopeConfig",
    "RopeScaling",
    "RouterConfig",
    "VisionConfig",
    "YarnScaling",
]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PositionEmbeddingConfig:
    """Learned absolute positions. Position p reads row p + offset (OPT and BART: 2) of num_positions + offset."""

    num_positions: int
    offset: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "num_positions")
        require_not_negative(self, "offset")


@dataclass(frozen=True)
class EmbeddingConfig:
    """Token ids -> hidden states.

    Attributes:
        scale: Multiplies the rows (Gemma: sqrt(hidden_size); Granite: embedding_multiplier).
        num_rows: Rows of the table where there are more than the vocabulary (Mllama); None: vocab_size.
        size: Size of a row where it is projected to the hidden size (OPT-350m); None: hidden_size.
        num_token_types: Rows of a token type table (BERT); 0: none.
    """

    scale: float = 1.0
    num_rows: int | None = None
    size: int | None = None
    positions: PositionEmbeddingConfig | None = None
    num_token_types: int = 0
    norm: NormConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "scale", "num_rows", "size")
        require_not_negative(self, "num_token_types")


@dataclass(frozen=True)
class HeadConfig:
    """Hidden states -> logits of the next token.

    Attributes:
        tied: The weight is the embedding's table.
        scale: Multiplies the logits (Cohere: logit_scale), before the soft-cap.
        softcap: Logits become softcap * tanh(logit / softcap) (Gemma 2).
    """

    tied: bool = False
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "scale", "softcap")


@dataclass(frozen=True)
class PoolingHeadConfig:
    """Hidden states -> labels: a classifier or a reward model.

    Attributes:
        pooling: Which token is read: "first", "last" (not counting padding) or "all", a result per token.
        hidden_activation: Activation between two linear layers of hidden size and num_labels; "": one layer.
    """

    num_labels: int
    pooling: str = "last"
    hidden_activation: str = ""
    bias: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "num_labels")
        require_one_of(self, "pooling", ("first", "last", "all"))
        require_one_of(self, "hidden_activation", ("", "tanh", *ACTIVATIONS))


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of an encoder-decoder model. `mel_bins`: it reads audio frames instead of tokens (Whisper)."""

    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None
    embedding: EmbeddingConfig | None = None
    mel_bins: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "mel_bins")
        if (self.embedding is None) == (self.mel_bins is None):
            raise ValueError("EncoderConfig: give either an embedding (text) or mel_bins (audio)")


@dataclass(frozen=True)
class ModelConfig:
    """A model.

    Attributes:
        architecture: The checkpoint's class name, `architectures[0]`; for messages and the manifest.
        max_position_embeddings: Tokens of a sequence that the model was made for.
        eos_token_ids: Each of them ends a sequence; may be empty.
        dtype: Of the checkpoint's weights, one of `DTYPES`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None
    embedding: EmbeddingConfig = EmbeddingConfig()
    head: HeadConfig | PoolingHeadConfig = HeadConfig()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "float32"
    encoder: EncoderConfig | None = None
    vision: VisionConfig | None = None
    projector: ProjectorConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "hidden_size", "max_position_embeddings")
        require_one_of(self, "dtype", DTYPES)
        if not self.layers:
            raise ValueError("ModelConfig: layers is empty")
        for name, token in self._special_tokens():
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"ModelConfig: {name} {token} is outside the vocabulary of {self.vocab_size} tokens")
        if (self.vision is None) != (self.projector is None):
            raise ValueError("ModelConfig: a vision tower and a projector come together")

    def _special_tokens(self) -> list[tuple[str, int]]:
        """bos and eos; pad is not checked, because files name padding tokens that the vocabulary lacks."""
        bos = [] if self.bos_token_id is None else [("bos_token_id", self.bos_token_id)]
        return bos + [("eos_token_ids", token) for token in self.eos_token_ids]
