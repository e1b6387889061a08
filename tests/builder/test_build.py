"""A build from end to end: the files, their bytes, and what is left when it fails."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError, UnsupportedModelError
from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.engine_dir import is_engine_dir, read_manifest, verify_files
from precast.checkpoints.engine_errors import EngineExistsError
from precast.checkpoints.weights_reader import read_weights_index
from precast.plugins.linear.pack import unpack
from tests.builder.worlds import with_attention
from tests.tiny_llama import VARIANTS

TinyLlama = Callable[..., Path]


def build(path: Path, output_dir: Path, config: BuildConfig | None = None, **options: object) -> None:
    with open_checkpoint(path) as checkpoint:
        build_engine(checkpoint, output_dir, config or BuildConfig(), **options)  # type: ignore[arg-type]


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def manifest_of(directory: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((directory / "engine.json").read_text())
    return document


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_builds_and_its_files_are_as_listed(variant: str, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        manifest = build_engine(checkpoint, engine)
        companions = {f"tokenizer/{path.name}": path.read_bytes() for path in checkpoint.companion_files()}
    assert read_manifest(engine) == manifest
    verify_files(engine, manifest)
    found = files(engine)
    assert found.keys() == {"engine.json", "rank0/model.onnx", "rank0/weights.bin", *companions}
    assert {name: found[name] for name in companions} == companions
    assert "tokenizer/tokenizer.json" in companions


def test_the_manifest_says_what_was_built(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    config = BuildConfig(dtype="bfloat16", kv_cache_dtype="float32", tokens_per_block=32, max_seq_len=100)
    build(tiny_llama("eos_list"), tmp_path / "engine", config)
    manifest = manifest_of(tmp_path / "engine")
    del manifest["files"], manifest["precast_version"]
    cache = {"layout": "kv16.f32/1", "block_bytes": 2 * 2 * 32 * 16 * 4, "group": 0}
    assert manifest == {
        "format": 1,
        "backend": "onnxruntime",
        "backend_requirements": {"onnxruntime_min": "1.23", "ir_version": 10, "opset": 20},
        "batch_invariant": True,
        "reproducible": True,
        "requires": [
            "ai.precast.Embedding/1",
            "ai.precast.GatedActivation/1",
            "ai.precast.Linear/1",
            "ai.precast.PagedAttention/1",
            "ai.precast.RmsNorm/1",
            "kv16.f32/1",
            "x16k2.bf16/1",
        ],
        "model": {
            "architecture": "LlamaForCausalLM",
            "vocab_size": 320,
            "hidden_size": 64,
            "num_layers": 2,
            "max_seq_len": 100,
            "bos_token_id": 0,
            "eos_token_ids": [1, 7],
            "pad_token_id": None,
        },
        "build": {
            "dtype": "bfloat16",
            "kv_cache_dtype": "float32",
            "tokens_per_block": 32,
            "max_seq_len": 100,
            "notes": [],
        },
        "mapping": {"world_size": 1, "tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        "ranks": [
            {
                "graph": "rank0/model.onnx",
                "weights": "rank0/weights.bin",
                "kv_groups": [{"block_tables": "block_tables.0", "window": None}],
                "kv_caches": [{"name": "kv.0", **cache}, {"name": "kv.1", **cache}],
            }
        ],
    }


def test_a_float16_checkpoint_is_noted(tiny_llama: TinyLlama, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="precast.builder"):
        build(tiny_llama("float16"), tmp_path / "engine")
    note = "float16 checkpoint stored as bfloat16"
    assert read_manifest(tmp_path / "engine").build.notes == (note,)
    assert read_manifest(tmp_path / "engine").build.dtype == "bfloat16"
    assert [record.message for record in caplog.records] == [note]


@pytest.mark.parametrize("variant", ["gqa", "attention_bias", "bfloat16_tied", "float16"])
def test_the_same_inputs_build_the_same_bytes(variant: str, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    build(tiny_llama(variant), tmp_path / "first")
    build(tiny_llama(variant), tmp_path / "second" / "elsewhere", dump_graphs=tmp_path / "graphs")
    assert files(tmp_path / "first") == files(tmp_path / "second" / "elsewhere")


def test_how_the_checkpoint_is_stored_does_not_matter(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    for variant in ("gqa", "shards", "bin_shards"):
        build(tiny_llama(variant), tmp_path / variant)
    for name in ("rank0/model.onnx", "rank0/weights.bin"):
        contents = {(tmp_path / variant / name).read_bytes() for variant in ("gqa", "shards", "bin_shards")}
        assert len(contents) == 1


def test_weights_are_the_checkpoints(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    build(tiny_llama("attention_bias"), tmp_path / "engine")
    path = tmp_path / "engine/rank0/weights.bin"
    data, index = np.fromfile(path, np.uint8), read_weights_index(path)
    with open_checkpoint(tiny_llama("attention_bias")) as checkpoint:
        for part in ("weight", "bias"):
            expected = np.concatenate([checkpoint.tensor(f"layers.1.attention.{name}.{part}") for name in "qkv"])
            entry = index.find(f"layers.1.attention.qkv.{part}")
            stored = data[entry.offset : entry.end]
            found = unpack(entry.spec.layout, stored, 128, 64) if part == "weight" else stored.view(np.float32)
            np.testing.assert_array_equal(found, expected)


def test_a_tied_head_is_stored_once(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    for variant in ("gqa", "tied"):
        build(tiny_llama(variant), tmp_path / variant)
    names = {
        variant: {tensor.spec.name for tensor in read_weights_index(tmp_path / variant / "rank0/weights.bin").tensors}
        for variant in ("gqa", "tied")
    }
    assert names["gqa"] - names["tied"] == {"lm_head.weight"}
    sizes = {variant: (tmp_path / variant / "rank0/weights.bin").stat().st_size for variant in names}
    assert sizes["gqa"] - sizes["tied"] == 320 * 64 * 4


def test_progress_counts_the_bytes_of_the_weights(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build(tiny_llama("gqa"), tmp_path / "engine", progress=lambda *call: calls.append(call))
    tensors = read_weights_index(tmp_path / "engine/rank0/weights.bin").tensors
    total = sum(tensor.spec.size_bytes for tensor in tensors)
    assert {stage for stage, _, _ in calls} == {"packing weights"}
    assert {call_total for _, _, call_total in calls} == {total}
    done = [done_bytes for _, done_bytes, _ in calls]
    assert (done[0], done[-1]) == (0, total)
    assert len(done) == len(tensors) + 1
    assert done == sorted(done)


def test_graphs_are_dumped(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    build(tiny_llama("gqa"), tmp_path / "engine", dump_graphs=tmp_path / "graphs")
    names = sorted(path.stem for path in (tmp_path / "graphs").glob("*.txt"))
    assert names == [
        "00_emitted",
        "01_merge_parallel_linears",
        "02_select_rows_early",
        "03_fuse_residual_norm",
        "04_remove_unused",
        "05_check_supported",
    ]


class TestErrors:
    """Each leaves nothing behind."""

    def test_max_seq_len_beyond_the_model(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match=r"^max_seq_len 257 exceeds the model's max_position_embeddings 256"):
            build(tiny_llama("gqa"), tmp_path / "engine", BuildConfig(max_seq_len=257))
        assert not list(tmp_path.iterdir())

    def test_a_directory_that_is_not_an_engine(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "thesis.txt").write_text("three years")
        for overwrite in (False, True):
            with pytest.raises(EngineExistsError, match=r"engine: exists and is not an engine"):
                build(tiny_llama("gqa"), tmp_path / "engine", overwrite=overwrite)
        assert files(tmp_path) == {"engine/thesis.txt": b"three years"}

    def test_an_engine_is_replaced_only_when_allowed(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine")
        before = files(tmp_path / "engine")
        with pytest.raises(EngineExistsError, match=r"engine: holds an engine already"):
            build(tiny_llama("tied"), tmp_path / "engine")
        assert files(tmp_path / "engine") == before
        build(tiny_llama("tied"), tmp_path / "engine", overwrite=True)
        build(tiny_llama("tied"), tmp_path / "other")
        assert files(tmp_path / "engine") == files(tmp_path / "other")

    def test_an_unknown_backend(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        with pytest.raises(
            BuildError, match=r"^backend 'cuda' is unknown; known: onnxruntime, onnxruntime-cuda, tensorrt$"
        ):
            build(tiny_llama("gqa"), tmp_path / "engine", backend="cuda")
        assert not list(tmp_path.iterdir())

    def test_a_feature_that_is_not_implemented(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        with open_checkpoint(tiny_llama("gqa")) as checkpoint:
            checkpoint.config = with_attention(checkpoint.config, chunk=8)
            with pytest.raises(UnsupportedModelError, match=r"^layers\.0\.mixer\.chunk is 8, "):
                build_engine(checkpoint, tmp_path / "engine")
        assert not list(tmp_path.iterdir())

    def test_a_failure_halfway_keeps_the_old_engine(
        self, tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine")
        before = files(tmp_path)
        read = Checkpoint.read

        def fail_late(checkpoint: Checkpoint, name: str, *arguments: Any) -> object:
            if name == "layers.1.feed_forward.down.weight":
                raise OSError(5, "Input/output error", "model.safetensors")
            return read(checkpoint, name, *arguments)

        monkeypatch.setattr(Checkpoint, "read", fail_late)
        with pytest.raises(OSError, match="Input/output error"):
            build(tiny_llama("tied"), tmp_path / "engine", overwrite=True)
        assert files(tmp_path) == before
        assert is_engine_dir(tmp_path / "engine")
        assert [path.name for path in tmp_path.iterdir()] == ["engine"]

    def test_an_interrupt_leaves_nothing(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        def interrupt(stage: str, done_bytes: int, total_bytes: int) -> None:
            if done_bytes > total_bytes / 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(tiny_llama("gqa"), tmp_path / "engine", progress=interrupt)
        assert not list(tmp_path.iterdir())
