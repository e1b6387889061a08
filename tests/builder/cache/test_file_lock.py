"""Locks of files that come and go."""

import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from precast.builder.cache.file_lock import exclusive, hold_shared, try_exclusive


def is_free(path: Path) -> bool:
    with try_exclusive(path) as free:
        return free


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock):
        assert not is_free(lock)
        with pytest.raises(BlockingIOError, match="another process holds the lock"):
            hold_shared(lock)
    assert is_free(lock)


def test_an_exception_releases_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(KeyError), exclusive(lock, remove=True):
        raise KeyError
    assert not lock.exists()
    assert is_free(lock)


def test_sharing_excludes_the_exclusive(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first, second = hold_shared(lock), hold_shared(lock)
    os.close(first)
    assert not is_free(lock)
    os.close(second)
    assert is_free(lock)


def test_a_copy_of_the_descriptor_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = hold_shared(lock)
    copy = os.dup(held)  # as a fork has
    os.close(held)
    assert not is_free(lock)
    os.close(copy)
    assert is_free(lock)


def test_an_exclusive_lock_does_not_outlive_its_block_in_a_copy(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock):
        (held,) = (descriptor for descriptor in open_descriptors() if points_to(descriptor, lock))
        copy = os.dup(held)
    assert is_free(lock)
    os.close(copy)


def open_descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


def points_to(descriptor: int, path: Path) -> bool:
    link = Path(f"/proc/self/fd/{descriptor}")
    return link.is_symlink() and link.readlink() == path


def test_who_waited_for_a_removed_file_holds_the_lock_of_the_new_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waits = threading.Event()
    found: list[bool] = []

    def wait() -> None:
        with exclusive(lock, on_wait=waits.set):
            found.append(is_free(lock))

    thread = threading.Thread(target=wait)
    with exclusive(lock, remove=True):
        thread.start()
        assert waits.wait(timeout=30)
        time.sleep(0.1)  # it has opened the file by now
    thread.join()
    assert found == [False]


def test_never_two_inside_while_each_removes_the_file(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "lock", 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            with exclusive(lock, remove=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0001)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_wait_is_announced_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    announced = threading.Event()
    calls: list[int] = []

    def announce() -> None:
        calls.append(1)
        announced.set()

    def wait() -> None:
        with exclusive(lock, on_wait=announce):
            calls.append(2)

    thread = threading.Thread(target=wait)
    with exclusive(lock):
        thread.start()
        assert announced.wait(timeout=30)
    thread.join()
    assert calls == [1, 2]


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock in (exclusive, try_exclusive):
        with pytest.raises(OSError, match=r"No locks available: '.*/lock'"), lock(tmp_path / "lock"):
            pass
    before = len(open_descriptors())
    with pytest.raises(OSError, match="No locks available"):
        hold_shared(tmp_path / "lock")
    assert len(open_descriptors()) == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"), exclusive(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()
