"""Engines for ONNX Runtime on GPUs, built for real for one target: the manifest, the files, and that they are the same
wherever and whenever they are built."""

import contextlib
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from precast.builder import build as engine_build
from precast.builder.backends.onnxruntime_cuda import backend
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.plan import BuildPlan
from precast.builder.progress import ignore_progress
from precast.builder.ranks.built_rank import BuiltRank, build_rank
from precast.builder.refit import refit_engine
from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.engine_dir import check_files, read_manifest, verify_files
from precast.checkpoints.engine_errors import CorruptEngineError
from precast.checkpoints.engine_manifest import EngineManifest, OnnxRuntimeCudaRequirements
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.weights_reader import read_weights_index
from precast.cli import main
from precast.plugins.device.kernel_sets import KERNELS
from precast.plugins.device.serialize import from_bytes

TinyLlama = Callable[..., Path]
OPTIONS: dict[str, Any] = {"target": ("sm90",), "max_seq_len": 64, "max_batch_size": 4, "max_num_tokens": 32}
OPS = ("GatedActivation", "GreedyTokens", "PagedAttention", "RmsNorm", "TopCandidates")


def build(model: Path, output: Path, **options: Any) -> EngineManifest:
    with open_checkpoint(model) as checkpoint:
        manifest = build_engine(checkpoint, output, BuildConfig(**{**OPTIONS, **options}), backend="onnxruntime-cuda")
    assert manifest == read_manifest(output)
    return manifest


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def engine(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the variant gqa in bfloat16, which the tests leave as it is."""
    path = tmp_path_factory.mktemp("built") / "engine"
    build(tiny_llama("gqa", "bfloat16"), path)
    return path


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines whose kernels are none, where they do not matter."""
    monkeypatch.setattr(backend, "compile_sets", lambda sets, targets: [b"none"] * len(sets))


def test_the_manifest(engine: Path) -> None:
    manifest = read_manifest(engine)
    verify_files(engine, manifest)
    assert (manifest.backend, manifest.batch_invariant, manifest.reproducible) == ("onnxruntime-cuda", False, True)
    assert manifest.backend_requirements == OnnxRuntimeCudaRequirements(
        onnxruntime_min="1.31",
        ir_version=10,
        opset=20,
        targets=("sm90",),
        min_capability=80,
        max_batch_size=4,
        max_num_tokens=32,
    )
    assert manifest.requires == (*(f"ai.precast.{op}/1" for op in OPS), "kvrow.bf16/1")
    assert (manifest.build.dtype, manifest.build.max_seq_len, manifest.build.notes) == ("bfloat16", 64, ())
    (rank,) = manifest.ranks
    assert (rank.graph, rank.weights) == ("rank0/model.onnx", "rank0/weights.bin")
    assert rank.network_sha256 is not None
    assert sorted(path.name for path in (engine / "rank0").iterdir()) == ["model.onnx", "weights.bin"]


def test_weights_are_inputs_of_the_graph(engine: Path) -> None:
    """Each of the file's is one of the graph's, of the same type and shape; and no others are in the graph."""
    graph = onnx.load(engine / "rank0" / "model.onnx").graph
    assert not graph.initializer
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    stored = {tensor.spec.name: tensor.spec for tensor in read_weights_index(engine / "rank0" / "weights.bin").tensors}
    for name, spec in stored.items():
        shape = tuple(dim.dim_value for dim in inputs[name].shape.dim)
        size_bytes = int(np.prod(shape)) * (4 if inputs[name].elem_type == onnx.TensorProto.FLOAT else 2)
        assert spec.size_bytes == size_bytes, name
    steps = {"token_ids", "query_starts", "context_lengths", "block_tables.0", "logit_rows"}
    steps |= {"token_sources", "previous_tokens", "kv.0", "kv.1"}
    assert set(inputs) == steps | set(stored)


def test_the_graph_has_real_kernels(engine: Path) -> None:
    """Of each set once, for the target and as PTX."""
    names = []
    for node in onnx.load(engine / "rank0" / "model.onnx").graph.node:
        for attribute in node.attribute:
            if attribute.name == KERNELS:
                kernels = from_bytes(zlib.decompress(attribute.s))
                assert {(each.target, each.kind) for each in kernels} == {("sm_90", "cubin"), ("sm_80", "ptx")}
                names += [each.name for each in kernels if each.kind == "cubin"]
                assert [each.name for each in kernels] == [name for name in names[-len(kernels) // 2 :] for _ in (0, 1)]
    attention = ["paged_attention_write", "paged_attention_context", "paged_attention_decode", "paged_attention_merge"]
    assert len(names) == 1 + len(attention) + 1 + 1 + 2 + 2
    assert sorted(names)[0] == "gated_activation"
    assert names.count("rms_norm") == 2


# Without `if __name__ == "__main__"`, as a user's script may be: processes that are spawned beside each other would run
# it again, were they its own.
SCRIPT = """
import sys
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.checkpoints.checkpoint import open_checkpoint

print("started", flush=True)
config = BuildConfig(target=("sm90",), max_seq_len=64, max_batch_size=4, max_num_tokens=32)
with open_checkpoint(sys.argv[1]) as checkpoint:
    build_engine(checkpoint, sys.argv[2], config, backend="onnxruntime-cuda")
"""


def test_the_same_input_gives_the_same_bytes(engine: Path, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """By another process, with another hash of text, and kernels that are compiled anew."""
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_llama("gqa", "bfloat16")), str(tmp_path / "again")],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert any((tmp_path / "cache").iterdir())
    assert files_of(tmp_path / "again") == files_of(engine)


class TestRefit:
    @pytest.mark.parametrize(("variant", "dtype"), [("gqa", "float16"), ("eos_list", "bfloat16")])
    def test_it_is_a_build(
        self, variant: str, dtype: str, engine: Path, tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """Byte for byte, the manifest too; without a compiler. And back again."""
        other = tiny_llama(variant, dtype)
        build(other, tmp_path / "other", dtype="bfloat16")
        monkeypatch.setattr(backend, "compile_sets", None)
        with open_checkpoint(other) as checkpoint:
            manifest = refit_engine(engine, checkpoint, tmp_path / "refitted")
        verify_files(tmp_path / "refitted", manifest)
        refitted, expected, before = (files_of(path) for path in (tmp_path / "refitted", tmp_path / "other", engine))
        assert refitted == expected
        assert refitted["rank0/model.onnx"] == before["rank0/model.onnx"]
        assert refitted["engine.json"] != before["engine.json"]
        assert (refitted["rank0/weights.bin"] == before["rank0/weights.bin"]) == (variant == "eos_list")
        with open_checkpoint(tiny_llama("gqa", "bfloat16")) as checkpoint:
            refit_engine(tmp_path / "refitted", checkpoint, tmp_path / "back")
        assert files_of(tmp_path / "back") == before

    def test_the_limit_of_the_model(self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
        """Where no limit was given, the manifest says none."""
        for name in ("one", "other"):
            build(tiny_llama("gqa", "bfloat16" if name == "one" else "float16"), tmp_path / name, max_seq_len=None)
        with open_checkpoint(tiny_llama("gqa", "float16")) as checkpoint:
            refit_engine(tmp_path / "one", checkpoint, tmp_path / "refitted")
        read = [read_manifest(tmp_path / name) for name in ("refitted", "other")]
        assert {manifest.build.max_seq_len for manifest in read} == {None}
        assert read[0].build.dtype == "bfloat16"
        assert read[1].build.dtype == "float16"  # of a checkpoint of its own, a build would have kept that

    def test_another_network_is_refused(self, engine: Path, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        for variant, what in (("mha", "sizes or constants of its layers"), ("odd_vocab", "vocab_size")):
            with (
                open_checkpoint(tiny_llama(variant)) as checkpoint,
                pytest.raises(BuildError, match=rf"its network is not that of .*{what}.*build an engine from it"),
            ):
                refit_engine(engine, checkpoint, tmp_path / "refitted")
        assert not (tmp_path / "refitted").exists()

    def test_a_damaged_graph_is_not_given_a_new_hash(
        self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None
    ) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine")
        graph = tmp_path / "engine" / "rank0" / "model.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
        with open_checkpoint(tiny_llama("gqa")) as checkpoint, pytest.raises(CorruptEngineError, match="SHA-256 is"):
            refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")

    @pytest.mark.parametrize("sizes", [(2, 1), (2, 2)], ids=str)
    def test_ranks(
        self,
        sizes: tuple[int, int],
        tiny_llama: TinyLlama,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        no_kernels: None,
    ) -> None:
        """Each rank gets its slices."""
        monkeypatch.setattr(engine_build, "_build_ranks", build_ranks_here)
        options = {"tensor_parallel_size": sizes[0], "pipeline_parallel_size": sizes[1], "dtype": "bfloat16"}
        manifest = build(tiny_llama("gqa", "bfloat16"), tmp_path / "engine", **options)
        assert manifest.mapping == Mapping.of(*sizes)
        ops = sorted([*OPS, "AllGather", "AllReduce", *(["Receive", "Send"] if sizes[1] > 1 else [])])
        assert manifest.requires == (*(f"ai.precast.{op}/1" for op in ops), "kvrow.bf16/1")
        build(tiny_llama("gqa", "float16"), tmp_path / "other", **options)
        with open_checkpoint(tiny_llama("gqa", "float16")) as checkpoint:
            refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")
        files, refitted = files_of(tmp_path / "engine"), files_of(tmp_path / "refitted")
        assert refitted == files_of(tmp_path / "other")
        for rank in range(sizes[0] * sizes[1]):
            assert refitted[f"rank{rank}/model.onnx"] == files[f"rank{rank}/model.onnx"]
            assert refitted[f"rank{rank}/weights.bin"] != files[f"rank{rank}/weights.bin"]


@pytest.mark.slow
def test_an_engine_of_ranks(engine: Path, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """Kernels and all, by processes beside each other. Its two stages have the kernels of the whole model."""
    manifest = build(tiny_llama("gqa", "bfloat16"), tmp_path / "engine", pipeline_parallel_size=2)
    check_files(tmp_path / "engine", manifest)
    assert manifest.requires == (*(f"ai.precast.{op}/1" for op in sorted([*OPS, "Receive", "Send"])), "kvrow.bf16/1")
    first, last = (kernels_in(tmp_path / "engine" / f"rank{rank}" / "model.onnx") for rank in range(2))
    whole = kernels_in(engine / "rank0" / "model.onnx")
    assert first | last == whole
    assert len(first) < len(whole)


def kernels_in(graph: Path) -> set[bytes]:
    nodes = onnx.load(graph).graph.node
    return {attribute.s for node in nodes for attribute in node.attribute if attribute.name == KERNELS}


def build_ranks_here(
    checkpoint: Checkpoint, writer: EngineWriter, plan: BuildPlan, partition: Partition, *rest: object
) -> list[BuiltRank]:
    """All ranks one after the other in this process, which `no_kernels` reaches."""
    ranks = [rank_model(checkpoint.config, partition, number) for number in range(partition.mapping.world_size)]
    return [
        build_rank(checkpoint, rank, plan, backend.BACKEND, writer, dump_graphs=None, progress=ignore_progress)
        for rank in ranks
    ]


@pytest.mark.parametrize("variant", ["qwen2_window", "qwen3", "mistral", "odd_vocab", "tied", "float16"])
def test_every_family(variant: str, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
    manifest = build(tiny_llama(variant), tmp_path / "engine", target=None)
    verify_files(tmp_path / "engine", manifest)
    needs = manifest.backend_requirements
    assert isinstance(needs, OnnxRuntimeCudaRequirements)
    assert (needs.targets, needs.min_capability) == (("portable",), 80)
    kv_layout = "kvrow.f16/1" if variant == "float16" else "kvrow.bf16/1"
    assert manifest.requires == (*(f"ai.precast.{op}/1" for op in OPS), kv_layout)


def test_a_build_that_fails_leaves_nothing(tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(sets: object, targets: object) -> list[bytes]:
        raise BuildError("kernels cannot be compiled: no")

    monkeypatch.setattr(backend, "compile_sets", fail)
    with pytest.raises(BuildError, match=r"^kernels cannot be compiled: no$"):
        build(tiny_llama("gqa"), tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_the_commands(engine: Path, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        model = str(tiny_llama("gqa", "bfloat16"))
        assert main(["refit", str(engine), model, "--output", str(tmp_path / "refitted")]) == 0
        assert main(["inspect", str(tmp_path / "refitted")]) == 0
    printed = output.getvalue()
    assert "sm90" in printed
    assert "onnxruntime" in printed
    assert files_of(tmp_path / "refitted") == files_of(engine)


def test_progress_ends_with_all_bytes(tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
    reports: list[tuple[str, int, int]] = []
    with open_checkpoint(tiny_llama("gqa")) as checkpoint:
        build_engine(
            checkpoint,
            tmp_path / "engine",
            BuildConfig(**OPTIONS),
            backend="onnxruntime-cuda",
            progress=lambda *report: reports.append(report),
        )
    total = reports[-1][2]
    assert reports[-2:] == [("compiling kernels", 0, total), ("compiling kernels", total, total)]
    assert {report[2] for report in reports} == {total}
