"""Real plans, built by TensorRT-RTX on a machine without a GPU. What is in one shows only on a GPU; that it is built,
for every family and format, and how large it is, shows here."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from precast.builder import build as engine_build
from precast.builder import processes
from precast.builder.backends.separate_weights import weights_as_inputs
from precast.builder.backends.tensorrt import backend, build_plan
from precast.builder.backends.tensorrt.library import shared_library
from precast.builder.backends.tensorrt.plan_job import PlanJob
from precast.builder.backends.tensorrt.profiles import make_profiles
from precast.builder.build import build_engine
from precast.builder.build_config import BuildConfig
from precast.builder.errors import BuildError
from precast.builder.network.onnx_model import onnx_bytes
from precast.builder.plan import BuildPlan
from precast.builder.progress import ignore_progress
from precast.builder.ranks.built_rank import BuiltRank, build_rank
from precast.builder.refit import refit_engine
from precast.checkpoints.checkpoint import Checkpoint, open_checkpoint
from precast.checkpoints.engine_dir import check_files, read_manifest, verify_files
from precast.checkpoints.engine_errors import CorruptEngineError, EngineIOError
from precast.checkpoints.engine_manifest import EngineManifest, TensorRtRequirements
from precast.checkpoints.engine_writer import EngineWriter
from precast.checkpoints.ranks.mapping import Mapping
from precast.checkpoints.ranks.partition import Partition
from precast.checkpoints.ranks.rank_model import rank_model
from precast.checkpoints.weights_index import TensorSpec
from precast.checkpoints.weights_writer import WeightsWriter
from precast.cli import main
from precast.llm import LLM
from precast.plugins.device.compiled_kernel import CompiledKernel
from precast.plugins.device.serialize import MAGIC, from_bytes
from precast.plugins.paged_attention.device.op_fields import KERNELS_SHA256
from precast.runtime.errors import EngineLoadError
from tests.builder.rank_worlds import RandomSlices
from tests.builder.tensorrt.lowered_ranks import COLLECTIVES, lowered_ranks
from tests.builder.tensorrt.worlds import WIDE, lowered, tensorrt_plan
from tests.builder.worlds import RandomTensors, with_attention, with_mlp
from tests.gpus import num_gpus

TinyLlama = Callable[..., Path]

PYDOC_LLAMA = Path(__file__).parents[3] / "examples" / "checkpoints" / "pydoc-llama"
NUM_PROFILES = 2
LARGE = replace(WIDE, hidden_size=1024, layers=WIDE.layers[:1])
LARGE = with_mlp(with_attention(LARGE, num_heads=8, head_dim=128), intermediate_size=2048)
LARGE_ELEMENTS = 1024 * (8 + 4) * 128 + 1024 * 1024 + 3 * 1024 * 2048
"""Of the matrices of its layer."""

pytestmark = pytest.mark.skipif(shared_library() is None, reason="needs TensorRT-RTX")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans without device code, which takes seconds to compile; tests/plugins compiles it for every target."""
    monkeypatch.setattr(backend, "kernel_capabilities", lambda targets: ())


def build(model: Path, output: Path, **options: Any) -> EngineManifest:
    with open_checkpoint(model) as checkpoint:
        manifest = build_engine(checkpoint, output, BuildConfig(**options), backend="tensorrt")
    assert manifest == read_manifest(output)
    check_files(output, manifest)
    return manifest


def build_ranks_here(
    checkpoint: Checkpoint, writer: EngineWriter, plan: BuildPlan, partition: Partition, *rest: object
) -> list[BuiltRank]:
    """All ranks one after the other in this process, which `no_kernels` reaches."""
    ranks = [rank_model(checkpoint.config, partition, number) for number in range(partition.mapping.world_size)]
    return [
        build_rank(checkpoint, rank, plan, backend.BACKEND, writer, dump_graphs=None, progress=ignore_progress)
        for rank in ranks
    ]


class EngineDirectory:
    """Where a backend writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open_weights(self, path: str, specs: Sequence[TensorSpec]) -> WeightsWriter:
        raise AssertionError(f"{path} is not to stay")


def plan_bytes(manifest: EngineManifest) -> int:
    return manifest.files["rank0/model.plan"].size


@pytest.mark.parametrize(
    "variant",
    [
        "gqa",
        "tied",
        "attention_bias",
        "rope_llama3",
        "rope_longrope",
        "float16",
        "mistral",
        "qwen2",
        "qwen2_window",
        "qwen3",
    ],
)
def test_every_family(variant: str, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
    manifest = build(tiny_llama(variant), tmp_path / "engine", target=("sm89", "sm120"), max_seq_len=64)
    needs = manifest.backend_requirements
    assert isinstance(needs, TensorRtRequirements)
    assert (needs.library, needs.targets, needs.min_capability) == ("tensorrt_rtx", ("sm89", "sm120"), 89)
    assert (manifest.batch_invariant, manifest.reproducible) == (False, False)
    kv_layout = "kvrow.f16/1" if variant == "float16" else "kvrow.bf16/1"
    assert manifest.requires == ("ai.precast.PagedAttention/1", kv_layout)
    (rank,) = manifest.ranks
    assert (rank.graph, rank.weights, rank.network_sha256) == ("rank0/model.plan", None, None)
    assert sorted(path.name for path in (tmp_path / "engine" / "rank0").iterdir()) == ["model.plan"]
    assert {cache.layout for cache in rank.kv_caches} == {kv_layout}
    plan = (tmp_path / "engine" / rank.graph).read_bytes()
    assert b"PagedAttention" in plan  # names can be read
    assert b"CopyNode for aliased" not in plan  # or a step would copy whole KV pools


@pytest.mark.parametrize(
    ("quantization", "bits", "target"),
    [
        (None, 16, "portable"),
        ("int8", 8, "sm80"),
        ("int4", 4.125, "sm86"),
        ("fp8", 8, "sm89"),
        ("nvfp4", 4.5, "sm120"),
    ],
)
def test_every_format(quantization: str | None, bits: float, target: str, tmp_path: Path, no_kernels: None) -> None:
    """A plan is about as large as its weights: TensorRT did not make 16-bit ones of quantised ones."""
    plan = tensorrt_plan(quantization=quantization, targets=(target,))
    network = lowered(LARGE, plan)
    output = EngineDirectory(tmp_path)
    written = backend.BACKEND.write(network, RandomTensors(LARGE), "rank0", output, plan, ignore_progress)
    assert (written.graph, written.weights) == ("rank0/model.plan", None)
    plan_size = (tmp_path / written.graph).stat().st_size
    expected_bytes = LARGE_ELEMENTS * bits / 8
    # Measured: TensorRT adds up to 2.6 MB for these four products and the choice of tokens, with nvfp4 3.6 MB. In 16
    # bits the matrices are 18 MB.
    assert expected_bytes < plan_size < expected_bytes + (4_500_000 if quantization == "nvfp4" else 3_500_000)


def test_a_quantised_engine(tmp_path: Path, no_kernels: None) -> None:
    manifest = build(PYDOC_LLAMA, tmp_path / "engine", quantization="int4", group_size=128)
    needs = manifest.backend_requirements
    assert isinstance(needs, TensorRtRequirements)
    assert (needs.quantization, needs.targets, needs.min_capability) == ("int4", ("portable",), 80)
    assert manifest.build.dtype == "bfloat16"


def test_kernels_are_in_the_plan(tmp_path: Path) -> None:
    """Once for each profile, though the network has four attentions: the first has them, the others name them."""
    build(PYDOC_LLAMA, tmp_path / "engine", target=("sm89",))
    plan = (tmp_path / "engine" / "rank0" / "model.plan").read_bytes()
    assert plan.count(KERNELS_SHA256.encode()) == 4 * NUM_PROFILES
    sets = [kernels for place in re.finditer(rb"\x78\xda", plan) if (kernels := _kernels_at(plan, place.start()))]
    assert len(sets) == NUM_PROFILES
    for kernels in sets:
        assert {(kernel.target, kernel.kind) for kernel in kernels} == {("sm_89", "cubin"), ("sm_80", "ptx")}
        assert len(kernels) == 4 * 2


def _kernels_at(plan: bytes, start: int) -> tuple[CompiledKernel, ...]:
    """The kernels whose compressed bytes begin at `start`; none where it only looks like it."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(plan[start:])
    except zlib.error:
        return ()
    return from_bytes(data) if data.startswith(MAGIC) else ()


class TestRanks:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2)], ids=str)
    def test_every_rank_has_a_plan(self, sizes: tuple[int, int], dtype: str, tmp_path: Path, no_kernels: None) -> None:
        plan, tensors = tensorrt_plan(dtype, targets=("sm89", "sm120")), RandomTensors(WIDE)
        for rank, network in lowered_ranks(WIDE, Mapping.of(*sizes), plan):
            output = EngineDirectory(tmp_path)
            files = f"rank{rank.rank}"
            written = backend.BACKEND.write(network, RandomSlices(tensors, rank), files, output, plan, ignore_progress)
            data = (tmp_path / written.graph).read_bytes()
            # What a plan holds shows on a GPU only; the names of the plugins are in it.
            for op in COLLECTIVES:
                assert (op.encode() in data) == any(node.op_type == op for node in network.graph), op

    @pytest.mark.slow
    def test_an_engine_of_ranks(self, tiny_llama: TinyLlama, tmp_path: Path) -> None:
        """Kernels and all, by processes beside each other. TensorRT-RTX has plugins in parts that it fuses twice."""
        manifest = build(tiny_llama("gqa"), tmp_path / "engine", target=("sm89",), tensor_parallel_size=2)
        assert manifest.mapping == Mapping.of(2, 1)
        ops = [f"ai.precast.{op}/1" for op in ("AllGather", "AllReduce", "PagedAttention")]
        assert manifest.requires == (*ops, "kvrow.bf16/1")
        for rank in range(2):
            plan = (tmp_path / "engine" / f"rank{rank}" / "model.plan").read_bytes()
            places = (place.start() for place in re.finditer(rb"\x78\xda", plan))
            sets = [kernels for place in places if (kernels := _kernels_at(plan, place))]
            counts = Counter("one_shot_all_reduce" in {kernel.name for kernel in kernels} for kernels in sets)
            assert counts == {False: NUM_PROFILES, True: 2 * NUM_PROFILES}
            for kernels in sets:
                assert {(kernel.target, kernel.kind) for kernel in kernels} == {("sm_89", "cubin"), ("sm_80", "ptx")}

    def test_refit(
        self, tiny_llama: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_kernels: None
    ) -> None:
        """Each rank gets its slices; the progress is that of all of them."""
        monkeypatch.setattr(engine_build, "_build_ranks", build_ranks_here)
        sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
        options = {**sizes, "weights": "separate", "dtype": "float16"}
        build(tiny_llama("gqa", "float16"), tmp_path / "one", **options)
        build(tiny_llama("gqa", "bfloat16"), tmp_path / "other", **options)
        monkeypatch.setattr(backend, "build_plan", None)
        reports: list[tuple[str, int, int]] = []
        with open_checkpoint(tiny_llama("gqa", "bfloat16")) as checkpoint:
            manifest = refit_engine(
                tmp_path / "one", checkpoint, tmp_path / "refitted", progress=lambda *report: reports.append(report)
            )
        verify_files(tmp_path / "refitted", manifest)
        one, other = read_manifest(tmp_path / "one"), read_manifest(tmp_path / "other")
        assert manifest.ranks == one.ranks == other.ranks
        assert len(manifest.ranks) == 4
        for rank in range(4):
            weights, plan = f"rank{rank}/weights.bin", f"rank{rank}/model.plan"
            assert manifest.files[weights] == other.files[weights] != one.files[weights]
            assert manifest.files[plan] == one.files[plan]
        done = [report[1] for report in reports]
        assert done[0] == 0
        assert done == sorted(set(done))
        assert {report[2] for report in reports} == {done[-1]}
        with (
            open_checkpoint(tiny_llama("mqa")) as checkpoint,
            pytest.raises(BuildError, match=r"its network is not that of .*: build an engine from it instead"),
        ):
            refit_engine(tmp_path / "one", checkpoint, tmp_path / "no")


class TestSeparateWeights:
    def test_they_lie_beside_a_small_plan(self, tmp_path: Path, no_kernels: None) -> None:
        manifest = build(PYDOC_LLAMA, tmp_path / "engine", weights="separate")
        (rank,) = manifest.ranks
        assert rank.weights == "rank0/weights.bin"
        assert rank.network_sha256 is not None
        assert plan_bytes(manifest) < 5_000_000  # of which the network's 7 MB are none
        assert manifest.files["rank0/weights.bin"].size > 7_000_000

    def test_refit_is_a_build_without_tensorrt(
        self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The refitted engine has the plan of the one and the weights, tokenizer and configs of the other."""
        build(tiny_llama("gqa", "float16"), tmp_path / "one", weights="separate")
        build(tiny_llama("gqa", "bfloat16"), tmp_path / "other", weights="separate", dtype="float16")
        monkeypatch.setattr(backend, "build_plan", None)
        with open_checkpoint(tiny_llama("gqa", "bfloat16")) as checkpoint:
            manifest = refit_engine(tmp_path / "one", checkpoint, tmp_path / "refitted")
        verify_files(tmp_path / "refitted", manifest)
        one, other = read_manifest(tmp_path / "one"), read_manifest(tmp_path / "other")
        assert manifest.files["rank0/model.plan"] == one.files["rank0/model.plan"]
        assert manifest.files["rank0/weights.bin"] == other.files["rank0/weights.bin"]
        assert manifest.files["rank0/weights.bin"] != one.files["rank0/weights.bin"]
        assert (manifest.model, manifest.ranks) == (other.model, other.ranks)

    def test_in_place(self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
        engine = tmp_path / "engine"
        before = build(tiny_llama("gqa", "float16"), engine, weights="separate")
        with open_checkpoint(tiny_llama("gqa", "bfloat16")) as checkpoint:
            after = refit_engine(engine, checkpoint, engine, overwrite=True)
        assert after == read_manifest(engine)
        changed = [name for name, entry in after.files.items() if entry != before.files[name]]
        assert "rank0/weights.bin" in changed
        assert "rank0/model.plan" not in changed

    def test_a_damaged_plan_is_not_given_a_new_hash(
        self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None
    ) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine", weights="separate")
        plan = tmp_path / "engine" / "rank0" / "model.plan"
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
        with open_checkpoint(tiny_llama("gqa")) as checkpoint, pytest.raises(CorruptEngineError, match="SHA-256 is"):
            refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")

    def test_sequences_that_the_model_cannot_have_are_refused(
        self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None
    ) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine", weights="separate")
        short = tmp_path / "short"
        shutil.copytree(tiny_llama("gqa"), short)
        config = json.loads((short / "config.json").read_text())
        (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
        with (
            open_checkpoint(short) as checkpoint,
            pytest.raises(BuildError, match=r"max_seq_len 256 exceeds the model's max_position_embeddings 8"),
        ):
            refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")

    def test_notes_are_those_of_the_new_checkpoint(
        self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None
    ) -> None:
        build(tiny_llama("gqa", "bfloat16"), tmp_path / "engine", weights="separate")
        with open_checkpoint(tiny_llama("gqa")) as checkpoint:
            manifest = refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")
        assert manifest.build.notes == ("float32 checkpoint stored as bfloat16",)
        assert manifest.build.max_seq_len is None

    def test_another_network_is_refused(self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine", weights="separate")
        for variant, what in (("mha", "sizes or constants of its layers"), ("odd_vocab", "vocab_size")):
            with (
                open_checkpoint(tiny_llama(variant)) as checkpoint,
                pytest.raises(
                    BuildError, match=rf"its network is not that of .*{what}.*build an engine from it instead"
                ),
            ):
                refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")
        assert not (tmp_path / "refitted").exists()

    def test_weights_inside_are_refused(self, tiny_llama: TinyLlama, tmp_path: Path, no_kernels: None) -> None:
        build(tiny_llama("gqa"), tmp_path / "engine")
        with open_checkpoint(tiny_llama("gqa")) as checkpoint:
            with pytest.raises(
                BuildError, match=r"the weights are inside the plan: build it again, with weights separate"
            ):
                refit_engine(tmp_path / "engine", checkpoint, tmp_path / "refitted")
            build_engine(checkpoint, tmp_path / "cpu")
            with pytest.raises(BuildError, match=r"an engine for onnxruntime has no plan to keep"):
                refit_engine(tmp_path / "cpu", checkpoint, tmp_path / "refitted")


class TestWhatGoesWrong:
    def job(self, tmp_path: Path, **changes: Any) -> PlanJob:
        network, plan = lowered(), tensorrt_plan(separate_weights=True)
        data = onnx_bytes(network, dict.fromkeys(network.weights, 0))
        (tmp_path / "model.onnx").write_bytes(weights_as_inputs(data))
        fields = {
            "graph": str(tmp_path / "model.onnx"),
            "weights": "",
            "plan": str(tmp_path / "model.plan"),
            "library": "tensorrt_rtx",
            "targets": ("sm89",),
            "kernel_capabilities": (),
            "profiles": make_profiles(network, plan),
            "parent_pid": os.getpid(),
        }
        return PlanJob(**{**fields, **changes})

    def refused(self, job: PlanJob) -> str:
        with pytest.raises(BuildError) as raised:
            build_plan.build_plan(job, 1, lambda *_: None)
        assert not Path(job.plan).exists()
        return str(raised.value)

    def test_the_job_itself_is_right(self, tmp_path: Path) -> None:
        stages = []
        size_bytes = build_plan.build_plan(self.job(tmp_path), 7, lambda *stage: stages.append(stage))
        assert size_bytes == (tmp_path / "model.plan").stat().st_size
        names = ("reading the graph", "compiling kernels", "building the plan")
        assert stages == [(name, done, 7) for name in names for done in (0, 7)]

    @pytest.mark.parametrize("has_sinks", [0, 1])
    def test_sinks_are_there_if_the_fields_say_so(self, tmp_path: Path, has_sinks: int) -> None:
        """No model has them yet: one more input of the graph's nodes, of which TensorRT asks the plugin."""
        job = self.job(tmp_path)
        model = onnx.load(job.graph, load_external_data=False)
        model.graph.initializer.append(onnx.helper.make_tensor("sinks", onnx.TensorProto.FLOAT, [4], [1.0] * 4))
        for node in model.graph.node:
            if node.op_type == "PagedAttention":
                node.input.append("sinks")
                next(a for a in node.attribute if a.name == "has_sinks").i = has_sinks
                next(a for a in node.attribute if a.name == "logit_softcap").f = 50.0
        onnx.save(model, job.graph)
        if has_sinks:
            assert build_plan.build_plan(job, 1, lambda *_: None) > 0
        else:
            assert "PagedAttention has 7 inputs, its fields say 6" in self.refused(job)

    def test_a_type_that_a_target_lacks(self, tmp_path: Path) -> None:
        text = self.refused(self.job(tmp_path, targets=("sm75",)))
        assert text.startswith("TensorRT cannot build the plan: ")
        assert "Cannot compile for target(s) sm75" in text

    def test_a_plugin_whose_input_does_not_fit(self, tmp_path: Path) -> None:
        job = self.job(tmp_path)
        model = onnx.load(job.graph, load_external_data=False)
        attention = next(node for node in model.graph.node if node.op_type == "PagedAttention")
        next(a for a in attention.attribute if a.name == "num_heads").i = 8
        Path(job.graph).write_bytes(model.SerializeToString())
        assert "PagedAttention: qkv has 256 columns, its fields say 384" in self.refused(job)

    def test_a_plugin_without_a_field(self, tmp_path: Path) -> None:
        job = self.job(tmp_path)
        model = onnx.load(job.graph, load_external_data=False)
        attention = next(node for node in model.graph.node if node.op_type == "PagedAttention")
        attention.attribute.remove(next(a for a in attention.attribute if a.name == "kv_layout"))
        Path(job.graph).write_bytes(model.SerializeToString())
        assert "layers.0.attention: PagedAttention: the plugin lacks its field kv_layout" in self.refused(job)

    def test_a_process_that_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = "import os; os.kill(os.getpid(), 9)"
        monkeypatch.setattr(build_plan, "python_command", lambda module: [sys.executable, "-c", program])
        text = self.refused(self.job(tmp_path))
        assert text == "the process that builds the plan was killed by SIGKILL, as the system does when memory runs out"

    def test_a_library_that_cannot_be_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = tmp_path / "packages" / "broken_tensorrt"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text("import ctypes; ctypes.CDLL('libnone.so.99')")
        monkeypatch.syspath_prepend(str(broken.parent))
        assert "libnone.so.99: cannot open shared object file" in self.refused(
            self.job(tmp_path, library="broken_tensorrt")
        )

    def test_a_place_that_is_taken(self, tmp_path: Path) -> None:
        job = self.job(tmp_path)
        Path(job.plan).write_bytes(b"")
        with pytest.raises(FileExistsError) as raised:
            build_plan.build_plan(job, 1, lambda *_: None)
        assert raised.value.filename == job.plan

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_kernels: None) -> None:
        """The process may write no file of more than 64 KB; the engine's writer says it as it says its own."""
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
        monkeypatch.setattr(processes, "_PROGRAM", limit + processes._PROGRAM)
        with pytest.raises(EngineIOError, match=r"engine/rank0/model\.plan: cannot be written: File too large; "):
            build(PYDOC_LLAMA, tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []

    def test_a_build_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = "import sys; sys.exit('no room')"
        monkeypatch.setattr(build_plan, "python_command", lambda module: [sys.executable, "-c", program])
        with pytest.raises(BuildError, match=r"^the process that builds the plan ended with exit status 1: no room$"):
            build(PYDOC_LLAMA, tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []


def test_tensorrt_itself_takes_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed here: a module in its place has what both libraries have, and no more."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_packages"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    plan = tensorrt_plan(library="tensorrt", targets=("current",))
    network = lowered(WIDE, plan)
    output = EngineDirectory(tmp_path)
    backend.BACKEND.write(network, RandomTensors(WIDE), "rank0", output, plan, ignore_progress)
    calls = (tmp_path / "rank0" / "model.plan").read_text().split()
    ops = ("PagedAttention", "AllReduce", "AllGather", "Send", "Receive")
    assert calls[:7] == [*(f"register:{op}:precast" for op in ops), "create_network(0)", "load_model_proto"]
    assert f"embedding.weight={40 * 128 * 2}" in calls
    assert calls.count("profile") == 2
    assert calls[calls.index("parse_model_proto") + 1] == "aliased=True"
    assert "token_ids:(4,)" in calls
    assert "token_ids:(64,)" in calls


def test_the_commands(tmp_path: Path, no_kernels: None) -> None:
    """`no_kernels` reaches this process only, and so the commands run in it."""
    engine, refitted = tmp_path / "engine", tmp_path / "refitted"
    output = io.StringIO()
    arguments = ["--backend", "tensorrt", "--target", "sm89, sm120", "--weights", "separate", "--max-batch-size", "8"]
    with contextlib.redirect_stdout(output):
        assert main(["build", str(PYDOC_LLAMA), "--output", str(engine), *arguments]) == 0
        assert main(["refit", str(engine), str(PYDOC_LLAMA), "--output", str(refitted)]) == 0
        assert main(["inspect", str(refitted)]) == 0
    printed = output.getvalue()
    assert f"{refitted}: the plan of {engine} with " in printed
    assert "tensorrt: tensorrt_rtx 1.7" in printed
    assert "built for sm89, sm120; compute capability from 8.9" in printed
    assert "none; weights beside the plan" in printed
    assert "at most 8 sequences and 8192 tokens" in printed
    assert "this version lacks it" not in printed


def test_the_commands_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_arguments = ["build", str(PYDOC_LLAMA), "--output", str(tmp_path / "engine")]
    for arguments, text in (
        (["--backend", "tensorrt", "--target", "sm90"], "target sm90: TensorRT-RTX has no such target"),
        (
            ["--backend", "tensorrt", "--quant", "int4", "--group-size", "32"],
            "int4 group 32 is not available on TensorRT",
        ),
        (["--backend", "tensorrt", "--verify"], "--verify runs the engine"),
        (["--quant", "int4"], "quantization int4 has no meaning on CPUs"),
    ):
        assert main([*build_arguments, *arguments]) > 0
        assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(num_gpus() > 0, reason="there is a GPU, which runs it")
def test_a_machine_without_a_gpu_refuses_it_in_one_sentence(tmp_path: Path, no_kernels: None) -> None:
    """By the process of rank 0, which finds TensorRT-RTX and cuda-python, and no driver."""
    build(PYDOC_LLAMA, tmp_path / "engine")
    text = (
        f"^rank 0: {tmp_path / 'engine'}: the engine runs on an NVIDIA GPU, and CUDA finds none here \\(.*\\): load it "
    )
    with pytest.raises(EngineLoadError, match=text):
        LLM(tmp_path / "engine")
