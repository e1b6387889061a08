"""No field of a model config can be ignored: it is implemented, or refused by name."""

from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from precast.builder.backends import get_backend
from precast.builder.build_config import BuildConfig
from precast.builder.errors import UnsupportedModelError
from precast.builder.manifest import engine_manifest
from precast.builder.network.implemented import IMPLEMENTED
from precast.builder.network.network import Network
from precast.builder.network.text import network_text
from precast.builder.plan import plan_build
from precast.builder.ranks.built_rank import BuiltRank
from precast.builder.requirements import requirements
from precast.builder.weights import RopeFrequencies
from precast.checkpoints.engine_manifest import FileEntry, RankFiles
from precast.checkpoints.model_config import (
    AttentionConfig,
    EmbeddingConfig,
    EncoderConfig,
    HeadConfig,
    LatentAttentionConfig,
    LayerConfig,
    LinearFeedForwardConfig,
    LinearMixerConfig,
    LinearScaling,
    Llama3Scaling,
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
    RopeScaling,
    RouterConfig,
    VisionConfig,
    YarnScaling,
)
from precast.checkpoints.ranks.mapping import Mapping as RankMapping
from precast.checkpoints.rope import DynamicScaling, LongRopeScaling
from tests.builder.worlds import (
    ATTENTION,
    LAYER,
    MODEL,
    NORM,
    RandomTensors,
    emitted,
    with_attention,
    with_layers,
    with_mlp,
    with_rope,
)

LLAMA3 = Llama3Scaling(8.0, 0.1, 4.0, 64)
DYNAMIC = DynamicScaling(4.0, 32)
SHORT_ROPE, LONG_ROPE = (LongRopeScaling((1.0,) * 4, (2.0,) * 4, context) for context in (64, 32))
YARN = YarnScaling(4.0, 4096, mscale=0.7, mscale_all_dim=0.5)
OTHER_NORM = NormConfig(0.5)


def scaling_change(
    scaling: RopeScaling, field: str, value: object
) -> tuple[tuple[type, str], tuple[ModelConfig, ModelConfig]]:
    changed = replace(scaling, **{field: value})  # type: ignore[arg-type]  # of the field's own type
    return (type(scaling), field), (with_rope(scaling=scaling), with_rope(scaling=changed))


SCALING_CHANGES = dict(
    [
        scaling_change(LLAMA3, "factor", 4.0),
        scaling_change(LLAMA3, "low_freq_factor", 0.2),
        scaling_change(LLAMA3, "high_freq_factor", 8.0),
        scaling_change(LLAMA3, "original_max_position_embeddings", 32),
        scaling_change(DYNAMIC, "factor", 8.0),
        scaling_change(DYNAMIC, "original_max_position_embeddings", 16),
        scaling_change(SHORT_ROPE, "short_factor", (1.0, 1.0, 1.0, 2.0)),
        scaling_change(LONG_ROPE, "long_factor", (1.0, 1.0, 1.0, 3.0)),
        scaling_change(LONG_ROPE, "original_max_position_embeddings", 64),
        scaling_change(LONG_ROPE, "attention_factor", 1.5),
        scaling_change(YARN, "factor", 8.0),
        scaling_change(YARN, "original_max_position_embeddings", 64),
        scaling_change(YARN, "beta_fast", 2.0),
        scaling_change(YARN, "beta_slow", 0.1),
        scaling_change(YARN, "attention_factor", 2.0),
        scaling_change(YARN, "mscale", 0.9),
        scaling_change(YARN, "mscale_all_dim", 0.9),
        scaling_change(YARN, "truncate", False),
    ]
)

# Of every implemented field, a model in which it has another value than in a second one.
CHANGES: dict[tuple[type, str], tuple[ModelConfig, ModelConfig]] = {
    (ModelConfig, "architecture"): (MODEL, replace(MODEL, architecture="OtherForCausalLM")),
    (ModelConfig, "vocab_size"): (MODEL, replace(MODEL, vocab_size=41)),
    (ModelConfig, "hidden_size"): (MODEL, replace(MODEL, hidden_size=34)),
    (ModelConfig, "max_position_embeddings"): (MODEL, replace(MODEL, max_position_embeddings=65)),
    (ModelConfig, "layers"): (MODEL, replace(MODEL, layers=(LAYER, LAYER))),
    (ModelConfig, "final_norm"): (MODEL, replace(MODEL, final_norm=OTHER_NORM)),
    (ModelConfig, "head"): (MODEL, replace(MODEL, head=HeadConfig(tied=True))),
    (ModelConfig, "bos_token_id"): (MODEL, replace(MODEL, bos_token_id=1)),
    (ModelConfig, "eos_token_ids"): (MODEL, replace(MODEL, eos_token_ids=(1, 2))),
    (ModelConfig, "pad_token_id"): (MODEL, replace(MODEL, pad_token_id=3)),
    (ModelConfig, "dtype"): (MODEL, replace(MODEL, dtype="bfloat16")),
    (HeadConfig, "tied"): (MODEL, replace(MODEL, head=HeadConfig(tied=True))),
    (HeadConfig, "bias"): (MODEL, replace(MODEL, head=HeadConfig(bias=True))),
    (LayerConfig, "mixer"): (MODEL, with_layers(mixer=replace(ATTENTION, scale=1.0))),
    (LayerConfig, "feed_forward"): (MODEL, with_layers(feed_forward=MlpConfig(64))),
    (LayerConfig, "mixer_norm"): (MODEL, with_layers(mixer_norm=OTHER_NORM)),
    (LayerConfig, "feed_forward_norm"): (MODEL, with_layers(feed_forward_norm=OTHER_NORM)),
    (AttentionConfig, "num_heads"): (MODEL, with_attention(num_heads=2)),
    (AttentionConfig, "num_kv_heads"): (MODEL, with_attention(num_kv_heads=1)),
    (AttentionConfig, "head_dim"): (MODEL, with_attention(head_dim=10)),
    (AttentionConfig, "scale"): (MODEL, with_attention(scale=0.5)),
    (AttentionConfig, "rope"): (MODEL, with_attention(rope=None)),
    (AttentionConfig, "qkv_bias"): (MODEL, with_attention(qkv_bias=True)),
    (AttentionConfig, "key_bias"): (with_attention(qkv_bias=True), with_attention(qkv_bias=True, key_bias=False)),
    (AttentionConfig, "output_bias"): (MODEL, with_attention(output_bias=True)),
    (AttentionConfig, "window"): (MODEL, with_attention(window=16)),
    (AttentionConfig, "qk_norm"): (MODEL, with_attention(qk_norm=QkNormConfig(NORM))),
    (QkNormConfig, "norm"): (
        with_attention(qk_norm=QkNormConfig(NORM)),
        with_attention(qk_norm=QkNormConfig(OTHER_NORM)),
    ),
    (RopeConfig, "theta"): (MODEL, with_rope(theta=500.0)),
    (RopeConfig, "rotary_dim"): (MODEL, with_rope(rotary_dim=4)),
    (RopeConfig, "scaling"): (MODEL, with_rope(scaling=LinearScaling(2.0))),
    (LinearScaling, "factor"): (with_rope(scaling=LinearScaling(2.0)), with_rope(scaling=LinearScaling(4.0))),
    **SCALING_CHANGES,
    (MlpConfig, "intermediate_size"): (MODEL, with_mlp(intermediate_size=50)),
    (MlpConfig, "bias"): (MODEL, with_mlp(bias=True)),
    (NormConfig, "epsilon"): (MODEL, replace(MODEL, final_norm=NormConfig(1e-6))),
}
# These have one implemented value only, which the refusals below show.
SINGLE_VALUED = {(ModelConfig, "embedding"), (MlpConfig, "activation")}


def everything_built(model: ModelConfig) -> tuple[object, ...]:
    """All of an engine that follows from the config: the graph with its recipes, plan and manifest."""
    plan = plan_build(model, BuildConfig())
    network = emitted(model, plan)
    files = RankFiles("graph", "weights", network.kv_groups, tuple(network.kv_caches))
    rank = BuiltRank(files, requirements(network), FileEntry(1, "0" * 64))
    rope_tables = [source.read(RandomTensors(model)).tobytes() for source in rope_sources(network)]
    network_lines = network_text(network)
    manifest = engine_manifest(model, BuildConfig(), plan, RankMapping(), get_backend("onnxruntime"), [rank])
    return network_lines, rope_tables, manifest


def rope_sources(network: Network) -> list[RopeFrequencies]:
    """The sources that hold a config: not it, but what they make of it is in an engine."""
    sources = [source for recipe in network.weights.values() for source in recipe.sources]
    return [source for source in sources if isinstance(source, RopeFrequencies)]


def test_every_implemented_field_has_a_change() -> None:
    implemented = {(kind, field) for kind, rules in IMPLEMENTED.items() for field in rules}
    assert implemented == CHANGES.keys() | SINGLE_VALUED


@pytest.mark.parametrize(("kind", "field"), CHANGES, ids=lambda part: getattr(part, "__name__", part))
def test_an_implemented_field_changes_the_engine(kind: type, field: str) -> None:
    before, after = CHANGES[kind, field]
    assert everything_built(before) != everything_built(after)


@pytest.mark.parametrize("kind", IMPLEMENTED, ids=lambda kind: kind.__name__)
def test_every_other_field_has_a_default_that_means_absent(kind: type) -> None:
    for field in fields(kind):
        assert field.name in IMPLEMENTED[kind] or field.default is not MISSING, field.name
    assert not IMPLEMENTED[kind].keys() - {field.name for field in fields(kind)}


def vision() -> dict[str, Any]:
    tower = VisionConfig(hidden_size=8, layers=(LAYER,), image_size=8, patch_size=4, media_token_id=1)
    return {"vision": tower, "projector": ProjectorConfig("mlp", 8, 32)}


# Of every field that is not implemented, a value that must be refused, and how the error begins.
REFUSED: list[tuple[ModelConfig, str]] = [
    (with_attention(chunk=8192), "layers.0.mixer.chunk is 8192"),
    (with_attention(causal=False), "layers.0.mixer.causal is False"),
    (with_attention(media_bidirectional=True), "layers.0.mixer.media_bidirectional is True"),
    (with_attention(logit_softcap=50.0), "layers.0.mixer.logit_softcap is 50.0"),
    (with_attention(sinks=True), "layers.0.mixer.sinks is True"),
    (with_attention(qk_norm=QkNormConfig(NORM, scope="projection")), "layers.0.mixer.qk_norm.scope is 'projection'"),
    (with_attention(qk_norm=QkNormConfig(NORM, after_rope=True)), "layers.0.mixer.qk_norm.after_rope is True"),
    (
        with_attention(query_temperature=QueryTemperatureConfig(8192.0, 0.1)),
        "layers.0.mixer.query_temperature is QueryTemperatureConfig",
    ),
    (with_attention(relative_bias=RelativeBiasConfig(32, 128)), "layers.0.mixer.relative_bias is RelativeBiasConfig"),
    (with_attention(alibi=True), "layers.0.mixer.alibi is True"),
    (with_attention(cross=True), "layers.0.mixer.cross is True"),
    (with_attention(tanh_gate=True), "layers.0.mixer.tanh_gate is True"),
    (with_attention(head_dim=9), "layers.0.mixer.head_dim is 9"),
    (with_rope(interleaved=True), "layers.0.mixer.rope.interleaved is True"),
    (with_rope(mrope_section=(2, 1, 1)), r"layers.0.mixer.rope.mrope_section is \(2, 1, 1\)"),
    (with_mlp(gated=False), "layers.0.feed_forward.gated is False"),
    (with_mlp(activation="gelu"), "layers.0.feed_forward.activation is 'gelu'"),
    (with_mlp(clamp=7.0), "layers.0.feed_forward.clamp is 7.0"),
    (with_mlp(up_offset=1.0), "layers.0.feed_forward.up_offset is 1.0"),
    (with_mlp(tanh_gate=True), "layers.0.feed_forward.tanh_gate is True"),
    (with_layers(parallel=True), "layers.0.parallel is True"),
    (with_layers(residual_scale=0.5), "layers.0.residual_scale is 0.5"),
    (with_layers(mixer_norm=None), "layers.0.mixer_norm is None"),
    (with_layers(feed_forward_norm=None), "layers.0.feed_forward_norm is None"),
    (with_layers(mixer_post_norm=NORM), "layers.0.mixer_post_norm is NormConfig"),
    (with_layers(feed_forward_post_norm=NORM), "layers.0.feed_forward_post_norm is NormConfig"),
    (with_layers(mixer_residual_norm=NORM), "layers.0.mixer_residual_norm is NormConfig"),
    (with_layers(feed_forward_residual_norm=NORM), "layers.0.feed_forward_residual_norm is NormConfig"),
    (with_layers(cross_attention=ATTENTION), "layers.0.cross_attention is AttentionConfig"),
    (
        with_layers(cross_attention=ATTENTION, cross_attention_norm=NORM),
        "layers.0.cross_attention is AttentionConfig",
    ),
    (
        with_layers(cross_attention=ATTENTION, cross_attention_residual_norm=NORM),
        "layers.0.cross_attention is AttentionConfig",
    ),
    (with_layers(mixer=None, mixer_norm=None), "layers.0.mixer is None"),
    (with_layers(feed_forward=None, feed_forward_norm=None), "layers.0.feed_forward is None"),
    (with_layers(mixer=LinearMixerConfig()), "layers.0.mixer is LinearMixerConfig"),
    (with_layers(mixer=Mamba2Config(2, 8, 8, 1, 4, NORM)), "layers.0.mixer is Mamba2Config"),
    (
        with_layers(mixer=LatentAttentionConfig(4, None, 16, 8, 4, 8, 0.3, RopeConfig(1e4, 4), NORM)),
        "layers.0.mixer is LatentAttentionConfig",
    ),
    (with_layers(feed_forward=LinearFeedForwardConfig()), "layers.0.feed_forward is LinearFeedForwardConfig"),
    (
        with_layers(feed_forward=MixtureOfExpertsConfig(4, 2, MlpConfig(8), RouterConfig())),
        "layers.0.feed_forward is MixtureOfExpertsConfig",
    ),
    (with_layers(mixer_norm=replace(NORM, kind="layer")), "layers.0.mixer_norm.kind is 'layer'"),
    (with_layers(mixer_norm=replace(NORM, weight=False)), "layers.0.mixer_norm.weight is False"),
    (with_layers(mixer_norm=replace(NORM, weight_offset=1.0)), "layers.0.mixer_norm.weight_offset is 1.0"),
    (replace(MODEL, final_norm=replace(NORM, bias=True)), "final_norm.bias is True"),
    (replace(MODEL, final_norm=None), "final_norm is None"),
    (replace(MODEL, embedding=EmbeddingConfig(scale=8.0)), "embedding.scale is 8.0"),
    (replace(MODEL, embedding=EmbeddingConfig(num_rows=48)), "embedding.num_rows is 48"),
    (replace(MODEL, embedding=EmbeddingConfig(size=16)), "embedding.size is 16"),
    (
        replace(MODEL, embedding=EmbeddingConfig(positions=PositionEmbeddingConfig(64))),
        "embedding.positions is PositionEmbeddingConfig",
    ),
    (replace(MODEL, embedding=EmbeddingConfig(num_token_types=2)), "embedding.num_token_types is 2"),
    (replace(MODEL, embedding=EmbeddingConfig(norm=NORM)), "embedding.norm is NormConfig"),
    (replace(MODEL, head=HeadConfig(scale=0.5)), "head.scale is 0.5"),
    (replace(MODEL, head=HeadConfig(softcap=30.0)), "head.softcap is 30.0"),
    (replace(MODEL, head=PoolingHeadConfig(2)), "head is PoolingHeadConfig"),
    (replace(MODEL, encoder=EncoderConfig((LAYER,), NORM, EmbeddingConfig())), "encoder is EncoderConfig"),
    (replace(MODEL, **vision()), "vision is VisionConfig"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_field_that_is_not_implemented_is_refused_by_name(model: ModelConfig, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{message}, which the builder does not implement; it implements"):
        emitted(model)


def test_every_field_that_is_not_implemented_is_among_the_refused() -> None:
    shown = {message.split(" is ")[0].split(".")[-1] for _, message in REFUSED}
    all_fields = [(rules, field.name) for kind, rules in IMPLEMENTED.items() for field in fields(kind)]
    not_implemented = {name for rules, name in all_fields if name not in rules}
    # The norms of a cross-attention come with one, which is refused first; the projector comes with the vision tower.
    behind_others = {"cross_attention_norm", "cross_attention_residual_norm", "projector"}
    assert not_implemented <= shown | behind_others


def test_the_layer_that_is_wrong_is_named() -> None:
    chunked = with_attention(chunk=16).layers[0]
    model = replace(MODEL, layers=(LAYER, LAYER, LAYER, chunked))
    with pytest.raises(UnsupportedModelError, match=r"^layers\.3\.mixer\.chunk is 16, .* it implements None$"):
        emitted(model)


def test_a_class_of_config_that_is_not_listed_is_refused() -> None:
    class NewNorm(NormConfig):
        pass

    with pytest.raises(UnsupportedModelError, match=r"^final_norm is NewNorm, .* it implements NormConfig$"):
        emitted(replace(MODEL, final_norm=NewNorm(1e-5)))
