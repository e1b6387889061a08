"""One file or many, and indexes that lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from precast.checkpoints.errors import ConfigError, DuplicateTensorError, WeightFilesError
from precast.checkpoints.weight_files import WeightFiles
from tests.checkpoints.editing import edit_json, write_safetensors

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def write_shards(directory: Path, shards: dict[str, list[str]], weight_map: dict[str, str]) -> Path:
    """Shards that hold one-element tensors of these names, and an index."""
    for number, (file, names) in enumerate(shards.items()):
        header = {name: {**ENTRY, "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
        write_safetensors(directory / file, header, np.full(len(names), number, np.float32).tobytes())
    index = directory / "model.safetensors.index.json"
    index.write_text("{}")
    edit_json(index, weight_map=weight_map)
    return index


def test_shards_are_one_set_of_tensors(tmp_path: Path) -> None:
    index = write_shards(
        tmp_path,
        {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]},
        {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
    )
    files = WeightFiles(tmp_path)
    assert files.names() == ("a", "b", "c")
    assert files.source == index
    assert files.path_of("c") == tmp_path / "2.safetensors"
    assert [float(files.tensor(name)[0]) for name in files.names()] == [0.0, 0.0, 1.0]


def test_one_file_is_preferred_to_shards_and_safetensors_to_pickles(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1.safetensors": ["a"]}, {"a": "1.safetensors"})
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert WeightFiles(tmp_path).names() == ("a",)
    write_safetensors(tmp_path / "model.safetensors", {"b": ENTRY}, b"\0" * 4)
    assert WeightFiles(tmp_path).names() == ("b",)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1.safetensors": ["a"]}, {"a": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(WeightFilesError, match=r"index\.json: names 2\.safetensors, which is not in the directory"):
        WeightFiles(tmp_path)


def test_several_missing_shards_are_counted(writable: Callable[[str], Path]) -> None:
    path = writable("shards")
    shards = sorted(path.glob("*.safetensors"))
    for shard in shards[2:5]:
        shard.unlink()
    with pytest.raises(WeightFilesError, match=rf"names {shards[2].name}, .* \(nor are 2 others\)"):
        WeightFiles(path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"1.safetensors": ["a", "b"], "2.safetensors": ["b"]},
        {"a": "1.safetensors", "b": "2.safetensors"},
    )
    with pytest.raises(DuplicateTensorError, match=r"b is in both .*1\.safetensors and .*2\.safetensors"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [{"a": "1.safetensors", "x": "1.safetensors"}, {"a": "1.safetensors", "c": "1.safetensors"}]
)
def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path, weight_map: dict[str, str]) -> None:
    weight_map = {**weight_map, "b": "2.safetensors"}
    write_shards(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b", "c"]}, weight_map)
    wrong = next(name for name in weight_map if name in "xc")
    with pytest.raises(WeightFilesError, match=rf"says that {wrong} is in 1\.safetensors, which does not hold it"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "config.json", 3])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: object) -> None:
    edit_json(write_shards(tmp_path, {}, {}), weight_map={"a": name})
    with pytest.raises(WeightFilesError, match=r"a is said to be in .*, which is no name of a weight file"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, ["a"]])
def test_an_index_without_a_weight_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    edit_json(write_shards(tmp_path, {}, {}), weight_map=weight_map)
    with pytest.raises(WeightFilesError, match="'weight_map' must be an object"):
        WeightFiles(tmp_path)


def test_an_index_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("<html>")
    with pytest.raises(ConfigError, match=r"index\.json: not valid JSON"):
        WeightFiles(tmp_path)


def test_a_directory_without_weights_is_told_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(WeightFilesError, match=r"no weights: expected model\.safetensors .*; found no weight files"):
        WeightFiles(tmp_path)
    (tmp_path / "consolidated.00.pth").touch()
    (tmp_path / "model.gguf").touch()
    with pytest.raises(WeightFilesError, match=r"found consolidated\.00\.pth, model\.gguf"):
        WeightFiles(tmp_path)
