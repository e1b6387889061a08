import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from precast.checkpoints import staging_directory
from precast.checkpoints.engine_dir import check_files, read_manifest, verify_files
from precast.checkpoints.engine_errors import EngineExistsError, EngineIOError
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.weights_index import TensorSpec
from tests.checkpoints.tiny_engine import GRAPH, WEIGHTS, elsewhere, fill, tiny_manifest, tree, write_tiny_engine


def names(directory: Path) -> list[str]:
    """Everything in a directory, hidden names too."""
    return sorted(path.name for path in directory.iterdir())


def fail_halfway(directory: Path, exception: type[BaseException]) -> None:
    with EngineWriter(directory, overwrite_engine=True) as writer:
        fill(writer)
        raise exception


def test_a_commit_makes_a_complete_engine(tmp_path: Path) -> None:
    manifest = write_tiny_engine(tmp_path / "engine")
    assert read_manifest(tmp_path / "engine") == manifest
    check_files(tmp_path / "engine", manifest)
    verify_files(tmp_path / "engine", manifest)
    assert list(manifest.files) == [GRAPH, WEIGHTS, "tokenizer/tokenizer.json"]
    assert names(tmp_path) == ["engine"]


def test_the_same_input_gives_the_same_bytes_and_modes(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "a")
    mask = os.umask(0o077)
    try:
        write_tiny_engine(tmp_path / "elsewhere" / "b")
    finally:
        os.umask(mask)
    a, b = tmp_path / "a", tmp_path / "elsewhere" / "b"
    assert tree(a) == tree(b)
    for path in [a, *a.rglob("*"), b, *b.rglob("*")]:
        assert path.stat().st_mode & 0o7777 == (0o755 if path.is_dir() else 0o644)


def test_the_name_appears_only_with_the_commit(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        fill(writer)
        assert not (tmp_path / "engine").exists()
        assert not (writer.path / "engine.json").exists()
        assert writer.path.parent == tmp_path
        writer.commit(tiny_manifest())
    assert (tmp_path / "engine" / "engine.json").exists()


def test_everything_is_on_the_disk_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def path_of(descriptor: int) -> str:
        """Below the staging directory; "" for it, "parent" for its parent."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "/".join(path.relative_to(tmp_path).parts[1:]) if path != tmp_path else "parent"

    def rename(self: Path, target: Path) -> None:
        steps.append("rename")
        os.rename(self, target)  # noqa: PTH104 - Path.rename is what is replaced

    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(f"sync {path_of(descriptor)}"))
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *_: steps.append(f"drop {path_of(descriptor)}"))
    monkeypatch.setattr(Path, "rename", rename)
    write_tiny_engine(tmp_path / "engine")
    directories = steps[5:8]
    assert steps == [
        f"sync {GRAPH}",
        f"sync {WEIGHTS}",
        f"drop {WEIGHTS}",
        "sync tokenizer/tokenizer.json",
        "sync engine.json",
        *directories,
        "rename",
        "sync parent",
    ]
    assert sorted(directories) == ["sync ", "sync rank0", "sync tokenizer"]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, exception: type[BaseException]) -> None:
    with pytest.raises(exception):
        fail_halfway(tmp_path / "new" / "parents" / "engine", exception)
    assert names(tmp_path) == []


def test_no_commit_leaves_nothing_behind(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        fill(writer)
    assert names(tmp_path) == []


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "a" / "b" / "engine")
    assert names(tmp_path / "a" / "b") == ["engine"]


def test_an_engine_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "engine", graph=b"old")
    with pytest.raises(EngineExistsError, match="holds an engine already: allow overwriting"):
        write_tiny_engine(tmp_path / "engine", graph=b"new")
    assert (tmp_path / "engine" / GRAPH).read_bytes() == b"old"
    write_tiny_engine(tmp_path / "engine", graph=b"new", overwrite=True)
    assert (tmp_path / "engine" / GRAPH).read_bytes() == b"new"
    assert names(tmp_path) == ["engine"]


def test_a_reader_keeps_the_engine_it_opened(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "engine", graph=b"old")
    with (tmp_path / "engine" / GRAPH).open("rb") as file:
        write_tiny_engine(tmp_path / "engine", graph=b"new", overwrite=True)
        assert file.read() == b"old"


def test_a_failed_replacement_keeps_the_old_engine(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "engine", graph=b"old")
    before = tree(tmp_path)
    with pytest.raises(RuntimeError):
        fail_halfway(tmp_path / "engine", RuntimeError)
    assert tree(tmp_path) == before


def test_without_an_atomic_exchange_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(a: Path, b: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(a))

    write_tiny_engine(tmp_path / "engine", graph=b"old")
    before = tree(tmp_path)
    monkeypatch.setattr(staging_directory, "exchange", exchange)
    with pytest.raises(EngineExistsError, match="cannot exchange two directories in one step"):
        write_tiny_engine(tmp_path / "engine", graph=b"new", overwrite=True)
    assert tree(tmp_path) == before


def test_exchange_swaps_two_directories(tmp_path: Path) -> None:
    (tmp_path / "a" / "was a").mkdir(parents=True)
    (tmp_path / "b" / "was b").mkdir(parents=True)
    staging_directory.exchange(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["was b"], ["was a"])
    with pytest.raises(FileNotFoundError) as caught:
        staging_directory.exchange(tmp_path / "a", tmp_path / "absent")
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_an_engine_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    (tmp_path / "file").write_text("...")
    for name in "thesis", "file":
        with pytest.raises(EngineExistsError, match="exists and is not an engine: choose another directory"):
            write_tiny_engine(tmp_path / name, overwrite=overwrite)
    assert tree(tmp_path) == {"file": b"...", "thesis/chapter1.tex": b"..."}


def test_foreign_files_in_an_engine_are_not_deleted(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "engine")
    (tmp_path / "engine" / "verification.json").write_text("{}")
    (tmp_path / "engine" / "notes.txt").write_text("...")
    with pytest.raises(EngineExistsError, match=r"holds files that its engine.json does not list \(notes.txt\)"):
        write_tiny_engine(tmp_path / "engine", overwrite=True)
    (tmp_path / "engine" / "notes.txt").unlink()
    write_tiny_engine(tmp_path / "engine", overwrite=True)
    (tmp_path / "engine" / "engine.json").write_text("{")
    with pytest.raises(EngineExistsError, match="cannot tell what replacing it would delete"):
        write_tiny_engine(tmp_path / "engine", overwrite=True)


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    write_tiny_engine(tmp_path / "engine")
    assert names(tmp_path) == ["engine"]


def test_a_link_to_an_engine_stays_a_link(tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "v1", graph=b"old")
    (tmp_path / "current").symlink_to("v1")
    write_tiny_engine(tmp_path / "current", graph=b"new", overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / GRAPH).read_bytes() == b"new"


def test_somebody_takes_the_name_meanwhile(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        fill(writer)
        write_tiny_engine(tmp_path / "engine", graph=b"theirs")
        with pytest.raises(EngineExistsError, match="holds an engine already"):
            writer.commit(tiny_manifest())
    assert (tmp_path / "engine" / GRAPH).read_bytes() == b"theirs"
    assert names(tmp_path) == ["engine"]


def test_a_mount_point_cannot_be_replaced() -> None:
    with pytest.raises(EngineExistsError, match=r"is a mount point.*choose a directory below it"):
        write_tiny_engine(Path("/proc"))


def test_the_current_directory_is_not_pulled_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for path in ".", "..":
        with pytest.raises(EngineExistsError, match=r"the current directory would be replaced"):
            write_tiny_engine(Path(path))


def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("nothing is forbidden to root")
    with pytest.raises(EngineIOError, match=r"closed/engine: cannot be written: Permission denied"):
        write_tiny_engine(tmp_path / "closed" / "engine")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(EngineIOError, match=r"closed/engine: cannot be written: Permission denied"):
        write_tiny_engine(tmp_path / "closed" / "engine")
    (tmp_path / "closed").chmod(0o700)


def test_manifest_and_files_must_agree(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        (writer.path / "rank0").mkdir()
        (writer.path / GRAPH).write_bytes(b"")
        with writer.open_weights(WEIGHTS, [TensorSpec("w", "uint8", (1,), "x99.f32/1")]) as weights:
            with pytest.raises(ValueError, match=f"'{WEIGHTS}' was opened and not finished"):
                writer.commit(tiny_manifest())
            weights.write("w", np.zeros(1, np.uint8))
        with pytest.raises(ValueError, match=r"requires must name every layout.*x99.f32/1 is missing"):
            writer.commit(tiny_manifest())
        (writer.path / GRAPH).unlink()
        with pytest.raises(
            ValueError, match=r'ranks\[0\].graph must be a path listed in files, got "rank0/model.onnx"'
        ):
            writer.commit(tiny_manifest())
        (writer.path / GRAPH).symlink_to("weights.bin")
        with pytest.raises(ValueError, match="an engine holds regular files and directories only"):
            writer.commit(tiny_manifest())


@pytest.mark.parametrize("path", ["../x", "/x", "engine.json", "a//b"])
def test_files_stay_inside(tmp_path: Path, path: str) -> None:
    with EngineWriter(tmp_path / "engine") as writer, pytest.raises(ValueError, match="inside the engine directory"):
        writer.open_weights(path, [])


def test_copied_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(100_000))
    (tmp_path / "empty").touch()
    with EngineWriter(tmp_path / "engine") as writer:
        writer.copy_file(tmp_path / "source", "tokenizer/a")
        writer.copy_file(tmp_path / "empty", "tokenizer/b")
        assert (writer.path / "tokenizer" / "a").read_bytes() == (tmp_path / "source").read_bytes()
        assert (writer.path / "tokenizer" / "b").read_bytes() == b""


def test_copying_without_the_kernels_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refused)
    test_copied_files_are_copied(tmp_path)


# --- writers that were killed ---


def partial_directory(tmp_path: Path) -> Path:
    (found,) = tmp_path.glob(".engine.partial-*")
    return found


def test_the_rest_of_a_killed_writer_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from precast.checkpoints.engine_writer import EngineWriter
        with EngineWriter(sys.argv[1]) as writer:
            (writer.path / "big").write_bytes(b"...")
            print("ready", flush=True)
            sys.stdin.read()
            os.kill(os.getpid(), 9)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "engine")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **elsewhere(tmp_path)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        theirs = partial_directory(tmp_path)
        write_tiny_engine(tmp_path / "engine")
        assert theirs.exists()
        writer.communicate()
    assert writer.returncode == -9
    assert theirs.exists()
    write_tiny_engine(tmp_path / "engine", overwrite=True)
    assert names(tmp_path) == ["engine"]


def test_other_names_are_not_taken_for_abandoned(tmp_path: Path) -> None:
    kept = [".engine.partial-link", ".engine.partialx", ".other.partial-12345678", "engine2"]
    (tmp_path / ".engine.partial-file").write_text("")
    for name in kept[1:]:
        (tmp_path / name).mkdir()
    (tmp_path / kept[0]).symlink_to("engine2")
    write_tiny_engine(tmp_path / "engine")
    assert names(tmp_path) == sorted([*kept, ".engine.partial-file", "engine"])


# --- the system says no ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def write_large_file(directory: Path) -> None:
    with EngineWriter(directory) as writer:
        (writer.path / "large").write_bytes(bytes(2 << 20))


def test_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(EngineIOError) as caught:
        write_tiny_engine(small_disk / "engine")
    text = str(caught.value)
    assert text.startswith(f"{small_disk}/engine/rank0/weights.bin: cannot be written: No space left on device; ")
    assert text.endswith(" bytes are free there after cleaning up: free more space or choose another directory")
    assert isinstance(caught.value.__cause__, OSError)
    assert names(small_disk) == []


def test_a_disk_that_fills_while_others_write(small_disk: Path) -> None:
    with pytest.raises(EngineIOError, match=r"/engine: cannot be written: No space left on device; "):
        write_large_file(small_disk / "engine")
    assert names(small_disk) == []


def test_a_file_size_limit(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from precast.checkpoints.engine_errors import EngineIOError
        from tests.checkpoints.tiny_engine import write_tiny_engine
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            write_tiny_engine(Path(sys.argv[1]))
        except EngineIOError as error:
            print(error)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "engine")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, **elsewhere(tmp_path))
    assert f"{tmp_path}/engine/rank0/weights.bin: cannot be written: File too large; " in run.stdout
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EngineIOError, match=f"engine/rank0/model.onnx: cannot be written: {os.strerror(number)}"):
        write_tiny_engine(tmp_path / "engine")
    assert names(tmp_path) == []


def test_an_error_of_a_file_elsewhere_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), EngineWriter(tmp_path / "engine") as writer:
        writer.copy_file(tmp_path / "absent", "tokenizer/tokenizer.json")
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineIOError, match=r"file/engine: cannot be written: Not a directory"):
        write_tiny_engine(tmp_path / "file" / "engine")
