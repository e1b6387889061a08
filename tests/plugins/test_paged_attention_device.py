"""PagedAttention's device kernels: launches, workspace, ahead-of-time compilation, results.

No GPU is needed. What kernels compute is checked by device_paged_attention_checks.py in a process of its own, because
an environment variable chooses Triton's interpreter once and for all.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precast.plugins.device import serialize
from precast.plugins.device.compiled_kernel import CUBIN_TARGETS, PTX_TARGET, SHARED_BYTES_LIMITS
from precast.plugins.device.kernel_spec import KernelSpec, Parameter
from precast.plugins.paged_attention.device.kernels import CONTEXT, DECODE, MERGE, WRITE, kernel_specs, rows_per_tile
from precast.plugins.paged_attention.device.launches import StepShape, launches, partials_per_row, workspace
from precast.plugins.paged_attention.schema import DEVICE_KV_LAYOUTS, PagedAttentionAttributes

REPOSITORY = Path(__file__).parents[2]


def attributes(**changes: object) -> PagedAttentionAttributes:
    op = PagedAttentionAttributes(8, 2, 64, 0.125, "kvrow.bf16/1", 16)
    return dataclasses.replace(op, **changes)  # type: ignore[arg-type]


@pytest.fixture
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: device kernels cannot be compiled or interpreted")


# ------------------------------------------------------------------------------------------- launches and workspace


def test_a_mixed_step_launches_four_kernels() -> None:
    steps = launches(attributes(), StepShape(300, 3, 100), has_rope=True, has_norm=False, has_sinks=False)
    write, context, decode, merge = steps
    assert (write.kernel, context.kernel, decode.kernel, merge.kernel) == (WRITE, CONTEXT, DECODE, MERGE)
    assert write.grid == (300, 2, 1)
    assert context.grid == (300 // 32 + 3, 2, 1)  # 128 rows of the tile are 32 rows of 4 heads
    assert decode.grid == (3, 2, 4)  # 1600 tokens are 4 splits
    assert merge.grid == (3, 8, 1)
    assert "inv_freq" in write.buffers
    assert "q_norm" not in write.buffers


def test_a_step_of_single_rows_needs_no_context_kernel() -> None:
    steps = launches(attributes(), StepShape(3, 3, 100), has_rope=False, has_norm=False, has_sinks=False)
    assert [launch.kernel for launch in steps] == [WRITE, DECODE, MERGE]


def test_many_sequences_share_fewer_programs_and_long_contexts_fewer_partial_results() -> None:
    op = attributes()
    decode = launches(op, StepShape(2048, 2048, 10_000), has_rope=False, has_norm=False, has_sinks=False)[1]
    assert decode.grid == (2048, 2, 4)
    assert partials_per_row(op, 10_000) == 64
    assert partials_per_row(attributes(window=1000), 10_000) == 3


@pytest.mark.parametrize("has_rope", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_launches_pass_what_kernels_take(has_rope: bool, has_norm: bool, has_sinks: bool) -> None:
    op = attributes()
    specs = {spec.function: spec for spec in kernel_specs(op, 64 * has_rope, 1, has_norm, has_sinks)}
    steps = launches(op, StepShape(30, 3, 100), has_rope, has_norm, has_sinks)
    assert [launch.kernel for launch in steps if "sinks" in launch.buffers] == [CONTEXT, MERGE] * has_sinks
    assert [launch.kernel for launch in steps] == list(specs)
    for launch in steps:
        parameters = specs[launch.kernel].parameters
        assert (*launch.buffers, *dict(launch.scalars)) == tuple(p.name for p in parameters)
        assert [p.c_type for p in parameters] == ["pointer"] * len(launch.buffers) + ["int32"] * len(launch.scalars)
    written = {region.name for region in workspace(op, StepShape(30, 3, 100)).regions}
    assert written == {"queries", "partial_max", "partial_sum", "partial_weighted"}


shapes = st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5000)).map(
    lambda x: StepShape(max(x[:2]), min(x[:2]), x[2])
)


@settings(deadline=None)
@given(shapes, st.tuples(*[st.integers(0, 50)] * 3), st.sampled_from([0, 700]))
def test_a_workspace_grows_with_each_of_the_shapes(shape: StepShape, more: tuple[int, int, int], window: int) -> None:
    op = attributes(window=window, head_dim=34)
    larger = StepShape(shape.num_tokens + more[0] + more[1], shape.num_sequences + more[1], shape.table_width + more[2])
    small, large = workspace(op, shape), workspace(op, larger)
    assert small.size_bytes <= large.size_bytes
    ends = [0, *(region.offset + region.size_bytes for region in small.regions)]
    for region, end in zip(small.regions, ends, strict=False):
        assert region.offset % 256 == 0
        assert end <= region.offset < end + 256
    assert small.size_bytes >= ends[-1]
    assert rows_per_tile(op) == 32


@pytest.mark.parametrize("shape", [(0, 0, 1), (3, 4, 1), (3, 3, 0)])
def test_a_step_that_cannot_be_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"a step of {shape[0]} tokens, {shape[1]} sequences"):
        StepShape(*shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_layout": "kv16.bf16/1"}, "do not read kv_layout 'kv16.bf16/1'"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"num_heads": 258}, "129 query heads of head_dim [0-9]+ share a KV head; device kernels do at most 128"),
        ({"num_heads": 130, "head_dim": 130}, "65 query heads of head_dim 130 share a KV head; .* at most 64"),
        ({"head_dim": 258}, "head_dim is 258"),
    ],
)
def test_attributes_that_devices_do_not_serve_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_specs(attributes(**change), 0, 0, False, False)


# ------------------------------------------------------------------------------------------------- compiled kernels


@pytest.fixture(scope="module")
def small_specs() -> tuple[KernelSpec, ...]:
    """Few and small tiles, which compile in half the time, with all that an op may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precast.plugins.paged_attention.device.kernels.CONTEXT_BLOCK", 32)
        patch.setattr("precast.plugins.paged_attention.device.kernels.CONTEXT_KEYS", 16)
        op = attributes(num_heads=4, head_dim=16, tokens_per_block=64, logit_softcap=50.0)
        return kernel_specs(op, 16, 1, True, True)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", CUBIN_TARGETS)
def test_every_kernel_compiles_for_every_target(target: str, small_specs: tuple[KernelSpec, ...]) -> None:
    from precast.plugins.device.compile_triton import compile_kernels

    kernels = compile_kernels(small_specs, [target], ptx=target == PTX_TARGET)
    cubins = [kernel for kernel in kernels if kernel.kind == "cubin"]
    assert [kernel.name for kernel in cubins] == [spec.function for spec in small_specs]
    for kernel, spec in zip(cubins, small_specs, strict=True):
        assert (kernel.target, kernel.num_warps) == (target, spec.num_warps)
        assert kernel.code.startswith(b"\x7fELF")
        assert spec.function.encode() in kernel.code
        assert str(REPOSITORY).encode() not in kernel.code
        names = [p.name for p in kernel.parameters]
        assert names == [*(p.name for p in spec.parameters), "global_scratch", "profile_scratch"]
    for kernel in kernels[1::2] if target == PTX_TARGET else ():
        assert kernel.kind == "ptx"
        assert b".version 8.0" in kernel.code
        assert b".target sm_80" in kernel.code
        assert f".reqntid {32 * kernel.num_warps}".encode() in kernel.code
    assert serialize.from_bytes(serialize.to_bytes(kernels)) == kernels


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(("head_dim", "queries_per_kv"), [(2, 8), (128, 8), (256, 8), (128, 128), (256, 64)])
def test_the_largest_tiles_fit_the_smallest_shared_memory(head_dim: int, queries_per_kv: int) -> None:
    """Compiling checks the limit. A smaller head_dim has smaller tiles."""
    from precast.plugins.device.compile_triton import compile_kernel

    widest = attributes(num_heads=2 * queries_per_kv, head_dim=head_dim)
    for spec in kernel_specs(widest, 0, 0, False, False)[1:3]:  # context and decode
        assert 0 < compile_kernel(spec, "sm_86", "cubin").shared_bytes <= SHARED_BYTES_LIMITS["sm_86"]


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("target", ["sm_90", "sm_100", "sm_120"])
def test_tiles_of_real_models_compile(target: str) -> None:
    """Large enough for the matrix units of each generation; those above are too small for some."""
    from precast.plugins.device.compile_triton import compile_kernel

    real = attributes(num_heads=32, num_kv_heads=8, head_dim=128)
    for spec in kernel_specs(real, 0, 0, False, False)[1:3]:
        assert 0 < compile_kernel(spec, target, "cubin").shared_bytes <= SHARED_BYTES_LIMITS[target]


@pytest.mark.usefixtures("_triton")
def test_equal_input_gives_equal_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_specs: tuple[KernelSpec, ...]
) -> None:
    from precast.plugins.device.compile_triton import compile_kernel

    merge = small_specs[-1]
    first = compile_kernel(merge, "sm_90", "cubin")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # an empty cache: compiled once more
    assert compile_kernel(merge, "sm_90", "cubin") == first
    assert any(tmp_path.iterdir())


@pytest.mark.usefixtures("_triton")
def test_a_spec_that_does_not_match_its_function_is_refused(small_specs: tuple[KernelSpec, ...]) -> None:
    from precast.plugins.device.compile_triton import compile_kernel

    merge = small_specs[-1]
    with pytest.raises(ValueError, match=r"takes query_starts, .*the spec has parameters context_lengths, "):
        compile_kernel(dataclasses.replace(merge, parameters=merge.parameters[1:]), "sm_90", "cubin")
    with pytest.raises(ValueError, match="PTX for sm_90; the fallback is for sm_80"):
        compile_kernel(merge, "sm_90", "ptx")


def test_the_plugins_import_without_triton() -> None:
    modules = "precast.plugins.paged_attention.device.launches, precast.plugins.device.compile_triton"
    program = f"import sys; sys.modules['triton'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


# ------------------------------------------------------------------------------------------------ what they compute


@pytest.mark.slow
@pytest.mark.usefixtures("_triton")
def test_the_kernels_are_the_reference_in_tritons_interpreter() -> None:
    checks = Path(__file__).with_name("device_paged_attention_checks.py")
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert re.search(r"\d+ passed", child.stdout)
    assert "skipped" not in child.stdout


def test_both_layouts_have_kernels() -> None:
    for layout in DEVICE_KV_LAYOUTS:
        context = kernel_specs(attributes(kv_layout=layout), 0, 0, False, False)[1]
        kv = [p for p in context.parameters if p.name == "kv"]
        assert kv == [Parameter("kv", {"kvrow.bf16/1": "*bf16", "kvrow.f16/1": "*fp16"}[layout])]
