"""precast verify"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]


@pytest.fixture
def copy(tiny_engine: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine("gqa"), tmp_path / "engine"))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_sound_engine(precast: Precast, copy: Path) -> None:
    result = precast("verify", copy)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{copy}: ")
    assert result.out.endswith(": all as they were built\n")
    assert not (copy / "verification.json").exists()


def test_json(precast: Precast, copy: Path) -> None:
    printed = json.loads(precast("verify", copy, "--json").out)
    files = json.loads((copy / "engine.json").read_text())["files"]
    assert printed == {
        "engine": str(copy),
        "num_files": len(files),
        "size_bytes": sum(entry["size"] for entry in files.values()),
        "logits": None,
    }


@pytest.mark.parametrize("name", ["rank0/weights.bin", "rank0/model.onnx", "tokenizer/config.json"])
def test_an_altered_file(precast: Precast, copy: Path, name: str) -> None:
    flip_last_byte(copy / name)
    result = precast("verify", copy)
    assert (result.status, result.out) == (1, "")
    assert f"files are damaged: {name} (SHA-256 is " in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("backend", ["numpy", "hf"])
def test_logits_beside_a_reference(precast: Precast, copy: Path, tiny_llama: Callable[..., Path], backend: str) -> None:
    arguments = ("--reference", tiny_llama("gqa"), "--reference-backend", backend, "--json")
    result = precast("verify", copy, *arguments)
    assert result.status == 0, result.err
    logits = json.loads(result.out)["logits"]
    assert logits["passed"] is True
    assert logits["error"] < 1e-4
    assert logits["greedy_agreement"] == 1
    assert len(logits["prompts"]) == 3
    assert json.loads((copy / "verification.json").read_text())["logits"] == logits
    assert precast("verify", copy).status == 0  # what is not reproducible is not hashed


def test_own_prompts(precast: Precast, copy: Path, tiny_llama: Callable[..., Path]) -> None:
    result = precast("verify", copy, "--reference", tiny_llama("gqa"), "--prompts", "a", "print(", "--json")
    assert len(json.loads(result.out)["logits"]["prompts"]) == 2


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_choice_of_dtypes_passes(
    precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path, dtype: str, kv_cache_dtype: str
) -> None:
    dtypes = ("--dtype", dtype, "--kv-cache-dtype", kv_cache_dtype)
    result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", *dtypes, "--verify")
    assert result.status == 0, result.err


def test_another_checkpoint_differs(precast: Precast, copy: Path, tiny_llama: Callable[..., Path]) -> None:
    result = precast("verify", copy, "--reference", tiny_llama("rope_linear"))
    assert result.status == 1
    assert result.out.count("\n") == 1  # the files are as they were built
    assert f"precast: error: {copy}: logits differ from Precast's NumPy reference: error " in result.err
    assert json.loads((copy / "verification.json").read_text())["logits"]["passed"] is False


def test_a_reference_of_another_shape(precast: Precast, copy: Path, tiny_llama: Callable[..., Path]) -> None:
    result = precast("verify", copy, "--reference", tiny_llama("odd_vocab"))
    assert result.status == 1
    assert "the reference's" in result.err
