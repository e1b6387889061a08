"""Verification: an engine's logits beside a reference's, and the figures of the comparison.

The builder runs nothing: both sides are callables. The reference is Hugging Face's model where it is installed, or
`reference.ReferenceModel`.

An error is max|a - b| / max|b| over the logits of a prompt. float32 engines may err by 1e-4. bfloat16 engines may err
by twice what the reference's own model in bfloat16 errs against float32, if that is given as the baseline; without
one, by BFLOAT16_TOLERANCE.
"""

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precast.checkpoints.engine_dir import write_verification
from precast.version import __version__

LogitsFunction = Callable[[Sequence[int]], NDArray[np.float32]]
"""Token ids of one sequence -> logits, float32 [number of tokens, vocab_size]."""

FLOAT32_TOLERANCE = 1e-4
BFLOAT16_TOLERANCE = 0.05
"""Transformers' own bfloat16 models err by 0.007 to 0.028 on the tests' tiny Llamas: this is about twice the most."""
FLOAT16_TOLERANCE = 0.01
"""Roundings are an eighth of bfloat16's."""
HALF_TOLERANCES = {"bfloat16": BFLOAT16_TOLERANCE, "float16": FLOAT16_TOLERANCE}
BASELINE_FACTOR = 2.0

TOOLCHAIN = ("ml_dtypes", "numpy", "onnx", "onnx-ir")


@dataclass(frozen=True)
class PromptResult:
    """One prompt.

    Attributes:
        error: max|a - b| / max|b|; infinite where the engine's logits are not all finite.
        greedy_agreement: Share of the positions at which both have the same most likely token.
    """

    num_tokens: int
    error: float
    greedy_agreement: float


@dataclass(frozen=True)
class VerificationReport:
    """The figures of one verification.

    Attributes:
        dtype: Of the engine's weights.
        reference: What the engine was compared with, in words.
        tolerance: The greatest error that passes.
        tolerance_reason: Where that number comes from.
    """

    dtype: str
    reference: str
    tolerance: float
    tolerance_reason: str
    prompts: tuple[PromptResult, ...]

    @property
    def error(self) -> float:
        """The greatest of the prompts' errors."""
        return max(prompt.error for prompt in self.prompts)

    @property
    def greedy_agreement(self) -> float:
        """Over the positions of all prompts."""
        agreeing = sum(prompt.greedy_agreement * prompt.num_tokens for prompt in self.prompts)
        return agreeing / sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an infinite error, which JSON cannot write, is null."""
        prompts = [{**asdict(prompt), "error": _finite_or_none(prompt.error)} for prompt in self.prompts]
        return {
            **asdict(self),
            "prompts": prompts,
            "error": _finite_or_none(self.error),
            "greedy_agreement": self.greedy_agreement,
            "passed": self.passed,
        }


def verify_logits(
    run_logits: LogitsFunction,
    reference_logits: LogitsFunction,
    prompts: Sequence[Sequence[int]],
    *,
    dtype: str,
    reference: str,
    baseline_logits: LogitsFunction | None = None,
) -> VerificationReport:
    """Compare an engine with a reference.

    Args:
        run_logits: The engine's.
        reference_logits: The reference's, in float32.
        prompts: Token ids; at least one prompt, each of at least one token.
        dtype: Of the engine's weights, "float32", "bfloat16" or "float16".
        reference: What the reference is, for the report.
        baseline_logits: The reference's own model in that dtype; only read for one of 16 bits.

    Raises:
        ValueError: no prompts, an empty prompt, an unknown dtype, or logits of different shapes.
    """
    if not prompts or not all(prompts):
        raise ValueError("verification needs at least one prompt, and at least one token in each")
    expected = [reference_logits(prompt) for prompt in prompts]
    results = tuple(_compare(run_logits(prompt), logits) for prompt, logits in zip(prompts, expected, strict=True))
    if dtype in HALF_TOLERANCES and baseline_logits is not None:
        pairs = zip(prompts, expected, strict=True)
        baseline = max(_compare(baseline_logits(prompt), logits).error for prompt, logits in pairs)
        reason = f"{BASELINE_FACTOR:g} times the error {baseline:.3g} of the reference's own model in {dtype}"
        return VerificationReport(dtype, reference, BASELINE_FACTOR * baseline, reason, results)
    return VerificationReport(dtype, reference, *_fixed_tolerance(dtype), results)


def save_report(
    engine_dir: str | PathLike[str], report: VerificationReport, *, seconds: dict[str, float] | None = None
) -> None:
    """Write verification.json into an engine: the figures, and what else of a build is not reproducible.

    Args:
        seconds: Name of a stage -> how long it took, such as {"build": 12.3}.

    Raises:
        EngineIOError: the file cannot be written.
    """
    toolchain = {"precast": __version__, "python": platform.python_version()}
    document = {
        "logits": report.to_dict(),
        "machine": platform.machine(),
        "seconds": seconds or {},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "toolchain": {**toolchain, **{name: version(name) for name in TOOLCHAIN}},
    }
    write_verification(engine_dir, document)


def _fixed_tolerance(dtype: str) -> tuple[float, str]:
    tolerances = {"float32": FLOAT32_TOLERANCE, **HALF_TOLERANCES}
    if dtype not in tolerances:
        raise ValueError(f"there is no tolerance for dtype {dtype!r}; known: {', '.join(tolerances)}")
    return tolerances[dtype], f"fixed for {dtype}"


def _compare(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> PromptResult:
    if logits.shape != expected.shape:
        raise ValueError(f"logits have shape {list(logits.shape)}, the reference's {list(expected.shape)}")
    difference, scale = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    smallest = float(np.finfo(np.float32).tiny)  # for a reference of zeros
    error = difference / max(scale, smallest) if math.isfinite(difference) else float("inf")
    agreement = float(np.mean(logits.argmax(axis=-1) == expected.argmax(axis=-1)))
    return PromptResult(len(expected), error, agreement)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
