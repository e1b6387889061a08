"""What layers give on one backend beside another: figures, the first that differs, the command."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precast import comparing_layers
from precast.checkpoints.engine_manifest import EngineManifest
from precast.cli import main
from precast.comparing_layers import RESULTS_FILE, LayerReport, compare_layers, compare_outputs
from precast.runtime.device.layer_outputs import layer_outputs
from tests.runtime.onnxruntime.cpu_provider import put_cpu_in_place
from tests.runtime.tensorrt.fake_engine import build_fake_engine, put_fakes_in_place
from tests.runtime.tensorrt.fake_packages import tensorrt_rtx as trt
from tests.runtime.tensorrt.fake_packages.cuda.bindings import driver

TinyLlama = Callable[..., Path]
NAMES = ("tensorrt", "onnxruntime-cuda")


def arrays(**changes: float) -> dict[str, Any]:
    """Outputs of three rows, the first number of which is changed."""
    found = {}
    for name in ("logits", "layers.1.feed_forward_sum", "layers.1.mixer_sum", "layers.0.mixer_sum"):
        array = np.array([[4.0, -8.0], [1.0, 0.5], [0.25, 2.0]], np.float32)
        array[0, 0] += changes.get(name.replace(".", "_"), 0.0)
        found[name] = array
    return found


class TestOutputs:
    def test_equal_ones(self) -> None:
        results = compare_outputs([arrays()], [arrays()], 0.01, NAMES)
        assert [(each.error, each.mean_difference, each.passed) for each in results] == [(0.0, 0.0, True)] * 4

    def test_are_in_the_order_in_which_they_are_computed(self) -> None:
        results = compare_outputs([arrays()] * 2, [arrays()] * 2, 0.01, NAMES)
        outputs = ["layers.0.mixer_sum", "layers.1.mixer_sum", "layers.1.feed_forward_sum", "logits"]
        assert [(each.prompt, each.output) for each in results] == [(i, name) for i in (0, 1) for name in outputs]

    def test_an_error_is_relative_to_the_largest_of_the_reference(self) -> None:
        changed = arrays(layers_1_mixer_sum=0.5)
        for tolerance, passed in ((0.0624, False), (0.0626, True)):
            result = compare_outputs([changed], [arrays()], tolerance, NAMES)[1]
            assert (result.output, result.error, result.passed) == ("layers.1.mixer_sum", 0.0625, passed)
            assert result.mean_difference == pytest.approx(0.5 / 6)

    def test_the_scale_is_that_of_all_prompts(self) -> None:
        small = {name: array / 8 for name, array in arrays().items()}
        off = {name: array + np.float32(0.5) for name, array in small.items()}
        results = compare_outputs([arrays(), off], [arrays(), small], 0.07, NAMES)
        assert {each.error for each in results if each.prompt == 1} == {0.0625}

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number_differs(self, value: float) -> None:
        for ours, theirs in ((arrays(logits=value), arrays()), (arrays(), arrays(logits=value))):
            results = compare_outputs([ours], [theirs], 1e9, NAMES)
            assert [each.output for each in results if not each.passed] == ["logits"]

    def test_zeros_are_equal_to_zeros_only(self) -> None:
        zeros = {name: np.zeros_like(array) for name, array in arrays().items()}
        assert all(each.passed for each in compare_outputs([zeros], [zeros], 0.01, NAMES))
        assert not any(each.passed for each in compare_outputs([arrays()], [zeros], 0.01, NAMES))

    def test_they_are_saved_for_polygraphy(self, tmp_path: Path) -> None:
        from polygraphy.comparator import RunResults

        compare_outputs([arrays(logits=1.0)], [arrays()], 0.01, NAMES, tmp_path / "new")
        runs = RunResults.load(str(tmp_path / "new" / RESULTS_FILE))
        assert [name for name, _ in runs.items()] == list(NAMES)
        assert runs["tensorrt"][0]["logits"][0, 0] == 5.0


# ---------------------------------------------------------------------------------------------------------- on devices


@pytest.fixture
def on_fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines are built and run with fakes, in this process."""

    def build(model: Path, output: Path, *, revision: str | None, backend: str, **options: Any) -> EngineManifest:
        assert revision is None
        options |= {"max_batch_size": 32, "max_num_tokens": 32, "max_seq_len": None}
        return build_fake_engine(_MODELS.get((str(model), backend), model), output, backend, **options)

    def run(engine: Path, prompts: Sequence[Sequence[int]], output: Path) -> list[dict[str, Any]]:
        driver.reset()
        trt.reset_plugins()
        found = layer_outputs(engine, prompts)
        assert driver.misuse == [], driver.misuse
        assert driver.leaks() == [], driver.leaks()
        return [
            {name.split("/")[1]: array for name, array in found.items() if name.startswith(f"{number}/")}
            for number in range(len(prompts))
        ]

    put_fakes_in_place(monkeypatch)
    put_cpu_in_place(monkeypatch.setattr)
    monkeypatch.setattr(comparing_layers, "build", build)
    monkeypatch.setattr(comparing_layers, "_run", run)
    monkeypatch.setattr(comparing_layers, "MAX_TOKENS", 32)
    yield
    _MODELS.clear()
    driver.reset()


_MODELS: dict[tuple[str, str], Path] = {}
"""Other checkpoints in the place of some, for a backend."""
PROMPTS = ("The import statement", "def add(a: int, b: int) -> int:\n    return a + b", "x")


def compare(model: Path, **options: Any) -> LayerReport:
    return compare_layers(model, "tensorrt", prompts=PROMPTS, dtype="float16", **options)


@pytest.mark.parametrize("variant", ["float16", "qwen2_window", "attention_bias"])
def test_both_backends_give_the_same(variant: str, tiny_llama: TinyLlama, on_fakes: None) -> None:
    report = compare(tiny_llama(variant))
    assert report.passed
    assert report.first_wrong is None
    assert (report.dtype, report.tolerance) == ("float16", 2.0**-7)
    names = [each.output for each in report.results if each.prompt == 0]
    assert names[:2] == ["layers.0.mixer_sum", "layers.0.feed_forward_sum"]
    assert names[-1] == "logits"
    assert {each.prompt for each in report.results} == {0, 1, 2}
    assert 0 < max(each.error for each in report.results) < 2.0**-8


def test_the_first_layer_that_differs_is_named(
    tiny_llama: TinyLlama, tmp_path: Path, on_fakes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama("float16")
    _MODELS[str(model), "tensorrt"] = with_other_weights(model, tmp_path / "other", "layers.1.mlp.down_proj")
    report = compare(model)
    assert not report.passed
    wrong = report.first_wrong
    assert wrong is not None
    assert (wrong.prompt, wrong.output) == (0, "layers.1.feed_forward_sum")
    arguments = ["verify", str(model), "--backend", "tensorrt", "--dtype", "float16", "--prompts", *PROMPTS]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is False
    assert (
        "tensorrt differs from onnxruntime-cuda first in layers.1.feed_forward_sum of prompt 0: error " in printed.err
    )
    assert main([*arguments, "--tolerance", "100"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["prompt", "output", "error", "mean", "difference"]
    assert len(table) == 1 + len(report.results)
    assert not any("differs" in line for line in table)


def with_other_weights(model: Path, copy: Path, part: str) -> Path:
    """The checkpoint with one tensor doubled."""
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, copy)
    path = copy / "model.safetensors"
    tensors = load_file(path)
    (name,) = [name for name in tensors if part in name]
    tensors[name] = tensors[name] * 2
    save_file(tensors, path, metadata={"format": "pt"})
    return copy


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--reference", "there"], "--backend compares with ONNX Runtime: leave out --reference"),
        (["--tolerance", "0"], "--tolerance must be more than 0, got 0.0"),
        (["--tolerance", "nan"], "--tolerance must be more than 0, got nan"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model", "--backend", "tensorrt", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_options_that_need_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--dtype", "float16"], ["--tolerance", "1"], ["--save", "there"]):
        assert main(["verify", "engine", *option]) == 2
        assert "--dtype, --tolerance and --save need --backend" in capsys.readouterr().err


def test_without_polygraphy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polygraphy", None)
    assert main(["verify", "model", "--backend", "tensorrt"]) == 1
    assert "needs polygraphy, which is not installed: pip install 'precast[compare]'" in capsys.readouterr().err


def test_without_a_gpu_the_process_says_why(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """The real process, on a machine that has no onnxruntime-gpu."""
    build_fake_engine(tiny_llama("float16"), tmp_path / "engine", "onnxruntime-cuda", layer_outputs=True)
    with pytest.raises(RuntimeError, match=r"the engine runs with ONNX Runtime on CUDA, and "):
        comparing_layers._run(tmp_path / "engine", [[1, 2]], tmp_path / "out.npz")
