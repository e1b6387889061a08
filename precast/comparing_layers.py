"""What layers give on one backend beside what they give on another, on this machine's GPU, compared by polygraphy."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.building import build
from precast.tokenizer import Tokenizer

REFERENCE_BACKEND = "onnxruntime-cuda"
TOLERANCES = {"bfloat16": 2.0**-4, "float16": 2.0**-7}
"""Of max|a - b| / max|b| of an output, by dtype: both sides round to 16 bits in every layer, which adds up. What
computes something else is off by about 1."""
MAX_TOKENS = 256
"""Of a prompt: every row has logits on the GPU."""
RESULTS_FILE = "outputs.json"
"""polygraphy's, where they are saved."""
# Without the current directory, in which a folder may be called precast.
_PROGRAM = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "from precast.runtime.device.layer_outputs import main; sys.exit(main(sys.argv[1:]))"
)

Outputs = Sequence[Mapping[str, NDArray[np.float32]]]
"""Of each prompt, by name."""


@dataclass(frozen=True)
class LayerResult:
    """One output for one prompt.

    Attributes:
        error: max|a - b| / max|b|, b being the reference's for all prompts.
        mean_difference: mean|a - b|.
    """

    prompt: int
    output: str
    error: float
    mean_difference: float
    passed: bool


@dataclass(frozen=True)
class LayerReport:
    """Outputs in the order in which the network computes them, for each prompt."""

    backend: str
    reference: str
    dtype: str
    tolerance: float
    results: tuple[LayerResult, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def first_wrong(self) -> LayerResult | None:
        """The first output that differs: what is behind it follows."""
        return next((result for result in self.results if not result.passed), None)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def compare_layers(
    model: str | os.PathLike[str],
    backend: str,
    *,
    revision: str | None = None,
    prompts: Sequence[str],
    dtype: str = "auto",
    tolerance: float | None = None,
    save_to: Path | None = None,
) -> LayerReport:
    """Builds the checkpoint for both backends with every layer's output, runs prompts, and compares.

    Args:
        model: the checkpoint's directory or hub id; ``revision`` is of the id.
        backend: "tensorrt".
        prompts: texts, of which at most MAX_TOKENS tokens are used.
        dtype: of both engines; "auto": the checkpoint's, as an engine for GPUs has it.
        tolerance: of each output; None: TOLERANCES.
        save_to: a directory for all outputs, as polygraphy's run results.

    Raises:
        ValueError: a checkpoint that cannot be built.
        ModuleNotFoundError: a package is missing.
        RuntimeError: an engine cannot be opened or run here, in the words of the process that tried.
    """
    _check_installed()
    with tempfile.TemporaryDirectory(prefix="precast-layers-") as folder:
        tokens: list[list[int]] = []
        outputs: dict[str, Outputs] = {}
        for name in (backend, REFERENCE_BACKEND):
            engine = Path(folder, name)
            manifest = build(
                model,
                engine,
                revision=revision,
                backend=name,
                dtype=dtype,
                tensor_parallel_size=1,
                pipeline_parallel_size=1,
                max_batch_size=MAX_TOKENS,
                max_num_tokens=MAX_TOKENS,
                layer_outputs=True,
            )
            tokens = tokens or _encode(engine, prompts, manifest.model.max_seq_len)
            outputs[name] = _run(engine, tokens, Path(folder, f"{name}.npz"))
        built_dtype = manifest.build.dtype
    limit = TOLERANCES[built_dtype] if tolerance is None else tolerance
    names = (backend, REFERENCE_BACKEND)
    results = compare_outputs(outputs[backend], outputs[REFERENCE_BACKEND], limit, names, save_to)
    return LayerReport(backend, REFERENCE_BACKEND, built_dtype, limit, results)


def compare_outputs(
    outputs: Outputs, reference: Outputs, tolerance: float, names: tuple[str, str], save_to: Path | None = None
) -> tuple[LayerResult, ...]:
    """Compare the outputs of each prompt.

    Args:
        names: Of the two ways, for polygraphy.
        save_to: See `compare_layers`.
    """
    from polygraphy.comparator import Comparator, RunResults, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    runs = RunResults()
    for name, prompts in zip(names, (outputs, reference), strict=True):
        runs.add([dict(arrays) for arrays in prompts], runner_name=name)
    scales = {name: _largest([arrays[name] for arrays in reference]) for name in reference[0]}
    limits = {name: tolerance * scale for name, scale in scales.items()}
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        function = SimpleCompareFunc(rtol=0.0, atol=limits, check_error_stat="max")
        (compared,) = Comparator.compare_accuracy(runs, compare_func=function)
        if save_to is not None:
            save_to.mkdir(parents=True, exist_ok=True)
            runs.save(str(save_to / RESULTS_FILE))
    return tuple(
        LayerResult(
            prompt=number,
            output=name,
            error=found[name].max_absdiff / scales[name],
            mean_difference=found[name].mean_absdiff,
            # A difference that is no number is no small one.
            passed=bool(found[name]) and math.isfinite(found[name].max_absdiff),
        )
        for number, found in enumerate(compared[names])
        for name in sorted(found, key=_place)
    )


def _largest(arrays: Sequence[NDArray[np.float32]]) -> float:
    """Of all finite numbers, without their signs; never 0."""
    found = (np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in arrays)
    return max(float(np.finfo(np.float32).tiny), *map(float, found))


def _place(output: str) -> tuple[float, bool]:
    """Of an output in the network: layers in order, the mixer before the feed-forward, logits last."""
    layer = float(output.split(".")[1]) if output.startswith("layers.") else math.inf
    return layer, output.endswith("feed_forward_sum")


def _check_installed() -> None:
    """polygraphy, before anything is built."""
    try:
        importlib.import_module("polygraphy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "comparing layers needs polygraphy, which is not installed: pip install 'precast[compare]'",
            name="polygraphy",
        ) from error


def _encode(engine: Path, prompts: Sequence[str], max_seq_len: int) -> list[list[int]]:
    tokenizer = Tokenizer(engine / "tokenizer")
    return [tokenizer.encode(prompt)[: min(MAX_TOKENS, max_seq_len)] for prompt in prompts]


def _run(engine: Path, prompts: Sequence[Sequence[int]], output: Path) -> Outputs:
    """What the layers of an engine give, computed by a process of its own."""
    command = [sys.executable, "-c", _PROGRAM, str(engine), str(output)]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
        raise RuntimeError(said[-1])
    with np.load(output, allow_pickle=False) as arrays:
        return [
            {name.removeprefix(f"{number}/"): arrays[name] for name in arrays if name.startswith(f"{number}/")}
            for number in range(len(prompts))
        ]
