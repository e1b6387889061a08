"""tools/bench: what surrounds the other engines. None of them is installed here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.tools.bench_modules import FOLDER, load_bench_module

environments = load_bench_module("environments")
gguf_checkpoint = load_bench_module("peers.gguf_checkpoint")
memory = load_bench_module("memory")
peers = load_bench_module("peers")


class TestVariants:
    @pytest.mark.parametrize("name", list(peers.VARIANTS))
    def test_name_what_exists(self, name: str) -> None:
        variant = peers.VARIANTS[name]
        assert (FOLDER / "peers" / f"{variant.adapter}.py").exists()
        assert variant.environment == "precast" or variant.environment in environments.RECIPES

    def test_of_the_default_are_there_and_begin_with_ours(self) -> None:
        assert set(peers.DEFAULT_VARIANTS) <= set(peers.VARIANTS)
        assert peers.DEFAULT_VARIANTS[0] == "precast-bf16"

    def test_with_a_copied_prefix_are_for_shared_prefixes_only(self) -> None:
        variant = peers.VARIANTS["llama.cpp-bf16-prefix-copied"]
        assert [name for name in ("W1", "W3", "W4") if variant.fits(name)] == ["W4"]
        assert peers.VARIANTS["llama.cpp-bf16"].fits("W1")


class TestGgufNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.21.self_attn.q_proj.weight", "blk.21.attn_q.weight"),
            ("model.layers.21.mlp.down_proj.weight", "blk.21.ffn_down.weight"),
        ],
    )
    def test_of_a_plain_llama(self, name: str, expected: str) -> None:
        assert gguf_checkpoint.gguf_name(name) == expected

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.0.moe.weight",
            "norm",
        ],
    )
    def test_of_anything_else_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} is no tensor of a plain Llama"):
            gguf_checkpoint.gguf_name(name)

    @pytest.mark.parametrize("change", [{"model_type": "qwen3"}, {"rope_scaling": {"factor": 2}}, {"mlp_bias": True}])
    def test_config_that_needs_more_is_refused(self, change: dict[str, Any]) -> None:
        gguf_checkpoint.check_config({"model_type": "llama", "rope_scaling": None})
        with pytest.raises(ValueError, match=next(iter(change))):
            gguf_checkpoint.check_config({"model_type": "llama"} | change)


class TestGgufTensors:
    def test_rows_of_a_head_are_interleaved(self) -> None:
        rows = np.arange(8).reshape(8, 1)
        assert gguf_checkpoint.interleave_rope_rows(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]

    @given(heads=st.integers(1, 4), half=st.integers(1, 8), angle=st.floats(-3, 3))
    def test_rotating_neighbours_is_then_rotating_halves(self, heads: int, half: int, angle: float) -> None:
        """What the reordering is for: llama.cpp rotates the new rows as Hugging Face rotates the old ones."""
        x = np.random.default_rng(heads * 100 + half).standard_normal((heads * 2 * half, 1))
        angles = angle / (1 + np.arange(half))
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = x.reshape(heads, 2, half).swapaxes(0, 1)
        rotated = np.stack([first * cos - second * sin, second * cos + first * sin], axis=1).reshape(-1, 1)
        even, odd = np.moveaxis(gguf_checkpoint.interleave_rope_rows(x, heads).reshape(heads, half, 2), 2, 0)
        neighbours = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=2).reshape(-1, 1)
        assert np.array_equal(neighbours, gguf_checkpoint.interleave_rope_rows(rotated, heads))

    def test_are_read_and_kept_bit_for_bit(self, tmp_path: Path) -> None:
        weight = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32).astype(ml_dtypes.bfloat16)
        norm = np.array([1, -0.5, 3.140625], dtype=ml_dtypes.bfloat16)
        save_file({"w": weight, "norm": norm}, tmp_path / "m.safetensors", metadata={"format": "pt"})
        tensors = dict(gguf_checkpoint.read_tensors(tmp_path / "m.safetensors"))
        assert set(tensors) == {"w", "norm"}
        assert np.array_equal(gguf_checkpoint.to_gguf("w", tensors["w"], {}), weight.view(np.uint16))
        as_float = gguf_checkpoint.to_gguf("norm", tensors["norm"], {})
        assert as_float.dtype == np.float32
        assert as_float.tolist() == [1, -0.5, 3.140625]

    def test_of_another_type_are_refused(self, tmp_path: Path) -> None:
        save_file({"w": np.zeros(3, dtype=np.float32)}, tmp_path / "m.safetensors")
        with pytest.raises(ValueError, match="w is F32; this converter knows BF16 only"):
            list(gguf_checkpoint.read_tensors(tmp_path / "m.safetensors"))

    def test_q_and_k_have_heads_of_their_own(self) -> None:
        config = {"num_attention_heads": 4, "num_key_value_heads": 1}
        tensor = np.arange(8, dtype=np.uint16).reshape(8, 1)
        assert gguf_checkpoint.to_gguf("q_proj.weight", tensor, config).ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert gguf_checkpoint.to_gguf("k_proj.weight", tensor, config).ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
        assert gguf_checkpoint.to_gguf("v_proj.weight", tensor, config) is tensor


class TestGgufVocabulary:
    @pytest.mark.parametrize("merges", [[["a", "b"]], ["a b"]])
    def test_is_in_the_order_of_ids(self, tmp_path: Path, merges: list[Any]) -> None:
        tokenizer = {
            "model": {"vocab": {"a": 1, "<s>": 0, "ab": 3, "b": 2}, "merges": merges},
            "added_tokens": [
                {"id": 0, "content": "<s>", "special": True},
                {"id": 4, "content": "plain", "special": False},
            ],
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        tokens, types, written = gguf_checkpoint.read_vocabulary(tmp_path / "tokenizer.json")
        assert tokens == ["<s>", "a", "b", "ab", "plain"]
        assert types == [3, 1, 1, 1, 1]
        assert written == ["a b"]


class TestMemory:
    def test_of_this_process(self) -> None:
        held = np.ones(64 << 20, dtype=np.uint8)
        usage = memory.process_tree_usage()
        assert usage.pss_private >= held.nbytes
        assert usage.pss == pytest.approx(usage.pss_private + usage.pss_mapped, rel=0.01)
        assert usage.peak_rss >= usage.pss_private

    def test_adds_up_a_tree(self, tmp_path: Path) -> None:
        for pid, children, kilobytes in [(1, "2 3", 10), (2, "", 200), (3, "", 3000), (4, "", 40000)]:
            (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
            (tmp_path / f"{pid}/task/{pid}/children").write_text(children)
            rollup = (
                f"00-ff ---p [rollup]\nPss: {3 * kilobytes} kB\nPss_Anon: {kilobytes} kB\nPss_File: {kilobytes} kB\n"
            )
            (tmp_path / f"{pid}/smaps_rollup").write_text(rollup + f"Pss_Shmem: {kilobytes} kB\n")
            (tmp_path / f"{pid}/status").write_text(f"Name: x\nVmHWM: {5 * kilobytes} kB\nThreads: 3\n")
        k = 3210 * 1024
        assert memory.process_tree_usage(1, tmp_path) == memory.MemoryUsage(3 * k, k, 2 * k, 5 * k)

    def test_of_no_process(self) -> None:
        with pytest.raises(OSError, match=r".+"):
            memory.process_tree_usage(int(Path("/proc/sys/kernel/pid_max").read_text()) + 1)
        assert memory.process_tree_usage(os.getpid()).pss > 0


class TestSourceHash:
    @pytest.fixture
    def sources(self, tmp_path: Path) -> Path:
        (tmp_path / "room").mkdir()
        (tmp_path / "room/a.py").write_text("a")
        (tmp_path / "room/b.cpp").write_text("b")
        (tmp_path / "top.txt").write_text("t")
        return tmp_path

    def hash_of(self, folder: Path) -> str:
        return str(environments.source_hash(folder, ["room", "top.txt"]))

    def test_changes_with_contents_and_names(self, sources: Path) -> None:
        hashes = [self.hash_of(sources)]
        (sources / "room/a.py").write_text("A")
        hashes.append(self.hash_of(sources))
        (sources / "room/a.py").rename(sources / "room/c.py")
        hashes.append(self.hash_of(sources))
        (sources / "top.txt").write_text("T")
        hashes.append(self.hash_of(sources))
        assert len(set(hashes)) == 4

    def test_does_not_change_with_what_no_wheel_is_made_from(self, sources: Path) -> None:
        before = self.hash_of(sources)
        (sources / "room/__pycache__").mkdir()
        (sources / "room/__pycache__/a.pyc").write_bytes(b"x")
        (sources / "notes.md").write_text("n")
        assert self.hash_of(sources) == before
