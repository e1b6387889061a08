"""The build cache as LLM's user sees it."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from precast import LLM, BuildCacheConfig, SamplingParams
from precast.build_cache import default_directory, open_build_cache, to_cache_config
from precast.builder.errors import BuildCacheError
from tests.checkpoints.tiny_engine import tree

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def cache(tmp_path: Path) -> BuildCacheConfig:
    return BuildCacheConfig(tmp_path / "cache")


def no_more_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr("precast.builder.build.build_engine", fail)


class TestLlm:
    def test_the_second_one_builds_nothing_and_gives_the_same_tokens(
        self, tiny_llama: Callable[..., Path], cache: BuildCacheConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with LLM(tiny_llama("gqa"), enable_build_cache=cache) as llm:
            expected = llm.generate("print(", GREEDY, use_tqdm=False).outputs
            assert cache.directory in llm.engine_dir.parents
        no_more_builds(monkeypatch)
        with LLM(tiny_llama("gqa"), enable_build_cache=cache) as llm:
            assert llm.generate("print(", GREEDY, use_tqdm=False).outputs == expected

    def test_it_is_held_until_shutdown(self, tiny_llama: Callable[..., Path], cache: BuildCacheConfig) -> None:
        store = open_build_cache(cache)
        llm = LLM(tiny_llama("gqa"), enable_build_cache=cache)
        assert [entry.in_use for entry in store.entries()] == [True]
        assert store.clear().num_entries == 0
        llm.shutdown()
        llm.shutdown()
        assert [entry.in_use for entry in store.entries()] == [False]
        assert store.clear().num_entries == 1

    def test_an_engine_that_cannot_be_loaded_is_released(
        self, tiny_llama: Callable[..., Path], cache: BuildCacheConfig
    ) -> None:
        with pytest.raises(ValueError, match="num_threads"):
            LLM(tiny_llama("gqa"), enable_build_cache=cache, num_threads=-1)
        assert [entry.in_use for entry in open_build_cache(cache).entries()] == [False]

    def test_off_is_the_default(
        self, tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PRECAST_CACHE", str(tmp_path / "cache"))
        for options in ({}, {"enable_build_cache": False}, {"enable_build_cache": None}):
            LLM(tiny_llama("gqa"), **options).shutdown()
        assert not (tmp_path / "cache").exists()

    def test_true_takes_the_environments_place(
        self, tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PRECAST_CACHE", str(tmp_path / "cache"))
        with LLM(tiny_llama("gqa"), enable_build_cache=True) as llm:
            assert tmp_path / "cache" in llm.engine_dir.parents

    def test_a_workspace_gets_a_copy(
        self, tiny_llama: Callable[..., Path], tmp_path: Path, cache: BuildCacheConfig
    ) -> None:
        for _ in range(2):
            with LLM(tiny_llama("gqa"), enable_build_cache=cache, workspace=tmp_path / "work") as llm:
                assert llm.engine_dir == tmp_path / "work" / "engine"
        (entry,) = open_build_cache(cache).entries()
        assert tree(entry.engine_dir) == tree(tmp_path / "work" / "engine")
        assert not entry.in_use

    def test_saving_copies_it(self, tiny_llama: Callable[..., Path], tmp_path: Path, cache: BuildCacheConfig) -> None:
        with LLM(tiny_llama("gqa"), enable_build_cache=cache) as llm:
            llm.save(tmp_path / "engine")
            assert tree(tmp_path / "engine") == tree(llm.engine_dir)
            saved, cached = (folder / "rank0/weights.bin" for folder in (tmp_path / "engine", llm.engine_dir))
            assert not saved.samefile(cached)

    def test_an_engine_needs_no_cache(self, tiny_engine: Callable[..., Path], cache: BuildCacheConfig) -> None:
        LLM(tiny_engine("gqa"), enable_build_cache=cache).shutdown()
        assert not cache.directory.exists()

    def test_a_place_that_cannot_be_used_is_an_error(self, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(BuildCacheError, match=r"file/cache: the build cache cannot be used: Not a directory"):
            LLM(tiny_llama("gqa"), enable_build_cache={"cache_root": tmp_path / "file" / "cache"})

    def test_max_seq_len_is_part_of_the_build(self, tiny_llama: Callable[..., Path], cache: BuildCacheConfig) -> None:
        for max_seq_len in (None, 64, None):
            with LLM(tiny_llama("gqa"), enable_build_cache=cache, max_seq_len=max_seq_len) as llm:
                assert llm.info["max_seq_len"] == (max_seq_len or 256)
        assert len(open_build_cache(cache).entries()) == 2

    def test_a_process_that_is_killed_leaves_it_free(
        self, tiny_llama: Callable[..., Path], cache: BuildCacheConfig
    ) -> None:
        program = """
import os, signal, sys
from precast import LLM
llm = LLM(sys.argv[1], enable_build_cache={"cache_root": sys.argv[2]})
os.kill(os.getpid(), signal.SIGKILL)
"""
        command = [sys.executable, "-c", program, str(tiny_llama("gqa")), str(cache.directory)]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
        assert [entry.in_use for entry in open_build_cache(cache).entries()] == [False]


class TestConfig:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (False, None),
            (True, BuildCacheConfig()),
            ({}, BuildCacheConfig()),
            ({"cache_root": "here", "max_records": 3}, BuildCacheConfig("here", max_records=3)),
            (BuildCacheConfig("here"), BuildCacheConfig("here")),
        ],
    )
    def test_its_forms(self, value: Any, expected: BuildCacheConfig | None) -> None:
        assert to_cache_config(value) == expected

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            ({"root": "x"}, ValueError, "enable_build_cache has no member 'root'; known are cache_root, max_records, "),
            ({"cache_root": ""}, ValueError, "cache_root must be a path or None, got an empty string"),
            ({"max_records": 0}, ValueError, "max_records must be at least 1, got 0"),
            ({"max_cache_storage_gb": -1}, ValueError, "max_cache_storage_gb must be finite and not negative, got -1"),
            (
                {"max_cache_storage_gb": float("nan")},
                ValueError,
                "max_cache_storage_gb must be finite and not negative",
            ),
            (
                "yes",
                TypeError,
                "enable_build_cache must be a bool, a BuildCacheConfig or a mapping of its members, got ",
            ),
            (1, TypeError, "enable_build_cache must be a bool"),
        ],
    )
    def test_what_makes_no_sense(self, value: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error) as caught:
            to_cache_config(value)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({"PRECAST_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
            ({"PRECAST_CACHE": "~/a"}, "/home/me/a"),
            ({"PRECAST_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/precast/builds"),
            ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/precast/builds"),
            ({}, "/home/me/.cache/precast/builds"),
        ],
    )
    def test_where_it_is(self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
        for name in ("PRECAST_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HOME": "/home/me", **environment}.items():
            monkeypatch.setenv(name, value)
        assert default_directory() == BuildCacheConfig().directory == Path(expected)
        assert BuildCacheConfig("~/c").directory == Path("/home/me/c")

    def test_how_large_it_may_be(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert BuildCacheConfig(max_cache_storage_gb=1.5).max_bytes == 1_500_000_000
        asked = []

        def disk_usage(path: Path) -> Any:
            asked.append(path)
            return SimpleNamespace(total=total)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        total = 100 * 10**9
        assert BuildCacheConfig(tmp_path / "not" / "yet").max_bytes == 25 * 10**9
        total = 10**12
        assert BuildCacheConfig(tmp_path).max_bytes == 50 * 10**9
        assert asked == [tmp_path, tmp_path]
