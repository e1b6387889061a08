import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from precast.builder.build import build_engine
from precast.builder.verify import PromptResult, VerificationReport, save_report, verify_logits
from precast.checkpoints.checkpoint import open_checkpoint
from precast.checkpoints.engine_dir import read_manifest, verify_files

Logits = NDArray[np.float32]
PROMPTS = ((1, 2), (3,))


def expected(token_ids: Sequence[int]) -> Logits:
    """Token t has its greatest logit, 10, at index t of five."""
    logits = np.zeros((len(token_ids), 5), np.float32)
    logits[np.arange(len(token_ids)), list(token_ids)] = 10
    return logits


def off_by(error: float) -> Callable[[Sequence[int]], Logits]:
    def logits(token_ids: Sequence[int]) -> Logits:
        found = expected(token_ids)
        found[0, 0] += np.float32(error)
        return found

    return logits


def verify(logits: Callable[[Sequence[int]], Logits], dtype: str = "float32") -> VerificationReport:
    return verify_logits(logits, expected, PROMPTS, dtype=dtype, reference="a table")


def test_equal_logits() -> None:
    report = verify(expected)
    assert report.prompts == (PromptResult(2, 0.0, 1.0), PromptResult(1, 0.0, 1.0))
    assert (report.error, report.greedy_agreement, report.passed) == (0.0, 1.0, True)


def test_the_error_is_relative_to_the_greatest_logit_of_the_prompt() -> None:
    report = verify(off_by(0.5))
    assert [prompt.error for prompt in report.prompts] == pytest.approx([0.05, 0.05])
    assert report.error == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("dtype", "error", "passed"),
    [
        ("float32", 0.0009, True),
        ("float32", 0.0011, False),
        ("bfloat16", 0.49, True),
        ("bfloat16", 0.51, False),
        ("float16", 0.09, True),
        ("float16", 0.11, False),
    ],
)
def test_the_tolerance_follows_the_dtype(dtype: str, error: float, passed: bool) -> None:
    report = verify(off_by(error), dtype)
    assert report.passed is passed
    assert report.tolerance_reason == f"fixed for {dtype}"


def test_bfloat16_may_err_twice_as_much_as_the_baseline() -> None:
    for error, passed in ((0.19, True), (0.21, False)):
        report = verify_logits(
            off_by(error), expected, PROMPTS, dtype="bfloat16", reference="a table", baseline_logits=off_by(0.1)
        )
        assert report.tolerance == pytest.approx(0.02)
        assert report.tolerance_reason == "2 times the error 0.01 of the reference's own model in bfloat16"
        assert report.passed is passed


def test_the_baseline_loosens_nothing_for_float32() -> None:
    report = verify_logits(
        off_by(0.1), expected, PROMPTS, dtype="float32", reference="a table", baseline_logits=off_by(0.1)
    )
    assert report.tolerance == 1e-4
    assert not report.passed


def test_greedy_agreement_counts_positions() -> None:
    report = verify(off_by(11.0))  # token 0 wins the first position of each prompt
    assert [prompt.greedy_agreement for prompt in report.prompts] == [0.5, 0.0]
    assert report.greedy_agreement == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail(value: float) -> None:
    report = verify(off_by(value), "bfloat16")
    assert not report.passed
    assert report.error == float("inf")
    assert report.to_dict()["error"] is None


def test_a_reference_of_zeros_is_no_division_by_zero() -> None:
    def zeros(token_ids: Sequence[int]) -> Logits:
        return np.zeros((len(token_ids), 5), np.float32)

    assert verify_logits(zeros, zeros, PROMPTS, dtype="float32", reference="zeros").passed
    assert not verify_logits(expected, zeros, PROMPTS, dtype="float32", reference="zeros").passed


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^verification needs at least one prompt, and at least one token in each$"):
        verify_logits(expected, expected, [], dtype="float32", reference="a table")
    with pytest.raises(ValueError, match=r"^verification needs at least one prompt"):
        verify_logits(expected, expected, [(1,), ()], dtype="float32", reference="a table")
    with pytest.raises(
        ValueError, match=r"^there is no tolerance for dtype 'int8'; known: float32, bfloat16, float16$"
    ):
        verify(expected, "int8")
    with pytest.raises(ValueError, match=r"^logits have shape \[1, 5\], the reference's \[2, 5\]$"):
        verify(lambda token_ids: expected(token_ids)[:1])


def test_the_report_lies_beside_the_engine_and_is_not_part_of_it(
    tiny_llama: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    with open_checkpoint(tiny_llama("gqa")) as checkpoint:
        manifest = build_engine(checkpoint, engine)
    save_report(engine, verify(off_by(0.0005)), seconds={"build": 1.5})
    document = json.loads((engine / "verification.json").read_text())
    assert document.keys() == {"logits", "machine", "seconds", "time", "toolchain"}
    assert document["seconds"] == {"build": 1.5}
    assert document["toolchain"].keys() == {"precast", "python", "ml_dtypes", "numpy", "onnx", "onnx-ir"}
    logits = document["logits"]
    assert (logits["dtype"], logits["reference"], logits["passed"]) == ("float32", "a table", True)
    assert logits["error"] == pytest.approx(5e-5, rel=0.05)
    assert [prompt["num_tokens"] for prompt in logits["prompts"]] == [2, 1]
    assert read_manifest(engine) == manifest
    verify_files(engine, manifest)
