"""Checkpoints of one file a rank: written, read back, and what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast.checkpoints import errors
from precast.checkpoints.checkpoint import Checkpoint, RankTensors, open_checkpoint
from precast.checkpoints.ranks import convert
from precast.checkpoints.ranks.convert import convert_checkpoint
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition, plan_partition
from precast.checkpoints.ranks.rank_model import rank_model
from tests.checkpoints.editing import edit_json, edit_safetensors

Tiny = Callable[[str], Path]
MAPPINGS = [Mapping.of(1, 1), Mapping.of(2, 1), Mapping.of(4, 1), Mapping.of(1, 2), Mapping.of(2, 2)]
VARIANTS = ["gqa", "tied", "attention_bias", "mlp_bias", "odd_vocab", "bfloat16", "float16", "qwen2", "qwen3_window"]


def converted(source: Path, target: Path, mapping: Mapping) -> Path:
    with open_checkpoint(source) as checkpoint:
        convert_checkpoint(checkpoint, target, mapping)
    return target


def assert_same_tensors(a: Checkpoint, b: Checkpoint) -> None:
    assert a.names() == b.names()
    for name in a.names():
        assert a.info(name) == b.info(name)
        np.testing.assert_array_equal(a.tensor(name).view(np.uint8), b.tensor(name).view(np.uint8), err_msg=name)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_divided_is_put_together_again(
    variant: str, mapping: Mapping, tiny_llama: Tiny, tmp_path: Path
) -> None:
    source = tiny_llama(variant)
    target = converted(source, tmp_path / "ranks", mapping)
    names = sorted(path.name for path in target.iterdir())
    assert [name for name in names if name.startswith("rank")] == [
        f"rank{rank}.safetensors" for rank in range(mapping.world_size)
    ]
    with open_checkpoint(source) as original, open_checkpoint(target) as ranks:
        assert ranks.config == original.config
        assert ranks.generation_config == original.generation_config
        assert ranks.partition == plan_partition(original.config, mapping)
        assert [path.name for path in ranks.companion_files()] == [path.name for path in original.companion_files()]
        assert_same_tensors(original, ranks)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=str)
def test_a_rank_reads_its_own_file_and_no_other(mapping: Mapping, tiny_llama: Tiny, tmp_path: Path) -> None:
    target = converted(tiny_llama("mlp_bias"), tmp_path / "ranks", mapping)
    with open_checkpoint(tiny_llama("mlp_bias")) as original:
        partition = plan_partition(original.config, mapping)
        for rank in range(mapping.world_size):
            model = rank_model(original.config, partition, rank)
            with open_checkpoint(target) as ranks:
                read = read_files(ranks)
                for name in model.slices:
                    mine = RankTensors(ranks, model).tensor(name)
                    np.testing.assert_array_equal(mine, RankTensors(original, model).tensor(name), err_msg=name)
                assert read == {f"rank{rank}"}


def read_files(checkpoint: Checkpoint) -> set[str]:
    """The set that will hold the first part of the name of every file tensor that is read."""
    read: set[str] = set()
    files = checkpoint._files
    tensor = files.tensor

    def recording(name: str) -> Any:
        read.add(name.split("/", maxsplit=1)[0])
        return tensor(name)

    files.tensor = recording  # type: ignore[method-assign]
    return read


def test_other_sizes_than_the_files_are_put_together(tiny_llama: Tiny, tmp_path: Path) -> None:
    target = converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(4, 2))
    with open_checkpoint(tiny_llama("gqa")) as original, open_checkpoint(target) as ranks:
        partition = plan_partition(original.config, Mapping.of(2, 1))
        for rank in range(2):
            model = rank_model(original.config, partition, rank)
            for name in model.slices:
                np.testing.assert_array_equal(
                    RankTensors(ranks, model).tensor(name), RankTensors(original, model).tensor(name), err_msg=name
                )


def test_a_converted_checkpoint_can_be_converted(tiny_llama: Tiny, tmp_path: Path) -> None:
    first = converted(tiny_llama("tied"), tmp_path / "first", Mapping.of(2, 2))
    second = converted(first, tmp_path / "second", Mapping.of(1, 2))
    direct = converted(tiny_llama("tied"), tmp_path / "direct", Mapping.of(1, 2))
    assert {path.name: path.read_bytes() for path in second.iterdir()} == {
        path.name: path.read_bytes() for path in direct.iterdir()
    }


def test_the_files_are_safetensors_files_with_canonical_names(tiny_llama: Tiny, tmp_path: Path) -> None:
    from safetensors import safe_open

    target = converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(2, 1))
    with safe_open(target / "rank1.safetensors", "pt") as file, open_checkpoint(tiny_llama("gqa")) as original:
        model = rank_model(original.config, plan_partition(original.config, Mapping.of(2, 1)), 1)
        assert set(file.keys()) == set(model.slices)
        for name in file.keys():  # noqa: SIM118 - not a dict
            np.testing.assert_array_equal(file.get_tensor(name).numpy(), RankTensors(original, model).tensor(name))


def test_config_json_stays_a_hugging_face_config(tiny_llama: Tiny, tmp_path: Path) -> None:
    from transformers import AutoConfig

    target = converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(2, 2))
    original = json.loads((tiny_llama("gqa") / "config.json").read_text())
    config = json.loads((target / "config.json").read_text())
    assert config.pop("precast_checkpoint") == {
        "format": 1,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "stage_layers": [1, 1],
        "dtype": "float32",
        "tied": False,
    }
    assert config == original
    assert AutoConfig.from_pretrained(target).num_attention_heads == 4


def test_progress_ends_with_every_byte(tiny_llama: Tiny, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    with open_checkpoint(tiny_llama("gqa")) as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "ranks", Mapping.of(2, 1), progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1][0] == convert.STAGE
    assert calls[-1][1] == calls[-1][2] > 0


class TestWhatIsRefused:
    @pytest.fixture
    def ranks(self, tiny_llama: Tiny, tmp_path: Path) -> Path:
        return converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(2, 1))

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"format": 2}, errors.ConfigError, "precast_checkpoint: format 2 is not one that this precast reads"),
            ({"format": None}, errors.ConfigError, "precast_checkpoint: 'format' is missing"),
            ({"tensor_parallel_size": "2"}, errors.ConfigError, "'tensor_parallel_size' must be an integer, not '2'"),
            ({"tensor_parallel_size": 3}, errors.PartitionError, "tensor_parallel_size 3 does not divide"),
            ({"tensor_parallel_size": 40000}, errors.ConfigError, "tensor_parallel_size must be at most 32768"),
            ({"stage_layers": [3]}, errors.ConfigError, "'stage_layers' must be numbers whose sum is the model's 2"),
            ({"stage_layers": [1, 1]}, errors.ConfigError, "stage_layers must have pipeline_parallel_size = 1"),
            ({"stage_layers": [2.5]}, errors.ConfigError, "'stage_layers' must be a list of integers of at least 1"),
            ({"dtype": "int3"}, errors.ConfigError, "'dtype' must be one of float32"),
            ({"tied": "no"}, errors.ConfigError, "'tied' must be true or false"),
            ({"tied": True}, errors.UnexpectedTensorError, "lm_head.weight is not a tensor that rank 0 has"),
            (
                {"pipeline_parallel_size": 2, "stage_layers": [1, 1]},
                errors.WeightFilesError,
                "rank2.safetensors: missing",
            ),
            (
                {"tensor_parallel_size": 1},
                errors.TensorShapeError,
                r"embedding.weight has shape \[160, 64\], rank 0 has",
            ),
        ],
    )
    def test_a_section_that_is_wrong(
        self, ranks: Path, changes: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        section = json.loads((ranks / "config.json").read_text())["precast_checkpoint"]
        edit_json(ranks / "config.json", precast_checkpoint={**section, **changes})
        with pytest.raises(error, match=message):
            open_checkpoint(ranks)

    def test_a_rank_without_a_file(self, ranks: Path) -> None:
        (ranks / "rank1.safetensors").unlink()
        message = "rank1.safetensors: missing; config.json says that there are 2 ranks, of which 1 have no file"
        with pytest.raises(errors.WeightFilesError, match=message):
            open_checkpoint(ranks)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                lambda tensors: tensors.pop("layers.0.attention.o.weight"),
                errors.MissingTensorError,
                "rank1.safetensors: has no tensor layers.0.attention.o.weight; rank 1 needs it, of shape",
            ),
            (
                lambda tensors: tensors.update(extra=tensors["final_norm.weight"].clone()),
                errors.UnexpectedTensorError,
                "rank1.safetensors: extra is not a tensor that rank 1 has of the model",
            ),
            (
                lambda tensors: tensors.update({"final_norm.weight": tensors["final_norm.weight"].int()}),
                errors.UnsupportedDtypeError,
                "final_norm.weight is stored as I32",
            ),
            (
                lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}),
                errors.UnsupportedDtypeError,
                "rank1/lm_head.weight is stored as float16, rank0/lm_head.weight as float32; all ranks",
            ),
        ],
    )
    def test_a_file_that_is_wrong(
        self, ranks: Path, change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
    ) -> None:
        edit_safetensors(ranks / "rank1.safetensors", change)
        with pytest.raises(error, match=message):
            open_checkpoint(ranks)

    def test_sizes_that_do_not_divide_leave_nothing(self, tiny_llama: Tiny, tmp_path: Path) -> None:
        with pytest.raises(errors.PartitionError, match="sizes that work: 1, 2, 4"):
            converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(3, 1))
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_is_taken(self, ranks: Path, tiny_llama: Tiny) -> None:
        before = {path.name: path.stat().st_mtime_ns for path in ranks.iterdir()}
        with pytest.raises(errors.WriteError, match="exists already: choose another directory, or delete it first"):
            converted(tiny_llama("gqa"), ranks, Mapping.of(1, 1))
        assert {path.name: path.stat().st_mtime_ns for path in ranks.iterdir()} == before

    def test_a_full_disk_leaves_nothing(
        self, tiny_llama: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_space(source: object, target: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

        monkeypatch.setattr(shutil, "copyfile", no_space)
        with pytest.raises(errors.WriteError, match=r"ranks: generation_config.json cannot be written: No space left"):
            converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(2, 1))
        assert list(tmp_path.iterdir()) == []

    def test_a_stage_of_other_layers_is_read_as_it_was_written(self, tiny_llama: Tiny, tmp_path: Path) -> None:
        """Whoever writes the files chooses the stages; a later version may balance them otherwise."""
        target = converted(tiny_llama("gqa"), tmp_path / "ranks", Mapping.of(1, 2))
        with open_checkpoint(target) as checkpoint:
            assert checkpoint.partition == Partition(Mapping.of(1, 2), (1, 1))
