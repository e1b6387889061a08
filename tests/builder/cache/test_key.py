"""The key: everything that changes an engine's bytes changes it, and nothing else does."""

import json
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from precast.builder.build_config import BuildConfig
from precast.builder.cache import key
from precast.builder.cache.content_hashes import FileState, HashedFile
from precast.builder.cache.key import PACKAGES, RESOLVED_OPTIONS, cache_key, describe_build, differences, toolchain
from precast.builder.plan import DEVICE_OPTIONS, BuildPlan
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition
from tests.builder.cache.worlds import flattened

PLAN = BuildPlan("float32", "bfloat16", tokens_per_block=16, max_seq_len=64)
ONE_RANK = Partition(Mapping(), (4,))
STATE = FileState(1, 2, 3, 4, 5)


def hashed(path: str, sha256: str, state: FileState = STATE) -> HashedFile:
    return HashedFile(Path(path), sha256, state)


def describe(
    weights: str = "aa", tokenizer: str = "bb", folder: str = "/here", state: FileState = STATE, **options: Any
) -> dict[str, Any]:
    plan, config = options.get("plan", PLAN), options.get("config", BuildConfig())
    partition = options.get("partition", ONE_RANK)
    return dict(
        describe_build(
            [hashed(f"{folder}/model.safetensors", weights, state)],
            [hashed(f"{folder}/tokenizer.json", tokenizer, state)],
            plan,
            partition,
            config,
            options.get("backend", "onnxruntime"),
        )
    )


def test_it_is_64_digits_of_content() -> None:
    assert len(cache_key(describe())) == 64
    assert int(cache_key(describe()), 16) > 0


def test_a_path_or_a_time_does_not_matter() -> None:
    other = describe(folder="/elsewhere/copied", state=FileState(9, 9, 3, 9, 9))
    assert cache_key(other) == cache_key(describe())
    assert "here" not in json.dumps(describe())


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "cc"},
        {"tokenizer": "cc"},
        {"backend": "tensorrt"},
        {"weights": "bb", "tokenizer": "aa"},
        {"plan": replace(PLAN, dtype="bfloat16")},
        {"plan": replace(PLAN, kv_cache_dtype="float32")},
        {"plan": replace(PLAN, tokens_per_block=32)},
        {"plan": replace(PLAN, max_seq_len=32)},
        {"plan": replace(PLAN, notes=("a note",))},
        {"partition": Partition(Mapping.of(2, 1), (4,))},
        {"partition": Partition(Mapping.of(1, 2), (2, 2))},
        {"partition": Partition(Mapping.of(1, 2), (1, 3))},
        {"config": BuildConfig(max_seq_len=64)},  # the manifest keeps whether it was given
    ],
)
def test_what_matters(change: dict[str, Any]) -> None:
    assert cache_key(describe(**change)) != cache_key(describe())


def test_a_file_that_is_absent_matters() -> None:
    weights = [hashed("model.safetensors", "aa")]
    config = BuildConfig()
    keys = {
        cache_key(describe_build(weights, companions, PLAN, ONE_RANK, config, "onnxruntime"))
        for companions in ([], [hashed("vocab.json", "bb")], [hashed("vocab.txt", "bb")])
    }
    assert len(keys) == 3


def test_every_option_is_in_it() -> None:
    """A field that a later version adds to the config or to the plan changes the key without a line here."""
    options = describe()["options"]
    assert set(options["plan"]) == {field.name for field in fields(BuildPlan)}
    decided = {*RESOLVED_OPTIONS, *DEVICE_OPTIONS}
    assert set(options["given"]) == {field.name for field in fields(BuildConfig)} - decided


def test_an_auto_is_as_good_as_what_it_stands_for() -> None:
    given = BuildConfig(dtype="float32", kv_cache_dtype="bfloat16", tensor_parallel_size=1, pipeline_parallel_size=1)
    assert cache_key(describe(config=given)) == cache_key(describe())


def test_every_resolved_option_is_one_of_both() -> None:
    resolved = {*asdict(PLAN), *asdict(ONE_RANK.mapping)}
    assert {*RESOLVED_OPTIONS} <= resolved & {*asdict(BuildConfig())}


class TestToolchain:
    def test_it_names_versions(self) -> None:
        found = toolchain()
        assert {name: found[name] for name in PACKAGES} == {name: metadata.version(name) for name in PACKAGES}
        assert found["engine_format"] == 1
        assert "ai.precast.Linear/1" in found["ops"]
        assert "x16k2.bf16/1" in found["layouts"]

    @pytest.mark.parametrize("name", ["__version__", "ENGINE_FORMAT", "SUPPORTED_OPS", "SUPPORTED_LAYOUTS"])
    def test_another_precast_misses(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        before = cache_key(describe())
        monkeypatch.setattr(key, name, ["9"])
        assert cache_key(describe()) != before

    @pytest.mark.parametrize("package", PACKAGES)
    def test_another_package_misses(self, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        before, version = cache_key(describe()), metadata.version
        monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == package else version(name))
        assert cache_key(describe()) != before

    def test_other_code_under_the_same_version_misses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "checkpoints" / "families" / "llama.py"
        source.parent.mkdir(parents=True)
        (tmp_path / "builder" / "cache").mkdir(parents=True)
        monkeypatch.setattr(key, "__file__", str(tmp_path / "builder" / "cache" / "key.py"))
        found = []
        for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
            source.write_text(text)
            found.append(toolchain()["sources"])
        assert found[0] == found[2] != found[1]
        source.rename(source.with_name("qwen.py"))
        assert toolchain()["sources"] not in found

    def test_a_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", missing)
        with pytest.raises(ModuleNotFoundError, match=r"needs ml_dtypes, .*pip install 'precast\[build\]'"):
            toolchain()


def test_differences_name_the_place_and_both_values() -> None:
    here, there = describe(plan=replace(PLAN, dtype="bfloat16")), describe(tokenizer="dd")
    del there["backend"]
    assert differences(here, here) == []
    assert sorted(differences(here, there)) == [
        'backend (there nothing, here "onnxruntime")',
        'files.companions.tokenizer.json (there "dd", here "bb")',
        'options.plan.dtype (there "float32", here "bfloat16")',
    ]


def test_a_description_survives_its_file() -> None:
    """So that what is read back equals what was written, tuples and all."""
    described = describe(plan=replace(PLAN, notes=("a", "b")))
    assert json.loads(json.dumps(described)) == described
    assert flattened(described)["options.plan.notes"] == ["a", "b"]
