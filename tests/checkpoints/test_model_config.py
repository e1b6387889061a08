"""Model configs refuse impossible values at birth."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from precast.checkpoints.model_config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    Mamba2Config,
    MixtureOfExpertsConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    PoolingHeadConfig,
    PositionEmbeddingConfig,
    ProjectorConfig,
    QkNormConfig,
    QueryTemperatureConfig,
    RelativeBiasConfig,
    RopeConfig,
    RouterConfig,
    VisionConfig,
)

NORM = NormConfig(1e-5)
ROPE = RopeConfig(10000.0, 16)
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rope=ROPE)
LATENT = LatentAttentionConfig(4, 32, 16, 8, 16, 8, 0.25, ROPE, NORM)
MAMBA = Mamba2Config(4, 16, 32, 2, 4, NORM)
MLP = MlpConfig(160)
EXPERTS = MixtureOfExpertsConfig(8, 2, MLP, RouterConfig(num_groups=4, chosen_groups=2))
LAYER = LayerConfig(ATTENTION, MLP, NORM, NORM)
VISION = VisionConfig(64, (LAYER, LAYER), 224, 14, media_token_id=5)
PROJECTOR = ProjectorConfig("mlp", 64, 64)
ENCODER = EncoderConfig((LAYER,), NORM, EmbeddingConfig())
MODEL = ModelConfig("LlamaForCausalLM", 320, 64, 256, (LAYER, LAYER), NORM, bos_token_id=0, eos_token_ids=(1,))


def test_layers_may_differ() -> None:
    layers = (
        LAYER,
        LayerConfig(None, MLP, feed_forward_norm=NORM),
        LayerConfig(MAMBA, None, mixer_norm=NORM),
        LayerConfig(LATENT, EXPERTS, NORM, NORM),
    )
    assert replace(MODEL, layers=layers).layers == layers


def test_configs_are_values() -> None:
    assert replace(MODEL) == MODEL
    assert hash(replace(MODEL)) == hash(MODEL)
    with pytest.raises(FrozenInstanceError):
        MODEL.vocab_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (NORM, {"epsilon": 0.0}, "NormConfig: epsilon must be positive, not 0.0"),
        (NORM, {"kind": "batch"}, "NormConfig: kind must be one of rms, layer, not 'batch'"),
        (ATTENTION, {"num_kv_heads": 3}, "AttentionConfig: num_heads 4 is not a multiple of num_kv_heads 3"),
        (ATTENTION, {"head_dim": 0}, "AttentionConfig: head_dim must be positive, not 0"),
        (ATTENTION, {"head_dim": 8}, "rope rotates 16 components of a head of 8"),
        (ATTENTION, {"scale": float("nan")}, "scale must be positive, not nan"),
        (ATTENTION, {"window": 0}, "window must be positive, not 0"),
        (ATTENTION, {"window": 8, "chunk": 8}, "window 8 and chunk 8 exclude each other"),
        (QkNormConfig(NORM), {"scope": "layer"}, "scope must be one of head, projection"),
        (QueryTemperatureConfig(8192, 0.1), {"scale": 0}, "scale must be positive"),
        (RelativeBiasConfig(32, 128), {"num_buckets": 0}, "num_buckets must be positive"),
        (LATENT, {"qk_rope_head_dim": 8}, "rope rotates 16 components, qk_rope_head_dim is 8"),
        (LATENT, {"qk_nope_head_dim": -1}, "qk_nope_head_dim must not be negative, and is -1"),
        (LATENT, {"q_lora_rank": 0}, "q_lora_rank must be positive, not 0"),
        (MAMBA, {"num_groups": 3}, "num_heads 4 is not a multiple of num_groups 3"),
        (MAMBA, {"time_step_limit": (1.0, 1.0)}, "time_step_limit must ascend"),
        (MLP, {"activation": "swish"}, "activation must be one of silu, gelu"),
        (MLP, {"intermediate_size": -1}, "intermediate_size must be positive, not -1"),
        (EXPERTS, {"experts_per_token": 9}, "experts_per_token 9 exceeds num_experts 8"),
        (EXPERTS, {"num_experts": 6}, "num_experts 6 is not a multiple of the router's num_groups 4"),
        (EXPERTS.router, {"scores": "max"}, "scores must be one of softmax, sigmoid, sparsemixer"),
        (EXPERTS.router, {"chosen_groups": 5}, "chosen_groups 5 exceeds num_groups 4"),
        (LAYER, {"residual_scale": 0.0}, "residual_scale must be positive"),
        (LAYER, {"mixer": None}, "mixer_norm is given, and there is no mixer"),
        (LAYER, {"cross_attention_norm": NORM}, "cross_attention_norm is given, and there is no cross_attention"),
        (LayerConfig(None, MLP), {"parallel": True}, "a parallel layer needs a mixer and a feed_forward"),
        (EmbeddingConfig(), {"scale": 0.0}, "EmbeddingConfig: scale must be positive"),
        (PositionEmbeddingConfig(512), {"offset": -1}, "offset must not be negative"),
        (HeadConfig(), {"softcap": 0.0}, "softcap must be positive"),
        (PoolingHeadConfig(2), {"pooling": "mean"}, "pooling must be one of first, last, all"),
        (ENCODER, {"mel_bins": 80}, "give either an embedding .text. or mel_bins .audio."),
        (VISION, {"output_layer": 0}, "output_layer 0 does not count back from 2 layers"),
        (VISION, {"class_token": "middle"}, "class_token must be one of none, first, last"),
        (PROJECTOR, {"kind": "magic"}, "kind must be one of mlp"),
        (MODEL, {"vocab_size": 0}, "ModelConfig: vocab_size must be positive, not 0"),
        (MODEL, {"layers": ()}, "ModelConfig: layers is empty"),
        (MODEL, {"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, not 'float64'"),
        (MODEL, {"eos_token_ids": (1, 320)}, "eos_token_ids 320 is outside the vocabulary of 320 tokens"),
        (MODEL, {"bos_token_id": -1}, "bos_token_id -1 is outside the vocabulary of 320 tokens"),
        (MODEL, {"vision": VISION}, "a vision tower and a projector come together"),
    ],
)
def test_impossible_values_are_refused_at_birth(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
