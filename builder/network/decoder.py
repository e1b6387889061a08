"""The whole network of a rank: embedding or what the stage before sends, layers, head or what the next stage gets."""

import onnx_ir as ir

from precast.builder.network.attention import emit_attention
from precast.builder.network.collectives import emit_receive, emit_send
from precast.builder.network.embedding import emit_embedding
from precast.builder.network.emitter import Emitter, num_features
from precast.builder.network.feed_forward import emit_feed_forward
from precast.builder.network.head import emit_head
from precast.builder.network.implemented import implemented
from precast.builder.network.network import Network
from precast.builder.network.norm import emit_norm
from precast.builder.plan import BuildPlan
from precast.checkpoints.model_config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from precast.checkpoints.ranks.rank_model import RankModel


def emit_network(rank: RankModel, plan: BuildPlan) -> Network:
    """The plain network of a rank, one node an operation; passes make it fast.

    The ranks of a stage have the same nodes in the same order, so that their collectives meet. The model is one that
    `check_implemented` accepts.
    """
    emitter = Emitter(plan, _windows(rank.model, plan), rank.tensor_parallel_size)
    x = emit_embedding(emitter, rank) if rank.is_first_stage else emit_receive(emitter, rank.model.hidden_size)
    for index, layer in rank.layers.items():
        x = _emit_layer(emitter, layer, x, f"layers.{index}")
    return emitter.finish(emit_head(emitter, rank, x) if rank.is_last_stage else emit_send(emitter, x))


def _windows(model: ModelConfig, plan: BuildPlan) -> list[int | None]:
    """The distinct windows of all ranks' attention layers: None, if any sees everything, then ascending."""
    mixers = [layer.mixer for layer in model.layers]
    windows = {plan.effective_window(mixer.window) for mixer in mixers if isinstance(mixer, AttentionConfig)}
    return sorted(windows, key=lambda window: window or 0)


def _emit_layer(emitter: Emitter, layer: LayerConfig, x: ir.Value, name: str) -> ir.Value:
    """x + mixer(norm(x)), then the same with the feed-forward."""
    mixer = implemented(layer.mixer, AttentionConfig, f"{name}.mixer")
    mixer_norm = implemented(layer.mixer_norm, NormConfig, f"{name}.mixer_norm")
    normed = emit_norm(emitter, mixer_norm, x, f"{name}.mixer_norm")
    x = _emit_residual(emitter, x, emit_attention(emitter, mixer, normed, f"{name}.attention"), f"{name}.mixer_sum")

    mlp = implemented(layer.feed_forward, MlpConfig, f"{name}.feed_forward")
    mlp_norm = implemented(layer.feed_forward_norm, NormConfig, f"{name}.feed_forward_norm")
    normed = emit_norm(emitter, mlp_norm, x, f"{name}.feed_forward_norm")
    output = emit_feed_forward(emitter, mlp, normed, f"{name}.feed_forward")
    return _emit_residual(emitter, x, output, f"{name}.feed_forward_sum")


def _emit_residual(emitter: Emitter, x: ir.Value, output: ir.Value, name: str) -> ir.Value:
    return emitter.builtin("Add", [x, output], name, num_features(x))
