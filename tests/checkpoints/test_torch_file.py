"""PyTorch's pickled files."""

import pickle
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from precast.checkpoints.errors import CorruptFileError, MissingDependencyError, UnsupportedDtypeError
from precast.checkpoints.tensor_info import TensorInfo
from precast.checkpoints.torch_file import TorchFile


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    return {
        "f32": values,
        "bf16": values.to(torch.bfloat16),
        "f16": values.half(),
        "transposed": values.T,
        "parameter": torch.nn.Parameter(values),
    }


@pytest.mark.parametrize("zip_format", [True, False])
def test_tensors_are_read_exactly(tmp_path: Path, tensors: dict[str, torch.Tensor], zip_format: bool) -> None:
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=zip_format)
    file = TorchFile(tmp_path / "x.bin")
    assert file.infos()["bf16"] == TensorInfo("bfloat16", (4, 6), 48)
    assert file.infos()["transposed"] == TensorInfo("float32", (6, 4), 96)
    assert file.tensor("bf16").dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        array = file.tensor(name)
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array.astype(np.float32), tensor.detach().float().numpy())


def test_arrays_view_the_file_and_outlive_it(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    array = file.tensor("f32")
    assert np.shares_memory(array, file.tensor("f32"))
    file.release("f32")
    file.close()
    np.testing.assert_array_equal(array, tensors["f32"].numpy())
    with pytest.raises(KeyError):
        file.tensor("f32")


def test_another_dtype_is_listed_and_not_read(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    assert file.infos()["w"].dtype == "float8_e4m3fn"
    with pytest.raises(UnsupportedDtypeError, match="w is stored as float8_e4m3fn, which is not supported"):
        file.tensor("w")


class Exploit:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploited"),))


def test_code_in_a_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Exploit()}, "x.bin")
    Path("y.bin").write_bytes(pickle.dumps(Exploit(), protocol=2))
    for name in ("x.bin", "y.bin"):
        with pytest.raises(CorruptFileError, match=f"{name}: PyTorch cannot read it: "):
            TorchFile(Path(name))
    assert not Path("exploited").exists()


def test_a_truncated_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.bin").write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match=r"cut\.bin: PyTorch cannot read it: "):
            TorchFile(tmp_path / "cut.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.zeros(1)], "holds a list, not a state dict"), ({"step": 3}, "'step' is a int, not a tensor")],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CorruptFileError, match=message):
        TorchFile(tmp_path / "x.bin")


def test_without_pytorch_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="pip install torch, or use a checkpoint in safetensors format"):
        TorchFile(tmp_path / "x.bin")
