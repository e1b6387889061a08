"""precast cache, and precast build and run with --cache."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precast import LLM
from tests.checkpoints.tiny_engine import tree
from tests.precast.cli.conftest import Result

Precast = Callable[..., Result]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRECAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parsed(result: Result) -> dict[str, Any]:
    assert (result.status, result.err) == (0, "")
    document: dict[str, Any] = json.loads(result.out)
    return document


def build(precast: Precast, model: Path, output: Path, *options: object) -> str | None:
    use: str | None = parsed(precast("build", model, "--output", output, "--json", *options))["cache"]
    return use


class TestBuild:
    def test_the_second_is_copied_and_the_same(
        self, precast: Precast, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path], tmp_path: Path
    ) -> None:
        assert build(precast, tiny_llama("gqa"), tmp_path / "1", "--cache") == "miss"
        assert build(precast, tiny_llama("gqa"), tmp_path / "2", "--cache") == "hit"
        assert build(precast, tiny_llama("gqa"), tmp_path / "3", "--no-cache") is None
        assert build(precast, tiny_llama("gqa"), tmp_path / "4") is None
        fresh = tree(tiny_engine("gqa"))
        assert all(tree(tmp_path / name) == fresh for name in "1234")

    def test_what_it_says(self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
        for name, how in (("1", ", built in "), ("2", ", copied from the build cache in ")):
            result = precast("build", tiny_llama("gqa"), "--output", tmp_path / name, "--cache")
            assert (result.status, result.err) == (0, "")
            assert how in result.out

    def test_a_copy_is_the_users_to_change(
        self, precast: Precast, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path], tmp_path: Path
    ) -> None:
        build(precast, tiny_llama("gqa"), tmp_path / "1", "--cache")
        with (tmp_path / "1/rank0/weights.bin").open("r+b") as weights:
            weights.write(b"scribble")
        assert build(precast, tiny_llama("gqa"), tmp_path / "2", "--cache") == "hit"
        assert tree(tmp_path / "2") == tree(tiny_engine("gqa"))

    def test_a_taken_place_is_an_error_before_the_build(
        self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path, cache: Path
    ) -> None:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "thesis.txt").touch()
        result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "taken", "--cache")
        assert result.status == 1
        assert "taken: exists and is not an engine" in result.err
        assert not cache.exists()

    def test_an_engine_is_replaced_only_when_told_to(
        self, precast: Precast, tiny_llama: Callable[..., Path], tiny_engine: Callable[..., Path], tmp_path: Path
    ) -> None:
        build(precast, tiny_llama("gqa"), tmp_path / "engine", "--cache")
        refused = precast("build", tiny_llama("tied"), "--output", tmp_path / "engine", "--cache")
        assert "holds an engine already" in refused.err
        build(precast, tiny_llama("tied"), tmp_path / "engine", "--cache", "--overwrite")
        assert tree(tmp_path / "engine") == tree(tiny_engine("tied"))

    def test_verifying_leaves_the_cache_alone(
        self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path, cache: Path
    ) -> None:
        build(precast, tiny_llama("gqa"), tmp_path / "engine", "--cache", "--verify")
        assert (tmp_path / "engine" / "verification.json").exists()
        assert list(cache.rglob("verification.json")) == []

    def test_graphs_of_a_build_that_may_not_happen(
        self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path
    ) -> None:
        dump = ("--dump-graphs", tmp_path / "graphs")
        result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", "--cache", *dump)
        assert result.status == 2
        assert result.err.startswith("precast: error: --dump-graphs shows how an engine is built, and --cache may ")

    def test_a_place_that_cannot_be_used(
        self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("PRECAST_CACHE", str(tmp_path / "file"))
        result = precast("build", tiny_llama("gqa"), "--output", tmp_path / "engine", "--cache")
        assert result.status == 1
        assert result.err.startswith(f"precast: error: {tmp_path}/file: the build cache cannot be used: File exists ")
        assert not (tmp_path / "engine").exists()

    def test_two_processes_at_once_build_once(self, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
        model = str(tiny_llama("gqa"))
        commands = [
            [sys.executable, "-m", "precast", "build", model, "--output", str(tmp_path / name), "--cache", "--json"]
            for name in "12"
        ]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert sorted(json.loads(output)["cache"] for output in outputs) == ["hit", "miss"]
        assert tree(tmp_path / "1") == tree(tmp_path / "2")


class TestRun:
    def test_it_keeps_the_engine(self, precast: Precast, tiny_llama: Callable[..., Path], cache: Path) -> None:
        run = ("run", tiny_llama("gqa"), "print(", "--max-tokens", 4, "--temperature", 0)
        expected = precast(*run).out
        assert not cache.exists()
        for _ in range(2):
            assert precast(*run, "--cache").out == expected
        assert parsed(precast("cache", "size", "--json"))["num_entries"] == 1


class TestCache:
    @pytest.fixture
    def filled(self, precast: Precast, tiny_llama: Callable[..., Path], tmp_path: Path) -> list[dict[str, Any]]:
        """Two engines, a float32 one and then a bfloat16 one; what `list` says of them."""
        for number, options in enumerate(((), ("--dtype", "bfloat16"))):
            build(precast, tiny_llama("gqa"), tmp_path / f"engine{number}", "--cache", *options)
        entries: list[dict[str, Any]] = parsed(precast("cache", "list", "--json"))["entries"]
        return entries

    def test_an_empty_one(self, precast: Precast, cache: Path) -> None:
        assert precast("cache").out == f"{cache}: no engines\n"
        assert precast("cache", "clear").out == f"{cache}: removed 0 engines, 0 B; 0 engines, 0 B left\n"
        assert not cache.exists()

    def test_list(self, precast: Precast, filled: list[dict[str, Any]], tiny_llama: Callable[..., Path]) -> None:
        assert [entry["description"]["options"]["plan"]["dtype"] for entry in filled] == ["float32", "bfloat16"]
        assert [entry["source"] for entry in filled] == [str(tiny_llama("gqa"))] * 2
        assert [entry["in_use"] for entry in filled] == [False, False]
        head, first, second = precast("cache").out.splitlines()
        assert head.split() == ["key", "bytes", "last", "used", "engine", "built", "from"]
        for line, entry, dtype in ((first, filled[0], "float32"), (second, filled[1], "bfloat16")):
            wanted = [entry["key"][:12], str(entry["size_bytes"]), entry["last_use"], "LlamaForCausalLM", f"{dtype},"]
            assert line.split()[:5] == wanted
            assert line.endswith(str(tiny_llama("gqa")))

    def test_list_shows_what_is_in_use_and_what_is_damaged(
        self, precast: Precast, filled: list[dict[str, Any]], tiny_llama: Callable[..., Path]
    ) -> None:
        (Path(filled[1]["engine"]) / "engine.json").unlink()
        with LLM(tiny_llama("gqa"), enable_build_cache=True):
            _, damaged, used = precast("cache").out.splitlines()
        assert "  now  " in used
        assert "  damaged: " in damaged

    def test_size(self, precast: Precast, filled: list[dict[str, Any]], cache: Path) -> None:
        size_bytes = sum(entry["size_bytes"] for entry in filled)
        size = parsed(precast("cache", "size", "--max-gb", 2, "--json"))
        assert size == {
            "directory": str(cache),
            "num_entries": 2,
            "num_in_use": 0,
            "size_bytes": size_bytes,
            "max_bytes": 2 * 10**9,
        }
        assert precast("cache", "size", "--max-gb", 2).out == f"{cache}: 2 engines, 4.77 MiB of 1.86 GiB\n"

    def test_prune(self, precast: Precast, filled: list[dict[str, Any]]) -> None:
        assert parsed(precast("cache", "prune", "--json"))["removed"] == {"num_entries": 0, "size_bytes": 0}
        pruned = parsed(precast("cache", "prune", "--max-records", 1, "--json"))
        assert pruned["removed"] == {"num_entries": 1, "size_bytes": filled[0]["size_bytes"]}
        assert parsed(precast("cache", "--json"))["entries"] == filled[1:]
        assert precast("cache", "prune", "--max-gb", 0.001).out.endswith("; 0 engines, 0 B left\n")

    def test_clear_leaves_what_is_in_use(
        self, precast: Precast, filled: list[dict[str, Any]], tiny_llama: Callable[..., Path], cache: Path
    ) -> None:
        with LLM(tiny_llama("gqa"), enable_build_cache=True):
            assert precast("cache", "clear").out.endswith("; 1 engine, 2.51 MiB left, 1 of them in use\n")
        assert precast("cache", "clear").out == f"{cache}: removed 1 engine, 2.51 MiB; 0 engines, 0 B left\n"

    def test_another_directory(self, precast: Precast, filled: list[dict[str, Any]], tmp_path: Path) -> None:
        other = tmp_path / "other"
        assert precast("cache", "--dir", other).out == f"{other}: no engines\n"
        result = precast("cache", "clear", "--dir", tmp_path)
        assert result.status == 1
        assert result.err.startswith(f"precast: error: {tmp_path}: is not a build cache, it holds other files and no ")

    @pytest.mark.parametrize("option", [("--max-records", 0), ("--max-gb", -1)])
    def test_limits_that_make_no_sense(self, precast: Precast, option: tuple[str, int]) -> None:
        assert precast("cache", "prune", *option).status == 1
