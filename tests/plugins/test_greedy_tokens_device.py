"""GreedyTokens: its reference; and of its device kernels fields, launches, ahead-of-time compilation, results.

No GPU is needed. What the kernels compute is checked by device_greedy_tokens_checks.py in a process of its own, because
an environment variable chooses Triton's interpreter once and for all.
"""

import dataclasses

import numpy as np
import pytest
import torch

from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import field_types, from_arrays, to_array
from precast.plugins.greedy_tokens.device.launches import (
    CHUNK,
    MERGE,
    PARTIAL,
    kernel_specs,
    launches,
    run_greedy_tokens,
    workspace,
)
from precast.plugins.greedy_tokens.device.op_fields import MAX_VOCAB_SIZE, GreedyTokensFields
from precast.plugins.greedy_tokens.reference import greedy_tokens
from tests.plugins.device_ops import (
    STREAM,
    Recorder,
    assert_compiles,
    assert_imports_without_triton,
    assert_launches_match,
    run_checks_in_interpreter,
)

FIELDS = GreedyTokensFields(151_936)


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


def test_the_reference_is_torchs_argmax_and_logsumexp() -> None:
    logits = (5 * np.random.default_rng(0).standard_normal((20, 300))).astype(np.float32)
    logits[3, [7, 250]] = 50.0
    logits[4, 5] = -np.inf
    tokens, log_sums = greedy_tokens(logits)
    on_torch = torch.from_numpy(logits)
    np.testing.assert_array_equal(tokens, on_torch.argmax(dim=1).numpy())
    np.testing.assert_allclose(log_sums, on_torch.logsumexp(dim=1).numpy(), rtol=1e-6)
    assert (tokens.dtype.name, log_sums.dtype.name) == ("int32", "float32")


def test_the_table_of_the_schema() -> None:
    inf, nan = np.inf, np.nan
    logits = np.array([[-inf, 1, 1], [-inf] * 3, [0, inf, inf], [0, nan, inf], [-0.0, 0.0, -1]], np.float32)
    tokens, log_sums = greedy_tokens(logits)
    assert tokens.tolist() == [1, 0, 1, 3, 0]
    expected = [1 + np.log(2), -inf, nan, nan, np.log(2 + np.exp(-1))]
    np.testing.assert_array_equal(log_sums, np.array(expected, np.float32))


def test_launches_pass_what_kernels_take() -> None:
    specs = kernel_specs(FIELDS)
    assert_launches_match(launches(FIELDS, 5), specs)
    partial, merge = launches(FIELDS, 5)
    assert (partial.kernel, merge.kernel) == (PARTIAL, MERGE)
    assert (partial.grid, merge.grid) == ((5, 38, 1), (5, 1, 1))
    assert dict(specs[1].constants)["C"] == 38


def test_no_rows_need_no_launch() -> None:
    assert launches(FIELDS, 0) == ()
    assert workspace(FIELDS, 0).size_bytes == 0


def test_a_workspace_has_a_partial_result_of_every_chunk_and_grows_with_rows() -> None:
    regions = workspace(FIELDS, 3).regions
    assert [region.name for region in regions] == ["partial_max", "partial_token", "partial_sum"]
    assert {region.size_bytes for region in regions} == {3 * 38 * 4}
    sizes = [workspace(FIELDS, rows).size_bytes for rows in range(100)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("vocab_size", [0, -1, MAX_VOCAB_SIZE + 1])
def test_a_vocabulary_that_makes_no_sense_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"GreedyTokens: a vocabulary of {vocab_size}; the device kernels do 1 to"):
        GreedyTokensFields(vocab_size)
    assert MAX_VOCAB_SIZE // CHUNK <= 1024


def test_fields_survive_a_plan() -> None:
    arrays = {name: to_array(value) for name, value in dataclasses.asdict(FIELDS).items()}
    assert GreedyTokensFields(**from_arrays("GreedyTokens", field_types(GreedyTokensFields), arrays)) == FIELDS


def test_partial_results_lie_in_the_workspace() -> None:
    recorder = Recorder()
    run_greedy_tokens(FIELDS, recorder, OpCall([(3, 151_936)], (16,), (32, 48), 4096, STREAM))  # type: ignore[arg-type]
    assert recorder.addresses == {
        "logits": 16,
        "tokens": 32,
        "log_sums": 48,
        "partial_max": 4096,
        "partial_token": 4096 + 512,
        "partial_sum": 4096 + 1024,
    }


def test_logits_with_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="logits have 100 columns, the kernels are for 151936"):
        run_greedy_tokens(FIELDS, Recorder(), OpCall([(3, 100)], (16,), (32, 48), 0, STREAM))  # type: ignore[arg-type]


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
def test_they_compile_for_every_target(target: str) -> None:
    assert_compiles(kernel_specs(FIELDS), target)


@pytest.mark.usefixtures("_triton")
def test_logits_are_read_once_as_vectors() -> None:
    from precast.plugins.device.compile_triton import compile_kernel

    spec = kernel_specs(FIELDS)[0]
    ptx = compile_kernel(spec, PTX_TARGET, "ptx").code.decode()
    assert ptx.count("ld.global.v4.b32") == CHUNK // (4 * 32 * spec.num_warps)
    assert "ld.global.b32" not in ptx


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernels_are_the_reference_in_tritons_interpreter() -> None:
    run_checks_in_interpreter("device_greedy_tokens_checks.py")


def test_it_imports_without_triton() -> None:
    assert_imports_without_triton("precast.plugins.greedy_tokens.device.launches")
