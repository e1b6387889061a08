"""Each test is one numbered rule of the pass."""

from dataclasses import replace

import pytest

from precast.builder.network.text import network_text
from precast.builder.passes.base import InvariantError, run_passes
from precast.builder.passes.check_supported import CheckSupported, versioned_op
from precast.builder.passes.pipeline import PIPELINE
from precast.checkpoints.engine_kv import KvCacheSpec
from tests.builder.worlds import LAYER, MODEL, emitted, finished, with_attention

CHECK = CheckSupported()


def test_a_finished_network_passes_unchanged() -> None:
    network = finished()
    before = network_text(network)
    assert not CHECK(network)
    assert network_text(network) == before


def test_1_an_onnx_operator_that_is_not_listed_is_refused() -> None:
    with pytest.raises(
        InvariantError,
        match=r"^node layers\.0\.attention\.qkv uses ONNX operator Concat, which .*; supported: Add, Gather$",
    ):
        CHECK(emitted())


def test_2_an_op_of_ours_that_the_runtime_lacks_is_refused() -> None:
    network = finished()
    network.graph.node("lm_head").op_type = "SparseLinear"
    with pytest.raises(InvariantError, match=r"^node lm_head uses op ai\.precast\.SparseLinear/1, which .*Linear/1"):
        CHECK(network)


def test_2_a_version_that_the_runtime_lacks_is_refused() -> None:
    network = finished()
    network.graph.node("lm_head").version = 2
    assert versioned_op(network.graph.node("lm_head")) == "ai.precast.Linear/2"
    with pytest.raises(InvariantError, match=r"^node lm_head uses op ai\.precast\.Linear/2, "):
        CHECK(network)


def test_2_another_domain_is_refused() -> None:
    network = finished()
    network.graph.node("final_norm").domain = "com.microsoft"
    with pytest.raises(InvariantError, match=r"^node final_norm uses op com\.microsoft\.RmsNorm/1, "):
        CHECK(network)


def test_3_a_layout_that_the_runtime_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = finished()
    monkeypatch.setattr("precast.builder.passes.check_supported.SUPPORTED_LAYOUTS", ("kv16.f32/1",))
    with pytest.raises(InvariantError, match=r"^initialiser embedding\.weight uses layout x16k1\.f32/1, "):
        CHECK(network)


def test_3_a_kv_layout_that_the_runtime_lacks_is_refused() -> None:
    network = finished()
    network.kv_caches[0] = replace(network.kv_caches[0], layout="kv16.i8/1")
    with pytest.raises(InvariantError, match=r"^KV pool kv\.0 uses layout kv16\.i8/1, "):
        CHECK(network)


def test_4_a_pool_has_one_reader() -> None:
    network = finished()
    network.graph.node("layers.0.attention").replace_input_with(4, network.graph.inputs[0])
    with pytest.raises(InvariantError, match=r"^KV pool kv\.0 has 0 readers; it must have one$"):
        CHECK(network)


def test_4_a_pool_is_an_input_of_the_graph() -> None:
    network = finished()
    network.kv_caches.append(KvCacheSpec("kv.1", "kv16.f32/1", 2048, 0))
    with pytest.raises(InvariantError, match=r"^KV pool kv\.1 has 0 readers; it must have one$"):
        CHECK(network)


def test_5_pools_that_share_memory_are_of_one_size() -> None:
    other = with_attention(window=8, head_dim=16).layers[0]
    network = emitted(replace(MODEL, layers=(LAYER, other)))
    run_passes(network, PIPELINE[:-1])
    with pytest.raises(InvariantError, match=r"^kv_caches\[1\] must have the layout and block_bytes of kv_caches\[0\]"):
        CHECK(network)
