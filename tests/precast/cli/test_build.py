"""precast build"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.checkpoints.engine_dir import read_manifest
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]


def test_it_builds_an_engine(
    precast: Precast, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path], tmp_path: Path
) -> None:
    result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{tmp_path}/engine: LlamaForCausalLM, weights float32, KV cache float32, ")
    assert (tmp_path / "engine" / "engine.json").read_bytes() == (tiny_engine("gqa") / "engine.json").read_bytes()


def test_options_reach_the_builder(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    dtypes = ("--dtype", "bfloat16", "--kv-cache-dtype", "float32")
    sizes = ("--tokens-per-block", 32, "--max-seq-len", 64)
    result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", *dtypes, *sizes, "--json")
    assert result.status == 0
    printed = json.loads(result.out)
    assert printed.pop("build_s") > 0
    assert printed.pop("size_bytes") > 0
    assert printed == {
        "engine": str(tmp_path / "engine"),
        "architecture": "LlamaForCausalLM",
        "backend": "onnxruntime",
        "dtype": "bfloat16",
        "kv_cache_dtype": "float32",
        "max_seq_len": 64,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "notes": [],
        "cache": None,
        "verification": None,
    }
    manifest = read_manifest(tmp_path / "engine")
    assert (manifest.build.tokens_per_block, manifest.model.max_seq_len) == (32, 64)


def test_ranks(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    sizes = ("--tp", 2, "--pp", 2, "--workers", 2)
    result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", *sizes)
    assert (result.status, result.err) == (0, "")
    assert ", KV cache float32, 4 ranks, " in result.out
    assert len(read_manifest(tmp_path / "engine").ranks) == 4
    refused = precast("build", tiny_llama("gqa"), "--output", tmp_path / "other", "--tensor-parallel-size", 3)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.endswith("layer 0 has 4 attention heads; sizes that work: 1, 2, 4\n")
    for option, value, message in [
        ("--workers", 0, "num_processes must be at least 1, got 0"),
        ("--pp", 0, "pipeline_parallel_size must be from 1 to 32768, not 0"),
        ("--tp", -1, "tensor_parallel_size must be from 1 to 32768, not -1"),
    ]:
        refused = precast("build", tiny_llama("gqa"), "--output", tmp_path / "other", option, value)
        assert (refused.status, refused.err) == (1, f"precast: error: {message}\n")


def test_notes_are_printed(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    result = precast("build", tiny_llama("float16"), "--output", tmp_path / "engine")
    assert "\n  float16" in result.out


def test_an_engine_is_replaced_only_when_told_to(
    precast: Precast, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path], tmp_path: Path
) -> None:
    target = Path(shutil.copytree(tiny_engine("tied"), tmp_path / "engine"))
    before = (target / "engine.json").read_bytes()
    refused = precast("build", tiny_llama("gqa"), "--output", target)
    assert refused.status == 1
    assert refused.err.startswith(f"precast: error: {target}: holds an engine already: ")
    assert (target / "engine.json").read_bytes() == before
    assert precast("build", tiny_llama("gqa"), "--output", target, "--overwrite").status == 0
    assert (target / "engine.json").read_bytes() != before


def test_graphs_can_be_looked_at(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    dump = tmp_path / "graphs"
    precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", "--dump-graphs", dump)
    assert len(list(dump.iterdir())) > 1


@pytest.mark.parametrize("variant", ["gqa", "bfloat16"])
def test_verify_compares_logits_and_keeps_the_figures(
    precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    result = precast("build", tiny_llama(variant), "--output", tmp_path / "engine", "--verify")
    assert (result.status, result.err) == (0, "")
    assert "\n  logits agree with Precast's NumPy reference: error " in result.out
    report = json.loads((tmp_path / "engine" / "verification.json").read_text())
    assert report["logits"]["passed"] is True
    assert report["logits"]["dtype"] == ("float32" if variant == "gqa" else "bfloat16")
    assert set(report["seconds"]) == {"build", "verify"}


def test_a_checkpoint_that_is_not_there(precast: Precast, tmp_path: Path) -> None:
    result = precast("build", tmp_path / "model", "--output", tmp_path / "engine")
    assert result.status == 1
    assert result.err.startswith(f"precast: error: {tmp_path}/model: no such directory")
    assert list(tmp_path.iterdir()) == []
