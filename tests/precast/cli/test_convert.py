"""precast convert"""

import json
from collections.abc import Callable
from pathlib import Path

from precast.checkpoints.engine_dir import read_manifest
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]


def test_a_checkpoint_is_divided_and_built(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    result = precast("convert", tiny_llama("gqa"), "--output", tmp_path / "ranks", "--tp", 2, "--pp", 2)
    assert (result.status, result.err) == (0, "")
    assert result.out == f"{tmp_path}/ranks: 4 ranks, 2 to a stage, stages of 1 + 1 layers\n"
    assert precast("build", tmp_path / "ranks", "--output", tmp_path / "engine").status == 0
    assert len(read_manifest(tmp_path / "engine").ranks) == 4


def test_as_json(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    result = precast("convert", tiny_llama("gqa"), "--output", tmp_path / "ranks", "--json")
    assert json.loads(result.out) == {
        "checkpoint": str(tmp_path / "ranks"),
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "stage_layers": [2],
    }


def test_what_cannot_be_done(precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    refused = precast("convert", tiny_llama("gqa"), "--output", tmp_path / "ranks", "--pp", 3)
    assert refused.status == 1
    assert "pipeline_parallel_size 3 exceeds the 2 layers of LlamaForCausalLM: choose at most 2" in refused.err
    (tmp_path / "taken").write_text("")
    refused = precast("convert", tiny_llama("gqa"), "--output", tmp_path / "taken")
    assert refused.status == 1
    assert refused.err.startswith(f"precast: error: {tmp_path}/taken: exists already: ")
    assert (tmp_path / "taken").read_text() == ""


def test_a_divided_checkpoint_runs_on_one_rank(
    precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    assert precast("convert", tiny_llama("tied"), "--output", tmp_path / "ranks", "--tp", 2).status == 0
    divided = precast("run", tmp_path / "ranks", "a prompt", "--temperature", 0, "--json")
    whole = precast("run", tiny_llama("tied"), "a prompt", "--temperature", 0, "--json")
    assert (divided.status, divided.err) == (0, whole.err)
    assert json.loads(divided.out)["token_ids"] == json.loads(whole.out)["token_ids"]
