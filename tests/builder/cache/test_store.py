"""The cache with one process: what is found, what goes, what an error leaves."""

import errno
import fcntl
import itertools
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from precast.builder.cache.store import BuildCache, Removed
from precast.builder.errors import BuildCacheError
from tests.builder.cache.worlds import (
    NEVER_FULL,
    builder,
    description,
    key_of,
    left_overs,
    make_engine,
    must_not_build,
    size_of,
)


def open_cache(folder: Path, max_bytes: int = NEVER_FULL, max_entries: int | None = None) -> BuildCache:
    return BuildCache(folder / "cache", max_bytes=max_bytes, max_entries=max_entries)


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return open_cache(tmp_path)


def use(cache: BuildCache, *names: str, size_bytes: int = 1000) -> None:
    for name in names:
        cache.get_or_build(description(name), builder(size_bytes), source=name).release()


def names_in(cache: BuildCache) -> list[str]:
    """By their source, the one that goes first at the front."""
    return [entry.record()["source"] for entry in cache.entries()]


class TestHitsAndMisses:
    def test_an_engine_is_built_once(self, cache: BuildCache) -> None:
        log: list[Path] = []
        with cache.get_or_build(description("a"), builder(log=log)) as built:
            assert not built.is_hit
            assert log == [cache.directory / "building" / key_of("a") / "engine"]
            assert built.engine_dir == cache.directory / "entries" / key_of("a") / "engine"
            assert (built.engine_dir / "engine.json").is_file()
        with cache.get_or_build(description("a"), must_not_build) as found:
            assert found.is_hit
            assert found.engine_dir == built.engine_dir
        assert left_overs(cache.directory) == {}

    def test_get_builds_nothing(self, cache: BuildCache) -> None:
        assert cache.get(description("a")) is None
        use(cache, "a")
        found = cache.get(description("a"))
        assert found is not None
        assert found.is_hit

    def test_another_description_is_another_engine(self, cache: BuildCache) -> None:
        use(cache, "a", "b")
        assert sorted(entry.key for entry in cache.entries()) == sorted([key_of("a"), key_of("b")])

    def test_an_entry_says_what_it_is(self, cache: BuildCache) -> None:
        use(cache, "a")
        (entry,) = cache.entries()
        assert entry.record() == {"description": description("a"), "source": "a"}
        assert entry.size_bytes == size_of(entry.path)
        assert {path.name for path in entry.path.iterdir()} == {"engine", "entry.json", "in_use.lock", "last_use"}

    def test_a_build_that_fails_leaves_nothing(self, cache: BuildCache) -> None:
        def fail(output_dir: Path) -> None:
            make_engine(output_dir)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.get_or_build(description("a"), fail)
        assert cache.entries() == []
        assert left_overs(cache.directory) == {}
        use(cache, "a")

    def test_an_oserror_of_the_build_is_its_own(self, cache: BuildCache) -> None:
        def fail(output_dir: Path) -> None:
            raise OSError(errno.EIO, "Input/output error", "model.safetensors")

        with pytest.raises(OSError, match=r"model\.safetensors"):
            cache.get_or_build(description("a"), fail)

    def test_why_it_missed(self, cache: BuildCache) -> None:
        assert cache.explain_miss(description("a")) == "it holds no engine of these weights"
        use(cache, "a", "b")
        other = description("a") | {"options": {"dtype": "bfloat16"}}
        assert cache.explain_miss(other) == (
            'the nearest engine of these weights differs in options.dtype (there "float32", here "bfloat16")'
        )
        assert cache.explain_miss(description("c")) == "it holds no engine of these weights"


class TestDamage:
    @pytest.mark.parametrize("path", ["engine.json", "rank0/weights.bin", "rank0/model.onnx", ""])
    def test_what_is_missing_is_built_again(
        self, cache: BuildCache, caplog: pytest.LogCaptureFixture, path: str
    ) -> None:
        use(cache, "a")
        victim = cache.entries()[0].engine_dir / path
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        self.expect_rebuilt(cache, caplog, "")

    def test_another_size(self, cache: BuildCache, caplog: pytest.LogCaptureFixture) -> None:
        use(cache, "a")
        os.truncate(cache.entries()[0].engine_dir / "rank0/weights.bin", 5)
        self.expect_rebuilt(cache, caplog, "weights.bin: is 5 bytes, engine.json says 1000")

    def test_a_manifest_that_is_no_manifest(self, cache: BuildCache, caplog: pytest.LogCaptureFixture) -> None:
        use(cache, "a")
        (cache.entries()[0].engine_dir / "engine.json").write_text("{}")
        self.expect_rebuilt(cache, caplog, "engine.json")

    def test_also_while_it_is_in_use(self, cache: BuildCache, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody waits for a server that uses what is left of a damaged engine; what it has open stays readable."""
        held = cache.get_or_build(description("a"), builder())
        with (held.engine_dir / "rank0/weights.bin").open("rb") as opened:
            (held.engine_dir / "rank0/model.onnx").unlink()
            self.expect_rebuilt(cache, caplog, "model.onnx: missing")
            assert opened.read() == bytes(1000)
        held.release()

    def expect_rebuilt(self, cache: BuildCache, caplog: pytest.LogCaptureFixture, text: str) -> None:
        log: list[Path] = []
        with cache.get_or_build(description("a"), builder(log=log)) as cached:
            assert not cached.is_hit
        assert len(log) == 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("build cache: a damaged engine is removed and built again: /")
        assert text in record.getMessage()
        with cache.get_or_build(description("a"), must_not_build) as cached:
            assert cached.is_hit
        assert left_overs(cache.directory) == {}

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"description": 5}', b"\xff"])
    def test_a_lost_record_loses_no_engine(self, cache: BuildCache, damage: bytes) -> None:
        use(cache, "a")
        (cache.entries()[0].path / "entry.json").write_bytes(damage)
        assert cache.entries()[0].record() == {}
        assert cache.explain_miss(description("a")) == "it holds no engine of these weights"
        cache.get_or_build(description("a"), must_not_build).release()

    @pytest.mark.parametrize("damage", [b"", b"soon", b"-5", b"\xff"])
    def test_a_lost_last_use_makes_it_the_first_to_go(self, cache: BuildCache, damage: bytes) -> None:
        use(cache, "a", "b", "c")
        (cache.entries()[2].path / "last_use").write_bytes(damage)
        assert names_in(cache) == ["c", "a", "b"]
        use(cache, "c")
        assert names_in(cache) == ["a", "b", "c"]


class TestLimits:
    def test_the_least_recently_used_goes_first(self, tmp_path: Path, cache: BuildCache) -> None:
        use(cache, "a", "b", "c", "a")
        size_bytes = size_of(cache.directory / "entries")
        cache = open_cache(tmp_path, max_bytes=size_bytes)
        use(cache, "b")
        assert names_in(cache) == ["c", "a", "b"]
        use(cache, "d")
        assert names_in(cache) == ["a", "b", "d"]
        assert cache.prune() == Removed()
        smaller = open_cache(tmp_path, max_bytes=size_bytes - 1)
        entry_bytes = cache.entries()[0].size_bytes
        assert smaller.prune() == Removed(1, entry_bytes)
        assert names_in(cache) == ["b", "d"]

    def test_the_number_of_engines(self, tmp_path: Path) -> None:
        cache = open_cache(tmp_path, max_entries=2)
        use(cache, "a", "b", "a", "c")
        assert names_in(cache) == ["a", "c"]

    def test_the_order_is_exact_when_the_clock_stands_still_or_goes_back(self, tmp_path: Path) -> None:
        times = itertools.chain([50, 50, 20, 10], itertools.repeat(5))
        cache = BuildCache(tmp_path / "cache", max_bytes=NEVER_FULL, now_ns=lambda: next(times))
        use(cache, "a", "b", "c", "a")
        assert names_in(cache) == ["b", "c", "a"]
        assert [entry.last_use_ns for entry in cache.entries()] == [51, 52, 53]

    def test_an_engine_in_use_stays(self, tmp_path: Path) -> None:
        cache = open_cache(tmp_path, max_entries=1)
        held = cache.get_or_build(description("a"), builder(), source="a")
        use(cache, "b")
        use(cache, "c")
        assert names_in(cache) == ["a", "c"]  # each found itself in use, and a too
        assert [entry.in_use for entry in cache.entries()] == [True, False]
        assert cache.clear().num_entries == 1
        assert names_in(cache) == ["a"]
        held.release()
        assert cache.clear().num_entries == 1
        assert cache.entries() == []

    def test_a_forgotten_engine_is_released(self, cache: BuildCache) -> None:
        held = cache.get_or_build(description("a"), builder())
        assert cache.entries()[0].in_use
        del held
        assert not cache.entries()[0].in_use

    def test_releasing_twice_closes_nothing_else(self, cache: BuildCache, tmp_path: Path) -> None:
        held = cache.get_or_build(description("a"), builder())
        held.release()
        with (tmp_path / "other").open("w") as other:  # gets the same descriptor
            held.release()
            other.write("still open")
        assert (tmp_path / "other").read_text() == "still open"

    def test_one_that_is_larger_than_the_limit_pushes_no_other_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = open_cache(tmp_path, max_bytes=20_000)
        use(cache, "a", "b")
        large = cache.get_or_build(description("large"), builder(50_000), source="large")
        assert names_in(cache) == ["a", "b", "large"]
        size_bytes = cache.entries()[2].size_bytes
        assert [record.getMessage() for record in caplog.records] == [
            f"build cache: an engine of {size_bytes} bytes is over the limit of 20000: it stays only while it is in use"
        ]
        use(cache, "a")
        assert names_in(cache) == ["b", "large", "a"]
        large.release()
        use(cache, "b")
        assert names_in(cache) == ["a", "b"]

    @pytest.mark.parametrize("limits", [{"max_bytes": -1}, {"max_bytes": 1, "max_entries": 0}])
    def test_limits_that_make_no_sense(self, tmp_path: Path, limits: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"^max_bytes must be at least 0 and max_entries 1, got "):
            open_cache(tmp_path, **limits)


class TestDirectory:
    def test_looking_makes_nothing(self, cache: BuildCache, tmp_path: Path) -> None:
        assert (cache.entries(), cache.prune(), cache.clear()) == ([], Removed(), Removed())
        assert list(tmp_path.iterdir()) == []

    def test_it_is_private_and_tagged(self, cache: BuildCache) -> None:
        use(cache, "a")
        assert cache.directory.stat().st_mode & 0o777 == 0o700
        assert (
            (cache.directory / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
        )

    def test_an_empty_directory_will_do(self, cache: BuildCache) -> None:
        cache.directory.mkdir()
        assert cache.entries() == []
        use(cache, "a")
        assert names_in(cache) == ["a"]

    @pytest.mark.parametrize("left", ["cache.lock", "CACHEDIR.TAG.partial"])
    def test_a_process_that_was_killed_while_it_made_it(self, cache: BuildCache, left: str) -> None:
        cache.directory.mkdir()
        (cache.directory / left).touch()
        use(cache, "a")
        assert names_in(cache) == ["a"]

    def test_a_directory_of_something_else_is_left_alone(self, cache: BuildCache) -> None:
        (cache.directory / "trash").mkdir(parents=True)
        (cache.directory / "trash" / "thesis.txt").write_text("three years")
        for step in (cache.entries, cache.prune, cache.clear, lambda: use(cache, "a"), cache.content_hashes):
            with pytest.raises(BuildCacheError, match=r"cache: is not a build cache, it holds other files and no "):
                step()
        assert [path.name for path in cache.directory.rglob("*")] == ["trash", "thesis.txt"]

    def test_a_later_format_is_left_alone(self, cache: BuildCache) -> None:
        use(cache, "a")
        tag = cache.directory / "CACHEDIR.TAG"
        tag.write_bytes(tag.read_bytes().replace(b"format 1", b"format 2"))
        with pytest.raises(BuildCacheError, match=r"CACHEDIR.TAG: is not that of a build cache of format 1: choose "):
            cache.clear()

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        cache = BuildCache(tmp_path / "file" / "cache", max_bytes=NEVER_FULL)
        with pytest.raises(BuildCacheError) as caught:
            cache.get_or_build(description("a"), must_not_build)
        assert str(caught.value) == (
            f"{tmp_path}/file/cache: the build cache cannot be used: Not a directory ({tmp_path}/file/cache): choose a "
            "directory on a local disk that can be written (PRECAST_CACHE), or build without the cache"
        )

    def test_a_file_system_without_locks_is_named(self, cache: BuildCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(BuildCacheError, match=r"cannot be used: No locks available \(.*/cache.lock\): choose "):
            cache.get_or_build(description("a"), must_not_build)

    def test_a_relative_directory_stays_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        cache = BuildCache("cache", max_bytes=NEVER_FULL)
        monkeypatch.chdir("/")
        assert cache.directory == tmp_path / "cache"

    def test_clear_forgets_content_hashes(self, cache: BuildCache) -> None:
        cache.content_hashes()
        (cache.directory / "content_hashes.json").write_text(json.dumps({"format": 1, "files": []}))
        cache.clear()
        assert not (cache.directory / "content_hashes.json").exists()


class TestFullDisk:
    def fill(self, disk: Path) -> None:
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free))
        assert shutil.disk_usage(disk).free == 0

    def test_an_engine_is_still_found(self, small_disk: Path) -> None:
        cache = BuildCache(small_disk / "cache", max_bytes=NEVER_FULL)
        use(cache, "a", "b")
        self.fill(small_disk)
        cache.get_or_build(description("a"), must_not_build).release()
        assert names_in(cache) == ["b", "a"]

    def test_a_build_fails_and_leaves_nothing(self, small_disk: Path) -> None:
        cache = BuildCache(small_disk / "cache", max_bytes=NEVER_FULL)
        use(cache, "a")
        with pytest.raises(OSError, match="No space left"):
            cache.get_or_build(description("b"), builder(16 << 20))
        assert names_in(cache) == ["a"]
        assert left_overs(cache.directory) == {}

    def test_the_cache_itself_needs_room(self, small_disk: Path) -> None:
        self.fill(small_disk)
        cache = BuildCache(small_disk / "cache", max_bytes=NEVER_FULL)
        with pytest.raises(
            BuildCacheError, match=r"No space left on device \(.*free more space \(`precast cache clear`"
        ):
            cache.get_or_build(description("a"), must_not_build)
