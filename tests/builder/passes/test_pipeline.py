"""What the passes promise together, on models of any shape."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from precast.builder.network.text import network_text
from precast.builder.passes.base import run_passes
from precast.builder.passes.pipeline import PIPELINE
from precast.checkpoints.model_config import (
    AttentionConfig,
    HeadConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from tests.builder.graph_runner import network_runner
from tests.builder.worlds import MODEL, RandomTensors, emitted, finished

NORMS = st.builds(NormConfig, epsilon=st.sampled_from([1e-6, 1e-2]))
MLPS = st.builds(MlpConfig, intermediate_size=st.sampled_from([16, 23]), bias=st.booleans())


@st.composite
def attentions(draw: st.DrawFn) -> AttentionConfig:
    num_kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([4, 6]))
    return AttentionConfig(
        num_heads=num_kv_heads * draw(st.integers(1, 2)),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=draw(st.sampled_from([0.2, 0.5])),
        rope=draw(st.sampled_from([None, RopeConfig(1e4, head_dim), RopeConfig(500.0, 4)])),
        qkv_bias=draw(st.booleans()),
        key_bias=draw(st.sampled_from([None, False, True])),
        output_bias=draw(st.booleans()),
    )


LAYERS = st.builds(LayerConfig, attentions(), MLPS, mixer_norm=NORMS, feed_forward_norm=NORMS)
MODELS = st.builds(
    replace,
    st.just(MODEL),
    hidden_size=st.sampled_from([8, 15]),
    layers=st.lists(LAYERS, min_size=1, max_size=3).map(tuple),
    head=st.builds(HeadConfig, tied=st.booleans(), bias=st.booleans()),
)


@settings(max_examples=40, deadline=None)
@given(MODELS)
def test_the_passes_keep_the_logits(model: ModelConfig) -> None:
    tensors, tokens = RandomTensors(model), [3, 1, 4, 1, 5]
    before, after = network_runner(emitted(model), tensors), network_runner(finished(model), tensors)
    np.testing.assert_allclose(after(tokens), before(tokens), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(MODELS)
def test_a_second_run_of_the_pipeline_changes_nothing(model: ModelConfig) -> None:
    network = finished(model)
    before = network_text(network)
    run_passes(network, PIPELINE)
    assert network_text(network) == before


@settings(max_examples=40, deadline=None)
@given(MODELS)
def test_a_finished_network_has_eight_nodes_a_layer_and_each_tensor_once(model: ModelConfig) -> None:
    network = finished(model)
    # Per layer two norms, qkv, attention, o, gate_up, activation, down; embedding, two Gathers, final norm, head.
    assert len(network.graph) == 8 * len(model.layers) + 5
    sources = [str(source) for recipe in network.weights.values() for source in recipe.sources]
    from_tensors = [source for source in sources if not source.startswith(("zeros", "rope"))]
    assert len(from_tensors) == len(set(from_tensors))
