"""TopCandidates: its reference; and of its device kernels fields, launches, ahead-of-time compilation, results.

No GPU is needed. What the kernels compute is checked by device_top_candidates_checks.py in a process of its own,
because an environment variable chooses Triton's interpreter once and for all.
"""

import dataclasses
import re

import numpy as np
import pytest
import torch

from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET
from precast.plugins.device.op_call import OpCall
from precast.plugins.device.op_fields import field_types, from_arrays, to_array
from precast.plugins.top_candidates.device.launches import (
    CHUNK,
    SELECT,
    SORT,
    TILE,
    kernel_specs,
    launches,
    run_top_candidates,
    workspace,
)
from precast.plugins.top_candidates.device.op_fields import MAX_VOCAB_SIZE, TopCandidatesFields
from precast.plugins.top_candidates.onnxruntime import KIND
from precast.plugins.top_candidates.reference import top_candidates
from tests.plugins.device_ops import (
    STREAM,
    Recorder,
    assert_compiles,
    assert_imports_without_triton,
    assert_launches_match,
    run_checks_in_interpreter,
)

FIELDS = TopCandidatesFields(128_256, 64)


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


def test_the_reference_is_torchs_topk() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 300)).astype(np.float32)
    logits[4, 5:] = -np.inf
    ids, candidates = top_candidates(logits, 5)
    expected = torch.from_numpy(logits).topk(5, dim=1)
    np.testing.assert_array_equal(candidates, expected.values.numpy())
    np.testing.assert_array_equal(ids, expected.indices.numpy())
    assert (ids.dtype.name, candidates.dtype.name) == ("int32", "float32")


def test_of_equal_logits_the_smaller_id_comes_first() -> None:
    inf = np.inf
    logits = np.array([[-inf, 1, 1, 2], [-inf] * 4, [0, inf, 1, inf], [-0.0, 0.0, -1, -0.0]], np.float32)
    ids, candidates = top_candidates(logits, 3)
    assert ids.tolist() == [[3, 1, 2], [0, 1, 2], [1, 3, 2], [0, 1, 3]]
    assert candidates.tolist() == [[2, 1, 1], [-inf] * 3, [inf, inf, 1], [0, 0, 0]]
    assert np.signbit(candidates[3]).tolist() == [True, False, True]


def test_launches_pass_what_kernels_take() -> None:
    specs = kernel_specs(FIELDS)
    assert_launches_match(launches(FIELDS, 5), specs)
    select, sort = launches(FIELDS, 5)
    assert (select.kernel, sort.kernel) == (SELECT, SORT)
    assert (select.grid, sort.grid) == ((5, 16, 1), (5, 1, 1))
    constants = dict(specs[0].constants) | dict(specs[1].constants)
    assert {name: constants[name] for name in "KGSNT"} == {"K": 64, "G": 64, "S": 128, "N": 2048, "T": 2048}


def test_no_rows_need_no_launch() -> None:
    assert launches(FIELDS, 0) == ()
    assert workspace(FIELDS, 0).size_bytes == 0


def test_a_workspace_has_the_slots_of_every_chunk_and_grows_with_rows() -> None:
    assert [(region.name, region.size_bytes) for region in workspace(FIELDS, 3).regions] == [
        ("slot_id", 3 * 16 * 128 * 4)
    ]
    sizes = [workspace(FIELDS, rows).size_bytes for rows in range(100)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("vocab_size", [0, -1, MAX_VOCAB_SIZE + 1])
def test_a_vocabulary_that_makes_no_sense_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"TopCandidates: a vocabulary of {vocab_size}; the device kernels do 1 to"):
        TopCandidatesFields(vocab_size, 1)
    assert MAX_VOCAB_SIZE // CHUNK <= 512


@pytest.mark.parametrize(("vocab_size", "num_candidates", "most"), [(100, 65, 64), (100, 0, 64), (10, 11, 10)])
def test_candidates_that_make_no_sense_are_refused(vocab_size: int, num_candidates: int, most: int) -> None:
    message = f"TopCandidates: {num_candidates} candidates of a vocabulary of {vocab_size}; .* do 1 to {most}$"
    with pytest.raises(ValueError, match=message):
        TopCandidatesFields(vocab_size, num_candidates)
    TopCandidatesFields(vocab_size, most)


def test_fields_survive_a_plan() -> None:
    arrays = {name: to_array(value) for name, value in dataclasses.asdict(FIELDS).items()}
    assert TopCandidatesFields(**from_arrays("TopCandidates", field_types(TopCandidatesFields), arrays)) == FIELDS


def test_slots_lie_in_the_workspace() -> None:
    recorder = Recorder()
    run_top_candidates(FIELDS, recorder, OpCall([(3, 128_256)], (16,), (32, 48), 4096, STREAM))  # type: ignore[arg-type]
    assert recorder.addresses == {"logits": 16, "slot_id": 4096, "candidate_ids": 32, "candidate_logits": 48}


def test_logits_with_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="logits have 100 columns, the kernels are for 128256"):
        run_top_candidates(FIELDS, Recorder(), OpCall([(3, 100)], (16,), (32, 48), 0, STREAM))  # type: ignore[arg-type]


def test_the_kind_says_shapes_and_bytes() -> None:
    fields = KIND.read_fields({"vocab_size": 128_256, "num_candidates": 64})
    assert fields == FIELDS
    assert KIND.output_shapes(fields, [(7, 128_256)]) == [(7, 64), (7, 64)]
    assert KIND.workspace_bytes(fields, [(7, 128_256)]) == workspace(FIELDS, 7).size_bytes


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
def test_they_compile_for_every_target(target: str) -> None:
    assert_compiles(kernel_specs(FIELDS), target)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(("vocab_size", "num_candidates"), [(1, 1), (7, 7), (32_001, 20)])
def test_they_compile_for_small_sizes(vocab_size: int, num_candidates: int) -> None:
    assert_compiles(kernel_specs(TopCandidatesFields(vocab_size, num_candidates)), "sm_90")


@pytest.mark.usefixtures("_triton")
def test_logits_are_read_once_as_vectors() -> None:
    from precast.plugins.device.compile_triton import compile_kernel

    spec = kernel_specs(FIELDS)[0]
    ptx = compile_kernel(spec, PTX_TARGET, "ptx").code.decode()
    assert ptx.count("ld.global.v4.b32") == CHUNK // (4 * 32 * spec.num_warps)
    assert "ld.global.b32" not in ptx


@pytest.mark.usefixtures("_triton")
def test_zeros_of_either_sign_become_one_before_bits_are_compared() -> None:
    """A compiler that took -0.0 for 0.0 would leave the choice out, which each logit of a thread has."""
    from precast.plugins.device.compile_triton import compile_kernel

    for spec, size in zip(kernel_specs(FIELDS), (CHUNK, TILE), strict=True):
        ptx = compile_kernel(spec, PTX_TARGET, "ptx").code.decode()
        choices = re.findall(r"selp\.b32\s+%r\d+, 0, %r\d+, ", ptx)
        assert len(choices) >= size // (32 * spec.num_warps)


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernels_are_the_reference_in_tritons_interpreter() -> None:
    run_checks_in_interpreter("device_top_candidates_checks.py")


def test_it_imports_without_triton() -> None:
    assert_imports_without_triton("precast.plugins.top_candidates.device.launches")
