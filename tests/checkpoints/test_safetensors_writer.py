"""Files that the safetensors package reads."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from precast.checkpoints.safetensors_file import SafetensorsFile
from precast.checkpoints.safetensors_writer import write_safetensors
from precast.checkpoints.tensor_info import TensorInfo

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 5), min_size=1, max_size=3)), max_size=5
    )
)
def test_what_is_written_is_read(
    tensors: list[tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / "model.safetensors"
    random = np.random.default_rng(0)
    arrays = {
        f"tensor {i}": random.standard_normal(shape).astype(DTYPES[dtype]) for i, (dtype, shape) in enumerate(tensors)
    }
    infos = {name: TensorInfo(array.dtype.name, array.shape, array.nbytes) for name, array in arrays.items()}
    # Views that are not dense are written as what they show.
    write_safetensors(path, infos, ((name, array.T.copy().T) for name, array in arrays.items()))
    ours = SafetensorsFile(path)
    assert ours.infos() == infos
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours.tensor(name), array)
    with safe_open(path, "pt") as theirs:
        for name, array in arrays.items():
            np.testing.assert_array_equal(theirs.get_tensor(name).float().numpy(), array.astype(np.float32))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ones = np.ones((2, 3), np.float32)
    infos = {"a": TensorInfo("float32", (2, 3), 24), "b": TensorInfo("float32", (2, 3), 24)}
    cases: list[tuple[list[tuple[str, NDArray[Any]]], str]] = [
        ([("a", ones)], "tensor b was not written"),
        ([("b", ones)], "expected a .*, got b"),
        ([("a", ones[:1])], r"expected a .*, got a float32\[1, 3\]"),
        ([("a", ones.astype(np.float16))], r"expected a .*, got a float16\[2, 3\]"),
        ([("a", ones), ("b", ones), ("c", ones)], "expected nothing more"),
    ]
    for number, (tensors, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            write_safetensors(tmp_path / str(number), infos, tensors)
