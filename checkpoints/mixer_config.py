"""What mixes the tokens of a sequence in a layer: attention in its variants, Mamba-2, or a plain matrix.

Shapes: H is the hidden size, D a head's size.
"""

from dataclasses import dataclass

from precast.checkpoints.config_checks import require_multiple, require_not_negative, require_one_of, require_positive
from precast.checkpoints.norm_config import NormConfig
from precast.checkpoints.rope import RopeConfig

QK_NORM_SCOPES = ("head", "projection")


@dataclass(frozen=True)
class QkNormConfig:
    """A norm of queries and keys.

    Attributes:
        scope: "head": over each head's D components (Qwen3, Gemma 3). "projection": over all heads (OLMo 2).
        after_rope: Applied to rotated queries and keys (Llama 4), else before the rotation.
    """

    norm: NormConfig
    scope: str = "head"
    after_rope: bool = False

    def __post_init__(self) -> None:
        require_one_of(self, "scope", QK_NORM_SCOPES)


@dataclass(frozen=True)
class QueryTemperatureConfig:
    """Llama 4's queries without rope: times log1p(floor((position + 1) / floor_scale)) * scale + 1."""

    floor_scale: float
    scale: float

    def __post_init__(self) -> None:
        require_positive(self, "floor_scale", "scale")


@dataclass(frozen=True)
class RelativeBiasConfig:
    """T5's bucketed relative position bias, one number per bucket and head. `shared`: layer 0's is used."""

    num_buckets: int
    max_distance: int
    shared: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_buckets", "max_distance")


@dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention with `num_heads` query heads that share `num_kv_heads` key-value heads (MHA, GQA, MQA).

    Attributes:
        scale: Multiplies query-key products; often head_dim ** -0.5.
        rope: None: no rotation.
        qkv_bias, output_bias: Whether these projections add a bias.
        key_bias: Whether keys do; None: as qkv_bias. (Whisper's do not.)
        causal: A token sees no later one. False in encoders.
        window: A token sees the last `window` ones, itself included. None: all.
        chunk: A token sees its own chunk only (position // chunk), Llama 4. None: all.
        media_bidirectional: Tokens of one image see each other (Gemma 3).
        logit_softcap: Scores become softcap * tanh(score / softcap), Gemma 2.
        sinks: One learned logit per head joins the softmax's denominator (gpt-oss).
        cross: Keys and values come from the encoder or the vision tower.
        tanh_gate: The output is multiplied by the tanh of a learned scalar (Mllama).
        alibi: Linear position biases (Press et al. 2021, arXiv 2108.12409).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None = None
    qkv_bias: bool = False
    key_bias: bool | None = None
    output_bias: bool = False
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    media_bidirectional: bool = False
    logit_softcap: float | None = None
    sinks: bool = False
    qk_norm: QkNormConfig | None = None
    query_temperature: QueryTemperatureConfig | None = None
    relative_bias: RelativeBiasConfig | None = None
    alibi: bool = False
    cross: bool = False
    tanh_gate: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "scale", "window", "chunk", "logit_softcap")
        require_multiple(self, "num_heads", "num_kv_heads")
        if self.rope is not None and self.rope.rotary_dim > self.head_dim:
            raise ValueError(
                f"AttentionConfig: rope rotates {self.rope.rotary_dim} components of a head of {self.head_dim}"
            )
        if self.window is not None and self.chunk is not None:
            raise ValueError(f"AttentionConfig: window {self.window} and chunk {self.chunk} exclude each other")


@dataclass(frozen=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are projections of one
    latent vector per token, and one rotated key part is shared by all heads.

    Attributes:
        q_lora_rank: Size of the queries' latent; None: queries are projected directly.
        kv_lora_rank: Size of the latent that is cached.
        scale: Multiplies query-key products, YaRN's mscale included.
        latent_norm: Norm of both latents.
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    scale: float
    rope: RopeConfig
    latent_norm: NormConfig
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim", "scale")
        require_not_negative(self, "qk_nope_head_dim")
        if self.rope.rotary_dim != self.qk_rope_head_dim:
            raise ValueError(
                f"LatentAttentionConfig: rope rotates {self.rope.rotary_dim} components, "
                f"qk_rope_head_dim is {self.qk_rope_head_dim}"
            )


@dataclass(frozen=True)
class Mamba2Config:
    """A Mamba-2 mixer (Dao and Gu 2024, arXiv 2405.21060). Its inner size is num_heads * head_dim.

    Attributes:
        conv_size: Taps of the causal depthwise convolution.
        norm: The gated norm before the output projection, over groups of inner size / num_groups.
        time_step_limit: Least and greatest step after the softplus.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_size: int
    norm: NormConfig
    conv_bias: bool = True
    projection_bias: bool = False
    time_step_limit: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "state_size", "num_groups", "conv_size")
        require_multiple(self, "num_heads", "num_groups")
        low, high = self.time_step_limit
        if not 0 <= low < high:
            raise ValueError(f"Mamba2Config: time_step_limit must ascend from at least 0, not {self.time_step_limit}")


@dataclass(frozen=True)
class LinearMixerConfig:
    """A matrix [H, H] in the place of attention (NemotronNAS)."""

    bias: bool = False


MixerConfig = AttentionConfig | LatentAttentionConfig | Mamba2Config | LinearMixerConfig
