import os
import subprocess
import sys
from pathlib import Path

import pytest

from precast.checkpoints.engine_dir import (
    check_files,
    copy_engine,
    is_engine_dir,
    read_manifest,
    verify_files,
    write_verification,
)
from precast.checkpoints.engine_errors import (
    CorruptEngineError,
    EngineExistsError,
    EngineIOError,
    EngineNotFoundError,
)
from precast.checkpoints.engine_manifest import EngineManifest
from tests.checkpoints.tiny_engine import GRAPH, WEIGHTS, elsewhere, tree, write_tiny_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_tiny_engine(tmp_path / "engine")
    return tmp_path / "engine"


def test_is_engine_dir(engine: Path) -> None:
    assert is_engine_dir(engine)
    assert is_engine_dir(str(engine))
    assert not is_engine_dir(engine / "rank0")
    assert not is_engine_dir(engine / GRAPH)
    assert not is_engine_dir(engine / "absent")


def not_found(directory: Path) -> str:
    with pytest.raises(EngineNotFoundError) as caught:
        read_manifest(directory)
    return str(caught.value)


def test_what_is_not_an_engine(engine: Path) -> None:
    assert not_found(engine / "absent") == f"{engine}/absent: no such directory"
    assert not_found(engine / GRAPH) == (
        f"{engine}/{GRAPH}: not a directory; an engine is a directory with an engine.json"
    )
    assert not_found(engine / "rank0") == f"{engine}/rank0: not an engine directory, it has no engine.json"
    (engine / "rank0" / "config.json").write_text("{}")
    assert not_found(engine / "rank0").endswith("looks like a Hugging Face checkpoint: build an engine from it first")


def test_a_manifest_that_is_no_file(engine: Path) -> None:
    (engine / "engine.json").unlink()
    (engine / "engine.json").mkdir()
    with pytest.raises(EngineIOError, match=r"engine.json: not a regular file"):
        read_manifest(engine)
    (engine / "engine.json").rmdir()
    os.mkfifo(engine / "engine.json")  # opening it would wait for a writer
    with pytest.raises(EngineIOError, match=r"engine.json: not a regular file"):
        read_manifest(engine)


def test_an_enormous_manifest_is_not_read(engine: Path) -> None:
    os.truncate(engine / "engine.json", 100 << 20)
    with pytest.raises(CorruptEngineError, match=r"engine.json: 104857600 bytes, the limit is 16777216"):
        read_manifest(engine)


def damage(engine: Path) -> str:
    with pytest.raises(CorruptEngineError) as caught:
        check_files(engine, read_manifest(engine))
    return str(caught.value)


def test_missing_short_and_strange_files(engine: Path) -> None:
    os.truncate(engine / WEIGHTS, 100)
    assert damage(engine) == (
        f"{engine}/{WEIGHTS}: is 100 bytes, engine.json says 2097316: copy the engine again or rebuild it"
    )
    (engine / WEIGHTS).unlink()
    assert damage(engine) == (
        f"{engine}/{WEIGHTS}: missing, engine.json lists it with 2097316 bytes: copy the engine again or rebuild it"
    )
    (engine / WEIGHTS).mkdir()
    assert damage(engine) == f"{engine}/{WEIGHTS}: not a regular file, engine.json lists it as one"
    (engine / GRAPH).unlink()
    (engine / WEIGHTS).rmdir()
    (engine / "rank0").rmdir()
    (engine / "rank0").write_text("")
    assert "missing" in damage(engine)


def test_what_may_not_be_read(engine: Path) -> None:
    (engine / "engine.json").chmod(0)
    if os.access(engine / "engine.json", os.R_OK):
        pytest.skip("nothing is forbidden to root")
    with pytest.raises(EngineIOError, match=r"engine.json: cannot open it: Permission denied"):
        read_manifest(engine)
    (engine / "engine.json").chmod(0o644)
    manifest = read_manifest(engine)
    (engine / "rank0").chmod(0)
    with pytest.raises(EngineIOError, match="cannot read its size: Permission denied"):
        check_files(engine, manifest)
    engine.chmod(0)
    with pytest.raises(EngineIOError, match="cannot look into it: Permission denied"):
        is_engine_dir(engine)
    engine.chmod(0o755)
    (engine / "rank0").chmod(0o755)


def test_files_may_be_links_as_download_caches_make_them(engine: Path) -> None:
    (engine / GRAPH).rename(engine.parent / "blob")
    (engine / GRAPH).symlink_to("../../blob")
    manifest = read_manifest(engine)
    check_files(engine, manifest)
    verify_files(engine, manifest)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_verify_names_every_damaged_file(engine: Path) -> None:
    manifest = read_manifest(engine)
    flip(engine / GRAPH, 0)
    flip(engine / WEIGHTS, -1)
    check_files(engine, manifest)
    with pytest.raises(CorruptEngineError) as caught:
        verify_files(engine, manifest)
    text = str(caught.value)
    assert text.startswith(f"{engine}: 2 of 3 files are damaged: {GRAPH} (SHA-256 is ")
    assert f"engine.json says {manifest.files[GRAPH].sha256}), {WEIGHTS} (SHA-256 is " in text


def test_verify_reports_progress_in_bytes(engine: Path) -> None:
    manifest = read_manifest(engine)
    total = sum(entry.size for entry in manifest.files.values())
    steps: list[tuple[int, int]] = []
    verify_files(engine, manifest, lambda done, all_: steps.append((done, all_)))
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)


def test_a_copy_is_the_same_engine(engine: Path, tmp_path: Path) -> None:
    write_verification(engine, {"max_error": 0.5})
    (engine / "unlisted").write_text("left out")
    manifest = copy_engine(engine, tmp_path / "copies" / "engine")
    expected = tree(engine)
    del expected["unlisted"]
    assert tree(tmp_path / "copies" / "engine") == expected
    assert manifest == read_manifest(engine)


def test_a_copy_keeps_the_bytes_of_a_manifest_with_unknown_members(engine: Path, tmp_path: Path) -> None:
    text = (engine / "engine.json").read_text().replace('{\n  "backend"', '{"future": 1, "backend"')
    (engine / "engine.json").write_text(text)
    copy_engine(engine, tmp_path / "copy")
    assert (tmp_path / "copy" / "engine.json").read_text() == text


def test_a_copy_replaces_an_engine_only_when_allowed(engine: Path, tmp_path: Path) -> None:
    write_tiny_engine(tmp_path / "other", graph=b"other")
    with pytest.raises(EngineExistsError, match="holds an engine already"):
        copy_engine(engine, tmp_path / "other")
    copy_engine(engine, tmp_path / "other", overwrite_engine=True)
    assert tree(tmp_path / "other") == tree(engine)
    with pytest.raises(EngineExistsError, match="holds an engine already"):
        copy_engine(engine, engine)


def test_a_copy_over_itself_is_the_same_engine(engine: Path) -> None:
    before = tree(engine)
    copy_engine(engine, engine, overwrite_engine=True)
    assert tree(engine.parent) == {f"engine/{path}": data for path, data in before.items()}


def test_a_damaged_engine_is_not_copied(engine: Path, tmp_path: Path) -> None:
    os.truncate(engine / WEIGHTS, 100)
    with pytest.raises(CorruptEngineError, match="is 100 bytes"):
        copy_engine(engine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_that_shrinks_while_it_is_copied(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(directory: Path, manifest: EngineManifest) -> None:
        os.truncate(directory / GRAPH, 3)  # after the real check has passed

    monkeypatch.setattr("precast.checkpoints.engine_dir.check_files", check)
    with pytest.raises(CorruptEngineError, match=f"{GRAPH}: only 3 of 7 bytes could be copied"):
        copy_engine(engine, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]


def test_verification_json_is_written_whole(engine: Path) -> None:
    write_verification(engine, {"b": [1.5], "a": "ä"})
    assert (engine / "verification.json").read_text() == '{\n  "a": "ä",\n  "b": [\n    1.5\n  ]\n}\n'
    write_verification(engine, {})
    assert (engine / "verification.json").read_text() == "{}\n"
    with pytest.raises(EngineIOError, match=r"absent/verification.json: cannot be written: No such file or directory"):
        write_verification(engine / "absent", {})
    verify_files(engine, read_manifest(engine))


def test_reading_imports_nothing_slow(engine: Path) -> None:
    script = (
        "import sys; from precast.checkpoints.engine_dir import *; m = read_manifest(sys.argv[1]); "
        "check_files(sys.argv[1], m); "
        "print(sorted({'hashlib', 'numpy', 'ctypes', 'tempfile', 'ml_dtypes'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(engine)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, **elsewhere(engine))
    assert run.stdout == "[]\n"
