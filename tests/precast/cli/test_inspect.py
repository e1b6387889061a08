"""precast inspect"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]


def test_it_says_what_an_engine_is(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    result = precast("inspect", tiny_engine("gqa", "bfloat16"))
    assert (result.status, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[1:9] == [
        "model LlamaForCausalLM, 2 layers, hidden size 64",
        "vocabulary 320; begins with 0, ends with 1",
        "max_seq_len 256",
        "weights bfloat16",
        "KV cache bfloat16, blocks of 16 tokens, 256 B a token",  # 2 layers x 2 (K, V) x 2 heads x 16 x 2 bytes
        "backend onnxruntime from 1.23, ONNX IR 10, opset 20",
        "ranks 1",
        "promises batch-invariant yes, reproducible yes",
    ]
    assert "requires ai.precast.Embedding/1" in lines
    assert "kv16.bf16/1" in lines
    assert any(line.startswith("x16k2.bf16/1 uint8 ") for line in lines)
    assert any(line.startswith("tokenizer/tokenizer.json ") for line in lines)
    assert "lm_head.weight" not in result.out


def test_it_lists_tensors_when_asked(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    assert "\n  lm_head.weight " in precast("inspect", tiny_engine("gqa"), "--tensors").out


def test_json_holds_everything(precast: Precast, tiny_engine: Callable[..., Path]) -> None:
    result = precast("inspect", tiny_engine("gqa"), "--json")
    assert (result.status, result.err) == (0, "")
    printed = json.loads(result.out)
    manifest = json.loads((tiny_engine("gqa") / "engine.json").read_text())
    assert printed["manifest"] == {name: value for name, value in manifest.items() if name != "format"}
    assert printed["missing"] == []
    (tensors,) = printed["tensors"].values()
    head = next(tensor for tensor in tensors if tensor["name"] == "lm_head.weight")
    assert head["layout"] == "x16k1.f32/1"
    assert head["size_bytes"] == 320 * 64 * 4
    assert head["offset"] % 64 == 0


def test_an_op_that_is_not_here_is_shown_and_no_error(
    precast: Precast, tiny_engine: Callable[..., Path], tmp_path: Path
) -> None:
    engine = Path(shutil.copytree(tiny_engine("gqa"), tmp_path / "engine"))
    path = engine / "engine.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"requires": [*manifest["requires"], "ai.precast.Telepathy/3"]}))
    result = precast("inspect", engine)
    assert result.status == 0
    assert "ai.precast.Telepathy/3 (this version lacks it)\n" in result.out
    assert json.loads(precast("inspect", engine, "--json").out)["missing"] == ["ai.precast.Telepathy/3"]


def test_a_truncated_engine_is_an_error(precast: Precast, tiny_engine: Callable[..., Path], tmp_path: Path) -> None:
    engine = Path(shutil.copytree(tiny_engine("gqa"), tmp_path / "engine"))
    with (engine / "rank0" / "weights.bin").open("r+b") as file:
        file.truncate(100)
    result = precast("inspect", engine)
    assert (result.status, result.out) == (1, "")
    assert "weights.bin: is 100 bytes, engine.json says" in result.err


def test_it_loads_no_native_library_and_nothing_for_building(tiny_engine: Callable[..., Path]) -> None:
    program = """
import sys
from precast.cli import main
before = set(sys.modules)
main(["inspect", sys.argv[1], "--json"])
assert "libprecast" not in open("/proc/self/maps").read()
assert "libonnxruntime" not in open("/proc/self/maps").read()
packages = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert packages <= {"precast"}, packages
"""
    subprocess.run([sys.executable, "-c", program, tiny_engine("gqa")], check=True, capture_output=True, timeout=60)
