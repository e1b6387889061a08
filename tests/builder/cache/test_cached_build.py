"""Builds of a real checkpoint through the cache."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from precast.builder import build as build_module
from precast.builder.build_config import BuildConfig
from precast.builder.cache import content_hashes
from precast.builder.cache import key as key_module
from precast.builder.cache.cached_build import build_cached
from precast.builder.cache.store import BuildCache
from precast.builder.errors import BuildError
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.durable_files import hash_file
from precast.checkpoints.engine_dir import read_manifest, verify_files
from precast.checkpoints.engine_errors import EngineIOError
from tests.builder.cache.worlds import NEVER_FULL, left_overs
from tests.checkpoints.tiny_engine import elsewhere, tree
from tests.tiny_llama import VARIANTS

TinyLlama = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache", max_bytes=NEVER_FULL)


@pytest.fixture
def model(tiny_llama: TinyLlama, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_llama("gqa"), tmp_path / "model"))


def is_hit(cache: BuildCache, path: Path, **options: object) -> bool:
    with open_checkpoint(path) as checkpoint, build_cached(checkpoint, cache, BuildConfig(**options)) as cached:  # type: ignore[arg-type]
        return cached.is_hit


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hit_is_byte_for_byte_a_fresh_build(variant: str, tiny_llama: TinyLlama, cache: BuildCache) -> None:
    with open_checkpoint(tiny_llama(variant)) as checkpoint:
        for _ in range(2):
            with build_cached(checkpoint, cache) as cached:
                found = tree(cached.engine_dir)
                verify_files(cached.engine_dir, read_manifest(cached.engine_dir))
        build_module.build_engine(checkpoint, cache.directory.parent / "fresh")
    assert cached.is_hit
    assert found == tree(cache.directory.parent / "fresh")


def test_a_copy_under_another_path_hits(cache: BuildCache, model: Path, tmp_path: Path) -> None:
    assert not is_hit(cache, model)
    copied = shutil.copytree(model, tmp_path / "elsewhere" / "copied")
    shutil.rmtree(model)
    assert is_hit(cache, copied)


def test_a_touched_checkpoint_hits(cache: BuildCache, model: Path) -> None:
    assert not is_hit(cache, model)
    for path in model.iterdir():
        os.utime(path, ns=(5, 5))
    assert is_hit(cache, model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_changed_byte_misses_also_with_its_old_time(cache: BuildCache, model: Path, name: str) -> None:
    assert not is_hit(cache, model)
    path = model / name
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] = data[-1] ^ 1 if name.endswith("safetensors") else ord(" ")
    data[-2] = data[-2] if name.endswith("safetensors") else ord("}")
    path.write_bytes(data)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_hit(cache, model)


def test_a_file_that_engines_do_not_keep_does_not_matter(cache: BuildCache, model: Path) -> None:
    assert not is_hit(cache, model)
    (model / "README.md").write_text("news")
    assert is_hit(cache, model)
    (model / "vocab.txt").write_text("one more that they do keep")
    assert not is_hit(cache, model)


def test_shards_are_all_hashed(tiny_llama: TinyLlama, cache: BuildCache, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_llama("shards"), tmp_path / "model"))
    assert not is_hit(cache, model)
    (entry,) = cache.entries()
    shards = sorted(path.name for path in model.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(entry.record()["description"]["files"]["weights"]) == shards
    for shard in shards:
        data = bytearray((model / shard).read_bytes())
        data[-1] ^= 1
        (model / shard).write_bytes(data)
        assert not is_hit(cache, model)


@pytest.mark.parametrize(
    "option",
    [{"dtype": "bfloat16"}, {"kv_cache_dtype": "bfloat16"}, {"tokens_per_block": 32}, {"max_seq_len": 64}],
)
def test_another_option_misses(cache: BuildCache, model: Path, option: dict[str, object]) -> None:
    assert not is_hit(cache, model)
    assert not is_hit(cache, model, **option)
    assert is_hit(cache, model, **option)
    assert is_hit(cache, model)
    assert is_hit(cache, model, dtype="float32", kv_cache_dtype="float32")  # what "auto" stands for


def test_another_version_misses(cache: BuildCache, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_hit(cache, model)
    monkeypatch.setattr(key_module, "__version__", "9.9")
    assert not is_hit(cache, model)


def test_the_log_says_hit_or_why_not(cache: BuildCache, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="precast.builder.cache")
    is_hit(cache, model)
    is_hit(cache, model)
    is_hit(cache, model, kv_cache_dtype="bfloat16")
    said = [record.getMessage() for record in caplog.records]
    engine_dir = next(path for path in (cache.directory / "entries").glob("*/engine") if str(path) in said[1])
    assert said == [
        "build cache: miss, it holds no engine of these weights",
        f"build cache: hit, {engine_dir}",
        (
            "build cache: miss, the nearest engine of these weights differs in "
            'options.plan.kv_cache_dtype (there "float32", here "bfloat16")'
        ),
    ]


def test_unchanged_weights_are_hashed_once(
    cache: BuildCache, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_hashes, "MIN_REMEMBERED_BYTES", 1000)
    cache = BuildCache(cache.directory, max_bytes=NEVER_FULL, now_ns=lambda: 1 << 62)
    hashed: list[str] = []

    def note(path: Path, advance: Callable[[int], None] | None = None) -> str:
        hashed.append(path.name)
        return hash_file(path, advance)

    monkeypatch.setattr(content_hashes, "hash_file", note)
    assert not is_hit(cache, model)
    assert "model.safetensors" in hashed
    hashed.clear()
    assert is_hit(cache, model)
    assert "model.safetensors" not in hashed


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_that_changes_while_it_is_built(
    cache: BuildCache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine must not be found under the hash of what it was before."""
    build_engine = build_module.build_engine

    def build_and_change(*arguments: object, **options: object) -> object:
        manifest = build_engine(*arguments, **options)  # type: ignore[arg-type]
        change(model / "model.safetensors")
        return manifest

    monkeypatch.setattr(build_module, "build_engine", build_and_change)
    with pytest.raises(BuildError, match=r"model.safetensors: changed while an engine was built from it: build again$"):
        is_hit(cache, model)
    assert cache.entries() == []
    assert left_overs(cache.directory) == {}


def test_a_checkpoint_that_is_replaced_between_opening_and_hashing(
    cache: BuildCache, model: Path, tiny_llama: TinyLlama
) -> None:
    """The engine is that of the new files: what is mapped since opening is not read."""
    with open_checkpoint(model) as checkpoint:
        shutil.copy(model / "model.safetensors", model / "new")
        change(model / "new")
        (model / "new").replace(model / "model.safetensors")
        with build_cached(checkpoint, cache) as cached:
            found = tree(cached.engine_dir)
    with open_checkpoint(model) as checkpoint:
        build_module.build_engine(checkpoint, model.parent / "fresh")
    assert found == tree(model.parent / "fresh")


def test_a_config_that_changes_between_opening_and_hashing(cache: BuildCache, model: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.25}))
        with pytest.raises(BuildError, match=r"model: its config changed while it was opened: build again$"):
            build_cached(checkpoint, cache)
    assert cache.entries() == []


def test_what_cannot_be_built_leaves_nothing(cache: BuildCache, model: Path) -> None:
    with pytest.raises(BuildError, match="max_seq_len 257 exceeds"):
        is_hit(cache, model, max_seq_len=257)
    with open_checkpoint(model) as checkpoint, pytest.raises(BuildError, match="backend 'cuda' is unknown"):
        build_cached(checkpoint, cache, backend="cuda")
    assert cache.entries() == []
    assert left_overs(cache.directory) == {}


def test_a_full_disk_is_an_error_that_says_what_could_go(small_disk: Path, model: Path) -> None:
    cache = BuildCache(small_disk / "cache", max_bytes=NEVER_FULL)
    assert not is_hit(cache, model)
    (used,) = cache.entries()
    for tokens_per_block in (32, 48):  # an engine has 2.5 MB, and the disk 8
        assert not is_hit(cache, model, tokens_per_block=tokens_per_block)
    with pytest.raises(EngineIOError) as caught:
        is_hit(cache, model, tokens_per_block=64)
    message = str(caught.value)
    assert "/engine/rank0/weights.bin: cannot be written: No space left on device; " in message
    size_bytes = sum(entry.size_bytes for entry in cache.entries())
    assert message.endswith(f"; `precast cache clear` frees up to {size_bytes} bytes of the build cache")
    assert isinstance(caught.value.__cause__, OSError)
    assert len(cache.entries()) == 3
    assert left_overs(cache.directory) == {}
    assert is_hit(cache, model)
    assert used.path.exists()


def test_a_hit_imports_no_onnx(cache: BuildCache, model: Path, tmp_path: Path) -> None:
    assert not is_hit(cache, model)
    program = f"""
import sys
from precast.builder.cache.cached_build import build_cached
from precast.builder.cache.store import BuildCache
from precast.checkpoints.checkpoint import open_checkpoint
with open_checkpoint(sys.argv[1]) as checkpoint:
    assert build_cached(checkpoint, BuildCache(sys.argv[2], max_bytes={NEVER_FULL})).is_hit
print(*(name for name in ("onnx", "onnx_ir", "torch", "onnxruntime", "huggingface_hub") if name in sys.modules))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(model), str(cache.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **elsewhere(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
