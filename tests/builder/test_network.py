"""What the blocks emit, exactly: nodes, names, shapes, attributes and the recipe of every weight."""

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from precast.builder.build_config import BuildConfig
from precast.builder.network.network import IntegrityError, Network
from precast.builder.network.text import network_text
from precast.builder.plan import BuildPlan, plan_build
from precast.builder.weights import CheckpointTensor, RopeFrequencies, WeightRecipe
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_kv import KvGroupSpec
from precast.checkpoints.model_config import (
    HeadConfig,
    LinearScaling,
    ModelConfig,
    NormConfig,
    QkNormConfig,
    RopeConfig,
    YarnScaling,
)
from precast.checkpoints.rope import DynamicScaling, LongRopeScaling, rope_table
from tests.builder.worlds import (
    BFLOAT16,
    FLOAT32,
    LAYER,
    MODEL,
    TIED,
    emitted,
    finished,
    with_attention,
    with_mlp,
    with_rope,
)
from tests.tiny_llama import VARIANTS

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("name", "network"), [("layer_emitted", emitted), ("layer_finished", finished)])
def test_a_layer_line_by_line(name: str, network: Callable[[], Network]) -> None:
    """PRECAST_BLESS=1 writes the files anew; read the difference before you commit it."""
    path, text = GOLDEN / f"{name}.txt", network_text(network())
    if os.environ.get("PRECAST_BLESS") == "1":
        path.write_text(text)
    assert text == path.read_text()


def linear(in_features: int, out_features: int, layout: str = "x16k1.f32/1") -> str:
    return f"{{in_features={in_features}, out_features={out_features}, layout={layout}}}"


def changed_lines(model: ModelConfig, plan: BuildPlan = FLOAT32) -> list[str]:
    """The lines of the finished network that MODEL's lacks ("+") and those that only MODEL's has ("-")."""
    lines = difflib.ndiff(network_text(finished()).splitlines(), network_text(finished(model, plan)).splitlines())
    return [line[0] + line[3:] for line in lines if line[0] in "+-"]


def test_a_tied_head_reads_the_embeddings_table() -> None:
    assert changed_lines(TIED) == [
        f"- lm_head: logits [num_logit_rows, 40] = Linear(final_norm, lm_head.weight) {linear(32, 40)}",
        f"+ lm_head: logits [num_logit_rows, 40] = Linear(final_norm, embedding.weight) {linear(32, 40)}",
        "- lm_head.weight x16k1.f32/1 [40, 32] <- lm_head.weight",
    ]


def test_a_head_with_a_bias() -> None:
    assert changed_lines(replace(MODEL, head=HeadConfig(bias=True))) == [
        f"- lm_head: logits [num_logit_rows, 40] = Linear(final_norm, lm_head.weight) {linear(32, 40)}",
        f"+ lm_head: logits [num_logit_rows, 40] = Linear(final_norm, lm_head.weight, lm_head.bias) {linear(32, 40)}",
        "+ lm_head.bias plain [40] <- lm_head.bias",
    ]


def test_attention_biases() -> None:
    qkv = "layers.0.attention.qkv: [num_tokens, 64] = Linear(layers.0.mixer_norm, layers.0.attention.qkv.weight"
    o = "layers.0.attention.o: [num_logit_rows, 32] = Linear(layers.0.attention.logit_rows, layers.0.attention.o.weight"
    parts = " | ".join(f"layers.0.attention.{part}.bias" for part in "qkv")
    changes = changed_lines(with_attention(qkv_bias=True, output_bias=True))
    assert sorted(changes) == sorted(
        [
            f"- {qkv}) {linear(32, 64)}",
            f"+ {qkv}, layers.0.attention.qkv.bias) {linear(32, 64)}",
            f"- {o}) {linear(32, 32)}",
            f"+ {o}, layers.0.attention.o.bias) {linear(32, 32)}",
            "+ layers.0.attention.o.bias plain [32] <- layers.0.attention.o.bias",
            f"+ layers.0.attention.qkv.bias plain [64] <- {parts}",
        ]
    )


def test_keys_without_the_bias_of_queries_and_values() -> None:
    weights = finished(with_attention(qkv_bias=True, key_bias=False)).weights
    assert [str(source) for source in weights["layers.0.attention.qkv.bias"].sources] == [
        "layers.0.attention.q.bias",
        "zeros[16]",
        "layers.0.attention.v.bias",
    ]


def test_feed_forward_biases() -> None:
    weights = finished(with_mlp(bias=True)).weights
    assert str(weights["layers.0.feed_forward.gate_up.bias"].shape) == "(96,)"
    assert str(weights["layers.0.feed_forward.down.bias"].shape) == "(32,)"
    assert weights.keys() - finished().weights.keys() == {
        "layers.0.feed_forward.gate_up.bias",
        "layers.0.feed_forward.down.bias",
    }


def test_bfloat16_changes_the_layouts_and_nothing_else() -> None:
    expected = network_text(finished()).replace("x16k1.f32/1", "x16k2.bf16/1").replace("kv16.f32/1", "kv16.bf16/1")
    expected = expected.replace("tokens_per_block=16", "tokens_per_block=32")  # 32 tokens of 2 bytes: the same 2048
    assert network_text(finished(MODEL, BFLOAT16)) == expected


@pytest.mark.parametrize(("num_kv_heads", "features", "block_bytes"), [(1, 48, 1024), (2, 64, 2048), (4, 96, 4096)])
def test_shared_key_value_heads(num_kv_heads: int, features: int, block_bytes: int) -> None:
    network = finished(with_attention(num_kv_heads=num_kv_heads))
    assert network.weights["layers.0.attention.qkv.weight"].shape == (features, 32)
    assert [(cache.name, cache.block_bytes) for cache in network.kv_caches] == [("kv.0", block_bytes)]
    attention = network.graph.node("layers.0.attention")
    assert attention.attributes["num_kv_heads"].as_int() == num_kv_heads


def test_heads_wider_than_the_hidden_size() -> None:
    network = finished(with_attention(head_dim=16))
    assert network.weights["layers.0.attention.qkv.weight"].shape == (128, 32)
    assert network.weights["layers.0.attention.o.weight"].shape == (32, 64)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(500000.0, 8),
        RopeConfig(10000.0, 4),
        RopeConfig(10000.0, 8, LinearScaling(4.0)),
        RopeConfig(10000.0, 8, YarnScaling(4.0, 32)),
        RopeConfig(10000.0, 8, DynamicScaling(4.0, 32)),
        RopeConfig(10000.0, 8, LongRopeScaling((1.0,) * 4, (1.0, 2.0, 3.0, 4.0), 32, 1.5)),
    ],
)
def test_rope_is_a_constant_and_a_factor(rope: RopeConfig) -> None:
    network = finished(with_attention(rope=rope))
    table = rope_table(rope, FLOAT32.max_seq_len)
    recipe = network.weights["inv_freq.0"]
    assert recipe == WeightRecipe("plain", (RopeFrequencies(rope, FLOAT32.max_seq_len),))
    rows = 33 if isinstance(rope.scaling, DynamicScaling) else 1  # of 64 positions, 32 are beyond the original context
    assert recipe.shape == table.frequencies.shape == (rows, rope.rotary_dim // 2)
    attributes = network.graph.node("layers.0.attention").attributes
    assert np.float32(attributes["rope_scaling"].as_float()) == np.float32(table.attention_factor)
    assert attributes["rope_start"].as_int() == table.start


def test_no_rope_is_no_input() -> None:
    network = finished(with_attention(rope=None))
    assert len(network.graph.node("layers.0.attention").inputs) == 5
    assert "inv_freq.0" not in network.weights


def test_layers_share_equal_frequencies_and_have_pools_of_their_own() -> None:
    other = with_rope(theta=500.0).layers[0]
    no_rope = with_attention(rope=None, num_kv_heads=4).layers[0]
    network = finished(replace(MODEL, layers=(LAYER, other, no_rope, LAYER)))
    attentions = [network.graph.node(f"layers.{index}.attention") for index in range(4)]
    names = [[value.name for value in node.inputs[4:] if value is not None] for node in attentions]
    assert names == [["kv.0", "inv_freq.0"], ["kv.1", "inv_freq.1"], ["kv.2"], ["kv.3", "inv_freq.0"]]
    assert [cache.block_bytes for cache in network.kv_caches] == [2048, 2048, 4096, 2048]
    assert [value.name for value in network.graph.inputs][5:] == ["kv.0", "kv.1", "kv.2", "kv.3"]


def test_norms_of_queries_and_keys_are_inputs_of_the_attention() -> None:
    network = finished(with_attention(qk_norm=QkNormConfig(NormConfig(1e-3)), rope=None))
    attention = network.graph.node("layers.0.attention")
    names = ["layers.0.attention.q_norm.weight", "layers.0.attention.k_norm.weight"]
    assert [None if value is None else value.name for value in attention.inputs[5:]] == [None, *names]
    assert all(network.weights[name] == WeightRecipe("plain", (CheckpointTensor(name, (8,)),)) for name in names)
    assert np.float32(attention.attributes["qk_norm_epsilon"].as_float()) == np.float32(1e-3)
    assert [node.name for node in network.graph] == [node.name for node in finished().graph]  # q, k, v still are merged


def test_layers_of_one_window_form_a_group_with_a_block_table() -> None:
    wide, narrow, unreachable = (with_attention(window=window).layers[0] for window in (32, 8, 64))
    network = finished(replace(MODEL, layers=(wide, LAYER, narrow, unreachable, wide)))
    # No sequence of the plan, 64 tokens, can leave a window of 64.
    assert network.kv_groups == (
        KvGroupSpec("block_tables.0", None),
        KvGroupSpec("block_tables.1", 8),
        KvGroupSpec("block_tables.2", 32),
    )
    assert [cache.group for cache in network.kv_caches] == [2, 0, 1, 0, 2]
    attentions = [network.graph.node(f"layers.{index}.attention") for index in range(5)]
    assert [node.attributes["window"].as_int() for node in attentions] == [32, 0, 8, 0, 32]
    tables = [node.inputs[3].name for node in attentions if node.inputs[3] is not None]
    assert tables == [f"block_tables.{group}" for group in (2, 0, 1, 0, 2)]
    assert [value.name for value in network.graph.inputs][3:7] == [
        *(f"block_tables.{g}" for g in range(3)),
        "logit_rows",
    ]


def test_a_model_whose_layers_all_have_a_window_has_one_group() -> None:
    network = finished(with_attention(replace(MODEL, layers=(LAYER, LAYER)), window=8))
    assert network.kv_groups == (KvGroupSpec("block_tables.0", 8),)
    assert [cache.group for cache in network.kv_caches] == [0, 0]


def expected_nodes(num_layers: int) -> list[tuple[str, str]]:
    """(name, op) of the finished network of any model with `num_layers` layers."""
    found = [("embedding", "Embedding")]
    for index in range(num_layers):
        layer, last = f"layers.{index}", index == num_layers - 1
        stream = f"layers.{index - 1}.feed_forward_sum" if index else "embedding"
        found += [
            (f"{layer}.mixer_norm", "RmsNorm"),
            (f"{layer}.attention.qkv", "Linear"),
            (f"{layer}.attention", "PagedAttention"),
            *([(f"{layer}.attention.logit_rows", "Gather")] if last else []),
            (f"{layer}.attention.o", "Linear"),
            *([(f"{stream}.logit_rows", "Gather")] if last else []),
            (f"{layer}.feed_forward_norm", "RmsNorm"),
            (f"{layer}.feed_forward.gate_up", "Linear"),
            (f"{layer}.feed_forward.activation", "GatedActivation"),
            (f"{layer}.feed_forward.down", "Linear"),
        ]
    return [*found, ("final_norm", "RmsNorm"), ("lm_head", "Linear")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_uses_every_tensor_of_its_checkpoint_once(
    variant: str, tiny_llama: Callable[[str], Path]
) -> None:
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        model = checkpoint.config
        network = finished(model, plan_build(model, BuildConfig()))
        sources = [source for recipe in network.weights.values() for source in recipe.sources]
        used = [source for source in sources if isinstance(source, CheckpointTensor)]
        assert sorted(source.name for source in used) == sorted(checkpoint.names())
        assert all(checkpoint.info(source.name).shape == source.shape for source in used)
    assert [(node.name, node.op_type) for node in network.graph] == expected_nodes(len(model.layers))


def test_weights_are_stored_in_the_order_in_which_the_graph_reads_them() -> None:
    order = [name for name, _ in finished().weights_in_execution_order()]
    assert order == [
        "embedding.weight",
        "layers.0.mixer_norm.weight",
        "layers.0.attention.qkv.weight",
        "inv_freq.0",
        "layers.0.attention.o.weight",
        "layers.0.feed_forward_norm.weight",
        "layers.0.feed_forward.gate_up.weight",
        "layers.0.feed_forward.down.weight",
        "final_norm.weight",
        "lm_head.weight",
    ]


class TestIntegrity:
    def test_a_recipe_without_initialiser(self) -> None:
        network = emitted()
        del network.graph.initializers["inv_freq.0"]
        with pytest.raises(IntegrityError, match=r"^initialiser without recipe, or recipe without .*: inv_freq\.0$"):
            network.check_integrity()

    def test_a_recipe_of_another_shape(self) -> None:
        network = emitted()
        network.weights["final_norm.weight"] = WeightRecipe("plain", (CheckpointTensor("final_norm.weight", (31,)),))
        with pytest.raises(IntegrityError, match=r"^initialiser final_norm\.weight is .*\[32\].* says float32 \[31\]$"):
            network.check_integrity()

    def test_a_name_given_twice(self) -> None:
        network = emitted()
        with pytest.raises(IntegrityError, match=r"^initialiser inv_freq\.0 exists already$"):
            network.add_weight("inv_freq.0", network.weights["inv_freq.0"])
        network.graph.node("lm_head").name = "embedding"
        with pytest.raises(IntegrityError, match=r"^node name 'embedding' of Linear is empty or taken$"):
            network.check_integrity()

    def test_a_value_that_is_read_before_it_is_defined(self) -> None:
        network = emitted()
        node = network.graph.node("layers.0.mixer_sum")
        network.graph.remove(node)
        network.graph.insert_before(network.graph.node("embedding"), node)
        with pytest.raises(IntegrityError, match=r"^node layers\.0\.mixer_sum reads 'embedding', which nothing before"):
            network.check_integrity()

    def test_a_value_from_elsewhere_under_a_known_name(self) -> None:
        network = emitted()
        embedding = network.graph.node("embedding").outputs[0]
        impostor = ir.Value(name=embedding.name, shape=embedding.shape, type=embedding.type)
        network.graph.node("layers.0.mixer_norm").replace_input_with(0, impostor)
        with pytest.raises(IntegrityError, match=r"^node layers\.0\.mixer_norm reads 'embedding', which nothing"):
            network.check_integrity()

    def test_an_output_that_nothing_defines(self) -> None:
        network = emitted()
        network.graph.remove(network.graph.node("lm_head"))
        with pytest.raises(IntegrityError, match=r"^the graph's output reads 'logits', which nothing before"):
            network.check_integrity()
