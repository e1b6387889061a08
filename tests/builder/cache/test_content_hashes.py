"""Digests that are remembered, and when they must not be."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.builder.cache import content_hashes
from precast.builder.cache.content_hashes import RACY_WINDOW_S, STAGE, ContentHashes, FileState
from precast.builder.errors import BuildError
from precast.checkpoints.durable_files import hash_file

LARGE = 1 << 20
SECOND_NS = 10**9


class World:
    """A folder with a table, a clock that is far ahead of every file, and a count of the files that were read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.table = folder / "content_hashes.json"
        self.now_ns: Callable[[], int] = lambda: 1 << 62
        self.num_read = 0

        def count(path: Path, advance: Callable[[int], None] | None = None) -> str:
            self.num_read += 1
            return hash_file(path, advance)

        monkeypatch.setattr(content_hashes, "hash_file", count)

    def write(self, name: str, fill: bytes, size_bytes: int = LARGE) -> Path:
        path = self.folder / name
        path.write_bytes(fill * size_bytes)
        return path

    def hash(self, *paths: Path) -> list[str]:
        hashes = ContentHashes(self.table, self.folder / "lock", now_ns=self.now_ns)
        return [file.sha256 for file in hashes.hash(paths)]

    def rows(self) -> list[list[object]]:
        rows: list[list[object]] = json.loads(self.table.read_text())["files"]
        return rows


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def sha256(fill: bytes, size_bytes: int = LARGE) -> str:
    return hashlib.sha256(fill * size_bytes).hexdigest()


def test_a_file_is_read_once(world: World) -> None:
    first, second = world.write("first", b"1"), world.write("second", b"2")
    for _ in range(3):
        assert world.hash(second, first) == [sha256(b"2"), sha256(b"1")]
    assert world.num_read == 2
    assert world.rows() == [[*FileState.of(second), sha256(b"2")], [*FileState.of(first), sha256(b"1")]]


def test_links_and_other_names_are_the_same_file(world: World) -> None:
    path = world.write("blob", b"1")
    (world.folder / "link").symlink_to(path)
    assert world.hash(path, world.folder / "link") == [sha256(b"1")] * 2
    world.hash(world.folder / "link")
    assert len(world.rows()) == 1


def test_a_small_file_is_not_remembered(world: World) -> None:
    path = world.write("small", b"1", LARGE - 1)
    assert world.hash(path) == world.hash(path) == [sha256(b"1", LARGE - 1)]
    assert world.num_read == 2
    assert not world.table.exists()


def test_a_touched_file_is_read_again_and_its_old_row_goes(world: World) -> None:
    path = world.write("file", b"1")
    world.hash(path)
    os.utime(path, ns=(5, 5))
    assert world.hash(path) == [sha256(b"1")]
    assert world.num_read == 2
    assert world.rows() == [[*FileState.of(path), sha256(b"1")]]


def test_a_changed_byte_with_size_and_mtime_restored_is_seen(world: World) -> None:
    """ctime tells: no program can set it back."""
    path = world.write("file", b"1")
    before = path.stat()
    world.hash(path)
    with path.open("r+b") as file:
        file.write(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert world.hash(path) == [hashlib.sha256(b"2" + b"1" * (LARGE - 1)).hexdigest()]


@pytest.mark.parametrize(("age_ns", "is_remembered"), [(0, False), (SECOND_NS, False), (SECOND_NS + 1, True)])
def test_a_file_that_changed_just_now_is_not_remembered(world: World, age_ns: int, is_remembered: bool) -> None:
    """It could change again within the same grain of its times, and look the same."""
    path = world.write("file", b"1")
    changed_ns = FileState.of(path).last_change_ns()
    world.now_ns = lambda: changed_ns + age_ns + (RACY_WINDOW_S - 1) * SECOND_NS
    world.hash(path)
    assert world.table.exists() == is_remembered


def test_a_file_of_the_future_is_not_remembered(world: World) -> None:
    path = world.write("file", b"1")
    os.utime(path, ns=(0, (1 << 62) + SECOND_NS))
    world.hash(path)
    assert not world.table.exists()


def test_a_file_that_changes_while_it_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.write("file", b"1")

    def change(path: Path, advance: Callable[[int], None] | None = None) -> str:
        os.utime(path, ns=(5, 5))
        return sha256(b"1")

    monkeypatch.setattr(content_hashes, "hash_file", change)
    with pytest.raises(BuildError, match=r"file: changed while it was read: build when nothing writes to it$"):
        world.hash(path)
    assert not world.table.exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "not a table of format 1"),
        (b'{"format": 2, "files": []}', "not a table of format 1"),
        (b'{"format": 1}', "its files are no list"),
        (b'{"format": 1, "files": [[1, 2, 3, 4, 5]]}', "a row has another length"),
        (b'{"format": 1, "files": [5]}', "a row has another length"),
        (b'{"format": 1, "files": [[1, 2, 3, 4, 5, "g"]]}', "a row has another type"),
        (b'{"format": 1, "files": [[1, 2, 3, 4, true, "%s"]]}' % (b"0" * 64), "a row has another type"),
        (b'{"\xe9": 1}', "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (b" " * (1 << 20) + b"5", "larger than 1048576 bytes"),
    ],
)
def test_a_damaged_table_is_made_anew_with_one_warning(
    world: World, caplog: pytest.LogCaptureFixture, damage: bytes, reason: str
) -> None:
    path = world.write("file", b"1")
    world.table.write_bytes(damage)
    assert world.hash(path) == [sha256(b"1")]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{world.table}: is damaged (")
    assert reason in record.getMessage()
    assert world.rows() == [[*FileState.of(path), sha256(b"1")]]


def test_the_table_keeps_the_newest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hashes, "MAX_REMEMBERED", 2)
    paths = [world.write(name, name.encode()) for name in "abc"]
    for path in paths:
        world.hash(path)
    assert world.rows() == [[*FileState.of(path), sha256(path.name.encode())] for path in paths[1:]]


def test_what_another_process_writes_meanwhile_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = world.write("ours", b"1"), world.write("theirs", b"2")

    hash_before = vars(content_hashes)["hash_file"]

    def hash_both(path: Path, advance: Callable[[int], None] | None = None) -> str:
        monkeypatch.setattr(content_hashes, "hash_file", hash_before)
        world.hash(theirs)
        return hash_file(path, advance)

    monkeypatch.setattr(content_hashes, "hash_file", hash_both)
    world.hash(ours)
    assert [row[-1] for row in world.rows()] == [sha256(b"2"), sha256(b"1")]


def test_a_table_that_cannot_be_written_costs_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (world.folder / "content_hashes.json.partial").mkdir()
    path = world.write("file", b"1")
    assert world.hash(path) == [sha256(b"1")]
    (record,) = caplog.records
    expected = f"{world.table}: cannot be written (Is a directory): the next build hashes again"
    assert record.getMessage() == expected


def test_progress_counts_what_is_read(world: World) -> None:
    known, new = world.write("known", b"1"), world.write("new", b"2", 5 << 20)
    world.hash(known)
    calls: list[tuple[str, int, int]] = []
    hashes = ContentHashes(world.table, world.folder / "lock", now_ns=world.now_ns)
    for _ in range(2):
        hashes.hash([known, new], lambda *call: calls.append(call))
    total = 5 << 20
    assert calls == [(STAGE, 0, total), (STAGE, 4 << 20, total), (STAGE, total, total)]


def test_check_unchanged(world: World) -> None:
    path = world.write("file", b"1")
    (file,) = ContentHashes(world.table, world.folder / "lock").hash([path])
    file.check_unchanged()
    os.utime(path, ns=(5, 5))
    file.check_unchanged()
    world.write("file", b"2")
    with pytest.raises(BuildError, match=r"file: changed while an engine was built from it: build again$"):
        file.check_unchanged()


def test_a_missing_file(world: World) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        world.hash(world.folder / "absent")
