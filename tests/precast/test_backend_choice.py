"""Every combination of backend and device, where an engine is built and where one is loaded."""

import itertools

import pytest

from precast.backend_choice import (
    BACKENDS,
    DEVICES,
    GPU_BACKENDS,
    backend_to_build,
    check_backend,
    describe_choice,
    is_chosen,
)
from precast.checkpoints.engine_manifest import BACKEND_REQUIREMENTS

Choice = tuple[str | None, str | None]
CHOICES: list[Choice] = list(itertools.product((None, *BACKENDS), (None, *DEVICES)))
IMPOSSIBLE: Choice = ("tensorrt", "cpu")

BUILT: dict[Choice, str] = {
    (None, None): "onnxruntime",
    (None, "cpu"): "onnxruntime",
    (None, "cuda"): "onnxruntime-cuda",
    ("onnxruntime", None): "onnxruntime",
    ("onnxruntime", "cpu"): "onnxruntime",
    ("onnxruntime", "cuda"): "onnxruntime-cuda",
    ("tensorrt", None): "tensorrt",
    ("tensorrt", "cuda"): "tensorrt",
}
LOADED: dict[str, set[Choice]] = {
    "onnxruntime": {(None, None), (None, "cpu"), ("onnxruntime", None), ("onnxruntime", "cpu")},
    "onnxruntime-cuda": {(None, None), (None, "cuda"), ("onnxruntime", None), ("onnxruntime", "cuda")},
    "tensorrt": {(None, None), (None, "cuda"), ("tensorrt", None), ("tensorrt", "cuda")},
}
"""With which choices an engine of each backend may be loaded."""


def test_the_tables_are_whole() -> None:
    assert {*BUILT, IMPOSSIBLE} == set(CHOICES)
    assert set(LOADED) == set(BACKEND_REQUIREMENTS) == {*GPU_BACKENDS, "onnxruntime"}


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_built(choice: Choice) -> None:
    if choice == IMPOSSIBLE:
        with pytest.raises(
            ValueError, match=r"^backend 'tensorrt' runs on NVIDIA GPUs, and device='cpu' was asked for: leave one out$"
        ):
            backend_to_build(*choice)
    else:
        check_backend(*choice)
        assert backend_to_build(*choice) == BUILT[choice]


@pytest.mark.parametrize("built", LOADED)
def test_what_is_loaded(built: str) -> None:
    assert {choice for choice in CHOICES if is_chosen(built, *choice)} == LOADED[built]


@pytest.mark.parametrize("choice", BUILT, ids=str)
def test_what_is_built_is_loaded_with_the_same_choice(choice: Choice) -> None:
    assert is_chosen(BUILT[choice], *choice)


def test_a_choice_in_words() -> None:
    assert describe_choice(None, None) == ""
    assert describe_choice("tensorrt", None) == "--backend tensorrt"
    assert describe_choice(None, "cuda") == "--device cuda"
    assert describe_choice("onnxruntime", "cuda") == "--backend onnxruntime --device cuda"


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:0", ""])
def test_an_unknown_device(device: str) -> None:
    for backend in (None, *BACKENDS):
        with pytest.raises(ValueError, match=f"^unknown device '{device}': Precast has 'cpu' and 'cuda'$"):
            check_backend(backend, device)


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_an_unknown_backend(device: str | None) -> None:
    """The name of a manifest is none of an argument's."""
    for backend in ("onnxruntime-cuda", "cuda", ""):
        with pytest.raises(ValueError, match=f"^unknown backend '{backend}': Precast has 'onnxruntime' or 'tensorrt'$"):
            check_backend(backend, device)
    with pytest.raises(ValueError, match=r"^backend='pytorch' runs models through PyTorch, which Precast never needs"):
        check_backend("pytorch", device)
